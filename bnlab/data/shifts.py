"""Shifts of a test set, made locally: images turned, moved, noisy, blurred, pale or negative; other shares of classes.

Each has five severities, fixed tables below, and works on images of 8x8 pixels and more with 1 or 3 channels. What
comes into an image from outside is black. The tables of noise and contrast are those of ImageNet-C (Hendrycks and
Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", 2019); those of
translation and blur are shares of the shorter side, so that they mean the same at every image size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as image

from bnlab.data.augment import Augment
from bnlab.data.bundle import Split
from bnlab.data.severities import SEVERITIES, SEVERITY_TABLES
from bnlab.errors import ConfigError, did_you_mean
from bnlab.seeding import generator

CHUNK = 512  # images that are held in float32 at a time


@dataclass(frozen=True)
class Shift:
    """One kind of shift; called with a split, a severity and a CPU generator it returns the shifted split, uint8."""

    amounts: tuple[float, ...]  # of severity 1 to 5
    unit: str  # of the amounts: "degrees"
    apply: Callable[[Split, float, Generator], Split]

    def __call__(self, samples: Split, severity: int, source: Generator) -> Split:
        return self.apply(samples, self.amounts[severity - 1], source)


def shifted(samples: Split, name: str, severity: int) -> Split:
    """Return `samples` under the shift `name`; what is random comes out the same at every call and every severity."""
    return SHIFTS[name](samples, severity, generator(0, "augmentation", crc32(name.encode())))


def severity_of(shift: str) -> tuple[str, int]:
    """Return name and severity of a shift such as `blur-5`. Errors: ConfigError."""
    name, _, severity = shift.rpartition("-")
    if name not in SHIFTS or severity not in map(str, SEVERITIES):
        near = did_you_mean(shift, [f"{known}-{number}" for known in SHIFTS for number in SEVERITIES])
        raise ConfigError(f"eval.shifted={shift}: must be none, or a shift and its severity from 1 to 5, such as blur-5"
                          f"{near}\nthere are: {', '.join(SHIFTS)}")  # fmt: skip
    return name, int(severity)


def _rotation(samples: Split, degrees: float, source: Generator) -> Split:
    """Turn about the centre, bilinear; which way is drawn for each image."""

    def turn(x: Tensor) -> Tensor:
        left = torch.randint(0, 2, (len(x), 1, 1, 1), generator=source) == 1
        to_left, to_right = (image.rotate(x, angle, InterpolationMode.BILINEAR) for angle in (degrees, -degrees))
        return torch.where(left, to_left, to_right)

    return _pixels(samples, turn)


def _translation(samples: Split, percent: float, source: Generator) -> Split:
    """Move by whole pixels, at least one, along both sides; which way along each is drawn for each image."""
    pixels = max(1, round(percent / 100 * min(samples.images.shape[2:])))
    move = Augment(shift=pixels)
    corners = 2 * pixels * torch.randint(0, 2, (2, len(samples)), generator=source)
    moved = move.pick(move.pad(samples.images), torch.arange(len(samples)), corners, channels_last=False)
    return Split(moved, samples.labels)


def _noise(samples: Split, percent: float, source: Generator) -> Split:
    """Add to every value a normal random number."""
    return _pixels(samples, lambda x: x + percent / 100 * torch.randn(x.shape, generator=source))


def _blur(samples: Split, percent: float, source: Generator) -> Split:
    """Convolve with a Gaussian, cut off at three standard deviations; images go on reflected at their sides.

    Its standard deviation is at least 0.4 pixels: a narrower one changes next to nothing.
    """
    sigma = max(0.4, percent / 100 * min(samples.images.shape[2:]))
    width = 2 * math.ceil(3 * sigma) + 1
    return _pixels(samples, lambda x: image.gaussian_blur(x, [width, width], [sigma, sigma]))


def _contrast(samples: Split, percent: float, source: Generator) -> Split:
    """Blend each image with its mean grey."""
    return _pixels(samples, lambda x: image.adjust_contrast(x, percent / 100))


def _inversion(samples: Split, percent: float, source: Generator) -> Split:
    """Blend each image with its negative; the whole of it is 255 - x."""
    return _pixels(samples, lambda x: torch.lerp(x, image.invert(x), percent / 100))


def _imbalance(samples: Split, ratio: float, source: Generator) -> Split:
    """Keep of class c of C the first n ratio^(-c/(C - 1)) of its n samples, rounded, at least one; the order stays."""
    counts = torch.bincount(samples.labels)
    place = torch.arange(len(counts)) / max(len(counts) - 1, 1)
    kept = (counts * ratio**-place).round().clamp_(min=1)
    number = F.one_hot(samples.labels).cumsum(0).gather(1, samples.labels[:, None])[:, 0]  # in its class, from 1
    return samples.take((number <= kept[samples.labels]).nonzero()[:, 0])


def _label_sorted(samples: Split, percent: float, source: Generator) -> Split:
    """Bring a share of the samples, drawn at random, into the order of their labels; the others keep their places."""
    count = round(percent / 100 * len(samples))
    moved = torch.randperm(len(samples), generator=source)[:count].sort().values
    order = torch.arange(len(samples))
    order[moved] = moved[samples.labels[moved].argsort(stable=True)]
    return samples.take(order)


def _pixels(samples: Split, change: Callable[[Tensor], Tensor]) -> Split:
    """Apply `change` to the images, float32 in [0, 1] and as many at a time as CHUNK, and round to uint8 again."""
    changed = [
        change(chunk.float() / 255).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
        for chunk in samples.images.split(CHUNK)
    ]
    return Split(torch.cat(changed), samples.labels)


_APPLY = (_rotation, _translation, _noise, _blur, _contrast, _inversion, _imbalance, _label_sorted)
SHIFTS: Mapping[str, Shift] = {
    name: Shift(*table, apply) for (name, table), apply in zip(SEVERITY_TABLES.items(), _APPLY, strict=True)
}
