"""`bnlab guide`: the list of topics, a guide as it is and rendered, and a topic that does not exist."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from bnlab.cli import guide as command
from bnlab.cli import main
from bnlab.report.console import Terminal, to_ascii
from bnlab.report.guide_report import WIDEST, show_guide

MODES = """# Why a model behaves differently

Batch normalization has *two* kinds of `statistics`, e.g. those of a
batch; see [the paper](https://arxiv.org/abs/1502.03167). Then more.

## What to do • first

- Read [how to compare](compare.md), which takes a sentence so long that no terminal of eighty columns shows it whole.

```sh
bnlab compare runs/demo   # γ ± 1
```

> A quote.

| strategy | statistics |
| --- | --- |
| ghost | of a part |
"""


class Screen(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def guides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "guide"
    folder.mkdir()
    monkeypatch.setattr(command, "GUIDES", folder)
    monkeypatch.setenv("COLUMNS", "120")
    (folder / "modes.md").write_text(MODES, encoding="utf-8")
    (folder / "compare.md").write_text("# Compare\n\nOne sentence without an end\n", encoding="utf-8")
    return folder


def bnlab(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["bnlab", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


def shown(text: str, monkeypatch: pytest.MonkeyPatch, columns: int, encoding: str = "utf-8", **env: str) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), **env}.items():
        monkeypatch.setenv(name, value)
    screen = Screen(io.BytesIO(), encoding)
    show_guide(text, Terminal(screen))
    screen.flush()
    return screen.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_without_a_topic_each_has_a_line(
    guides: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bnlab(monkeypatch, "guide") == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "guides",
        "compare One sentence without an end",
        "modes Batch normalization has two kinds of statistics, e.g. those of a batch; see the paper.",
    ]


def test_where_there_is_no_terminal_the_text_is_as_it_is(
    guides: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bnlab(monkeypatch, "guide", "modes") == 0
    assert capsys.readouterr().out == MODES


def test_an_unknown_topic_and_missing_guides(
    guides: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bnlab(monkeypatch, "guide", "compere") == 2
    assert capsys.readouterr().err == "compere: no such guide; did you mean compare?\nthere are: compare, modes\n"
    assert command.complete_topic("co") == ["compare"]
    for path in guides.iterdir():
        path.unlink()
    assert bnlab(monkeypatch, "guide") == 1
    assert capsys.readouterr().err == f"{guides}: the guides are missing\nreinstall bnlab\n"


@pytest.mark.parametrize(("columns", "widest"), [(60, 60), (80, 80), (200, WIDEST)])
def test_a_terminal_gets_it_rendered_within_its_width(
    monkeypatch: pytest.MonkeyPatch, columns: int, widest: int
) -> None:
    coloured = shown(MODES, monkeypatch, columns)
    assert "\x1b[" in coloured
    lines = re.sub(r"\x1b\[[\d;]*m", "", coloured).splitlines()
    assert max(map(len, lines)) == widest
    assert "how to compare (bnlab guide compare)" in " ".join(line.strip() for line in lines)
    assert any(line.startswith("Why a model") for line in lines)
    assert not any(sign in line for line in lines for sign in ("**", "##", "```", "`"))


def test_no_colour_and_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shown(MODES, monkeypatch, 80, NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*3\d", plain)
    ascii_only = shown(MODES, monkeypatch, 80, "ascii", NO_COLOR="1")
    assert re.findall(r"\\\S+", ascii_only) == [to_ascii("γ")]


@pytest.mark.parametrize("path", sorted(command.GUIDES.glob("*.md")), ids=lambda path: path.stem)
def test_every_guide_begins_with_a_title_and_a_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert 20 < len(command.first_sentence(text)) <= 100
    for columns in (80, 120):
        assert shown(text, monkeypatch, columns).strip()
    for topic in re.findall(r"\]\(([\w-]+)\.md\)", text):
        assert (path.parent / f"{topic}.md").is_file()
