"""Figures in Python, those that `bnlab plot` and `bnlab report` draw.

compared = bnlab.compare("runs/…", baseline="batch", margin=0.2)
figure = bnlab.plot.differences(compared)    # a matplotlib figure, to be changed at will
bnlab.plot.save(figure, "figure.pdf")        # as the command does it: text stays text, fonts are embedded

No state of pyplot is touched. Every function raises IncompatibleError where the runs did not record what it shows.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from bnlab.errors import ConfigError, IncompatibleError
from bnlab.record.plain_files import write_bytes
from bnlab.report.drawing import figure_of, image_of
from bnlab.report.notebook import Compared
from bnlab.report.panels import KINDS

FORMS = (".svg", ".png", ".pdf")


def curves(compared: Compared) -> Figure:
    """Draw the curve behind the compared metric by arm, with its band over seeds; of a single run by split."""
    return _drawn("curves", compared)


def differences(compared: Compared) -> Figure:
    """Draw each arm's paired difference from its baseline with its interval, against the margin if there is one."""
    return _drawn("differences", compared)


def steps(compared: Compared) -> Figure:
    """Draw the step times of a bench as ratios to the baseline's, with their intervals and floors."""
    return _drawn("steps", compared)


def gap(compared: Compared) -> Figure:
    """Draw how far training mode and evaluation mode are apart; with measure=full also the loss gap by cause."""
    return _drawn("gap", compared)


def depth(compared: Compared) -> Figure:
    """Draw by layer how far the running statistics are from those of the test probe."""
    return _drawn("depth", compared)


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as SVG, PNG or PDF, as the name says. Errors: ConfigError for another name; EnvironmentFault."""
    write_bytes(Path(path), image_of(figure, form_of(Path(path))))


def form_of(path: Path) -> str:
    """Return `svg`, `png` or `pdf`. Errors: ConfigError."""
    if path.suffix not in FORMS:
        raise ConfigError(f"{path}: must end in {', '.join(FORMS)}")
    return path.suffix[1:]


def _drawn(name: str, compared: Compared) -> Figure:
    kind = KINDS[name]
    pictures = [picture for section in compared.comparison.sections if (picture := kind.of(section)) is not None]
    if not pictures:
        raise IncompatibleError(f"{name}: there is nothing to draw\nit takes {kind.needs}")
    return figure_of(pictures)
