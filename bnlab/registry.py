"""Names looked up in tables: a configuration names a strategy, model or data set, never a Python object."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import ClassVar, Generic, Protocol, TypeVar

from bnlab.errors import ConfigError, did_you_mean


class Named(Protocol):
    """What can be registered."""

    name: ClassVar[str]


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """A table from name to class, in the order of the names.

    With a `package` it finds its entries there: the first look-up imports every module of the package, so that a new
    file with a registered class is all that a new entry takes.
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Enter the decorated class under `name`, which becomes its attribute."""

        def enter(cls: type[T]) -> type[T]:
            if name in self._entries:
                raise ValueError(f"two entries named {name!r} in {self.kind}")
            cls.name = name
            self._entries = dict(sorted({**self._entries, name: cls}.items()))
            return cls

        return enter

    def __getitem__(self, name: str) -> type[T]:
        known = self._all()
        if name not in known:
            raise ConfigError(
                f"{self.kind}={name}: no such {self.kind}{did_you_mean(name, known)}\nthere are: {', '.join(known)}"
            )
        return known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def _all(self) -> dict[str, type[T]]:
        if self._package is not None:
            for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__, f"{self._package}."):
                importlib.import_module(module.name)
            self._package = None
        return self._entries
