"""Configuration files: where bnlab's own lie and what they offer; and any file looked at before it is composed.

A file of a few hundred bytes can stand for gigabytes (aliases of aliases), name a Python object, or be a link to
another file. Hydra reads whatever it is pointed at, so each file passes `check_file` first.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bnlab.errors import ConfigError, EnvironmentFault
from bnlab.record.plain_files import read_plain
from bnlab.record.read import flatten

CONFIG_NAME = "config"
EXPERIMENTS = "experiment"  # a group that is added to the others: `+experiment=card`
GLOBAL = ("recipe", EXPERIMENTS)  # groups that set keys of others
CLAIMS = "claim"  # the folder of claims, which no configuration is composed of
METERS = "# Meters, which measure may name:"  # opens their lines in the main file
LARGEST_FILE = 2**20  # bytes; bnlab's own have at most 2,000
MOST_VALUES = 10_000  # aliases counted as what they stand for; bnlab's own have about 50
DEEPEST = 20  # nested levels
_KEY = re.compile(r"( *)(?:- )?(\w+):(?: (.*?))?(?: # (.*))?")  # a line of one key: its value, and what it means
TOO_DEEP = f"is nested more than {DEEPEST} levels deep"


def conf_dir() -> Path:
    """Return the folder of configurations: inside the installed package, or at the top of a checkout."""
    here = Path(__file__).resolve().parents[1]
    for candidate in (here / "conf", here.parent / "conf"):
        if (candidate / f"{CONFIG_NAME}.yaml").is_file():
            return candidate
    raise EnvironmentFault("bnlab's conf folder is missing\nreinstall bnlab")


def added(group: str) -> str:
    """Return a group as an override names it: what is added to the others begins with a plus."""
    return f"+{group}" if group == EXPERIMENTS else group


def groups() -> dict[str, dict[str, str]]:
    """Return every group's options with the one-line description that opens each file; imports nothing heavy."""
    known: dict[str, dict[str, str]] = {}
    for folder in sorted(p for p in conf_dir().iterdir() if p.is_dir() and p.name != CLAIMS):
        options = {}
        for file in sorted(folder.glob("*.yaml")):
            lines = file.read_text(encoding="utf-8").splitlines()
            described = [line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @package")]
            options[file.stem] = described[0] if described else ""
        known[folder.name] = options
    return known


def meter_lines() -> dict[str, str]:
    """Return every meter with its one-line description; imports nothing heavy."""
    text = (conf_dir() / f"{CONFIG_NAME}.yaml").read_text(encoding="utf-8").partition(f"{METERS}\n")[2]
    described = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
    return {name: what for name, _, what in (line[2:].partition(": ") for line in described)}


@dataclass(frozen=True)
class Key:
    """What the configurations say of a key."""

    default: str  # as YAML
    meaning: str  # with its range
    option: str = ""  # of its group, which has the key; "" of all

    @property
    def words(self) -> list[str]:
        """The words that its value may be, where these are few."""
        if named := re.search(r"(?:^|; )one of ([\w, ]+)", self.meaning):
            return named[1].split(", ")
        return ["true", "false"] if self.default in ("true", "false") else []


@cache
def keys() -> dict[str, list[Key]]:
    """Return every dotted key and every group, those of one option in some of the groups; imports nothing heavy."""
    known: dict[str, list[Key]] = {}
    parent = ""
    for line in (conf_dir() / f"{CONFIG_NAME}.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0].splitlines():
        if found := _KEY.fullmatch(line):
            indent, name, default, meaning = found.groups(default="")
            if default:
                known[f"{parent if indent else ''}{name}"] = [Key(default, meaning)]
            else:
                parent = "" if name == "defaults" else f"{name}."
    for group, options in groups().items():
        known.setdefault(group, [])
        for option in options if group not in GLOBAL else ():
            for line in (conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines():
                if (found := _KEY.fullmatch(line)) and found[2] != "name":
                    known.setdefault(f"{group}.{found[2]}", []).append(Key(found[3], found[4] or "", option))
    return known


def defaults(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the flat defaults of bnlab's own configuration with these options: `{"norm": "batch"}` -> `norm.momentum`.

    An option that bnlab does not have, as a record of others may name, has none.
    """
    root = conf_dir()
    tree = {
        key: node for key, node in _mapping(root / f"{CONFIG_NAME}.yaml").items() if key not in ("defaults", "hydra")
    }
    for group, option in options.items():
        path = root / group / f"{option}.yaml"
        if path.name in _files(root / group):
            tree[group] = _mapping(path)
    recipe = f"{options.get('data')}.yaml"
    for key, node in (_mapping(root / "recipe" / recipe) if recipe in _files(root / "recipe") else {}).items():
        tree[key] = tree.get(key, {}) | node
    return flatten(tree)


@cache
def _files(folder: Path) -> frozenset[str]:
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()


@cache
def _mapping(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    tree: dict[str, Any] = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return tree


def check_file(path: str, folder: str) -> None:
    """Refuse what is no configuration file inside of `folder`.

    Errors: ConfigError for a path that leads out of the folder, for what is no regular file of bounded size, and for
    text that is no mapping, names a type of Python, or is nested or stands for more than a configuration can be.
    """
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, root]) != root:
        raise ConfigError(f"{path}: leads out of {folder}\nname a file inside of it")
    try:
        content = read_plain(Path(real), LARGEST_FILE)
    except OSError as error:
        raise ConfigError(f"{real}: cannot be read: {error.strerror}") from error
    fault = _fault(content)
    if fault is not None:
        raise ConfigError(f"{real}: {fault}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return what a YAML file inside of its folder holds, as plain values. Errors: ConfigError, as of `check_file`."""
    import yaml

    check_file(str(path), str(path.parent))
    try:
        plain = yaml.load(read_plain(path, LARGEST_FILE), Loader=_unique_keys())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date that is none
        raise ConfigError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


@cache
def _unique_keys() -> Any:
    """Return YAML's safe loader, which refuses a key that is given twice."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    def mapping(loader: Any, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if isinstance(key, str) and keys.count(key) > 1), None):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the key {twice} is given twice")
        return base.construct_mapping(loader, node, deep)

    return type("UniqueKeys", (base,), {"construct_mapping": mapping})


def _fault(content: bytes) -> str | None:
    """Return what is wrong with a text, in bnlab's words wherever a library gives up on it as well."""
    from yaml import YAMLError

    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        return f"is no YAML: byte {error.start + 1} is not UTF-8"
    try:
        return _first_fault(text)
    except RecursionError:
        return TOO_DEEP
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if mark is not None:  # PyYAML 6.0.4 refuses depth by itself, before it tells of the levels that it has read
            with suppress(YAMLError):
                if _first_fault(text[: mark.index]) == TOO_DEEP:
                    return TOO_DEEP
        return "is no YAML: " + " ".join(str(error).split())


def _first_fault(text: str) -> str | None:
    """Return what is wrong with a text; it is read only as far as that takes. Errors: whatever a parser raises."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    values = 0  # so far, those of an alias counted again
    open_nodes: list[tuple[str | None, int]] = []  # mappings and lists: their anchors, the values before them
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = values - before
        if not isinstance(event, yaml.NodeEvent):
            continue
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            return f"line {event.start_mark.line + 1}: the tag {tag} is not allowed"
        if values == 0 and not isinstance(event, yaml.MappingStartEvent):
            return "is no mapping of keys to values"
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                return f"line {event.start_mark.line + 1}: the alias *{event.anchor} stands inside of what it names"
            values += sizes[event.anchor]
        else:
            values += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, values - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if values > MOST_VALUES:
            return f"stands for more than {MOST_VALUES:,} values"
        if len(open_nodes) > DEEPEST:
            return TOO_DEEP
    return None
