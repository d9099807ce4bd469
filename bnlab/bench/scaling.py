"""The same comparison at growing sizes: does the overhead of a normalization grow or shrink with its layers?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from bnlab.bench.arms import BenchArm, BenchSection, fitting, left_out
from bnlab.data.bundle import DataBundle, Split
from bnlab.errors import ConfigError, IncompatibleError
from bnlab.experiment.config import parse_config
from bnlab.experiment.setup import bundle_of

Size = Literal["width", "image", "batch"]
WIDTHS = (0.5, 1.0, 2.0, 4.0)  # times the model's own
IMAGES = (8, 16, 32, 64)  # pixels a side, random images
BATCHES = (16, 64, 256, 1024)
RANDOM_IMAGES = 1024


@dataclass(frozen=True)
class Level:
    """One size: what it is called, its place on an axis, and the contest's section."""

    label: str
    size: float
    section: BenchSection


def levels(section: BenchSection, size: Size) -> list[Level]:
    """Return `section` at each size, without the arms that do not fit there.

    Errors: ConfigError where there is none, as the data set is smaller than every batch.
    """
    bundle = bundle_of(section.arms[0].config.data)
    sized = {"width": _by_width, "image": _by_image, "batch": _by_batch}[size](section, bundle)
    named = []
    for label, level, changed in sized:
        fits = fitting(changed, changed.images or bundle)
        if fits is not None:
            named.append(Level(label, level, replace(fits, title=f"{section.title} {size} {label}".strip())))
    if not named:
        raise ConfigError(f"--scale {size}: nothing fits\n{bundle.name} has {len(bundle.train):,} training images")
    return named


def _by_width(section: BenchSection, bundle: DataBundle) -> Iterator[tuple[str, float, BenchSection]]:
    for factor in WIDTHS:

        def wider(tree: dict[str, Any], factor: float = factor) -> None:
            model = tree["model"]
            if "widths" in model:
                model["widths"] = [max(1, round(width * factor)) for width in model["widths"]]
            else:
                model["width"] = max(1, round(model["width"] * factor))

        changed = _changed(section, wider)
        if changed.arms:
            model = changed.arms[0].tree["model"]
            widths = model.get("widths") or [model["width"]]
            yield "-".join(map(str, widths)), max(widths), changed


def _by_image(section: BenchSection, bundle: DataBundle) -> Iterator[tuple[str, float, BenchSection]]:
    for side in IMAGES:
        yield f"{side} x {side}", side, replace(section, images=_random_images(bundle, side))


def _by_batch(section: BenchSection, bundle: DataBundle) -> Iterator[tuple[str, float, BenchSection]]:
    for batch in BATCHES:

        def larger(tree: dict[str, Any], batch: int = batch) -> None:
            tree["data"]["batch_size"] = batch

        if batch <= len(bundle.train):
            yield f"{batch:,}", batch, _changed(section, larger)


def _changed(section: BenchSection, change: Callable[[dict[str, Any]], None]) -> BenchSection:
    arms, missing = [], list(section.left_out)
    for arm in section.arms:
        tree = _copy(arm.tree)
        change(tree)
        try:
            arms.append(BenchArm(arm.label, parse_config(tree), tree))
        except IncompatibleError as error:
            missing.append(left_out(arm.label, error))
    return replace(section, arms=tuple(arms), left_out=tuple(missing))


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _random_images(bundle: DataBundle, side: int) -> DataBundle:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (RANDOM_IMAGES, bundle.image_shape[0], side, side), dtype=torch.uint8, generator=draw
    )
    labels = torch.randint(0, bundle.num_classes, (RANDOM_IMAGES,), generator=draw)
    name = f"random images {side} x {side}"
    return replace(bundle, name=name, train=Split(pixels, labels), fingerprint=name)
