"""What a reader must know above a table: the settings all arms share, the machine, the versions, the seeds.

Every value may come from a foreign file, so none is trusted to have its type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bnlab.compare.arms import text_of
from bnlab.compare.result import Row, Section
from bnlab.config.files import defaults
from bnlab.errors import count_of

GROUPS = ("data", "model", "norm", "optim", "schedule")
# what the header names in any case, or says in other words
ELSEWHERE = frozenset({f"{group}.name" for group in GROUPS}) | {
    *("data.batch_size", "optim.lr", "trainer.epochs", "trainer.steps", "trainer.device", "trainer.threads"),
    *("trainer.precision", "trainer.compile", "trainer.distributed"),
}
MOST_OPTIONS = 12  # of one part among the arms


def heading(section: Section) -> list[str]:
    """Return the header's parts: data, model, training, machine, evaluation, versions, seeds.

    A key that differs is not named; every other one is that is not at its default.
    """
    get = section.settings.get
    own = _not_default(section)
    parts = [
        " / ".join(_distinct(section.environments, "source")),
        "bench" if section.is_bench else None,
        _joined(section.data or get("data.name"), *own["data"]),
        _joined(_model(section.settings), *own["model"]),
        _joined(get("norm.name"), *own["norm"]),
        _joined(
            _optimizer(get("optim.name"), get("optim.lr")),
            *own["optim"],
            *_training(section.settings, section.is_bench),
            *own["schedule"],
            *own["trainer"],
        ),
        _joined(
            _device(section),
            _counted("trainer.threads", "thread", section),
            *_workers(section),
            *_flags(section.settings),
        ),
        _joined(*own["eval"], *own[""]),
        _named("torch", _distinct(section.environments, "torch")),
        "" if section.is_bench else _seeds(section.rows),
    ]
    return [str(part) for part in parts if part]


def _not_default(section: Section) -> dict[str, list[str]]:
    """Return by part of the configuration the shared settings that differ from their default and stand nowhere else."""
    settings, named = section.settings, ELSEWHERE | {"model.depth" if _is_deep(section.settings) else "model.widths"}
    names = {
        group: [settings[key]] if key in settings else list(dict.fromkeys(row.arm.get(key) for row in section.rows))
        for group in GROUPS
        for key in [f"{group}.name"]
    }
    first = {group: each[0] for group, each in names.items() if each}
    usual = [defaults(first)]  # of arms with several options, what is no default of one of them is named
    usual += [defaults(first | {group: name}) for group, each in names.items() for name in each[1:MOST_OPTIONS]]
    own: dict[str, list[str]] = {group: [] for group in (*GROUPS, "trainer", "eval", "")}
    for key, value in settings.items():
        known = [each[key] for each in usual if key in each]
        told = key.startswith("data.") and f"{key[5:]}=" in section.data
        if key not in named and not told and any(value != each for each in known):
            group, _, name = key.rpartition(".")
            own.get(group, own[""]).append(_setting(key, name, value))
    return own


def _setting(key: str, name: str, value: Any) -> str:
    if key == "data.train_size" and isinstance(value, int):
        return count_of(value, "image")
    if key == "eval.every":
        return f"evaluated every {text_of(value)}"
    if key == "eval.batch_size":
        return f"evaluation batch {text_of(value)}"
    if key == "data.valid_size" and isinstance(value, int):
        return f"{value:,} for validation"
    return name if value is True else f"{name} {text_of(value)}"


def interval_words(section: Section, of_differences: bool = False) -> str:
    """Return what the intervals of a section are: those of differences may be at the level of one look of several."""
    over = "the rounds of a bench" if section.is_bench else "seeds"
    own = f"{100 * (1 - section.level):.3g}%"
    if of_differences:
        return f"{own} interval over {over}"
    return f"95% interval over {over}" + (f", of differences {own}" if own != "95%" else "")


def runs_text(row: Row, usual: int) -> list[str]:
    """Return how an arm's runs ended where it is not plain: `1/5 diverged`, or `n=3` in a table of `usual` seeds."""
    ended = [f"{count}/{row.num_runs} {state}" for state, count in row.states.items() if state != "done" and count]
    ended += [f"{row.num_unlearned}/{row.num_runs} not learned"] if row.num_unlearned else []
    return ended or ([f"n={row.num_seeds}"] if row.num_seeds != usual else [])


def usual_seeds(rows: Sequence[Row]) -> int:
    """Return the number of seeds that most arms have, the larger one of a tie."""
    counts = [row.num_seeds for row in rows]
    return max(counts, key=lambda count: (counts.count(count), count), default=0)


def _model(settings: Mapping[str, Any]) -> str:
    name = settings.get("model.name")
    size = settings.get("model.depth" if _is_deep(settings) else "model.widths")
    return _joined(name, None if size is None else str(size).strip("[]").replace(",", "-"), by=" ")


def _is_deep(settings: Mapping[str, Any]) -> bool:
    return settings.get("model.name") == "resnet"


def _optimizer(name: Any, rate: Any) -> str:
    return _joined(name, None if rate is None else f"lr {text_of(rate)}", by=" ")


def _training(settings: Mapping[str, Any], is_bench: bool) -> Iterable[str]:
    """Yield how long was trained, which a bench does not, and with which batches.

    Steps that differ are no shared setting; the epochs, which no run with steps looks at, say nothing then.
    """
    schedule, epochs, steps = (settings.get(key) for key in ("schedule.name", "trainer.epochs", "trainer.steps"))
    if is_bench:
        schedule = epochs = steps = None
    if schedule is not None:
        yield str(schedule).replace("_", "-")
    if steps is not None:
        yield f"{_plain(steps)} step{'' if steps == 1 else 's'}"
    elif epochs is not None and "trainer.steps" in settings:
        yield f"{_plain(epochs)} epoch{'' if epochs == 1 else 's'}"
    if settings.get("data.batch_size") is not None:
        yield f"batch {_plain(settings['data.batch_size'])}"


def _plain(value: Any) -> str:
    """Return a whole number without its `.0`, anything else as it would be typed."""
    return f"{value:,.0f}" if isinstance(value, (int, float)) and value == value // 1 else text_of(value)


def _workers(section: Section) -> Iterable[str]:
    counts = {str(environment.get("workers", 1)) for environment in section.environments}
    if counts - {"1"}:
        yield f"{'/'.join(sorted(counts))} workers"


def _flags(settings: Mapping[str, Any]) -> Iterable[str]:
    if settings.get("trainer.channels_last") is True and settings.get("model.name") != "mlp":  # vectors have no layout
        yield "channels_last"
    if settings.get("trainer.precision") not in (None, "float32"):
        yield str(settings["trainer.precision"])
    if settings.get("trainer.compile") is True:
        yield "compiled"


def _device(section: Section) -> str:
    chips = [e.get("gpu") or e.get("device") for e in section.environments]
    return " / ".join(dict.fromkeys(str(chip) for chip in chips if chip))


def _counted(key: str, noun: str, section: Section) -> str:
    counts = _distinct(section.environments, key.rsplit(".", 1)[-1])
    return f"{' / '.join(counts)} {noun}{'' if counts == ['1'] else 's'}" if counts else ""


def _named(name: str, values: Sequence[str]) -> str:
    return f"{name} {' / '.join(values)}" if values else ""


def _distinct(environments: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(str(e[key]) for e in environments if e.get(key) is not None))


def _seeds(rows: Sequence[Row]) -> str:
    """Return how many seeds an arm has, and where it has several runs of a seed, how many runs."""
    if not rows:
        return ""
    seeds = _range("seed", [row.num_seeds for row in rows])
    pooled = any(row.num_runs != row.num_seeds for row in rows)
    return f"{seeds} ({_range('run', [row.num_runs for row in rows])}) an arm" if pooled else f"{seeds} an arm"


def _range(noun: str, counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return count_of(low, noun) if low == high else f"{low:,} to {count_of(high, noun)}"


def _joined(*parts: Any, by: str = ", ") -> str:
    return by.join(str(part) for part in parts if part not in (None, ""))
