"""Claim files: a question, the experiments that answer it, and the rule that says how, fixed before they are made.

A file is YAML of a bounded size, read as data: a training is named by the overrides that one types after
`bnlab train -m`, a condition by a sentence (`language.py`). It can start what `train`, `bench` and `check` could,
on data inside of the working directory, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from bnlab.claims.language import Sentence, parse_sentence
from bnlab.claims.outcome import Verdict
from bnlab.claims.rule import Rule, parse_rule
from bnlab.compare.arms import split_list, text_of
from bnlab.config.files import CLAIMS, conf_dir, read_yaml
from bnlab.errors import ConfigError, did_you_mean

OWN = Path("claims")  # the user's own, in the working directory
ALL = "all"  # names every claim
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,59}")
KEYS = (
    "claim", "question", "quote", "source", "expects", "caveats", "base", "train", "bench", "check", "rule", "requires",
    "budget",
)  # fmt: skip
TALK = ("question", "quote", "source", "expects", "caveats")  # what no verdict depends on
VERDICTS: tuple[Verdict, ...] = ("confirmed", "refuted", "undecided")
BUDGETS = ("quick", "full")
MOST_SEEDS = 1000
MOST_TEXT = 2000  # characters of a quote
_PATHS = ("data.root", "data.path")
_KEPT = ("seed", "name")  # keys that bnlab sets itself
_LINE = re.compile(r"[+~]?[A-Za-z_][\w./]*=.*", re.DOTALL)


@dataclass(frozen=True)
class Budget:
    """How much a claim may cost: the numbers of seeds at which it is looked at, and overrides of all experiments."""

    looks: tuple[int, ...]
    overrides: tuple[str, ...] = ()


DEFAULT_BUDGETS = {"quick": Budget((3, 5, 8)), "full": Budget((3, 5, 8, 12, 20))}


@dataclass(frozen=True)
class Claim:
    """One claim, as its file has it."""

    name: str
    path: Path
    question: str
    rule: Rule
    quotes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    expected: Verdict | None = None
    because: str = ""
    caveats: tuple[str, ...] = ()
    base: tuple[str, ...] = ()
    train: tuple[tuple[str, ...], ...] = ()  # overrides of each sweep
    bench: tuple[tuple[str, ...], ...] = ()
    check: tuple[tuple[str, ...], ...] = ()  # with `property=`
    requires: tuple[Sentence, ...] = ()
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    rule_sha256: str = ""  # of all that a verdict depends on

    def sweeps(self, budget: Budget, more: Sequence[str] = ()) -> list[list[str]]:
        """Return the overrides of each sweep without its seeds; a later one of a key takes the place of earlier ones.

        `more` are those of the command line.
        """
        return [_last_ones([*self.base, *line, *budget.overrides, *more]) for line in self.train]

    def benches(self, budget: Budget, more: Sequence[str] = ()) -> list[list[str]]:
        """Return the overrides of each bench."""
        return [_last_ones([*self.base, *line, *budget.overrides, *more]) for line in self.bench]

    def checks(self, more: Sequence[str] = ()) -> Iterator[tuple[list[str], list[str]]]:
        """Yield the overrides and the properties of each line of strategies to check."""
        for line in self.check:
            words = [word.removeprefix("property=") for word in line if word.startswith("property=")]
            others = [word for word in line if not word.startswith("property=")]
            yield _last_ones([*self.base, *others, *more]), [key for word in words for key in split_list(word)]

    def num_runs(self, budget: Budget, more: Sequence[str] = ()) -> int:
        """Return how many trainings it takes at most, counted without composing them."""
        per_seed = [
            math.prod(len(split_list(line.partition("=")[2])) for line in lines) for lines in self.sweeps(budget, more)
        ]
        return sum(per_seed) * budget.looks[-1] if per_seed else 0


def claim_files() -> dict[str, Path]:
    """Return every claim's file by name: those in ./claims take the place of those that ship with bnlab."""
    files: dict[str, Path] = {}
    for folder in (conf_dir() / CLAIMS, OWN):
        if folder.is_dir():
            files |= {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return dict(sorted(files.items()))


def find_claim(name: str) -> Path:
    """Return the file of a claim, which its name or the file's own says. Errors: ConfigError."""
    if Path(name).suffix and " " not in Path(name).suffix:
        if not os.path.isfile(name):
            raise ConfigError(f"{name}: no such file\nname one, or a claim; `bnlab claim list` names all")
        return Path(name)
    files = claim_files()
    if name not in files:
        way = "`bnlab claim list WORD` finds claims by their words" if " " in name else "`bnlab claim list` names all"
        raise ConfigError(f"{name}: no such claim{did_you_mean(name, files)}\n{way}")
    return files[name]


def find_claims(names: Sequence[str]) -> list[Claim]:
    """Return the claims that these names or files say, each once; of `all`, or none, every one. Errors: ConfigError."""
    if not names or list(names) == [ALL]:
        return [read_claim(path) for path in claim_files().values()]
    paths: dict[str, Path] = {}
    for path in map(find_claim, names):
        before = paths.setdefault(path.stem, path)
        if not before.samefile(path):
            raise ConfigError(f"{path}: {before} is of the same name\nname one of them")
    return [read_claim(path) for path in paths.values()]


def read_claim(path: Path) -> Claim:
    """Return the claim of a file. Errors: ConfigError that names the file, the key, the value and what is allowed."""
    try:
        return _claim(path, read_yaml(path))
    except ConfigError as error:
        said = str(error).removeprefix(f"{path.resolve()}: ").removeprefix(f"{path}: ")
        raise ConfigError(f"{path}: {said}") from error


def _claim(path: Path, tree: Mapping[str, Any]) -> Claim:
    for key in tree:
        if key not in KEYS:
            raise ConfigError(f"{key!s:.80}: no such key{did_you_mean(key, KEYS)}\nthere are: {', '.join(KEYS)}")
    name = tree.get("claim")
    if not isinstance(name, str) or not NAME.fullmatch(name) or name != path.stem:
        raise ConfigError(f"claim={text_of(name):.80}: must be {path.stem}, the file's name, of a-z, 0-9 and -")
    question = _text("question", tree.get("question"))
    if not question.endswith("?"):
        raise ConfigError(f"question={question:.80}: must end with a question mark")
    base = _lines("base", tree.get("base", []), joined=True)
    expects = tree.get("expects") or {}
    if not isinstance(expects, Mapping) or set(expects) - {"verdict", "because"}:
        raise ConfigError(f"expects={expects!s:.80}: must have the keys verdict and because")
    if expects and expects.get("verdict") not in VERDICTS:
        raise ConfigError(
            f"expects.verdict={text_of(expects.get('verdict')):.80}: must be one of {', '.join(VERDICTS)}"
        )
    claim = Claim(
        name=name,
        path=path,
        question=question,
        rule=parse_rule(tree.get("rule")),
        quotes=_texts("quote", tree.get("quote", [])),
        sources=_texts("source", tree.get("source", [])),
        expected=expects.get("verdict"),
        because=_text("expects.because", expects["because"]) if "because" in expects else "",
        caveats=_texts("caveats", tree.get("caveats", [])),
        base=base[0] if base else (),
        train=_lines("train", tree.get("train", [])),
        bench=_lines("bench", tree.get("bench", [])),
        check=_lines("check", tree.get("check", [])),
        requires=_requires(tree.get("requires", [])),
        budgets=_budgets(tree.get("budget", {})),
        rule_sha256=_digest({key: value for key, value in tree.items() if key not in TALK}),
    )
    if not claim.train and not claim.bench and not claim.check:
        raise ConfigError("train: must have a sweep such as `norm=none,batch`, or `bench` or `check` one")
    return claim


def _digest(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MOST_TEXT:
        raise ConfigError(f"{key}={text_of(value):.80}: must be text of up to {MOST_TEXT:,} characters")
    return " ".join(value.split())


def _texts(key: str, value: object) -> tuple[str, ...]:
    return tuple(_text(key, item) for item in (value if isinstance(value, list) else [value]))


def _lines(key: str, value: object, joined: bool = False) -> tuple[tuple[str, ...], ...]:
    """Return lists of overrides, one a line of text; `joined` into a single one."""
    lines = value if isinstance(value, list) else [value]
    found = [_overrides(f"{key}.{number}", line) for number, line in enumerate(lines)]
    return (tuple(word for line in found for word in line),) if joined and found else tuple(found)


def _overrides(key: str, line: object) -> tuple[str, ...]:
    if not isinstance(line, str) or len(line) > MOST_TEXT:
        raise ConfigError(f"{key}={text_of(line):.80}: must be overrides such as `norm=none,batch optim.lr=0.1`")
    try:
        words = tuple(shlex.split(line))
    except ValueError as error:
        raise ConfigError(f"{key}={line:.80}: {str(error).lower()}") from error
    for word in words:
        check_override(word, key)
    return words


def check_override(word: str, key: str, *, foreign: bool = True) -> None:
    """Refuse what is no setting of a training; in a file, which may be `foreign`, also a place outside of this folder.

    Errors: ConfigError.
    """
    where = f"{word:.80}" if key == word else f"{key}: {word:.80}"
    name, _, value = word.partition("=")
    name = name.lstrip("+~")
    if word in ("-m", "--multirun"):
        raise ConfigError(f"{where}: leave it out; a claim always sweeps")
    if not _LINE.fullmatch(word) or name.startswith("hydra"):
        raise ConfigError(f"{where}: must be KEY=VALUE, a key of a training or bench.…")
    if name in _KEPT:
        raise ConfigError(f"{where}: is set by bnlab; `budget` says how many seeds there are")
    if foreign and "${" in value:
        raise ConfigError(f"{where}: an interpolation is not allowed in a claim")
    if foreign and name in _PATHS and any(_leaves(place) for place in split_list(value)):
        raise ConfigError(f"{where}: must be a place inside of the working directory")


def _leaves(place: str) -> bool:
    path = PurePosixPath(place.strip("'\""))
    return path.is_absolute() or ".." in path.parts or place.startswith("~")


def _requires(value: object) -> tuple[Sentence, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"requires={value!s:.80}: must be a list of sentences")
    sentences = []
    for number, item in enumerate(value):
        try:
            sentences.append(parse_sentence(item))
        except ConfigError as error:
            raise ConfigError(f"requires.{number}: {error}") from error
    return tuple(sentences)


def _budgets(value: object) -> dict[str, Budget]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"budget={text_of(value):.80}: must have the keys quick and full")
    budgets = dict(DEFAULT_BUDGETS)
    for name, entry in value.items():
        if name not in BUDGETS:
            raise ConfigError(f"budget.{name!s:.80}: no such budget; there are: {', '.join(BUDGETS)}")
        if not isinstance(entry, Mapping) or set(entry) - {"looks", "overrides"}:
            raise ConfigError(f"budget.{name}={text_of(entry):.80}: must have the keys looks and overrides")
        looks = entry.get("looks", list(budgets[name].looks))
        overrides = _lines(f"budget.{name}.overrides", entry.get("overrides", []), joined=True)
        budgets[name] = Budget(check_looks(looks, f"budget.{name}.looks"), overrides[0] if overrides else ())
    return budgets


def check_looks(looks: object, key: str) -> tuple[int, ...]:
    """Return numbers of seeds, rising. Errors: ConfigError."""
    numbers = tuple(looks) if isinstance(looks, (list, tuple)) else ()
    whole = all(type(n) is int and 1 <= n <= MOST_SEEDS for n in numbers)
    if not numbers or not whole or list(numbers) != sorted(set(numbers)) or len(numbers) > 8:
        raise ConfigError(f"{key}={looks!s:.80}: must be rising numbers of seeds such as [3, 5, 8], at most 8 of them")
    return numbers


def _last_ones(lines: Sequence[str]) -> list[str]:
    """Return overrides without those that a later one of the same key replaces, which keep their order."""
    by_key: dict[str, str] = {}
    for line in lines:
        key = line.partition("=")[0].lstrip("+~")
        by_key.pop(key, None)
        by_key[key] = line
    return list(by_key.values())
