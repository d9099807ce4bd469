"""README and guides: every command in them runs, in small, and prints what they show."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bnlab.cli import main
from bnlab.experiment.run import InProcess
from bnlab.runner import sweep

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "bnlab" / "guide").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *GUIDES]
TRAINED = ["trainer.steps=40", "trainer.threads=1", "eval.every=100", "eval.probe_samples=200", "model.widths=[8,16]"]
BENCHED = ["bench.seconds=0.2", "bench.rounds=2", "model.widths=[8,16]"]
SMALL = {  # what is added to a command so that it takes a moment
    "train": TRAINED,
    "bench": BENCHED,
    "check --": [],
    "check": ["norm=none,batch"],  # all of them in `test_check.py`
    "claim run step-time-3-to-5": BENCHED,
    "claim run instance-is-consistent": ["trainer.epochs=1", "model.widths=[4,8]"],
    "probe": ["--samples=64"],
    "search": [*TRAINED, "seed=0,1", "--from=0.1"],
}
MODULE = """
from torch import nn
def make_net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
make_norm = nn.BatchNorm2d
"""
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@dataclass(frozen=True)
class Example:
    """The commands of one block, and what the page says that they print."""

    commands: list[list[str]]
    output: list[str]


def blocks(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Return the kind and the lines of each fenced block."""
    for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        yield kind, text.splitlines()


def examples(page: Path) -> list[Example]:
    found: list[Example] = []
    for kind, lines in blocks(page):
        assert kind in ("sh", "text", "python"), f"{page.name}: a block of kind {kind!r}"
        if kind == "sh":
            found.append(
                Example([shlex.split(line) for line in "\n".join(lines).replace("\\\n", " ").splitlines()], [])
            )
        elif kind == "python":
            found.append(Example([["python", "\n".join(lines)]], []))
        else:
            found[-1].output.extend(lines)
    return found


def words(line: str) -> list[str]:
    return [word.rstrip("s") for word in re.findall(r"(?<!\d)[A-Za-z][\w-]*", line)]  # 1 thread, 2 threads


def shows(output: str, line: str) -> bool:
    """Return whether the words of `line` stand in one line of `output`, or in two where other figures wrap them."""
    wanted, lines = set(words(line)), [set(words(candidate)) for candidate in output.splitlines()]
    return any(wanted <= first | second for first, second in zip(lines, [*lines[1:], set()], strict=True))


class Terminal:
    """Runs command lines in this process, in small, in a folder of their own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self._names: dict[str, Any] = {}  # of a page's Python

    def run(self, command: list[str]) -> str:
        """Run one command line; return what it prints. Those of other programs are held against the project's files."""
        program, *arguments = command
        if program == "python":
            self._capsys.readouterr()
            exec(compile(arguments[0], "page", "exec"), self._names)
            return self._capsys.readouterr().out
        if program in OTHER_PROGRAMS:
            OTHER_PROGRAMS[program](arguments)
            if program != "torchrun":
                return ""
            arguments = arguments[arguments.index("bnlab") + 1 :]
        else:
            assert program == "bnlab", command
        if arguments[:2] == ["data", "fetch"]:  # there is no network
            assert arguments[2] in self._printed(["data", "list"])
            return ""
        return self._printed(self._small(arguments))

    def _small(self, arguments: list[str]) -> list[str]:
        arguments = [a for a in arguments if not a.startswith(("hydra/launcher=", "hydra.launcher."))]
        arguments = [
            {"data=mnist": "data=digits", "RUN": _latest_run(), "SWEEP": _latest_sweep()}.get(a, a) for a in arguments
        ]
        line = " ".join(arguments)
        small = [] if "--cfg" in arguments else next((SMALL[words] for words in SMALL if line.startswith(words)), [])
        given = {argument.partition("=")[0] for argument in arguments}
        given |= {"trainer.steps"} if "trainer.epochs" in given else set()
        given |= {"model.widths"} if "model=resnet" in arguments else set()
        return arguments + [key for key in small if key.partition("=")[0] not in given]

    def _printed(self, arguments: list[str]) -> str:
        self._monkeypatch.setattr(sys, "argv", ["bnlab", *arguments])
        self._capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = self._capsys.readouterr()
        assert code == 0, f"bnlab {shlex.join(arguments)} ended with {code}:\n{out}{err}"
        return out


def _latest_run() -> str:
    found = sorted(path.parent for path in Path("runs").glob("2*/**/summary.json"))
    return str(found[-1]) if found else "RUN"


def _latest_sweep() -> str:
    found = sorted(path.parent for path in Path("runs").glob("*/sweep.json"))
    return str(found[-1]) if found else "SWEEP"


def _pip(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.fullmatch(r"install (?:bnlab|\.)(?:\[(\w+)\])?", " ".join(arguments))
    assert named, arguments
    assert named[1] is None or named[1] in extras


def _make(arguments: list[str]) -> None:
    assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), arguments


def _activate(arguments: list[str]) -> None:
    (script,) = arguments
    assert re.search(rf"^VENV +\?= {Path(script).parts[0]}$", (ROOT / "Makefile").read_text(), re.MULTILINE)


OTHER_PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "pip": _pip,
    "make": _make,
    ".": _activate,
    "torchrun": lambda arguments: None,
}


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "nets.py").write_text(MODULE)
    for number in range(200):
        place = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 100).save(place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sweep, "runner_for", lambda _: nullcontext(InProcess()))
    for name, value in {**ALONE, "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    from importlib import import_module, invalidate_caches

    invalidate_caches()
    torch.save(import_module("mypackage.nets").make_net().state_dict(), "weights.pt")
    threads = torch.get_num_threads()
    yield Terminal(capsys, monkeypatch)
    torch.set_num_threads(threads)
    for name in ("mypackage.nets", "mypackage"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_run_and_print_what_it_shows(page: Path, terminal: Terminal) -> None:
    for example in examples(page):
        if any("hydra/sweeper=" in argument for command in example.commands for argument in command):
            continue  # in `test_search.py`
        printed = "\n".join(terminal.run(command) for command in example.commands)
        for line in example.output:
            assert shows(printed, line), f"{page.name} shows\n{line}\nbut bnlab prints\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_easy_to_read_in_a_terminal_and_their_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for line in text.splitlines():
        assert len(line) <= 100, line
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if not target.startswith("https://"):
            assert (page.parent / target).is_file(), target
    for topic in re.findall(r"`bnlab guide ([\w-]+)`", text):
        assert (ROOT / "bnlab" / "guide" / f"{topic}.md").is_file(), topic


def test_the_readme_names_every_guide_and_is_one_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 160
    for guide in GUIDES:
        assert f"](bnlab/guide/{guide.name})" in text, guide.name
