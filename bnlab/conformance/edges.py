"""The conformance card, second part: edge cases, low precision and memory layouts."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bnlab.conformance.proving import ROUNDING, Measured, apart, flaw_of, gradients, proves, worst
from bnlab.conformance.subject import Bench, Trial
from bnlab.norms.formula import batch_axes, is_channels_last, moments
from bnlab.norms.strategy import NormLayer

COPES = "copes with"
OFFSET = 1e4  # in standard deviations of the noise
FLOAT32 = 0.05  # float32 holds 1e4 + noise to 1e-3 of the noise, and a mean of three such values to a few of these
GROWTH = 2.0  # of what epsilon alone allows: means of a few values vary, too
BFLOAT16 = 0.05  # values of up to 5 standard deviations, 8 bits


@proves("one_sample", COPES, "N=1")
def one_sample(bench: Bench) -> Measured:
    """One sample trains: finite, or by the batch policy.

    The batch policy: one value a channel is normalized with the running statistics, and counted. Independent samples
    come out as in a larger batch.
    """
    errors, notes = [], []
    for trial in bench.trials:
        edges = [trial.x[:1]] if trial.x.dim() == 2 else [trial.x[:1], _one_pixel_of(trial.x[:1])]
        for x in edges:
            module = trial.copy()
            if flaw := flaw_of(module.train(), x):
                return Measured(None, flaw=f"{flaw} for {tuple(x.shape)}")
            if bench.facts is None:
                continue
            counted = sum(m.num_unnormalizable for m in module.modules() if isinstance(m, NormLayer))
            one_value = x.numel() == x.shape[1]
            if bool(counted) != (bench.facts.needs_batch and one_value):
                return Measured(None, flaw=f"counted {counted} batches as not normalizable for {tuple(x.shape)}")
            if counted:
                errors.append(apart(trial.evaluate(x), trial.train(x)))
                notes.append("one value a channel: counted")
            elif not bench.facts.reads_batch and x.shape[2:] == trial.x.shape[2:]:
                errors.append(apart(trial.train(trial.x)[:1], trial.train(x)))
    return Measured(worst(errors) if errors else None, note=notes[0] if notes else "")


@proves("one_pixel", COPES, "1×1")
def one_pixel(bench: Bench) -> Measured | None:
    """Images of one pixel train, as an input (N, C) does."""
    errors = []
    if not bench.spatial:
        return None
    for trial in bench.spatial:
        x = _one_pixel_of(trial.x)
        if flaw := flaw_of(trial.copy().train(), x):
            return Measured(None, flaw=flaw)
        if bench.takes_flat:
            errors += [apart(trial.train(x.flatten(1)).view_as(x), trial.train(x))]
            errors += [apart(trial.evaluate(x.flatten(1)).view_as(x), trial.evaluate(x))]
    return Measured(worst(errors) if errors else None)


def _one_pixel_of(x: Tensor) -> Tensor:
    for axis in range(2, x.dim()):
        x = x.narrow(axis, 0, 1)
    return x.contiguous()


@proves("ragged", COPES, "ragged")
def ragged(bench: Bench) -> Measured:
    """Batches with a remainder are normalized as others.

    Finite, and with mean 0 and variance 1 of each channel if a batch without a remainder has them.
    """
    subject = bench.subject.without_eps() or bench.subject
    errors, kept = [], set()
    for trial in bench.trials:
        fresh = Trial(subject, subject.make(bench.channels).double(), trial.x, trial.seed)
        even = trial.x[: 2 * bench.full]
        for size in range(len(even) + 1, len(trial.x) + 1):
            if flaw := flaw_of(fresh.copy().train(), trial.x[:size]):
                return Measured(None, flaw=f"{flaw} for {size} samples")
            for name, without in _moments_off(fresh, even).items():
                if without <= ROUNDING:
                    errors.append(_moments_off(fresh, trial.x[:size])[name])
                    kept.add(name)
    note = f"by {' and '.join(sorted(kept))}" if kept else ""
    return Measured(worst(errors) if errors else None, note=note)


def _moments_off(trial: Trial, x: Tensor) -> dict[str, float]:
    """Return how far the training output is from mean 0 and mean square 1 of each channel."""
    values = trial.train(x, statistics_of=x).detach().transpose(0, 1).flatten(1)
    mean, square = values.mean(1), values.square().mean(1)
    return {"mean": mean.abs().max().item(), "variance": (square - 1).abs().max().item()}


@proves("one_class", COPES, "one class")
def one_class(bench: Bench) -> Measured:
    """Equal samples: finite; almost equal: float32 holds.

    That is, output and gradient; and float32 agrees with float64.
    """
    errors = []
    for trial in bench.trials:
        same = trial.x[:1].expand_as(trial.x).contiguous()
        if flaw := flaw_of(trial.copy(same).train(), same):
            return Measured(None, flaw=flaw)
        errors.append(_float32_error(trial, same + 1e-3 * trial.random(*same.shape)))
    return Measured(worst(errors), FLOAT32)


@proves("constant", COPES, "const")
def constant(bench: Bench) -> Measured:
    """A constant channel is finite, and float32 holds."""
    errors = []
    for trial in bench.trials:
        x = trial.x.clone()
        x[:, 0] = 0.75  # exact in float32, as are its sums: no rounding to divide by a small epsilon
        if flaw := flaw_of(trial.copy(x).train(), x):
            return Measured(None, flaw=flaw)
        errors.append(_float32_error(trial, x))
    return Measured(worst(errors), FLOAT32)


@proves("offset", COPES, "+1e4")
def offset(bench: Bench) -> Measured:
    """Unit noise on an offset of 1e4: float32 holds.

    It agrees with float64 contiguous and in channels_last, in training and in the evaluation after it.
    """
    errors = []
    for trial in bench.trials:
        x = OFFSET + trial.random(*trial.x.shape)
        errors.append(_float32_error(trial, x))
        if x.dim() == 4:
            errors.append(_float32_error(trial, x.contiguous(memory_format=torch.channels_last)))
    return Measured(worst(errors), FLOAT32)


def _float32_error(trial: Trial, x: Tensor) -> float:
    """Return how far float32 is from float64 on the same numbers: a training step, then evaluation."""
    narrow = trial.copy(x).float()
    wide = copy.deepcopy(narrow).double()
    x = x.float()
    errors = []
    for training in (True, False):
        errors.append(apart(wide.train(training)(x.double()), narrow.train(training)(x)))
    return worst(errors)


@proves("small", COPES, "small", expects=lambda facts, bench: not facts.adds_noise)
def small(bench: Bench) -> Measured:
    """Noise of 1e-6 grows by 1/√ε at most: finite.

    By 1/ε with epsilon outside of the root. Without epsilon, noise of any size would come out with a standard deviation
    of 1.
    """
    growths = []
    for trial in bench.trials:
        fresh = Trial(trial.subject, trial.subject.make(bench.channels).double(), trial.x, trial.seed)
        x = 1e-6 * trial.random(*trial.x.shape)
        if flaw := flaw_of(fresh.copy(x).train(), x):
            return Measured(None, flaw=flaw)
        spread, before = (moments(z, batch_axes(z))[1].sqrt() for z in (fresh.train(x, statistics_of=x), x))
        growths.append((spread / before).max().item() * min(map(_least, fresh.trained.modules())))
    return Measured(worst(growths), GROWTH, "of that")


def _least(part: Any) -> float:
    """Return the least that a layer divides by; infinity for what has no epsilon."""
    eps = getattr(part, "eps", None)
    if not isinstance(eps, float):
        return math.inf
    return eps if getattr(part, "eps_outside", False) else eps**0.5


@proves("bfloat16", COPES, "bf16")
def bfloat16(bench: Bench) -> Measured:
    """bfloat16 in, bfloat16 out, close to float32.

    The parameters are float32, and both get the same numbers.
    """
    return _narrow(bench, torch.bfloat16)


@proves("float16", COPES, "fp16")
def float16(bench: Bench) -> Measured:
    """float16 in, float16 out, close to float32."""
    return _narrow(bench, torch.float16)


def _narrow(bench: Bench, dtype: torch.dtype) -> Measured:
    errors = []
    for trial in bench.trials:
        narrow = trial.x.to(dtype)
        for training in (True, False):
            module = trial.copy().float().train(training)
            wide = copy.deepcopy(module)(narrow.float())
            if flaw := flaw_of(copy.deepcopy(module), narrow):
                return Measured(None, BFLOAT16, flaw=flaw)
            y = module(narrow)
            if y.dtype != dtype:
                return Measured(apart(wide, y), BFLOAT16, flaw=f"returns {str(y.dtype).removeprefix('torch.')}")
            errors.append(apart(wide, y))
    return Measured(worst(errors), BFLOAT16)


@proves("layout", COPES, "layout")
def layout(bench: Bench) -> Measured:
    """channels_last, strided input: same, layout kept.

    Outputs and gradients are those of a contiguous input; the output of channels_last is channels_last.
    """
    errors = []
    for trial in bench.trials:
        probe = trial.random(*trial.x.shape)
        for training in (True, False):
            reference = _output_and_gradient(trial, trial.x, training, probe)
            for x in _layouts(trial.x):
                got = _output_and_gradient(trial, x, training, probe)
                errors += [apart(a, b) for a, b in zip(reference, got, strict=True)]
                if is_channels_last(x) and not got[0].is_contiguous(memory_format=torch.channels_last):
                    return Measured(worst(errors), flaw="the output of channels_last is not channels_last")
    return Measured(worst(errors))


def _layouts(x: Tensor) -> Iterator[Tensor]:
    """Yield the same numbers laid out otherwise."""
    if x.dim() == 2:
        yield x.t().contiguous().t()
        return
    yield x.movedim(1, -1).contiguous().movedim(-1, 1)
    n, c, first, *rest = x.shape
    larger = x.new_zeros(n, 2 * c, 2 * first, *rest)
    part = larger[:, ::2, ::2]
    part.copy_(x)
    yield part


def _output_and_gradient(trial: Trial, x: Tensor, training: bool, probe: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach()
    leaf.requires_grad_()
    y = trial.copy().train(training)(leaf)
    return y, gradients(y, [leaf], probe)[0]
