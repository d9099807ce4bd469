"""What `bnlab.train`, `probe`, `shift`, `recalibrate`, `runs` and `tables` are: the commands, for scripts, notebooks.

Nothing here ends the process: what goes wrong is a BnlabError, and an interrupted cell a KeyboardInterrupt. What a
command would print goes to stderr. `bnlab.compare` is in `report/notebook.py`, `bnlab.plot` in `plot.py`.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bnlab.errors import BnlabError, ConfigError, texts_of, unknown
from bnlab.record.latest import find_run, runs_folder
from bnlab.schema import quoted

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from bnlab.experiment.trained_model import TrainedModel
    from bnlab.measure.recalibration import Stats
    from bnlab.report.probe_report import Probed
    from bnlab.report.recalibration_report import Recalibrated

SAMPLES = 10_000  # of the training set, for the statistics of one run
QUICK = 512  # images of each split


def train(
    *overrides: str,
    multirun: bool = False,
    config_dir: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    retries: int = 0,
    inline: bool = False,
) -> Path:
    """Train what `bnlab train` would, and return the folder of the run or the sweep; progress is shown on stderr.

    `overrides` are KEY=VALUE; it is a sweep where one of them has several values (`seed=0,1`), or with `multirun`.
    `timeout` (seconds a job), `retries` and `config_dir` are options of the command; `inline` trains in this process.
    A run that diverged is a result. Errors: ConfigError, EnvironmentFault when a job could not run, then none was
    started; BnlabError when one failed, which names the folder. KeyboardInterrupt leaves a checkpoint, and no process.
    """
    from bnlab.config.compose import has_sweeps
    from bnlab.runner.supervisor import JobOptions
    from bnlab.runner.sweep import launch

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("bnlab.train: cannot be called by torchrun\nuse torchrun --module bnlab train")
    lines, place = _lines(overrides), None if config_dir is None else Path(config_dir)
    if place is not None and not place.is_dir():
        raise ConfigError(f"config_dir={place}: is not a folder")
    if timeout is not None and not (isinstance(timeout, (int, float)) and 0.1 <= timeout < math.inf):
        raise ConfigError(f"timeout={timeout!r}: must be a number of seconds from 0.1 on, or None")
    if not isinstance(retries, int) or retries < 0:
        raise ConfigError(f"retries={retries!r}: must be a whole number from 0 on")
    options = JobOptions(timeout, retries, inline=inline)
    with redirect_stdout(sys.stderr):
        launched = launch(lines, multirun or has_sweeps(lines, place), place, options)
    if launched.code > 128:
        signal.raise_signal(launched.code - 128)  # the one that ended it: it goes to whom it would have gone
    assert launched.folder is not None
    if launched.code:
        _raise_failures(launched.folder)
    return launched.folder


def _lines(overrides: Iterable[object]) -> list[str]:
    """Return overrides as text. Errors: ConfigError for what is none, as a list of them in one argument."""
    lines = list(overrides)
    for line in lines:
        if not isinstance(line, str):
            raise ConfigError(
                f"{line!r}: is no override\nwrite each as a text of its own, such as 'norm=batch'; *LIST has them"
            )
    return [quoted(line) for line in lines]  # type: ignore[arg-type]


def _raise_failures(folder: Path) -> None:
    """Raise what kept jobs from their end; a run that diverged has come to one."""
    from bnlab.record.read import read_runs

    runs, skipped = read_runs([folder])
    bad = [run for run in runs if run.state not in ("done", "diverged", "refused", "not needed")]
    reasons = [f"{run.folder} {run.state}: {run.error or 'it was not started'}".partition("\n")[0] for run in bad]
    reasons += [f"{path}: {reason}" for path, reason in skipped]
    if reasons:
        of = f"{len(reasons)} of {len(runs) + len(skipped)} jobs failed\n" if len(runs) + len(skipped) > 1 else ""
        raise BnlabError(f"{of}{reasons[0]}\nto finish: bnlab resume {folder}")


def probe(
    model: str | os.PathLike[str] | nn.Module,
    *overrides: str,
    data: str | None = None,
    output: str | None = None,
    samples: int = SAMPLES,
    quick: bool = False,
) -> Probed:
    """Measure how a model behaves differently in train() and eval(), and split the difference into its causes.

    `model` is the folder or name of a run, or any torch.nn.Module that returns logits (N, classes) of images
    (N, C, H, W); then `data` names the data set, `output` its logits where it returns several tensors, and `overrides`
    may be `data.batch_size=64`, that of its training, or `model.input_norm=none` for images in [0, 1]. A module is
    copied; it, the threads and the random state of torch stay as they were. The statistics of the training set are
    over its first `samples`; `quick` takes 512 images of each split. Errors: ConfigError, RecordError, DataError.
    """
    if samples < 2:
        raise ConfigError(f"samples={samples}: must be 2 or more")
    with _examining("probe", model, overrides, data, output) as (trained, again, tell):
        return examined(trained, again, samples, quick, tell)


def shift(
    model: str | os.PathLike[str] | nn.Module,
    *overrides: str,
    data: str | None = None,
    output: str | None = None,
    shifts: str | Sequence[str] | None = None,
    severities: int | Sequence[int] = (1, 3, 5),
    stats: str | Sequence[str] | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Return how a model does on shifted test images, as `bnlab shift`: one row a shift, severity and statistics.

    `model`, `overrides`, `data` and `output` are those of `probe`; `shifts` and `stats` are all by default. Accuracies
    are shares; what holds for all rows is in `.attrs`. Errors: as of `probe`.
    """
    import pandas as pd

    from bnlab.data.severities import SEVERITIES, SEVERITY_TABLES, STATS

    names, of = chosen("shifts", shifts, SEVERITY_TABLES), chosen("stats", stats, STATS)
    given = map(str, severities) if isinstance(severities, Iterable) else str(severities)
    levels = [int(text) for text in chosen("severities", given, map(str, SEVERITIES))]
    if type(batch_size) is not int or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size!r}: must be a whole number from 1 on")
    with _examining("shift", model, overrides, data, output) as (trained, _, tell):
        from bnlab.experiment.shift_study import shift_study
        from bnlab.report.shift_report import shift_rows

        warn_of_scale(trained)
        head, rows = shift_rows(shift_study(trained, names, levels, of, batch_size, tell))
    frame = pd.DataFrame(rows)
    frame.attrs |= head
    return frame


def chosen(option: str, wanted: Iterable[str] | None, known: Iterable[str]) -> list[str]:
    """Return those of `known` that `wanted` names, in the order of `known`; all for None. Errors: ConfigError."""
    known, wanted = list(known), None if wanted is None else texts_of(option, wanted)
    for name in wanted or ():
        if name not in known:
            raise unknown(f"{option} {name}", name, known)
    return [name for name in known if wanted is None or name in wanted]


def recalibrate(
    run: str | os.PathLike[str],
    *overrides: str,
    data: str | None = None,
    stats: str = "population",
    samples: int | None = None,
    plain: bool = False,
    out: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Write a checkpoint of a run with the statistics of its training set, as `bnlab recalibrate`; return its figures.

    One row a figure, before and after, as `--format csv` has them; the new file and the verdict are in `.attrs`.
    A run knows its `data`. `stats` is population or precise, `samples` all by default. Errors: as of `probe`;
    IncompatibleError; ConfigError for a module, which the command takes.
    """
    import pandas as pd

    from bnlab.record.new_weights import check_new_file
    from bnlab.report.recalibration_report import recalibration_head, recalibration_rows

    (how,) = chosen("stats", [stats], ("precise", "population"))
    if samples is not None and (not isinstance(samples, Integral) or samples < 2):
        raise ConfigError(f"samples={samples!r}: must be a whole number from 2 on")
    file = None if out is None else Path(out)
    if file is not None:
        check_new_file(file)
    with _examining("recalibrate", run, overrides, data, None) as (trained, _, tell):
        report = recalibrated_file(trained, None, cast("Stats", how), samples, plain, file, tell)
    frame = pd.DataFrame(recalibration_rows(report))
    frame.attrs |= recalibration_head(report)
    return frame


def recalibrated_file(
    trained: TrainedModel,
    weights: Path | None,
    stats: Stats,
    samples: int | None,
    plain: bool,
    out: Path | None,
    tell: Callable[[str], None],
) -> Recalibrated:
    """Recalibrate a model into `out`, by default a usual name beside its `weights`; `tell` hears how far it is.

    Errors: ConfigError, as where the images are in another scale than those of its training and nobody said that they
    should be.
    """
    from bnlab.experiment.recalibrated import new_file, recalibrated, save
    from bnlab.record.new_weights import check_new_file
    from bnlab.report.console import messages
    from bnlab.report.recalibration_report import Recalibrated

    usual, count = new_file(trained, weights, stats, samples, plain=plain)
    file = out or usual
    check_new_file(file)
    if samples is not None and count < min(samples, len(trained.train)):
        of = f"whole batches of {trained.batch_size} are taken"
        messages().say(f"stats={stats}: {of}, {count} of the {samples} samples asked for")
    if trained.is_scale_given:
        warn_of_scale(trained)
    elif scale := trained.other_scale():
        raise ConfigError(f"{scale}\nnothing is written; model.input_norm=standardize takes the images as they are")
    tell(f"recalibrating {trained.label}")
    result = recalibrated(trained, stats, samples, plain=plain)
    save(file, trained, weights, result)
    return Recalibrated(trained.label, trained.about, str(file), result)


def warn_of_scale(trained: TrainedModel) -> None:
    """Say where the images are not in the scale that a module was trained with."""
    from bnlab.report.console import messages

    if scale := trained.other_scale():
        messages().say(f"warning: {scale}")


@contextmanager
def _examining(
    command: str,
    model: str | os.PathLike[str] | nn.Module,
    overrides: Sequence[str],
    data: str | None,
    output: str | None,
) -> Iterator[tuple[TrainedModel, str, Callable[[str], None]]]:
    """Yield a model to examine by `command`, the command that recalibrates it, and what hears how far it is."""
    from bnlab.report.console import messages
    from bnlab.report.display import working

    if not isinstance(data, (str, type(None))):
        raise ConfigError(f'data={data!r}: must be the name of a data set, such as "digits"')
    with _torch_kept(), working(messages()) as tell:
        from bnlab.experiment.target import keys_of_module
        from bnlab.experiment.trained_model import find, of_module

        tell("reading model and data")
        lines = _lines(overrides)
        if isinstance(model, (str, os.PathLike)):
            run = str(find_run(model))
            trained = find([run, *lines], None, None, data, output=output, command=command)
            again = shlex.join(["bnlab", "recalibrate", run, *lines])
        else:
            kind = getattr(model, "__name__", type(model).__name__)
            if command == "recalibrate":
                raise ConfigError(
                    f"{kind}: is no folder or name of a run, which bnlab.recalibrate takes\n"
                    "save the state_dict of a module, and in a shell: bnlab recalibrate "
                    f"--module PACKAGE.MODULE:FACTORY --checkpoint weights.pt --data {data or 'NAME'}"
                )
            if not hasattr(model, "state_dict") or isinstance(model, type):
                if callable(model):
                    raise ConfigError(f"{kind}: is no torch.nn.Module\ncall it: bnlab.{command}({kind}(), ...)")
                raise ConfigError(
                    f"{kind}: is neither the folder of a run nor a torch.nn.Module\n"
                    f'give one of them: bnlab.{command}("latest"), or bnlab.{command}(model, data="digits")'
                )
            named = [*([f"data={data}"] if data else []), *lines]
            keys_of_module(named, command)
            trained = of_module(model, None, named, output=output)
            own = ["--module", "PACKAGE.MODULE:FACTORY", "--checkpoint", "weights.pt"]
            again = "torch.save(model.state_dict(), 'weights.pt'), and in a shell\n"
            again += shlex.join(["bnlab", "recalibrate", *named, *own, *(["--output", output] if output else [])])
        yield trained, again, tell


@contextmanager
def _torch_kept() -> Iterator[None]:
    """Leave the random state and the number of threads as they were."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def examined(trained: TrainedModel, again: str, samples: int, quick: bool, tell: Callable[[str], None]) -> Probed:
    """Return what a probe finds; `again` is the command that recalibrates the model, `tell` hears how far it is."""
    from bnlab.measure.probe_model import probe as measure
    from bnlab.measure.verdict import explained, verdict
    from bnlab.report.display import duration
    from bnlab.report.probe_report import Probed

    start, most = time.monotonic(), QUICK if quick else None

    def watch(share: float) -> None:
        left = duration((time.monotonic() - start) * (1 / share - 1))
        far = f"{100 * share:.0f} % of the statistics taken, {left} left" if share < 1 else "evaluating"
        tell(f"probing {trained.label}: {far}{'' if quick else '; --quick takes less'}")

    tell(f"probing {trained.label}")
    with trained.examined():
        probes = [trained.probe("train", most), trained.probe("test", most)]
        result = measure(trained.model, probes, trained.train, min(samples, most or samples), watch, trained.unread)
        scale = trained.other_scale()
    said = verdict(result, again, of_own=trained.folder is None, scale=scale)
    *others, last = result.decompositions
    each = ("",) * len(result.decompositions) if scale else (*(explained(gap, said) for gap in others), explained(last))
    return Probed(trained.label, trained.about, trained.step, trained.batch_size, result, said, each)


def runs(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None, target: float | None = None
) -> pd.DataFrame:
    """Return one row a run below a path or several, by default all: folder, state, configuration, metrics as fractions.

    `target` is the accuracy that times are taken to, by default that of the data set. Folders that could not be read
    are in `.attrs["skipped"]`. Errors: ConfigError, RecordError.
    """
    from bnlab.compare.frames import runs_frame

    if paths is None:
        return runs_frame([runs_folder()], target)
    several = [paths] if isinstance(paths, (str, os.PathLike)) or not isinstance(paths, Iterable) else paths
    return runs_frame([find_run(path) for path in several], target)


def tables(run: str | os.PathLike[str]) -> dict[str, pd.DataFrame]:
    """Return the tables of a run that it has: steps, evals, layers, times, meters. Errors: ConfigError, RecordError."""
    from bnlab.compare.frames import tables_of

    folder = find_run(run)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: does not exist\ngive a run such as latest, latest/0 or runs/…/0")
    return tables_of(folder)
