"""`sync` over 2 and 3 workers against the written-out formula and `batch` on the whole batch, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers_workers import on_workers
from torch import Tensor

from bnlab.distributed import Workers, shard
from bnlab.norms.running import RunningLayer
from bnlab.norms.strategy import strategies
from bnlab.norms.sync import merged

C, STEPS = 5, 3
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One layer over workers with parts of `sizes` samples."""

    sizes: tuple[int, ...]
    space: tuple[int, ...] = (4, 3)
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float64
    offset: float = 0.0
    params: dict[str, Any] = field(default_factory=dict)
    constant: bool = False


CASES = {
    "equal": Case((4, 4)),
    "unequal": Case((5, 2)),
    "flat": Case((4, 3), space=()),
    "flat-one-sample-each": Case((1, 1), space=()),
    "one-value-here-many-there": Case((1, 6), space=(1, 1)),
    "channels-last": Case((3, 4), layout="channels_last"),
    "not-contiguous": Case((3, 4), layout="strided"),
    "eps-outside": Case((3, 2), params={"eps_outside": True}),
    "eps-outside-flat": Case((1, 4), space=(), params={"eps_outside": True}),
    "cumulative": Case((3, 2), params={"momentum": None}),
    "cumulative-eps-outside": Case((3, 2), params={"momentum": None, "eps_outside": True}),
    "last-only": Case((3, 2), params={"momentum": 1.0, "eps": 1e-3}),
    "not-affine": Case((3, 2), params={"affine": False}),
    "not-affine-eps-outside": Case((3, 2), params={"affine": False, "eps_outside": True}),
    "constant-channel": Case((3, 2), constant=True),
    "constant-channel-eps-outside": Case((3, 2), constant=True, params={"eps_outside": True}),
    "three": Case((2, 2, 2)),
    "three-unequal": Case((3, 1, 4)),
    "three-flat": Case((1, 2, 1), space=()),
    "three-eps-outside": Case((4, 1, 2), params={"eps_outside": True}),
    "offset": Case((40, 24), dtype=torch.float32, offset=1e4),
    "offset-eps-outside": Case((40, 24), dtype=torch.float32, offset=1e4, params={"eps_outside": True}),
    "bfloat16": Case((8, 5), dtype=torch.bfloat16),
    "bfloat16-eps-outside": Case((8, 5), dtype=torch.bfloat16, params={"eps_outside": True}),
}


def batch_of(case: Case, step: int) -> tuple[Tensor, Tensor]:
    """The whole batch of one step, and the gradient that comes back to it."""
    draw = torch.Generator().manual_seed(100 + step)
    shape = (sum(case.sizes), C, *case.space)
    x = torch.randn(shape, generator=draw, dtype=torch.float64) * (1 + step) + case.offset
    x += torch.arange(shape[0], dtype=torch.float64).view(-1, *(1,) * (len(shape) - 1)) * 0.3  # the parts differ
    if case.constant:
        x[:, 1] = 3.0
    gradient = torch.randn(shape, generator=draw, dtype=torch.float64)
    return x.to(case.dtype), gradient.to(case.dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x.repeat_interleave(2, dim=-1)[..., ::2] if layout == "strided" else x.contiguous()


def layer_of(name: str, case: Case) -> RunningLayer:
    layer = strategies[name](**case.params).layer(C)
    assert isinstance(layer, RunningLayer)
    if layer.weight is not None and layer.bias is not None:
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2.0, C))
            layer.bias.copy_(torch.linspace(-1.0, 1.0, C))
    return layer.double() if case.dtype == torch.float64 else layer


def trained(layer: RunningLayer, case: Case, first: int, end: int) -> dict[str, Tensor]:
    """Take a few steps on samples `first` to `end` of each batch; return all that can be seen of it."""
    seen: dict[str, Tensor] = {}
    for step in range(STEPS):
        whole, gradient = batch_of(case, step)
        x = laid_out(whole[first:end], case.layout).detach().requires_grad_()
        y = layer(x)
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        y.backward(gradient[first:end])
        assert x.grad is not None
        seen |= {f"y{step}": y.detach(), f"dx{step}": x.grad}
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None
            seen[f"d{name}{step}"] = parameter.grad
            parameter.grad = None
    with torch.no_grad():
        seen["eval"] = layer.eval()(batch_of(case, 0)[0])
    seen |= {f"buffer {name}": buffer for name, buffer in layer.named_buffers()}
    seen["count"] = torch.tensor(layer.num_unnormalizable)
    return {name: value.contiguous().clone() for name, value in seen.items()}


def part_of_each_case(workers: Workers, size: int) -> dict[str, dict[str, Tensor]]:
    found = {}
    with workers.together(CPU, 30.0):
        for name, case in CASES.items():
            if len(case.sizes) == size:
                first = sum(case.sizes[: workers.rank])
                found[name] = trained(layer_of("sync", case), case, first, first + case.sizes[workers.rank])
    return found


@pytest.fixture(scope="module")
def parts() -> dict[str, list[dict[str, Tensor]]]:
    """What each worker saw, by case."""
    found: dict[str, list[dict[str, Tensor]]] = {}
    for size in (2, 3):
        for seen in on_workers(size, part_of_each_case, size):
            for name, values in seen.items():
                found.setdefault(name, []).append(values)
    return found


def put_together(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Outputs and input gradients side by side, parameter gradients added up; the rest is the same on all workers."""
    whole = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name.startswith(("y", "dx")):
            whole[name] = torch.cat(values)
        elif name.startswith("d"):
            whole[name] = torch.stack(values).sum(0)
        else:
            assert all(torch.equal(values[0], value) for value in values), name
            whole[name] = values[0]
    return whole


EXACT = [name for name, case in CASES.items() if case.dtype == torch.float64]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_workers_do_what_batch_does_on_the_whole_batch(name: str, parts: dict[str, list[dict[str, Tensor]]]) -> None:
    case = CASES[name]
    expected = trained(layer_of("batch", case), case, 0, sum(case.sizes))
    found = put_together(parts[name])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=1e-11, atol=1e-12), key


@pytest.mark.parametrize("name", EXACT)
def test_the_formula_written_out(name: str, parts: dict[str, list[dict[str, Tensor]]]) -> None:
    case = CASES[name]
    found = put_together(parts[name])
    eps, momentum = case.params.get("eps", 1e-5), case.params.get("momentum", 0.1)
    affine = case.params.get("affine", True)
    gamma = (torch.linspace(0.5, 2.0, C) if affine else torch.ones(C)).double().requires_grad_()
    beta = (torch.linspace(-1.0, 1.0, C) if affine else torch.zeros(C)).double().requires_grad_()
    running_mean, running_var = torch.zeros(C).double(), torch.ones(C).double()
    for step in range(STEPS):
        x, gradient = batch_of(case, step)
        x.requires_grad_()
        columns = []
        for channel in range(C):
            values = x[:, channel]
            mean = values.sum() / values.numel()
            var = ((values - mean) ** 2).sum() / values.numel()
            deviation = (var + 1e-300).sqrt() + eps if case.params.get("eps_outside") else (var + eps).sqrt()
            columns.append((values - mean) / deviation * gamma[channel] + beta[channel])
            weight = 1 / (step + 1) if momentum is None else momentum
            unbiased = var.item() * values.numel() / (values.numel() - 1)
            running_mean[channel] += weight * (mean.item() - running_mean[channel])
            running_var[channel] += weight * (unbiased - running_var[channel])
        y = torch.stack(columns, 1)
        dx, dgamma, dbeta = torch.autograd.grad((y * gradient).sum(), [x, gamma, beta])
        assert torch.allclose(found[f"y{step}"], y, rtol=1e-10, atol=1e-12)
        assert torch.allclose(found[f"dx{step}"], dx, rtol=1e-9, atol=1e-11)
        if affine:
            assert torch.allclose(found[f"dweight{step}"], dgamma, rtol=1e-10, atol=1e-11)
            assert torch.allclose(found[f"dbias{step}"], dbeta, rtol=1e-10, atol=1e-11)
    assert torch.allclose(found["buffer running_mean"], running_mean, rtol=1e-12, atol=1e-13)
    assert torch.allclose(found["buffer running_var"], running_var, rtol=1e-12, atol=1e-13)
    assert found["buffer num_batches_tracked"] == STEPS
    assert found["count"] == 0


@pytest.mark.parametrize("name", ["offset", "offset-eps-outside"])
def test_a_large_offset_does_not_cancel(name: str, parts: dict[str, list[dict[str, Tensor]]]) -> None:
    """Float32 at 1e4 is spaced by 0.001: an error of the mean by that much is in the input itself, and no more."""
    found = put_together(parts[name])
    for step in range(STEPS):
        x = batch_of(CASES[name], step)[0].double()
        axes = (0, 2, 3)
        exact = (x - x.mean(axes, keepdim=True)) / x.std(axes, correction=0, keepdim=True)
        exact = exact * torch.linspace(0.5, 2.0, C).view(1, C, 1, 1) + torch.linspace(-1.0, 1.0, C).view(1, C, 1, 1)
        assert (found[f"y{step}"] - exact).abs().max() < 2e-3


@pytest.mark.parametrize("name", ["bfloat16", "bfloat16-eps-outside"])
def test_bfloat16_keeps_its_type_and_statistics_are_float32(
    name: str, parts: dict[str, list[dict[str, Tensor]]]
) -> None:
    case = CASES[name]
    found = put_together(parts[name])
    wide = Case(case.sizes, params=case.params)
    expected = trained(layer_of("batch", wide), wide, 0, sum(case.sizes))
    assert found["y0"].dtype == found["dx0"].dtype == torch.bfloat16
    assert found["buffer running_var"].dtype == torch.float32
    for key, value in expected.items():
        assert found[key].isfinite().all()
        assert torch.allclose(found[key].double(), value.double(), rtol=0.03, atol=0.06), key


def test_one_process_is_batch_to_the_bit() -> None:
    for params in ({}, {"momentum": None}, {"eps_outside": True}):
        case = Case((6,), dtype=torch.float32, params=params)
        alone, batch = (trained(layer_of(name, case), case, 0, 6) for name in ("sync", "batch"))
        assert all(torch.equal(alone[key], batch[key]) for key in batch)
        assert dict(layer_of("sync", case).state_dict()).keys() == dict(layer_of("batch", case).state_dict()).keys()


def test_one_value_a_channel_is_judged_on_all_workers_together(parts: dict[str, list[dict[str, Tensor]]]) -> None:
    layer = layer_of("sync", Case((1,)))
    layer(torch.ones(1, C, dtype=torch.float64))
    assert layer.num_unnormalizable == 1  # alone
    assert all(part["count"] == 0 for part in parts["flat-one-sample-each"])


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value a channel"):
        strategies["sync"]().layer(C)(torch.ones(0, C))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_merging_is_independent_of_where_the_cuts_are(size: int) -> None:
    x = torch.randn(23, C, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 3 + 1e6
    cuts = [x[slice(*shard(23, rank, size))] for rank in range(size)]
    rows = [torch.cat([part.mean(0), part.var(0, correction=0), torch.tensor([float(len(part))])]) for part in cuts]
    mean, var, total = merged(torch.stack(rows))
    assert total == 23
    assert torch.allclose(mean, x.mean(0), rtol=1e-15, atol=1e-9)
    assert torch.allclose(var, x.var(0, correction=0), rtol=1e-10)
