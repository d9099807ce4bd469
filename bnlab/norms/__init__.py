"""Normalization strategies: importing the package enters all of them in `strategies`."""

from bnlab.norms.batch import Batch
from bnlab.norms.dyt import DynamicTanh
from bnlab.norms.frn import Frn
from bnlab.norms.frozen import Frozen
from bnlab.norms.ghost import Ghost
from bnlab.norms.group import Group
from bnlab.norms.instance import Instance
from bnlab.norms.layer import Layer
from bnlab.norms.none import NoNorm
from bnlab.norms.online import Online
from bnlab.norms.population import Population
from bnlab.norms.renorm import Renorm
from bnlab.norms.rms import Rms
from bnlab.norms.running import RunningLayer
from bnlab.norms.strategy import Facts, InitialShare, NormLayer, NormModule, Strategy, strategies
from bnlab.norms.streaming import Streaming
from bnlab.norms.sync import Sync
from bnlab.norms.weight_std import WeightStd

__all__ = [
    "Batch",
    "DynamicTanh",
    "Facts",
    "Frn",
    "Frozen",
    "Ghost",
    "Group",
    "InitialShare",
    "Instance",
    "Layer",
    "NoNorm",
    "NormLayer",
    "NormModule",
    "Online",
    "Population",
    "Renorm",
    "Rms",
    "RunningLayer",
    "Strategy",
    "Streaming",
    "Sync",
    "WeightStd",
    "strategies",
]
