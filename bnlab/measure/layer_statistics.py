"""The normalization layers of any model, bnlab's own or others', and the statistics that they keep.

Whatever has `running_mean` and `running_var` keeps statistics: bnlab's layers, torch's BatchNorm1d to 3d, SyncBatchNorm
and InstanceNorm with `track_running_stats`, and modules of other libraries that go by the same names; those with a
`momentum` average batches.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from bnlab.measure.moments import InstanceMoments, Moments
from bnlab.norms.formula import count_per_channel
from bnlab.norms.running import RunningLayer
from bnlab.norms.strategy import NormLayer, fraction_left

KINDS = (NormLayer, _NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
LEAST_SHOWN = 0.001  # a smaller share of the initial statistics changes nothing that could bear it out
Statistics = dict[nn.Module, tuple[Tensor, Tensor]]  # of a layer: mean and variance, float64 of shape (C,)


def normalizations(model: nn.Module) -> dict[str, nn.Module]:
    """Return name -> layer of every normalization in `model`, in module order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, KINDS) or keeps_statistics(layer)}


def running_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers with running statistics, in module order."""
    return [layer for layer in model.modules() if keeps_statistics(layer)]


def keeps_statistics(layer: nn.Module) -> bool:
    """Return whether evaluation can normalize with statistics that the layer holds."""
    return isinstance(getattr(layer, "running_mean", None), Tensor) and isinstance(
        getattr(layer, "running_var", None), Tensor
    )


def kept(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return copies of a layer's running mean and variance, float64 of shape (C,)."""
    return cast(Tensor, layer.running_mean).double().clone(), cast(Tensor, layer.running_var).double().clone()


def adopt(layer: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Put a mean and a variance, shape (C,) each, in place of a layer's running ones."""
    cast(Tensor, layer.running_mean).copy_(mean)
    cast(Tensor, layer.running_var).copy_(var)


def learns_from_batches(layer: nn.Module) -> bool:
    """Return whether a layer with statistics normalizes with those of its batch in training, and averages them."""
    if isinstance(layer, RunningLayer):
        return layer.refresh_every is None
    return keeps_statistics(layer) and (isinstance(layer, _NormBase) or hasattr(layer, "momentum"))


def reads_batch_in_evaluation(model: nn.Module) -> bool:
    """Return whether a batch norm of torch's keeps no statistics, and evaluates with those of the batch it is given."""
    return any(isinstance(layer, _BatchNorm) and not keeps_statistics(layer) for layer in model.modules())


def values_read(layer: nn.Module, x: Tensor) -> int | None:
    """Return over how many values of its input `x` a training step takes the biased variance it divides by.

    None: it divides by something else.
    """
    if isinstance(layer, RunningLayer):
        return layer.values_read(x)
    if isinstance(layer, _InstanceNorm):
        return count_per_channel(x) // x.shape[0]
    return count_per_channel(x) if isinstance(layer, _BatchNorm) else None


def initial_left(layer: nn.Module) -> float | None:
    """Return the share of mean 0 and variance 1 in a layer's running statistics, from its momentum and its updates.

    None: they are no moving average that started there, or its updates were not counted, as by torch's instance norm
    and in some published weights.
    """
    if isinstance(layer, RunningLayer):
        left = layer.initial_left()
    elif isinstance(layer, _NormBase) and isinstance(layer.num_batches_tracked, Tensor):
        left = fraction_left(layer.momentum, int(layer.num_batches_tracked))
    else:
        return None
    if left == 1.0:
        mean, var = kept(layer)
        return 1.0 if not mean.any() and bool((var == 1).all()) else None
    return left


def distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], scale: Tensor) -> float:
    """Return the mean over channels of dmean^2/scale + dvar^2/(2 scale^2); `scale` is a variance.

    A channel whose scale is 0 is left out.
    """
    apart = (one[0] - other[0]).square() / scale + ((one[1] - other[1]) / scale).square() / 2
    return apart[scale != 0].mean().item()


def initial_shown(layer: nn.Module, population: tuple[Tensor, Tensor]) -> float | None:
    """Return `initial_left` where the running statistics bear it out; None where they do not.

    A count may have been lost and a momentum changed. Statistics that hold a share of mean 0 and variance 1 are nearer
    to the population's mixed with it than to the population's.
    """
    left = initial_left(layer)
    if left is None or left < LEAST_SHOWN:
        return left
    mean, var = population
    mixed = ((1 - left) * mean, (1 - left) * var + left)
    held = kept(layer)
    return left if distance(held, mixed, var) < distance(held, population, var) else None


def gatherer(layer: nn.Module) -> Moments | InstanceMoments:
    """Return what gathers, over chunks of a layer's input, the statistics that its running ones estimate."""
    return InstanceMoments() if isinstance(layer, _InstanceNorm) else Moments()


def statistics_of(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return those statistics of one input `x`: mean and variance, float64 of shape (C,)."""
    gathered = gatherer(layer)
    gathered.add(x)
    return gathered.result()
