"""A word on the terminal while torch loads: silence of seconds would look like a hang."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from bnlab.report.console import messages
from bnlab.report.display import can_redraw

_WORD, _GONE = "loading torch", "\r\x1b[2K"


def announce_torch() -> None:
    """Have the first import of torch shown on stderr, where that is a terminal, for as long as it takes."""
    if "torch" not in sys.modules and can_redraw(messages()):
        sys.meta_path.insert(0, _Announced())


class _Announced(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def shown(module: ModuleType) -> None:
                sys.stderr.write(_WORD)
                sys.stderr.flush()
                try:
                    load(module)
                finally:
                    sys.stderr.write(_GONE)
                    sys.stderr.flush()

            spec.loader.exec_module = shown  # type: ignore[method-assign]
        return spec
