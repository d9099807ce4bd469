"""Panels as matplotlib figures: the only file that draws. No pyplot, and no setting of the caller's is changed.

Sized for the text width of a paper, with its fonts embedded; colours are those of Okabe and Ito, which colour-blind
readers can tell apart, and every arm has a marker and a line of its own beside its colour.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bnlab.errors import ConfigError
from bnlab.report.chart import Scale
from bnlab.report.figures import on_axis
from bnlab.report.page import MADE
from bnlab.report.panels import Panel, Picture, Series

WIDTH, PAGE = 5.5, 4.3  # inches: of a figure in a paper, and on a page, where it may be as narrow as a phone
LINES, DOT, FRAME = 2.4, 0.22, 0.75  # inches high: lines, a dot, what is around dots
INK, PALE = "#20242a", "#8b9098"  # lines and words; what is behind them
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # of all arms but baselines
MARKERS, DASHES = "osD^vP", ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MOST_TICKS, MOST_MARKS = 6, 12
STEPS = (1, 2, 2.5, 5, 10)  # between ticks
LEGEND = 15  # characters an inch of a legend's line
CAPTION = 18  # characters an inch of a caption's line
LABEL = 30  # characters a line beside dots
_STYLE = {
    "font.sans-serif": ["DejaVu Sans"],  # which comes with matplotlib: the same picture everywhere
    "font.size": 8,
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.35,
    "grid.color": PALE,
    **{f"{what}color": INK for what in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.")},
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "text.parse_math": False,  # names are data: `$` starts no formula
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": MADE,  # the same bytes each time
    "pdf.fonttype": 42,
}


@contextmanager
def _style() -> Iterator[None]:
    """Draw in this style, whatever a matplotlibrc says."""
    usual: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    with matplotlib.rc_context(usual | _STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in a script that the font lacks
        yield


def figure_of(pictures: Sequence[Picture], width: float = WIDTH, *, captioned: bool = False) -> Figure:
    """Return all pictures below one another in one figure, with one legend; `captioned` by what their signs mean."""
    rows = [row for picture in pictures for row in picture.rows]
    wide = [max(map(len, picture.rows)) for picture in pictures for _ in picture.rows]
    heights = [max(LINES if panel.over else FRAME + DOT * len(panel.series) for panel in row) for row in rows]
    arms = {series.label: series for row in rows for panel in row if panel.over for series in panel.series}
    looks = map(_look, arms.values())
    entries = {
        label: Line2D([], [], color=colour, linestyle=dashes, marker=marker)
        for label, (colour, dashes, marker) in zip(arms, looks, strict=True)
    }
    columns = max(1, min(len(entries), int(LEGEND * width) // (7 + max(map(len, entries), default=1))))
    with _style():
        said = "; ".join(dict.fromkeys(picture.remark for picture in pictures)) if captioned else ""
        caption = textwrap.wrap(said, int(CAPTION * width))
        height = sum(heights) + 0.2 * -(-len(entries) // columns) + 0.15 * len(caption)
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        if caption:
            figure.suptitle("\n".join(caption), x=0.01, ha="left", fontsize="small")
        parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False, facecolor="none")
        for part, row, most in zip(parts[:, 0], rows, wide, strict=True):
            places = part.subplots(1, most if row[0].over else len(row), squeeze=False)[0]  # lines are as wide as above
            for axes in places[len(row) :]:
                axes.set_visible(False)
            for axes, panel in zip(places, row, strict=False):
                axes.set_facecolor("none")
                _draw_lines(axes, panel, 6 if len(places) < 3 else 3) if panel.over else _draw_dots(axes, panel)
                if axes is not part.axes[0] and not panel.over and _labels(panel) == _labels(row[0]):
                    axes.tick_params(labelleft=False)
        if len(entries) > 1:
            look = {"ncols": columns, "frameon": False, "handlelength": 2.8}
            figure.legend(list(entries.values()), list(entries), loc="outside lower center", **look)
    return figure


def image_of(figure: Figure, name: str) -> bytes:
    """Return a figure as SVG, PDF or PNG (300 dots an inch, on white), as a file's `name` says; it says who MADE it.

    Errors: ConfigError for another name.
    """
    form = name.rpartition(".")[2]
    about = {"svg": {"Creator": MADE, "Date": None}, "pdf": {"Creator": MADE, "CreationDate": None}}
    about["png"] = {"Software": MADE}
    if form not in about:
        raise ConfigError(f"{name}: must end in .svg, .pdf or .png")
    face, target = "white" if form == "png" else "none", io.BytesIO()
    with _style():
        figure.savefig(target, format=form, dpi=300, facecolor=face, metadata=about[form])
    return target.getvalue()


def inline_svg(figure: Figure, name: str) -> tuple[str, str]:
    """Return view box and inside of an SVG element, for a page that has others and a colour of its own for ink.

    Each id begins with `name`.
    """
    text = image_of(figure, ".svg").decode()
    box = re.search(r'viewBox="([\d. ]+)"', text)
    inside = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    inside = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style.*?</style>", "", inside, flags=re.DOTALL)
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)
    inside = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", inside)
    return box[1] if box else "", inside.replace(INK, "currentColor").strip()


# ---------------------------------------------------------------- panels


def _draw_lines(axes: Axes, panel: Panel, most_ticks: int) -> None:
    centers = [value.value for series in panel.series for value in series.values]
    finite = [value for value in centers if np.isfinite(value)]
    if panel.axis == "linear" and panel.reference is not None:
        finite += [panel.reference]
    for series in panel.series:
        means, lows, highs = _columns(panel, series)
        colour, dashes, marker = _look(series)
        marks = marker if len(series.places) <= MOST_MARKS else ""
        axes.plot(series.places, means, color=colour, linestyle=dashes, marker=marks, label=series.label, clip_on=False)
        if not (lows == highs).all():
            axes.fill_between(series.places, lows, highs, color=colour, alpha=0.15, linewidth=0)
    if panel.reference is not None:
        axes.axhline(panel.reference * panel.factor, color=PALE, linewidth=0.8, zorder=0)
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.over)
    if panel.by_doubling:
        places = sorted({place for series in panel.series for place in series.places})
        axes.set_xscale("log", base=2)
        axes.set_xticks(places)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(most_ticks, steps=STEPS, integer=True))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_plain))
    inner = Scale.over(finite, panel.axis)
    if inner.axis != "linear" and inner.high > inner.low:
        _scale(axes, inner, panel.factor)


def _scale(axes: Axes, inner: Scale, factor: float) -> None:
    """Draw on the logarithm, of the error where the scale says so; bands are cut where all means end."""
    scale = Scale(inner.axis, inner.at(-0.06), inner.at(1.08))
    height, value = (
        np.errstate(invalid="ignore")(np.vectorize(each, otypes=[float])) for each in (scale.height, scale.at)
    )
    axes.set_yscale("function", functions=(lambda v: height(v / factor), lambda h: value(h) * factor))
    axes.set_ylim(scale.low * factor, scale.high * factor)
    ticks = scale.ticks(MOST_TICKS)
    if len(ticks) > 1:
        last = scale.axis == "error" and scale.height(ticks[-1]) == scale.height(1.0)  # where all above is drawn, too
        labels = [_plain(tick * factor) for tick in ticks]
        axes.set_yticks([tick * factor for tick in ticks], [*labels[:-1], "≥ " * last + labels[-1]])
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_dots(axes: Axes, panel: Panel) -> None:
    if panel.band is not None:
        axes.axvspan(*(end * panel.factor for end in panel.band), color=PALE, alpha=0.25, linewidth=0, zorder=0)
    if panel.reference is not None:
        axes.axvline(panel.reference * panel.factor, color=PALE, linewidth=0.8, zorder=0)
    for row, series in enumerate(panel.series):
        (mean,), (low,), (high,) = _columns(panel, series)
        colour, _, marker = _look(series)
        thick: dict[str, Any] = {"linewidth": 6, "alpha": 0.35} if series.tried else {}
        axes.plot([low, high], [row, row], color=colour, solid_capstyle="butt", **thick)
        for level, outcome in series.tried.items():
            face, sign = (colour if outcome == "passes" else "none"), ("x" if outcome == "lost" else "o")
            axes.plot([level], [row], color=colour, marker=sign, markerfacecolor=face, linestyle="")
        face = "none" if series.is_open else colour
        axes.plot([mean], [row], color=colour, marker=marker, markerfacecolor=face, linestyle="", label=series.label)
        if series.floor is not None:
            axes.plot([series.floor * panel.factor], [row], color=INK, marker="|", markersize=8, linestyle="")
    axes.set_yticks(range(len(panel.series)), [textwrap.fill(label, LABEL) for label in _labels(panel)])
    axes.set_ylim(len(panel.series) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(panel.title)
    if panel.axis == "log":
        axes.set_xscale("log")
        axes.set_xticks(Scale("log", *axes.get_xlim()).ticks(MOST_TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, place: object = None) -> str:
    """Return a tick's label."""
    return on_axis(round(float(value), 12), 10)


def _columns(panel: Panel, series: Series) -> Any:
    """Return the values and both ends of their intervals, the value itself where there is none."""
    ends = [(v.value, *(v.value if end is None else end for end in (v.low, v.high))) for v in series.values]
    return np.array(ends).T * panel.factor


def _labels(panel: Panel) -> list[str]:
    return [series.label for series in panel.series]


def _look(series: Series) -> tuple[str, Any, str]:
    """Return colour, dashes and marker of an arm: the colour of its strategy, that of a baseline ink."""
    if series.colour == 0:
        return INK, DASHES[series.variant % len(DASHES)], ("x" + MARKERS)[series.variant % (1 + len(MARKERS))]
    place, variant = series.colour - 1, series.variant
    dashes = DASHES[(place // len(COLOURS) + variant) % len(DASHES)]
    return COLOURS[place % len(COLOURS)], dashes, MARKERS[(place + variant) % len(MARKERS)]
