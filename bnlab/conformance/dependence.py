"""The conformance card, first part: what the output depends on, and what leaves it unmoved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bnlab.conformance.proving import Measured, apart, gradients, proves, worst
from bnlab.conformance.subject import Bench, Subject, Trial

INDEPENDENT, UNMOVED = "independent of", "unmoved by"
SIZES = (1, 2, 7)  # of evaluation batches
INPUTS = 7  # of the linear layer or 1x1 convolution in front
CANCELLED = 1e-8  # what is left of a gradient that cancels: sums of many terms
OWN_EPS = 1e-3  # how far a module may be moved through an epsilon that cannot be taken away

Front = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


# ---------------------------------------------------------------- independent of


@proves("mates_train", INDEPENDENT, "mates train", expects=lambda facts, bench: not facts.reads_batch)
def mates_train(bench: Bench) -> Measured:
    """In training, batch mates do not change an output."""
    return Measured(worst(_by_mates(trial, trial.train) for trial in bench.trials))


@proves("mates_eval", INDEPENDENT, "mates eval")
def mates_eval(bench: Bench) -> Measured:
    """In evaluation, batch mates do not change an output."""
    return Measured(worst(_by_mates(trial, trial.evaluate) for trial in bench.trials))


def _by_mates(trial: Trial, output: Callable[[Tensor], Tensor]) -> float:
    """Change all samples but the last, then all but the first: the order in the batch may matter."""
    whole, moved = output(trial.x), trial.x * 2 + 1
    errors = []
    for kept in (0, -1):
        other = moved.clone()
        other[kept] = trial.x[kept]
        errors.append(apart(whole[kept], output(other)[kept]))
    return worst(errors)


@proves("size_eval", INDEPENDENT, "size eval")
def size_eval(bench: Bench) -> Measured:
    """In evaluation, batches of 1, 2, 7 and all agree."""

    def error(trial: Trial, size: int) -> float:
        module = trial.copy().eval()
        return apart(trial.evaluate(trial.x), torch.cat([module(part.clone()) for part in trial.x.split(size)]))

    return Measured(worst(error(trial, size) for trial in bench.trials for size in SIZES))


@proves("mode", INDEPENDENT, "mode", expects=lambda facts, bench: not facts.reads_batch)
def mode(bench: Bench) -> Measured:
    """Training and evaluation agree on the same batch."""
    return Measured(worst(apart(trial.train(trial.x), trial.evaluate(trial.x)) for trial in bench.trials))


@proves(*("past", INDEPENDENT, "past"), expects=lambda facts, bench: not facts.keeps_stats or facts.reads_training_set)
def past(bench: Bench) -> Measured:
    """Evaluation ignores the batches trained on.

    A step of other data changes nothing: there are no statistics, or they come from outside.
    """

    def error(trial: Trial) -> float:
        module = trial.copy()
        module.train()(trial.x * 2 + 1)
        return apart(trial.evaluate(trial.x), module.eval()(trial.x.clone()))

    return Measured(worst(error(trial) for trial in bench.trials))


@proves("workers", INDEPENDENT, "workers", expects=lambda facts, bench: None if facts.reads_batch else True)
def workers(bench: Bench) -> Measured:
    """Two workers with half a batch each train as one.

    Each normalizes its own half, as without communication. It is ghost batches of half a batch that do so.
    """
    errors = []
    for trial in bench.trials:
        x = trial.x[: 2 * bench.full]
        halves = [trial.train(half, statistics_of=x) for half in x.chunk(2)]
        errors.append(apart(trial.train(x, statistics_of=x), torch.cat(halves)))
    return Measured(worst(errors))


# ---------------------------------------------------------------- unmoved by


@proves("bias", UNMOVED, "bias", expects=lambda facts, bench: facts.cancels_bias)
def bias(bench: Bench) -> Measured:
    """A bias before it, one for each channel, is dead."""
    spread = torch.linspace(-2, 3, bench.channels, dtype=torch.float64)
    return _dead(bench, torch.zeros_like(spread), spread, lambda w, b: (w, b))


@proves("shift", UNMOVED, "shift", expects=lambda facts, bench: facts.cancels_shift)
def shift(bench: Bench) -> Measured:
    """A bias common to all channels is dead."""
    zero = torch.zeros(1, dtype=torch.float64)
    return _dead(bench, zero, zero + 3, lambda w, b: (w, b.expand(bench.channels)))


@proves("scale", UNMOVED, "scale", expects=lambda facts, bench: facts.cancels_scale)
def scale(bench: Bench) -> Measured:
    """A positive factor on the weights before it is dead.

    Up to epsilon, which is next to nothing here; that of a module without an attribute `eps` stays.
    """
    limit, remark = OWN_EPS, "with its own epsilon"
    if (subject := bench.subject.without_eps()) is not None:
        bench, limit, remark = Bench(replace(subject, facts=bench.facts)), CANCELLED, ""
    one = torch.ones(1, dtype=torch.float64)
    common = _dead(bench, one, one * 3, lambda w, s: (s.view(-1, 1) * w, None), limit)
    spread = torch.linspace(0.5, 3, bench.channels, dtype=torch.float64)
    each = _dead(bench, torch.ones_like(spread), spread, lambda w, s: (s.view(-1, 1) * w, None), limit)
    which = "each channel's own too" if each.holds else "one common to all channels only"
    notes = [remark, common.note, which if common.holds else ""]
    return Measured(common.error, limit, "; ".join(note for note in notes if note))


def _dead(bench: Bench, start: Tensor, moved: Tensor, front: Front, limit: float = CANCELLED) -> Measured:
    """Move a parameter of the layer in front from `start` to `moved`; `front` makes its weights and bias of it.

    The error is the smaller of two: the change of the training output, and the gradient at `start`, relative to the
    gradient of the output of that layer times its change. Statistics of the training set are taken again where that is
    declared.
    """
    by_output, by_gradient = [], []
    for trial in bench.trials:
        inputs = trial.random(len(trial.x), INPUTS, *trial.x.shape[2:])
        weights = trial.random(bench.channels, INPUTS, salt=1)
        theta = start.clone().requires_grad_()
        before = _layer(bench.subject, inputs, *front(weights, theta))
        after = _layer(bench.subject, inputs, *front(weights, moved))
        follows = bench.facts is None or bench.facts.refreshes
        output = trial.train(before, statistics_of=before)
        by_output.append(apart(output, trial.train(after, statistics_of=after if follows else before)))
        probe = trial.random(*output.shape, salt=2)
        at_theta, at_input = gradients(output, [theta, before], probe)
        size = (at_input.norm() * (after - before).square().mean().sqrt()).item()
        gradient = at_theta.abs().max().item()
        by_gradient.append(gradient / size if size > 0 else gradient)
    output_error, gradient_error = worst(by_output), worst(by_gradient)
    if output_error <= limit or output_error <= gradient_error:
        return Measured(output_error, limit, "by output" if output_error <= limit else "")
    return Measured(gradient_error, limit, "by gradient" if gradient_error <= limit else "")


def _layer(subject: Subject, inputs: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a linear layer or 1x1 convolution makes of its inputs."""
    if subject.transform is not None:
        weights = subject.transform(weights)
    z = torch.einsum("nk...,ck->nc...", inputs, weights).contiguous()
    return z if bias is None else z + bias.view(-1, *(1,) * (z.dim() - 2))
