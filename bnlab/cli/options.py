"""What several commands take."""

from __future__ import annotations

import enum


class Format(enum.StrEnum):
    table = "table"
    plain = "plain"
    csv = "csv"
    json = "json"
    md = "md"


def complete_override(incomplete: str) -> list[str]:
    from bnlab.config.completion import overrides

    return overrides(incomplete)
