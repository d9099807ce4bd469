"""Layers, samples in every memory layout, and running statistics by hand, for tests of the strategies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnlab.norms.strategy import NormLayer, strategies


def scaled(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    shape = (1, -1) + (1,) * (x.dim() - 2)
    x = x if gamma is None else x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


def ghosts_by_hand(n: int, size: int) -> list[list[int]]:
    groups = [list(range(start, min(start + size, n))) for start in range(0, n, size)]
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def moved(name: str, p: dict[str, Any], x: Tensor, mean: Tensor, var: Tensor, done: int) -> tuple[Tensor, Tensor, int]:
    """Running mean and variance, unbiased unless told otherwise, after one more step, and the number of updates."""
    if name == "batch":
        stride = p.get("stat_stride", 1)
        x = x[: p.get("stat_samples") or len(x)]
        parts = [x[:, :, ::stride, ::stride] if x.dim() == 4 else x]
    elif p.get("update", "pooled") == "pooled":
        parts = [x]
    else:
        parts = [x[group] for group in ghosts_by_hand(len(x), p.get("size", 32))]
    for part in parts:
        columns = [part[:, c].flatten() for c in range(part.shape[1])]
        done += 1
        m = p.get("momentum", 0.1)
        m = 1 / done if m is None else m
        mean = (1 - m) * mean + m * torch.stack([c.sum() / c.numel() for c in columns])
        less = 1 if p.get("unbiased", True) else 0
        own = [((c - c.sum() / c.numel()) ** 2).sum() / (c.numel() - less) for c in columns]
        var = (1 - m) * var + m * torch.stack(own)
    return mean, var, done


LAYOUTS = ["contiguous", "channels_last", "strided"]


def ids(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())])


def make(name: str, p: dict[str, Any], channels: int, dtype: torch.dtype = torch.float64) -> NormLayer:
    layer = strategies[name](**p).layer(channels).to(dtype)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return layer


def sample(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).add(1).to(dtype)
    )


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([x, x + 1], -1)[..., 0]
    return x.contiguous()


def with_gradients(layer: NormLayer, x: Tensor, out_weight: Tensor) -> list[Tensor]:
    """Output, input gradient and parameter gradients of sum(out_weight * layer(x))."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y * out_weight).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


def close(actual: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual.double(), wanted.double(), rtol=tolerance, atol=tolerance)
