"""bnlab: measure what normalization strategies do, on your own machine, with honest intervals.

compared = bnlab.compare("runs/…")         # in Python what `bnlab compare` is in a terminal
figure = bnlab.plot.differences(compared)  # and `bnlab plot`
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load `bnlab.compare` and `bnlab.plot` where they are asked for, so that importing bnlab takes no time."""
    if name in ("compare", "plot"):
        return __import__(f"bnlab.{name}").__dict__[name]
    raise AttributeError(f"module 'bnlab' has no attribute {name!r}")
