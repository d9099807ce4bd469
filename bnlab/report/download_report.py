"""A bar for downloads on a terminal; a line at every tenth elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bnlab.report.console import Terminal


@contextmanager
def download_meter(stream: IO[str], name: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what to call with (bytes so far, bytes in all)."""
    terminal = Terminal(stream)
    if not terminal.is_terminal or terminal.is_dumb_terminal:
        yield _lines(terminal, name)
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=terminal, transient=True) as bar:
        task = bar.add_task(terminal.show(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(terminal: Terminal, name: str) -> Callable[[int, int], None]:
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        tenth = 10 * done // total if total else 0
        if tenth > last:
            last = tenth
            terminal.say(f"{name}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB")

    return report
