"""Ladders climbed: of each arm and seed only those levels are trained that the largest one depends on.

What is tried follows from the outcomes alone (`claims/ladder.py`), so a command line that was killed, or is given
again, finds its runs in the pool and goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bnlab.claims.evaluate import figure_of
from bnlab.claims.ladder import Bracket, Outcome, bracket, next_level
from bnlab.claims.language import Condition
from bnlab.record.read import Run
from bnlab.runner.pool import Launch, Wanted, has, train


@dataclass
class Ladder:
    """The levels of a key for one arm and seed, and what came of those that were tried."""

    levels: dict[float, Wanted]
    condition: Condition  # that a level has to meet
    start: float
    resolution: float | None = None
    between: Callable[[float], Wanted] | None = None  # makes a level that is none of these
    runs: dict[float, Run] = field(default_factory=dict)  # that are over
    lost: set[float] = field(default_factory=set)  # levels whose run failed

    @property
    def passed(self) -> dict[float, bool]:
        """Whether each level that was tried meets the condition."""
        figures = {level: figure_of(self.condition.of, run) for level, run in self.runs.items()}
        return {level: self.condition.holds(figure) for level, figure in figures.items() if figure is not None}

    @property
    def tried(self) -> dict[float, Outcome]:
        """What came of each level that was tried, from the lowest on."""
        return {
            level: "passes" if passed else "lost" if self.runs[level].state == "diverged" else "fails"
            for level, passed in sorted(self.passed.items())
        }

    @property
    def bracket(self) -> Bracket:
        """Where the largest level lies."""
        return bracket(self.passed)

    def has_tried(self, level: float) -> bool:
        """Return whether a level was tried, also if its run failed."""
        return level in self.runs or level in self.lost

    def next(self) -> float | None:
        """Return the level to try next; None where nothing is left to learn."""
        rungs = sorted(self.levels.keys() - self.lost)
        level = next_level(self.passed, rungs, self.start, self.resolution)
        if level is None or level in self.lost:
            return None
        if level not in self.levels and self.between is not None:
            self.levels[level] = self.between(level)
        return level

    def take(self, level: float, run: Run | None) -> None:
        """Note what came of a level; None where its run failed."""
        if run is None or figure_of(self.condition.of, run) is None:
            self.lost.add(level)
        else:
            self.runs[level] = run


def climb(ladders: Sequence[Ladder], pool: dict[str, Run], launch: Launch) -> tuple[int, dict[str, str]]:
    """Try level after level, all ladders in step; return how many runs were trained, and what failed, by identity."""
    num_trained, failed = 0, dict[str, str]()
    while asked := [(ladder, level) for ladder in ladders if (level := ladder.next()) is not None]:
        wanted = {each.run.identity: each for each in (ladder.levels[level] for ladder, level in asked)}
        missing = [each for each in wanted.values() if not has(pool, each)]
        num_trained += len(missing)
        failed |= train(missing, pool, launch)
        for ladder, level in asked:
            ladder.take(level, pool.get(ladder.levels[level].run.identity))
    return num_trained, failed
