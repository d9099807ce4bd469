"""Command lines for tests: `bnlab("compare", "runs", cwd=place)` returns exit code, stdout and stderr.

Each is a process of its own, forked from one that has torch loaded (fork_server.py), because a start of each takes
seconds. `train` and `resume` do their jobs in that very process; with `supervised=True` in a worker of their own, as
for a user. `start(...)` does not wait. `BNLAB` begins a command that is to start as the shell has it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
BNLAB = [sys.executable, "-m", "bnlab"]
SHORT = ["trainer.steps=20", "model.widths=[8,16]", "trainer.device=cpu", "trainer.threads=1"]
QUICK = ["trainer.steps=30", "model=mlp", "model.widths=[16]", "data.batch_size=32", "eval.every=0.25"]
QUICK += ["eval.probe_samples=256", "trainer.device=cpu", "trainer.threads=1"]
# torchrun's environment of a single process: the command trains in its own process
SINGLE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
OURS = ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "PYTHONIOENCODING")  # of whoever runs the tests
SERVER = "BNLAB_TEST_SERVER"  # where the address of the server is kept
Done = subprocess.CompletedProcess[str]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command: this one without what shapes its output, with `more`."""
    kept = {key: value for key, value in os.environ.items() if key not in OURS}
    return kept | {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **more}


def bnlab(
    *arguments: str, cwd: Path, timeout: float = 300, supervised: bool = False, fresh: bool = False, **env: str
) -> Done:
    """Run a command line to its end; a `fresh` one is started as the shell has it."""
    if fresh:
        whole, given = [*BNLAB, *arguments], environment(**env)
        return subprocess.run(whole, cwd=cwd, env=given, capture_output=True, text=True, timeout=timeout, check=False)
    with start(*arguments, cwd=cwd, supervised=supervised, **env) as command:
        out, err = command.communicate(timeout)
        return Done(list(arguments), command.wait(), out, err)


def in_turn(commands: Iterable[Sequence[str]], cwd: Path, **env: str) -> list[Done]:
    """Run one command line after the other."""
    return [bnlab(*command, cwd=cwd, **env) for command in commands]


def start(
    *arguments: str,
    cwd: Path,
    supervised: bool = False,
    stdout: IO[Any] | None = None,
    session: bool = False,
    **env: str,
) -> Command:
    """Start a command line; with `session` in a session of its own."""
    given = environment(**({} if supervised else SINGLE), **env)
    return Command({"arguments": arguments, "cwd": str(cwd), "env": given, "session": session}, stdout)


class Command:
    """A command line that runs, with what tests need of `subprocess.Popen`; leaving its `with` block kills it.

    It writes into files, so it waits for no reader.
    """

    def __init__(self, request: dict[str, Any], stdout: IO[Any] | None = None) -> None:
        self.returncode: int | None = None
        self._out = tempfile.TemporaryFile()  # noqa: SIM115
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(server())
        with open(os.devnull) as nothing:
            files = [nothing.fileno(), (stdout or self._out).fileno(), self._err.fileno()]
            socket.send_fds(self._server, [json.dumps(request).encode()], files)
        self.pid = self._number()

    def wait(self, timeout: float = 300) -> int:
        """Return the exit code, or minus the signal's number; kill the command when it takes longer."""
        if self.poll(timeout) is None:
            self.kill()
            raise subprocess.TimeoutExpired("bnlab", timeout, *self._texts())
        assert self.returncode is not None
        return self.returncode

    def poll(self, seconds: float = 0) -> int | None:
        """Return the exit code, or None when it still runs after so many seconds."""
        if self.returncode is None and select.select([self._server], [], [], seconds)[0]:
            self.returncode = os.waitstatus_to_exitcode(self._number())
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end, return stdout and stderr, and close what held them."""
        self.wait(timeout)
        texts = self._texts()
        self._close()
        return texts

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.poll(10)
        self._close()

    def _close(self) -> None:
        for opened in (self._out, self._err, self._server):
            opened.close()

    def _number(self) -> int:
        return int.from_bytes(self._server.recv(4), "little")

    def _texts(self) -> tuple[str, str]:
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode(errors="surrogateescape"))
        return texts[0], texts[1]


def server() -> str:
    """Return the address of the server that forks command lines; it is started once, and ends with who started it."""
    if SERVER in os.environ:
        return os.environ[SERVER]
    place = tempfile.mkdtemp(prefix="bnlab-tests-")
    address = f"{place}/socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    forking = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(listener.fileno())],
        stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        env=environment(),
        cwd=ROOT,
    )
    listener.close()

    def stop() -> None:
        forking.communicate()
        shutil.rmtree(place, ignore_errors=True)

    atexit.register(stop)
    os.environ[SERVER] = address
    return address
