"""The network of cifar10-airbench: fixed whitening of 2x2 patches, then three groups of convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.errors import ConfigError
from bnlab.models.model import Blocks, Conv, Linear, ModelSpec, models
from bnlab.models.resnet import Scale
from bnlab.schema import param

NUM_IMAGES = 5000  # that the whitening is computed from


@models.register("airbench")
@dataclass(frozen=True, kw_only=True)
class Airbench(ModelSpec):
    """The network of cifar10-airbench: whitened 2x2 patches, then groups of two convolutions, the first one pooled.

    A group is conv, 2x2 max-pool, norm, activation, conv, norm, activation; one max-pool over all pixels, a linear
    layer without bias and a factor of 1/9 end the network. A convolution begins as the identity: its first filters, one
    for each channel that comes in, pass that on, and only the others are drawn. `+experiment=airbench` has the recipe.

    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024; the whitening is after Page, "How to Train Your
    ResNet", 2018.
    """

    widths: tuple[int, ...] = param((64, 256, 256), "channels of each group", low=1, high=2**16)

    activation: Literal["relu", "elu", "selu", "gelu", "sigmoid", "tanh"] = param(
        "gelu", "the nonlinearity of every hidden layer"
    )

    def layers(self, blocks: Blocks, image_shape: tuple[int, int, int], num_classes: int) -> list[nn.Module]:
        colours, height, width = image_shape
        size, groups = min(height, width) - 1, len(self.widths)
        if size >> groups < 2:
            most = max(size.bit_length() - 2, 0)
            fitting = (
                f"use at most {most} of them, as model.widths={[64, 256, 256][:most]}" if most else "take model=mlp"
            )
            raise ConfigError(
                f"model.widths={list(self.widths)}: {groups} groups halve the image {groups} times, and the last norm "
                f"needs 2 x 2 pixels\nthe images here are {height} x {width}\n{fitting}"
            )
        whitening = Whitening(colours)
        modules: list[nn.Module] = [whitening, blocks.activation()]
        channels = len(whitening.weight)
        for group, outputs in enumerate(self.widths, 1):
            blocks.pixels = ((height - 1) >> group) * ((width - 1) >> group)
            for pool in ([nn.MaxPool2d(2)], []):
                (conv, *norm), after = blocks.conv_halves(channels, outputs)
                assert isinstance(conv, Conv)
                conv.begins_as_identity = True
                modules += [conv, *pool, *norm, *after, *blocks.dropout("after")]
                channels = outputs
        modules += [nn.MaxPool2d(((height - 1) >> groups, (width - 1) >> groups)), nn.Flatten()]
        modules += [*blocks.last_norm(channels), *blocks.dropout("classifier")]
        return [*modules, Linear(channels, num_classes, bias=False), Scale(1 / 9)]

    @property
    def norms_see_pixels(self) -> bool:
        return self.placement != "last"  # which is behind the last pool

    def begin(self, model: nn.Module, images: Callable[[int], Tensor]) -> None:
        seen = images(NUM_IMAGES)
        if self.input_norm == "batch":  # in front of the whitening
            mean, std = seen.mean((0, 2, 3), keepdim=True), seen.std((0, 2, 3), keepdim=True)
            seen = (seen - mean) / std.clamp_min(1e-5)
        next(module for module in model.modules() if isinstance(module, Whitening)).whiten(seen)


class Whitening(nn.Module):
    """A 2x2 convolution that is not trained but for its bias: its outputs are uncorrelated on what it was made from.

    With the second moments E[p p'] = V diag(l) V' of patches p, filters are the rows of diag(l + eps)^(-1/2) V', and
    once more with the other sign. Before `whiten` they take patches for white.
    """

    weight: Tensor

    def __init__(self, channels: int, eps: float = 5e-4) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", self._filters(torch.eye(4 * channels)))
        self.bias = nn.Parameter(torch.zeros(8 * channels))

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Compute the filters from the patches of `images`, shape (N, C, H, W)."""
        size, count = self.weight[0].numel(), 0
        moments = torch.zeros(size, size, dtype=torch.float64)
        for part in images.split(500):
            patches = F.unfold(part, 2)
            moments += (patches @ patches.mT).double().sum(0)
            count += patches.numel() // size
        values, vectors = torch.linalg.eigh(moments / count)
        rows = vectors.mT / (values + self.eps).sqrt().unsqueeze(1)
        self.weight.copy_(self._filters(rows.flip(0).float()))

    @staticmethod
    def _filters(rows: Tensor) -> Tensor:
        return torch.cat([rows, -rows]).view(2 * len(rows), -1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)
