"""Finished runs evaluated again under other settings of evaluation, all in one process, and compared."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.errors import ConfigError, IncompatibleError, RecordError, count_of

if TYPE_CHECKING:
    from bnlab.record.read import Run

ONLY_AGAIN = ("eval.stats", "eval.shifted", "eval.stride")  # settings that `probe RUN` has no other use for
BASELINES = ("eval.stats", "eval.shifted")  # what differs in one of these is compared with what is usual
FIGURES = ("test_accuracy", "test_loss", "ece", "acc_gap", "flip_rate")
PROBED = (
    "acc_gap",
    "kl",
    "term_batch_noise",
    "term_initial_statistics",
    "term_moving_average",
    "mate_noise",
    "size_flips",
)


def is_folder_of_runs(targets: Sequence[str]) -> bool:
    """Return whether a command line names a folder that is no run's own."""
    return bool(targets) and (place := Path(targets[0])).is_dir() and not (place / "status.json").exists()


def is_of_several(targets: Sequence[str]) -> bool:
    """Return whether a command line names a folder of runs, or settings under which to evaluate."""
    return is_folder_of_runs(targets) or any(word.partition("=")[0] in ONLY_AGAIN for word in targets)


def refuse_of_one(targets: Sequence[str], options: Mapping[str, object]) -> None:
    """Raise ConfigError for the first of `options` that is given: they are of one run, where there are several."""
    for name in (name for name, value in options.items() if value not in (None, [])):
        others = f"{targets[0]} holds several" if is_folder_of_runs(targets) else "eval.… makes several of it"
        raise ConfigError(f"{name}: is for one run, and {others}\ngive one as it is, or leave out {name}")


def evaluate_all(targets: Sequence[str], metrics: Sequence[str], format: str) -> None:
    """Evaluate every finished run at or below a path as `KEY=VALUE,VALUE` say, and print a comparison.

    What was evaluated before is not evaluated again. Errors: ConfigError.
    """
    from bnlab.cli.compare import show_comparison
    from bnlab.compare.comparison import compare
    from bnlab.record.evaluations import SETTINGS
    from bnlab.record.read import evaluated
    from bnlab.report.console import messages

    place = Path(targets[0])
    settings = [word for word in targets[1:] if word.partition("=")[0] in SETTINGS]
    changes = _changes(settings or ["measure=full"])
    elsewhere = [word for word in targets[1:] if word.partition("=")[0] not in SETTINGS]

    def do(folder: Path) -> int:
        from bnlab.experiment.evaluate_again import evaluate_again  # torch, once all else is as it should be

        return evaluate_again(folder, changes, elsewhere)

    count = of_each(place, elsewhere, "evaluating", do)
    kept = [each for run in finished(place) for each in (run, *evaluated(run)) if _is_asked(each, changes)]
    if not kept:
        raise IncompatibleError(f"{place}: no run can be evaluated so")
    several = [key for key in BASELINES if len({str(run.config.get(key)) for run in kept}) > 1]
    base = next(
        (f"{key}={SETTINGS[key]}" for key in several if any(run.config.get(key) == SETTINGS[key] for run in kept)), None
    )
    show_comparison(compare([place], metrics=metrics, of=kept, baseline=base), format, metrics, False)
    messages().say(f"{count_of(count, 'evaluation')} made; `bnlab compare {place} --evaluated` shows all there are")


def finished(place: Path) -> list[Run]:
    """Return the finished trainings at or below a path. Errors: RecordError, ConfigError without any."""
    from bnlab.compare.comparison import find_runs

    runs = [run for run in find_runs([place])[0] if run.state == "done" and not run.is_bench]
    if not runs:
        raise ConfigError(f"{place}: no run here is finished\n`bnlab resume` finishes them")
    return runs


def of_each(place: Path, overrides: Sequence[str], doing: str, do: Callable[[Path], int]) -> int:
    """Do something with the folder of each finished run, say with which it cannot be done, and return the sum.

    Errors: ConfigError, as for `overrides` that say something else than where data lie.
    """
    from bnlab.config.compose import adjusted
    from bnlab.experiment.target import ADJUSTABLE
    from bnlab.report.console import messages
    from bnlab.report.display import Display, duration

    adjusted({}, overrides, ADJUSTABLE)
    runs, out, count = finished(place), messages(), 0
    refused: dict[str, list[Path]] = defaultdict(list)
    with Display(out) as display:
        start = out.get_time()
        for number, run in enumerate(runs):
            left = (out.get_time() - start) / number * (len(runs) - number) if number else None
            said = f"{doing} run {number + 1} of {len(runs)}" + (f", {duration(left)} left" if left else "")
            display.show(lambda said=said: said)  # type: ignore[misc]
            try:
                count += do(run.folder)
            except (IncompatibleError, RecordError) as error:
                refused[str(error).partition("\n")[0].removeprefix(f"{run.folder}: ")].append(run.folder)
    for reason, folders in refused.items():
        others = f" and {len(folders) - 1:,} more" if len(folders) > 1 else ""
        out.say(f"{folders[0]}{others}: {reason}")
    return count


def _changes(words: Sequence[str]) -> list[dict[str, Any]]:
    """Return the changes of settings that overrides with several values stand for. Errors: ConfigError."""
    from bnlab.compare.arms import split_list
    from bnlab.config.compose import adjusted
    from bnlab.record.evaluations import SETTINGS
    from bnlab.record.read import flatten

    each = [[f"{key}={value}" for value in split_list(values)] for key, _, values in (w.partition("=") for w in words)]
    return [flatten(adjusted({}, lines, list(SETTINGS))) for lines in itertools.product(*each)]


def _is_asked(run: Run, changes: Sequence[Mapping[str, Any]]) -> bool:
    from bnlab.record.evaluations import RECALIBRATED

    if RECALIBRATED in run.config:
        return False
    return any(all(run.config.get(k) == v or k == "measure" for k, v in change.items()) for change in changes)
