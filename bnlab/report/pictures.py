"""Every kind of picture that there is, of runs: what `bnlab plot` and `bnlab report` draw. No matplotlib here.

pictures_of("differences", sections)    # a picture a section, or None where it has nothing of the kind
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bnlab.compare.result import Section
from bnlab.report import mechanism, panels
from bnlab.report.panels import Picture


@dataclass(frozen=True)
class Kind:
    """A kind of picture: its title, how a section becomes one, and what must be recorded for it."""

    title: str
    of: Callable[[Section], Picture | None]
    needs: str
    joins: bool = False  # it is of all sections together
    reads_tables: bool = False  # the meters.csv of runs, beside their summaries
    most: int | None = None  # arms that it draws


KINDS: Mapping[str, Kind] = {
    "curves": Kind(
        "Curves",
        panels.curves,
        "trainings with two evaluations or more, and a metric that has a curve",
        most=panels.MOST_ARMS,
    ),
    "differences": Kind(
        "Differences from the baseline", panels.differences, "an arm that shares a seed with a baseline"
    ),
    "steps": Kind("Step times", panels.steps, "a record of `bnlab bench`"),
    "scaling": Kind(
        "Step times by size", panels.scaling, "a record of `bnlab bench --scale`, of two sizes or more", joins=True
    ),
    "gap": Kind(
        "Training mode against evaluation mode",
        panels.gap,
        "several trained arms, or causes by measure=full or `bnlab probe SWEEP`",
    ),
    "depth": Kind(
        "Discrepancy by depth", panels.depth, "trained arms that keep running statistics", most=panels.MOST_ARMS
    ),
    "shift": Kind("Shifted test images", panels.shift, "what `bnlab shift SWEEP` evaluated"),
    "meters": Kind(
        "What meters read",
        mechanism.over_training,
        "arms with meters, such as measure=landscape",
        most=panels.MOST_ARMS,
    ),
    "layers": Kind(
        "What meters read by depth",
        mechanism.by_depth,
        "arms with meters, such as measure=gradients",
        reads_tables=True,
        most=panels.MOST_ARMS,
    ),
    "bands": Kind(
        "Bands of a unit",
        mechanism.bands,
        "arms with measure=activations and several readings",
        reads_tables=True,
        most=mechanism.MOST_BANDS,
    ),
}


def pictures_of(name: str, sections: Sequence[Section]) -> list[Picture | None]:
    """Return the picture of each section; one of all sections together is that of the first."""
    kind = KINDS[name]
    if not kind.joins or not sections:
        return [_marked(kind, section) for section in sections]
    whole = replace(sections[0], rows=[row for section in sections for row in section.rows])
    return [kind.of(whole), *[None] * (len(sections) - 1)]


def _marked(kind: Kind, section: Section) -> Picture | None:
    """Return the picture of a section, with how many of its arms that is."""
    picture = kind.of(section)
    if picture is None or kind.most is None or len(section.rows) <= kind.most:
        return picture
    return replace(picture, remark=f"{picture.remark}; {kind.most} of {len(section.rows)} arms")


def not_drawn(names: Iterable[str], sections: Sequence[Section]) -> list[str]:
    """Return a line for each section of which pictures have not all arms."""
    most = [kind.most for kind in map(KINDS.__getitem__, names) if kind.most is not None]
    return [
        f"{fewest} of {len(section.rows)} arms are drawn; choose with --where"
        for section in sections
        for fewest in most[:1]
        if len(section.rows) > fewest
    ]


def unread(name: str, sections: Sequence[Section]) -> list[str]:
    """Return why a picture is without some of the runs, a line for each table that cannot be read."""
    return list(dict.fromkeys(mechanism.unread(sections))) if KINDS[name].reads_tables else []
