"""Completion as bash, zsh and fish do it: installed by the user's command line, used by the next shell."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from helpers_cli import ROOT
from helpers_terminal import Terminal

# what is typed before TAB, and its last word afterwards; a key has no space behind it
LINES = {
    "bnlab train trainer.ep": "trainer.epochs=",
    "bnlab train model.wid": "model.widths=",
    "bnlab train -m norm=batch,gh": "norm=batch,ghost ",
    "bnlab train norm=ghost norm.s": "norm.size=",
    "bnlab compare --metric test_accuracy,test_l": "test_accuracy,test_loss ",
    "bnlab claim run batch-of": "batch-of-one ",
    "bnlab show run-": "run-abc123 ",
}
READY = "echo re''ady\r"


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_what_is_typed(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "bin/bnlab"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m bnlab "$@"\n')
    program.chmod(0o755)
    (tmp_path / "runs/20260101-000000-run-abc123").mkdir(parents=True)
    (tmp_path / "runs/20260101-000000-run-abc123/config.yaml").touch()
    (tmp_path / ".zshrc").touch()
    (tmp_path / ".local/share/fish/generated_completions").mkdir(parents=True)  # or fish makes them of all manuals
    path = f"{program.parent}:{os.environ['PATH']}"
    env = {"HOME": str(tmp_path), "PATH": path, "LC_ALL": "C.UTF-8", "TERM": "xterm"}
    with Terminal([shell, "-i"], tmp_path, env) as first:
        first.type("bnlab --install-completion\r")
        assert first.wait_for("will take effect")
    with Terminal([shell, "-i"], tmp_path, env) as terminal:
        terminal.type(READY)
        assert terminal.wait_for("ready")
        if shell == "zsh":  # where the first TAB only loads the completion
            terminal.type("bnlab train norm=gh\t")
            terminal.wait_for("ost", 10)  # what is typed meanwhile would end it
            terminal.type(f"\x15{READY}")
            assert terminal.wait_for("ready")
        for typed, completed in LINES.items():
            terminal.type(typed)
            end = typed.split()[-1]
            assert terminal.wait_for(end)
            terminal.type("\t")
            rest = completed if shell == "fish" else completed.removeprefix(end)  # fish writes the line anew
            assert terminal.wait_for(rest), (typed, terminal.sent)
            assert completed.endswith(" ") or not terminal.wait_for(f"{rest} ", 1)
            terminal.type(f"\x15{READY}")  # Ctrl-U: the line is empty again
            assert terminal.wait_for("ready")
        terminal.type("bnlab train norm=\t\t")
        assert terminal.wait_for("weight_std")
