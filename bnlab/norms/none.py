"""No normalization, the baseline of every comparison: y = x, the layer before it keeps its bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnlab.norms.strategy import Facts, NormLayer, Strategy, strategies


@strategies.register("none")
@dataclass(frozen=True, kw_only=True)
class NoNorm(Strategy):
    """No normalization: the identity, the baseline; the common parameters are accepted and have no effect."""

    facts = Facts()

    def layer(self, channels: int) -> NormLayer:
        return Identity(channels, self)


class Identity(NormLayer):
    """Returns its input; it has no parameters, as there is nothing they would follow."""

    def __init__(self, channels: int, strategy: Strategy) -> None:
        super().__init__(channels, strategy)
        self.weight = self.bias = None

    def normalized(self, x: Tensor) -> Tensor:
        return x

    def affine_map(self) -> tuple[Tensor, Tensor] | None:
        return torch.ones(self.channels), torch.zeros(self.channels)
