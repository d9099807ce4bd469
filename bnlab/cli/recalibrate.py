"""`bnlab recalibrate`: the statistics of the training set in place of a trained model's, as a new file of weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, cast

import typer

from bnlab.api import recalibrated_file
from bnlab.cli.options import (
    Data,
    Format,
    Key,
    Module,
    Output,
    Targets,
    Weights,
    command_on,
    number_in,
    one_of,
)
from bnlab.errors import count_of

if TYPE_CHECKING:
    from bnlab.measure.recalibration import Stats


def recalibrate(
    targets: Targets = None,
    stats: Annotated[
        str,
        one_of("--stats", choices=("precise", "population"), help="In one pass as in training, or layer after layer."),
    ] = "population",
    samples: Annotated[
        Optional[int], number_in("--samples", int, 2, help="Training samples to take; default: all.")
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option(
            "--out", metavar="FILE", help="The new file; default: [FILE-]recalibrated-STATS-N.pt beside the old."
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Take plain images without dropout, not as training sees them.")
    ] = False,
    module: Module = None,
    weights: Weights = None,
    key: Key = None,
    output: Output = None,
    data: Data = None,
    format: Format = "table",
) -> None:
    """Replace the running statistics of a trained model by those of the training set, in a new checkpoint.

    RUN is a run folder, with overrides such as data.root=FOLDER. With --module there are only overrides:
    data.batch_size=N, that of its training; model.input_norm=none for images in [0, 1].
    Shows before and after in one table, and how many samples would have been enough. Of a sweep's folder all finished
    runs are recalibrated, each arm is compared with itself before, and what that came to stays with the runs.
    """
    from bnlab.cli.evaluate_again import is_folder_of_runs, refuse_of_one

    if module is None and is_folder_of_runs(targets or []):
        others = {"--checkpoint": weights, "--key": key, "--output": output, "--data": data, "--out": out}
        refuse_of_one(targets or [], others)
        _recalibrate_all(targets or [], cast("Stats", stats), samples, plain, format)
        return
    from bnlab.experiment.target import check_target
    from bnlab.record.new_weights import check_new_file

    if out is not None:
        check_new_file(out)
    check_target(targets or [], module, weights, data, key, output, "recalibrate")  # before torch is loaded
    from bnlab.experiment.trained_model import find
    from bnlab.report.console import messages
    from bnlab.report.display import working
    from bnlab.report.recalibration_report import (
        is_worse,
        recalibration_head,
        recalibration_rows,
        recalibration_tables,
    )
    from bnlab.report.rows import show

    how, err = cast("Stats", stats), messages()
    with working(err) as tell:
        tell("reading model and data")
        trained = find(targets or [], module, weights, data, key, output)
        report = recalibrated_file(trained, weights, how, samples, plain, out, tell)
    show(format, [partial(recalibration_tables, report)], recalibration_head(report), recalibration_rows(report))
    file = Path(report.file)
    if is_worse(report.result.changes):
        err.say(f"{file}: written, but the old statistics are better")
        return
    err.say("to examine it:")
    of_both = [word for word in targets or [] if not word.startswith("eval.batch_size=")]  # probe does not read it
    err.emit(err.show(command_on("probe", of_both, module, file, data, key, output)) + "\n")  # one line, to be copied


def _recalibrate_all(targets: Sequence[str], stats: Stats, samples: int | None, plain: bool, format: str) -> None:
    """Recalibrate every finished run at or below a path, and compare each arm with itself before.

    What was recalibrated before is not recalibrated again. Errors: ConfigError; IncompatibleError where none can be.
    """
    from bnlab.cli.compare import show_comparison
    from bnlab.cli.evaluate_again import finished, of_each
    from bnlab.compare.comparison import compare
    from bnlab.errors import IncompatibleError
    from bnlab.record.evaluations import RECALIBRATED
    from bnlab.report.console import messages, results
    from bnlab.report.table import joined
    from bnlab.report.verdicts import answers

    place, overrides = Path(targets[0]), targets[1:]

    def do(folder: Path) -> int:
        from bnlab.experiment.evaluate_again import recalibrate_again  # torch, once all else is as it should be

        return recalibrate_again(folder, stats, samples, plain=plain, overrides=overrides)

    count = of_each(place, overrides, "recalibrating", do)
    from bnlab.experiment.evaluate_again import before_and_after

    kept = [each for run in finished(place) for each in before_and_after(run, stats, samples, plain=plain)]
    if not kept:
        raise IncompatibleError(f"{place}: no run here can be recalibrated")
    metrics, before = ("test_accuracy", "test_loss", "samples_needed", "acc_gap"), f"{RECALIBRATED}=before"
    if format == "table":
        of_loss = compare([place], metrics=["test_loss"], of=kept, baseline=before)
        out = results()
        for sentence in itertools.chain(*answers(of_loss)):
            out.print(*joined([sentence], out), sep="\n")
    show_comparison(compare([place], metrics=metrics, of=kept, baseline=before), format, metrics, False)
    name = f"recalibrated-{stats}-{'plain-' * plain}N.pt"
    messages().say(f"{count_of(count, 'run')} recalibrated; the new checkpoints are {place}/…/{name}")
