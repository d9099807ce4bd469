"""The user's own images in words: how many were used for what, and what was passed over, as a run recorded it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnlab.errors import count_of
from bnlab.report.curves import finite, mapping


def images_used(environment: Mapping[str, Any]) -> str:
    """Return `140 images of 2 classes: 100 train, 12 valid, 28 test`; nothing for a data set that is not the user's."""
    data = mapping(environment.get("data"))
    counts = _counts(data.get("images"))
    if not counts:
        return ""
    classes = finite(data.get("classes"))
    of = "" if classes is None else f" of {round(classes):,} classes"
    return f"{count_of(sum(counts.values()), 'image')}{of}: {_listed(counts)}"


def images_passed_over(environment: Mapping[str, Any]) -> str:
    """Return `3 hidden, 1 .txt`, or nothing."""
    return _listed(_counts(mapping(environment.get("data")).get("passed_over")))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def _counts(value: Any) -> dict[str, int]:
    return {key: round(count) for key, item in mapping(value).items() if (count := finite(item)) is not None}
