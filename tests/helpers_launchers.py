"""Command lines under launchers, with a cluster of this machine."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from helpers_cli import ROOT, Done, bnlab, environment

QUICK = ["model=mlp", "model.widths=[16]", "data.batch_size=32", "eval.every=0.25", "eval.probe_samples=256",
         "trainer.device=cpu", "trainer.threads=1", "trainer.steps=30"]  # fmt: skip


def settings(place: Path, **more: str) -> dict[str, str]:
    """Return an environment with a cluster of this machine, a home, and a word to find its processes by."""
    (place / "slurm").mkdir(exist_ok=True)
    (place / "home").mkdir(exist_ok=True)
    path = f"{ROOT / 'tests/fake_slurm'}:{os.environ['PATH']}"
    home, slurm = str(place / "home"), str(place / "slurm")
    return environment(PATH=path, FAKE_SLURM=slurm, HOME=home, BNLAB_TEST_TAG=secrets.token_hex(8), **more)


def run(place: Path, known: dict[str, str], *words: str) -> Done:
    """Run a command line; what its launcher starts begins as a shell has it."""
    return bnlab(*words, cwd=place, supervised=True, **known)
