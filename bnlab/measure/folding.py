"""A norm merged into the convolution or linear layer before it: the same evaluation with no norm layer left.

scale * (W x + b) + shift = (scale * W) x + (scale * b + shift), per output channel.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from bnlab.errors import IncompatibleError
from bnlab.models.model import Conv, Linear, norm_layers
from bnlab.norms.strategy import NormLayer


def check_foldable(model: nn.Module) -> None:
    """Refuse a model with a norm that cannot be merged. Errors: IncompatibleError naming the layer, and what to set.

    A norm layer in front of everything (`model.input_norm=batch`) has nothing before it and stays.
    """
    before = {norm: layer for _, _, layer, norm in _pairs(model)}
    first = next(iter(model.children()), None)
    for name, norm in norm_layers(model):
        if norm.affine_map() is None:
            raise IncompatibleError(
                f"eval.stats=folded: layer {name} ({type(norm).__name__}) is no affine map per channel in evaluation\n"
                "take eval.stats=running, or a norm that evaluates with statistics it keeps (norm=batch)"
            )
        if norm is not first and norm not in before:
            raise IncompatibleError(
                f"eval.stats=folded: layer {name} ({type(norm).__name__}) does not follow a convolution or linear layer"
                "\nset model.placement=pre (and norm.per=channel), or take eval.stats=running"
            )


def folded(model: nn.Module) -> nn.Module:
    """Return a copy in which every norm that directly follows a convolution or linear layer is merged into it.

    A bias is made where there is none, and a transform of the weights is done once. It equals the model in evaluation,
    with the statistics that are now in its layers, to rounding. Errors: IncompatibleError as `check_foldable`.
    """
    check_foldable(model)
    result = copy.deepcopy(model)
    for parent, place, layer, norm in list(_pairs(result)):
        affine = norm.affine_map()
        assert affine is not None
        _merge(layer, *affine)
        parent[place] = nn.Identity()
    return result


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Sequential, int, Conv | Linear, NormLayer]]:
    """Yield (sequence, place of the norm, the layer right before it, norm) of every norm that can be merged.

    Dropout between them does nothing in evaluation.
    """
    for parent in model.modules():
        if not isinstance(parent, nn.Sequential):
            continue
        acting = [(place, module) for place, module in enumerate(parent) if not isinstance(module, _DropoutNd)]
        for (_, layer), (place, norm) in itertools.pairwise(acting):
            if isinstance(layer, (Conv, Linear)) and isinstance(norm, NormLayer):
                yield parent, place, layer, norm


@torch.no_grad()
def _merge(layer: Conv | Linear, scale: Tensor, shift: Tensor) -> None:
    """Let `layer` return scale * output + shift; the products are formed in float64 and rounded once."""
    weight = layer.weight if layer.weight_transform is None else layer.weight_transform(layer.weight)
    layer.weight_transform = None
    wide, shift = scale.to(weight.device).double(), shift.to(weight.device).double()
    bias = shift if layer.bias is None else wide * layer.bias + shift
    rows = wide.view(-1, *(1,) * (weight.dim() - 1))
    layer.weight = nn.Parameter((rows * weight).to(weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
