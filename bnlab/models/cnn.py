"""A VGG-like network: stages of 3x3 convolutions, each ended by a 2x2 max-pool, then the classifier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bnlab.errors import ConfigError
from bnlab.models.model import Blocks, Linear, ModelSpec, models
from bnlab.schema import param


@models.register("cnn")
@dataclass(frozen=True, kw_only=True)
class Cnn(ModelSpec):
    """A small VGG: stages of 3x3 convolutions, each ended by a 2x2 max-pool.

    After Simonyan and Zisserman, "Very Deep Convolutional Networks", 2014, with one linear layer at the end.
    """

    widths: tuple[int, ...] = param((32, 64), "channels of each stage", low=1, high=2**16)
    depth: int = param(1, "convolutions in a stage", low=1, high=1000)

    def layers(self, blocks: Blocks, image_shape: tuple[int, int, int], num_classes: int) -> list[nn.Module]:
        channels, height, width = image_shape
        stages = len(self.widths)
        if min(height, width) < 2**stages:
            raise ConfigError(
                f"model.widths={list(self.widths)}: {stages} stages halve the image {stages} times, which needs at "
                f"least {2**stages} x {2**stages} pixels\nthe images here are {height} x {width}\n"
                f"use at most {min(height, width).bit_length() - 1} stages"
            )
        modules: list[nn.Module] = []
        for stage, outputs in enumerate(self.widths):
            blocks.pixels = (height >> stage) * (width >> stage)
            for _ in range(self.depth):
                modules += blocks.conv(channels, outputs)
                channels = outputs
            modules.append(nn.MaxPool2d(2))
        blocks.pixels = (height >> stages) * (width >> stages)
        modules += [*blocks.last_norm(channels), nn.Flatten(), *blocks.dropout("classifier")]
        return [*modules, Linear(channels * blocks.pixels, num_classes)]
