"""Shell completion of `key=value`, by Hydra's own engine."""

from __future__ import annotations

import os


def overrides(incomplete: str) -> list[str]:
    """Return what may follow `incomplete`; nothing when anything goes wrong: a shell must not see an error here."""
    from bnlab.config import compose

    word, cut = _word(incomplete)
    try:
        return [completion[cut:] for completion in compose.complete(word)]
    except Exception:
        return []


def _word(incomplete: str) -> tuple[str, int]:
    """Return the whole word being typed and how much of a completion the shell already has.

    bash splits words at `=`: of `norm=b` it passes `b` alone, so the key is read from the words before.
    """
    words = os.environ.get("COMP_WORDS", "").split()
    position = os.environ.get("COMP_CWORD", "")
    at = int(position) if position.isdecimal() else 0
    if 0 < at < len(words) and words[at] == "=":
        key = words[at - 1]
        return f"{key}=", len(key) + 1
    if 2 <= at <= len(words) and words[at - 1] == "=":
        key = words[at - 2]
        return f"{key}={incomplete}", len(key) + 1
    return incomplete, 0
