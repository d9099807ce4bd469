"""Shell completion of `key=value`, by Hydra's own engine; after a comma too, and of values that are words."""

from __future__ import annotations

import os


def overrides(incomplete: str) -> list[str]:
    """Return what may follow `incomplete`; nothing when anything goes wrong: a shell must not see an error here.

    The overrides before it count: after `norm=ghost` the keys are those of ghost. Of a group that is swept they are not
    the same in all jobs, so none is offered.
    """
    earlier, line, cut = _line(incomplete)
    key, _, value = line.partition("=")
    before, comma, last = value.rpartition(",")
    word = f"{key}={last}" if comma else line
    swept = tuple(f"{line.partition('=')[0]}." for line in earlier if "," in line)
    plain = [line for line in earlier if "," not in line and not any(map(str.isspace, line))]
    try:
        completions = _completions(plain, word)
        if len(completions) == 1 and completions[0][-1] in "=.":  # with a second one a shell adds no space to the first
            only = completions[0]
            completions += [c for c in _completions(plain, only) if c != only] or [f"{only}..."]
    except Exception:
        return []
    if comma:
        given = before.split(",")
        completions = [f"{key}={before},{w}" for c in completions if (w := c.partition("=")[2]) and w not in given]
    return [completion[cut:] for completion in completions if not completion.startswith(swept)]


def _completions(earlier: list[str], word: str) -> list[str]:
    """Return what may follow `word` behind the overrides before it.

    Hydra knows neither which words a key takes, nor that a list is a value: it looks for keys inside of it.
    """
    from bnlab.config import compose
    from bnlab.config.files import keys

    lists = {key for key, having in keys().items() if any(each.default.startswith("[") for each in having)}
    key, is_value, value = word.partition("=")
    known = [w for each in keys().get(key, ()) for w in each.words or ([each.default] if key in lists else [])]
    if is_value and known:
        return [f"{key}={w}" for w in dict.fromkeys(w.replace(" ", "") for w in known) if w.startswith(value)]
    found = compose.complete(" ".join([*earlier, word]))
    return [f"{c[:-1]}=" if c[:-1] in lists else c for c in found]


def _line(incomplete: str) -> tuple[list[str], str, int]:
    """Return the overrides before, the whole word being typed, and how much of a completion the shell already has.

    bash splits words at `=` and `:`, and of `norm=b` it passes `b` alone.
    """
    text, position = os.environ.get("COMP_WORDS", ""), os.environ.get("COMP_CWORD", "")
    words = text.split("\n" if "\n" in text else None)
    if not (position.isdecimal() and 0 < int(position) <= len(words)):
        words, position = os.environ.get("_TYPER_COMPLETE_ARGS", "").removesuffix(incomplete).split(), ""
    tokens = [*words[: int(position)], *words[int(position) :][:1]] if position else [*words, incomplete]
    if position and int(position) == len(words):
        tokens.append("")
    lines: list[str] = []
    is_open = False  # the next token belongs to the word before
    for token in tokens:
        if lines and (is_open or token in ("=", ":")):
            lines[-1] += token
        else:
            lines.append(token)
        is_open = bool(position) and token in ("=", ":")
    last = "" if is_open else tokens[-1]
    earlier = [line for line in lines[:-1] if "=" in line and not line.startswith("-")]
    return earlier, lines[-1], len(lines[-1]) - len(last) if position else 0
