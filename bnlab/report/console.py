"""How bnlab prints: results on stdout, progress and errors on stderr.

Data never reaches the terminal as it is: `clean` shows every control character as its escape, markup is switched off,
and a stream that is not UTF-8 gets ASCII with the same meaning. A closed pipe ends the process quietly.
"""

from __future__ import annotations

import os
import sys
import textwrap
import unicodedata
from typing import IO, Any, cast

from rich.console import Console

CLOSED_PIPE = 141  # 128 + SIGPIPE
WIDTH_OF_A_FILE = 120  # columns when no terminal is there to ask

# what a stream without Unicode shows instead; one table, so that a text never changes its meaning half-way
_ASCII = {
    "±": "+-", "–": "-", "—": "-", "−": "-", "·": "|", "…": "...", "×": "x", "≥": ">=", "≤": "<=", "→": "->",
    "✓": "+", "✗": "x", "∞": "inf", "■": "#", "µ": "u", "\u00a0": " ", "─": "-", "“": '"', "”": '"', "’": "'",
    "▌": "|", "†": "^", "‡": "^^", "•": "*", **dict(zip("▁▂▃▄▅▆▇█", "_.-~=+*#", strict=True)),
}  # fmt: skip
_SHOWN_AS_ESCAPE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def clean(text: object) -> str:
    """Return `text` on one line, each control, direction and surrogate character as its escape (`\\x1b`)."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii") if unicodedata.category(char) in _SHOWN_AS_ESCAPE else char
        for char in text
    )


class _Spoken:
    """stderr as it is, except that what it does not take is lost: no message is worth a training."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return self._silenced(len(text))

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._silenced(0)

    def _silenced(self, lost: int) -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # or Python complains at its exit
        return lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Terminal(Console):
    """A rich console over one stream, with no markup, the width and the character set settled once."""

    def __init__(self, stream: IO[str]) -> None:
        dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
        colourless = bool(os.environ.get("NO_COLOR")) or dumb
        super().__init__(
            file=cast(IO[str], _Spoken(stream)) if stream is sys.stderr else stream,
            force_jupyter=False,  # or rich shows some lines as HTML beside those that we write
            force_terminal=False if type(stream).__module__.startswith("ipykernel") else None,  # no cursor moves there
            width=_width(),
            height=25 if dumb else None,  # where it knows no height, rich takes such a terminal for 80 columns wide
            color_system=None if colourless else "auto",
            markup=False,
            emoji=False,
            highlight=False,
        )
        self.unicode = self.encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-16", "utf-32", "utf-8-sig")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    @property
    def coloured(self) -> bool:
        """Whether this console can tell things apart by colour."""
        return self.color_system is not None

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as rich does; the sign of what it cut off stays one column wide where the stream has only ASCII."""
        if self.unicode:
            return super().print(*objects, **how)
        with self.capture() as shown:
            super().print(*objects, **how)
        return self.emit(shown.get().replace("…", "."))

    def emit(self, text: str) -> None:
        """Write text of several lines as it is, in ASCII where the stream has no more."""
        try:
            self.file.write(text if self.unicode else to_ascii(text))
            self.file.flush()
        except BrokenPipeError:
            self.on_broken_pipe()

    def say(self, text: object) -> None:
        """Write one line, cleaned; on a terminal that is narrower as several, broken between words."""
        line = self.show(text)
        lines = [line]
        if self.is_terminal and len(line) > self.width:
            lines = textwrap.wrap(line, self.width, break_long_words=False, break_on_hyphens=False)
        self.emit("\n".join(lines) + "\n")

    def show(self, text: object) -> str:
        """Return `text` cleaned, and in ASCII where the stream has no more."""
        return clean(text) if self.unicode else to_ascii(clean(text))

    def on_broken_pipe(self) -> None:
        """End quietly, as the shell's own tools do, when the reader went away (`| head`)."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # or Python complains at its exit
        raise SystemExit(CLOSED_PIPE)


def to_ascii(text: str) -> str:
    """Return `text` in ASCII: known signs by their meaning, anything else as its escape."""
    known = "".join(_ASCII.get(char, char) for char in text)
    return known.encode("ascii", "backslashreplace").decode()


def results() -> Terminal:
    """Return the console of results: stdout."""
    return Terminal(sys.stdout)


def messages() -> Terminal:
    """Return the console of progress, logs and errors: stderr."""
    return Terminal(sys.stderr)


def _width() -> int | None:
    """Return the columns to use where rich would not find them: COLUMNS, or those of a file; None on a terminal."""
    wanted = os.environ.get("COLUMNS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return None if any(map(os.isatty, (0, 1, 2))) else WIDTH_OF_A_FILE
