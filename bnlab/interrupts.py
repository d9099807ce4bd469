"""Ctrl-C while modules load ends the process at once and quietly; the command line imports this before all others.

An import that is torn apart ends in an error of its own, or in a library that is half there. No command has begun its
work then; once it has, Ctrl-C is a KeyboardInterrupt as usual.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType


def interrupted(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with contextlib.suppress(ValueError):  # in another thread than the main one
        signal.signal(signal.SIGINT, interrupted)
