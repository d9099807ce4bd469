"""The same comparison at growing sizes: does the overhead of a normalization grow or shrink with its layers?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from bnlab.bench.arms import BenchArm, BenchSection, fitting, left_out
from bnlab.bench.engine import ArmTime, ContestTime, by_block, figures
from bnlab.bench.pairing import over_blocks
from bnlab.compare.slopes import FEWEST_LEVELS
from bnlab.data.bundle import DataBundle, Split
from bnlab.errors import ConfigError, IncompatibleError
from bnlab.experiment.config import parse_config
from bnlab.experiment.setup import bundle_of
from bnlab.interval import Interval

Size = Literal["width", "image", "batch", "data"]
WIDTHS = (0.5, 1.0, 2.0, 4.0)  # times the model's own
IMAGES = (8, 16, 32, 64)  # pixels a side, random images
BATCHES = (16, 64, 256, 1024)
RANDOM_IMAGES = 1024
TRAINING_SETS = (128, 256, 512, 1024, 2048, 4096, 8192)
MOST_SETS = 4  # the largest of those that there are


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
    if size == "data":
        return [_by_data(section, bundle)]
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


def _by_data(section: BenchSection, bundle: DataBundle) -> Level:
    """Return all arms at all sizes of the training set as one section: a step of each in turn."""
    batch = section.arms[0].config.data.batch_size
    sizes = [size for size in TRAINING_SETS if batch <= size <= len(bundle.train)][-MOST_SETS:]
    if len(sizes) < FEWEST_LEVELS:
        raise ConfigError(
            f"--scale data: {bundle.name} has {len(bundle.train):,} training images, and {FEWEST_LEVELS} sizes of "
            f"{', '.join(f'{size:,}' for size in TRAINING_SETS)} have to hold a batch of {batch}\nset a smaller "
            "data.batch_size, or take more data"
        )
    parts = []
    for size in sizes:

        def cut(tree: dict[str, Any], size: int = size) -> None:
            tree["data"]["train_size"] = size

        parts.append(_changed(section, cut))
    arms = [replace(arm, label=f"{arm.label} {size:,}") for size, part in zip(sizes, parts, strict=True)
            for arm in part.arms]  # fmt: skip
    missing = tuple(dict.fromkeys(line for part in parts for line in part.left_out))
    return Level("", 0, replace(section, title=f"{section.title} data".strip(), arms=tuple(arms), left_out=missing))


@dataclass(frozen=True)
class Growth:
    """A strategy's step time by the size of the training set, and the exponent p of epoch time ~ size^p."""

    label: str
    step_ms: Mapping[int, float]
    exponent: Interval  # mean over blocks, each fitted by least squares of the logarithms


def growths(section: BenchSection, times: ContestTime) -> list[Growth]:
    """Return how each strategy of a section by `levels(..., "data")` grows."""
    by_label = {time.label: time for time in times.arms}
    strategies: dict[str, dict[int, ArmTime]] = {}
    for arm in section.arms:
        if (size := arm.config.data.train_size) is not None and arm.label in by_label:
            strategies.setdefault(arm.label.rpartition(" ")[0], {})[size] = by_label[arm.label]
    found = []
    for label, sized in strategies.items():
        logs = [math.log(size) for size in sized]
        epochs = zip(*(by_block(arm)["epoch_ms"] for arm in sized.values()), strict=True)
        slopes = [statistics.linear_regression(logs, [math.log(ms) for ms in block]).slope for block in epochs]
        found.append(Growth(label, {size: arm.step_ms for size, arm in sized.items()}, over_blocks(slopes)))
    return found


def growth_rows(section: BenchSection, times: ContestTime) -> list[dict[str, Any]]:
    """Return the figures of every contender, with the exponent of its strategy."""
    exponents = {growth.label: growth.exponent for growth in growths(section, times)}
    rows = []
    for arm in times.arms:
        p = exponents[arm.label.rpartition(" ")[0]]
        rows.append(figures(times, arm) | {"exponent": p.value, "exponent_low": p.low, "exponent_high": p.high})
    return rows


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
