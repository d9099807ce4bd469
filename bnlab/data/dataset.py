"""What every data set is: its keys, where its files come from, and what its splits can hold.

Neither this nor the modules of `sets/` import torch before a data set is read: a listing of them takes no time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bnlab.data.sources import Source
from bnlab.errors import ConfigError, count_of
from bnlab.registry import Registry
from bnlab.schema import param

if TYPE_CHECKING:
    from bnlab.data.augment import Augment
    from bnlab.data.bundle import Parts


@dataclass(frozen=True, kw_only=True)
class DataSpec(ABC):
    """The keys common to every data set; a subclass adds its own and reads the files."""

    name: ClassVar[str]
    source: ClassVar[Source]
    target: ClassVar[float | None] = None  # test accuracy that a small network passes in a few epochs, and not at once
    num_train: ClassVar[int | None] = None  # official training images, where they are known before reading
    num_test: ClassVar[int | None] = None  # test images, where they are known

    root: str = param("data", "folder that holds the data sets, relative to the working directory")
    train_size: int | None = param(None, "train on this many samples; a smaller subset lies in every larger one", low=1)
    valid_size: int = param(0, "samples taken from the training images for validation, the same for every seed", low=0)
    batch_size: int = param(64, "samples in a batch", low=1)
    last_batch: Literal["keep", "drop", "merge"] = param(
        "keep", "what becomes of a short last batch: merge joins it to the one before"
    )
    storage: Literal["float32", "uint8"] = param(
        "float32", "how images are held; uint8 takes a quarter, and is normalized in each batch"
    )
    shift: int = param(0, "move each image by up to this many pixels, filled with black", low=0)
    flip: bool = param(False, "mirror half of the images, left to right")
    crop: int = param(0, "move each image by up to this many pixels, filled with its reflection", low=0)

    def __post_init__(self) -> None:
        if self.shift and self.crop:
            raise ConfigError(
                f"data.shift={self.shift} and data.crop={self.crop}: both move the image, only the filling differs\n"
                "set one of them to 0"
            )
        if self.num_train is not None:
            self.check_sizes(self.num_train)

    @abstractmethod
    def read(self) -> Parts:
        """Read the files. Errors: DataError if they are missing or damaged."""

    @property
    def augment(self) -> Augment:
        """What is done to each training image anew in every epoch."""
        from bnlab.data.augment import Augment

        return Augment(shift=self.shift, flip=self.flip, crop=self.crop)

    def check_sizes(self, available: int) -> int:
        """Return how many of the `available` training images are trained on.

        Errors: ConfigError if the splits do not fit, or if `last_batch=drop` leaves no batch.
        """
        if self.valid_size >= available:
            raise ConfigError(
                f"data.valid_size={self.valid_size}: leaves nothing to train on\n"
                f"{self.name} has {count_of(available, 'training image')}: at most {available - 1:,}"
            )
        rest = available - self.valid_size
        if self.train_size is not None and self.train_size > rest:
            raise ConfigError(
                f"data.train_size={self.train_size}: at most {rest:,}, which is {available:,} training images "
                f"less data.valid_size={self.valid_size}"
            )
        count = rest if self.train_size is None else self.train_size
        if self.last_batch == "drop" and self.batch_size > count:
            raise ConfigError(
                f"data.batch_size={self.batch_size}: with data.last_batch=drop there is no batch\n"
                f"the training split has {count:,} images; use at most that, or data.last_batch=keep"
            )
        return count


datasets: Registry[DataSpec] = Registry("data", "bnlab.data.sets")


def test_images_of(name: Any) -> int | None:
    """Return how many test images a data set has; None where that is not known before reading."""
    return datasets[name].num_test if name in datasets else None


def target_of(name: Any) -> float | None:
    """Return the accuracy that a comparison measures steps and seconds to; None for data sets without one."""
    return datasets[name].target if name in datasets else None
