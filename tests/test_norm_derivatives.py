"""Second derivatives and torch.func: every strategy has them, or refuses by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_cases import for_each
from helpers_norms import ids, laid_out, sample
from helpers_workers import on_workers
from torch import Tensor, nn

from bnlab.distributed import Workers
from bnlab.norms.strategy import strategies

pytestmark = [  # what torch says of its own ways
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]
REFUSING = ["renorm", "online"]
OTHERS = [name for name in strategies if name not in REFUSING]
OWN: dict[str, list[dict[str, Any]]] = {
    "batch": [{"momentum": None}, {"stat_samples": 3}, {"stat_stride": 2}],
    "ghost": [{"size": 2}, {"size": 3, "update": "sequential"}],
    "group": [{"groups": 2}],
    "layer": [{"over": "channel"}],
    "rms": [{"over": "channel"}],
    "streaming": [{"momentum": 1.0}, {"momentum": None}],
    "weight_std": [{"groups": 2}],
}
CASES = [
    (name, {**p, **common})
    for name in OTHERS
    for p in OWN.get(name, [{}])
    for common in ({}, {"affine": False}, {"eps_outside": True})
]
INPUTS = [((5, 4), "contiguous"), ((5, 4, 3, 2), "contiguous"), ((5, 4, 3, 2), "channels_last")]
Case = tuple[str, dict[str, Any]]
Step = Callable[..., Tensor]


def module_of(case: Case, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """A trained layer with the activation that belongs to it, parameters and statistics away from their start."""
    strategy = strategies[case[0]](**{**({"groups": 2} if case[0] in ("group", "weight_std") else {}), **case[1]})
    parts = [part for part in (strategy.layer(shape[1]), strategy.activation(shape[1])) if part is not None]
    module = nn.Sequential(*parts).double().train()
    draw = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    for key, buffer in module.named_buffers():
        if buffer.is_floating_point():
            drawn = torch.rand(buffer.shape, generator=draw, dtype=buffer.dtype)
            buffer.copy_(drawn + 0.5 if key.endswith("var") else drawn)
    return module


def step_of(module: nn.Module) -> tuple[Step, list[Tensor]]:
    """A training step as a function of the input and the parameters, from the same statistics each time."""
    names = [name for name, _ in module.named_parameters()]

    def step(x: Tensor, *parameters: Tensor) -> Tensor:
        buffers = {key: buffer.clone() for key, buffer in module.named_buffers()}
        own = {**dict(zip(names, parameters, strict=True)), **buffers}
        y: Tensor = torch.func.functional_call(module, own, (x,))
        return y

    return step, [p.detach() for p in module.parameters()]


def defined(case: Case, shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 or not strategies[case[0]](**case[1]).facts.needs_space


@pytest.mark.slow
@for_each(("shape", "layout"), INPUTS, ids=str)
@for_each("case", CASES, ids=ids)
def test_gradients_can_be_differentiated(case: Case, shape: tuple[int, ...], layout: str) -> None:
    if defined(case, shape):
        step, parameters = step_of(module_of(case, shape))
        inputs = [t.clone().requires_grad_() for t in (laid_out(sample(shape), layout), *parameters)]
        assert torch.autograd.gradcheck(step, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(step, inputs, fast_mode=True)


@for_each(("shape", "layout"), INPUTS, ids=str)
@for_each("case", CASES, ids=ids)
def test_products_with_the_hessian(case: Case, shape: tuple[int, ...], layout: str) -> None:
    """jvp of grad, double backward and forward mode agree with differences of plain gradients."""
    if not defined(case, shape):
        return
    step, parameters = step_of(module_of(case, shape))
    at = [laid_out(sample(shape), layout), *parameters]
    along = [sample(tuple(t.shape), 7 + k) for k, t in enumerate(at)]

    def loss(*inputs: Tensor) -> Tensor:
        return step(*inputs).sin().sum()

    def gradient(*inputs: Tensor, again: bool = False) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in inputs]
        return list(torch.autograd.grad(loss(*leaves), leaves, create_graph=again))

    h = 1e-5
    ahead, back = (gradient(*(t + s * h * d for t, d in zip(at, along, strict=True))) for s in (1, -1))
    wanted = [(a - b) / (2 * h) for a, b in zip(ahead, back, strict=True)]
    places = tuple(range(len(at)))
    _, products = torch.func.jvp(torch.func.grad(loss, argnums=places), tuple(at), tuple(along))
    leaves = [t.clone().requires_grad_() for t in at]
    slopes = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    twice = torch.autograd.grad(sum((g * d).sum() for g, d in zip(slopes, along, strict=True)), leaves)  # type: ignore[arg-type]
    for product, second, value in zip(products, twice, wanted, strict=True):
        torch.testing.assert_close(product, value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(second, product, rtol=1e-8, atol=1e-9)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(t, d) for t, d in zip(at, along, strict=True)]
        tangent = torch.autograd.forward_ad.unpack_dual(loss(*duals)).tangent
    assert tangent is not None
    expected = sum((g * d).sum() for g, d in zip(slopes, along, strict=True))
    torch.testing.assert_close(tangent, expected.detach())  # type: ignore[union-attr]


@for_each(("shape", "layout"), INPUTS, ids=str)
@for_each("case", CASES, ids=ids)
def test_stacked_seeds_train_as_each_alone(case: Case, shape: tuple[int, ...], layout: str) -> None:
    """vmap over three seeds: outputs, gradients and statistics."""
    if not defined(case, shape):
        return
    seeds = range(3)
    modules = [module_of(case, shape, seed) for seed in seeds]
    xs = [laid_out(sample(shape, seed), layout) for seed in seeds]

    def step(parameters: Any, buffers: Any, x: Tensor) -> Any:
        def loss(parameters: Any, x: Tensor) -> Any:
            own = {key: buffer.clone() for key, buffer in buffers.items()}
            y = torch.func.functional_call(modules[0], (parameters, own), (x,))
            return y.sin().sum(), (y, own)

        return torch.func.grad(loss, argnums=(0, 1), has_aux=True)(parameters, x)

    parameters, buffers = torch.func.stack_module_state(modules)
    stacked = torch.cat(xs).unflatten(0, (3, -1))
    (at_parameters, at_x), (y, moved) = torch.vmap(step)(
        {key: value.detach() for key, value in parameters.items()}, buffers, stacked
    )
    for seed, module in zip(seeds, modules, strict=True):
        x = xs[seed].clone().requires_grad_()
        alone = module(x)
        alone.sin().sum().backward()
        torch.testing.assert_close(y[seed], alone.detach())
        torch.testing.assert_close(at_x[seed], x.grad)
        for key, p in module.named_parameters():
            torch.testing.assert_close(at_parameters[key][seed], p.grad)
        for key, buffer in module.named_buffers():
            torch.testing.assert_close(moved[key][seed], buffer)


@for_each("eps_outside", [False, True])
@for_each("name", REFUSING)
def test_what_has_no_second_derivative_refuses_by_name(name: str, eps_outside: bool) -> None:
    for shape in ((5, 4), (5, 4, 3, 2)):
        module = module_of((name, {"eps_outside": eps_outside}), shape)
        step, parameters = step_of(module)
        x = sample(shape).requires_grad_()
        torch.autograd.grad(step(x, *parameters).sum(), x)  # a first one it has
        for loss in (step(x, *parameters).sum(), step(x, *parameters).square().sum()):
            with pytest.raises(RuntimeError, match=f"norm={name} has no second derivative"):
                torch.autograd.grad(loss, x, create_graph=True)
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            with pytest.raises(RuntimeError, match=f"norm={name} does not train under"):
                transform(step)(x.detach(), *parameters)
        module.eval()
        assert torch.autograd.gradgradcheck(module, (x,), fast_mode=True)


def test_refusing_is_what_the_facts_declare() -> None:
    assert [name for name in strategies if not strategies[name]().facts.exact_gradient] == sorted(REFUSING)


def test_first_derivatives_are_those_of_the_kernels() -> None:
    """With create_graph the formula serves: the same gradient, to rounding, also where one input is made of another."""
    for case in CASES:
        module = module_of(case, (5, 4, 3, 2))
        step, parameters = step_of(module)
        x = sample((5, 4, 3, 2)).requires_grad_()
        scaled = [p * x.mean() for p in parameters]
        y = step(x, *scaled).sin().sum()
        plain, again = (torch.autograd.grad(y, x, create_graph=c, retain_graph=True)[0] for c in (False, True))
        torch.testing.assert_close(again.detach(), plain, rtol=1e-10, atol=1e-11)


SYNC: list[dict[str, Any]] = [{}, {"eps_outside": True}, {"affine": False}]


def second_derivatives(workers: Workers) -> list[list[Tensor]]:
    mine = slice(*workers.shard(6))
    found = []
    with workers.together(torch.device("cpu"), 30.0):
        for p in SYNC:
            layer = strategies["sync"](**p).layer(3).double()
            found.append(first_and_second(layer, mine))
            with pytest.raises(RuntimeError, match="norm=sync does not train"):
                torch.func.grad(lambda x, layer=layer: layer(x).sum())(sample((2, 3)))
    return found


def first_and_second(layer: nn.Module, samples: slice) -> list[Tensor]:
    x, probe = sample((6, 3, 2, 2))[samples].clone().requires_grad_(), sample((6, 3, 2, 2), 5)[samples]
    (g,) = torch.autograd.grad((layer(x).sin() * probe).sum(), x, create_graph=True)
    return [g.detach(), *torch.autograd.grad((g * g).sum(), x)]


@pytest.mark.slow
def test_workers_have_the_second_derivative_of_the_whole_batch() -> None:
    parts = on_workers(2, second_derivatives)
    for place, p in enumerate(SYNC):
        whole = first_and_second(strategies["batch"](**p).layer(3).double(), slice(None))
        for order, wanted in enumerate(whole):
            torch.testing.assert_close(torch.cat([part[place][order] for part in parts]), wanted)
