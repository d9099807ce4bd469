"""Statistics of a whole set of images under the current weights, in chunks of bounded memory; the model comes back.

`population` goes layer after layer: a layer's statistics are taken with the layers before it already normalized by
theirs, so that they equal those of one forward pass of batch normalization with the batch = the whole set. Each layer
costs a forward pass over the set, stopped at that layer; a set that is small enough takes one pass for all layers. The
order is that of execution, seen by hooks, whatever the order in which the model registered its layers.

`precise` is one pass with the layers as in training, pooled over all its batches, as others recalibrate (Wu and
Johnson, "Rethinking Batch in BatchNorm", 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.errors import IncompatibleError
from bnlab.measure.layer_statistics import Statistics, adopt, gatherer, kept, running_layers, statistics_of
from bnlab.measure.modes import evaluating, restored, training_statistics
from bnlab.norms.formula import count_per_channel

# Bytes of the widest activation of a chunk. Where the whole set takes no more than WHOLE_BYTES, one pass serves all
# layers; otherwise a chunk takes CHUNK_BYTES. On one CPU core: a ResNet-20 over 400 CIFAR-sized images (26 MB) took
# 0.56 s in one pass, 4.7 s layer by layer; a CNN over 1,000 MNIST images (100 MB) 0.34 s in one pass, 0.16 s in chunks.
WHOLE_BYTES = {"cpu": 32 * 2**20, "cuda": 2**30}
CHUNK_BYTES = {"cpu": 5 * 2**20, "cuda": 2**29}
L = TypeVar("L", bound=nn.Module)
Takers = Mapping[nn.Module, int | None]  # layers, each with the number of samples its statistics are over; None: all


class Reached(Exception):
    """The forward pass has come to the layer it was for; `input` is what that layer would normalize."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.input = x


@dataclass(frozen=True)
class StatisticsPlan:
    """Whose statistics to take, over which images, and how; it holds as long as the model's structure does."""

    takers: Takers  # in order of execution; one that no forward pass comes to is not among them
    images: Batches
    samples: int  # the first so many are needed
    chunk: int  # are taken at a time

    @property
    def in_one_pass(self) -> bool:
        """Whether all samples are taken at once, so that one forward pass serves all layers."""
        return self.chunk >= self.samples


def plan(model: nn.Module, takers: Takers, images: Batches, chunk: int | None = None) -> StatisticsPlan:
    """Return how to take the statistics of `takers` over their first so many of `images`.

    One sample goes through the model in evaluation mode and tells the order and the width of the layers' inputs.
    `chunk` is the number of samples at a time; None: by the constants above. Errors: IncompatibleError when a layer is
    called more than once.
    """
    order: dict[nn.Module, int | None] = {}
    if not takers:
        return StatisticsPlan(order, images, 0, 1)
    first, _ = next(images.sequential(1))
    widest = first.nbytes

    def look(layer: nn.Module, x: Tensor) -> None:
        nonlocal widest
        if layer in order:
            name = next(name for name, module in model.named_modules() if module is layer)
            raise IncompatibleError(
                f"layer {name}: called more than once in a forward pass, so its statistics are ambiguous\n"
                "give each call a layer of its own"
            )
        order[layer] = takers[layer]
        widest = max(widest, x.nbytes)

    with torch.no_grad(), evaluating(model), hooked(takers, look):
        model(first)
    samples = max((min(limit or len(images), len(images)) for limit in order.values()), default=0)
    if chunk is None:
        kind = first.device.type
        whole = samples * widest <= WHOLE_BYTES.get(kind, 0)
        chunk = max(1, samples if whole else CHUNK_BYTES.get(kind, CHUNK_BYTES["cpu"]) // widest)
    return StatisticsPlan(order, images, samples, chunk)


def population(model: nn.Module, how: StatisticsPlan, factors: Mapping[nn.Module, float] | None = None) -> Statistics:
    """Return the statistics of the planned layers under the current weights, in order of execution.

    The variance is the biased one (1/n); a layer in `factors` has it times its factor, also for the layers behind it.
    The other layers act as in evaluation; dropout and augmentation are off. Modes and buffers come back, also after an
    exception.
    """
    statistics: Statistics = {}
    if not how.takers:
        return statistics
    with torch.no_grad(), evaluating(model), restored(model):
        if how.in_one_pass:
            _in_one_pass(model, how, factors or {}, statistics)
            return statistics
        for layer in how.takers:
            gathered = gatherer(layer)
            for x in inputs_of(model, layer, how):
                gathered.add(x)
            statistics[layer] = _scaled(*gathered.result(), (factors or {}).get(layer, 1.0))
            adopt(layer, *statistics[layer])
    return statistics


def population_of(model: nn.Module, images: Batches) -> Statistics:
    """Return the statistics over all of `images` of every layer that keeps some. Errors: as of `plan`."""
    return population(model, plan(model, dict.fromkeys(running_layers(model)), images))


def _scaled(mean: Tensor, var: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    return mean, var * factor


def _in_one_pass(
    model: nn.Module, how: StatisticsPlan, factors: Mapping[nn.Module, float], statistics: Statistics
) -> None:
    """Each layer takes its statistics from the one chunk there is, and at once normalizes it with them."""

    def take(layer: nn.Module, x: Tensor) -> None:
        statistics[layer] = _scaled(*statistics_of(layer, x[: how.takers[layer]]), factors.get(layer, 1.0))
        adopt(layer, *statistics[layer])
        if len(statistics) == len(how.takers):
            raise Reached(x)

    batch, _ = next(how.images.sequential(how.samples))
    with hooked(how.takers, take), suppress(Reached):
        model(batch)


def inputs_of(model: nn.Module, layer: nn.Module, how: StatisticsPlan) -> Iterator[Tensor]:
    """Yield chunk by chunk what `layer` would normalize, of the samples that its statistics are over.

    The forward pass is stopped there, so the layers behind do not run.
    """

    def stop(layer: nn.Module, x: Tensor) -> None:
        raise Reached(x)

    left = how.takers[layer] or len(how.images)
    for batch, _ in how.images.sequential(how.chunk):
        try:
            with hooked([layer], stop):
                model(batch[:left])
        except Reached as reached:
            yield reached.input
        left -= len(batch)
        if left <= 0:
            return


def precise(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Statistics:
    """Return the statistics of every layer in one pass in which all norm layers act as in training.

    Mean and biased variance over all values of all batches. Modes, buffers and counts come back.
    """
    layers = running_layers(model)
    gathered = {layer: gatherer(layer) for layer in layers}
    with torch.no_grad(), training_statistics(model), hooked(layers, lambda layer, x: gathered[layer].add(x)):
        for images, _ in batches:
            model(images)
    return {layer: moments.result() for layer, moments in gathered.items() if moments.count}


@contextmanager
def adopted(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Put `statistics` into their layers; the buffers come back, also after an exception."""
    with restored(model):
        for layer, (mean, var) in statistics.items():
            adopt(layer, mean, var)
        yield


@contextmanager
def mixed_with_batch(model: nn.Module, prior: float, layers: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Evaluate each batch with its own statistics mixed into those in the layers, the source.

    With n samples in the batch, mean = N/(N + n) source + n/(N + n) batch, and the variance (biased) likewise, layer by
    layer, N = `prior` (Schneider et al., "Improving robustness against common corruptions by covariate shift
    adaptation", 2020). prior=0: the batch's own; one that has a single value a channel keeps the source's.
    `layers`: whose; None: all that keep statistics.
    """
    layers = running_layers(model) if layers is None else layers
    source = {layer: kept(layer) for layer in layers}

    def mix(layer: nn.Module, x: Tensor) -> None:
        if prior == 0 and count_per_channel(x) == 1:
            adopt(layer, *source[layer])
            return
        own = statistics_of(layer, x)
        if prior == 0:
            adopt(layer, *own)
            return
        share = len(x) / (prior + len(x))
        mean, var = (old.lerp(new, share) for old, new in zip(source[layer], own, strict=True))
        adopt(layer, mean, var)

    with restored(model), hooked(layers, mix):
        yield


@contextmanager
def hooked(layers: Iterable[L], look: Callable[[L, Tensor], None]) -> Iterator[None]:
    """Call `look(layer, input)` before each forward of `layers`."""

    def before(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        look(cast(L, layer), (*inputs, *named.values())[0])

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield
