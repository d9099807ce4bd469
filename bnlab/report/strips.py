"""An interval against where it must lie, on a scale: `░░░├──●──┤` over `▲2   5   10`.

Parts of a rule that have one region share a scale, so that their intervals compare with one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bnlab.claims.language import Region, parse_region
from bnlab.claims.outcome import PartVerdict
from bnlab.report.bars import ruler
from bnlab.report.chart import Scale
from bnlab.report.console import Terminal
from bnlab.report.figures import Cell, bound

ROOM = 0.15  # of the span, beside it


def scales_of(parts: Sequence[PartVerdict]) -> list[Scale | None]:
    """Return the scale of each part's picture; None without a finite estimate."""
    keys = [(part.region, part.unit, part.statistic in ("ratio", "largest")) for part in parts]
    values: dict[tuple[str, str, bool], list[float]] = {}
    for key, part in zip(keys, parts, strict=True):
        if _is_known(part):
            values.setdefault(key, []).extend(_values(part))
    scales = {key: _roomy(Scale.over(known, "log" if key[2] else "linear")) for key, known in values.items()}
    return [scales[key] if _is_known(part) else None for key, part in zip(keys, parts, strict=True)]


def strips(parts: Sequence[PartVerdict], width: int, out: Terminal) -> list[Cell]:
    """Return a picture a part, and below the last of those that share a scale the scale, arrows at thresholds."""
    scales = scales_of(parts)
    cells = [_strip(part, scale, width, out) for part, scale in zip(parts, scales, strict=True)]
    for i, scale in enumerate(scales):
        is_last = all(scale is not other for other in scales[i + 1 : i + 2])
        if scale is not None and cells[i].head and is_last:
            below = ruler(scale, width, out, marks=parts[i].thresholds)
            cells[i] = replace(cells[i], below=(below,))
    return cells


def signs(out: Terminal) -> tuple[str, str, str, str, str]:
    """Return what a region, the ends of an interval, its line and its value are drawn with."""
    return ("░", "├", "─", "●", "┤") if out.unicode else (".", "|", "-", "o", "|")


def spans(region: Region, scale: Scale) -> list[tuple[float, float]]:
    """Return from where to where a region lies on a scale, as places from 0 to 1."""
    ends = [scale.height(end) for end in region.thresholds]
    match region.sign:
        case ">" | ">=":
            return [(ends[0], 1.0)]
        case "<" | "<=":
            return [(0.0, ends[0])]
        case "in":
            return [(ends[0], ends[1])]
        case "outside":
            return [(0.0, ends[0]), (ends[1], 1.0)]
    return [(ends[0], ends[0])]


def _strip(part: PartVerdict, scale: Scale | None, width: int, out: Terminal) -> Cell:
    """Return the interval against the region that confirms; empty without an interval."""
    low, high, value = part.low, part.high, part.estimate
    if scale is None or low is None or high is None or value is None or low == high:
        return Cell("")
    fill, left, line, dot, right = signs(out)
    region = parse_region(part.region)
    cells = [fill if region.contains(v, v) else " " for v in (scale.at(i / (width - 1)) for i in range(width))]
    first, last, middle = (round(scale.height(v) * (width - 1)) for v in (low, high, value))
    cells[first : last + 1] = [line] * (last + 1 - first)
    cells[first], cells[last] = left, right
    cells[middle] = dot
    return Cell("".join(cells))


def _is_known(part: PartVerdict) -> bool:
    return part.estimate is not None and math.isfinite(part.estimate)


def _values(part: PartVerdict) -> Iterator[float]:
    """Yield what the scale of a part has to show."""
    value = part.estimate or 0.0
    yield from (value, *part.thresholds)
    yield from (bound(end, value) for end in (part.low, part.high) if end is not None)


def _roomy(scale: Scale) -> Scale:
    """Return the scale with room beside its ends."""
    if scale.high > scale.low:
        return Scale(scale.axis, scale.at(-ROOM), scale.at(1 + ROOM))
    room = abs(scale.low) or 1.0
    return Scale("linear", scale.low - room, scale.high + room)
