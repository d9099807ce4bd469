"""The conformance card, third part: what must be exact, to rounding or to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.conformance.own_code import described
from bnlab.conformance.proving import Measured, apart, gradients, proves, worst
from bnlab.conformance.subject import SEEDS, Bench, Trial
from bnlab.norms.strategy import Facts, NormLayer

EXACT = "exact"
STEPS = (3e-4, 1e-6)  # of the finite differences, in standard deviations; the small one rarely meets a kink
SLOPE = 1e-6  # of fourth-order differences: step^4 times the fifth derivative, and rounding over the step

State = dict[str, Tensor]  # parameters or buffers by name


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

        def value(distance: float, directions: list[Tensor] = directions) -> float:
            module, leaves = _moved(trial, directions, distance)
            return float((module(leaves[0]).detach() * probe).sum())

        error = _slope_error(value, expected)
        yield error / size if size > 0 else error


def _moved(trial: Trial, directions: list[Tensor], distance: float) -> tuple[nn.Module, list[Tensor]]:
    """Return the module in training and its leaves, the input and all parameters, at a distance along directions."""
    module = trial.copy().train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, direction in zip(parameters, directions[1:], strict=True):
            p.add_(direction, alpha=distance)
    return module, [(trial.x + distance * directions[0]).requires_grad_(), *parameters]


def _slope_error(value: Callable[[float], float], expected: float) -> float:
    """Return how far the slope at 0 is from `expected`: differences of fourth order, by the better of two steps."""
    errors = []
    for step in STEPS:
        near, far = (value(distance) - value(-distance) for distance in (step, 2 * step))
        errors.append(abs((8 * near - far) / (12 * step) - expected))
    return min(errors)


@proves("twice", EXACT, "2nd", expects=lambda facts, bench: facts.exact_gradient)
def twice(bench: Bench) -> Measured:
    """Differentiated twice: what finite differences say.

    Double backward against differences of the gradient, for the input and all parameters of a training step.
    """
    _everything(bench.trials[0], True, bench.trials[0].x)  # what does not train at all does not refuse
    try:
        return Measured(worst(error for trial in bench.trials for error in _bend_errors(trial)), SLOPE)
    except RuntimeError as error:
        return Measured(None, flaw=f"refuses: {described(error)}")


def _bend_errors(trial: Trial) -> Iterator[float]:
    """Yield, for one random direction, the product with the Hessian of a sum of outputs and of one of their squares.

    A plain sum hands down a gradient that depends on nothing, with which a faulty backward pass may not be noticed.
    """
    learned = [p for p in trial.trained.parameters() if p.requires_grad]
    probe, *directions = (
        trial.random(*t.shape, salt=3 + index) for index, t in enumerate([trial.x, trial.x, *learned])
    )
    others = [trial.random(*t.shape, salt=50 + index) for index, t in enumerate([trial.x, *learned])]
    for squared in (False, True):

        def slope(distance: float, again: bool = False, squared: bool = squared) -> tuple[list[Tensor], Tensor]:
            module, leaves = _moved(trial, others, distance)
            y = module(leaves[0])
            grads = gradients(y.square() if squared else y, leaves, probe, again=again)
            return leaves, torch.stack([(g * d).sum() for g, d in zip(grads, directions, strict=True)]).sum()

        def value(distance: float, slope: Callable[..., tuple[list[Tensor], Tensor]] = slope) -> float:
            return float(slope(distance)[1].detach())

        leaves, along = slope(0.0, again=True)
        bends = [torch.zeros_like(leaf) for leaf in leaves]
        if along.requires_grad:
            bends = gradients(along, leaves, torch.ones_like(along))
        expected = sum((bend * other).sum().item() for bend, other in zip(bends, others, strict=True))
        size = sum(bend.square().sum().item() for bend in bends) ** 0.5
        error = _slope_error(value, expected)
        yield error / size if size > 0 else error


@proves("vmap", EXACT, "vmap", expects=lambda facts, bench: facts.exact_gradient)
def vmap(bench: Bench) -> Measured:
    """torch.func trains stacked copies as each alone.

    vmap over copies with parameters, statistics and batches of their own: outputs, statistics and gradients; and the
    tangent of jvp is that of the gradient.
    """
    groups = [bench.trials[start : start + SEEDS] for start in range(0, len(bench.trials), SEEDS)]
    _everything(bench.trials[0], True, bench.trials[0].x)
    try:
        return Measured(worst(error for trials in groups for error in _stacked_errors(trials)))
    except RuntimeError as error:
        return Measured(None, flaw=f"refuses: {described(error)}")


def _stacked_errors(trials: Sequence[Trial]) -> Iterator[float]:
    """Yield how far a training step of stacked copies is from that of each copy by itself."""
    modules = [trial.copy().train() for trial in trials]
    probe, towards = (trials[0].random(*trials[0].x.shape, salt=salt) for salt in (3, 5))

    def step(parameters: State, buffers: State, x: Tensor) -> tuple[Tensor, State, tuple[State, Tensor], Tensor]:
        def loss(parameters: State, x: Tensor) -> tuple[Tensor, tuple[Tensor, State]]:
            own = {key: buffer.clone() for key, buffer in buffers.items()}
            y = torch.func.functional_call(modules[0], (parameters, own), (x.clone(),))
            return (y * probe).sum(), (y, own)

        grads, (y, moved) = torch.func.grad(loss, argnums=(0, 1), has_aux=True)(parameters, x)
        tangent = torch.func.jvp(lambda x: loss(parameters, x)[0], (x,), (towards,))[1]
        return y, moved, grads, tangent

    parameters, buffers = torch.func.stack_module_state(modules)
    detached = {key: value.detach() for key, value in parameters.items()}
    outputs, moved, (grads, at_inputs), tangents = torch.vmap(step)(
        detached, buffers, torch.stack([trial.x for trial in trials])
    )
    for index, (trial, module) in enumerate(zip(trials, modules, strict=True)):
        leaf = trial.x.clone().requires_grad_()
        y = module(leaf)
        own = dict(module.named_parameters())
        at_input, *alone = gradients(y, [leaf, *own.values()], probe)
        yield apart(y, outputs[index])
        yield apart(at_input, at_inputs[index])
        yield from (apart(g, grads[key][index]) for key, g in zip(own, alone, strict=True))
        yield from (apart(buffer, moved[key][index]) for key, buffer in module.named_buffers())
        yield abs((at_input * towards).sum().item() - tangents[index].item()) / max(at_input.norm().item(), 1e-12)


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
