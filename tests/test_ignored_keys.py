"""Keys that a comparison leaves out change no figure, whichever the strategy and the statistics of evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from helpers_resume import TABLES, plain_summary
from helpers_training import train
from PIL import Image

from bnlab.compare.arms import NOT_COMPARED
from bnlab.norms.strategy import strategies
from bnlab.training.evaluation import EvalConfig

STATS = get_args(get_type_hints(EvalConfig)["stats"])
TINY = ["data=folder", "data.size=8", "data.channels=1", "data.valid_size=8", "data.batch_size=8", "trainer.steps=3"]
TINY += ["model.widths=[8,8]", "eval.every=0.5", "eval.probe_samples=16", "trainer.device=cpu", "trainer.threads=1"]
CHANGED = {
    "incompatible": ("stop", "record"),  # key -> two values
    "name": ("one", "other"),
    "data.root": ("first", "second"),
    "data.path": ("here", "there"),
    "trainer.timeout": ("300", "9"),
}


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same pictures in two places."""
    draw = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "here" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 128, (8, 8), dtype=np.uint8) + 100 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_no_effect(place: Path, norm: str, stats: str) -> bool:
    """Train with the one values and with the others, and compare every table; False where nothing can be trained."""
    states = []
    for i in (0, 1):
        keys = [f"{key}={values[i]}" for key, values in CHANGED.items()]
        keys += ["norm.size=4"] if norm == "ghost" else []  # a part of the batch
        states.append(train([*TINY, f"norm={norm}", f"eval.stats={stats}", *keys], place / f"{norm}-{stats}-{i}").state)
    one, other = (place / f"{norm}-{stats}-{i}" for i in (0, 1))
    if states[0] == "failed":  # incompatible=record calls it another name
        assert (stats, states[1]) == ("folded", "refused"), norm
        return False
    assert states[0] == states[1], (norm, stats)
    for table in TABLES:
        assert (one / table).read_bytes() == (other / table).read_bytes(), (norm, stats, table)
    different = {"identity", "config"}
    summaries = [plain_summary(folder) for folder in (one, other)]
    assert {k: v for k, v in summaries[0].items() if k not in different} == {
        k: v for k, v in summaries[1].items() if k not in different
    }
    return True


def test_every_ignored_key_is_changed_here() -> None:
    assert set(CHANGED) == NOT_COMPARED - {"seed"}


@pytest.mark.parametrize(("norm", "stats"), [("batch", "batch"), ("population", "mixed")])
def test_ignored_keys_change_no_figure(pictures: Path, norm: str, stats: str) -> None:
    assert assert_no_effect(pictures, norm, stats)


@pytest.mark.slow
@pytest.mark.parametrize("norm", list(strategies))
def test_ignored_keys_change_no_figure_of_any_strategy(pictures: Path, norm: str) -> None:
    done = [stats for stats in STATS if assert_no_effect(pictures, norm, stats)]
    assert set(STATS) - set(done) <= {"folded"}


def test_batches_of_evaluation_do_change_figures(pictures: Path) -> None:
    for size in (4, 8):
        overrides = [*TINY, "data.path=here", "norm=batch", "eval.stats=batch", f"eval.batch_size={size}"]
        assert train(overrides, pictures / str(size)).state == "done"
    assert (pictures / "4" / "evals.csv").read_bytes() != (pictures / "8" / "evals.csv").read_bytes()
