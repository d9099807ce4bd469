"""A moment of a training, for the meters to read."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.meters.meter import Moment, meters
from bnlab.models.cnn import Cnn
from bnlab.models.mlp import Mlp
from bnlab.models.model import build
from bnlab.norms.strategy import strategies


class Doubles(Batches):
    """A training set in float64."""

    def _ready(self, images: Tensor) -> Tensor:
        return super()._ready(images).double()


def moment(model: nn.Module, *, rate: float = 0.1, lr: float = 0.1, momentum: float = 0.0) -> Moment:
    """A moment of `model` in float64, with 24 random images and a batch of 8."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=draw)
    batches = Doubles(Split(images, torch.randint(0, 10, (24,), generator=draw)), batch_size=8)
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    return Moment(0, rate, next(batches.epoch(0)), batches, 8, F.cross_entropy, nullcontext, model, optimizer)


def network(name: str, spec: Mlp | Cnn | None = None) -> nn.Module:
    more = {"groups": 2} if name in ("group", "weight_std") else {}
    return build(spec or Mlp(widths=(8, 8)), strategies[name](**more), (1, 8, 8), 10, seed=0)


def read(meter: str, at: Moment) -> dict[tuple[str, str, str], float]:
    """Return figure, layer, axis -> value."""
    return {(r.figure, r.layer, r.axis): r.value for r in meters[meter]().read(at)}
