"""A folder of the user's own images, one folder a class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bnlab.data.dataset import DataSpec, datasets
from bnlab.data.sources import Source
from bnlab.errors import ConfigError
from bnlab.schema import param

if TYPE_CHECKING:
    from bnlab.data.bundle import Parts


@datasets.register("folder")
@dataclass(frozen=True, kw_only=True)
class Folder(DataSpec):
    """Your own images: path/CLASS/*.jpg, which is split, or path/train/CLASS/*.jpg with folders val, test or both."""

    source = Source("your own images, data.path=...", "yours", "as found", "CxSxS", None)

    valid_size: int = param(
        100, "samples taken from the training images for validation, if there is no folder for it", low=0
    )
    path: str = param("", "folder of the images, relative to the working directory")
    size: int = param(32, "images are resized to size x size pixels", low=1, high=1024)
    channels: Literal[1, 3] = param(3, "1 for grey, 3 for colour")
    background: Literal["white", "black"] = param("white", "what is transparent in an image shows this")
    test_share: float = param(
        0.2, "share of each class kept for testing, if there is no test folder", above=0, high=0.9
    )

    def read(self) -> Parts:
        """Errors: ConfigError without `path`; DataError naming every file and folder that cannot be used."""
        from bnlab.data.image_folder import read_folder

        if not self.path:
            raise ConfigError("data.path: must name the folder of images, for example data.path=pictures")
        path, root = (os.path.expanduser(place) for place in (self.path, self.root))
        return read_folder(path, root, self.size, self.channels, self.test_share, self.background)
