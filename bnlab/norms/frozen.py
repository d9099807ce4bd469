"""Frozen normalization: each channel by the statistics that the training set had under the initial weights."""

from __future__ import annotations

from dataclasses import dataclass

from bnlab.norms.population import TrainingSetLayer
from bnlab.norms.strategy import Facts, NormLayer, Strategy, strategies
from bnlab.schema import param


@strategies.register("frozen")
@dataclass(frozen=True, kw_only=True)
class Frozen(Strategy):
    """Normalize each channel by its statistics over the training set, taken once, at initialization.

    y = gamma * (x - mu_0) / sqrt(var_0 + eps) + beta with mean and biased variance of all training samples (and H, W)
    under the initial weights, layer after layer as `population` takes them, then never again: a fixed affine map per
    channel. A bias in front of it is not dead. Training and evaluation are the same; with `again=true` evaluation has
    the statistics of the weights that it evaluates, as `population` does, and those of the last ones are kept.

    Data-dependent initialization (Mishkin and Matas 2015; Salimans and Kingma 2016) kept as a layer. Defaults: eps
    1e-5, affine.
    """

    again: bool = param(False, "evaluate with statistics taken again under the weights that are evaluated")

    facts = Facts(keeps_stats=True, refreshes=False, reads_training_set=True)

    def layer(self, channels: int) -> NormLayer:
        return TrainingSetLayer(channels, self, every=0, again=self.again)
