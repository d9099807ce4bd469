"""A multilayer perceptron: one hidden linear block a width, then the classifier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bnlab.models.model import Blocks, Linear, ModelSpec, models
from bnlab.schema import param


@models.register("mlp")
@dataclass(frozen=True, kw_only=True)
class Mlp(ModelSpec):
    """A multilayer perceptron: hidden linear layers of the given widths; dropout after each."""

    has_space = False

    widths: tuple[int, ...] = param((256, 256), "units of each hidden layer", low=1, high=2**16)

    def layers(self, blocks: Blocks, image_shape: tuple[int, int, int], num_classes: int) -> list[nn.Module]:
        channels, height, width = image_shape
        inputs = channels * height * width
        modules: list[nn.Module] = [nn.Flatten()]
        for outputs in self.widths:
            modules += blocks.linear(inputs, outputs)
            modules += blocks.dropout()
            inputs = outputs
        return [*modules, Linear(inputs, num_classes)]
