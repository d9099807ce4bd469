"""Image folders: every kind of image converted, every fault named before training, the cache never trusted blindly."""

from __future__ import annotations

import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_images import bomb
from PIL import Image

from bnlab.data import image_folder
from bnlab.data.bundle import load
from bnlab.data.dataset import datasets
from bnlab.data.decode import printable
from bnlab.errors import ConfigError, DataError
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
        ("LA", (200, 0), "a.png", 0),
        ("RGBA", (200, 200, 200, 0), "a.png", 0),
        ("RGBA", (200, 200, 200, 255), "a.png", 200),
        ("I;16", 51_400, "a.png", 200),
        ("I", 51_400, "a.tiff", 200),
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
    bomb(pictures / "dog/large.png", 10_000, 10_000)
    bomb(pictures / "dog/huge.png", 60_000, 60_000)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(pictures / "dog/float.tiff")
    lines = faults(pictures, tmp_path).splitlines()
    assert lines[0].endswith("faults found: 7; mend them:")
    told = dict(line.split(": ", 1) for line in lines[1:])
    assert told["cat/text.jpg"] == told["cat/empty.png"] == "not an image, or damaged"
    assert "truncated" in told["dog/cut.jpg"]
    assert told["dog/bomb.png"] == "9000 x 9000 pixels, more than 64,000,000"
    assert told["dog/large.png"] == "10000 x 10000 pixels, more than 64,000,000"
    assert "bomb" in told["dog/huge.png"]
    assert "floating-point" in told["dog/float.tiff"]
    assert not (tmp_path / "cache").exists()


def test_many_bad_files_are_counted(pictures, tmp_path):
    for number in range(15):
        (pictures / f"cat/bad{number}.jpg").write_text("no image")
    lines = faults(pictures, tmp_path).splitlines()
    assert "faults found: 15" in lines[0]
    assert lines[-1] == "... and 5 more"
    assert len(lines) == 12


def test_other_files_and_hidden_ones_are_passed_over(pictures, tmp_path):
    (pictures / "cat/notes.txt").write_text("no image")
    (pictures / "cat/.thumb.jpg").write_text("no image")
    (pictures / ".git").mkdir()
    (pictures / "readme.md").write_text("no class")
    bundle = load(spec(pictures, tmp_path))
    assert len(bundle.train) + len(bundle.valid) + len(bundle.test) == 20


def test_folders_that_are_no_data_set(pictures, tmp_path):
    (pictures / "bird").mkdir()
    assert "bird: no images in this class" in faults(pictures, tmp_path)
    assert "no such folder" in faults(tmp_path / "absent", tmp_path)
    image(tmp_path / "single/cat/a.png")
    assert "1 class folders in" in faults(tmp_path / "single", tmp_path)
    (tmp_path / "none").mkdir()
    assert "0 class folders in" in faults(tmp_path / "none", tmp_path)
    image(tmp_path / "half/train/cat/a.png")
    assert "one of train and test" in faults(tmp_path / "half", tmp_path)


def test_classes_of_train_and_test_must_be_the_same(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/cow"):
        image(tmp_path / "both" / name / "a.png")
    told = faults(tmp_path / "both", tmp_path)
    assert "test/cow: no such class in train" in told
    assert "test/dog: missing" in told


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
        raise PermissionError(13, "Permission denied", str(path))

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


def test_the_second_time_the_cache_answers(pictures, tmp_path, decodes):
    first = load(spec(pictures, tmp_path))
    assert load(spec(pictures, tmp_path, test_share=0.5, flip=True)).num_classes == 2
    assert load(spec(pictures, tmp_path)).fingerprint == first.fingerprint
    assert len(decodes) == 20
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


@pytest.mark.parametrize("change", ["edit", "rename", "add", "size"])
def test_any_change_is_decoded_anew(change, pictures, tmp_path, decodes):
    before = load(spec(pictures, tmp_path))
    if change == "edit":
        image(pictures / "cat/3.png", (99, 0, 0))
        os.utime(pictures / "cat/3.png", ns=(1, 1))
    elif change == "rename":
        (pictures / "cat/3.png").rename(pictures / "cat/x.png")
    elif change == "add":
        image(pictures / "dog/x.png")
    after = load(spec(pictures, tmp_path, size=7 if change == "size" else 8))
    assert len(decodes) == (41 if change == "add" else 40)
    assert after.fingerprint != before.fingerprint


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
