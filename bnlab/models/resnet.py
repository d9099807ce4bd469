"""The ResNet for CIFAR-sized images of He et al. 2015: 6n+2 layers in three stages, global average pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.errors import ConfigError
from bnlab.models.model import Blocks, Linear, ModelSpec, models
from bnlab.schema import param


@models.register("resnet")
@dataclass(frozen=True, kw_only=True)
class Resnet(ModelSpec):
    """The CIFAR ResNet: 6n+2 layers in three stages of widths w, 2w, 4w.

    Shortcuts are free of parameters (option A of the paper: every second pixel, missing channels zero), so every
    convolution is followed by a norm. Without them it is the paper's plain network. He, Zhang, Ren and Sun, "Deep
    Residual Learning", 2015, section 4.2.

    At initialization batch norm makes a branch small beside its shortcut, by a factor of about sqrt(number of blocks).
    `branch=skip_init` has each branch times a learned number that starts at 0, so that the network starts as its
    shortcuts; `branch=scaled` times 1/sqrt(number of blocks) for good. De and Smith, "Batch Normalization Biases
    Residual Blocks Towards the Identity Function in Deep Networks", 2020.

    Dropout after or before the norm and activation of each layer is inside of the branches, as in Zagoruyko and
    Komodakis, "Wide Residual Networks", 2016: no sum with a shortcut is dropped.
    """

    depth: int = param(20, "layers, 6n + 2", low=8, high=10_000)
    width: int = param(16, "channels of the first stage", low=1, high=2**14)
    shortcut: Literal["identity", "none"] = param("identity", "what is added to each branch: its input, or nothing")
    branch: Literal["plain", "skip_init", "scaled"] = param(
        "plain", "a branch as it is, times a learned number that starts at 0, or times 1/sqrt(number of blocks)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortcut == "none" and self.branch != "plain":
            raise ConfigError(
                f"model.branch={self.branch}: makes a branch small beside its shortcut, and there is none\n"
                "set model.branch=plain or model.shortcut=identity"
            )

    def layers(self, blocks: Blocks, image_shape: tuple[int, int, int], num_classes: int) -> list[nn.Module]:
        if self.depth % 6 != 2:
            lower = (self.depth - 2) // 6 * 6 + 2
            raise ConfigError(
                f"model.depth={self.depth}: must be 6n + 2 (three stages of n blocks of two layers, and two more)\n"
                f"use {lower} or {lower + 6}"
            )
        colours, height, width = image_shape
        blocks.pixels = height * width
        modules = blocks.conv(colours, self.width)
        channels, in_stage = self.width, (self.depth - 2) // 6
        for stage in range(3):
            blocks.pixels = -(-height >> stage) * -(-width >> stage)  # rounded up
            for block in range(in_stage):
                outputs, stride = self.width << stage, 2 if stage and not block else 1
                modules.append(Residual(blocks, channels, outputs, stride, self._scale(3 * in_stage), self.shortcut))
                channels = outputs
        modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *blocks.last_norm(channels), *blocks.dropout("classifier")]
        return [*modules, Linear(channels, num_classes)]

    def _scale(self, num_blocks: int) -> list[nn.Module]:
        if self.branch == "plain":
            return []
        return [Scale(None if self.branch == "skip_init" else 1 / math.sqrt(num_blocks))]

    @property
    def norms_see_pixels(self) -> bool:
        return self.placement != "last"  # which is behind the pool


class Scale(nn.Module):
    """A factor: a fixed one, or one that is learned from 0 on, a weight like others to the optimizer."""

    def __init__(self, fixed: float | None) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(1)) if fixed is None else fixed

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Residual(nn.Module):
    """Two convolution blocks with a shortcut added in front of the second activation.

    placement=pre: act(norm(conv(act(norm(conv(x))))) + x); post: norm(act(conv(norm(act(conv(x)))) + x)); both: the
    norms of pre and those of post; last: none here. `scale` ends the branch.
    """

    def __init__(
        self, blocks: Blocks, inputs: int, outputs: int, stride: int, scale: Sequence[nn.Module], shortcut: str
    ) -> None:
        super().__init__()
        first = blocks.conv(inputs, outputs, stride)
        second, after = blocks.conv_halves(outputs, outputs)
        self.branch = nn.Sequential(*first, *second, *scale)
        self.has_shortcut = shortcut != "none"
        self.after = nn.Sequential(*after)
        self.stride = stride
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        return self.after(branch + self._shortcut(x) if self.has_shortcut else branch)  # type: ignore[no-any-return]

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
