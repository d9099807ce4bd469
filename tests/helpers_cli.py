"""The command line once more: many commands in one fresh process, because a start of each takes seconds.

Each goes through the entry point with its arguments, as the installed script calls it; what it prints and the code it
exits with are kept. torchrun's environment of a single worker makes `train` do without a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SINGLE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
Done = subprocess.CompletedProcess[str]


def in_turn(commands: Sequence[Sequence[str]], cwd: Path, timeout: float = 60, **env: str) -> list[Done]:
    """Run command lines one after the other in one process; fails when all together take longer than `timeout`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "PYTHONIOENCODING")}
    done = subprocess.run(
        [sys.executable, __file__, json.dumps([list(command) for command in commands])],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=kept | {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **SINGLE, **env},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Done(list(c), *answer) for c, answer in zip(commands, json.loads(done.stdout), strict=True)]


def _answers(commands: Sequence[Sequence[str]]) -> list[tuple[object, str, str]]:
    from bnlab.cli import main

    found: list[tuple[object, str, str]] = []
    for arguments in commands:
        sys.argv = ["bnlab", *arguments]
        out, err = (io.TextIOWrapper(io.BytesIO(), sys.stdout.encoding, newline="") for _ in range(2))
        code: object = "main() returned"
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = 0 if end.code is None else end.code
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode(sys.stdout.encoding))  # type: ignore[attr-defined]
        found.append((code, texts[0], texts[1]))
    return found


if __name__ == "__main__":
    print(json.dumps(_answers(json.loads(sys.argv[1]))))
