"""The only reader of time: training seconds that stop for everything else, and the length of each step.

On CPU a step is read from `time.perf_counter_ns`. On CUDA it lies between two recorded events, which are read only when
an interval is over, so that no step waits for the device.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import statistics
import time
from types import FrameType
from typing import Protocol

import torch

_paused_ns = 0


def now_ns() -> int:
    """Return the host's clock in nanoseconds, without the time that `pause` took."""
    return time.perf_counter_ns() - _paused_ns


def pause(number: int, frame: FrameType | None) -> None:
    """Handle SIGTSTP: stop this process until it is continued, and count that in no clock of the host."""
    global _paused_ns
    before = time.perf_counter_ns()
    os.kill(os.getpid(), signal.SIGSTOP)
    _paused_ns += time.perf_counter_ns() - before


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Seconds between `start` and `stop`, added up; the device is waited for on both ends."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._total_ns = 0.0
        self._since: int | None = None

    def start(self) -> None:
        synchronize(self._device)
        self._since = now_ns()

    def stop(self) -> None:
        synchronize(self._device)
        if self._since is not None:
            self._total_ns += now_ns() - self._since
            self._since = None

    def add(self, seconds: float) -> None:
        """Count seconds that another process took for the same."""
        self._total_ns += seconds * 1e9

    @property
    def seconds(self) -> float:
        """Return the seconds added up, the running stretch included."""
        running = now_ns() - self._since if self._since is not None else 0
        return (self._total_ns + running) / 1e9


class StepClock(Protocol):
    """Marks three moments a step: before its batch is fetched, batch ready, step done."""

    def begin(self) -> None: ...
    def ready(self) -> None: ...
    def end(self) -> None: ...

    def cancel(self) -> None:
        """Take back the last `begin`: there was no batch."""
        ...

    def flush(self) -> list[tuple[float, float]]:
        """Return (data, step) in milliseconds for every step since the last flush; may wait for the device."""
        ...


class HostClock:
    """Step clock of the CPU."""

    def __init__(self) -> None:
        self._marks: list[int] = []

    def begin(self) -> None:
        self._marks.append(now_ns())

    ready = end = begin

    def cancel(self) -> None:
        self._marks.pop()

    def flush(self) -> list[tuple[float, float]]:
        marks, self._marks = self._marks, []
        starts, readies, ends = marks[0::3], marks[1::3], marks[2::3]
        return [((r - s) / 1e6, (e - r) / 1e6) for s, r, e in zip(starts, readies, ends, strict=False)]


class CudaClock:
    """Step clock of a CUDA device: events in its stream, reused from interval to interval."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._events: list[torch.cuda.Event] = []
        self._used = 0

    def begin(self) -> None:
        if self._used == len(self._events):
            self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[self._used].record(self._stream)
        self._used += 1

    ready = end = begin

    def cancel(self) -> None:
        self._used -= 1

    def flush(self) -> list[tuple[float, float]]:
        count, self._used = self._used // 3, 0
        if not count:
            return []
        self._events[3 * count - 1].synchronize()
        triples = [self._events[3 * i : 3 * i + 3] for i in range(count)]
        return [(begin.elapsed_time(ready), ready.elapsed_time(end)) for begin, ready, end in triples]


def step_clock(device: torch.device) -> StepClock:
    """Return the step clock that fits the device."""
    return CudaClock(device) if device.type == "cuda" else HostClock()


class PhaseClock(Protocol):
    """Marks moments inside one step."""

    @property
    def host_ms(self) -> float:
        """Milliseconds that the host took to issue what was flushed last; NaN where it does all the work itself."""
        ...

    def mark(self) -> None: ...

    def flush(self) -> tuple[float, ...]:
        """Return the milliseconds between the marks since the last flush; waits for the device."""
        ...


class HostPhases:
    """Phase clock of the CPU."""

    host_ms = math.nan

    def __init__(self) -> None:
        self._marks: list[int] = []

    def mark(self) -> None:
        self._marks.append(time.perf_counter_ns())

    def flush(self) -> tuple[float, ...]:
        marks, self._marks = self._marks, []
        return tuple((end - start) / 1e6 for start, end in itertools.pairwise(marks))


class CudaPhases:
    """Phase clock of a CUDA device: events in its stream, and when the host put them there."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._events: list[torch.cuda.Event] = []
        self._issuing = HostPhases()
        self.host_ms = math.nan

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        self._events.append(event)
        self._issuing.mark()

    def flush(self) -> tuple[float, ...]:
        self.host_ms = sum(self._issuing.flush())
        events, self._events = self._events, []
        if events:
            events[-1].synchronize()
        return tuple(start.elapsed_time(end) for start, end in itertools.pairwise(events))


def phase_clock(device: torch.device) -> PhaseClock:
    """Return the phase clock that fits the device."""
    return CudaPhases(device) if device.type == "cuda" else HostPhases()


def copy_bandwidth(size: int, device: torch.device) -> float:
    """Return bytes a second, those read and those written, of copying `size` bytes: the median of 30 copies."""
    source = torch.ones(max(size // 4, 1), device=device)
    target = torch.empty_like(source)
    clock = phase_clock(device)
    times: list[float] = []
    for _ in range(33):  # the first 3 fill caches
        clock.mark()
        target.copy_(source)
        clock.mark()
        times += clock.flush()
    return float(2 * source.nbytes / (statistics.median(times[3:]) / 1e3))
