"""bnlab: measure what normalization strategies do, on your own machine, with honest intervals.

bnlab.compare("runs/…")    # in Python what `bnlab compare` is in a terminal
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load `bnlab.compare` where it is asked for, so that importing bnlab takes no time."""
    if name == "compare":
        return __import__("bnlab.compare").__dict__["compare"]
    raise AttributeError(f"module 'bnlab' has no attribute {name!r}")
