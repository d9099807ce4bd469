"""The ResNet for CIFAR-sized images of He et al. 2015: 6n+2 layers in three stages, global average pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.errors import ConfigError
from bnlab.models.model import Blocks, Linear, ModelSpec, models
from bnlab.schema import param


@models.register("resnet")
@dataclass(frozen=True, kw_only=True)
class Resnet(ModelSpec):
    """The CIFAR ResNet: 6n+2 layers in three stages of widths w, 2w, 4w; dropout before the classifier.

    Shortcuts are free of parameters (option A of the paper: every second pixel, missing channels zero), so every
    convolution is followed by a norm. He, Zhang, Ren and Sun, "Deep Residual Learning", 2015, section 4.2.
    """

    depth: int = param(20, "layers, 6n + 2", low=8, high=10_000)
    width: int = param(16, "channels of the first stage", low=1, high=2**14)

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
        channels = self.width
        for stage in range(3):
            blocks.pixels = -(-height >> stage) * -(-width >> stage)  # rounded up
            for block in range((self.depth - 2) // 6):
                outputs = self.width << stage
                modules.append(Residual(blocks, channels, outputs, stride=2 if stage and not block else 1))
                channels = outputs
        modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *blocks.last_norm(channels), *blocks.dropout()]
        return [*modules, Linear(channels, num_classes)]

    @property
    def norms_see_pixels(self) -> bool:
        return self.placement != "last"  # which is behind the pool


class Residual(nn.Module):
    """Two convolution blocks with a shortcut added in front of the second activation.

    placement=pre: act(norm(conv(act(norm(conv(x))))) + x); post: norm(act(conv(norm(act(conv(x)))) + x)); both: the
    norms of pre and those of post; last: none here.
    """

    def __init__(self, blocks: Blocks, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = blocks.conv(inputs, outputs, stride)
        second, after = blocks.conv_halves(outputs, outputs)
        self.branch = nn.Sequential(*first, *second)
        self.after = nn.Sequential(*after)
        self.stride = stride
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.branch(x) + self._shortcut(x))  # type: ignore[no-any-return]

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
