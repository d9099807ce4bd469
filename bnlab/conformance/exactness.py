"""The conformance card, third part: what must be exact, to rounding or to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.conformance.proving import Measured, apart, gradients, proves, worst
from bnlab.conformance.subject import Bench, Trial
from bnlab.norms.strategy import Facts, NormLayer

EXACT = "exact"
STEPS = (3e-4, 1e-6)  # of the finite differences, in standard deviations; the small one rarely meets a kink
SLOPE = 1e-6  # of fourth-order differences: step^4 times the fifth derivative, and rounding over the step


def _folds(facts: Facts, bench: Bench) -> bool | None:
    return _affine_map(bench.trials[0].copy()) is not None


def _affine_map(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the scale and shift that the layer declares, if it is one that may."""
    return next((part.affine_map() for part in module.modules() if isinstance(part, NormLayer)), None)


@proves("folding", EXACT, "fold", expects=_folds)
def folding(bench: Bench) -> Measured:
    """Evaluation merges into the layer before it.

    That is, it is one scale and shift a channel: a convolution or linear layer with merged weights gives the same.
    """
    errors = []
    for trial in bench.trials:
        module = trial.copy().eval()
        scale, shift = _scale_and_shift(module, trial.x)
        space = {2: (), 3: (8,), 4: (6, 5), 5: (4, 5, 4)}[trial.x.dim()]
        weights = trial.random(bench.channels, 5, *[3] * len(space), salt=1)
        bias = trial.random(bench.channels, salt=2)
        inputs = trial.random(len(trial.x), 5, *space)
        before = (F.linear, F.conv1d, F.conv2d, F.conv3d)[len(space)]
        merged = weights * scale.view(-1, *(1,) * (weights.dim() - 1))
        errors.append(apart(module(before(inputs, weights, bias)), before(inputs, merged, shift + scale * bias)))
    return Measured(worst(errors))


def _scale_and_shift(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the map that the layer declares, or the one through its outputs for all zeros and all ones."""
    if (declared := _affine_map(module)) is not None:
        return declared
    zero, one = (module(torch.full_like(x, value)).detach() for value in (0.0, 1.0))
    at_zero, at_one = (y.transpose(0, 1).flatten(1)[:, 0] for y in (zero, one))
    return at_one - at_zero, at_zero


@proves("gradient", EXACT, "grad", expects=lambda facts, bench: facts.exact_gradient)
def gradient(bench: Bench) -> Measured:
    """The gradient is what finite differences say.

    That of a training step, for the input and all parameters.
    """
    return Measured(worst(error for trial in bench.trials for error in _slope_errors(trial)), SLOPE)


def _slope_errors(trial: Trial) -> Iterator[float]:
    """Yield, along random directions, derivative minus gradient, over the size the gradient has in a random direction.

    Directions of the input and of all parameters, as `torch.autograd.gradcheck(fast_mode=True)` takes them, but with
    differences of fourth order, and with a fresh copy of the module for each evaluation: training leaves traces.
    """
    module = trial.copy().train()
    leaves = [trial.x.clone().requires_grad_(), *(p for p in module.parameters() if p.requires_grad)]
    y = module(leaves[0])
    probe = trial.random(*y.shape, salt=3)
    analytic = gradients(y, leaves, probe)
    for first, last in [(0, 1), (0, 1), (1, len(leaves))]:
        if first == last:
            continue
        directions = [torch.zeros_like(leaf) for leaf in leaves]
        for index in range(first, last):
            directions[index] = trial.random(*leaves[index].shape, salt=5 + index)
        expected = sum((g * d).sum().item() for g, d in zip(analytic, directions, strict=True))
        size = sum(g.square().sum().item() for g in analytic[first:last]) ** 0.5
        error = min(abs(_slope(trial, directions, probe, step) - expected) for step in STEPS)
        yield error / size if size > 0 else error


def _slope(trial: Trial, directions: list[Tensor], probe: Tensor, step: float) -> float:
    near, far = (_difference(trial, directions, probe, distance) for distance in (step, 2 * step))
    return (8 * near - far) / (12 * step)


@torch.no_grad()
def _difference(trial: Trial, directions: list[Tensor], probe: Tensor, step: float) -> float:
    """Return the weighted output one step ahead minus that one step back."""
    sums = []
    for sign in (1, -1):
        module = trial.copy().train()
        parameters = [p for p in module.parameters() if p.requires_grad]
        for p, direction in zip(parameters, directions[1:], strict=True):
            p.add_(direction, alpha=sign * step)
        sums.append((module(trial.x + sign * step * directions[0]) * probe).sum().item())
    return float(sums[0] - sums[1])


@proves("repeat", EXACT, "bits")
def repeat(bench: Bench) -> Measured:
    """Two calls give the same bits.

    Outputs in both modes, gradients and statistics, from the same state.
    """
    errors = []
    for trial in bench.trials:
        probe = trial.random(*trial.x.shape)
        for training in (True, False):
            first, second = (_everything(trial, training, probe) for _ in range(2))
            errors += [apart(a, b) for a, b in zip(first, second, strict=True)]
    return Measured(worst(errors), 0.0)


def _everything(trial: Trial, training: bool, probe: Tensor) -> list[Tensor]:
    module = trial.copy().train(training)
    leaf = trial.x.clone().requires_grad_()
    y = module(leaf)
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [y, *gradients(y, [leaf, *parameters], probe), *module.buffers()]
