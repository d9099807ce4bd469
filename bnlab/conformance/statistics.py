"""The conformance card, fourth part: the statistics of a batch, per channel, and what follows from them.

Each is undefined for a strategy that reads no batch; one that reads a part of it, or more, does not have them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bnlab.conformance.proving import Measured, Undefined, apart, gradients, proves, worst
from bnlab.conformance.subject import Bench, Trial, give_statistics
from bnlab.norms.formula import batch_axes, moments, per_channel
from bnlab.norms.strategy import Facts

STATISTICS = "statistics"
PARTS = (1, 2, 4)  # samples of the first parts of a batch; the rest is another one
SMALL = (1.0, 1e-2, 1e-3)  # standard deviations beside epsilon's root


def _undeclared(facts: Facts, bench: Bench) -> bool | None:
    return None


def _reads_batch(bench: Bench) -> bool:
    return bench.facts is None or bench.facts.reads_batch or bench.facts.reads_training_set


@proves("merged", STATISTICS, "merge", expects=_undeclared)
def merged(bench: Bench) -> Measured | None:
    """Statistics of parts, merged, are those of one call.

    Count, mean and squared deviations of four parts, merged as Chan, Golub and LeVeque (1979) do, and the formula with
    them: what a training step on the whole batch returns.
    """
    if not _reads_batch(bench):
        return None
    errors = []
    for trial in bench.trials:
        whole, parts = trial.train(trial.x), trial.x.split([*PARTS, len(trial.x) - sum(PARTS)])
        count, mean, m2 = 0, torch.zeros(()), torch.zeros(())
        for part in parts:
            own_mean, own_var = moments(part, batch_axes(part))
            number = part.numel() // part.shape[1]
            apart_by, total = own_mean - mean, count + number
            m2 = m2 + own_var * number + apart_by.square() * (count * number / total)
            mean, count = mean + apart_by * (number / total), total
        errors.append(apart(whole, _formula(trial, trial.x, mean, m2 / count)))
    return Measured(worst(errors))


def _formula(trial: Trial, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Return what the layer makes of `x` with given statistics: those of the layer itself, in evaluation."""
    if (layer := _layer(trial.trained)) is None:
        raise Undefined("no gamma, beta and eps to write its formula with")
    scale = 1 / (var.sqrt() + layer.eps if getattr(layer, "eps_outside", False) else (var + layer.eps).sqrt())
    y: Tensor = (x - mean) * scale
    y = y if layer.weight is None else y * per_channel(layer.weight, x)
    return y if layer.bias is None else y + per_channel(layer.bias, x)


def _layer(module: nn.Module) -> Any:
    """Return the first part with an epsilon, its gamma and beta with it; None without one."""
    return next((part for part in module.modules() if isinstance(getattr(part, "eps", None), float)), None)


@proves("chain", STATISTICS, "chain", expects=_undeclared)
def chain(bench: Bench) -> Measured | None:
    """Set by set, layer after layer: one forward pass.

    Two layers with a linear one between, evaluated with the statistics of the whole set, each taken behind the ones
    before it, return what one training step on the whole set as its batch does.
    """
    if not _reads_batch(bench) or (bench.facts is not None and not bench.facts.keeps_stats):
        return None
    errors = []
    for trial in bench.trials:
        weights = trial.random(bench.channels, bench.channels, salt=1) / bench.channels**0.5
        one, other = trial.x, trial.x
        for _ in range(2):
            layer = trial.copy().eval()
            if not give_statistics(layer, other):
                return None
            one, other = trial.train(one, statistics_of=one), layer(other.clone())
            one, other = (torch.einsum("nk...,ck->nc...", z, weights).contiguous() for z in (one, other))
        errors.append(apart(one, other))
    return Measured(worst(errors))


@proves("moments", STATISTICS, "moments", expects=_undeclared)
def moments_after(bench: Bench) -> Measured | None:
    """Mean 0, deviation s/√(s²+ε), of each channel.

    Without gamma and beta, for channels whose standard deviation s is 1, 0.01 and 0.001: 1 only where ε is small
    beside s².
    """
    if not _reads_batch(bench):
        return None
    errors = []
    for trial in bench.trials:
        fresh = Trial(trial.subject, trial.subject.make(bench.channels).double(), trial.x, trial.seed)
        unit, _ = _standardized(trial.x)
        sizes = torch.tensor(SMALL, dtype=torch.float64).repeat(bench.channels)[: bench.channels]
        x = unit * per_channel(sizes, trial.x)
        y = fresh.train(x, statistics_of=x)
        expected = _formula(fresh, x, *moments(x, batch_axes(x)))
        mean, var = moments(y, batch_axes(y))
        errors.append(mean.abs().max().item())
        errors.append(apart(moments(expected, batch_axes(x))[1].sqrt(), var.sqrt()))
    return Measured(worst(errors))


def _standardized(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = moments(x, batch_axes(x))
    return (x - mean) / var.sqrt(), var


@proves("undone", STATISTICS, "undo", expects=_undeclared)
def undone(bench: Bench) -> Measured | None:
    """Gamma and beta can undo it: √(s²+ε) and the mean."""
    if not _reads_batch(bench):
        return None
    errors = []
    for trial in bench.trials:
        module = trial.copy().train()
        layer = _layer(module)
        if layer is None or not all(p is not None and p.numel() == bench.channels for p in (layer.weight, layer.bias)):
            return None
        mean, var = moments(trial.x, batch_axes(trial.x))
        outside = getattr(layer, "eps_outside", False)
        with torch.no_grad():
            layer.weight.copy_((var.sqrt() + layer.eps if outside else (var + layer.eps).sqrt()).flatten())
            layer.bias.copy_(mean.flatten())
        errors.append(apart(trial.x, module(trial.x.clone())))
    return Measured(worst(errors))


@proves("buffers", STATISTICS, "buffers")
def buffers(bench: Bench) -> Measured | None:
    """Statistics are saved, and not learned.

    They are in the state dict, a fresh layer that loads it evaluates alike; no optimizer is given them, since they are
    no parameters, and no gradient reaches them.
    """
    if bench.facts is not None and not bench.facts.keeps_stats:
        return None
    errors = []
    for trial in bench.trials:
        module = trial.copy().train()
        kept = [*module.named_buffers(), *(each for each in module.named_parameters() if "running_" in each[0])]
        held = {name: value for name, value in kept if value.is_floating_point()}
        if not held:
            return None
        leaf = trial.x.clone().requires_grad_()
        gradients(module(leaf), [leaf], trial.random(*trial.x.shape))
        for name, value in held.items():
            if value.requires_grad or name not in module.state_dict():
                return Measured(None, flaw=f"{name} is learned, or not in the state dict")
        fresh = trial.subject.make(bench.channels).double()
        fresh.load_state_dict(trial.copy().state_dict())
        errors.append(apart(trial.evaluate(trial.x), fresh.eval()(trial.x.clone())))
    return Measured(worst(errors), 0.0)
