"""A sweep that stops when it is decided: its jobs in rounds, one for each look of its plan.

A round has the next seeds of each arm that is undecided, and of the baseline of such an arm; the jobs of the others are
marked `not needed`. What is decided is what `bnlab compare` says of the folder, so that a sweep that was killed goes on
where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnlab.claims.planned import planned
from bnlab.compare.arms import arms_of
from bnlab.compare.baseline import baselines, unknown_baseline
from bnlab.compare.comparison import compare
from bnlab.compare.deciding import FEWEST_PAIRS, Test
from bnlab.compare.notes import named
from bnlab.compare.result import Comparison
from bnlab.errors import ConfigError, count_of
from bnlab.metrics import Metric, find_metric
from bnlab.record.decision_plan import LOOKS, MOST_LOOKS, DecisionPlan
from bnlab.record.read import Run, flatten
from bnlab.record.run_folder import FINAL, read_status, settle
from bnlab.record.sweep_record import MOST_SEEDS
from bnlab.training.job import Job


@dataclass(frozen=True)
class Wishes:
    """What a command line says of a sweep that is to stop when it is decided."""

    metric: str = "test_accuracy"
    baseline: str | None = None
    margin: float | None = None
    looks: tuple[int, ...] = LOOKS
    test: Test = "t"


def wishes_of(until_decided: bool, multirun: bool, *, looks: str | None, **given: Any) -> Wishes | None:
    """Return what a command line asks for; None for a sweep that is trained whole. Errors: ConfigError."""
    named = {name: value for name, value in (("looks", looks), *given.items()) if value is not None}
    if not until_decided:
        if named:
            raise ConfigError(f"--{next(iter(named))}: goes with --until-decided")
        return None
    if not multirun:
        raise ConfigError("--until-decided: needs a sweep\nadd -m and the most seeds you would train: seed=range(20)")
    if looks is not None:
        words = looks.replace(" ", "").split(",")
        named["looks"] = tuple(int(word) for word in words if word.isdecimal() and len(word) < 6 and int(word) > 0)
        if len(named["looks"]) < len(words):
            raise ConfigError(f"--looks {looks}: must be numbers of seeds, such as 3,5,8,12,20")
    return Wishes(**named)


@dataclass
class _Arm:
    """The jobs of an arm, one a seed, in the order of the seeds."""

    label: str
    jobs: list[Job]
    baseline: int | None  # its number among the arms, which is its own for a baseline
    verdict: str = "undecided"


@dataclass
class Rounds:
    """The rounds of a sweep's jobs; `compared` is what the last look came to."""

    folder: Path
    plan: DecisionPlan
    looks: Sequence[int]
    jobs: Sequence[tuple[Job, Mapping[str, Any]]]
    compared: Comparison | None = None
    _arms: list[_Arm] = field(init=False)

    def __post_init__(self) -> None:
        self._arms = _arms(self.jobs, self.plan.baseline)

    def __iter__(self) -> Iterator[tuple[Job, ...]]:
        """Yield what is to be trained before the next look, until all is decided or the last look is over."""
        before = 0
        self._look()
        for look in self.looks:
            jobs = [job for i in self._needed(before) for job in self._arms[i].jobs[:look] if _state(job) not in FINAL]
            if jobs:
                yield tuple(sorted(jobs, key=lambda job: job.index))
                self._look()
            before = look

    def sentence(self) -> str:
        """Return which arms the next round is for, what they are compared with, and by which plan."""
        arms = [self._arms[i] for i in sorted(self._undecided(0))]
        bases = dict.fromkeys(self._arms[arm.baseline].label for arm in arms if arm.baseline is not None)
        plan = [f"looks at {', '.join(map(str, self.looks))} seeds"]
        plan += [] if self.plan.margin is None else [f"margin {self.plan.margin:g}"]
        against = f"{self.plan.metric} against {named(list(bases))}"
        return f"{against}, {', '.join(plan)}; undecided: {named([arm.label for arm in arms])}"

    def _look(self) -> None:
        """Read what is decided by now, and mark the jobs that are not needed for it."""
        if not any(_state(job) in FINAL for arm in self._arms for job in arm.jobs):
            return
        self.compared = compare([self.folder], metrics=[self.plan.metric], baseline=self.plan.baseline)
        rows = [row for section in self.compared.sections for row in section.rows]
        for arm in self._arms:
            folders = {job.folder for job in arm.jobs}
            row = next((row for row in rows if any(run.folder in folders for run in row.runs)), None)
            arm.verdict = "undecided" if row is None else row.verdicts.get(self.plan.metric, "undecided")
            if any(_state(job) == "refused" for job in arm.jobs):
                arm.verdict = "refused"
        needed = self._needed(0)
        for job in (job for i, arm in enumerate(self._arms) if i not in needed for job in arm.jobs):
            if _state(job) == "queued":
                settle(job.folder, "not needed", "decided without it")

    def _undecided(self, before: int) -> set[int]:
        """Return the undecided arms without those of which, or of whose baseline, one of `before` jobs is not over."""
        whole = {i for i, arm in enumerate(self._arms) if all(_state(job) in FINAL for job in arm.jobs[:before])}
        return {
            i
            for i, arm in enumerate(self._arms)
            if arm.verdict == "undecided" and arm.baseline != i and {i, arm.baseline} <= whole
        }

    def _needed(self, before: int) -> set[int]:
        """Return them with their baselines."""
        arms = self._undecided(before)
        return arms | {j for i in arms if (j := self._arms[i].baseline) is not None}


def _lacks(metric: Metric, tree: Mapping[str, Any]) -> str | None:
    """Return why no run of a configuration has a metric; None: it may."""
    from bnlab.claims.figures import hangs_on_a_model, lacking  # a sweep without a plan starts without claims

    reason = lacking(metric, planned(tree))
    if reason or not hangs_on_a_model(metric):
        return reason
    from bnlab.experiment.figures import absent  # with torch, which other plans do without

    return absent(metric, tree)


def plan_of(wishes: Wishes, jobs: Sequence[tuple[Job, Mapping[str, Any]]]) -> DecisionPlan:
    """Return the plan of a sweep that has not begun: the last look is at all its seeds. Errors: ConfigError."""
    metric = find_metric(wishes.metric)
    for _, tree in jobs:
        if lacks := _lacks(metric, tree):
            raise ConfigError(f"--metric {metric.name}: {lacks}")
    arms = _arms(jobs, wishes.baseline)
    seed_of = {job.folder: tree["seed"] for job, tree in jobs}
    if any(len({seed_of[job.folder] for job in arm.jobs}) < len(arm.jobs) for arm in arms):
        raise ConfigError("--until-decided: a seed is there twice, which is no further seed\nname each seed once")
    seeds = max(len(arm.jobs) for arm in arms)
    if seeds < FEWEST_PAIRS[wishes.test]:
        few = f"{count_of(seeds, 'seed')} decide{'s' if seeds == 1 else ''} nothing by {wishes.test}"
        raise ConfigError(f"--until-decided: {few}\ngive the most you would train, such as seed=range(20)")
    if seeds > MOST_SEEDS or len(wishes.looks) >= MOST_LOOKS:
        raise ConfigError(f"--until-decided: at most {MOST_SEEDS:,} seeds, and fewer than {MOST_LOOKS} looks at them")
    looks = (*(n for n in sorted(set(wishes.looks)) if FEWEST_PAIRS[wishes.test] <= n < seeds), seeds)
    bases = {arm.baseline for arm in arms if arm.baseline is not None}
    # named, so that an arm that is added later is not taken for it
    baseline = arms[min(bases)].label if wishes.baseline is None and len(bases) == 1 else wishes.baseline
    return DecisionPlan(wishes.metric, baseline, looks, wishes.margin, wishes.test)


def _arms(jobs: Sequence[tuple[Job, Mapping[str, Any]]], baseline: str | None) -> list[_Arm]:
    """Return the arms that jobs will be, with their baselines, as `compare` finds them. Errors: ConfigError."""
    known = {job.folder: job for job, _ in jobs}
    runs = [
        Run(folder=job.folder, state="queued", identity="", config=flatten(tree), seed=tree["seed"], order=job.index)
        for job, tree in jobs
    ]
    arms, changed = arms_of(runs)
    against = baselines(arms, changed, baseline)
    if against is None and baseline is not None:
        raise unknown_baseline(baseline, arms)
    if against is None or all(j in (None, i) for i, j in enumerate(against)):
        labels = ", ".join(arm.label for arm in arms[:12])
        raise ConfigError(f"--until-decided: no arm has a baseline to be compared with\nthere are: {labels}")
    return [_Arm(arm.label, [known[run.folder] for run in arm.runs], j) for arm, j in zip(arms, against, strict=True)]


def _state(job: Job) -> str:
    return str((read_status(job.folder) or {}).get("state"))
