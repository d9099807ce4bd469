"""Batches: every sample once an epoch, the same order everywhere, and augmentation equal to a loop over samples."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers_cases import for_each
from torch.nn import functional

from bnlab.data.augment import Augment
from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.errors import ConfigError

LAYOUTS = [(channels, last) for channels in (1, 3) for last in (False, True)]
MOVES = [Augment(shift=2), Augment(crop=3), Augment(flip=True), Augment(shift=1, flip=True), Augment(crop=2, flip=True)]


def split(samples=23, channels=1, height=6, width=5):
    images = torch.randint(0, 256, (samples, channels, height, width), generator=torch.Generator().manual_seed(3))
    return Split(images.to(torch.uint8), torch.arange(samples))


def labels(batches, epoch=0, start=0):
    return [y.tolist() for _, y in batches.epoch(epoch, start)]


@for_each(
    ("samples", "last_batch", "sizes"),
    [
        (23, "keep", [5, 5, 5, 5, 3]),
        (23, "drop", [5, 5, 5, 5]),
        (23, "merge", [5, 5, 5, 8]),
        (20, "keep", [5, 5, 5, 5]),
        (20, "merge", [5, 5, 5, 5]),
        (3, "keep", [3]),
        (3, "merge", [3]),
    ],
)
def test_last_batch(samples, last_batch, sizes):
    batches = Batches(split(samples), batch_size=5, last_batch=last_batch)
    seen = labels(batches)
    assert [len(y) for y in seen] == sizes
    assert batches.steps_per_epoch == len(sizes)
    assert len(set(itertools.chain(*seen))) == sum(sizes)


def test_dropping_the_only_batch_is_refused():
    with pytest.raises(ConfigError, match=r"data\.batch_size=5"):
        Batches(split(3), batch_size=5, last_batch="drop")


def test_images_and_labels_stay_together():
    data = split()
    for x, y in Batches(data, batch_size=4).epoch(0):
        torch.testing.assert_close(x, data.images[y] / 255)


def test_order_depends_on_seed_and_epoch_alone():
    plain = Batches(split(), batch_size=5, seed=7)
    other = Batches(split(channels=3), batch_size=5, seed=7, channels_last=True, storage="uint8", augment=MOVES[4])
    assert labels(plain, 2) == labels(other, 2)
    assert labels(plain, 2) != labels(plain, 3)
    assert labels(plain, 2) != labels(Batches(split(), batch_size=5, seed=8), 2)
    state = torch.get_rng_state()
    labels(other, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_order_has_not_moved():
    assert list(itertools.chain(*labels(Batches(split(8), batch_size=8, seed=0)))) == [6, 1, 0, 2, 7, 5, 4, 3]


def test_an_epoch_goes_on_from_any_batch():
    batches = Batches(split(), batch_size=5, seed=1, augment=MOVES[3])
    whole, rest = list(batches.epoch(4)), list(batches.epoch(4, start=2))
    assert len(rest) == 3
    for (x, y), (x_again, y_again) in zip(whole[2:], rest, strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)


@for_each(("channels", "last"), LAYOUTS)
def test_standardized(channels, last):
    data = split(channels=channels)
    mean, std = torch.linspace(0.2, 0.5, channels), torch.linspace(0.3, 0.6, channels)
    batches = Batches(data, batch_size=23, mean=mean, std=std, channels_last=last)
    ((x, y),) = batches.epoch(0)
    expected = (data.images[y].double() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-6)


@for_each("augment", [Augment(), *MOVES])
@for_each(("channels", "last"), LAYOUTS)
def test_storages_and_layouts_agree_bit_for_bit(channels, last, augment):
    keys = {"batch_size": 5, "seed": 2, "mean": torch.full((channels,), 0.3), "std": torch.full((channels,), 0.4)}
    data = split(channels=channels)
    reference = Batches(data, **keys, augment=augment)
    for storage in ("float32", "uint8"):
        batches = Batches(data, **keys, augment=augment, storage=storage, channels_last=last)
        for (x, y), (x_there, y_there) in zip(batches.epoch(1), reference.epoch(1), strict=True):
            assert torch.equal(x, x_there)
            assert torch.equal(y, y_there)
            assert x.dtype == torch.float32


def one_by_one(image, augment, top, left, mirror):
    """The augmentation of one image of shape (C, H, W), written with slices and torch's own padding."""
    height, width = image.shape[1:]
    margin = augment.shift or augment.crop
    mode = {"mode": "reflect"} if augment.crop else {}
    padded = functional.pad(image.double(), (margin,) * 4, **mode) if margin else image.double()
    window = padded[:, top : top + height, left : left + width]
    return window.flip(2) if mirror else window


@for_each("augment", MOVES)
@for_each(("channels", "last"), LAYOUTS)
def test_augmentation_equals_a_loop_over_samples(channels, last, augment):
    data = split(60, channels)
    drawn = augment.draw(60, seed=5, epoch=3)
    moved = iter(drawn.T.tolist())
    for x, y in Batches(data, batch_size=16, seed=5, augment=augment, channels_last=last).epoch(3):
        for image, sample in zip(x, y.tolist(), strict=True):
            numbers = next(moved)
            top, left = numbers[:2] if augment.margin else (0, 0)
            wanted = one_by_one(data.images[sample], augment, top, left, augment.flip and numbers[-1])
            torch.testing.assert_close(image.double(), wanted / 255, rtol=0, atol=1e-6)


@for_each("augment", MOVES)
def test_draws_cover_their_range_evenly(augment):
    drawn = augment.draw(20_000, seed=0, epoch=0)
    assert drawn.shape[0] == 2 * bool(augment.margin) + augment.flip
    for row in drawn[: 2 if augment.margin else 0]:
        shares = torch.bincount(row) / 20_000
        assert len(shares) == 2 * augment.margin + 1
        assert (shares * len(shares) - 1).abs().max() < 0.1
    if augment.flip:
        assert drawn[-1].float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(drawn, augment.draw(20_000, seed=0, epoch=1))


def test_flipping_does_not_change_the_moves():
    both, alone = Augment(shift=2, flip=True).draw(50, 1, 1), Augment(shift=2).draw(50, 1, 1)
    assert torch.equal(both[:2], alone)


def test_filled_with_black_after_standardization():
    data = Split(torch.full((40, 1, 4, 4), 255, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64))
    batches = Batches(data, batch_size=40, mean=torch.tensor([0.5]), std=torch.tensor([0.25]), augment=Augment(shift=2))
    ((x, _),) = batches.epoch(0)
    assert x.unique().tolist() == [-2, 2]


@for_each("key", ["shift", "crop"])
def test_a_move_beyond_the_image_is_refused(key):
    with pytest.raises(ConfigError, match=f"data.{key}=5: must be below 5, the images are 6x5"):
        Batches(split(), batch_size=5, augment=Augment(**{key: 5}))


@for_each("augment", [Augment(), *MOVES])
@for_each("storage", ["float32", "uint8"])
@for_each(("channels", "last"), LAYOUTS)
def test_batches_arrive_in_their_memory_format(channels, last, storage, augment):
    batches = Batches(split(8, channels), batch_size=4, channels_last=last, storage=storage, augment=augment)
    layout = torch.channels_last if last else torch.contiguous_format
    convolution = torch.nn.Conv2d(channels, 4, 3, padding=1).to(memory_format=layout)
    for x, _ in [*batches.epoch(0), *batches.sequential(4)]:
        assert x.is_contiguous(memory_format=layout)
        assert convolution(x).is_contiguous(memory_format=layout)


@for_each("augment", [Augment(), *MOVES])
@for_each(("channels", "last"), LAYOUTS)
def test_sequential_is_plain_and_in_order(channels, last, augment):
    data = split(channels=channels)
    batches = Batches(data, batch_size=2, augment=augment, channels_last=last)
    seen = list(batches.sequential(10))
    assert [len(y) for _, y in seen] == [10, 10, 3]
    torch.testing.assert_close(torch.cat([x for x, _ in seen]), data.images / 255)
    assert torch.cat([y for _, y in seen]).tolist() == list(range(23))


def test_an_empty_split_can_be_evaluated():
    empty = Split(torch.empty(0, 1, 4, 4, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    batches = Batches(empty, batch_size=4)
    assert sum(len(y) for _, y in batches.sequential(8)) == 0
    assert list(batches.epoch(0)) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@for_each("augment", [Augment(), *MOVES])
def test_cuda_sees_the_same_batches(augment):
    keys = {"batch_size": 5, "seed": 4, "mean": torch.full((3,), 0.4), "std": torch.full((3,), 0.2), "augment": augment}
    data = split(channels=3)
    here, there = Batches(data, **keys), Batches(data, **keys, device="cuda", channels_last=True)
    for (x, y), (x_there, y_there) in zip(here.epoch(1), there.epoch(1), strict=True):
        torch.testing.assert_close(x_there.cpu().contiguous(), x, rtol=0, atol=1e-6)
        assert torch.equal(y_there.cpu(), y)


def test_one_channel_has_the_strides_of_channels_last() -> None:
    """A convolution chooses its layout by them, although both layouts are the same bytes."""
    images = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
    for storage in ("float32", "uint8"):
        batches = Batches(
            Split(images, torch.zeros(6, dtype=torch.int64)), batch_size=3, channels_last=True, storage=storage
        )
        for batch, _ in [next(batches.epoch(0)), next(batches.sequential(3))]:
            assert batch.stride() == (16, 1, 4, 1)
