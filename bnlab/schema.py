"""Typed parameters: a dataclass declares each key once, with range and meaning; `parse` checks a mapping against it.

@dataclass(frozen=True, kw_only=True)
class Adam:
    lr: float = param(0.001, "learning rate", above=0.0)

parse(Adam, {"lr": 0}, "optim")    # ConfigError: optim.lr=0: must be above 0 (learning rate)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from bnlab.errors import ConfigError, did_you_mean

T = TypeVar("T")

EVERY_KEY = "`bnlab train --cfg job` prints every key"  # what a message about an unknown one ends with


def quoted(word: str) -> str:
    """Return KEY=VALUE with letters beyond ASCII in quotes: Hydra's grammar takes `data.path=Bilder é` no other way.

    Other signs that mean something to Hydra, such as commas, stay for the user to quote.
    """
    parts = re.fullmatch(r"([\w.+~/@]+)=([\w ./-]*[^\W\x00-\x7f][\w ./-]*)", word)
    return f"{parts[1]}='{parts[2]}'" if parts else word


def param(
    default: Any, meaning: str, *, low: float | None = None, above: float | None = None, high: float | None = None
) -> Any:
    """Declare a field: its default, one line of meaning, and the allowed range (`above` excludes its bound)."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "low": low, "above": above, "high": high})


def parse(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """Build `cls` from `values`; every key must be known, of its type, finite and in range.

    Errors: ConfigError naming `prefix.key`, the value and what is allowed.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{prefix}.{key}: no such key{did_you_mean(str(key), fields)}\n{EVERY_KEY}")
    hints = _hints(cls)  # type: ignore[arg-type]
    made = {key: _value(f"{prefix}.{key}", value, hints[key], fields[key]) for key, value in values.items()}
    return cls(**made)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _value(key: str, value: Any, kind: Any, field: dataclasses.Field[Any]) -> Any:
    meaning = field.metadata.get("meaning", "")
    checked = _typed(key, value, kind, meaning)
    for number in checked if isinstance(checked, tuple) else (checked,):
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            _in_range(key, number, field, meaning)
    return checked


def _typed(key: str, value: Any, kind: Any, meaning: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        if len(options) != 1:
            raise TypeError(f"{key}: a field is one type or None")
        return _typed(key, value, options[0], meaning)
    if origin is Literal:
        if isinstance(value, bool):  # YAML reads an option called true as a truth value
            value = str(value).lower()
        if value not in arguments:
            near = did_you_mean(str(value), [str(a) for a in arguments])
            raise ConfigError(f"{key}={value}: must be one of {', '.join(map(str, arguments))}{near}")
        return value
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else None
        if not items:
            raise ConfigError(f"{key}={value}: must be a list such as [32,64] ({meaning})")
        return tuple(_typed(key, item, arguments[0], meaning) for item in items)
    if isinstance(value, int) and abs(value) >= 2**63:  # thousands of digits cannot even be printed
        raise ConfigError(f"{key}: is too large a number\nwhole numbers are below 2^63 ({meaning})")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ConfigError(f"{key}={value}: must be {names[kind]} ({meaning})")
    return value


def _in_range(key: str, number: float, field: dataclasses.Field[Any], meaning: str) -> None:
    low, above, high = (field.metadata.get(bound) for bound in ("low", "above", "high"))
    fits = (
        math.isfinite(number)
        and (low is None or number >= low)
        and (above is None or number > above)
        and (high is None or number <= high)
    )
    if not fits:
        allowed = filter(None, (range_of(field), "" if math.isfinite(number) else "finite"))
        raise ConfigError(f"{key}={number:g}: must be {' and '.join(allowed)} ({meaning})")


def range_of(field: dataclasses.Field[Any]) -> str:
    """Return the range of a field in words: `above 0 and at most 1`; nothing without bounds."""
    words = {"low": "at least", "above": "above", "high": "at most"}
    return " and ".join(
        f"{word} {field.metadata[key]:g}" for key, word in words.items() if field.metadata.get(key) is not None
    )
