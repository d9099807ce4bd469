"""A panel of lines as paths of a small SVG, which a template draws: a tenth of the bytes of `drawing.py`, and at once.

A page of a hundred claims has room for no more, and no time for matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bnlab.report.chart import Scale
from bnlab.report.figures import number, significant, small
from bnlab.report.panels import Panel, Series

WIDTH, HEIGHT = 320, 120
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 314, 6, 100  # of what lines are drawn in
DASHES = ("", "5 2", "1 2", "6 2 1 2")  # of arms that share a colour
LOOKS = 7  # the baseline's and six more, which styles of the page know


def svg_of(panel: Panel) -> dict[str, Any]:
    """Return the places of a panel's lines, bands and words."""
    values = [value for series in panel.series for value in series.values]
    ends = [end for value in values for end in (value.low, value.high) if end is not None and panel.axis == "linear"]
    scale = Scale.over([*(value.value for value in values), *ends], panel.axis)  # where it is log, bands are cut
    wide = Scale.over([place for series in panel.series for place in series.places], "linear")

    def points(series: Series, values: Iterable[float], digits: int = 0) -> list[str]:
        across = [_LEFT + wide.height(place) * (_RIGHT - _LEFT) for place in series.places]
        return [
            f"{x:.0f} {_BOTTOM - scale.height(value) * (_BOTTOM - _TOP):.{digits}f}"
            for x, value in zip(across, values, strict=True)
        ]

    def line(series: Series) -> dict[str, Any]:
        lows = [value.low for value in series.values if value.low is not None]
        highs = [value.high for value in series.values if value.high is not None]
        has_band = len(lows) == len(highs) == len(series.values)
        around = [*points(series, lows), *reversed(points(series, highs))] if has_band else []
        return {
            "label": series.label,
            "look": series.colour and 1 + (series.colour - 1) % (LOOKS - 1),
            "dash": DASHES[series.variant % len(DASHES)],
            "line": "M" + "L".join(points(series, (value.value for value in series.values), 1)),
            "band": f"M{'L'.join(around)}z" if around else "",
        }

    said = small if scale.axis == "log" else significant
    heights = (0.0, 0.5, 1.0) if scale.high > scale.low else (0.5,)
    return {
        "title": panel.title + (" (log scale)" if panel.axis == "log" else ""),
        "described": panel.described(),
        "ticks": [(_BOTTOM - h * (_BOTTOM - _TOP), said(scale.at(h) * panel.factor)) for h in heights],
        "over": panel.over,
        "ends": [number(place, 0) for place in (wide.low, wide.high)],
        "series": [line(series) for series in panel.series],
    }
