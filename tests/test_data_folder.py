"""Image folders: every kind of image converted, every fault named before training, the cache never trusted blindly."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_cases import for_each
from helpers_cli import SHORT
from helpers_images import bomb
from helpers_training import train
from PIL import Image

from bnlab.data import decode, image_folder
from bnlab.data.bundle import load
from bnlab.data.dataset import datasets
from bnlab.data.decode import printable
from bnlab.errors import ConfigError, DataError
from bnlab.metrics import warnings_of
from bnlab.report.console import Terminal
from bnlab.report.data_report import images_passed_over, images_used
from bnlab.report.run_report import run_page
from bnlab.runner import monitor
from bnlab.schema import parse

REAL = Path(__file__).parents[2] / "shared" / "data" / "cifar10-jpeg.tar.xz"


def image(path, color=(200, 100, 50), size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def spec(path, root, **keys):
    return parse(datasets["folder"], {"path": str(path), "root": str(root), "size": 8, "valid_size": 2} | keys, "data")


@pytest.fixture
def pictures(tmp_path):
    """Two classes of ten images each, `cat` with red = 10 to 19 and `dog` with red = 110 to 119."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(10):
            image(tmp_path / "pictures" / name / f"{number}.png", (100 * label + 10 + number, 0, 0))
    return tmp_path / "pictures"


def faults(path, tmp_path, **keys):
    with pytest.raises(DataError) as caught:
        load(spec(path, tmp_path, **keys))
    return str(caught.value)


def reds(split):
    return sorted(split.images[:, 0, 0, 0].tolist())


def test_one_folder_of_classes_is_split_in_shares(pictures, tmp_path):
    bundle = load(spec(pictures, tmp_path, test_share=0.3))
    assert bundle.classes == ("cat", "dog")
    assert [len(bundle.train), len(bundle.valid), len(bundle.test)] == [12, 2, 6]
    assert torch.bincount(bundle.test.labels).tolist() == [3, 3]
    everything = reds(bundle.train) + reds(bundle.valid) + reds(bundle.test)
    assert sorted(everything) == [*range(10, 20), *range(110, 120)]
    for split in (bundle.train, bundle.valid, bundle.test):
        assert torch.equal(split.images[:, 0, 0, 0] >= 110, split.labels == 1)
    assert load(spec(pictures, tmp_path, test_share=0.3)).fingerprint == bundle.fingerprint


def test_train_and_test_folders_stay_apart(pictures, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    pictures.rename(both / "train")
    image(both / "test/cat/a.png", (1, 0, 0))
    image(both / "test/dog/b.png", (2, 0, 0))
    bundle = load(spec(both, tmp_path))
    assert reds(bundle.test) == [1, 2]
    assert bundle.test.labels.tolist() == [0, 1]
    assert len(bundle.train) + len(bundle.valid) == 20


def test_path_is_required(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path: must name the folder"):
        load(spec("", tmp_path))


def test_images_are_resized_and_turned_grey(pictures, tmp_path):
    bundle = load(spec(pictures, tmp_path, size=5, channels=1))
    assert bundle.image_shape == (1, 5, 5)
    grey = Image.new("RGB", (1, 1), (110, 0, 0)).convert("L").getpixel((0, 0))
    assert grey in bundle.train.images.unique().tolist() + bundle.test.images.unique().tolist()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "color", "name", "red"),
    [
        ("CMYK", (0, 255, 255, 0), "a.jpg", 255),
        ("L", 77, "a.png", 77),
        ("1", 1, "a.png", 255),
        ("P", 0, "a.png", 0),
        ("LA", (200, 0), "a.png", 255),
        ("RGBA", (200, 200, 200, 0), "a.png", 255),
        ("RGBA", (0, 0, 0, 128), "a.png", 127),
        ("RGBA", (200, 200, 200, 255), "a.png", 200),
        ("I;16", 51_400, "a.png", 200),
        ("I", 51_400, "a.tiff", 200),
        ("LAB", (255, 128, 128), "a.tiff", 255),
        ("RGB", (60, 60, 60), "A.BMP", 60),
        ("RGB", (60, 60, 60), "a.webp", 60),
        ("RGB", (60, 60, 60), "a.tiff", 60),
    ],
)
def test_every_kind_of_image_is_converted(mode, color, name, red, channels, pictures, tmp_path):
    image(pictures / "cat" / name, color, mode=mode)
    pixels = load(spec(pictures, tmp_path, valid_size=0, channels=channels, test_share=0.05))
    expected = red
    if mode == "CMYK" and channels == 1:
        expected = 76  # pure red as grey: 0.299 of 255
    everything = torch.cat([pixels.train.images, pixels.test.images])
    assert (everything[:, 0, 4, 4].int() - expected).abs().min() <= 3
    assert len(everything) == 21


def test_a_single_pixel_and_a_long_strip_are_resized(pictures, tmp_path):
    image(pictures / "cat/dot.png", (250, 0, 0), (1, 1))
    image(pictures / "cat/strip.png", (251, 0, 0), (300, 1))
    bundle = load(spec(pictures, tmp_path))
    assert {250, 251} <= set(reds(bundle.train) + reds(bundle.valid) + reds(bundle.test))


def test_every_bad_file_is_named_at_once(pictures, tmp_path):
    (pictures / "cat/text.jpg").write_text("no image")
    (pictures / "cat/empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pictures / "dog/cut.jpg")
    whole = (pictures / "dog/cut.jpg").read_bytes()
    (pictures / "dog/cut.jpg").write_bytes(whole[: len(whole) // 2])
    bomb(pictures / "dog/bomb.png", 9_000, 9_000)
    bomb(pictures / "dog/huge.png", 60_000, 60_000)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(pictures / "dog/float.tiff")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(pictures / "dog/deep.tiff")
    lines = faults(pictures, tmp_path).splitlines()
    assert lines[0].endswith("faults found: 7; mend them:")
    told = dict(line.split(": ", 1) for line in lines[1:])
    assert told["cat/text.jpg"] == told["cat/empty.png"] == "not an image, or damaged"
    assert "truncated" in told["dog/cut.jpg"]
    assert told["dog/bomb.png"] == "9000 x 9000 pixels, more than 64,000,000; save it smaller"
    assert told["dog/huge.png"] == "60000 x 60000 pixels, more than 64,000,000; save it smaller"
    assert "floating-point" in told["dog/float.tiff"]
    assert "samples beyond 16 bits" in told["dog/deep.tiff"]
    assert not (tmp_path / "cache").exists()


def test_many_bad_files_are_counted(pictures, tmp_path):
    for number in range(15):
        (pictures / f"cat/bad{number}.jpg").write_text("no image")
    lines = faults(pictures, tmp_path).splitlines()
    assert "faults found: 15" in lines[0]
    assert lines[-1] == "... and 5 more"
    assert len(lines) == 12


def test_what_is_passed_over_is_counted_by_its_reason(pictures, tmp_path):
    (pictures / "cat/notes.txt").write_text("no image")
    (pictures / "cat/.thumb.jpg").write_text("no image")
    (pictures / "cat/photo.HEIC").write_text("no image that Pillow reads")
    (pictures / "cat/a.a name that goes on").write_text("no image")
    (pictures / ".git").mkdir()
    (pictures / "readme.md").write_text("no class")
    image(pictures / "stray.png")
    image(pictures / "@eaDir/cat/SYNOPHOTO_THUMB_M.jpg")
    image(pictures / "dog/@eaDir/SYNOPHOTO_THUMB_M.jpg")
    image(pictures / "__MACOSX/cat/0.png")
    (pictures / "dog/cats").symlink_to("../cat")
    (pictures / "dog/up").symlink_to("..")
    (pictures / "dog/up.png").symlink_to("..")
    pages = [Image.new("L", (4, 4), grey) for grey in (9, 10, 11)]
    pages[0].save(pictures / "dog/pages.tiff", save_all=True, append_images=pages[1:])
    bundle = load(spec(pictures, tmp_path, train_size=9))
    assert bundle.about["images"] == {"train": 9, "valid": 2, "test": 4}
    assert bundle.about["passed_over"] == {
        "hidden": 2,
        "folder @eaDir": 2,
        "folder __MACOSX": 1,
        "link to a folder": 3,
        "outside the class folders": 1,
        ".txt": 1,
        ".heic": 1,
        ".md": 1,
        "without a suffix": 1,
        "further frames or pages": 2,
        "left by data.train_size": 6,
    }


def test_many_kinds_of_other_files_are_added_up(pictures, tmp_path):
    for number in range(30):
        (pictures / f"cat/a.x{number}").write_text("no image")
    passed = load(spec(pictures, tmp_path)).about["passed_over"]
    assert len(passed) == 11
    assert passed["of other kinds"] == 20


def test_images_below_the_folder_of_a_class_are_of_that_class(pictures, tmp_path):
    for number in range(3):
        image(pictures / f"cat/from web/2019/{number}.png", (50 + number, 0, 0))
    bundle = load(spec(pictures, tmp_path, valid_size=0))
    both = torch.cat([bundle.train.labels, bundle.test.labels])
    assert torch.bincount(both).tolist() == [13, 10]
    assert bundle.about["passed_over"] == {}
    shutil.rmtree(pictures / "cat/from web/2019")
    for number in range(10):
        (pictures / f"cat/{number}.png").rename(pictures / f"cat/from web/{number}.png")  # none directly in it
    assert load(spec(pictures, tmp_path)).num_classes == 2


@for_each("names", [("train", "val", "test"), ("Train", "VALID", "Test"), ("training_set", "validation", "test set")])
def test_the_folders_of_splits_may_be_called_in_several_ways(names, tmp_path):
    place = tmp_path / names[0] / "all"
    for share, name in enumerate(names):
        for label, of in enumerate(("cat", "dog")):
            for number in range(4 - share):
                image(place / name / of / f"{number}.png", (100 * share + 10 * label + number, 0, 0))
    bundle = load(spec(place, place.parent, valid_size=100))
    assert reds(bundle.train) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert reds(bundle.valid) == [100, 101, 102, 110, 111, 112]
    assert reds(bundle.test) == [200, 201, 210, 211]
    assert torch.equal(bundle.valid.images[:, 0, 0, 0] >= 110, bundle.valid.labels == 1)
    assert bundle.about["images"] == {"train": 8, "valid": 6, "test": 4}
    shutil.rmtree(place / names[2])
    bundle = load(spec(place, place.parent, test_share=0.25))
    assert reds(bundle.valid) == [100, 101, 102, 110, 111, 112]
    assert [len(bundle.train), len(bundle.test)] == [6, 2]
    assert set(reds(bundle.test)) <= {0, 1, 2, 3, 10, 11, 12, 13}
    shutil.rmtree(place / names[0])
    assert "a split by the name, but there is no train folder\nname" in faults(place, place.parent)
    (place / names[0]).symlink_to(tmp_path)
    assert f": {names[1]}: {names[0]} is a link to a folder, which is not followed" in faults(place, place.parent)


def test_a_class_may_be_called_as_a_split_is(pictures, tmp_path):
    for name in ("train", "test"):
        image(pictures / name / "a.png")
    assert load(spec(pictures, tmp_path)).classes == ("cat", "dog", "test", "train")
    (pictures / "test/a.png").unlink()
    (pictures / "test").rmdir()
    image(pictures / "train/steam/b.png")
    told = faults(pictures, tmp_path)
    assert ": train: a split by the name, but cat, dog lie beside it\nif it is a class, rename it" in told


def test_folders_beside_those_of_splits_are_counted(pictures, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(pictures, both / "train")
    shutil.copytree(pictures, both / "test")
    image(both / "unlabelled/a.png")
    (both / "docs").mkdir()
    assert load(spec(both, tmp_path)).about["passed_over"] == {"outside the class folders": 1}
    shutil.copytree(pictures, both / "testing")
    assert "two folders for one split\nkeep one" in faults(both, tmp_path)


def test_images_for_testing_without_classes_are_refused(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "both/train")
    image(tmp_path / "both/test/1.png")
    assert "test: no images in folders of classes" in faults(tmp_path / "both", tmp_path)


def test_classes_are_told_by_their_names_however_these_are_written(tmp_path):
    for split, form in (("train", "NFC"), ("val", "NFC"), ("test", "NFD")):
        for number, name in enumerate(("café", "Übung", "z")):
            if (split, name) != ("test", "z"):
                image(tmp_path / "all" / split / unicodedata.normalize(form, name) / "a.png", (number, 0, 0))
    bundle = load(spec(tmp_path / "all", tmp_path))
    assert bundle.classes == ("café", "z", "Übung")
    assert bundle.test.labels.tolist() == [0, 2]
    assert bundle.test.images[:, 0, 0, 0].tolist() == [0, 1]
    assert any(doubt == "test has no images of 1 of 3 classes: z" for doubt in bundle.about["warnings"])
    image(tmp_path / "all/test/Z/a.png")
    assert "test/Z: no such class for training" in faults(tmp_path / "all", tmp_path)
    (tmp_path / "all/test/Z/a.png").rename(tmp_path / "all/test/Z/a.txt")
    image(tmp_path / "all/train/Z/a.png")
    doubts = load(spec(tmp_path / "all", tmp_path)).about["warnings"]
    assert "2 classes differ from another in capitals only: Z, z" in doubts
    image(tmp_path / "all/train" / unicodedata.normalize("NFD", "café") / "a.png")
    assert "there twice, its accents written in two ways" in faults(tmp_path / "all", tmp_path)


def test_folders_that_are_no_data_set(pictures, tmp_path):
    (pictures / "bird").mkdir()
    assert "bird: no images in this class" in faults(pictures, tmp_path)
    with pytest.raises(ConfigError, match="absent: no such folder"):
        faults(tmp_path / "absent", tmp_path)
    image(tmp_path / "single/cat/a.png")
    assert "1 class folders in" in faults(tmp_path / "single", tmp_path)
    (tmp_path / "none").mkdir()
    assert "0 class folders in" in faults(tmp_path / "none", tmp_path)
    image(tmp_path / "half/train/cat/a.png")
    assert f"1 class folders in {tmp_path}/half/train; at least 2 are needed" in faults(tmp_path / "half", tmp_path)
    around = tmp_path / "around"
    around.mkdir()
    pictures.rename(around / "pictures")
    assert f"if the classes lie in pictures, set data.path={around}/pictures" in faults(around, tmp_path)


def test_classes_of_train_and_test_must_be_the_same(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/cow"):
        image(tmp_path / "both" / name / "a.png")
    told = faults(tmp_path / "both", tmp_path)
    assert "test/cow: no such class for training; did you mean cat?" not in told
    assert "test/cow: no such class for training" in told


def test_too_few_images_for_the_validation_asked_for(pictures, tmp_path):
    with pytest.raises(ConfigError, match=r"data.valid_size=16: leaves nothing .*\n.*16 training images"):
        load(spec(pictures, tmp_path, valid_size=16))


def test_links_that_lead_out_are_named_and_not_followed(pictures, tmp_path):
    secret = image(tmp_path / "secret/a.png")
    (pictures / "cat/out.png").symlink_to(secret)
    (pictures / "wolf").symlink_to(secret.parent)
    (pictures / "cat/loop.png").symlink_to("loop.png")
    (pictures / "cat/nothing.png").symlink_to("absent.png")
    os.mkfifo(pictures / "cat/pipe.png")
    told = faults(pictures, tmp_path)
    assert "cat/out.png: a link that leads out of the folder" in told
    assert "wolf: a link that leads out of the folder" in told
    assert "cat/loop.png: a link to nothing" in told
    assert "cat/nothing.png: a link to nothing" in told
    assert "cat/pipe.png: not a file" in told


def test_links_within_the_folder_are_followed(pictures, tmp_path):
    (pictures / "cat/again.png").symlink_to("0.png")
    bundle = load(spec(pictures, tmp_path, valid_size=0))
    assert reds(bundle.train).count(10) + reds(bundle.test).count(10) == 2


def test_names_that_are_no_text_are_printed_escaped(pictures, tmp_path):
    root = os.fsencode(pictures)
    os.mkdir(root + b"/b\xffd\x1b[2J")
    good = (pictures / "cat/0.png").read_bytes()
    Path(os.fsdecode(root + b"/b\xffd\x1b[2J/ok.png")).write_bytes(good)
    bundle = load(spec(pictures, tmp_path))
    assert bundle.classes[0] == r"b\xffd\x1b[2J"
    Path(os.fsdecode(root + b"/cat/\xfe\n.png")).write_bytes(b"no image")
    told = faults(pictures, tmp_path)
    assert r"cat/\xfe\n.png: not an image" in told
    assert printable("größe") == "größe"


def test_an_unreadable_folder_is_no_traceback(pictures, tmp_path, monkeypatch):
    def refuse(path):
        if path.endswith("/cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refuse)
    assert "cat: Permission denied" in faults(pictures, tmp_path)


@pytest.fixture
def decodes(monkeypatch):
    """The number of files decoded so far, as a list that grows."""
    seen = []
    real = image_folder.decode_all

    def counted(root, paths, *arguments, **keys):
        seen.extend(paths)
        return real(root, paths, *arguments, **keys)

    monkeypatch.setattr(image_folder, "decode_all", counted)
    return seen


def noise(path, seed, size=(8, 8), low=0, high=256):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(low, high, size, dtype=np.uint8)).save(path)


def test_images_of_one_colour_or_few_levels_are_counted(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        for number in range(6):
            noise(tmp_path / f"all/{name}/{number}.png", 10 * label + number)
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[2:5, 2:5, 3] = 255
    Image.fromarray(ink).save(tmp_path / "all/cat/ink.png")  # black on nothing
    bright = Image.fromarray(np.random.default_rng(0).integers(0, 4096, (8, 8)).astype(np.uint16))
    bright.save(tmp_path / "all/dog/twelve of sixteen bits.png")
    noise(tmp_path / "all/dog/classes.png", 0, high=5)
    few = "2 of 15 images are of fewer than 16 of 256 levels; one is dog/classes.png"
    assert load(spec(tmp_path / "all", tmp_path)).about["warnings"] == [few]
    doubts = load(spec(tmp_path / "all", tmp_path, background="black")).about["warnings"]
    plain = "1 of 15 images is of one colour only; what is transparent shows data.background; one is cat/ink.png"
    assert doubts == [plain, few]


def test_images_that_stand_in_two_splits_or_classes_are_counted(tmp_path):
    for split, numbers in (("train", range(6)), ("val", range(5, 8)), ("test", range(3, 6))):
        for label, name in enumerate(("cat", "dog")):
            for number in numbers:
                noise(tmp_path / f"all/{split}/{name}/{number}.png", 10 * label + number)
    noise(tmp_path / "all/train/dog/again.png", 0)
    noise(tmp_path / "all/train/dog/twice.png", 11)  # of one class, which is common
    assert load(spec(tmp_path / "all", tmp_path)).about["warnings"] == [
        "2 of 6 valid images are in training too, to be known by heart; one is val/cat/5.png and train/cat/5.png",
        "6 of 6 test images are in training too, to be known by heart; one is test/cat/3.png and train/cat/3.png",
        "1 image is in another class too; one is train/dog/again.png and train/cat/0.png",
    ]


def test_images_set_apart_for_testing_are_looked_up_among_those_for_training(tmp_path):
    for number in range(20):
        noise(tmp_path / f"all/cat/{number}.png", number % 10)
        noise(tmp_path / f"all/dog/{number}.png", 100 + number)
    (doubt,) = load(spec(tmp_path / "all", tmp_path)).about["warnings"]
    assert "of 8 test images are in training too" in doubt


@for_each("orientation", range(1, 9))
def test_photographs_are_turned_as_viewers_turn_them(orientation, tmp_path):
    rng = np.random.default_rng(orientation)
    upright = rng.integers(0, 256, (2, 2), dtype=np.uint8).repeat(16, 0).repeat(8, 1)
    first_row_and_column = {  # where these are in the picture as it is seen: the words of the EXIF standard
        1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left",
        5: "left top", 6: "right top", 7: "right bottom", 8: "left bottom",
    }  # fmt: skip
    row, column = first_row_and_column[orientation].split()
    grid = upright if row in ("top", "bottom") else upright.T
    grid = grid[::-1] if row in ("bottom", "right") else grid
    stored = Image.fromarray(np.ascontiguousarray(grid[:, ::-1] if column in ("bottom", "right") else grid))
    exif = Image.Exif()
    exif[274] = orientation
    for suffix in ("jpg", "png", "webp", "tiff"):
        stored.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
        pixels, wrong = image_folder.decode_all(str(tmp_path), [f"a.{suffix}"], 32, 1, mean_bytes=1)
        assert wrong == []
        wanted = np.asarray(Image.fromarray(upright).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(pixels[0, 0].astype(int) - wanted).mean() < 3, suffix


def test_damaged_metadata_leave_a_picture_as_it_is(tmp_path):
    Image.new("L", (8, 8), 9).save(tmp_path / "a.jpg", exif=b"Exif\0\0no TIFF at all")
    pixels, wrong = image_folder.decode_all(str(tmp_path), ["a.jpg"], 8, 1, mean_bytes=1)
    assert wrong == []
    assert (pixels == 9).all()


def test_sixteen_bits_and_palettes_may_be_transparent(tmp_path):
    deep = Image.fromarray(np.array([[0, 51_400]], np.uint16))
    deep.save(tmp_path / "deep.png", transparency=0)
    flat = Image.new("P", (2, 1))
    flat.putpalette([10, 10, 10, 200, 200, 200])
    flat.putpixel((1, 0), 1)
    flat.save(tmp_path / "flat.png", transparency=0)
    for background, ground in (("white", 255), ("black", 0)):
        pixels, wrong = image_folder.decode_all(
            str(tmp_path), ["deep.png", "flat.png"], 2, 1, mean_bytes=1, background=background
        )
        assert wrong == []
        assert pixels[:, 0, 0].tolist() == [[ground, 200]] * 2


def test_twelve_bits_of_a_tiff_are_scaled_by_their_depth():
    samples = Image.fromarray(np.array([[0, 4095, 2048]], np.uint16))
    assert np.asarray(decode._flat(samples, 255, 12)).tolist() == [[0, 255, 128]]
    samples.tag_v2 = {258: (12,)}
    assert decode._bits(samples) == 12


@for_each("progressive", [False, True])
def test_a_photograph_of_many_pixels_is_decoded_small(progressive, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 64 * 64)
    Image.new("L", (160, 120), 90).save(tmp_path / "a.jpg", progressive=progressive)
    pixels, wrong = image_folder.decode_all(str(tmp_path), ["a.jpg"], 8, 1, mean_bytes=1)
    if progressive:  # is held whole while it is decoded
        assert wrong == [("a.jpg", "160 x 120 pixels, more than 4,096; save it smaller")]
    else:
        assert wrong == []
        assert (pixels == 90).all()


def test_a_run_says_what_was_used_and_passed_over(tmp_path, capsys):
    for number in range(40):
        noise(tmp_path / f"all/{('cat', 'dog')[number % 2]}/{number // 2 % 19}-{number // 38}.png", number // 2 % 19)
    (tmp_path / "all/cat/notes.txt").write_text("no image")
    keys = [f"data.path={tmp_path}/all", f"data.root={tmp_path}", "data.size=8", "data.valid_size=4"]
    train(["data=folder", *keys, "data.batch_size=8", *SHORT, "trainer.steps=2", "eval.every=1"], tmp_path / "run")
    about = json.loads((tmp_path / "run/environment.json").read_text())["data"]
    assert about["images"] == {"train": 28, "valid": 4, "test": 8}
    assert about["passed_over"] == {".txt": 1}
    assert len(about["warnings"]) == 2
    assert monitor.summarize(tmp_path / "run", False, "", None, {}) == 0
    told = capsys.readouterr()
    used, passed = "40 images of 2 classes: 28 train, 4 valid, 8 test", "1 .txt"
    assert f"\n{tmp_path}/all: {used}; passed over: {passed}\n" in told.out
    assert all(f"warning: {doubt}\n" in told.err for doubt in about["warnings"])
    out = Terminal(sys.stdout)
    out.print(run_page(json.loads((tmp_path / "run/summary.json").read_text()), {}, tmp_path / "run", out))
    page = " ".join(capsys.readouterr().out.split())
    assert f"images {used} passed over {passed} machine" in page
    assert about["warnings"][0] in page
    for strange in (None, [], {"images": 3, "passed_over": [1], "warnings": "text"}, {"images": {"train": "x"}}):
        assert images_used({"data": strange}) == images_passed_over({"data": strange}) == ""
        assert warnings_of({"environment": {"data": strange}}) == []


def test_the_home_folder_may_be_a_tilde(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    load(spec("~/pictures", "~/roots"))
    assert (tmp_path / "roots/cache").is_dir()


def test_the_second_time_the_cache_answers(pictures, tmp_path, decodes):
    first = load(spec(pictures, tmp_path))
    assert load(spec(pictures, tmp_path, test_share=0.5, flip=True)).num_classes == 2
    assert load(spec(pictures, tmp_path)).fingerprint == first.fingerprint
    assert len(decodes) == 20
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


@pytest.mark.parametrize("change", ["edit", "add", "size", "channels", "background"])
def test_any_change_is_decoded_anew(change, pictures, tmp_path, decodes):
    image(pictures / "cat/3.png", (1, 2, 3, 0), mode="RGBA")
    before = load(spec(pictures, tmp_path))
    if change == "edit":
        image(pictures / "cat/3.png", (99, 0, 0))
    elif change == "add":
        image(pictures / "dog/x.png")
    keys = {"size": {"size": 7}, "channels": {"channels": 1}, "background": {"background": "black"}}
    after = load(spec(pictures, tmp_path, **keys.get(change, {})))
    assert len(decodes) == (41 if change == "add" else 40)
    assert after.fingerprint != before.fingerprint


def test_the_pixels_are_those_of_the_files_whatever_their_names_sizes_and_times_say(pictures, tmp_path):
    for path in pictures.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    before = load(spec(pictures, tmp_path))
    file = pictures / "dog/7.bmp"
    state = file.stat()
    image(file, (33, 0, 0))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file.stat().st_size == state.st_size
    after = load(spec(pictures, tmp_path))
    assert after.fingerprint != before.fingerprint
    assert 33 in reds(after.train) + reds(after.valid) + reds(after.test)


def test_equal_files_have_one_cache_wherever_they_lie(pictures, tmp_path, decodes):
    before = load(spec(pictures, tmp_path))
    shutil.copytree(pictures, tmp_path / "moved", copy_function=shutil.copyfile)
    assert load(spec(tmp_path / "moved", tmp_path)).fingerprint == before.fingerprint
    assert len(decodes) == 20


def test_files_that_change_while_they_are_read_are_not_kept(pictures, tmp_path, monkeypatch):
    real = image_folder.decode_all

    def changed(*arguments, **keys):
        image(pictures / "cat/0.png", (7, 7, 7))
        return real(*arguments, **keys)

    monkeypatch.setattr(image_folder, "decode_all", changed)
    assert "changed while they were read\nrun it again" in faults(pictures, tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_cache_is_built_anew(damage, pictures, tmp_path, decodes):
    before = load(spec(pictures, tmp_path)).fingerprint
    (cache,) = (tmp_path / "cache").iterdir()
    data = bytearray(cache.read_bytes())
    data[len(data) // 2] ^= 1
    cache.write_bytes({"flip": bytes(data), "cut": data[:900], "empty": b"", "text": b"hello"}[damage])
    assert load(spec(pictures, tmp_path)).fingerprint == before
    assert len(decodes) == 40
    assert load(spec(pictures, tmp_path)).fingerprint == before
    assert len(decodes) == 40


def test_a_cache_that_cannot_be_written_is_only_a_warning(pictures, tmp_path, caplog):
    (tmp_path / "blocked").write_text("a file where the root should be")
    with caplog.at_level(logging.WARNING):
        assert load(spec(pictures, tmp_path / "blocked")).num_classes == 2
    assert "no cache of the images" in caplog.text


def test_threads_give_the_same_pixels(pictures):
    paths = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)] * 40
    one, none = image_folder.decode_all(str(pictures), paths, 8, 3, mean_bytes=1)
    several, none_again = image_folder.decode_all(str(pictures), paths, 8, 3, mean_bytes=1e6)
    assert none == none_again == []
    assert np.array_equal(one, several)


@pytest.mark.skipif(not REAL.is_file(), reason="the JPEG copy of CIFAR-10 is not in ../shared/data")
def test_real_photographs(tmp_path):
    with tarfile.open(REAL) as tar:  # the first files only: unpacking all of them takes seconds
        for count, member in enumerate(member for member in tar if member.isfile()):
            if count == 60:
                break
            target = tmp_path / "photos" / f"class{count % 3}" / Path(member.name).name
            target.parent.mkdir(parents=True, exist_ok=True)
            stream = tar.extractfile(member)
            target.write_bytes(stream.read())
    bundle = load(spec(tmp_path / "photos", tmp_path, size=32))
    assert bundle.image_shape == (3, 32, 32)
    assert bundle.train.images.float().std() > 20
