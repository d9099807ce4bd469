"""Contenders in turn for a fixed number of rounds, by `bnlab bench`'s own pairing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from bnlab.bench.pairing import in_turn
from bnlab.interval import Interval


@dataclass(frozen=True)
class Row:
    """A contender's figure and its ratio to the reference's."""

    name: str
    figure: float  # median, in the contenders' own unit
    ratio: Interval


def side_by_side(
    contenders: Mapping[str, Callable[[], float]], reference: str, rounds: int, warmup: int = 1
) -> list[Row]:
    """Call every contender once a round; each returns its figure, such as images a second."""
    singles = {name: partial(_single, contender) for name, contender in contenders.items()}
    turns = next(turns for turns in in_turn(singles, reference, warmup=warmup) if turns.rounds == rounds)
    return [Row(name, turns.medians(name)[0], turns.ratio(name)) for name in contenders]


def _single(contender: Callable[[], float]) -> tuple[float]:
    return (contender(),)
