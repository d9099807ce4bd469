"""Names looked up in tables: a configuration names a strategy, model or data set, never a Python object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from bnlab.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from name to class; the class carries its own `name`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Enter the decorated class under `name`."""

        def enter(cls: type[T]) -> type[T]:
            if name in self._entries:
                raise ValueError(f"two entries named {name!r} in {self.kind}")
            self._entries[name] = cls
            return cls

        return enter

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            raise ConfigError(
                f"{self.kind}={name}: no such {self.kind}{did_you_mean(name, self._entries)}\nthere are: {known}"
            )
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
