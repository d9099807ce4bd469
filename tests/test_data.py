"""Data sets: splits that are fixed and nested, and torchvision's files with every fault named before they are read."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bnlab.data.bundle import DataBundle, Split, hold_out, load, stratified_order
from bnlab.data.dataset import datasets
from bnlab.data.sets import digits
from bnlab.errors import ConfigError, DataError
from bnlab.schema import parse

REAL = Path(__file__).parents[2] / "shared" / "data"


def make(name, **keys):
    return parse(datasets[name], keys, "data")


def test_digits_are_scikit_learns_pixels_and_labels():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    assert np.array_equal(digits._table(), np.column_stack([theirs.data, theirs.target]))
    parts = make("digits").read()
    assert (len(parts.train), len(parts.test)) == (1437, 360)
    ours = torch.cat([parts.train.images, parts.test.images]).flatten(1)
    assert {0, 16, 255} <= set(ours.unique().tolist())  # 0, 1 and 16 of 16
    scaled = np.rint(theirs.data * 255 / 16).astype(np.uint8)
    assert sorted(ours.tolist()) == sorted(scaled.tolist())


def test_digits_are_read_without_the_file_of_scikit_learn(monkeypatch):
    direct = digits._table()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    assert np.array_equal(digits._table(), direct)


def test_splits_share_no_sample_and_cover_all():
    bundle = load(make("digits", valid_size=300))
    assert [len(bundle.train), len(bundle.valid), len(bundle.test)] == [1137, 300, 360]
    together = torch.cat([split.images.flatten(1) for split in (bundle.train, bundle.valid, bundle.test)])
    everything = make("digits").read()
    expected = torch.cat([everything.train.images, everything.test.images]).flatten(1)
    assert sorted(together.tolist()) == sorted(expected.tolist())
    assert bundle.image_shape == (1, 8, 8)
    assert bundle.num_classes == 10


def test_training_subsets_are_nested_and_validation_stays():
    large, small = load(make("digits", train_size=900)), load(make("digits", train_size=90))
    assert torch.equal(small.train.images, large.train.images[:90])
    assert torch.equal(small.valid.images, large.valid.images)
    other = load(make("digits", train_size=90, valid_size=400))
    assert torch.equal(small.train.images, other.train.images)


def test_the_split_has_not_moved():
    labels = load(make("digits")).train.labels[:12].tolist()
    assert labels == load(make("digits", valid_size=0)).train.labels[:12].tolist()
    assert stratified_order(torch.tensor([0, 1] * 4)).tolist() == [4, 7, 6, 3, 2, 5, 0, 1]


def test_prefixes_and_suffixes_are_stratified():
    labels = torch.tensor([0] * 500 + [1] * 300 + [2] * 200)
    order = stratified_order(labels)
    assert sorted(order.tolist()) == list(range(1000))
    for taken in (labels[order[:100]], labels[order[-100:]], labels[order[:10]]):
        wanted = torch.tensor([0.5, 0.3, 0.2]) * len(taken)
        assert (torch.bincount(taken, minlength=3) - wanted).abs().max() <= 1


def test_hold_out_splits_every_class():
    samples = Split(torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1), torch.arange(40) % 4)
    train, test = hold_out(samples, 8)
    assert torch.bincount(test.labels).tolist() == [2, 2, 2, 2]
    assert sorted([*train.images.flatten().tolist(), *test.images.flatten().tolist()]) == list(range(40))


def test_mean_and_std_are_those_of_the_training_split():
    bundle = load(make("digits", train_size=500))
    pixels = bundle.train.images.double() / 255
    torch.testing.assert_close(bundle.mean.double(), pixels.mean((0, 2, 3)), rtol=0, atol=1e-7)
    torch.testing.assert_close(bundle.std.double(), pixels.std((0, 2, 3), correction=0), rtol=0, atol=1e-7)


def test_a_constant_channel_has_std_one():
    bundle = load(make("digits"))
    black = dataclasses.replace(bundle, train=Split(torch.zeros(3, 2, 4, 4, dtype=torch.uint8), torch.zeros(3)))
    assert black.mean.tolist() == [0, 0]
    assert black.std.tolist() == [1, 1]


def test_fingerprint_tells_any_difference_and_nothing_else():
    first = load(make("digits"))
    assert re.fullmatch("[0-9a-f]{64}", first.fingerprint)
    assert load(make("digits", batch_size=8, flip=True)).fingerprint == first.fingerprint
    assert load(make("digits", valid_size=201)).fingerprint != first.fingerprint
    assert load(make("digits", train_size=1000)).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"valid_size": 1437}, r"data.valid_size=1437: leaves nothing .*\n.*at most 1,436"),
        ({"train_size": 1300}, r"data.train_size=1300: at most 1,237"),
        ({"train_size": 0}, r"data.train_size=0: must be at least 1"),
        ({"batch_size": 2000, "last_batch": "drop"}, r"data.batch_size=2000: .*no batch"),
        ({"shift": 1, "crop": 2}, r"data.shift=1 and data.crop=2"),
        ({"last_batch": "kep"}, r"data.last_batch=kep.*did you mean keep"),
        ({"batchsize": 3}, r"data.batchsize: no such key; did you mean batch_size"),
    ],
)
def test_impossible_configurations_are_refused_before_reading(keys, message):
    with pytest.raises(ConfigError, match=message):
        make("digits", **keys)


def test_a_move_beyond_the_image_is_refused_on_loading():
    with pytest.raises(ConfigError, match=r"data.shift=8: must be below 8, the images are 8x8"):
        load(make("digits", shift=8))


def test_the_sources_are_torchvisions():
    import torchvision.datasets as theirs

    for name, cls in (("mnist", theirs.MNIST), ("fashion_mnist", theirs.FashionMNIST)):
        source = datasets[name].source
        assert list(source.mirrors) == cls.mirrors
        assert [(archive.name, archive.md5) for archive in source.archives] == cls.resources
        assert {archive.folder for archive in source.archives} == {f"{cls.__name__}/raw"}
    for name, cls in (("cifar10", theirs.CIFAR10), ("cifar100", theirs.CIFAR100)):
        source, (archive,) = datasets[name].source, datasets[name].source.archives
        assert source.mirrors[0] + archive.name == cls.url
        assert (archive.name, archive.md5) == (cls.filename, cls.tgz_md5)
        meta = [cls.meta["filename"], cls.meta["md5"]]
        listed = [[Path(file.path).name, file.md5] for file in archive.files]
        assert listed == [*cls.train_list, *cls.test_list, meta]
        assert {str(Path(file.path).parent) for file in archive.files} == {cls.base_folder}


def test_every_data_set_has_a_status(tmp_path):
    for name in datasets:
        source = datasets[name].source
        there = source.status(tmp_path)
        assert there.state == ("missing" if source.archives else "yours" if name == "folder" else "present"), name
        assert there.bytes_on_disk == 0
    assert {"mnist", "fashion_mnist", "cifar10", "cifar100"} <= {n for n in datasets if datasets[n].source.archives}


def test_missing_files_are_named_with_size_checksum_and_advice(tmp_path):
    with pytest.raises(DataError) as caught:
        load(make("mnist", root=str(tmp_path)))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"mnist: not in {tmp_path}: MNIST/raw/train-images-idx3-ubyte, ")
    assert "9,912,422 bytes, MD5 f68b3c2dcbeaaa9fbdd348bbdeb94873" in lines[0]
    assert f"bnlab data fetch mnist --root {tmp_path}" in lines[1]
    assert "data=digits" in lines[1]


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """12 + 4 images in MNIST's format, with the sizes that `sources` expects set to theirs."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    arrays = [rng.integers(0, 256, (12, 5, 5)), np.arange(12) % 10, rng.integers(0, 256, (4, 5, 5)), np.arange(4)]
    archives = []
    for archive, array in zip(datasets["mnist"].source.archives, arrays, strict=True):
        (file,) = archive.files
        data = idx(array)
        (tmp_path / file.path).write_bytes(data)
        archives.append(dataclasses.replace(archive, files=(dataclasses.replace(file, size=len(data), md5=None),)))
    source = dataclasses.replace(datasets["mnist"].source, archives=tuple(archives))
    monkeypatch.setattr(datasets["mnist"], "source", source)
    monkeypatch.setattr(datasets["mnist"], "num_train", 12)
    return tmp_path, arrays


def test_mnist_keeps_its_test_images_apart(small_mnist):
    root, arrays = small_mnist
    bundle = load(make("mnist", root=str(root), valid_size=2))
    assert torch.equal(bundle.test.images, torch.as_tensor(arrays[2], dtype=torch.uint8)[:, None])
    assert bundle.test.labels.tolist() == [0, 1, 2, 3]
    both = torch.cat([bundle.train.images, bundle.valid.images]).flatten(1)
    assert sorted(both.tolist()) == sorted(arrays[0].reshape(12, -1).tolist())


def test_a_truncated_file_is_named_with_both_sizes(tmp_path):
    for archive in datasets["mnist"].source.archives:
        path = tmp_path / archive.files[0].path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"ab")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: 2 bytes, expected 47,040,016"):
        load(make("mnist", root=str(tmp_path)))
    assert datasets["mnist"].source.status(tmp_path).state == "damaged"
    assert datasets["mnist"].source.status(tmp_path).bytes_on_disk == 8


def test_a_file_of_the_right_size_with_garbage_is_no_assertion(small_mnist):
    root, _ = small_mnist
    path = root / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(DataError, match=r"mnist: the files in .* are damaged: .*\n.*bnlab data fetch mnist"):
        load(make("mnist", root=str(root), valid_size=2))


def test_a_label_out_of_range_is_refused(small_mnist):
    root, _ = small_mnist
    (root / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(idx(np.array([0, 1, 2, 77])))
    with pytest.raises(DataError, match="a label is outside 0 to 9"):
        load(make("mnist", root=str(root), valid_size=2))


@pytest.fixture
def known_mnist(small_mnist, monkeypatch):
    """The small MNIST with its MD5s, and a Fashion-MNIST of the same sizes; returns the root and that one's bytes."""
    root, _ = small_mnist
    strangers = {}
    for name in ("mnist", "fashion_mnist"):
        archives = []
        sizes = [archive.files[0].size for archive in datasets["mnist"].source.archives]
        for archive, size in zip(datasets[name].source.archives, sizes, strict=True):
            path = archive.files[0].path
            data = (root / path).read_bytes() if name == "mnist" else bytes([len(strangers)]) * size
            if name != "mnist":
                strangers[Path(path).name] = data
            file = dataclasses.replace(archive.files[0], size=size, md5=hashlib.md5(data).hexdigest())
            archives.append(dataclasses.replace(archive, files=(file,)))
        monkeypatch.setattr(
            datasets[name], "source", dataclasses.replace(datasets[name].source, archives=tuple(archives))
        )
    return root, strangers


@pytest.mark.parametrize("changed", range(4))
def test_files_of_another_content_are_noticed_whatever_their_size(changed, known_mnist):
    root, strangers = known_mnist
    load(make("mnist", root=str(root), valid_size=2))
    path = root / datasets["mnist"].source.files[changed].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"mnist: file {path}: MD5 [0-9a-f]{{32}}, expected [0-9a-f]{{32}}\nget it"):
        load(make("mnist", root=str(root), valid_size=2))
    assert datasets["mnist"].source.status(root).state == "damaged"
    path.write_bytes(strangers[path.name])
    with pytest.raises(DataError, match=rf"mnist: {path} is a file of fashion_mnist\n.*{root}/FashionMNIST/raw/"):
        load(make("mnist", root=str(root), valid_size=2))


def test_what_lies_nearby_is_named(known_mnist, monkeypatch):
    root, _ = known_mnist
    for deep in ("MNIST", "MNIST/raw"):
        with pytest.raises(DataError, match=rf"it lies in {root}: set data.root={root}\nget it"):
            load(make("mnist", root=str(root / deep), valid_size=2))
    file = root / "MNIST/raw/train-images-idx3-ubyte"
    monkeypatch.setenv("HOME", str(root))
    load(make("mnist", root="~", valid_size=2))
    file.rename(root / "train-images.idx3-ubyte")
    with pytest.raises(DataError, match=rf"{root}/train-images.idx3-ubyte is there: rename it to {file}\nget it"):
        load(make("mnist", root=str(root), valid_size=2))
    (root / "train-images.idx3-ubyte").rename(f"{file}.gz")
    with pytest.raises(DataError, match=rf"{file}.gz is there: `bnlab data fetch mnist --root {root}` unpacks it"):
        load(make("mnist", root=str(root), valid_size=2))


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """2 images a batch in CIFAR-10's format, with sizes and checksums set to theirs."""
    import torchvision.datasets as theirs

    rng = np.random.default_rng(0)
    (tmp_path / "cifar-10-batches-py").mkdir()
    pixels, files = [], []
    archive = datasets["cifar10"].source.archives[0]
    for number, file in enumerate(archive.files):
        data = {"label_names": list("abcdefghij")}
        if number < 6:
            pixels.append(rng.integers(0, 256, (2, 3072), dtype=np.uint8))
            data = {"data": pixels[-1], "labels": [number, number + 1]}
        stored = pickle.dumps(data)
        (tmp_path / file.path).write_bytes(stored)
        files.append(dataclasses.replace(file, size=len(stored), md5=hashlib.md5(stored).hexdigest()))
    listed = [[Path(file.path).name, file.md5] for file in files]
    monkeypatch.setattr(theirs.CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(theirs.CIFAR10, "test_list", listed[5:6])
    monkeypatch.setattr(theirs.CIFAR10, "meta", theirs.CIFAR10.meta | {"md5": listed[6][1]})
    source = dataclasses.replace(
        datasets["cifar10"].source, archives=(dataclasses.replace(archive, files=tuple(files)),)
    )
    monkeypatch.setattr(datasets["cifar10"], "source", source)
    monkeypatch.setattr(datasets["cifar10"], "num_train", 10)
    return tmp_path, pixels


def test_cifar10_is_read_with_channels_first(small_cifar10):
    root, pixels = small_cifar10
    bundle = load(make("cifar10", root=str(root), valid_size=1))
    assert torch.equal(bundle.test.images, torch.from_numpy(pixels[5]).view(2, 3, 32, 32))
    assert bundle.test.labels.tolist() == [5, 6]
    assert bundle.classes == tuple("abcdefghij")
    assert bundle.train.images.is_contiguous()
    assert bundle.mean.shape == (3,)


def test_cifar10_with_a_wrong_checksum_is_named_and_never_unpickled(small_cifar10):
    root, _ = small_cifar10
    path = root / "cifar-10-batches-py/data_batch_3"
    stored = path.read_bytes()
    path.write_bytes(stored[:-9] + b"X" + stored[-8:])
    with pytest.raises(DataError, match=r"cifar10: file .*cifar-10-batches-py/data_batch_3: MD5 .*, expected .*\nget"):
        load(make("cifar10", root=str(root), valid_size=1))


@pytest.mark.skipif(not (REAL / "MNIST/raw").is_dir(), reason="the real MNIST files are not in ../shared/data")
def test_the_real_mnist():
    bundle = load(make("mnist", root=str(REAL)))
    assert [len(bundle.train), len(bundle.valid), len(bundle.test)] == [55_000, 5_000, 10_000]
    assert bundle.mean.item() == pytest.approx(0.1307, abs=2e-4)
    assert bundle.std.item() == pytest.approx(0.3081, abs=2e-4)
    assert bundle.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    shares = torch.bincount(bundle.valid.labels) / 5000 - torch.bincount(bundle.train.labels) / 55_000
    assert shares.abs().max() < 3e-4


def test_counts_name_what_the_test_split_lacks() -> None:
    def split(*labels: int) -> Split:
        return Split(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))

    def counts(*labels: int) -> str:
        return DataBundle("folder", ("a", "b", "c", "d", "e"), split(0, 1, 2, 3, 4), split(), split(*labels), "").counts

    assert counts(0, 1, 2, 3, 4) == "5 training, 0 validation and 5 test images of 5 classes"
    assert counts(1, 2, 3, 4).endswith("of 5 classes, none of a in test")
    assert counts(3).endswith("of 5 classes, none of a, b, c and others in test")
