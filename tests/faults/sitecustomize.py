"""Faults for tests: with this folder on PYTHONPATH, jobs of chosen seeds do harm to their own process.

BNLAB_TEST_FAULTS is JSON, seed -> [kind, step, folder]: at that step the job raises, calls sys.exit, crashes, is killed
or hangs. With a folder it does so once only: a file with the seed's name is left there. The product has no such hook.
"""

import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FAULTS = json.loads(os.environ.get("BNLAB_TEST_FAULTS", "{}"))


def strike(kind: str) -> None:
    if kind == "raise":
        raise RuntimeError("a fault of the test")
    if kind == "exit":
        sys.exit(7)
    if kind == "_exit":
        os._exit(9)
    if kind == "memory":
        raise MemoryError
    if kind == "hang":
        time.sleep(3600)
    os.kill(os.getpid(), {"segv": signal.SIGSEGV, "kill": signal.SIGKILL, "abort": signal.SIGABRT}[kind])


def patch(worker: ModuleType) -> None:
    from bnlab.training import loop

    step_of, train_of = loop.train_step, worker._train
    seed = None

    def train(config: Any, *rest: Any) -> Any:
        nonlocal seed
        seed = str(config.seed)
        return train_of(config, *rest)

    def step(*values: Any, **more: Any) -> Any:
        kind, when, once = FAULTS.get(seed, (None, None, None))
        if values[5] == when and not (once and Path(once, seed).exists()):
            if once:
                Path(once, seed).touch()
            strike(kind)
        return step_of(*values, **more)

    worker._train, loop.train_step = train, step


class Finder(importlib.abc.MetaPathFinder):
    """Patches the worker as soon as it is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != "bnlab.experiment.run":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        run: Callable[[ModuleType], None] = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if FAULTS and "bnlab.experiment.run" in sys.modules:  # of a forked command line
    patch(sys.modules["bnlab.experiment.run"])
elif FAULTS:
    sys.meta_path.insert(0, Finder())
