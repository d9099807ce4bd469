"""Keep freed memory in the process: a training step allocates the same blocks again and again.

glibc hands large blocks back to the kernel after every step and faults them in again, page by page (thousands of page
faults a step on a small CNN). Asked once, before training, it keeps them.
"""

from __future__ import annotations

import ctypes
import sys

# parameters of mallopt(3), from malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024  # glibc refuses more


def keep_freed_memory() -> bool:
    """Set the allocator; return whether it took the settings (False where the C library is not glibc)."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (M_TRIM_THRESHOLD, 2**31 - 1),
        (M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD),
        (M_TOP_PAD, 64 * 1024 * 1024),
    )
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
