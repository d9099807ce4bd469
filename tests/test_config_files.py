"""What `check_file` decides of a configuration file, whatever the YAML library thinks of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bnlab.config.files import DEEPEST, check_file
from bnlab.errors import ConfigError

DEEP = {
    "list": "a: " + "[" * 100_000,
    "not ascii": "é: " + "[" * 100_000,
    "closed": "a: " + "[" * 1500 + "]" * 1500,
    "mapping": "a: " + "{a: " * 10_000,
    "by dashes": "a:\n" + "- " * 10_000,
    "by question marks": "? " * 10_000,
    "by indentation": "".join(" " * i + "a:\n" for i in range(1000)),
    "one too many": "a: " + "[" * DEEPEST,
}
FINE = {"just": "a: " + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1), "quoted": f"a: '{'[' * 5000}'", "empty": ""}


def refusal(folder: Path, text: str) -> str:
    path = folder / "x.yaml"
    path.write_text(text)
    try:
        check_file(str(path), str(folder))
    except ConfigError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


@pytest.mark.parametrize("name", DEEP)
def test_depth_is_refused_in_the_same_words_by_every_parser(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path, DEEP[name]) == "is nested more than 20 levels deep"


def test_what_is_no_deeper_passes(tmp_path: Path) -> None:
    assert {name: refusal(tmp_path, text) for name, text in FINE.items()} == dict.fromkeys(FINE, "")


def test_a_parser_that_gives_up_by_itself_changes_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recurses(*_: object, **__: object) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(yaml, "parse", recurses)
    assert refusal(tmp_path, "a: [[1]]") == "is nested more than 20 levels deep"
    monkeypatch.undo()
    assert refusal(tmp_path, "a: [").startswith("is no YAML: ")
