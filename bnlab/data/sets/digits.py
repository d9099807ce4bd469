"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn: real data without a download."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.data.dataset import DataSpec, datasets
from bnlab.data.sources import Source
from bnlab.schema import param

if TYPE_CHECKING:
    import numpy as np

    from bnlab.data.bundle import Parts

NUM_TEST = 360  # the set publishes no test split; this stratified fifth is ours and always the same


@datasets.register("digits")
@dataclass(frozen=True, kw_only=True)
class Digits(DataSpec):
    """1,797 handwritten digits, 8x8 grey, 10 classes; embedded in scikit-learn, no download."""

    source = Source("Alpaydin and Kaynak 1998, UCI; comes with scikit-learn", "CC BY 4.0", "1,437 + 360", "1x8x8", 10)
    num_train = 1797 - NUM_TEST
    num_test = NUM_TEST
    target = 0.95

    valid_size: int = param(
        200, "samples taken from the training images for validation, the same for every seed", low=0
    )

    def read(self) -> Parts:
        """Read the table that scikit-learn ships: 64 pixels of 0 to 16, scaled to 0 to 255, and the digit."""
        import torch

        from bnlab.data.bundle import Parts, Split, hold_out

        table = torch.from_numpy(_table())
        pixels = (table[:, :64].double() * (255 / 16)).round().to(torch.uint8)
        train, test = hold_out(Split(pixels.view(-1, 1, 8, 8), table[:, 64].long()), NUM_TEST)
        return Parts(tuple("0123456789"), train, test)


def _table() -> np.ndarray[Any, np.dtype[np.uint8]]:
    # Importing scikit-learn takes over a second, reading its file four milliseconds. Where the file lies is no public
    # promise, so where it is not found the public function answers.
    import numpy as np

    package = find_spec("sklearn")
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",", dtype=np.uint8)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target]).astype(np.uint8)
