"""`bnlab export`, read back with the libraries it is made for and compared with the tables of real runs."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers_cli import BNLAB, ROOT, bnlab, environment
from helpers_runs import make_run

from bnlab.cli import app
from bnlab.compare.frames import EXACT
from bnlab.metrics import metrics

TABLES = ("steps", "evals", "layers", "times")


@pytest.fixture(scope="module")
def home(trained_sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four real runs: two strategies, two seeds."""
    return Path(shutil.copytree(trained_sweep, tmp_path_factory.mktemp("home"), dirs_exist_ok=True))


@pytest.fixture(scope="module")
def runs(home: Path) -> list[Path]:
    return sorted(path.parent for path in home.glob("runs/*/*/summary.json"))


def recorded(run: Path, table: str) -> list[dict[str, str]]:
    with open(run / f"{table}.csv", newline="") as file:
        return list(csv.DictReader(file))


def curves_recorded(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of a run as its own tables have them, without pandas: tag -> (step, value)."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in recorded(run, "steps"):
        for figure in ("loss", "lr"):
            found.setdefault(f"step/{figure}", []).append((int(row["step"]), float(row[figure])))
    for row in recorded(run, "evals"):
        found.setdefault(f"{row['split']}/{row['metric']}", []).append((int(row["step"]), float(row["value"])))
    return found


def started(run: Path) -> float:
    order: int = json.loads((run / "status.json").read_text())["order"]
    return order / 1e9


def trained_seconds(run: Path) -> float:
    return sum(float(row["data_ms"]) + float(row["step_ms"]) for row in recorded(run, "times")) / 1e3


# ---------------------------------------------------------------- csv and parquet


@pytest.fixture(scope="module", params=["csv", "parquet"])
def exported(request: pytest.FixtureRequest, home: Path) -> dict[str, pd.DataFrame]:
    form: str = request.param
    done = bnlab("export", form, cwd=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"export/{form}: 4 runs, 120 steps, ")
    assert done.stderr == ""
    assert not list((home / "export").glob(".*"))
    folder = home / "export" / form
    assert {path.name for path in folder.iterdir()} == {f"{name}.{form}" for name in ("runs", *TABLES)}
    read = partial(pd.read_csv, **EXACT) if form == "csv" else pd.read_parquet
    return {name: read(folder / f"{name}.{form}") for name in ("runs", *TABLES)}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_over_all_runs_is_that_of_each(
    exported: dict[str, pd.DataFrame], table: str, home: Path, runs: list[Path]
) -> None:
    whole = exported[table]
    assert [*whole.columns[:3]] == ["folder", "norm.name", "seed"]
    rows = 0
    for run in runs:
        config = json.loads((run / "summary.json").read_text())["config"]
        part = whole[whole["folder"] == str(run.relative_to(home))]
        expected = recorded(run, table)
        assert len(part) == len(expected)
        rows += len(part)
        assert set(part["norm.name"]) <= {config["norm"]["name"]}
        assert set(part["seed"]) <= {config["seed"]}
        for column in recorded(runs[-1], table)[0]:
            for value, text in zip(part[column].tolist(), (row[column] for row in expected), strict=True):
                assert str(value) == text if isinstance(value, str) else value == float(text)
    assert rows == len(whole) > 0


def test_a_row_a_run_with_configuration_and_every_metric(
    exported: dict[str, pd.DataFrame], home: Path, runs: list[Path]
) -> None:
    table = exported["runs"].set_index("folder")
    assert set(metrics) <= set(table.columns)
    assert len(table) == len(runs)
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        row = table.loc[str(run.relative_to(home))]
        assert row["state"] == "done"
        assert row["norm.name"] == summary["config"]["norm"]["name"]
        assert row["optim.lr"] == summary["config"]["optim"]["lr"]
        assert row["model.widths"] == "[8,16]"
        assert row["seed"] == summary["config"]["seed"]
        assert bool(row["norm.affine"]) is True
        assert pd.isna(row["data.train_size"])
        assert row["test_accuracy"] == summary["curve"]["test.accuracy"][-1]
        assert row["step_ms"] == summary["step_ms"]["median"]
        assert pd.isna(row["mate_noise"])


def test_where_keeps_runs(home: Path, tmp_path: Path) -> None:
    done = bnlab("export", "csv", "--where", "norm=batch", "--out", str(tmp_path / "a" / "b"), cwd=home)
    assert done.returncode == 0, done.stderr
    assert set(pd.read_csv(tmp_path / "a" / "b" / "runs.csv")["norm.name"]) == {"batch"}
    wrong = bnlab("export", "csv", "--where", "norm=bach", "--out", str(tmp_path / "c"), cwd=home)
    assert (wrong.returncode, "no run has it" in wrong.stderr, (tmp_path / "c").exists()) == (2, True, False)


def test_a_spreadsheet_runs_nothing_and_a_terminal_neither(tmp_path: Path) -> None:
    labels = ["=cmd()", "+1+cmd()", "-cmd()", "@cmd()", "\t=cmd()", "\r=cmd()", "a,\x1b[31m\n=b", "\udc80"]
    for seed, label in enumerate(labels):
        make_run(tmp_path / "runs" / str(seed), seed=seed, config={"optim.name": label, "optim.lr": -0.5 - seed})
    make_run(tmp_path / "runs" / "-8", seed=8, config={"optim.name": "=x", "optim.lr": -9, "data.batch_size": 10**400})
    done = bnlab("export", "csv", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = (tmp_path / "export" / "csv" / "runs.csv").read_bytes()
    assert not set(content) - {10} - set(range(32, 127)), "printable ASCII and line ends only"
    with open(tmp_path / "export" / "csv" / "runs.csv", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["seed"]))
    shown = [
        "'=cmd()",
        "'+1+cmd()",
        "'-cmd()",
        "'@cmd()",
        "\\t=cmd()",
        "\\r=cmd()",
        "a,\\x1b[31m\\n=b",
        "\\udc80",
        "'=x",
    ]
    assert [row["optim.name"] for row in rows] == shown
    assert [float(row["optim.lr"]) for row in rows] == [-0.5 - seed for seed in range(8)] + [-9], "numbers stay numbers"
    assert bnlab("export", "parquet", "runs", cwd=tmp_path).returncode == 0
    table = pd.read_parquet(tmp_path / "export" / "parquet" / "runs.parquet").sort_values("seed")
    assert table["optim.name"].tolist() == [*labels[:-1], "\\udc80", "=x"]
    assert table["data.batch_size"].tolist() == ["64"] * 8 + [str(10**400)], "a column has one type"


def test_a_torn_end_is_left_out_and_garbage_leaves_the_run_out(tmp_path: Path) -> None:
    header = b"step,epoch,loss,lr,finite\n"
    for seed, rows in enumerate(
        (b"1,0,2.5,0.1,1\n2,0,2.", b"1,0,2.5,0.1,1\n\0\0\0", b"1,0,2.5,0.1,1\n2,0\n3,0,2,0.1,1\n")
    ):
        (make_run(tmp_path / "runs" / str(seed), seed=seed) / "steps.csv").write_bytes(header + rows)
    (make_run(tmp_path / "runs" / "3", seed=3) / "steps.csv").write_bytes(header + b"one,0,2.5,0.1,1\n")
    (tmp_path / "runs" / "4").mkdir()
    (tmp_path / "runs" / "4" / "status.json").write_text("[]")
    done = bnlab("export", "csv", "--strict", cwd=tmp_path)
    assert done.returncode == 1, "some cannot be read"
    assert sorted(done.stderr.splitlines()) == [
        "runs/0: steps.csv: the last line is torn and left out",
        "runs/2: unreadable (runs/2/steps.csv, line 3: does not fit the header (5 columns))",
        "runs/3: unreadable (runs/3/steps.csv: column step holds something else than numbers)",
        "runs/4: unreadable (status.json is not a JSON object)",
    ]
    steps = pd.read_csv(tmp_path / "export" / "csv" / "steps.csv")
    assert list(zip(steps["folder"], steps["step"], steps["loss"], strict=True)) == [
        ("runs/0", 1, 2.5),
        ("runs/1", 1, 2.5),
    ]
    assert (tmp_path / "export" / "csv" / "evals.csv").read_text() == (
        "folder,norm.name,seed,step,epoch,split,metric,value,samples\n"
    )


# ---------------------------------------------------------------- tensorboard


def test_tensorboard_reads_every_curve(home: Path, runs: list[Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    done = bnlab("export", "tensorboard", cwd=home)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "look at it with `tensorboard --logdir export/tensorboard`\n"
    files = sorted((home / "export" / "tensorboard").rglob("*tfevents*"))
    assert [file.name for file in files] == ["events.out.tfevents.0"] * 4, "no name of a machine"
    names = [file.parent.name for file in files]
    assert names == ["0,norm=none,seed=0", "1,norm=none,seed=1", "2,norm=batch,seed=0", "3,norm=batch,seed=1"]
    for run, file in zip(runs, files, strict=True):
        read = EventAccumulator(str(file.parent), size_guidance={"scalars": 0})
        read.Reload()
        for tag, points in curves_recorded(run).items():
            scalars = read.Scalars(tag)
            assert [scalar.step for scalar in scalars] == [step for step, _ in points]
            assert [scalar.value for scalar in scalars] == pytest.approx([value for _, value in points], rel=1e-6)
        first, last = read.Scalars("step/loss")[0], read.Scalars("test/accuracy")[-1]
        assert started(run) < first.wall_time < last.wall_time
        assert last.wall_time == pytest.approx(started(run) + trained_seconds(run), abs=1e-4)
        summary = json.loads((run / "summary.json").read_text())
        (final,) = read.Scalars("test_accuracy")
        assert (final.step, final.value) == (30, pytest.approx(summary["curve"]["test.accuracy"][-1], rel=1e-6))
        content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        parameters = HParamsPluginData.FromString(content).session_start_info.hparams
        assert parameters["norm.name"].string_value == summary["config"]["norm"]["name"]
        assert parameters["optim.lr"].number_value == summary["config"]["optim"]["lr"]


# ---------------------------------------------------------------- mlflow


Tracked = Callable[[Path], tuple[Any, dict[str, Any]]]


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> Tracked:
    """A function from a folder to MLflow's client on it and the runs there, by their folders."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    def of(place: Path) -> tuple[Any, dict[str, Any]]:
        client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
        experiment = client.get_experiment_by_name("bnlab")
        assert experiment is not None
        assert experiment.artifact_location == (place / "artifacts").as_uri()
        found = client.search_runs([experiment.experiment_id])
        return client, {run.data.tags["bnlab.folder"]: run for run in found}

    return of


@pytest.fixture
def to_mlflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that exports in this process, where MLflow is loaded, and returns what is printed."""

    def export(place: Path, *words: str) -> str:
        monkeypatch.chdir(place)
        app(["export", "mlflow", *words], standalone_mode=False)
        return capsys.readouterr().out

    return export


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what MLflow and its libraries say of each other
def test_mlflow_has_every_run_once(
    home: Path, runs: list[Path], tracked: Tracked, to_mlflow: Callable[..., str]
) -> None:
    one = bnlab("export", "mlflow", str(runs[0].relative_to(home)), cwd=home)
    assert (one.returncode, one.stdout) == (0, "export/mlflow: 1 run added, 0 were there\n"), one.stderr
    assert one.stderr == "look at it with `mlflow ui --backend-store-uri sqlite:///export/mlflow/mlflow.db`\n"
    assert not list((home / "export").glob(".*"))
    for added, there in ((3, 1), (0, 4)):
        assert to_mlflow(home) == f"export/mlflow: {added} runs added, {there} were there\n"
    client, found = tracked(home / "export" / "mlflow")
    assert set(found) == {str(run.relative_to(home)) for run in runs}
    for run in runs:
        there = found[str(run.relative_to(home))]
        summary = json.loads((run / "summary.json").read_text())
        assert there.info.status == "FINISHED"
        name, seed = summary["config"]["norm"]["name"], summary["config"]["seed"]
        # the first export had one run, so that nothing differed: then it is called by its strategy all the same
        assert there.info.run_name == f"norm={name} seed={seed}"
        assert there.info.start_time == pytest.approx(1e3 * started(run), abs=1.1)
        assert there.info.end_time == pytest.approx(1e3 * (started(run) + trained_seconds(run)), abs=1.1)
        assert there.data.tags["bnlab.identity"] == summary["identity"]
        assert there.data.tags["bnlab.state"] == "done"
        assert there.data.params["norm.name"] == summary["config"]["norm"]["name"]
        assert there.data.params["model.widths"] == "[8,16]"
        assert there.data.params["data.train_size"] == "null"
        assert there.data.metrics["test_accuracy"] == summary["curve"]["test.accuracy"][-1]
        for name, points in curves_recorded(run).items():
            history = client.get_metric_history(there.info.run_id, name)
            assert sorted((point.step, point.value) for point in history) == points


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_replaces_what_has_gone_on_and_what_was_left_half(tmp_path: Path, tracked: Tracked) -> None:
    from bnlab.compare.frames import tables_of
    from bnlab.export.tracking import add_runs
    from bnlab.record.read import read_runs

    def export() -> str:
        found, _ = read_runs([tmp_path / "runs"])
        return add_runs(tmp_path / "store", found, [tables_of(run.folder) for run in found])

    failed = make_run(tmp_path / "runs" / "0", seed=0, state="failed", error="boom")
    make_run(tmp_path / "runs" / "1", seed=1, order=1)
    copy = make_run(tmp_path / "runs" / "copy", seed=1, order=2)
    bench = make_run(tmp_path / "runs" / "bench", seed=1, order=3, summary={"bench": {"ratio": 1.2}, "curve": {}})
    done = {str(copy): "FINISHED", str(bench): "FINISHED"}  # the bench has the configuration of the training
    assert export() == "3 runs added, 0 were there"
    client, found = tracked(tmp_path / "store")
    assert {name: run.info.status for name, run in found.items()} == {str(failed): "FAILED", **done}
    assert found[str(failed)].data.tags["bnlab.error"] == "boom"
    experiment = found[str(failed)].info.experiment_id
    half = client.create_run(experiment, tags={"bnlab.identity": "x", "bnlab.folder": "half"})
    assert export() == "0 runs added, 3 were there"
    make_run(failed, seed=0, order=3)
    (failed / "steps.csv").write_text("step,epoch,loss,lr,finite\n1,0,2.5,0.1,1\n2,0,nan,0.1,0\n")
    assert export() == "1 run added, 2 were there"
    client, found = tracked(tmp_path / "store")
    assert {name: run.info.status for name, run in found.items()} == {str(failed): "FINISHED", **done}
    assert client.get_run(half.info.run_id).info.lifecycle_stage == "deleted"
    first, second = client.get_metric_history(found[str(failed)].info.run_id, "step/loss")
    assert (first.step, first.value, second.step) == (1, 2.5, 2)
    assert math.isnan(second.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_odd_name_does_not_keep_runs_out_of_mlflow(
    tmp_path: Path, tracked: Tracked, to_mlflow: Callable[..., str]
) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    from bnlab.export.tracking import _key

    odd = ["..", ".", "../../x", "/etc/x", "a/../b", "a/./b", "a//b", "a/", "..x", "", "/", "./" * 200, "x" * 300]
    for name in odd:
        _validate_metric_name(_key(name))
        _validate_param_name(_key(name))
        assert len(_key(name)) <= 250
    assert [_key(name) for name in ("step/loss", "test.accuracy", "..", "a/../b", "/etc/x")] == [
        "step/loss", "test.accuracy", "__", "a/__/b", "etc/x"
    ]  # fmt: skip
    make_run(tmp_path / "runs" / "0", seed=0)
    strange = make_run(tmp_path / "runs" / "1", seed=1)
    (strange / "evals.csv").write_text(
        "step,epoch,split,samples,metric,value\n1,1,..,9,accuracy,0.5\n2,2,../../x,9,accuracy,0.25\n"
    )
    summary = json.loads((strange / "summary.json").read_text())
    summary["config"]["../x"] = 1
    (strange / "summary.json").write_text(json.dumps(summary))
    assert to_mlflow(tmp_path, "--out", "store") == "store: 2 runs added, 0 were there\n"
    _, found = tracked(tmp_path / "store")
    there = found["runs/1"].data
    assert there.params["__/x"] == "1"
    assert {name for name in there.metrics if "__" in name} == {"__/accuracy", "__/__/x/accuracy"}


# ---------------------------------------------------------------- places and failures


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_writes_nothing_beside_a_folder_of_an_odd_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to_mlflow: Callable[..., str]
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    make_run((home := tmp_path / "tägl iche%20 #?x") / "runs" / "0")
    assert "1 run added, 0 were there" in bnlab("export", "mlflow", cwd=home).stdout
    assert "0 runs added, 1 were there" in to_mlflow(home)
    assert [path.name for path in tmp_path.iterdir()] == [home.name]
    assert [path.name for path in (home / "export" / "mlflow").iterdir()] == ["mlflow.db"]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "0")
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for form, place in (("csv", "there"), ("parquet", "file"), ("tensorboard", "link"), ("mlflow", "file")):
        done = bnlab("export", form, "--out", place, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "choose another place with --out" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "there", "file", "link"}
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.slow
def test_force_replaces_an_earlier_export_and_nothing_else(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "0")
    for place in ("there", "mine", "near"):
        assert bnlab("export", "csv", "--out", place, cwd=tmp_path).returncode == 0
    make_run(tmp_path / "runs" / "1", seed=1)
    done = bnlab("export", "csv", "--out", "there", "--force", cwd=tmp_path)
    assert (done.returncode, len(pd.read_csv(tmp_path / "there" / "runs.csv"))) == (0, 2), done.stderr
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    (tmp_path / "near" / "steps.csv").unlink()
    (tmp_path / "near" / "steps.csv").symlink_to(tmp_path / "mine" / "thesis.tex")
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "file").write_text("mine")
    for place in ("mine", "near", "link", "file", "runs", "."):
        refused = bnlab("export", "csv", "--out", place, "--force", cwd=tmp_path)
        assert (refused.returncode, "holds more than an earlier export" in refused.stderr) == (2, True), place
    assert bnlab("export", "mlflow", "--force", cwd=tmp_path).returncode != 0
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "there", "mine", "near", "link", "file"}
    assert len(pd.read_csv(tmp_path / "mine" / "runs.csv")) == 1


@pytest.mark.parametrize(
    ("form", "module"),
    [("parquet", "pyarrow"), *(pytest.param(name, name, marks=pytest.mark.slow) for name in ("tensorboard", "mlflow"))],
)
def test_a_missing_library_is_named_and_nothing_written(tmp_path: Path, form: str, module: str) -> None:
    make_run(tmp_path / "runs" / "0")
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / f"{module}.py").write_text(f'raise ModuleNotFoundError("No module named {module!r}")\n')
    done = bnlab("export", form, cwd=tmp_path, fresh=True, PYTHONPATH=f"{tmp_path / 'without'}:{ROOT}")
    assert done.returncode == 1
    assert done.stderr == (
        f"bnlab export {form}: {module} cannot be imported (No module named '{module}')\npip install 'bnlab[export]'\n"
    )
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    "form", ["csv", *(pytest.param(form, marks=pytest.mark.slow) for form in ("tensorboard", "mlflow"))]
)
def test_a_full_disk_leaves_nothing(tmp_path: Path, form: str) -> None:
    for seed in range(20):
        folder = make_run(tmp_path / "runs" / str(seed), seed=seed)
        rows = "".join(f"{step},0,{math.sqrt(step)},{math.sin(step)},1\n" for step in range(1, 200))
        (folder / "steps.csv").write_text("step,epoch,loss,lr,finite\n" + rows)
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *BNLAB, "export", form],  # files of up to 8 kB
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        check=False,
    )
    assert limited.returncode == 1
    assert f"export/{form}" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_terminated_export_leaves_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "0")
    rows = "".join(f"{step},0,1.5,0.1,1\n" for step in range(1, 300_000))
    (folder / "steps.csv").write_text("step,epoch,loss,lr,finite\n" + rows)
    process = subprocess.Popen([*BNLAB, "export", "tensorboard"], cwd=tmp_path, env=environment())
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("export/.*.tmp/*/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_without_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    done = bnlab("export", "csv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "no runs to export in runs\ngive the folder that has them\n",
    )
    assert not (tmp_path / "export").exists()
