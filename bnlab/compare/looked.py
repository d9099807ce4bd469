"""How often runs were looked at while seeds were added: by the plan of their sweep, or as the sweeps' records say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bnlab.compare.deciding import Rule, Test
from bnlab.errors import RecordError
from bnlab.metrics import Metric
from bnlab.record.decision_plan import DecisionPlan
from bnlab.record.read import Run
from bnlab.record.run_folder import FINAL
from bnlab.record.sweep_record import SweepRecord


@dataclass
class Looked:
    """What the sweeps' folders say of the looks at their runs; each folder is read once."""

    test: Test | None = None  # asked for, or else planned
    margin: float | None = None  # asked for, in the unit of the main metric
    baseline: str | None = None  # asked for
    looks: dict[tuple[int, ...], None] = field(default_factory=dict)  # all that there were
    is_planned: bool = False
    exploratory: dict[str, None] = field(default_factory=dict)  # why it is no test of a plan
    _histories: dict[tuple[int, ...], tuple[tuple[int, ...], list[int] | None, DecisionPlan | None]] = field(
        default_factory=dict
    )
    _sweeps: dict[Path, tuple[SweepRecord | None, DecisionPlan | None]] = field(default_factory=dict)

    def plan_of(self, runs: Sequence[Run]) -> DecisionPlan | None:
        """Return the plan that all these runs are of; None without one."""
        folders = {run.folder.parent for run in runs}
        plan = self._sweep(folders.pop())[1] if len(folders) == 1 else None
        if plan is not None:
            self.test = self.test or plan.test
        return plan

    def rule(self, sides: Sequence[Sequence[Run]], metric: Metric, is_main: bool) -> tuple[Rule, list[int] | None]:
        """Return the rule for an arm and its baseline, and of a planned sweep their seeds in its order."""
        key = tuple(map(id, sides))  # asked again for each metric
        if key not in self._histories:
            self._histories[key] = self._history(sides)
        looks, seeds, plan = self._histories[key]
        margin, test, alpha = (self.margin if is_main else None), self.test or "t", 0.05
        if plan is not None:
            margin = plan.margin if is_main and self.margin is None and metric.name == plan.metric else margin
            test, alpha = self.test or plan.test, plan.alpha
            self.is_planned = True
            if is_main:
                self._hold_against(plan, looks, metric)
        rule = Rule(looks, alpha, test, None if margin is None else margin / metric.scale)
        self.looks[rule.counted] = None
        return rule, seeds

    def _history(self, sides: Sequence[Sequence[Run]]) -> tuple[tuple[int, ...], list[int] | None, DecisionPlan | None]:
        """Return the looks at these runs, and of a planned sweep its seeds in order and its plan."""
        runs = [run for side in sides for run in side]
        folders = {run.folder.parent: None for run in sorted(runs, key=lambda run: run.order)}
        record, plan = self._sweep(next(iter(folders))) if len(folders) == 1 else (None, None)
        if record is None or record.plan is None or plan is None:
            shared = set.intersection(*({run.seed for run in side} for side in sides))
            return self._recorded(folders, [run for run in runs if run.seed in shared]), None, None
        ordered = sorted(runs, key=lambda run: (len(run.folder.name), run.folder.name))
        return plan.looks_with(record), list(dict.fromkeys(run.seed for run in ordered)), plan

    @property
    def level(self) -> float:
        """The smallest level of one look."""
        return min((Rule(looks, test=self.test or "t").level for looks in self.looks), default=0.05)

    @property
    def next_level(self) -> float:
        """About the level of each look if there is one more."""
        number = max((len(looks) for looks in self.looks), default=1)
        return self.level * max(number, 1) / (number + 1)

    def sentence(self) -> str | None:
        """Return in one sentence how the looks were counted; None where there was one."""
        looks = max(self.looks, key=len, default=())
        said = []
        if self.exploratory:
            said.append(f"Exploratory, no test of a plan: {'; '.join(self.exploratory)}.")
        if len(looks) > 1:
            planned = ", as planned" if self.is_planned and not self.exploratory else ""
            each = f"{100 * (1 - self.level):.1f}%"
            said.append(
                f"Looks at {', '.join(map(str, looks))} seeds{planned}: p is corrected for all of them, "
                f"and intervals of differences are at {each} each."
            )
        return " ".join(said) or None

    def _hold_against(self, plan: DecisionPlan, looks: Sequence[int], metric: Metric) -> None:
        """Note in what this comparison departs from the plan."""
        if metric.name != plan.metric:
            self.exploratory[f"the plan decides by {plan.metric}"] = None
        if self.margin not in (None, plan.margin):
            self.exploratory[f"the plan has the margin {'none' if plan.margin is None else f'{plan.margin:g}'}"] = None
        if self.test not in (None, plan.test):
            self.exploratory[f"the plan tests by {plan.test}"] = None
        if self.baseline not in (None, plan.baseline):
            self.exploratory[f"the plan compares with {plan.baseline or 'another baseline'}"] = None
        if len(looks) > len(plan.looks):
            self.exploratory["seeds were added after the last look of the plan"] = None

    def _recorded(self, folders: dict[Path, None], runs: Sequence[Run]) -> tuple[int, ...]:
        """Return the numbers of seeds that there were after each sweep, and after each time that one was extended."""
        seen: set[int] = set()
        looks: set[int] = set()
        for folder in folders:
            own = {run.seed for run in runs if run.folder.parent == folder}
            record = self._sweep(folder)[0]
            if record is not None:
                looks |= {min(len(seen - own) + n, len(seen | own)) for n in (*record.seeds, len(own))}
            seen |= own
        return tuple(sorted({*looks, len(seen)}))

    def _sweep(self, folder: Path) -> tuple[SweepRecord | None, DecisionPlan | None]:
        if folder not in self._sweeps:
            try:
                record = SweepRecord.read(folder)
            except RecordError:  # of a stranger: as if there was none
                record = None
            try:
                plan = None if record is None or record.plan is None else DecisionPlan.read(folder)
            except RecordError:
                plan = None
            if record is not None and record.plan not in (None, plan and plan.sha256):
                self.exploratory["the plan of the sweep was changed or lost after its runs began"] = None
            self._sweeps[folder] = record, plan
        return self._sweeps[folder]


def of_last_look(seeds: Sequence[int], looks: Sequence[int], sides: Sequence[Sequence[Run]]) -> set[int] | None:
    """Return the seeds of the last look that is over on each side; None where none is."""
    over = set(seeds)
    for side in sides:
        over &= {run.seed for run in side if run.state in FINAL}
    counted = None
    for n in looks:
        if not over.issuperset(seeds[:n]):
            break
        counted = set(seeds[:n])
    return counted
