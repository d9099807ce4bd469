"""Statistics of the training set: how they drift as weights change, and how well a few samples estimate them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from bnlab.measure.layer_statistics import Statistics, learns_from_batches, running_layers
from bnlab.measure.modes import evaluating, normalizing_as_evaluation, seeded, training_statistics
from bnlab.measure.moments import Moments, chunk_moments
from bnlab.measure.population_statistics import adopted, hooked, plan, population
from bnlab.meters.meter import Meter, Moment, Reading, meters
from bnlab.models.model import norm_layers
from bnlab.norms.strategy import NormLayer
from bnlab.seeding import generator

SAMPLES = 1024
AGES = (1, 10, 100)  # readings
NUMBERS = (16, 64, 256)  # samples of a small batch
BATCHES, IN_BATCHES = 8, 512  # of each size at a reading: so many batches at most, of so many samples in all at most
INPUT = "input"
ByLayer = dict[str, Tensor]  # name -> mean and variance of what enters, float64 of shape (2, C)


@meters.register("statistics")
class StatisticsMeter(Meter):
    """How statistics of the training set drift from reading to reading, and how far those of a few samples are off.

    Of what enters each norm layer (under norm=none, its place), over the first N = 1,024 training samples or as many as
    there are, augmented as in the first epoch, nothing dropped; layers that average batches normalize by these very
    statistics. With mu and sigma of a channel now, mu' and sigma' at the reading before:

    mean_drift_1    |mu - mu'| / sigma, median over channels; mean_drift_10 and _100: since so many readings before
    std_drift_1     |log(sigma / sigma')|, median over channels; std_drift_10 and _100 likewise
    input_drift     the larger of both of the network's input, which is layer `input` at depth 0
    drift_slope     slope of log mean_drift_1 over depth
    mean_error      (mu_n - mu) / sigma, RMS over channels and small batches of n samples in training mode, by layer,
                    axis `n 16`; these are drawn anew from the N at every reading, and so over sqrt((N - n) / (N - 1))
    std_error       sigma_n / sigma - 1, likewise
    error_slope     slope of log mean_error, RMS over the readings so far, over log n: -1/2 by the law of large numbers
    variance_shift  log of the variance with dropout on over that with dropout off, median over channels; where there
                    is dropout

    Drifts and variance_shift are by layer too; of the network, drifts and error_slope are the median over layers, nan
    where there is no such reading, and variance_shift is the one farthest from 0. Slopes are of least squares.
    Source of variance_shift: Li et al., "Understanding the disharmony between dropout and batch normalization", 2018.
    """

    def read(self, at: Moment) -> Iterable[Reading]:
        model = at.copy()
        with torch.no_grad(), at.precision():
            own = _of_averaging(at, model)
            with adopted(model, own), evaluating(model):
                now = _statistics(at, model, own)
            yield from self._drifts(now)
            yield from self._errors(at, model, now)
            if any(isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules()):
                with adopted(model, own), normalizing_as_evaluation(model):
                    seeded(0)
                    yield from _variance_shift(now, _statistics(at, model, {}))

    def _drifts(self, now: ByLayer) -> Iterator[Reading]:
        past: list[ByLayer] = self.memory.get("past", [])
        for age in AGES:
            before = past[-age] if age <= len(past) else None
            drifts = {name: _drift(now[name], before[name]) for name in now} if before else {}
            for depth, (name, both) in enumerate(drifts.items()):
                for figure, value in zip(("mean", "std"), both, strict=True):
                    yield Reading(f"{figure}_drift_{age}", value, name, depth)
            hidden = [both for name, both in drifts.items() if name != INPUT]
            for place, figure in enumerate(("mean", "std")):
                yield Reading(f"{figure}_drift_{age}", _middle([both[place] for both in hidden]))
            if age == 1:
                yield Reading("input_drift", max(drifts[INPUT]) if drifts else math.nan)
                yield Reading("drift_slope", _slope(range(1, 1 + len(hidden)), [mean for mean, _ in hidden]))
        self.memory["past"] = [*past, now][-max(AGES) :]

    def _errors(self, at: Moment, model: nn.Module, now: ByLayer) -> Iterator[Reading]:
        numbers = [n for n in NUMBERS if 2 * n <= _number(at)]
        sums: dict[str, list[float]] = self.memory.setdefault("squares", {})  # of mean_error, over readings
        for place, n in enumerate(numbers):
            for depth, (name, squares) in enumerate(_of_small_batches(at, model, now, n).items(), 1):
                mean, std = squares.tolist()
                sums.setdefault(name, [0.0] * len(numbers))[place] += mean
                yield Reading("mean_error", math.sqrt(mean), name, depth, f"n {n}")
                yield Reading("std_error", math.sqrt(std), name, depth, f"n {n}")
        slopes = [_slope([math.log(n) for n in numbers], each) / 2 for each in sums.values()]
        yield Reading("error_slope", _middle(slopes))


def _number(at: Moment) -> int:
    return min(SAMPLES, len(at.training_set))


def _of_averaging(at: Moment, model: nn.Module) -> Statistics:
    """Return the statistics of the layers that average batches, each with those before it normalized by theirs."""
    takers = {layer: _number(at) for layer in running_layers(model) if learns_from_batches(layer)}
    return population(model, replace(plan(model, takers, at.training_set), dropped=False))


def _statistics(at: Moment, model: nn.Module, known: Statistics) -> ByLayer:
    """Return those of the network's input and of every norm layer's, as the model acts now; some are `known`."""
    names = {layer: name for name, layer in norm_layers(model)}
    asked = {layer: name for layer, name in names.items() if layer not in known}
    gathered = {name: Moments() for name in (INPUT, *asked.values())}
    with hooked(asked, lambda layer, x: gathered[asked[layer]].add(x)):
        for images, _ in at.training_set.in_order(torch.arange(_number(at)), at.batch_size):
            gathered[INPUT].add(images)
            if asked:
                model(images)
    found = {name: moments.result() for name, moments in gathered.items()}
    found |= {names[layer]: both for layer, both in known.items() if layer in names}
    return {name: torch.stack(found[name]).cpu() for name in (INPUT, *names.values())}


def _drift(now: Tensor, before: Tensor) -> tuple[float, float]:
    """Return the median over channels of |mu - mu'| / sigma and of |log(sigma / sigma')|; not of constant ones."""
    varies = now[1] > 0
    (mean, var), (old_mean, old_var) = now[:, varies], before[:, varies]
    return _median((mean - old_mean).abs() / var.sqrt()), _median((var / old_var).log().abs() / 2)


def _of_small_batches(at: Moment, model: nn.Module, whole: ByLayer, n: int) -> dict[str, Tensor]:
    """Return the mean square error of mean and deviation, of batches of n samples, as that of independent draws."""
    names = {layer: name for name, layer in norm_layers(model)}
    squares: dict[str, list[Tensor]] = {name: [] for name in names.values()}

    def look(layer: NormLayer, x: Tensor) -> None:
        squares[names[layer]].append(_squares(torch.stack(chunk_moments(x)).cpu(), whole[names[layer]]))

    total = _number(at)
    rows = torch.randperm(total, generator=generator(at.training_set.seed, "probes", at.step))
    rows = rows[: n * min(BATCHES, min(total, IN_BATCHES) // n)]
    with training_statistics(model) as start_again, hooked(names, look):
        for images, _ in at.training_set.in_order(rows, n):
            start_again()
            model(images)
    return {name: torch.stack(each).mean(0) * (total - 1) / (total - n) for name, each in squares.items()}


def _squares(small: Tensor, whole: Tensor) -> Tensor:
    """Return the means over channels of ((mu_n - mu) / sigma)^2 and (sigma_n / sigma - 1)^2; not of constant ones."""
    varies = whole[1] > 0
    (mean, var), (of_n, var_of_n) = whole[:, varies], small[:, varies]
    both = torch.stack([(of_n - mean) / var.sqrt(), (var_of_n / var).sqrt() - 1])
    return both.square().mean(1) if varies.any() else torch.zeros(2, dtype=torch.float64)


def _variance_shift(off: ByLayer, on: ByLayer) -> Iterator[Reading]:
    shifts = {}
    for name in [name for name in off if name != INPUT]:
        varies = off[name][1] > 0
        shifts[name] = _median((on[name][1][varies] / off[name][1][varies]).log())
        yield Reading("variance_shift", shifts[name], name, len(shifts))
    yield Reading("variance_shift", max(shifts.values(), key=abs, default=0.0))


def _median(values: Tensor) -> float:
    """Return the median, of an even number the mean of the two in the middle; 0 of none."""
    return values.quantile(0.5).item() if len(values) else 0.0


def _middle(values: Sequence[float]) -> float:
    """Return the median of those that are numbers; nan of none."""
    return statistics.median([value for value in values if not math.isnan(value)] or [math.nan])


def _slope(x: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of log values over x by least squares; nan with fewer than 2 values that have a logarithm."""
    points = [(at, math.log(value)) for at, value in zip(x, values, strict=True) if 0 < value < math.inf]
    if len(points) < 2:
        return math.nan
    return statistics.linear_regression(*zip(*points, strict=True)).slope
