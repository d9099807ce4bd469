"""Statistics of the training set, put into the layers that read it, while a model is trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from bnlab.data import Batches


class Calibration:
    """Keeps the layers of a model that read the training set supplied with its statistics."""

    def __init__(
        self,
        model: nn.Module,
        training_set: Batches,
        precision: Callable[[], AbstractContextManager[object]],
        device: torch.device,
    ) -> None:
        self.refresh_ms: list[float] = []  # of each refresh inside a step

    @staticmethod
    def needed_by(model: nn.Module) -> bool:
        """Return whether any layer of `model` reads the training set."""
        return False

    def begin(self) -> None:
        """Put statistics into every layer that reads the training set, under the initial weights."""

    def before_step(self, step: int) -> None:
        """Refresh what is due before step `step`, counted from 0."""

    def after_backward(self) -> None:
        """Add to the gradients what reaches the weights through the statistics."""
