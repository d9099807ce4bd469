"""bnlab: measure what normalization strategies do, on your own machine, with honest intervals."""

__version__ = "0.1.0"
