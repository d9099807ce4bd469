"""`bnlab probe`: its tables at every width, its rows, real runs and a torchvision model of one's own."""

from __future__ import annotations

import csv
import doctest
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_cli import SHORT, bnlab, start
from PIL import Image
from rich.cells import cell_len

from bnlab.cli import main
from bnlab.cli.probe import probe
from bnlab.errors import ConfigError
from bnlab.interval import Interval
from bnlab.measure.by_layer import LayerGap
from bnlab.measure.decomposition import NAMES, Decomposition, Term
from bnlab.measure.probe_model import Agreement, Evaluation, ProbeResult, SplitGap
from bnlab.report.bars import bars, signed_bars
from bnlab.report.console import Terminal
from bnlab.report.figures import interval_cells, interval_text, percent, small, with_sum
from bnlab.report.probe_report import Probed, probe_head, probe_rows, probe_tables
from bnlab.report.rows import TIDY_FORMATS
from bnlab.report.table import shortened

ZERO = Interval(0.0, 0.0, 0.0, 100)
PROBE = ["eval.probe_samples=64", "--samples", "128"]


def around(value: float, half: float = 0.01) -> Interval:
    return Interval(value, value - half, value + half, 100)


def made_up() -> Probed:
    """Return a probing with hand-made figures: two terms that cannot occur, an exact 0, and long names."""
    terms = (
        Term("batch noise", around(-0.02), around(0.25), 0.125, 0.1),
        Term("biased variance", ZERO, around(2e-6, 1e-6), 3e-9, 0.0),
        Term("dropout in statistics", ZERO, ZERO, 0.0, 0.0, "nothing but normalization depends on the mode"),
        Term("augmentation in statistics", ZERO, ZERO, 0.0, 0.0, "training does not augment"),
        Term("initial statistics", around(0.005), around(-0.05), 0.02, 0.03),
        Term("moving average", ZERO, ZERO, 0.0, 0.0),
        Term("dropout", ZERO, ZERO, 0.0, 0.0, "nothing but normalization depends on the mode"),
        Term("other", ZERO, ZERO, 0.0, 0.0, "nothing but normalization depends on the mode"),
        Term("augmentation", ZERO, ZERO, 0.0, 0.0, "training does not augment"),
    )
    total = Term("total", around(-0.015), around(0.200002), 0.2, 0.12)
    gap = SplitGap(
        "train", 100, around(0.9), around(0.915), around(-0.015), around(0.2), around(0.12), around(0.2), 0.3, 0.04
    )
    layers = (
        LayerGap(1, "stem.bn", "BatchNorm2d", 64, 0.1, 0.4, -0.2, -0.5, 0.42),
        LayerGap(2, "stage4.block23.downsample.normalization", "InstanceNorm2d", 2048, 0.0, 0.0, 0.0, 0.0, None),
    )
    curve = (
        Evaluation("running", None, 100, around(0.915), around(0.3)),
        Evaluation("batch of 1", 1, 100, around(0.1), around(2.3)),
    )
    agreement = (Agreement(1, 2e-7, 0.0), Agreement(7, 0.0, 0.0))
    decomposition = Decomposition("train", terms, total, 8, 0.42, 860, 0.001)
    probing = ProbeResult(
        (gap, replace(gap, split="test", mate_noise=None)),
        (decomposition, replace(decomposition, split="test")),
        layers,
        curve,
        agreement,
        5000,
    )
    return Probed(
        "runs/x/0", ("data=mnist", "norm=batch"), 860, 8, probing, "Do this.", ("It is noise.", "It is noise, too.")
    )


def shown(found: Probed, width: int, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    out = Terminal(stream)
    out.print(probe_tables(found, out))
    stream.seek(0)
    return stream.read().splitlines()


# ---------------------------------------------------------------- figures


def test_an_exact_zero_is_told_from_a_small_figure() -> None:
    assert [small(v) for v in (0.0, 3e-9, 0.00123, 0.25, 12.345, 4321.0, float("inf"))] == [
        "0", "3.0e-9", "0.00123", "0.250", "12.3", "4,321", "–",
    ]  # fmt: skip
    assert [small(v, signed=True) for v in (0.5, -2e-5)] == ["+0.500", "-2.0e-5"]
    assert [percent(v) for v in (0.0, 1e-6, 0.001, 0.5)] == ["0", "1.0e-4", "0.10", "50.00"]
    found = [ZERO, around(0.0, 0.02), around(0.5, 0.02), around(1e-6, 2e-6), around(0.25, 0.0)]
    cells = interval_cells(found, signed=True)
    assert list(map(str, cells)) == [
        "0", "+0.000 ± 0.020", "+0.500 ± 0.020", "+1.0e-6 ± 2.0e-6", "+0.250 ± 0",
    ]  # fmt: skip
    assert interval_text(Interval(0.123456, None, None, 1)) == "0.123"


def test_the_sum_has_the_digits_and_the_place_of_the_total() -> None:
    cells = with_sum([around(0.011, 0.002), around(-0.0304, 0.002)], around(-0.0194, 0.002), 100)
    assert list(map(str, cells)) == ["+1.10 ± 0.20", "-3.04 ± 0.20", "-1.94", "-1.94 ± 0.20"]
    assert list(map(str, with_sum([ZERO, ZERO], ZERO))) == ["0", "0", "0", "0"]
    tiny = with_sum([around(1e-6, 1e-6), around(2e-6, 1e-6)], around(3e-6, 1e-6))
    assert [cell.head for cell in tiny] == ["+1.0e-6", "+2.0e-6", "+3.0e-6", "+3.0e-6"]


def test_bars_are_as_long_as_their_figures_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert signed_bars([2.0, -1.0, 0.0, float("nan")], 9, out) == ["    │████", "  ██│    ", "    │    ", "    │    "]
    assert bars([0.0, 1.0, 4.0, 1e-9], 8, out) == ["", "██", "████████", "█"]
    ascii_only = Terminal(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert signed_bars([1.0, -1.0], 5, ascii_only) == ["  |##", "##|  "]


def test_a_long_name_keeps_both_ends() -> None:
    assert shortened("layer2.0.downsample.1", 13) == "layer2…mple.1"
    assert shortened("layer1.0.bn1", 12) == "layer1.0.bn1"


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int, encoding: str) -> None:
    lines = shown(made_up(), width, monkeypatch, encoding)
    assert max(map(cell_len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for title in ("The gap", "Where it comes from: train", "Layers by depth", "Evaluation in other batches"):
        assert title in text
    if encoding == "ascii":
        assert text.isascii()
        assert "\\u" not in text


def test_at_80_columns_the_report_reads_from_the_gap_to_its_causes(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(made_up(), 80, monkeypatch)
    text = "\n".join(lines)
    assert lines[0] == "runs/x/0 · data=mnist · norm=batch · checkpoint at step 860"
    assert "batches of 8 in training · probe samples: 100 train, 100 test" in text
    titles = [
        "Do this.",
        "The gap",
        "Where it comes from: train",
        "It is noise.",
        "Where it comes from: test",
        "It is noise, too.",
    ]
    titles += ["Layers by depth", "Statistics to evaluate with", "Evaluation in other batches"]
    places = [lines.index(title) for title in titles]
    assert places == sorted(places)

    def row(name: str) -> list[str]:
        return next(line for line in lines if line.startswith(name))[len(name) :].split("  ")

    def figures(name: str) -> list[str]:
        return [" ".join(part.split()) for part in row(name) if part.strip()]

    assert figures("accuracy gap, points") == ["-1.50 ± 1.00", "-1.50 ± 1.00"]
    assert figures("mate noise, over RMS of the logits") == ["0.0400", "one batch only"]
    assert figures("dropout  ") == ["0: nothing but normalization depends on the mode"]
    assert figures("batch noise") == ["-2.00 ± 1.00", "+0.250 ± 0.010", "0.125", "10.00"]
    assert figures("biased variance") == ["0", "+2.0e-6 ± 1.0e-6", "3.0e-9", "0"]
    assert figures("moving average") == ["0", "0", "0", "0"]
    assert figures("sum of the terms") == ["-1.50", "+0.200"]
    assert figures("total") == ["-1.50 ± 1.00", "+0.200 ± 0.010", "0.200", "12.00"]
    assert figures("1  stem.bn")[-4:] == ["0.400", "-0.200", "-0.500", "42.0"]
    assert "stage4.block…ormalization" in text
    assert figures("batch of 7") == ["0", "0"]


def test_colour_is_left_out_on_request_and_text_from_outside_is_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made_up()
    layer = replace(found.probing.layers[0], name="\x1b[2J[red]bn", kind="\u202eNorm")
    hostile = replace(found, label="\x1b[31mrun", probing=replace(found.probing, layers=(layer,)))
    monkeypatch.setenv("NO_COLOR", "1")
    text = "\n".join(shown(hostile, 100, monkeypatch))
    assert "\x1b" not in text
    assert "\\x1b[31mrun" in text
    assert "\\x1b[2J[red]bn" in text
    assert "all \\u202eNorm" in text
    for form in TIDY_FORMATS.values():
        assert "\x1b" not in form(probe_head(hostile), probe_rows(hostile))


def test_a_model_without_statistics_has_no_layers_to_show(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made_up()
    bare = replace(found, step=None, probing=replace(found.probing, layers=(), curve=(), agreement=()))
    lines = shown(bare, 80, monkeypatch)
    assert lines[-2:] == ["Layers by depth", "no layer keeps statistics of its batches for evaluation"]
    assert "checkpoint" not in lines[0]


# ---------------------------------------------------------------- rows


def test_every_figure_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made_up()
    rows = probe_rows(found)
    assert {tuple(row) for row in rows} == {("table", "split", "name", "metric", "value", "low", "high", "n")}
    counts = {table: sum(row["table"] == table for row in rows) for table in ("gap", "term", "layer", "curve")}
    assert counts == {"gap": 16, "term": 2 * (len(NAMES) + 1) * 4, "layer": 14, "curve": 4}
    assert len(rows) == sum(counts.values()) + 4
    by_key = {(row["table"], row["split"], row["name"], row["metric"]): row for row in rows}
    noise = by_key["term", "test", "batch noise", "loss"]
    assert [noise[key] for key in ("value", "low", "high", "n")] == [0.25, 0.24, 0.26, 100]
    for metric in ("accuracy", "loss"):
        parts = sum(by_key["term", "train", name, metric]["value"] for name in NAMES)
        assert parts == pytest.approx(by_key["term", "train", "total", metric]["value"])
    assert by_key["gap", "test", "", "mate_noise"]["value"] is None
    assert by_key["layer", "train", "stem.bn", "initial_left"]["value"] == 0.42
    head = probe_head(found)
    assert (head["train_samples"], head["statistics_samples"], head["momentum"]) == (100, 5000, 0.001)
    assert (head["verdict"], head["test_verdict"]) == ("Do this.", "It is noise, too.")
    assert head["train_absent"].endswith("augmentation: training does not augment")
    document = json.loads(TIDY_FORMATS["json"](head, rows))
    assert (document["schema"], len(document["rows"])) == (1, len(rows))
    assert len(list(csv.DictReader(io.StringIO(TIDY_FORMATS["csv"](head, rows))))) == len(rows)


# ---------------------------------------------------------------- real models


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    place = tmp_path_factory.mktemp("runs")
    done = bnlab("train", "-m", "norm=batch,layer", "data.batch_size=16", *SHORT, cwd=place)
    assert done.returncode == 0, done.stderr
    return place, [line.split()[0] for line in done.stdout.splitlines()]


def test_a_page_names_the_run_and_not_the_latest(runs: tuple[Path, list[str]]) -> None:
    """What is the latest when a page is made is not when somebody reads it."""
    place, (first, _) = runs
    done = bnlab("probe", "latest/0", "--quick", "--out", "page.html", "trainer.device=cpu", cwd=place)
    assert done.returncode == 0, done.stderr
    assert f"bnlab probe {first} --quick" in (place / "page.html").read_text()


def test_a_run_of_batch_norm_is_taken_apart(runs: tuple[Path, list[str]]) -> None:
    place, (batch, _) = runs
    done = bnlab("probe", batch, *PROBE, "--format", "json", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    assert (document["label"], document["step"], document["batch_size"]) == (batch, 20, 16)
    assert (document["train_samples"], document["statistics_samples"]) == (64, 128)
    assert document["initial_left"] == pytest.approx(0.9**20)
    values = {(r["table"], r["split"], r["name"], r["metric"]): r["value"] for r in document["rows"]}
    for split in ("train", "test"):
        for metric in ("accuracy", "loss"):
            parts = sum(values["term", split, name, metric] for name in NAMES)
            assert parts == pytest.approx(values["term", split, "total", metric], abs=1e-12)
        assert values["gap", split, "", "kl"] > 0
    assert values["layer", "train", "1", "channels"] == 8
    assert values["curve", "test", "running", "accuracy"] == values["gap", "test", "", "eval_accuracy"]


def test_layer_norm_is_exactly_the_same_in_both_modes(runs: tuple[Path, list[str]]) -> None:
    place, (_, layer) = runs
    done = bnlab("probe", layer, *PROBE, cwd=place, COLUMNS="80", NO_COLOR="1", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 80
    zeros = [line.split()[-2:] for line in done.stdout.splitlines() if line.startswith(("accuracy gap", "KL("))]
    assert zeros == [["0", "0"], ["0", "0"]]
    assert done.stdout.count("Training and evaluation mode agree exactly") == 2  # of test above, of train in its part


def test_a_closed_pipe_and_a_usage_error_end_quietly(runs: tuple[Path, list[str]]) -> None:
    place, (batch, _) = runs
    ours, theirs = os.pipe()
    with os.fdopen(ours) as reader:
        with os.fdopen(theirs, "w") as writer:
            command = start("probe", batch, *PROBE, "-f", "csv", cwd=place, stdout=writer)
        assert reader.readline() == "table,split,name,metric,value,low,high,n\n"
    with command:
        assert command.communicate() == ("", "")
    wrong = bnlab("probe", "--data", "digits", cwd=place)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("--data digits: only with --module")


OWN = '''
from torch import nn
from torchvision.models import resnet18


def make():
    return resnet18(num_classes=3)


class Twice(nn.Module):
    """One layer at two places."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(self.bn(self.conv(self.bn(self.conv(x)))).mean((2, 3)))


class NeedsTargets(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        if self.training:
            raise ValueError("targets are missing")
        return self.fc(x.mean((2, 3)))


def without_statistics():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4),
        nn.Linear(4, 3),
    )


def instance_with_statistics():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )
'''


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 3 classes of 12 training and 6 test images each, and a module of models."""
    place = tmp_path_factory.mktemp("pictures")
    (place / "ownmodels.py").write_text(OWN)
    draw = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("red", "green", "blue")):
            folder = place / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 120, (32, 32, 3))
                pixels[..., label] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return place


OWN_DATA = ["data.path=images", "data.valid_size=0", "data.batch_size=8", "trainer.device=cpu", "eval.probe_samples=16"]


def test_a_torchvision_resnet_is_probed_by_its_own_layer_names(pictures: Path) -> None:
    import torch
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=3).train()
    for _ in range(3):  # three steps of statistics: 0.9^3 of the initial ones are left
        model(torch.randn(8, 3, 32, 32))
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": weights}, pictures / "weights.pt")
    own = ["--module", "ownmodels:make", "--checkpoint", "weights.pt", "--data", "folder", "--samples", "24"]
    done = bnlab("probe", *own, *OWN_DATA, cwd=pictures, COLUMNS="80", OMP_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert " ".join(lines[:2]) == (
        "ownmodels:make with weights.pt · data=folder · ResNet 36 training, 0 validation and 18 test images of 3 "
        "classes · images standardized"
    )
    start = next(number for number, line in enumerate(lines) if line.startswith(" 1  bn1 "))
    names = [line.split()[1] for line in lines[start : start + 20]]
    batch_norms = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert sorted(names) == sorted(batch_norms)
    assert names[1:3] == ["layer1.0.bn1", "layer1.0.bn2"]
    assert "all BatchNorm2d" in done.stdout
    assert "initial statistics left: 72.9 %" in " ".join(done.stdout.split())
    assert max(map(cell_len, lines)) <= 80


@pytest.fixture
def probed(pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return the command on one of the module's models, in this process."""
    monkeypatch.chdir(pictures)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def printed(factory: str, form: str = "table") -> str:
        probe(OWN_DATA, f"ownmodels:{factory}", data="folder", samples=24, format=form)
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return printed


def test_layers_without_running_statistics_make_no_difference(probed: Callable[..., str]) -> None:
    text = probed("without_statistics")
    assert "agree exactly on train: 0 points, 0 nats" in text
    assert "no layer keeps statistics of its batches for evaluation" in text


def test_instance_norm_with_statistics_has_a_gap_without_mates(probed: Callable[..., str]) -> None:
    document = json.loads(probed("instance_with_statistics", "json"))
    values = {(r["table"], r["split"], r["name"], r["metric"]): r["value"] for r in document["rows"]}
    assert document["step"] is None
    assert values["gap", "test", "", "mate_noise"] == 0
    assert values["gap", "test", "", "kl"] > 0
    assert values["layer", "train", "1", "initial_left"] == 1


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("NeedsTargets", "--module ownmodels:NeedsTargets: in training mode on a batch of 8 it fails: "),
    ],
)
def test_a_model_that_cannot_be_probed_is_refused(probed: Callable[..., str], factory: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        probed(factory)
    why, way_out = str(caught.value).splitlines()
    assert why.startswith(said)
    assert way_out.endswith("take larger batches, or wrap it in a module that can")


# ---------------------------------------------------------------- the Python API


def test_the_example_of_the_python_api_runs_as_it_stands() -> None:
    import bnlab.measure

    outcome = doctest.testmod(bnlab.measure)
    assert (outcome.failed, outcome.attempted > 10) == (0, True)


@pytest.mark.parametrize("command", ["probe", "recalibrate", "shift"])
@pytest.mark.parametrize("place", [".", "/", "..", "here"])
def test_a_folder_in_place_of_weights_is_named(
    command: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bnlab", command, "--module", "m:f", "--checkpoint", place, "--data", "digits"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = f"--checkpoint {place}: is a folder, not a file\n"
    assert (ended.value.code, capsys.readouterr().err) == (2, said)
