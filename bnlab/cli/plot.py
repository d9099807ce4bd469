"""`bnlab plot`: a figure for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from bnlab.cli.options import Baseline, BestOf, Force, Margin, Metrics, Runs, Where, one_of
from bnlab.errors import ConfigError

FIGURES = ("curves", "differences", "steps", "scaling", "gap", "depth", "shift", "meters", "layers", "bands")


def plot(
    figure: Annotated[str, one_of(choices=FIGURES, help="Which figure.")],
    paths: Runs = None,
    out: Annotated[
        Optional[Path], typer.Option("--out", metavar="FILE", help="FILE.svg, .pdf or .png; default: FIGURE.svg")
    ] = None,
    metric: Metrics = None,
    baseline: Baseline = None,
    where: Where = None,
    best_of: BestOf = None,
    margin: Margin = None,
    force: Force = False,
) -> None:
    """Draw a figure of runs, as wide as the text of a paper; its text stays text.

    FIGURE is curves, differences, steps (of a bench), scaling (of bench --scale), gap, depth, shift, or what meters
    read: meters, layers, bands.
    PATH is the folder of a run, a sweep or a bench; default: the latest sweep. `bnlab search --out` draws a search.
    """
    from bnlab.cli.compare import default_places
    from bnlab.plot import draw
    from bnlab.report.compare_report import skipped_lines
    from bnlab.report.console import messages
    from bnlab.report.drawing import image_of
    from bnlab.report.mechanism import read_figures
    from bnlab.report.notebook import compare
    from bnlab.report.page import write_own
    from bnlab.report.pictures import not_drawn, unread

    out, places = out or Path(f"{figure}.svg"), paths or default_places()
    compared = compare(
        places,
        metrics=metric,
        baseline=baseline,
        where=where or (),
        best_of=best_of or (),
        margin=margin,
        evaluated=figure == "shift",
    )
    whole = compared.comparison
    read = list(dict.fromkeys(name for section in whole.sections for name in read_figures(section)))
    if figure == "meters" and metric and read and metric[0] not in read:
        raise ConfigError(f"--metric {metric[0]}: no meter of these runs reads it\nthey read {', '.join(read)}")
    write_own(out, image_of(draw(figure, compared), str(out)), force)
    left_out = *unread(figure, whole.sections), *not_drawn([figure], whole.sections)
    for line in (*skipped_lines(whole), *left_out, f"written: {out}"):
        messages().say(line)
