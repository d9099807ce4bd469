"""Normalization strategies: importing the package enters all of them in `strategies`."""

from bnlab.norms.base import Facts, InitialShare, NormLayer, NormModule, Strategy, strategies
from bnlab.norms.batch import Batch
from bnlab.norms.ghost import Ghost
from bnlab.norms.instance import Instance
from bnlab.norms.layer import Layer
from bnlab.norms.none import NoNorm
from bnlab.norms.running import RunningLayer

__all__ = [
    "Batch",
    "Facts",
    "Ghost",
    "InitialShare",
    "Instance",
    "Layer",
    "NoNorm",
    "NormLayer",
    "NormModule",
    "RunningLayer",
    "Strategy",
    "strategies",
]
