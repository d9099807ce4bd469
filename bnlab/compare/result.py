"""What a comparison is: plain values that every output format reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnlab.compare.deciding import Test, Verdict
from bnlab.interval import Interval
from bnlab.record.read import Run

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Row:
    """One arm: all runs that differ in the seed only."""

    arm: dict[str, Value]  # the changed keys and this arm's values
    label: str
    n: int  # finished runs, of which one seed may have several
    states: dict[str, int]  # every run of the arm by state, such as {"done": 4, "diverged": 1}
    is_baseline: bool
    metrics: dict[str, Interval]  # over its seeds
    vs_baseline: dict[str, Interval]  # minus the baseline's, over the seeds that both have; p is Holm-corrected
    curve: list[float]  # median over seeds of the main metric's curve, at common evaluation steps
    best: dict[str, Value] = field(default_factory=dict)  # the setting chosen for this arm on validation, if any was
    seeds: frozenset[int] | None = None  # of all its runs; None: each run has a seed of its own
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # against the baseline, metric by metric
    against: str = ""  # the label of its baseline
    runs: Sequence[Run] = ()
    learned: tuple[int, int] = (0, 0)  # seeds that learned, of those of which that is known
    p_learned: float | None = None  # that as many seeds of the baseline learn, exact; corrected as all others
    num_unlearned: int = 0  # finished runs that did not learn

    @property
    def num_runs(self) -> int:
        """All runs, in whatever state."""
        return sum(self.states.values())

    @property
    def num_seeds(self) -> int:
        """Seeds of these runs: fewer than runs where several runs of a seed are pooled."""
        return self.num_runs if self.seeds is None else len(self.seeds)


@dataclass(frozen=True)
class Section:
    """The arms that can be compared with one another: one data set."""

    settings: dict[str, Any]  # the configuration keys all arms share, flat ("trainer.epochs")
    environments: list[dict[str, Any]]  # the distinct environments of the runs
    changed: list[str]  # keys that tell the arms apart
    main: str  # the metric that is compared
    rows: list[Row]
    notes: list[str]  # what a careful reader must know, one sentence each
    target: float | None = None  # validation accuracy that the times to a target mean; None: this data has none
    data: str = ""  # what tells its data from other data of the same name, where there are some
    is_bench: bool = False  # steps timed by `bnlab bench`, nothing trained
    margin: float | None = None  # the smallest difference that matters, in the main metric's unit
    is_planned: bool = False  # a plan was written before the first run
    level: float = 0.05  # of one look
    next_level: float = 0.05  # about that of each if there is one more
    test: Test = "t"
    steps: int | None = None  # of each finished run, where they are equal
    chosen: list[str] = field(default_factory=list)  # keys at each arm's own best value, in `Row.best`


@dataclass(frozen=True)
class Comparison:
    """All sections, and what was left out with the reason; with `pivot` they are to be read as matrices."""

    sections: list[Section]
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    pivot: tuple[str, str] | None = None  # the keys of the rows and of the columns
    queued: int = 0  # jobs that were not started yet
    spared: int = 0  # jobs that were not needed, since their sweep was decided without them
    refused: list[str] = field(default_factory=list)  # why jobs were, whose strategy does not fit: they are no arms
