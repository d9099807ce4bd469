"""Figures in Python, those of `bnlab plot` and `bnlab report`: matplotlib's, without pyplot.

compared = bnlab.compare("runs/…", baseline="batch", margin=0.2)
figure = bnlab.plot.differences(compared)    # to be changed at will
bnlab.plot.save(figure, "figure.pdf")        # as the command does it: text stays text, fonts are embedded

Errors: IncompatibleError where the runs did not record what a figure shows.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from bnlab.errors import ConfigError, IncompatibleError
from bnlab.record.latest import of_claims
from bnlab.record.plain_files import write_bytes
from bnlab.report.drawing import figure_of, image_of
from bnlab.report.notebook import Compared
from bnlab.report.pictures import KINDS, pictures_of, unread


def curves(compared: Compared) -> Figure:
    """Draw the curve behind the compared metric by arm, with its band over seeds; of a single run by split."""
    return draw("curves", compared)


def differences(compared: Compared) -> Figure:
    """Draw each arm's paired difference from its baseline with its interval, against the margin if there is one."""
    return draw("differences", compared)


def steps(compared: Compared) -> Figure:
    """Draw the step times of a bench as ratios to the baseline's, with their intervals and floors."""
    return draw("steps", compared)


def scaling(compared: Compared) -> Figure:
    """Draw the step times of a bench by the size that `--scale` gave it, over those of the baseline, by arm."""
    return draw("scaling", compared)


def gap(compared: Compared) -> Figure:
    """Draw how far training mode and evaluation mode are apart, and by which causes if these were measured."""
    return draw("gap", compared)


def depth(compared: Compared) -> Figure:
    """Draw by layer how far the running statistics are from those of the test probe."""
    return draw("depth", compared)


def shift(compared: Compared) -> Figure:
    """Draw the compared metric over the severity of shifts; it takes `bnlab.compare(..., evaluated=True)`."""
    return draw("shift", compared)


def meters(compared: Compared) -> Figure:
    """Draw what meters read of the network over training, by arm."""
    return draw("meters", compared)


def layers(compared: Compared) -> Figure:
    """Draw what meters read of the layers by depth, at the first reading and at the last."""
    return draw("layers", compared)


def bands(compared: Compared) -> Figure:
    """Draw percentiles of what enters the activation of a unit, over training (Ioffe and Szegedy 2015, figure 1)."""
    return draw("bands", compared)


def draw(name: str, compared: Compared) -> Figure:
    """Draw one of KINDS, all sections below one another. Errors: ConfigError where `compared` is another kind."""
    if not isinstance(compared, Compared):
        raise ConfigError(
            f"{type(compared).__name__}: cannot be drawn by bnlab.plot, which takes what bnlab.compare returns\n"
            "figures of one model are on its page: `bnlab probe` or `bnlab shift` with --out page.html"
        )
    pictures = [picture for picture in pictures_of(name, compared.comparison.sections) if picture]
    if not pictures:
        left_out = "".join(f"{line}\n" for line in unread(name, compared.comparison.sections)[:1])
        raise IncompatibleError(
            f"{name}: there is nothing to draw\n{left_out}it takes {KINDS[name].needs}{of_claims()}"
        )
    return figure_of(pictures, captioned=True)


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as SVG, PDF or PNG, as the name says. Errors: ConfigError for another name; EnvironmentFault."""
    write_bytes(Path(path), image_of(figure, str(path)))
