"""bnlab in Python: what the functions return and leave as it was, against what the commands write and print."""

from __future__ import annotations

import io
import json
import logging
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from helpers_cli import bnlab, environment
from helpers_probe import picture
from helpers_runs import make_run
from torch import nn

import bnlab as package
from bnlab.errors import BnlabError, ConfigError, IncompatibleError, RecordError
from bnlab.experiment.run import InProcess
from bnlab.record.run_folder import settle
from bnlab.report.probe_report import probe_rows
from bnlab.report.progress import make_progress
from bnlab.training.job import Job, JobResult

TINY = ["data=digits", "model=mlp", "model.widths=[4]", "trainer.steps=2", "eval.probe_samples=32"]
TINY += ["trainer.device=cpu", "trainer.threads=1"]
QUICK = ["eval.probe_samples=64", "trainer.threads=1"]


@pytest.fixture(autouse=True)
def _in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(144, 10)
    )


class _Two(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict.fromkeys("ab", x.flatten(1)[:, :10])


def test_a_run_is_trained_and_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    folder = package.train("norm=batch", *TINY, inline=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert str(folder) in printed.err
    assert json.loads((folder / "summary.json").read_text())["steps"] == 2
    assert not (folder / "sweep.json").exists()
    (run,) = package.runs().to_dict("records")
    assert (run["folder"], run["state"], run["norm.name"]) == (str(folder), "done", "batch")
    assert list(package.tables("latest")["steps"]["step"]) == [1, 2]
    assert package.compare(folder).comparison.sections[0].rows[0].label == "batch"


def test_a_training_leaves_the_logging_of_its_caller_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    package.train("norm=batch", *TINY, inline=True)
    logging.getLogger("bnlab.data").warning("heard by the caller")
    assert "heard by the caller" in caplog.text
    assert logging.getLogger("bnlab").level == logging.NOTSET


def test_several_values_are_a_sweep() -> None:
    folder = package.train("norm=none,batch", "seed=0,1", *TINY, inline=True)
    frame = package.runs(folder)
    assert sorted(zip(frame["norm.name"], frame["seed"], strict=True)) == [
        (norm, seed) for norm in ("batch", "none") for seed in (0, 1)
    ]
    assert len(package.runs([folder / "0", str(folder / "3")])) == 2
    single = package.train("norm=none", *TINY, inline=True, multirun=True)
    assert (single / "sweep.json").exists()
    assert (single / "0/summary.json").exists()


def test_what_fails_is_an_error_that_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, kind in ((["norm=nope"], ConfigError), (["norm=batch", "data.batch_size=1"], IncompatibleError)):
        with pytest.raises(kind):
            package.train(*asked, *TINY, inline=True)
    with pytest.raises(ConfigError, match="nowhere: is not a folder"):
        package.train(*TINY, config_dir="nowhere")
    assert not Path("runs").exists()

    def failing(self: InProcess, job: Job) -> JobResult:
        settle(job.folder, "failed", "the disk\nis full")
        return JobResult("failed", "the disk\nis full")

    monkeypatch.setattr(InProcess, "run", failing)
    with pytest.raises(BnlabError, match=r"^runs/\S+ failed: the disk\nto finish: bnlab resume runs/\S+$"):
        package.train(*TINY, inline=True)
    with pytest.raises(BnlabError, match=r"^2 of 2 jobs failed\nruns/\S+/0 failed: the disk\nto finish"):
        package.train("seed=0,1", *TINY, inline=True)


def test_a_run_that_diverged_is_a_result() -> None:
    folder = package.train("norm=none", "optim.lr=1e30", *TINY, "trainer.steps=20", inline=True)
    assert list(package.runs(folder)["state"]) == ["diverged"]


def test_ctrl_c_in_a_job_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: InProcess, job: Job) -> JobResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(InProcess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        package.train(*TINY, inline=True)


def test_several_processes_of_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        package.train(*TINY)


CELL = """
import bnlab, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    bnlab.train("data=digits", "model=mlp", "trainer.epochs=100000", "trainer.device=cpu", "trainer.threads=1",
                "eval.probe_samples=32")
except KeyboardInterrupt:
    children = open(f"/proc/self/task/{__import__('os').getpid()}/children").read()
    print("interrupted", repr(children), flush=True)
"""


@pytest.mark.slow
def test_an_interrupted_cell_leaves_a_checkpoint_and_no_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CELL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as cell:
        steps, end = "2*/steps.csv", time.monotonic() + 120
        while not any(path.stat().st_size > 100 for path in tmp_path.glob(f"runs/{steps}")):
            assert time.monotonic() < end
            assert cell.poll() is None, cell.communicate()
            time.sleep(0.2)
        cell.send_signal(signal.SIGINT)
        out, err = cell.communicate(timeout=60)
    assert out == "interrupted ''\n", err
    (folder,) = tmp_path.glob("runs/2*")
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert list(folder.glob("checkpoint*"))
    assert cell.returncode == 0


# ---------------------------------------------------------------- probe


def test_a_module_is_probed_as_the_command_does_it_and_left_as_it_was(tmp_path: Path) -> None:
    model = net()
    model[1].register_forward_hook(lambda *_: None)
    model.train()
    model[3].eval()
    before, drawn, threads = picture(model), torch.get_rng_state(), torch.get_num_threads()
    found = package.probe(model, *QUICK, data="digits", samples=128)
    assert picture(model) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.get_num_threads() == threads

    layers = (
        "nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1).eval(), nn.Flatten(), nn.Linear(144, 10)"
    )
    (tmp_path / "nets.py").write_text(f"from torch import nn\ndef make():\n    return nn.Sequential({layers})\n")
    torch.save(model.state_dict(), "weights.pt")
    done = bnlab(
        *["probe", "--module", "nets:make", "--checkpoint", "weights.pt", "--data", "digits", "--samples", "128"],
        *["--format", "json", *QUICK],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    rows = json.loads(json.dumps(probe_rows(found)).replace("NaN", "null"))
    assert rows == answer["rows"]
    assert found.verdict.split(" Recalibrating")[0] == answer["verdict"].split(" Recalibrating")[0]
    assert answer["about"] == ", ".join(found.about)


def test_what_a_probe_returns_is_read_in_a_notebook() -> None:
    folder = package.train("norm=batch", *TINY, "data.batch_size=16", inline=True)
    found = package.probe(folder, "eval.probe_samples=64", samples=64)
    frame = found.frame()
    gap = frame[(frame["table"] == "gap") & (frame["split"] == "test") & (frame["metric"] == "loss_gap")]
    assert list(gap["value"]) == [found.probing.gaps[-1].loss_gap.value]
    assert repr(found).splitlines()[0].startswith(str(folder))
    assert " ".join(found.verdict.split()) in " ".join(repr(found).split())
    page = found._repr_html_()
    root = ElementTree.fromstring(f"<div>{page}</div>")
    assert "\n".join(each.text or "" for each in root.findall("p/strong")) == found.verdict
    titles = [cell.text or "" for cell in root.findall("table")[0].iter("th")]
    assert titles == ["", "train", "test"]


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        (lambda: package.probe(net()), ConfigError, "Sequential: needs data"),
        (lambda: package.probe(net(), data="nope"), ConfigError, "data=nope"),
        (lambda: package.probe(nn.Linear(3, 3), data="digits"), ConfigError, "Linear: on images of shape"),
        (lambda: package.probe(3), ConfigError, "int: is neither"),  # type: ignore[arg-type]
        (lambda: package.probe("nowhere"), RecordError, "nowhere"),
        (lambda: package.probe(net(), data="digits", samples=1), ConfigError, "samples=1"),
        (lambda: package.tables("nowhere"), RecordError, "nowhere"),
        (lambda: package.shift("nowhere"), ConfigError, "nowhere"),
        (lambda: package.shift(net(), data="digits", shifts=["nose"]), ConfigError, "did you mean noise"),
        (lambda: package.shift(net(), data="digits", batch_size=0), ConfigError, "batch_size=0"),
        (lambda: package.recalibrate("nowhere"), ConfigError, "nowhere"),
        (lambda: package.recalibrate("nowhere", stats="mean"), ConfigError, "stats mean: no such choice"),
        (lambda: package.recalibrate("nowhere", samples=1), ConfigError, "samples=1"),
        (lambda: package.probe(net().to("meta"), data="digits"), ConfigError, "meta device"),
        (lambda: package.probe(net(), ["a=1"], data="digits"), ConfigError, "is no override"),  # type: ignore[arg-type]
        (lambda: package.probe(net(), data=[net()]), ConfigError, 'must be the name of a data set, such as "digits"'),  # type: ignore[arg-type]
        (lambda: package.probe(net, data="digits"), ConfigError, r"call it: bnlab.probe\(net\(\), "),  # type: ignore[arg-type]
        (lambda: package.probe(nn.ReLU, data="digits"), ConfigError, r"call it: bnlab.probe\(ReLU\(\), "),  # type: ignore[arg-type]
        (lambda: package.probe(_Two(), data="digits"), ConfigError, 'name one of them: output="a"'),
        (lambda: package.probe(_Two(), data="digits", output="c"), ConfigError, 'output="c": in evaluation mode'),
        (lambda: package.shift(nn.ReLU, data="digits"), ConfigError, r"call it: bnlab.shift\(ReLU\(\), "),  # type: ignore[arg-type]
        (lambda: package.probe(net(), "eval.stats=batch", data="digits"), ConfigError, "has all of them"),
        (lambda: package.recalibrate(net(), data="digits"), ConfigError, "--checkpoint weights.pt --data digits"),  # type: ignore[arg-type]
        (lambda: package.tables(net()), ConfigError, "Sequential: is no folder or name of a run"),  # type: ignore[arg-type]
        (lambda: package.runs(3), ConfigError, "int: is no folder"),  # type: ignore[arg-type]
        (lambda: package.compare(3), ConfigError, "int: is no folder"),  # type: ignore[arg-type]
        (lambda: package.plot.gap(net()), ConfigError, "Sequential: cannot be drawn by bnlab.plot"),
        (lambda: package.probe("net.pt", data=None), ConfigError, "--checkpoint net.pt"),
        (lambda: package.train(["norm=batch"]), ConfigError, "is no override"),  # type: ignore[arg-type]
        (lambda: package.train(3), ConfigError, "3: is no override"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_probed_is_said(asked: Callable[[], Any], kind: type[BnlabError], said: str) -> None:
    Path("net.pt").write_text("weights")
    with pytest.raises((kind, ConfigError), match=said):
        asked()


def test_in_a_notebook_nothing_moves_a_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    class OutStream(io.StringIO):  # as that of ipykernel, which calls itself a terminal and is none
        __module__ = "ipykernel.iostream"

        def isatty(self) -> bool:
            return True

    cell = OutStream()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", cell)
    package.train("seed=0,1", *TINY, inline=True)
    make_progress(cell).job_started(0, "norm=none", 10)
    assert "2 of 2 jobs done" in cell.getvalue()
    assert "norm=none: 10 steps" in cell.getvalue()
    assert "\x1b" not in cell.getvalue()


def test_the_face_is_complete_and_typed(tmp_path: Path) -> None:
    assert all(callable(getattr(package, name)) or name == "plot" for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError):
        _ = package.nothing


@pytest.mark.parametrize("wrong", [{"timeout": -1}, {"timeout": "5"}, {"timeout": float("nan")}, {"retries": -3}])
def test_options_of_a_training_are_checked_before_a_folder_is_made(
    wrong: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"^{name}=.*: must be a"):
        package.train("data=digits", **wrong)
    assert not list(tmp_path.iterdir())


def test_one_word_stands_for_a_list_of_it(tmp_path: Path) -> None:
    for norm in ("none", "batch"):
        make_run(tmp_path / norm, norm=norm)
    one = package.compare(tmp_path, metrics="acc_gap", where="norm=none", by="norm")
    several = package.compare(tmp_path, metrics=["acc_gap"], where=["norm=none"], by=["norm"])
    assert repr(one) == repr(several)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"margin": margin} for margin in (math.nan, -1, math.inf, "0.2", True)),
        *({option: 3} for option in ("by", "where", "metrics", "best_of", "baseline", "sort", "test")),
        {"target": "0.9"},
        {"by": [3]},
        {"sort": ["test_accuracy"]},
        {"test": "x"},
    ],
)
def test_options_of_a_comparison_are_checked(wrong: dict[str, Any], tmp_path: Path) -> None:
    """A margin that is no number gave verdicts."""
    for norm in ("none", "batch"):
        make_run(tmp_path / norm, norm=norm)
    (option,) = wrong
    with pytest.raises(ConfigError, match=f"^{option}=.*: must be "):
        package.compare(tmp_path, **wrong)
    with pytest.raises(ConfigError, match="names no run"):
        package.compare([])


@pytest.mark.parametrize("wrong", [{"shifts": 3}, {"stats": [3]}, {"batch_size": True}, {"batch_size": 1.5}])
def test_options_of_a_shift_are_checked(wrong: dict[str, Any]) -> None:
    (option,) = wrong
    with pytest.raises(ConfigError, match=f"^{option}=.*: must be a "):
        package.shift("latest", **wrong)
    for wrongly in ({"stats": None}, {"stats": ["precise"]}, {"samples": "64"}, {"samples": 2.5}):
        with pytest.raises(ConfigError, match=f"^{next(iter(wrongly))}=.*: must be "):
            package.recalibrate("latest", **wrongly)  # type: ignore[arg-type]


def test_shifting_and_recalibrating_come_to_the_figures_of_the_commands(tmp_path: Path) -> None:
    folder = package.train("norm=batch", *TINY, "data.batch_size=16", inline=True)
    where = [str(folder), "eval.probe_samples=64"]
    frame = package.shift(*where, shifts="noise", severities=2, stats=["running", "test"])
    asked = ["--shift", "noise", "--severity", "2", "--stats", "running,test", "--format", "json"]
    done = bnlab("shift", *where, *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert frame.astype(object).where(frame.notna(), None).to_dict("records") == answer["rows"]
    assert frame.attrs.items() <= answer.items()

    changed = package.recalibrate(*where, samples=64)
    written = Path(changed.attrs["file"])
    assert written.exists()
    done = bnlab("recalibrate", *where, "--samples", "64", "--out", "again.pt", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert changed.attrs | {"file": "again.pt"} == {name: answer[name] for name in changed.attrs}
    assert list(changed["value"].astype(float)) == [row["value"] for row in answer["rows"]]
    assert Path("again.pt").read_bytes() == written.read_bytes()
