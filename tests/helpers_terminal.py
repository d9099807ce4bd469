"""A program in a terminal of its own, such as an interactive shell: what is typed, and what the screen is sent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ESCAPES = re.compile(r"\x1b\[[0-9;?=>]*[A-Za-z]|\x1b[()][B0]|\x1b\][^\x07]*\x07|\x1b[=>]|[\x07\x0f]")


class Terminal:
    """Leaving its `with` block hangs up."""

    def __init__(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], columns: int = 100) -> None:
        self._process, self._end = pty.fork()
        if not self._process:
            os.chdir(cwd)
            os.execvpe(command[0], list(command), dict(env))
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.sent = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        os.close(self._end)
        os.waitpid(self._process, 0)

    def type(self, text: str) -> None:
        """Type `text`; what was sent before is forgotten."""
        self.sent = b""
        os.write(self._end, text.encode())

    def wait_for(self, word: str, seconds: float = 60) -> bool:
        """Return whether `word` is among what was sent since the last typing, at the latest after so many seconds."""
        end = time.monotonic() + seconds
        while word not in self.text and time.monotonic() < end and self._read():
            pass
        return word in self.text

    @property
    def text(self) -> str:
        """What was sent since the last typing, without escape sequences."""
        return ESCAPES.sub("", self.sent.decode(errors="replace")).replace("\r", "")

    def _read(self) -> bool:
        if select.select([self._end], [], [], 0.2)[0]:
            try:
                self.sent += os.read(self._end, 2**16)
            except OSError:  # the program has ended
                return False
        return True
