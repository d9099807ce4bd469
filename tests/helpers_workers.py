"""Worker processes for tests: `on_workers(2, task, ...)` returns what `task(workers, ...)` returns on each of them.

They are forked from one process that has imported torch, so a pair costs no import.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from bnlab.distributed import Workers

SECONDS = 300  # for an answer, also on a busy machine
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch", "bnlab.experiment.run"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment_of(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what torchrun tells worker `rank`."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def on_workers(size: int, task: Callable[..., Any], *arguments: Any, connect: bool = True) -> list[Any]:
    """Return what `task(workers, *arguments)` returned, by rank; `task` is a function of a test file.

    Without `connect` it has to reach the other workers itself.
    """
    port, processes, ends = free_port(), [], []
    for rank in range(size):
        here, there = _processes.Pipe(duplex=False)
        given = (there, environment_of(rank, size, port), connect, task, arguments)
        process = _processes.Process(target=_work, args=given, daemon=True)
        process.start()
        there.close()
        processes.append(process)
        ends.append(here)
    try:
        results = []
        for rank, end in enumerate(ends):
            assert end.poll(SECONDS), f"worker {rank} of {size}: no answer"
            results.append(pickle.loads(end.recv_bytes()))  # not send: torch would share its memory
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    for rank, result in enumerate(results):
        assert not isinstance(result, str), f"worker {rank} of {size}: {result}"
    return results


def _work(
    end: Connection,
    environment: dict[str, str],
    connect: bool,
    task: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    workers = Workers(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
    try:
        if connect:
            workers.connect()
        end.send_bytes(pickle.dumps(task(workers, *arguments)))
        workers.outlast()
    except Exception as error:
        end.send_bytes(pickle.dumps(f"{type(error).__name__}: {error}"))
        raise
