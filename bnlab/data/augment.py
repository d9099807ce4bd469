"""Random shifts, crops and mirror images as tensor operations on a whole batch.

The images are padded once, where they lie. A batch then picks one window of each padded image, which costs about what
picking the image would; nothing loops over samples. All random numbers of an epoch are drawn at once, on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bnlab.errors import ConfigError
from bnlab.seeding import generator


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to each training image: `shift` fills with black, `crop` with a reflection; one of them is 0."""

    shift: int = 0
    flip: bool = False
    crop: int = 0

    @property
    def active(self) -> bool:
        """Whether anything is done to an image."""
        return self != Augment()

    @property
    def margin(self) -> int:
        """Pixels added on each side."""
        return self.shift or self.crop

    def check(self, height: int, width: int) -> None:
        """Refuse a move of a whole image or more. Errors: ConfigError."""
        for key in ("shift", "crop"):
            if getattr(self, key) >= min(height, width):
                raise ConfigError(
                    f"data.{key}={getattr(self, key)}: must be below {min(height, width)}, "
                    f"the images are {height}x{width} pixels"
                )

    def pad(self, images: Tensor) -> Tensor:
        """Return `images`, uint8 of shape (N, C, H, W), with the margin around them.

        The reflection does not repeat the edge: d c b | a b c d | c b a.
        """
        height, width = images.shape[2:]
        self.check(height, width)
        if self.shift:
            return functional.pad(images, (self.shift,) * 4)
        if self.crop:
            rows = _reflected(height, self.crop).to(images.device)
            columns = _reflected(width, self.crop).to(images.device)
            return images.index_select(2, rows).index_select(3, columns)
        return images

    def draw(self, count: int, seed: int, epoch: int) -> Tensor:
        """Return what is drawn for `count` samples of one epoch: int64 of shape (0 to 3, count).

        The rows are the window's top and left in [0, 2 margin], where there is a margin, then 1 to mirror and 0 not.
        What an earlier row draws does not depend on whether a later one is there.
        """
        source = generator(seed, "augmentation", epoch)
        rows = []
        if self.margin:
            rows.append(torch.randint(0, 2 * self.margin + 1, (2, count), generator=source))
        if self.flip:
            rows.append(torch.randint(0, 2, (1, count), generator=source))
        return torch.cat(rows) if rows else torch.empty((0, count), dtype=torch.int64)

    def pick(self, padded: Tensor, rows: Tensor, drawn: Tensor, *, channels_last: bool) -> Tensor:
        """Return one batch in the layout of `padded`: (B, H, W, C) with `channels_last`, else (B, C, H, W).

        `rows`, int64 of shape (B,), are sample numbers and `drawn`, shape (0 to 3, B), comes from `draw`.
        """
        if self.margin:
            picked = _windows(padded, self.margin, channels_last)[rows, drawn[0], drawn[1]]
        else:
            picked = padded.index_select(0, rows)
        if self.flip:
            mirror = drawn[-1].bool().view(-1, 1, 1, 1)
            picked = torch.where(mirror, picked.flip(2 if channels_last else 3), picked)
        return picked


def _windows(padded: Tensor, margin: int, channels_last: bool) -> Tensor:
    """Return every window of every image as a view: (N, tops, lefts, *image), no copy."""
    first = 1 if channels_last else 2
    height, width = (padded.shape[first + i] - 2 * margin for i in (0, 1))
    windows = padded.unfold(first, height, 1).unfold(first + 1, width, 1)
    return windows.permute(0, 1, 2, 4, 5, 3) if channels_last else windows.permute(0, 2, 3, 1, 4, 5)


def _reflected(size: int, margin: int) -> Tensor:
    """Return the source positions of a padded axis: margin, ..., 1, 0, 1, ..., size - 1, size - 2, ..."""
    position = torch.arange(-margin, size + margin).abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)
