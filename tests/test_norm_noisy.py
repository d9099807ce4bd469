"""Noisy batch normalization: its formula with the noise written in plain integers, its distribution, and its state."""

from __future__ import annotations

import copy
import math
from statistics import NormalDist

import pytest
import torch
from helpers_cases import for_each
from helpers_norms import LAYOUTS, close, laid_out, sample, scaled
from torch import Tensor

from bnlab.models.model import build, models, norm_layers
from bnlab.norms import noisy
from bnlab.norms.noisy import NoisyLayer
from bnlab.norms.strategy import strategies

WHOLE = 2**32


def made(channels: int, seed: int = 12345, **keys: float) -> NoisyLayer:
    layer = strategies["noisy"](**keys).layer(channels).double()
    assert isinstance(layer, NoisyLayer)
    layer.seed(seed)
    return layer


def mixed(key: int) -> int:
    key %= WHOLE
    key = (key ^ (key >> 16)) * 0x85EBCA6B % WHOLE
    key = (key ^ (key >> 13)) * 0xC2B2AE35 % WHOLE
    return key ^ (key >> 16)


def between(key: int, draw: int) -> float:
    return ((mixed(key + draw) >> 9) + 0.5) / 2**23


def noise_by_hand(
    seed: int, step: int, samples: int, channels: int, shift: float = 0.5, scale: float = 1.25, jitter: float = 0.1
) -> tuple[Tensor, Tensor]:
    added, factor = torch.empty(samples, channels).double(), torch.empty(samples, channels).double()
    for j in range(channels):
        of_channel = mixed(mixed(step + seed) + j)
        mu = -shift + 2 * shift * between(of_channel, 1)
        sigma = 1 + (scale - 1) * between(of_channel, 2)
        for i in range(samples):
            own = mixed(of_channel + mixed(i))
            added[i, j] = mu - jitter + 2 * jitter * between(own, 1)
            factor[i, j] = NormalDist(sigma, jitter).inv_cdf(between(own, 2)) if jitter else sigma
    return added, factor


@for_each("layout", LAYOUTS)
@for_each("shape", [(9, 5), (8, 3, 4, 3)], ids=str)
@for_each("keys", [{}, {"shift": 0.1, "scale": 2.0, "jitter": 0.3}, {"jitter": 0.0}], ids=str)
def test_training_steps_evaluation_and_gradients(keys: dict[str, float], shape: tuple[int, ...], layout: str) -> None:
    layer = made(shape[1], **keys)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(sample(tuple(p.shape), seed=5))
    mean, var = torch.zeros(shape[1]).double(), torch.ones(shape[1]).double()
    wide = (shape[0], shape[1]) + (1,) * (len(shape) - 2)
    dims = (0, *range(2, len(shape)))
    for step in range(1, 4):
        x, weights = sample(shape, seed=step).requires_grad_(), sample(shape, seed=step + 9)
        leaf = laid_out(x.detach(), layout).requires_grad_()
        y = layer(leaf)
        added, factor = noise_by_hand(12345, step, shape[0], shape[1], **keys)
        spread, centre = torch.var_mean(x, dims, correction=0, keepdim=True)
        gamma, beta = (p.detach().clone().requires_grad_() for p in layer.parameters())
        wanted = scaled((x - centre) / (spread + 1e-5).sqrt(), gamma, beta) * factor.view(wide) + added.view(wide)
        close(y, wanted)
        assert layout != "channels_last" or len(shape) == 2 or y.is_contiguous(memory_format=torch.channels_last)
        got = torch.autograd.grad((y * weights).sum(), [leaf, *layer.parameters()])
        for own, other in zip(got, torch.autograd.grad((wanted * weights).sum(), [x, gamma, beta]), strict=True):
            close(own, other)
        n = x.numel() / shape[1]
        mean = 0.9 * mean + 0.1 * centre.detach().flatten()
        var = 0.9 * var + 0.1 * spread.detach().flatten() * n / (n - 1)
    close(layer.running_mean, mean)
    close(layer.running_var, var)
    flat = (1, -1) + (1,) * (len(shape) - 2)
    expected = scaled((x - mean.view(flat)) / (var.view(flat) + 1e-5).sqrt(), *layer.parameters())
    close(layer.eval()(x), expected)  # without noise


def test_the_noise_is_of_the_distributions_that_it_says() -> None:
    """Means, deviations, ranges; no correlation along steps, samples, channels, or of the two."""
    layer = made(64)
    steps = []
    for _ in range(150):
        layer.num_batches_tracked.add_(1)
        steps.append(torch.stack(layer.noise(64)))
    added, factor = torch.stack(steps, 1)  # (step, sample, channel) each
    assert added.mean().abs() < 0.01
    assert float(added.std()) == pytest.approx(math.sqrt(0.5**2 / 3 + 0.1**2 / 3), rel=0.01)
    assert 0.59 < added.abs().max() < 0.6
    assert float(factor.mean()) == pytest.approx(1.125, abs=0.002)
    assert float(factor.std()) == pytest.approx(math.sqrt(0.25**2 / 12 + 0.1**2), rel=0.01)
    within = [values - values.mean(1, keepdim=True) for values in (added, factor)]
    assert [float(w.std()) for w in within] == pytest.approx([0.1 / math.sqrt(3), 0.1], rel=0.02)
    pairs = [(a[1:], a[:-1]) for a in (added.mean(1), factor.mean(1), *within)]
    pairs += [(a[..., 1:], a[..., :-1]) for a in (added.mean(1), factor.mean(1), *within)]
    pairs += [(a[:, 1:], a[:, :-1]) for a in within] + [(added.mean(1), factor.mean(1)), (within[0], within[1])]
    for a, b in pairs:  # 9,600 numbers at the least: 4 of their deviations
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 4 / math.sqrt(9000)


def test_each_layer_and_each_seed_has_noise_of_its_own() -> None:
    def noise(seed: int) -> list[Tensor]:
        model = build(models["mlp"](widths=(6, 6)), strategies["noisy"](), (1, 4, 4), 10, seed)
        return [torch.stack(layer.noise(5)) for _, layer in norm_layers(model) if isinstance(layer, NoisyLayer)]

    (first, second), (other, _), (again, _) = noise(0), noise(1), noise(0)
    assert torch.equal(first, again)
    assert not torch.isclose(first, second).any()
    assert not torch.isclose(first, other).any()


def test_workers_share_the_distribution_and_not_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(rank: int, jitter: float) -> Tensor:
        monkeypatch.setattr(noisy, "group_rank", lambda: rank)
        return torch.stack(made(3, jitter=jitter).noise(5))

    assert torch.equal(noise(0, 0.0), noise(1, 0.0))
    assert not torch.isclose(noise(0, 0.1), noise(1, 0.1)).any()


def test_state_dict_brings_the_step_back() -> None:
    layer, x = made(4), sample((6, 4))
    for _ in range(3):
        layer(x)
    fresh = made(4)
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert torch.equal(layer(x), fresh(x))


def test_a_batch_of_one_value_has_no_noise() -> None:
    layer, x = made(4), sample((1, 4))
    assert torch.equal(layer(x), layer.eval()(x))
    assert layer.num_unnormalizable == 1


def test_it_draws_from_no_generator() -> None:
    before = torch.get_rng_state()
    made(4)(sample((6, 4)))
    assert torch.equal(before, torch.get_rng_state())
