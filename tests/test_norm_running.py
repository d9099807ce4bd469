"""renorm, streaming and online against their recursions, written here in float64 and without calling bnlab."""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cases import for_each
from helpers_norms import LAYOUTS, close, ids, laid_out, make, moved, sample, with_gradients
from helpers_training import train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bnlab.norms.recurrence import linear_recurrence
from bnlab.norms.strategy import NormLayer, strategies

Case = tuple[str, dict[str, Any]]
CASES: list[Case] = [
    ("renorm", {}),
    ("renorm", {"r_max": 1.2, "d_max": 0.3, "warmup": 0.0, "ramp": 0.0}),
    ("renorm", {"r_max": 1.0, "d_max": 0.0}),
    ("renorm", {"momentum": None, "affine": False}),
    ("renorm", {"eps_outside": True, "momentum": 0.4, "eps": 1e-2}),
    ("streaming", {}),
    ("streaming", {"momentum": 1.0}),
    ("streaming", {"momentum": None}),
    ("streaming", {"momentum": 0.6, "affine": False, "eps": 1e-2}),
    ("streaming", {"momentum": 0.4, "eps_outside": True}),
    ("streaming", {"momentum": None, "eps_outside": True}),
    ("online", {}),
    ("online", {"forward_decay": 0.7, "backward_decay": 0.6}),
    ("online", {"forward_decay": 0.0, "backward_decay": 1.0}),
    ("online", {"forward_decay": 0.9, "affine": False}),
    ("online", {"forward_decay": 0.8, "eps_outside": True, "eps": 1e-2}),
]
SHAPES = [(9, 5), (10, 3, 5, 4), (1, 3, 4, 4), (4, 3, 1, 1)]
STEPS, RUN = 5, 8  # steps taken here, and the length of the run that the layers are told


def over(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (x.dim() - 2))


def deviation(var: Tensor, p: dict[str, Any]) -> Tensor:
    eps = p.get("eps", 1e-5)
    return var.clamp(min=1e-300).sqrt() + eps if p.get("eps_outside") else (var + eps).sqrt()


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, one at a time."""
    columns = [x[:, c].flatten() for c in range(x.shape[1])]
    means = [c.sum() / c.numel() for c in columns]
    return torch.stack(means), torch.stack(
        [((c - m) ** 2).sum() / c.numel() for c, m in zip(columns, means, strict=True)]
    )


class ByHand:
    """The state of one layer, moved step by step; `step` returns what training gives, `evaluation` what it shows."""

    def __init__(self, name: str, p: dict[str, Any], layer: NormLayer) -> None:
        channels = layer.channels
        self.name, self.p, self.done = name, p, 0
        self.mean, self.var = torch.zeros(channels).double(), torch.ones(channels).double()
        self.error_y, self.error_1 = torch.zeros(channels).double(), torch.zeros(channels).double()
        self.affine = p.get("affine", True)
        pair = (layer.weight, layer.bias) if self.affine else (torch.ones(channels), torch.zeros(channels))
        self.gamma, self.beta = (t.detach().double().clone().requires_grad_() for t in pair if t is not None)

    def step(self, x: Tensor, out_weight: Tensor) -> list[Tensor]:
        """Output, input gradient and, with affine, parameter gradients of sum(out_weight * y)."""
        x = x.detach().double().clone().requires_grad_()
        if self.name == "online":
            return self._online(x.detach(), out_weight)
        y = self._renorm(x) if self.name == "renorm" else self._streaming(x)
        gradients = torch.autograd.grad((y * out_weight).sum(), [x, self.gamma, self.beta])
        return [y.detach(), *gradients[: 3 if self.affine else 1]]

    def _renorm(self, x: Tensor) -> Tensor:
        p = self.p
        r_max, d_max = p.get("r_max", 3.0), p.get("d_max", 5.0)
        warmup, ramp = p.get("warmup", 0.05) * RUN, p.get("ramp", 0.2) * RUN
        grown = min(max((self.done - warmup) / ramp, 0.0), 1.0) if ramp else float(self.done >= warmup)
        r_max, d_max = 1 + (r_max - 1) * grown, d_max * grown
        mean, var = channel_moments(x)
        ratio = deviation(var, p) / deviation(self.var, p)
        shift = (mean - self.mean) / deviation(self.var, p)
        r = torch.tensor([min(max(v, 1 / r_max), r_max) for v in ratio.tolist()], dtype=torch.float64)
        d = torch.tensor([min(max(v, -d_max), d_max) for v in shift.tolist()], dtype=torch.float64)
        y = (x - over(mean, x)) / over(deviation(var, p), x) * over(r, x) + over(d, x)
        self.mean, self.var, self.done = moved("batch", {"momentum": p.get("momentum", 0.1)}, x.detach(), *self.state)
        return y * over(self.gamma, x) + over(self.beta, x)

    def _streaming(self, x: Tensor) -> Tensor:
        self.done += 1
        m = self.p.get("momentum", 0.1)
        m = 1 / self.done if m is None else m
        mean, var = channel_moments(x)
        past = m * (1 - m) * (mean - self.mean) ** 2
        mu, v = (1 - m) * self.mean + m * mean, (1 - m) * self.var + m * var + past
        n = x.numel() / x.shape[1]
        unbiased = var * n / (n - 1) if n > 1 else torch.zeros_like(var)
        self.mean, self.var = mu.detach(), ((1 - m) * self.var + m * unbiased + past).detach()
        y = (x - over(mu, x)) / over(deviation(v, self.p), x)
        return y * over(self.gamma, x) + over(self.beta, x)

    def _online(self, x: Tensor, out_weight: Tensor) -> list[Tensor]:
        a, rate = self.p.get("forward_decay", 0.999), 1 - self.p.get("backward_decay", 0.99)
        seen: list[tuple[Tensor, Tensor]] = []
        outputs = []
        self.done += 1
        for sample_t in x:
            wide = (-1,) + (1,) * (sample_t.dim() - 1)
            sigma = deviation(self.var, self.p).view(wide)
            y = ((sample_t - self.mean.view(wide)) / sigma).requires_grad_()
            seen.append((y, sigma))
            outputs.append(self._scaled(y * self.gamma.view(wide) + self.beta.view(wide)))
            flat = sample_t.reshape(len(sample_t), -1)
            m = flat.mean(1)
            v = ((flat - m[:, None]) ** 2).mean(1)
            self.var = a * self.var + (1 - a) * v + a * (1 - a) * (m - self.mean) ** 2
            self.mean = a * self.mean + (1 - a) * m
        z = torch.stack(outputs)
        *for_y, dgamma, dbeta = torch.autograd.grad(
            (z * out_weight).sum(), [y for y, _ in seen] + [self.gamma, self.beta]
        )
        dx = []
        for g, (y, sigma) in zip(for_y, seen, strict=True):
            y = y.detach()
            controlled = g - rate * self.error_y.view(sigma.shape) * y
            self.error_y = self.error_y + (controlled * y).reshape(len(y), -1).mean(1)
            dx.append(controlled / sigma - rate * self.error_1.view(sigma.shape))
            self.error_1 = self.error_1 + dx[-1].reshape(len(y), -1).mean(1)
        return [z.detach(), torch.stack(dx), *([dgamma, dbeta] if self.affine else [])]

    def _scaled(self, u: Tensor) -> Tensor:
        return u / deviation((u**2).mean(), self.p)

    @property
    def state(self) -> tuple[Tensor, Tensor, int]:
        return self.mean, self.var, self.done

    def evaluation(self, x: Tensor) -> Tensor:
        x = x.double()
        y = (x - over(self.mean, x)) / over(deviation(self.var, self.p), x)
        y = (y * over(self.gamma, x) + over(self.beta, x)).detach()
        return torch.stack([self._scaled(u) for u in y]) if self.name == "online" else y

    def same_buffers(self, layer: NormLayer, tolerance: float = 1e-10) -> None:
        state = layer.state_dict()
        close(state["running_mean"], self.mean, tolerance)
        close(state["running_var"], self.var, tolerance)
        assert state["num_batches_tracked"] == self.done
        if self.name == "online":
            close(state["error_y"], self.error_y, tolerance)
            close(state["error_1"], self.error_1, tolerance)


# --- the recursions ---------------------------------------------------------------------------------------------------


def made(case: Case, channels: int, dtype: torch.dtype = torch.float64) -> NormLayer:
    layer = make(*case, channels, dtype)
    layer.begin(RUN)
    return layer


@for_each("shape", SHAPES, ids=str)
@for_each("case", CASES, ids=ids)
def test_outputs_gradients_and_statistics_over_steps(case: Case, shape: tuple[int, ...]) -> None:
    layers = {layout: made(case, shape[1]) for layout in LAYOUTS}
    hand = ByHand(*case, made(case, shape[1]))
    for step in range(STEPS):
        x, out_weight = sample(shape, step), sample(shape, 10 + step)
        wanted = hand.step(x, out_weight)
        for layout, layer in layers.items():
            actual = with_gradients(layer, laid_out(x, layout), laid_out(out_weight, layout))
            for a, w in zip(actual, wanted, strict=True):
                close(a, w, 1e-9)

    x = sample(shape, 20)
    wanted_of_x = hand.evaluation(x)
    for layout, layer in layers.items():
        hand.same_buffers(layer)
        layer.eval()
        close(layer(laid_out(x, layout)), wanted_of_x)
        close(layer(x[:1]), wanted_of_x[:1])  # does not depend on the batch
        hand.same_buffers(layer)  # and leaves the statistics as they are


@settings(deadline=None, max_examples=40)
@given(
    case=st.sampled_from(CASES),
    n=st.integers(1, 17),
    channels=st.integers(1, 4),
    space=st.one_of(st.none(), st.tuples(st.integers(1, 4), st.integers(1, 4))),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_random_shapes(
    case: Case, n: int, channels: int, space: tuple[int, int] | None, layout: str, seed: int
) -> None:
    shape = (n, channels, *(space or ()))
    layer, x, out_weight = made(case, channels), sample(shape, seed), sample(shape, seed + 1)
    actual = with_gradients(layer, laid_out(x, layout), laid_out(out_weight, layout))
    if layer.num_unnormalizable:
        assert case[0] == "renorm"
        assert n * math.prod(space or ()) == 1
        return
    hand = ByHand(*case, layer)
    for a, w in zip(actual, hand.step(x, out_weight), strict=True):
        assert (a - w).abs().max() <= 1e-6 * max(1.0, float(w.abs().max()))
    hand.same_buffers(layer, 1e-7)


# --- renorm -----------------------------------------------------------------------------------------------------------


@for_each("p", [{}, {"momentum": 0.3}, {"eps_outside": True}, {"affine": False}], ids=str)
@for_each("shape", [(9, 5), (10, 3, 5, 4)], ids=str)
@for_each(("name", "own"), [("renorm", {"r_max": 1.0, "d_max": 0.0}), ("streaming", {"momentum": 1.0})])
def test_the_limit_is_batch(name: str, own: dict[str, Any], shape: tuple[int, ...], p: dict[str, Any]) -> None:
    p = p | own
    layer = make(name, p, shape[1])
    batch = make("batch", {k: v for k, v in p.items() if k not in ("r_max", "d_max")}, shape[1])
    for step in range(4):
        x, out_weight = sample(shape, step), sample(shape, 10 + step)
        for a, b in zip(with_gradients(layer, x, out_weight), with_gradients(batch, x, out_weight), strict=True):
            close(a, b, 1e-12)
    for key, value in batch.state_dict().items():
        close(layer.state_dict()[key], value, 1e-12)
    close(layer.eval()(x), batch.eval()(x), 1e-12)


def test_renorm_within_its_bounds_is_evaluation() -> None:
    """The statistics that training corrects to are those before the step."""
    layer = make("renorm", {"r_max": 100.0, "d_max": 100.0}, 3)
    for step in range(3):
        layer(sample((8, 3, 4, 4), step))
    x = sample((8, 3, 4, 4), 9)
    wanted = layer.eval()(x)
    close(layer.train()(x), wanted, 1e-9)


@for_each("total", [20, 200, 5000])
def test_renorm_warms_up_with_the_run(total: int) -> None:
    """The same fraction of a run has the same bounds, however long it is."""
    layer = make("renorm", {"r_max": 3.0, "d_max": 5.0, "warmup": 0.1, "ramp": 0.4}, 2)
    layer.begin(total)
    for fraction, grown in [(0.0, 0.0), (0.05, 0.0), (0.1, 0.0), (0.2, 0.25), (0.3, 0.5), (0.5, 1.0), (0.95, 1.0)]:
        layer.get_buffer("num_batches_tracked").fill_(round(fraction * total))
        r_max, d_max = layer.bounds()  # type: ignore[operator]
        assert float(r_max) == pytest.approx(1 + 2 * grown, abs=1e-12)
        assert float(d_max) == pytest.approx(5 * grown, abs=1e-12)


@for_each(("warmup", "first_full"), [(0.0, 0), (0.5, 10), (1.0, 20)])
def test_renorm_without_a_ramp(warmup: float, first_full: int) -> None:
    layer = make("renorm", {"warmup": warmup, "ramp": 0.0}, 2)
    layer.begin(20)
    for done in range(20):
        layer.get_buffer("num_batches_tracked").fill_(done)
        wanted = (3.0, 5.0) if done >= first_full else (1.0, 0.0)
        assert tuple(map(float, layer.bounds())) == wanted  # type: ignore[operator]


def test_renorm_counts_its_own_steps_and_starts_as_batch() -> None:
    layer, batch = make("renorm", {"warmup": 0.5, "ramp": 0.0}, 3), make("batch", {}, 3)
    layer.begin(4)
    differs = []
    for step in range(4):
        x = sample((8, 3), step)
        differs.append(not torch.allclose(layer(x), batch(x)))
    assert differs == [False, False, True, True]


def test_renorm_without_the_length_of_the_run_has_the_full_bounds() -> None:
    assert tuple(map(float, make("renorm", {"warmup": 1.0}, 2).bounds())) == (3.0, 5.0)  # type: ignore[operator]


@for_each("shape", [(1, 3), (1, 3, 1, 1)], ids=str)
def test_renorm_of_one_value_a_channel_follows_the_batch_policy(shape: tuple[int, ...]) -> None:
    layer = make("renorm", {}, 3)
    layer(sample((9, 3, 4, 4)))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x = sample(shape)
    y = layer(x)
    assert layer.num_unnormalizable == 1
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    assert torch.equal(y, layer.eval()(x))


# --- a batch and its samples one by one -------------------------------------------------------------------------------


@for_each("shape", [(8, 3), (8, 3, 4, 5)], ids=str)
def test_online_takes_a_batch_as_its_samples_one_by_one(shape: tuple[int, ...]) -> None:
    whole, single = make("online", {"forward_decay": 0.9}, 3), make("online", {"forward_decay": 0.9}, 3)
    for step in range(3):
        x, out_weight = sample(shape, step), sample(shape, 10 + step)
        y, dx, dgamma, dbeta = with_gradients(whole, x, out_weight)
        parts = [with_gradients(single, x[t : t + 1], out_weight[t : t + 1]) for t in range(8)]
        close(y, torch.cat([p[0] for p in parts]), 1e-12)
        close(dx, torch.cat([p[1] for p in parts]), 1e-12)
        close(dgamma, sum((p[2] for p in parts), torch.zeros(3).double()), 1e-12)
        close(dbeta, sum((p[3] for p in parts), torch.zeros(3).double()), 1e-12)
    for key in ("running_mean", "running_var", "error_y", "error_1"):
        close(single.state_dict()[key], whole.state_dict()[key], 1e-12)


def test_streaming_over_samples_one_by_one() -> None:
    """With an average of all the last sample comes out alike; with a fixed momentum the weights are others."""
    whole, single = make("streaming", {"momentum": None}, 3), make("streaming", {"momentum": None}, 3)
    x = sample((8, 3))
    y = whole(x)
    parts = torch.cat([single(x[t : t + 1]) for t in range(8)])
    close(parts[-1], y[-1])
    assert not torch.allclose(parts[0], y[0])
    close(single.state_dict()["running_mean"], whole.state_dict()["running_mean"])
    close(single.state_dict()["running_var"], whole.state_dict()["running_var"] * 7 / 8)

    whole, single = make("streaming", {"momentum": 0.2}, 3), make("streaming", {"momentum": 0.2}, 3)
    zeros = torch.zeros(8, 3).double()  # nothing but the initial variance 1 is left
    whole(zeros)
    for t in range(8):
        single(zeros[t : t + 1])
    close(whole.state_dict()["running_var"], torch.full((3,), 0.8, dtype=torch.float64))
    close(single.state_dict()["running_var"], torch.full((3,), 0.8**8, dtype=torch.float64))


def test_online_at_batch_size_1_is_normalized_by_what_came_before() -> None:
    layer = make("online", {"forward_decay": 0.5, "affine": False}, 3)
    x = sample((2, 3))
    z = [layer(x[t : t + 1]) for t in range(2)]
    mean, var = 0.5 * x[0], 0.5 + 0.25 * x[0] ** 2
    y = (x[1] - mean) / (var + 1e-5).sqrt()
    close(z[1][0], y / ((y**2).mean() + 1e-5).sqrt())
    assert layer.num_unnormalizable == 0


# --- when the state moves ---------------------------------------------------------------------------------------------


def test_control_errors_move_once_a_backward_and_only_there() -> None:
    layer = make("online", {}, 3)
    x = sample((6, 3, 2, 2)).requires_grad_()
    with torch.no_grad():
        layer(x)
    assert layer.state_dict()["running_mean"].abs().sum() > 0
    y = layer(x)
    errors = [layer.state_dict()[key] for key in ("error_y", "error_1")]
    assert not any(error.any() for error in errors)
    (y * sample((6, 3, 2, 2), 1)).sum().backward()
    once = [error.clone() for error in errors]
    assert all(error.all() for error in once)
    layer.eval()(x).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(once, errors, strict=True))


def test_control_errors_pull_the_gradient_towards_orthogonality() -> None:
    """A constant gradient is not orthogonal to 1; the control takes its mean out in the course of many samples."""
    layer = make("online", {"affine": False}, 4)
    draw = torch.Generator().manual_seed(0)
    means = []
    for _ in range(60):
        x = torch.randn(32, 4, generator=draw, dtype=torch.float64).requires_grad_()
        target = torch.randn(32, 4, generator=draw, dtype=torch.float64) + 1
        (layer(x) * target).sum().backward()
        assert x.grad is not None
        means.append(float(x.grad.mean()))
    assert means[0] > 0.5
    assert abs(sum(means[30:]) / 30) < 0.05


@for_each("case", CASES, ids=ids)
def test_no_grad_training_moves_the_statistics(case: Case) -> None:
    with_grad, without = made(case, 3), made(case, 3)
    x = sample((6, 3, 4, 4))
    y = with_grad(x)
    with torch.no_grad():
        close(without(x), y)
    for key, value in with_grad.state_dict().items():
        close(without.state_dict()[key], value)


@for_each("case", CASES, ids=ids)
def test_a_state_dict_resumes_exactly(case: Case) -> None:
    layer = made(case, 3, torch.float32)
    batches = [sample((6, 3, 4, 4), step, torch.float32) for step in range(5)]
    for x in batches[:2]:
        with_gradients(layer, x, x)
    resumed = made(case, 3, torch.float32)
    resumed.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()})
    for x in batches[2:]:
        for a, b in zip(with_gradients(layer, x, x), with_gradients(resumed, x, x), strict=True):
            assert torch.equal(a, b)
    for key, value in layer.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs C++")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile, after a break in the graph
@for_each("name", ["renorm", "streaming", "online"])
def test_a_compiled_model_computes_the_same(name: str) -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(3, 4), made((name, {}), 4, torch.float32))
    wrapped = copy.deepcopy(plain)
    compiled = torch.compile(wrapped)
    for step in range(2):
        x = sample((6, 3), step, torch.float32)
        for model in (plain, compiled):
            (model(x) * x[:, :1]).sum().backward()
    for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        close(one.grad, other.grad, 1e-5)
    for key, value in plain.state_dict().items():
        close(wrapped.state_dict()[key], value, 1e-5)


# --- recurrences ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 70), factor=st.sampled_from([0.0, 0.3, 0.999, 1.0, -2.0, None]), seed=st.integers(0, 100))
def test_linear_recurrence(n: int, factor: float | None, seed: int) -> None:
    terms, initial = sample((n, 2), seed), sample((2,), seed + 1)
    factors = sample((n, 2), seed + 2).mul(0.3)
    factors[:: max(1, n // 3)] = 0.0  # a scan by quotients of products would fail here
    h = [initial]
    for t in range(n):
        h.append((factors[t] if factor is None else factor) * h[-1] + terms[t])
    found, wanted = linear_recurrence(factors if factor is None else factor, terms, initial), torch.stack(h)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# --- edges ------------------------------------------------------------------------------------------------------------


@for_each("value", [0.0, 3.0])
@for_each("shape", [(6, 3), (6, 3, 4, 4)], ids=str)
@for_each("case", CASES, ids=ids)
def test_constant_channels_have_finite_gradients(case: Case, shape: tuple[int, ...], value: float) -> None:
    layer = made(case, 3, torch.float32)
    for step in range(3):
        outcome = with_gradients(layer, torch.full(shape, value), sample(shape, step, torch.float32))
        assert all(t.isfinite().all() for t in outcome)
    assert all(t.isfinite().all() for t in layer.state_dict().values())


@for_each("shape", [(1, 4), (2, 4), (1, 4, 1, 1), (1, 4, 3, 3)], ids=str)
@for_each("case", CASES, ids=ids)
def test_the_smallest_batches_train(case: Case, shape: tuple[int, ...]) -> None:
    layer = made(case, 4, torch.float32)
    for step in range(4):
        x = sample(shape, step, torch.float32)
        assert all(t.isfinite().all() for t in with_gradients(layer, x, x))
    assert all(t.isfinite().all() for t in layer.state_dict().values())
    assert bool(layer.num_unnormalizable) == (case[0] == "renorm" and math.prod(shape) == 4)


@for_each("layout", LAYOUTS)
@for_each("case", CASES, ids=ids)
def test_a_large_offset_leaves_the_variance(case: Case, layout: str) -> None:
    """x = 1e4 + noise in float32, from the initial statistics on and with statistics that have reached it."""
    layer = made(case, 6, torch.float32)
    hand = ByHand(*case, layer)
    shape = (12, 6, 10, 10)
    for step in range(3):
        x, out_weight = sample(shape, step, torch.float32) + 1e4, sample(shape, 5 + step, torch.float32)
        if step == 1:
            hand.mean, hand.var = torch.full((6,), 1e4).double(), torch.full((6,), 4.0).double()
            layer.get_buffer("running_mean").fill_(1e4)
            layer.get_buffer("running_var").fill_(4.0)
        y, *gradients = with_gradients(layer, laid_out(x, layout), laid_out(out_weight, layout))
        wanted = hand.step(x, out_weight.double())[0]
        assert (y.double() - wanted).abs().max() < 2e-2 * max(1.0, float(hand.gamma.detach().abs().max()))
        assert all(g.isfinite().all() for g in gradients)


@for_each("layout", LAYOUTS)
@for_each("case", CASES, ids=ids)
def test_bfloat16_input_has_float32_statistics(case: Case, layout: str) -> None:
    layer = made(case, 4, torch.float32)
    hand = ByHand(*case, layer)
    for step in range(3):
        x = sample((16, 4, 6, 6), step).bfloat16()
        y, dx, *_ = with_gradients(layer, laid_out(x, layout), laid_out(torch.ones_like(x), layout))
        assert y.dtype == dx.dtype == torch.bfloat16
        assert dx.isfinite().all()
        close(y, hand.step(x, torch.ones_like(x).double())[0], 4e-2)
    close(layer.state_dict()["running_mean"], hand.mean, 1e-5)
    close(layer.state_dict()["running_var"], hand.var, 1e-5)
    assert all(v.dtype in (torch.float32, torch.int64) for v in layer.state_dict().values())
    x = sample((5, 4, 6, 6), 9).bfloat16()
    y = layer.eval()(laid_out(x, layout))
    assert y.dtype == torch.bfloat16
    close(y, hand.evaluation(x), 4e-2)


@for_each("case", CASES, ids=ids)
def test_autocast_keeps_dtype_and_layout(case: Case) -> None:
    plain, cast = made(case, 4, torch.float32), made(case, 4, torch.float32)
    x = laid_out(sample((8, 4, 6, 6)).bfloat16(), "channels_last")
    for step in range(3):
        x = x + step
        wanted = with_gradients(plain, x, x)
        leaf = x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = cast(leaf)
        (y * x).sum().backward()
        assert leaf.grad is not None
        assert torch.equal(y, wanted[0])
        assert torch.equal(leaf.grad, wanted[1])
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert leaf.grad.is_contiguous(memory_format=torch.channels_last)
    for key, value in plain.state_dict().items():
        assert torch.equal(cast.state_dict()[key], value), key


@for_each("name", ["renorm", "streaming", "online"])
def test_wrong_input_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"at least one value.*\(0, 4, 5, 5\)"):
        make(name, {}, 4)(torch.zeros(0, 4, 5, 5))


def test_share_of_the_initial_statistics() -> None:
    for name in ("renorm", "streaming"):
        share = strategies[name](momentum=0.1).initial_share(steps=20, batch_size=64)
        assert share is not None
        assert share.share_left == pytest.approx(0.9**20)
    share = strategies["online"]().initial_share(steps=5, batch_size=8)
    assert share is not None
    assert share.share_left == pytest.approx(0.999**40)
    assert (share.momentum, share.decay) == pytest.approx((0.001, 0.999))
    assert share.half_life_steps == pytest.approx(math.log(2) / -math.log(0.999) / 8)
    layer = make("online", {}, 2)
    for _ in range(5):
        layer(torch.zeros(8, 2).double())
    close(layer.state_dict()["running_var"], torch.full((2,), share.share_left, dtype=torch.float64))


@for_each("case", CASES, ids=ids)
def test_evaluation_is_an_affine_map_but_for_layer_scaling(case: Case) -> None:
    layer = made(case, 3)
    layer(sample((8, 3, 4, 4)))
    affine, x = layer.affine_map(), sample((5, 3, 2, 2), 1)
    if case[0] == "online":
        assert affine is None
        return
    assert affine is not None
    scale, shift = affine
    close(layer.eval()(x), over(scale, x) * x + over(shift, x))


def test_facts_that_depend_on_parameters() -> None:
    assert strategies["streaming"](momentum=1.0).facts.cancels_bias
    assert not strategies["streaming"]().facts.cancels_bias
    assert not strategies["streaming"](momentum=None).facts.cancels_bias


# --- real trainings ---------------------------------------------------------------------------------------------------


@pytest.fixture
def accuracy_of(tmp_path: Path) -> Callable[..., float]:
    """Train on digits in a fresh folder; return the test accuracy at the end."""

    def accuracy(*overrides: str) -> float:
        fixed = ["trainer.device=cpu", "trainer.threads=1", "eval.every=100", "eval.probe_samples=64"]
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "run"
        train([*fixed, *overrides], folder)
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["state"] == "done"
        return float(summary["curve"]["test.accuracy"][-1])

    return accuracy


CNN = ("model=cnn", "model.widths=[8,16]", "trainer.steps=150")
MLP = ("model=mlp", "model.widths=[64]", "trainer.steps=700", "optim.lr=0.01")


@pytest.mark.slow
@for_each(
    ("norm", "batch", "more"),
    [
        ("renorm", 32, CNN),
        ("streaming", 32, CNN),
        ("online", 32, CNN),
        ("streaming", 2, (*MLP, "norm.momentum=0.01")),
        ("streaming", 1, (*MLP, "norm.momentum=0.01")),
        ("online", 2, MLP),
        ("online", 1, MLP),
    ],
)
def test_digits_are_learned(accuracy_of: Callable[..., float], norm: str, batch: int, more: tuple[str, ...]) -> None:
    """Measured: 0.97 and more with batches of 32 (one seed), 0.936 to 0.958 with batches of 1 and 2 (three seeds)."""
    assert accuracy_of(f"norm={norm}", f"data.batch_size={batch}", *more) > 0.9
