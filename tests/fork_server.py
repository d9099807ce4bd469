"""A process that has torch and bnlab loaded and forks one command line after the other: `bnlab` without its start-up.

Started with the number of a listening socket. Each connection asks for one command: JSON, with the files for
stdin, stdout and stderr beside it; the answers, four bytes each, are its process id and, once it has ended, the status
that `wait` gave.
A command is a process with its own environment, streams, signals and exit code, as the shell's would be, and so is
the worker that it gives its jobs to. The server ends with its stdin.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import typer

import bnlab
from bnlab.config import compose
from bnlab.report import display
from bnlab.runner import supervisor, worker_main

LIBRARIES = ("scipy.stats", "pandas", "sklearn.datasets", "torchvision.datasets", "shellingham")
FAULTS = str(Path(__file__).with_name("faults") / "sitecustomize.py")  # an interpreter runs it at its start
LONGEST = 1 << 20  # bytes of one command: arguments and environment
_kept: list[object] = []  # streams that a worker never ends


def serve(listener: socket.socket) -> None:
    """Fork a keeper for each connection until stdin ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _keep(connection)
        connection.close()


def _keep(connection: socket.socket) -> NoReturn:
    """Start the command, say its process id, wait for it, say its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, files, _, _ = socket.recv_fds(connection, LONGEST, 3)
    command = json.loads(text)
    child = os.fork()
    if child == 0:
        connection.close()
        _become(command, files)
    for file in (0, 1, 2, *files):
        os.close(file)
    connection.sendall(child.to_bytes(4, "little"))
    _, status = os.waitpid(child, 0)
    connection.sendall(status.to_bytes(4, "little"))
    os._exit(0)


def _become(command: dict[str, Any], files: list[int]) -> NoReturn:
    """Be the command line: its place, environment and streams; `main`; then what an interpreter does at its end."""
    code = 1
    try:
        if command["session"]:
            os.setsid()
        os.chdir(command["cwd"])
        os.environ.clear()
        os.environ.update(command["env"])
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
        sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding=encoding, errors=errors or "strict", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["bnlab", *command["arguments"]]
        sys.path.insert(0, command["cwd"])
        if "BNLAB_TEST_FAULTS" in os.environ:
            runpy.run_path(FAULTS)
        importlib.import_module("bnlab.cli").main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        _end(code)


def _end(code: int) -> NoReturn:
    """End as an interpreter does: threads, exit functions, then what is still in the streams."""
    try:
        threading._shutdown()  # joblib's pool ends its processes here, for which an exit function waits
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:
        os._exit(120)
    os._exit(code)


class Worker:
    """The process of a supervisor, forked from it instead of started: what it needs of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], *, stdout: IO[Any], cwd: str | None, pass_fds: Sequence[int], **_: Any):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _work(pass_fds[0], stdout.fileno(), cwd)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _work(pipe: int, output: int, cwd: str | None) -> NoReturn:
    """Be the worker: what a start leaves of signals, files and streams, then its `main`."""
    try:
        os.setpgid(0, 0)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        if cwd is not None:
            os.chdir(cwd)
        for file in (1, 2):
            os.dup2(output, file)
        nothing = os.open(os.devnull, os.O_RDWR)
        for file in {int(name) for name in os.listdir("/dev/fd")} - {1, 2, pipe, nothing}:
            with contextlib.suppress(OSError):  # of the listing itself
                os.fstat(file)
                os.dup2(nothing, file)  # a closed number would be taken again, and closed by its old owner
        _kept.extend([sys.stdout, sys.stderr])  # with what the command has not written yet
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, closefd=False)  # noqa: SIM115
        worker_main.main(pipe)
    except (EOFError, OSError):  # as there: the supervisor is gone
        os._exit(1)
    except BaseException:
        traceback.print_exc()
    finally:
        _end(1)


def preload() -> None:
    """Import what any command may need; Hydra finds its plug-ins once."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(bnlab.__path__, "bnlab."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    compose.jobs([], multirun=False)
    group = typer.main.get_command(importlib.import_module("bnlab.cli").app)
    assert isinstance(group, typer.core.TyperGroup)
    whole = group.make_context("bnlab", ["list", "norms"])
    group.commands["list"].make_context("list", ["norms"], parent=whole)  # what typer loads for the first command line
    typer.main.get_command = lambda _: group  # it looks through all of them for every command line
    starts = SimpleNamespace(Popen=Worker, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
    supervisor.subprocess = starts  # type: ignore[assignment]
    display.LINE_SECONDS = 3600.0  # what long work says in between depends on how busy the machine is


if __name__ == "__main__":
    preload()
    serve(socket.socket(fileno=int(sys.argv[1])))
