"""Data sets as whole tensors on the device, and batches by index; importing the package fills `datasets`.

spec = parse(datasets["mnist"], {"root": "data"}, "data")
bundle = load(spec)
batches = Batches(bundle.train, batch_size=spec.batch_size, seed=0, mean=bundle.mean, std=bundle.std)
for images, labels in batches.epoch(0): ...
"""

from bnlab.data.augment import Augment
from bnlab.data.batches import Batches
from bnlab.data.bundle import DataBundle, DataSpec, Split, datasets, load
from bnlab.data.digits import Digits
from bnlab.data.image_folder import Folder
from bnlab.data.vision import Cifar10, Cifar100, FashionMnist, Mnist

__all__ = [
    "Augment",
    "Batches",
    "Cifar10",
    "Cifar100",
    "DataBundle",
    "DataSpec",
    "Digits",
    "FashionMnist",
    "Folder",
    "Mnist",
    "Split",
    "datasets",
    "load",
]
