"""bnlab: measure what normalization strategies do, on your own machine, with honest intervals.

folder = bnlab.train("norm=none,ghost", "data=digits")  # in Python what the commands are in a terminal
compared = bnlab.compare(folder)
figure = bnlab.plot.differences(compared)
found = bnlab.probe(folder / "1")                       # or a torch.nn.Module: bnlab.probe(model, data="digits")
shifted = bnlab.shift(folder / "1", shifts=["noise"])

What goes wrong is a BnlabError in the words of the commands: what it calls --baseline is the argument `baseline`.
Importing bnlab takes no time: all else is loaded where it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlab import plot as plot
    from bnlab.api import probe, recalibrate, runs, shift, tables, train
    from bnlab.errors import BnlabError
    from bnlab.report.notebook import compare

__version__ = "0.1.0"
__all__ = ["BnlabError", "compare", "plot", "probe", "recalibrate", "runs", "shift", "tables", "train"]


def __getattr__(name: str) -> Any:
    """Load what is in `__all__` where it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'bnlab' has no attribute {name!r}")
    place = {"BnlabError": "errors", "compare": "compare", "plot": "plot"}.get(name, "api")
    module = __import__(f"bnlab.{place}").__dict__[place]
    return module if place == name else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
