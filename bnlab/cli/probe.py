"""`bnlab probe`: one model in training and in evaluation mode, every measure of the difference, and its causes."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from bnlab.api import QUICK, SAMPLES, examined
from bnlab.cli.options import (
    Data,
    Force,
    Format,
    Key,
    Module,
    Output,
    Page,
    Targets,
    Weights,
    command_on,
    number_in,
)
from bnlab.cli.sheet_page import check_out, write_sheet


def probe(
    targets: Targets = None,
    module: Module = None,
    weights: Weights = None,
    key: Key = None,
    output: Output = None,
    data: Data = None,
    samples: Annotated[
        int, number_in("--samples", int, 2, help="Training samples for the statistics of one run, at most.")
    ] = SAMPLES,
    quick: Annotated[
        bool,
        typer.Option("--quick", help=f"Take {QUICK} images of each split: wider intervals, sooner."),
    ] = False,
    format: Format = "table",
    out: Page = None,
    force: Force = False,
) -> None:
    """Measure how one model behaves differently in train() and eval(), and split the difference into its causes.

    RUN is a run folder, with overrides such as data.root=FOLDER. With --module there are only overrides:
    data.batch_size=N, that of its training; model.input_norm=none for images in [0, 1]. The model is left as it was.
    Of a sweep's folder all finished runs are probed and their arms compared. eval.stats=running,precise,none and
    eval.shifted=blur-5 evaluate runs again under these, without training.
    """
    from bnlab.cli.evaluate_again import FIGURES, PROBED, evaluate_all, is_of_several, refuse_of_one

    if module is None and is_of_several(targets or []):
        others = {"--checkpoint": weights, "--key": key, "--output": output, "--data": data, "--quick": quick or None}
        others["--out"] = out
        refuse_of_one(targets or [], others)
        evaluate_all(targets or [], FIGURES if any("=" in word for word in targets or []) else PROBED, format)
        return
    check_out(out, force)
    from bnlab.experiment.target import check_target

    check_target(targets or [], module, weights, data, key, output, "probe")  # before torch is loaded
    from bnlab.experiment.setup import environment_of
    from bnlab.experiment.trained_model import find
    from bnlab.report.console import messages
    from bnlab.report.display import working
    from bnlab.report.probe_report import probe_head, probe_rows, probe_sheet, probe_tables
    from bnlab.report.rows import show

    with working(messages()) as tell:
        tell("reading model and data")
        trained = find(targets or [], module, weights, data, key, output)
        again = command_on("recalibrate", targets, module, weights, data, key, output)
        report = examined(trained, again, samples, quick, tell)
    show(format, [partial(probe_tables, report)], probe_head(report), probe_rows(report))
    if out is not None:
        write_sheet(out, probe_sheet(report), environment_of(trained.device, trained.bundle, 1), force)
