"""Long-format CSV tables that grow while a run goes on; a row is written whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from bnlab.errors import RecordError
from bnlab.record.plain_files import cannot_write, open_plain

Cell = str | int | float | bool


class Table:
    """One CSV file; floats are written so that reading them back gives the same bits.

    With `size` its first so many bytes are kept, and rows follow them; without, it begins with its header.
    Errors: EnvironmentFault where it cannot be written; RecordError if it is shorter than `size`.
    """

    def __init__(self, path: Path, columns: Sequence[str], size: int | None = None) -> None:
        self.path = path
        try:
            self._file = open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            there = os.fstat(self._file).st_size
            if size is None or size <= there:
                os.ftruncate(self._file, size or 0)
        except OSError as error:
            raise cannot_write(path, error) from error
        if size is None:
            self.append([columns])
        elif size > there:
            self.close()
            raise RecordError(f"{path}: {there} bytes, the checkpoint counts on {size}\nstart over with --from-scratch")

    @property
    def size(self) -> int:
        """Return the bytes written so far."""
        return os.fstat(self._file).st_size

    def append(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Add rows with one write, so that a kill leaves none of them torn in the usual case."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        rest = memoryview(text.getvalue().encode())
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
