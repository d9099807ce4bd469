"""Parameters: unknown keys, wrong types and values out of range are refused by name; nothing is guessed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from bnlab.errors import ConfigError
from bnlab.schema import param, parse


@dataclass(frozen=True, kw_only=True)
class Sample:
    size: int = param(32, "samples in a ghost batch", low=2)
    rate: float = param(0.1, "learning rate", above=0.0, high=10.0)
    mode: Literal["pooled", "sequential"] = param("pooled", "update")
    widths: tuple[int, ...] = param((32, 64), "channels", low=1)
    share: float | None = param(None, "share", low=0.0, high=1.0)
    flag: bool = param(False, "flag")


def test_values_of_the_right_type_are_taken() -> None:
    made = parse(Sample, {"size": 4, "rate": 1, "widths": [8, 16, 32], "share": 0.5, "flag": True}, "x")
    assert made == Sample(size=4, rate=1.0, widths=(8, 16, 32), share=0.5, flag=True)
    assert isinstance(made.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sise": 4}, "x.sise: no such key; did you mean size?"),
        ({"size": 1}, "x.size=1: must be at least 2 (samples in a ghost batch)"),
        ({"size": 2.5}, "x.size=2.5: must be a whole number"),
        ({"size": True}, "x.size=True: must be a whole number"),
        ({"size": "4"}, "x.size=4: must be a whole number"),
        ({"size": None}, "x.size=None: must be a whole number"),
        ({"rate": float("nan")}, "x.rate=nan: must be above 0 and at most 10"),
        ({"rate": float("inf")}, "x.rate=inf: must be above 0 and at most 10"),
        ({"rate": 0}, "x.rate=0: must be above 0"),
        ({"rate": "fast"}, "x.rate=fast: must be a number (learning rate)"),
        ({"mode": "poled"}, "x.mode=poled: must be one of pooled, sequential; did you mean pooled?"),
        ({"widths": 32}, "x.widths=32: must be a list"),
        ({"widths": []}, "x.widths=[]: must be a list"),
        ({"widths": [32, 0]}, "x.widths=0: must be at least 1"),
        ({"share": 1.5}, "x.share=1.5: must be at least 0 and at most 1"),
        ({"flag": 1}, "x.flag=1: must be true or false"),
        ({"flag": "yes"}, "x.flag=yes: must be true or false"),
    ],
)
def test_anything_else_is_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(Sample, values, "x")
    assert message in str(error.value)
