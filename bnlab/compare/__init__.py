"""Runs on disk become arms, arms become sections with intervals, differences to a baseline, and notes. No torch here.

Read `comparison.py` first: `compare` goes from folders to the result; `statistics.py` holds every formula over seeds.

The package can be called: `bnlab.compare("runs/…")` is `bnlab.report.notebook.compare`, which is for Python what the
command is for a terminal.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *paths: Any, **asked: Any) -> Any:
        return import_module("bnlab.report.notebook").compare(*paths, **asked)  # by name, since it lies above


sys.modules[__name__].__class__ = _Callable
