"""Samples in float64, probes of them, and pictures of a model to the last bit, for tests of what is measured on it."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab.data.augment import Augment
from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.measure import decomposition
from bnlab.measure.probe_batches import Probe

HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks") or "_hooks_" in name]
PLAIN = (bool, int, float, str, type(None))


class Doubles(Batches):
    """Any samples, float64 of shape (N, C, H, W), as the batches of a split."""

    def __init__(self, images: Tensor, labels: Tensor, augment: Augment | None = None) -> None:
        blank = torch.zeros(images.shape, dtype=torch.uint8)
        super().__init__(Split(blank, labels), batch_size=4, augment=augment)
        self._images = images.double()


def samples(count: int, shape: tuple[int, ...], classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random images (count, *shape), float64, and labels that depend on them."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *shape, generator=draw, dtype=torch.float64) * 1.5 + 0.5
    noise = torch.randn(count, generator=draw, dtype=torch.float64)
    score = images.flatten(1)[:, 0] + 0.5 * noise
    return images, (score.argsort().argsort() * classes // count).long()


def probe_of(images: Tensor, labels: Tensor, batch_size: int, augment: Augment | None = None) -> Probe:
    """Return a probe of whatever images; with `augment` training sees them augmented."""
    augmented = None if augment is None else Doubles(images, labels, augment)
    return Probe("test", Doubles(images, labels), augmented, batch_size, labels)


def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a full probe take few draws and few sizes of batches: the same passes, less often."""
    monkeypatch.setattr(decomposition, "DRAWS", 3)
    monkeypatch.setattr(decomposition, "IMAGE_DRAWS", 2)
    monkeypatch.setattr(sys.modules["bnlab.measure.probe_model"], "CURVE_SIZES", (1, 2, 4))


def bits(tensor: Tensor) -> tuple[Any, ...]:
    """Return dtype, shape, layout and bytes."""
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.detach().cpu().contiguous().numpy().tobytes()


def picture(model: nn.Module) -> dict[str, Any]:
    """Return all that a probe must leave as it is: tensors and which they are, modes, attributes, hooks, draws."""
    numbers: Any = np.random.get_state(legacy=False)
    return {
        "state": {name: bits(value) for name, value in model.state_dict().items()},
        "tensors": {
            (name, kind, key): id(value)
            for name, module in model.named_modules()
            for kind, held in (("buffer", module._buffers), ("parameter", module._parameters))
            for key, value in held.items()
        },
        "gradients": [None if p.grad is None else (id(p.grad), bits(p.grad)) for p in model.parameters()],
        "needed": [p.requires_grad for p in model.parameters()],
        "modes": {name: module.training for name, module in model.named_modules()},
        "plain": {
            name: {key: repr(value) for key, value in vars(module).items() if isinstance(value, PLAIN)}
            for name, module in model.named_modules()
        },
        "hooks": {
            name: {kind: [(key, id(hook)) for key, hook in getattr(module, kind).items()] for kind in HOOKS}
            for name, module in model.named_modules()
        },
        "torch": bits(torch.get_rng_state()),
        "numpy": (numbers["state"]["key"].tobytes(), numbers["state"]["pos"], numbers["has_gauss"]),
        "python": random.getstate(),
        "gradient mode": torch.is_grad_enabled(),
    }


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Say which part of a picture has changed."""
    for part, was in before.items():
        assert was == after[part], part
