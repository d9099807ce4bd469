"""Layer normalization: each sample, or each of its positions, by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.norms.formula import is_channels_last, kernel_input
from bnlab.norms.strategy import Facts, NormLayer, Strategy, strategies
from bnlab.schema import param


@strategies.register("layer")
@dataclass(frozen=True, kw_only=True)
class Layer(Strategy):
    """Normalize each sample over its channels; training and evaluation are the same.

    y = gamma * (x - E[x]) / sqrt(Var[x] + eps) + beta, Var biased, gamma and beta one pair a channel. `over=sample`:
    axes C, H, W per sample; `over=channel`: axis C per sample and position. For `(N, C)` both are the same.

    It does not cancel a bias in front of it: only a shift common to all channels goes away, and a convolution's bias
    differs from channel to channel.

    Ba, Kiros and Hinton, "Layer Normalization", 2016 (over=sample; torch.nn.LayerNorm over CHW has C*H*W gains
    instead of C); over=channel as in ConvNeXt, Liu et al. 2022. Defaults: over=sample, eps 1e-5, affine.
    """

    over: Literal["sample", "channel"] = param("sample", "statistics over C, H, W, or over C at each position")

    facts = Facts(cancels_shift=True, cancels_scale=True)

    def layer(self, channels: int) -> NormLayer:
        return LayerLayer(channels, self)


class LayerLayer(NormLayer):
    """The kernel by memory layout, the fastest that keeps its precision; the output keeps the input's layout.

    Over the sample, contiguous: group norm with one group. channels_last: layer norm of the (N, H, W, C) view with
    gamma and beta spread over H, W; torch's group norm takes 0.65 of its time there but loses a large offset on CPU (it
    forms E[x^2] - E[x]^2; at 1e4 + noise nothing is left). Over the channel: layer norm of the (N, H, W, C) view.
    """

    def __init__(self, channels: int, strategy: Layer) -> None:
        super().__init__(channels, strategy)
        self.over = strategy.over

    def normalized(self, x: Tensor) -> Tensor:
        if self.eps_outside:
            return self.written_out(x, (1,) if self.over == "channel" else tuple(range(1, x.dim())))
        wide = kernel_input(x, self.gamma)
        if x.dim() == 2:
            y = F.layer_norm(wide, (self.channels,), self.gamma, self.beta, self.eps)
        elif self.over == "channel":
            y = self._over_last(wide, 1)
            y = y if is_channels_last(x) else y.contiguous()
        elif is_channels_last(x):
            y = self._over_last(wide, 3)
        else:  # three dimensions have one layout only: group norm cannot take its channels_last way
            y = torch.group_norm(wide.flatten(2), 1, self.gamma, self.beta, self.eps).view(x.shape)
        return y.to(x.dtype)

    def _over_last(self, x: Tensor, dims: int) -> Tensor:
        view = x.permute(0, 2, 3, 1)
        shape = view.shape[-dims:]
        weight = None if (gamma := self.gamma) is None else gamma.expand(shape)
        bias = None if (beta := self.beta) is None else beta.expand(shape)
        return F.layer_norm(view, shape, weight, bias, self.eps).permute(0, 3, 1, 2)
