"""Weight standardization: the layer before it computes with standardized weights, group normalization follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from bnlab.norms.formula import moments, normalize
from bnlab.norms.group import GroupLayer
from bnlab.norms.strategy import Facts, NormLayer, Strategy, strategies
from bnlab.schema import param


@strategies.register("weight_std")
@dataclass(frozen=True, kw_only=True)
class WeightStd(Strategy):
    """Standardize the weights of the layer before it, then normalize as `group`.

    The layer before it computes with (w - E[w]) / sqrt(Var[w] + eps), Var biased, over all inputs (and the kernel's
    H, W) of each output channel; the gradient goes through the standardization, and the stored w is what the optimizer
    moves. `eps` and `eps_outside` hold for the weights and the activations alike. The rest is `group`: C must be a
    multiple of `groups`.

    It keeps the bias of the layer before it, as `group` does.

    Qiao, Wang, Liu, Shen and Yuille, "Weight Standardization", 2019. Defaults: groups 8, eps 1e-5, affine.
    """

    groups: int = param(8, "groups of channels, must divide the channels of every layer", low=1)

    facts = Facts(cancels_shift=True, cancels_scale=True)

    def layer(self, channels: int) -> NormLayer:
        return GroupLayer(channels, self, self.groups)

    @property
    def weight_transform(self) -> Callable[[Tensor], Tensor] | None:
        return partial(standardized, eps=self.eps, eps_outside=self.eps_outside)


def standardized(weight: Tensor, eps: float, eps_outside: bool) -> Tensor:
    """Return weights (C, ...) with mean 0 and variance 1 over the inputs of each output channel, in their layout."""
    if eps_outside:
        dims = range(1, weight.dim())
        return normalize(weight, *moments(weight, dims), None, None, eps, True)
    if weight.dim() == 4 and weight.stride(1) == 1:  # also of a single input, by which a convolution chooses its layout
        view = weight.permute(0, 2, 3, 1)
        return F.layer_norm(view, view.shape[1:], eps=eps).permute(0, 3, 1, 2)
    return F.layer_norm(weight, weight.shape[1:], eps=eps)
