"""The workers of one data-parallel training: processes that torchrun started, each with a part of every batch.

All of them run the same jobs. They share a store (the text messages of this file) from the start of the command line
to its end, and for each job a process group (gloo on the CPU, nccl on CUDA) that moves tensors. A group ends with its
job: a worker that fails closes its connections, so the others notice at once; one that is stuck is noticed when
`trainer.timeout` is over. One process alone has neither store nor group, and nothing here costs it anything.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bnlab.errors import ConfigError, EnvironmentFault

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
HOW_TO_START = "start it as torchrun --nproc-per-node=2 -m bnlab train trainer.distributed=true ..."
START_SECONDS = 300.0  # to wait for the others before the first job
ANSWER_SECONDS = 10.0  # to wait for the word of a worker that closed its connections
POLL_SECONDS = 0.05
# Whether the first worker's buffers go to the others before each forward pass; torch 2.15 renamed it.
BUFFERS_KEY = next(
    key
    for key in ("forward_sync_buffers", "broadcast_buffers")
    if key in inspect.signature(DistributedDataParallel).parameters
)
FINISHED = "bnlab/finished"
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def unsynced(model: nn.Module) -> Callable[[], AbstractContextManager[object]]:
    """Return the context in which a backward pass of what `Workers.shared` gave keeps its gradients to itself."""
    return model.no_sync if isinstance(model, DistributedDataParallel) else contextlib.nullcontext


class RankLost(EnvironmentFault):
    """A worker is stuck or gone: the others cannot go on, neither with this job nor with the next."""


def shard(samples: int, rank: int, size: int) -> tuple[int, int]:
    """Return (first, end) of the samples of worker `rank` of `size`: consecutive, sizes differ by at most 1.

    shard(10, 0, 3) is (0, 4), then (4, 7) and (7, 10).
    """
    share, rest = divmod(samples, size)
    first = rank * share + min(rank, rest)
    return first, first + share + (rank < rest)


def group_size() -> int:
    """Return the number of workers in the process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def group_rank() -> int:
    """Return this worker's number in the process group, from 0; 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class Workers:
    """All workers as one of them sees them: `rank` of `size`, and `local_rank` of `local_size` on its machine."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self._store: Store | None = None
        self._jobs = 0
        self._averaged: list[DistributedDataParallel] = []  # of this job

    @property
    def first(self) -> bool:
        """Whether this is the worker that prints and records."""
        return self.rank == 0

    def shard(self, samples: int) -> tuple[int, int]:
        """Return (first, end) of this worker's samples in a batch of `samples`."""
        return shard(samples, self.rank, self.size)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over the workers, the same bits on each; all must call it."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def mean_number(self, value: float) -> float:
        """Return the mean of one number over the workers, as `mean` does."""
        if self.size == 1:
            return value
        device = torch.device("cuda", self.local_rank) if dist.get_backend() == "nccl" else torch.device("cpu")
        return self.mean(torch.tensor(value, dtype=torch.float64, device=device)).item()

    def shared(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return `model` such that each backward pass averages the gradients over the workers.

        All begin with the parameters and buffers of the first; later the buffers stay each worker's own.
        """
        if self.size == 1:
            return model
        devices = [device] if device.type == "cuda" else None
        settings: dict[str, Any] = {"gradient_as_bucket_view": True, BUFFERS_KEY: False}
        self._averaged.append(DistributedDataParallel(model, devices, **settings))
        return self._averaged[-1]

    # ------------------------------------------------------------ before and after the jobs

    def connect(self) -> None:
        """Reach the other workers through the store that torchrun names. Errors: EnvironmentFault."""
        if self.size == 1:
            return
        from torch.distributed.rendezvous import rendezvous

        try:
            store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=START_SECONDS)))
        except (RuntimeError, ValueError, OSError) as error:
            raise EnvironmentFault(
                f"worker {self.rank} of {self.size} could not reach the others at "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {_first_line(error)}\n{HOW_TO_START}"
            ) from error
        self._store = store
        if self.first:
            atexit.register(_tell, store)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Go on only if every worker does: an error of one inside the block is an error of all."""
        try:
            yield
        except Exception as error:
            self._post("ready", _text(error))
            raise
        self._post("ready", "")
        failed = {rank: text for rank, text in self._texts("ready", START_SECONDS).items() if text}
        if failed:
            raise EnvironmentFault(_said(failed))
        if self.size > 1 and len(self._texts("ready", 0.0)) < self.size:
            raise RankLost(f"{self._missing('ready')} was not ready after {START_SECONDS:g} s\n{HOW_TO_START}")

    def outlast(self) -> None:
        """Wait until the first worker has said everything: torchrun ends the others of one that failed."""
        end = time.monotonic() + START_SECONDS
        while self._store is not None and not self.first and time.monotonic() < end:
            if self._ask(lambda store: store.check([FINISHED])):
                return
            time.sleep(POLL_SECONDS)

    # ------------------------------------------------------------ one job

    @contextmanager
    def together(self, device: torch.device, timeout: float) -> Iterator[None]:
        """Hold the process group of one job, and end it whatever happens.

        Errors: RankLost when another worker does nothing for `timeout` seconds or is gone; EnvironmentFault with its
        reason when another failed and said so, then the next job can follow.
        """
        if self.size == 1:
            yield
            return
        if self._store is None:
            raise RankLost(f"worker {self.rank} of {self.size} cannot reach the others")
        from torch.distributed.distributed_c10d import PrefixStore

        self._jobs += 1
        job = f"job{self._jobs}"
        try:
            try:
                if device.type == "cuda":
                    torch.cuda.set_device(device)
                dist.init_process_group(
                    BACKENDS[device.type],
                    store=PrefixStore(job, self._store),
                    rank=self.rank,
                    world_size=self.size,
                    timeout=timedelta(seconds=timeout),
                    device_id=device if device.type == "cuda" else None,
                )
                dist.barrier()  # one that fails before the others are connected would leave them waiting for it
                yield
            finally:
                self._forget_reducers()
                if dist.is_initialized():
                    dist.destroy_process_group()
        except Exception as error:
            self._post(job, _text(error))
            if not _of_the_group(error):
                raise
            raise self._explained(error, job, timeout) from error

    def _forget_reducers(self) -> None:
        """Let the group go last: a reducer that ends it keeps the GIL, for which gloo's threads wait (torch 2.10)."""
        for model in self._averaged:
            for held in ("logger", "reducer"):
                vars(model).pop(held, None)
        self._averaged.clear()

    def _explained(self, error: Exception, job: str, timeout: float) -> EnvironmentFault:
        """Return what an error of the process group says of the other workers."""
        if _timed_out(error):
            return RankLost(
                f"worker {self.rank} waited {timeout:g} s for another worker (trainer.timeout)\n"
                f"another of the {self.size} workers is stuck, gone or far slower\n"
                "look at its process; if it is only slow, set a larger trainer.timeout"
            )
        told = {rank: text for rank, text in self._texts(job, ANSWER_SECONDS).items() if rank != self.rank}
        if len(told) < self.size - 1:
            return RankLost(f"{self._missing(job)} is gone: it closed its connections\nlook for what ended its process")
        reasons = {rank: text for rank, text in told.items() if not text.startswith(_OF_THE_GROUP)}
        return EnvironmentFault(_said(reasons or told))

    # ------------------------------------------------------------ text messages

    def _post(self, stage: str, text: str) -> None:
        self._ask(lambda store: store.set(f"bnlab/{stage}/{self.rank}", text or " "))

    def _posted(self, stage: str, rank: int) -> str | None:
        """Return what worker `rank` posted; None if nothing yet."""
        key = f"bnlab/{stage}/{rank}"
        return self._ask(lambda store: store.get(key).decode().strip() if store.check([key]) else None)

    def _texts(self, stage: str, seconds: float) -> Mapping[int, str]:
        """Return what the workers posted, by rank, as soon as all have or `seconds` are over."""
        end = time.monotonic() + seconds
        while True:
            posted = {rank: self._posted(stage, rank) for rank in range(self.size)}
            answers = {rank: text for rank, text in posted.items() if text is not None}
            if len(answers) == self.size or self._store is None or time.monotonic() >= end:
                return answers
            time.sleep(POLL_SECONDS)

    def _ask(self, question: Callable[[Store], T]) -> T | None:
        """Return the store's answer; None, and none from then on, if the store is gone or the one that holds it stuck.

        A call of the store has no time-out of its own while its holder is stopped: so it is made beside this thread.
        """
        if self._store is None:
            return None
        store, answers = self._store, list[T]()

        def call() -> None:
            with contextlib.suppress(RuntimeError):
                answers.append(question(store))

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(ANSWER_SECONDS)
        if not answers:
            self._store = None
            return None
        return answers[0]

    def _missing(self, stage: str) -> str:
        missing = sorted(set(range(self.size)) - set(self._texts(stage, 0.0)) - {self.rank})
        return f"worker {', '.join(map(str, missing))} of {self.size}"


ALONE = Workers()


def from_environment() -> Workers | None:
    """Return the workers that torchrun's environment describes; None where it does not.

    Errors: ConfigError naming a variable that is not a number or does not fit the others.
    """
    if any(name not in os.environ for name in VARIABLES):
        return None
    rank, size, local_rank = (_number(name) for name in VARIABLES[:3])
    local_size = _number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else size
    if not 0 <= rank < size or not 0 <= local_rank < local_size:
        raise ConfigError(f"RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local_rank}: no such worker\n{HOW_TO_START}")
    return Workers(rank, size, local_rank, local_size)


def _tell(store: Store) -> None:
    """Say at the very end of the first worker's process that nothing follows."""
    with contextlib.suppress(RuntimeError):
        store.set(FINISHED, " ")


def _number(name: str) -> int:
    value = os.environ[name]
    if not value.isdecimal():
        raise ConfigError(f"{name}={value}: must be a whole number\n{HOW_TO_START}")
    return int(value)


# What gloo, nccl and the store write of other processes; torch has no error class for gloo's.
_OF_THE_GROUP = "lost connection"
_CLOSED = ("onnection closed by peer", "onnection reset", "roken pipe", "onnect failed", "onnection refused")
_TIMED_OUT = ("imed out", "imeout")


def _timed_out(error: BaseException) -> bool:
    return any(part in str(error) for part in _TIMED_OUT)


def _of_the_group(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError):
        return False
    closed = any(part in str(error) for part in _CLOSED)
    return isinstance(error, dist.DistError) or closed or ("gloo" in str(error) and _timed_out(error))


def _text(error: BaseException) -> str:
    """Return what the other workers are told of an error, marked when it only says that one of them is lost."""
    return f"{_OF_THE_GROUP}: {_first_line(error)}" if _of_the_group(error) else _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _said(texts: Mapping[int, str]) -> str:
    rank = min(texts)
    return f"worker {rank}: {texts[rank]}"
