"""Dynamic Tanh: a squashing function in the place of a normalization; it has no statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnlab.norms.formula import per_channel, widened
from bnlab.norms.strategy import Facts, NormLayer, Strategy, strategies
from bnlab.schema import param


@strategies.register("dyt")
@dataclass(frozen=True, kw_only=True)
class DynamicTanh(Strategy):
    """Squash each value by tanh with a learned slope instead of normalizing; training and evaluation are the same.

    y = gamma * tanh(alpha * x) + beta, gamma and beta one pair a channel, alpha one learned number a layer, which
    starts at the parameter `alpha` and is learned also with `affine=false`. There is no divisor: `eps` and
    `eps_outside` are accepted and have no effect.

    Zhu, Chen, He, LeCun and Liu, "Transformers without Normalization", 2025. Defaults: alpha 0.5, affine.
    """

    alpha: float = param(0.5, "slope at the start, one learned number a layer", above=0.0)

    facts = Facts()

    def layer(self, channels: int) -> NormLayer:
        return DynamicTanhLayer(channels, self)


class DynamicTanhLayer(NormLayer):
    """The formula, with `alpha` as a parameter without axes.

    Half of the time is tanh itself; an autograd function of fewer passes took 0.97 of it, in an MLP 1.25.
    """

    def __init__(self, channels: int, strategy: DynamicTanh) -> None:
        super().__init__(channels, strategy)
        self.alpha = nn.Parameter(torch.tensor(strategy.alpha))

    def normalized(self, x: Tensor) -> Tensor:
        y = torch.tanh(widened(x) * self.alpha)
        if (gamma := self.gamma) is not None and (beta := self.beta) is not None:
            y = y * per_channel(gamma, x) + per_channel(beta, x)
        return y.to(x.dtype)
