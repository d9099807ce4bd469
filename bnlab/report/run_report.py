"""One run at a glance: how it ended, what was trained and where, its curves and files; from its JSON files only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from bnlab.compare.arms import text_of
from bnlab.errors import brief, count_of
from bnlab.metrics import not_learned, warnings_of
from bnlab.record.inventory import note_of
from bnlab.report.chart import Axis
from bnlab.report.console import Terminal
from bnlab.report.curves import BETWEEN, chart, finite, in_two_columns, mapping, over_steps
from bnlab.report.data_report import images_passed_over, images_used
from bnlab.report.figures import number, significant
from bnlab.report.layers_report import by_depth, over_training
from bnlab.report.meters_report import meters_over_training, read_by_meters
from bnlab.report.table import Column, draw, joined

GROUPS = ("norm", "model", "data", "optim", "schedule", "trainer", "eval")
SPLITS = ("train", "valid", "test")
_SIDE_BY_SIDE = 110  # columns from which the two charts stand next to each other
_FILES = {
    "config.yaml": "the configuration",
    "steps.csv": "loss and learning rate of every step",
    "evals.csv": "every evaluation",
    "times.csv": "length of every step",
    "layers.csv": "discrepancy by layer",
    "meters.csv": "every reading of a meter",
    "checkpoint.pt": "weights, optimizer and random state",
    "run.log": "what was logged",
}
_CHARTS: tuple[tuple[str, str, Axis, float], ...] = (
    ("loss (log scale)", "loss", "log", 1.0),
    ("accuracy % (log scale of the error)", "accuracy", "error", 100.0),
)
_ENDED = {
    "done": "green",
    "running": "cyan",
    "queued": "cyan",
    "not needed": "dim",
    "refused": "yellow",
}  # anything else is red


def run_page(summary: Mapping[str, Any], status: Mapping[str, Any], folder: Path, out: Terminal) -> Group:
    """Return what to print of the run in `folder`; `summary` is empty where the run wrote none (failed, killed)."""
    told = run_facts(summary, status, folder)
    shown = [*joined([str(folder)], out, "bold"), *_pairs(told, out, _ENDED.get(_state_of(summary, status), "red"))]
    if "bench" in summary:
        return Group(*shown)  # no curves, and tables without rows
    files = [(name, what) for name, what in _FILES.items() if (folder / name).is_file()]
    shown += [*_charts(summary, out), *by_depth(summary, out), *read_by_meters(summary, out)]
    return Group(*shown, *([Text(""), *_pairs(files, out)] if files else []))


def run_facts(summary: Mapping[str, Any], status: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Return what there is to say of a run, a name and its text each."""
    state = _state_of(summary, status)
    environment = mapping(summary.get("environment"))
    facts: list[tuple[str, Iterable[str]]] = [
        ("state", _state(state, summary, status, folder)),
        ("note", [note_of(folder) or note_of(folder.parent)]),
        *_outcome(summary),
        *_configuration(mapping(summary.get("config")) or mapping(status.get("config"))),
        ("images", [images_used(environment)]),
        ("passed over", [images_passed_over(environment)]),
        ("machine", machine_of(environment)),
    ]
    return [(name, text) for name, parts in facts if (text := ", ".join(part for part in parts if part))]


def _state_of(summary: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    return str(summary.get("state") or status.get("state", "unknown"))


def _pairs(pairs: Sequence[tuple[str, str]], out: Terminal, first: str = "") -> list[Text]:
    """Return a line a pair: its name, and the text that goes with it; `first` is the style of the first text."""
    names = Column("", [name for name, _ in pairs], left=True, styles=["dim"] * len(pairs))
    styles = [first, *[""] * (len(pairs) - 1)]
    return draw([names, Column("", [text for _, text in pairs], left=True, wraps=True, styles=styles)], out).lines


def _state(state: str, summary: Mapping[str, Any], status: Mapping[str, Any], folder: Path) -> Iterable[str]:
    yield state
    if status.get("error"):
        yield "; ".join(str(status["error"]).splitlines())
    elif isinstance(summary.get("diverged_at"), int):
        yield f"the loss was not finite at step {summary['diverged_at']:,}"
    if state == "queued":
        yield "not started yet"
    elif state not in ("done", "diverged", "refused", "running", "not needed"):
        yield f"see {folder / 'run.log'}"
    if status.get("started"):
        yield f"started {str(status['started']).replace('T', ' ').replace('+00:00', ' UTC')}"


def _configuration(config: Mapping[str, Any]) -> Iterable[tuple[str, Iterable[str]]]:
    """Yield one line a group: its name, then its keys with their values."""
    if config.get("seed") is not None:
        yield "seed", [text_of(config["seed"])]
    for group in GROUPS:
        keys = mapping(config.get(group))
        named = [str(keys["name"])] if "name" in keys else []
        yield group, [*named, *(f"{key}={_value(value)}" for key, value in keys.items() if key != "name")]
    if config.get("measure") is not None:
        yield "measure", [_value(config["measure"])]


def machine_of(environment: Mapping[str, Any]) -> Iterable[str]:
    """Yield hardware, threads and versions."""
    where = environment.get("gpu") or environment.get("cpu")
    if where:
        yield str(where)
    for key in ("device", "threads", "cores", "os"):
        if environment.get(key) is not None:
            yield f"{key} {environment[key]}"
    if environment.get("workers", 1) != 1:
        yield f"workers {environment['workers']}"
    for key in ("bnlab", "torch", "python"):
        if environment.get(key):
            yield f"{key} {environment[key]}"
    commit = environment.get("git_commit")
    if commit:
        yield f"commit {str(commit)[:10]}{' with changes' if environment.get('git_dirty') else ''}"


def _outcome(summary: Mapping[str, Any]) -> Iterable[tuple[str, Iterable[str]]]:
    """Yield the headline figures, each line only where the run has it."""
    curve = mapping(summary.get("curve"))
    last = {name: values[-1] for name, values in curve.items() if isinstance(values, list) and values}
    for what, show in (("accuracy", _percent), ("loss", lambda value: significant(finite(value)))):
        yield what, [f"{split} {show(last[f'{split}.{what}'])}" for split in SPLITS if f"{split}.{what}" in last]
    yield "", [not_learned(summary)]
    yield "train-eval", _gap(last)
    yield "momentum", _momentum(mapping(summary.get("initial_share")))
    yield "bench", _bench(mapping(summary.get("bench")))
    yield "time", _time(summary)
    stats = mapping(mapping(summary.get("config")).get("eval")).get("stats")
    for warning in warnings_of(summary, stats):
        yield "warning", [warning]


def _bench(bench: Mapping[str, Any]) -> Iterable[str]:
    """The step beside the baseline's, and what stopped the measurement."""
    for key, what in (("ratio", f"the step of {bench.get('baseline')}"), ("control", "that of a second copy of it")):
        value, low, high = (finite(bench.get(f"{key}{end}")) for end in ("", "_low", "_high"))
        if value is not None and low is not None and high is not None:
            yield f"{value:.3f} ({low:.3f}–{high:.3f}) times {what}"
    for phase in ("forward", "backward", "optimizer"):
        value = finite(bench.get(f"{phase}_ms"))
        if value is not None:
            yield f"{phase} {significant(value)} ms"
    for key, what in (("moved", "moved"), ("peak", "at most at once")):
        value = finite(bench.get(f"{key}_bytes"))
        if value is not None:
            yield f"{number(value / 1e6, 1)} MB {what}"
    rounds = finite(bench.get("rounds"))
    if rounds is not None:
        yield f"{count_of(round(rounds), 'round')}, stopped by {bench.get('stopped_by')}"


def _gap(last: Mapping[str, Any]) -> Iterable[str]:
    gap, flips = finite(last.get("test.acc_gap")), finite(last.get("test.flip_rate"))
    if gap is not None:
        yield f"accuracy {number(100 * gap, 2, signed=True)} points with the statistics of training"
    if flips is not None:
        yield f"{_percent(flips)} of the predictions change"


def _momentum(share: Mapping[str, Any]) -> Iterable[str]:
    """Both conventions: the weight of the new batch (torch), and of the old value (the papers, Keras)."""
    new, old, half, left = (finite(share.get(key)) for key in ("momentum", "decay", "half_life_steps", "share_left"))
    if new is not None:
        yield f"{new:g} of each new batch, {1 - new if old is None else old:g} of the old value"
    if half is not None:
        yield f"half-life {half:.3g} step{'' if half == 1 else 's'}"
    if left is not None:
        yield f"{_share(left)} of the initial statistics left"


def _share(left: float) -> str:
    return "less than 0.01 %" if 0 < left < 1e-4 else "none" if left == 0 else f"{brief(100 * left)} %"


def _time(summary: Mapping[str, Any]) -> Iterable[str]:
    step = mapping(summary.get("step_ms"))
    steps, epochs = finite(summary.get("steps")), finite(summary.get("epochs"))
    if steps is not None and "bench" not in summary:
        length = "" if epochs is None else f" ({epochs:g} epoch{'' if epochs == 1 else 's'})"
        yield count_of(round(steps), "step") + length
    for key, what in (("train_seconds", "training"), ("eval_seconds", "evaluation"), ("wall_seconds", "in all")):
        value = finite(summary.get(key))
        if value is not None:
            yield f"{number(value, 1)} s {what}"
        if key == "eval_seconds":
            yield _cost(summary)
    median, low, high = (finite(step.get(key)) for key in ("median", "p10", "p90"))
    if median is not None:
        yield f"{significant(median)} ms a step" + (
            "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
        )
    refresh = finite(summary.get("refresh_ms"))
    if refresh is not None:
        yield f"of it {significant(refresh)} ms for statistics of the training set"
    rate = finite(summary.get("images_per_second"))
    if rate is not None:
        yield f"{rate:,.0f} images/s"


def _cost(summary: Mapping[str, Any]) -> str:
    seconds, share = (finite(summary.get(f"discrepancy_{key}")) for key in ("seconds", "share"))
    if seconds is None or share is None:
        return ""
    return f"of evaluation {number(seconds, 1)} s ({number(100 * share, 0)} % of training) for train-versus-eval"


def _charts(summary: Mapping[str, Any], out: Terminal) -> list[Text]:
    beside = out.width >= _SIDE_BY_SIDE
    room = min((out.width - BETWEEN) // 2 if beside else out.width, 100)
    braille = out.unicode and out.coloured
    curve = mapping(summary.get("curve"))
    pairs = [
        [
            chart(title, curves, axis, room, braille, factor=factor)
            for title, what, axis, factor in _CHARTS
            if (curves := over_steps(curve.get("step"), {split: curve.get(f"{split}.{what}") for split in SPLITS}))
        ],
        over_training(summary, room, braille=braille),
        meters_over_training(summary, room, braille=braille),
    ]
    shown: list[Text] = []
    for charts in pairs:
        if beside:
            shown += in_two_columns(charts, room)
        else:
            shown += [line for lines in charts for line in (Text(""), *lines)]
    return shown


def _percent(value: Any) -> str:
    share = finite(value)
    return f"{number(None if share is None else 100 * share, 2)} %"


def _value(value: Any) -> str:
    return f"[{','.join(map(text_of, value))}]" if isinstance(value, list) else text_of(value)
