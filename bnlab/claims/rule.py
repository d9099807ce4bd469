"""A rule: sentences, alone or combined by `all` and `any`, as YAML or a command line has them.

rule: "test_accuracy[norm=batch] - test_accuracy[norm=none] > 0.3"
rule:
  all:
    - for: {model: [mlp, cnn], norm: [batch, layer]}
      holds: "step_ratio[model={model} norm={norm}] < 3"
      label: "{model} {norm}"
    - holds: "steps_to_target[norm=batch] / steps_to_target[norm=none] < 1"
      best_of: optim.lr
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bnlab.claims.language import EXAMPLE, Exact, Sentence, parse_sentence
from bnlab.errors import ConfigError, did_you_mean

MOST_PARTS = 100
DEEPEST = 2  # of all and any within one another
KEYS = ("holds", "all", "any", "for", "best_of", "label")
_WORD = re.compile(r"[\w.=,\[\]+-]+")


@dataclass(frozen=True)
class Part:
    """A sentence; with `best_of`, each cell is read at its best setting of these keys, chosen on validation."""

    sentence: Sentence
    label: str = ""
    best_of: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        return isinstance(self.sentence.of, Exact)


@dataclass(frozen=True)
class Combination:
    """`all`: confirmed if every part is, refuted if one is. `any`: the mirror image."""

    how: Literal["all", "any"]
    parts: tuple[Part | Combination, ...]


Rule = Part | Combination


def parse_rule(value: object, where: str = "rule") -> Rule:
    """Return a rule. Errors: ConfigError that names the key and what is allowed."""
    parts = list(_parts(value, where, DEEPEST))
    rule = parts[0] if len(parts) == 1 else Combination("all", tuple(parts))
    if (count := sum(1 for _ in parts_of(rule))) > MOST_PARTS:
        raise ConfigError(f"{where}: has {count:,} parts\nat most {MOST_PARTS} are allowed")
    said = [(part.sentence, part.best_of) for part in parts_of(rule)]
    if twice := next((each for place, each in enumerate(said) if each in said[:place]), None):
        way = "leave one out; where a `for` repeats it, put its {name} into the sentence"
        raise ConfigError(f"{where}: {twice[0]}: stands there twice\n{way}")
    return rule


def parts_of(rule: Rule) -> Iterator[Part]:
    """Yield the sentences of a rule in order."""
    if isinstance(rule, Part):
        yield rule
    else:
        for part in rule.parts:
            yield from parts_of(part)


def _parts(value: object, where: str, depth: int) -> Iterator[Rule]:
    """Yield what one entry stands for: several where it has a `for`."""
    if isinstance(value, str):
        yield Part(_sentence(value, where))
        return
    if not isinstance(value, Mapping):
        what = "" if value is None else f"={value!s:.80}"
        raise ConfigError(
            f"{where}{what}: must be a sentence {EXAMPLE}, or one of {', '.join(KEYS[:3])} with its value"
        )
    for key in value:
        if key not in KEYS:
            raise ConfigError(f"{where}.{key}: no such key{did_you_mean(str(key), KEYS)}\nthere are: {', '.join(KEYS)}")
    said = [key for key in KEYS[:3] if key in value]
    if len(said) != 1:
        raise ConfigError(f"{where}: must have one of {', '.join(KEYS[:3])}, and has {', '.join(said) or 'none'}")
    for fixed in _combinations(value.get("for"), f"{where}.for"):
        yield _entry(_filled(value, fixed, where), said[0], where, depth)


def _entry(value: Mapping[str, Any], said: str, where: str, depth: int) -> Rule:
    best_of = value.get("best_of") or ()
    keys = (best_of,) if isinstance(best_of, str) else best_of
    if not isinstance(keys, (list, tuple)) or not all(isinstance(key, str) and key != "seed" for key in keys):
        raise ConfigError(f"{where}.best_of={best_of}: must be a key such as optim.lr, or a list of keys, not seed")
    label = value.get("label", "")
    if not isinstance(label, str) or len(label) > 60:
        raise ConfigError(f"{where}.label={label!r:.70}: must be text of at most 60 characters")
    if said == "holds":
        return Part(_sentence(value["holds"], f"{where}.holds"), label, tuple(keys))
    if keys or label:
        raise ConfigError(f"{where}: best_of and label belong to a sentence (`holds`), not to {said}")
    if depth == 0:
        raise ConfigError(f"{where}: all and any are nested more than {DEEPEST} levels deep")
    parts = value[said]
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ConfigError(f"{where}.{said}: must be a list of sentences")
    nested = [part for i, entry in enumerate(parts) for part in _parts(entry, f"{where}.{said}.{i}", depth - 1)]
    return Combination("all" if said == "all" else "any", tuple(nested))


def _sentence(value: object, where: str) -> Sentence:
    try:
        return parse_sentence(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _combinations(value: object, where: str) -> Iterator[Mapping[str, str]]:
    """Yield one choice of values at a time of a `for`."""
    if value is None:
        yield {}
        return
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{where}={value}: must have lists, such as {{norm: [batch, layer]}}")
    lists = []
    for name, choices in value.items():
        words = [_typed(choice) for choice in choices] if isinstance(choices, (list, tuple)) else []
        if not words or not all(_WORD.fullmatch(word) for word in words) or not re.fullmatch(r"\w+", str(name)):
            raise ConfigError(f"{where}.{name}={choices!s:.80}: must be a list of words such as [batch, layer]")
        lists.append(words)
    count = 1
    for words in lists:
        count *= len(words)
    if count > MOST_PARTS:
        raise ConfigError(f"{where}: stands for {count:,} parts\nat most {MOST_PARTS} are allowed")
    for chosen in itertools.product(*lists):
        yield dict(zip(map(str, value), chosen, strict=True))


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _filled(value: Any, fixed: Mapping[str, str], where: str) -> Any:
    """Return a value with `{name}` replaced in all of its texts. Errors: ConfigError for a name without a list."""
    if isinstance(value, str):

        def put(match: re.Match[str]) -> str:
            return fixed.get(match[1], match[0])

        return re.sub(r"\{(\w+)\}", put, value)
    if isinstance(value, Mapping):
        return {key: item if key == "for" else _filled(item, fixed, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_filled(item, fixed, where) for item in value]
    return value
