"""`@for_each(names, cases)` in place of `@pytest.mark.parametrize`: one test does all cases and names those that fail.

For cases that take milliseconds and share whatever fixtures the test has: thousands of ids cost more than what they do.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import pytest

Axis = tuple[list[str], list[tuple[str, tuple[Any, ...]]]]  # names, and for each case its label and values
SHOWN = 20  # of the cases that fail


def for_each(
    names: str | Sequence[str], cases: Iterable[Any], ids: Callable[[Any], object] | Sequence[str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call a test once for each case; several of them for each combination. Arguments as of `parametrize`."""
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    rows = [case.values if hasattr(case, "marks") else (case,) if len(keys) == 1 else tuple(case) for case in cases]
    labels = [_label(keys, row, ids, place) for place, row in enumerate(rows)]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        body, axes = getattr(test, "cases", (test, []))
        return _over(body, [(keys, list(zip(labels, rows, strict=True))), *axes])

    return decorate


def _over(body: Callable[..., None], axes: list[Axis]) -> Callable[..., None]:
    names = [name for keys, _ in axes for name in keys]

    @functools.wraps(body)
    def test(**fixtures: Any) -> None:
        failures: list[tuple[str, BaseException]] = []
        combinations = list(product(*(cases for _, cases in axes)))
        assert combinations, "no cases"
        for chosen in combinations:
            values = [value for _, row in chosen for value in row]
            try:
                body(**dict(zip(names, values, strict=True)), **fixtures)
            except (Exception, pytest.fail.Exception) as error:
                failures.append((", ".join(label for label, _ in chosen), error))
        if failures:
            lines = [f"{label}: {type(error).__name__}: {error}" for label, error in failures[:SHOWN]]
            more = [f"and {len(failures) - SHOWN} more"] if len(failures) > SHOWN else []
            said = [f"{len(failures)} of {len(combinations)} cases failed", *lines, *more]
            raise AssertionError("\n".join(said)) from failures[0][1]

    signature = inspect.signature(body)
    kept = [parameter for name, parameter in signature.parameters.items() if name not in names]
    test.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    test.cases = (body, axes)  # type: ignore[attr-defined]
    return test


def _label(keys: list[str], row: tuple[Any, ...], ids: Any, place: int) -> str:
    if callable(ids):
        return " ".join(str(ids(value)) for value in row)
    if ids is not None:
        return str(ids[place])
    return " ".join(f"{key}={value!s:.60}" for key, value in zip(keys, row, strict=True))
