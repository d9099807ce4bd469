"""A training to be done, what came of it, and the wish to end it early: what supervisor and worker share."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from bnlab.interrupts import interrupted

ResultState = Literal["done", "diverged", "refused", "failed", "interrupted", "killed"]

INTERRUPTED = "stopped by a signal before its end"


class Terminated(SystemExit):
    """The process is to end, with this exit code: SIGTERM came, or another process of the same training is lost."""


def terminated(number: int, frame: object) -> NoReturn:
    """Handle SIGTERM, and SIGUSR2 of Slurm."""
    raise Terminated(128 + number)


@contextmanager
def signals_kept() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGUSR2 instead of being torn out by them; those that another handles are left."""
    kept: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        ours = (signal.SIG_DFL, signal.default_int_handler, interrupted, terminated)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            if signal.getsignal(number) in ours:
                before[number] = signal.signal(number, lambda number, _: kept.append(number))
    try:
        yield kept
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Job:
    """A run to be trained in its folder, where its configuration lies; what is there of it already is gone on from."""

    folder: Path
    index: int = 0  # among those that are done now, from 0
    label: str = ""  # what tells it from them
    from_scratch: bool = False  # leave its checkpoints aside

    def as_plain(self) -> dict[str, Any]:
        return {**self.__dict__, "folder": str(self.folder)}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Job:
        return cls(**{**plain, "folder": Path(plain["folder"])})


@dataclass(frozen=True)
class JobResult:
    """What came of a job."""

    state: ResultState
    reason: str = ""  # why it is not done
    score: float | None = None  # validation accuracy, or training accuracy without a validation split

    @property
    def returned(self) -> float | str:
        """What Hydra's sweepers get: a number to search by, or words, which a search counts as failed."""
        return self.score if self.state == "done" and self.score is not None else self.reason or self.state


class Stop:
    """A wish to end, looked at between two steps and between the layers of an evaluation.

    Nothing is torn out of what it is doing: an exception between any two instructions would also come while something
    is put back as it was.
    """

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        self.requested = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if the end was asked for."""
        if self.requested:
            raise KeyboardInterrupt
