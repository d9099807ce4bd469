"""Statistics of a whole set of images under the current weights, in chunks of bounded memory; the model comes back.

The images are taken as training sees them, augmented and with dropout: a batch's statistics and their running averages
are of those. Or they are plain, where a set is evaluated. One draw of each serves all passes.

`population` goes layer after layer: a layer's statistics are taken with the layers before it already normalized by
theirs, so that they equal those of one forward pass of batch normalization with the batch = the whole set. Each layer
costs a forward pass over the set, stopped at that layer; a set that is small enough takes one pass for all layers. The
order is that of execution, seen by hooks, whatever the order in which the model registered its layers. A layer that a
pass calls again and again with pieces of the batch has the statistics of all of them.

`precise` is one pass with the layers as in training, pooled over all its batches, as others recalibrate (Wu and
Johnson, "Rethinking Batch in BatchNorm", 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.errors import IncompatibleError
from bnlab.measure.layer_statistics import Statistics, adopt, gatherer, kept, running_layers, statistics_of
from bnlab.measure.modes import (
    as_training,
    evaluating,
    normalizing_as_evaluation,
    preserved,
    restored,
    seeded,
    training_statistics,
)
from bnlab.norms.batch import subset_of
from bnlab.norms.formula import count_per_channel

# Bytes of the widest activation of a chunk. Where the whole set takes no more than WHOLE_BYTES, one pass serves all
# layers; otherwise a chunk takes CHUNK_BYTES. On one CPU core: a ResNet-20 over 400 CIFAR-sized images (26 MB) took
# 0.56 s in one pass, 4.7 s layer by layer; a CNN over 1,000 MNIST images (100 MB) 0.34 s in one pass, 0.16 s in chunks.
WHOLE_BYTES = {"cpu": 32 * 2**20, "cuda": 2**30}
CHUNK_BYTES = {"cpu": 5 * 2**20, "cuda": 2**29}
L = TypeVar("L", bound=nn.Module)
Takers = Mapping[nn.Module, int | None]  # layers, each with the number of samples its statistics are over; None: all


LOOKED = 8  # images that tell order, width and mode of the layers' inputs; some layers cannot take a single one


class Reached(Exception):
    """The forward pass has come to the layer it was for."""


@dataclass(frozen=True)
class StatisticsPlan:
    """Whose statistics to take, over which images, and how; it holds as long as the model's structure does."""

    takers: Takers  # in order of execution; one that no forward pass comes to is not among them
    images: Batches
    samples: int  # the first so many are needed
    chunk: int  # are taken at a time
    augmented: bool = False  # the images, as in training
    dropped: bool = False  # all but the normalization layers act as in training: dropout
    in_pieces: frozenset[nn.Module] = field(default_factory=frozenset)  # called more than once in a pass
    rows_are_images: bool = True  # in every layer's input
    watch: Callable[[float], None] = lambda share: None  # told how far it is where it takes a pass a layer, from 0 to 1

    @property
    def in_one_pass(self) -> bool:
        """Whether all samples are taken at once, so that one forward pass serves all layers."""
        whole = self.rows_are_images or all((limit or self.samples) >= self.samples for limit in self.takers.values())
        return self.chunk >= self.samples and not self.in_pieces and whole

    @property
    def plain(self) -> bool:
        """Whether evaluation sees the images so too."""
        return not (self.augmented or self.dropped)

    def needed(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return what of the layer's input its statistics are over, where all samples came in one pass."""
        limit = self.takers[layer]
        return x if limit is None or limit >= self.samples else x[:limit]

    def acting(self, model: nn.Module) -> AbstractContextManager[object]:
        """Return the context in which the forward passes run."""
        return normalizing_as_evaluation(model) if self.dropped else evaluating(model)

    def batches(self) -> Iterator[Tensor]:
        """Yield the images in chunks; every pass over them drops and augments alike."""
        if self.dropped:
            seeded(0)
        for images, _ in self.images.sequential(self.chunk, augmented=self.augmented):
            yield images


def plan(
    model: nn.Module, takers: Takers, images: Batches, chunk: int | None = None, *, plain: bool = False
) -> StatisticsPlan:
    """Return how to take the statistics of `takers` over their first so many of `images`.

    A few samples go through the model, as in training and as in evaluation, and tell the order and the width of the
    layers' inputs, and whether they depend on the mode; a whole chunk tells how often each layer is called. `chunk` is
    the number of samples at a time; None: by the constants above. `plain`: not augmented, without dropout. Errors:
    IncompatibleError when a layer is called more than once with the same samples.
    """
    if not takers:
        return StatisticsPlan({}, images, 0, 1)
    augmented = images.augment.active and not plain
    first = next(images.sequential(LOOKED, augmented=augmented))[0]
    with torch.no_grad(), preserved(model), evaluating(model):  # older torch writes into InstanceNorm here
        seen = _calls(model, takers, first)
        if plain:
            dropped = False
        else:
            with normalizing_as_evaluation(model):
                seeded(0)
                dropped = _differ(seen, _calls(model, takers, first)) or _drops_at_times(model)
    for layer, inputs in seen.items():
        if len(inputs) > 1 and max(map(len, inputs)) >= len(first):
            name = next(name for name, module in model.named_modules() if module is layer)
            raise IncompatibleError(
                f"layer {name}: called more than once in a forward pass, so its statistics are ambiguous\n"
                "give each call a layer of its own"
            )
    order = {layer: takers[layer] for layer in seen}
    samples = max((min(limit or len(images), len(images)) for limit in order.values()), default=0)
    widest = max([first.nbytes, *(sum(x.nbytes for x in inputs) for inputs in seen.values())]) // len(first)
    if chunk is None:
        kind = first.device.type
        whole = samples * widest <= WHOLE_BYTES.get(kind, 0)
        chunk = max(1, samples if whole else CHUNK_BYTES.get(kind, CHUNK_BYTES["cpu"]) // widest)
    counts: dict[nn.Module, int] = {}
    if chunk > len(first):
        with (
            torch.no_grad(),
            preserved(model),
            evaluating(model),
            hooked(takers, lambda layer, _: _count(counts, layer)),
        ):
            model(next(images.sequential(min(chunk, len(images))))[0])
        order = {layer: takers[layer] for layer in {**counts, **seen}}  # a few images may not come to all
    in_pieces = {layer for layer, inputs in seen.items() if max(len(inputs), counts.get(layer, 1)) > 1}
    rows_are_images = all(len(x) == len(first) for inputs in seen.values() for x in inputs)
    return StatisticsPlan(order, images, samples, chunk, augmented, dropped, frozenset(in_pieces), rows_are_images)


def _calls(model: nn.Module, layers: Iterable[nn.Module], images: Tensor) -> dict[nn.Module, list[Tensor]]:
    """Return the inputs of each layer in one forward pass, by call, in order of execution."""
    seen: dict[nn.Module, list[Tensor]] = {}
    with hooked(layers, lambda layer, x: seen.setdefault(layer, []).append(x.clone())):
        model(images)
    return seen


def _count(counts: dict[nn.Module, int], layer: nn.Module) -> None:
    counts[layer] = counts.get(layer, 0) + 1


def _differ(one: Mapping[nn.Module, list[Tensor]], other: Mapping[nn.Module, list[Tensor]]) -> bool:
    pairs = [(inputs, other.get(layer, [])) for layer, inputs in one.items()]
    return any(len(a) != len(b) or not all(map(torch.equal, a, b)) for a, b in pairs)


def _drops_at_times(model: nn.Module) -> bool:
    """Return whether whole paths are dropped, which a few samples may not show."""
    return any(
        "droppath" in kind or "stochasticdepth" in kind for kind in (type(m).__name__.lower() for m in model.modules())
    )


def population(model: nn.Module, how: StatisticsPlan, factors: Mapping[nn.Module, float] | None = None) -> Statistics:
    """Return the statistics of the planned layers under the current weights, in order of execution.

    The variance is the biased one (1/n); a layer in `factors` has it times its factor, also for the layers behind it.
    The other normalization layers act as in evaluation. Modes, buffers and random states come back, also after an
    exception.
    """
    statistics: Statistics = {}
    if not how.takers:
        return statistics
    with torch.no_grad(), how.acting(model), restored(model):
        if how.in_one_pass:
            _in_one_pass(model, how, factors or {}, statistics)
            return statistics
        for number, layer in enumerate(how.takers, 1):
            gathered = gatherer(layer)
            for x in inputs_of(model, layer, how):
                gathered.add(x)
            statistics[layer] = _scaled(*gathered.result(), (factors or {}).get(layer, 1.0))
            adopt(layer, *statistics[layer])
            how.watch((number / len(how.takers)) ** 2)  # a pass ends at its layer
    return statistics


def population_of(model: nn.Module, images: Batches, *, plain: bool = False) -> Statistics:
    """Return the statistics over all of `images` of every layer that keeps some. Errors: as of `plan`."""
    return population(model, plan(model, dict.fromkeys(running_layers(model)), images, plain=plain))


def _scaled(mean: Tensor, var: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    return mean, var * factor


def _in_one_pass(
    model: nn.Module, how: StatisticsPlan, factors: Mapping[nn.Module, float], statistics: Statistics
) -> None:
    """Each layer takes its statistics from the one chunk there is, and at once normalizes it with them."""

    def take(layer: nn.Module, x: Tensor) -> None:
        statistics[layer] = _scaled(*statistics_of(layer, how.needed(layer, x)), factors.get(layer, 1.0))
        adopt(layer, *statistics[layer])
        if len(statistics) == len(how.takers):
            raise Reached

    with hooked(how.takers, take), suppress(Reached):
        model(next(how.batches())[: how.samples])


def inputs_of(model: nn.Module, layer: nn.Module, how: StatisticsPlan) -> Iterator[Tensor]:
    """Yield chunk by chunk, call by call, what `layer` would normalize, of the samples that its statistics are over.

    The forward pass is stopped there, so the layers behind do not run, unless the layer may be called again.
    """
    inputs: list[Tensor] = []

    def look(layer: nn.Module, x: Tensor) -> None:
        inputs.append(x)
        if layer not in how.in_pieces:
            raise Reached

    left = how.takers[layer] or len(how.images)
    for batch in how.batches():
        with hooked([layer], look), suppress(Reached):
            model(batch[:left])
        yield from inputs
        inputs.clear()
        left -= len(batch)
        if left <= 0:
            return


def precise(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, plain: bool = False) -> Statistics:
    """Return the statistics of every layer in one pass in which the model acts as in training.

    Mean and biased variance over all values of all batches and calls. `plain`: only the normalization layers act so,
    without dropout. Modes, buffers, counts and random states come back.
    """
    layers = running_layers(model)
    gathered = {layer: gatherer(layer) for layer in layers}
    acting = training_statistics(model) if plain else as_training(model)
    with torch.no_grad(), acting, hooked(layers, lambda layer, x: gathered[layer].add(x)):
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
def mixed_with_batch(
    model: nn.Module, prior: float, layers: Sequence[nn.Module] | None = None, stride: int = 1
) -> Iterator[None]:
    """Evaluate each batch with its own statistics mixed into those in the layers, the source.

    With n images in the batch, mean = N/(N + n) source + n/(N + n) batch, and the variance (biased) likewise, layer by
    layer, N = `prior` (Schneider et al., "Improving robustness against common corruptions by covariate shift
    adaptation", 2020). prior=0: the batch's own; one that has a single value a channel keeps the source's.
    `layers`: whose; None: all that keep statistics. `stride`: the batch's are from every k-th row and column.
    """
    layers = running_layers(model) if layers is None else layers
    source = {layer: kept(layer) for layer in layers}
    images = 0  # of the batch; a layer's input may have several rows an image, or be a piece of the batch

    def count(_: nn.Module, batch: Tensor) -> None:
        nonlocal images
        images = len(batch)

    def mix(layer: nn.Module, x: Tensor) -> None:
        x = subset_of(x, stride, None)
        if prior == 0 and count_per_channel(x) == 1:
            adopt(layer, *source[layer])
            return
        own = statistics_of(layer, x)
        if prior == 0:
            adopt(layer, *own)
            return
        number = min(len(x), images)
        share = number / (prior + number)
        mean, var = (old.lerp(new, share) for old, new in zip(source[layer], own, strict=True))
        adopt(layer, mean, var)

    with restored(model), hooked([model], count), hooked(layers, mix):
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
