"""One seed, separate generators: changing how one purpose draws never shifts another."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

Purpose = Literal["weights", "order", "augmentation", "dropout", "probes", "split", "noise"]


def derived_seed(seed: int, purpose: Purpose, index: int = 0) -> int:
    """Return a 63-bit seed that depends on `seed`, `purpose` and `index` alone."""
    digest = hashlib.sha256(f"bnlab:{purpose}:{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: Purpose, index: int = 0) -> torch.Generator:
    """Return a CPU generator for one purpose; `index` separates draws that recur, such as those of each epoch.

    An epoch can so be drawn without replaying those before it, which an exact resume needs. The generator stays on the
    CPU on every device, so that order and augmentation are the same on CPU and CUDA; what is drawn for an epoch travels
    to the device in one transfer.
    """
    return torch.Generator(device="cpu").manual_seed(derived_seed(seed, purpose, index))
