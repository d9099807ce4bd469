"""Every kind of picture that there is, of runs: what `bnlab plot` and `bnlab report` draw. No matplotlib here.

KINDS["differences"].of(section)    # a picture, or None where a section has nothing of the kind
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bnlab.compare.result import Section
from bnlab.report import mechanism, panels
from bnlab.report.panels import Picture


@dataclass(frozen=True)
class Kind:
    """A kind of picture: its title, how a section becomes one, and what must be recorded for it."""

    title: str
    of: Callable[[Section], Picture | None]
    needs: str


KINDS: Mapping[str, Kind] = {
    "curves": Kind("Curves", panels.curves, "trainings with two evaluations or more, and a metric that has a curve"),
    "differences": Kind(
        "Differences from the baseline", panels.differences, "an arm that shares a seed with a baseline"
    ),
    "steps": Kind("Step times", panels.steps, "a record of `bnlab bench`"),
    "gap": Kind(
        "Training mode against evaluation mode",
        panels.gap,
        "several trained arms, or causes by measure=full or `bnlab probe SWEEP`",
    ),
    "depth": Kind("Discrepancy by depth", panels.depth, "trained arms that keep running statistics"),
    "shift": Kind("Shifted test images", panels.shift, "what `bnlab shift SWEEP` evaluated"),
    "meters": Kind("What meters read", mechanism.over_training, "arms with meters, such as measure=landscape"),
    "layers": Kind("What meters read by depth", mechanism.by_depth, "arms with meters, such as measure=gradients"),
    "bands": Kind("Bands of a unit", mechanism.bands, "arms with measure=activations and several readings"),
}
