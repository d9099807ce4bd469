"""Folders from strangers given to `bnlab resume`: nothing in them runs, and nothing outside of them is written."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import QUICK, in_turn
from helpers_resume import StopAt
from helpers_training import train

from bnlab.config import compose
from bnlab.config.files import conf_dir
from bnlab.errors import RecordError
from bnlab.experiment.config import identity, parse_config
from bnlab.experiment.setup import bundle_of
from bnlab.experiment.trained_model import find
from bnlab.record.sweep_record import SweepRecord
from bnlab.runner.resume import resume
from bnlab.runner.supervisor import JobOptions
from bnlab.training import checkpoint
from bnlab.training.callbacks import Callback
from bnlab.training.job import Stop

FILES = ("steps.csv", "times.csv", "run.log", "checkpoint.pt", "checkpoint.prev.pt", "checkpoint.sha256", ".lock")
FILES += ("status.json", "summary.json", "config.yaml", "environment.json")


class Fails(Callback):
    def evaluated(self, step: int, metrics: Any) -> None:
        if step > 15:
            raise RuntimeError("a fault of the test")


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that failed in the middle, after a checkpoint."""
    stop = Stop()
    folder = tmp_path_factory.mktemp("failed") / "run"
    with pytest.raises(KeyboardInterrupt):
        train([*QUICK, "eval.every=0.2"], folder, stop, StopAt(stop, evaluation=8))
    assert train([*QUICK, "eval.every=0.2"], folder, callback=Fails()).state == "failed"
    assert (folder / "checkpoint.pt").exists()
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to work in, beside one that nothing may change."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/victim").write_text("precious\n")
    (tmp_path / "outside/empty").mkdir()
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def outside(place: Path) -> dict[str, tuple[int, str]]:
    """Return what lies beside the folder, files and folders."""
    found = sorted((place.parent / "outside").rglob("*"))
    return {str(p): (p.lstat().st_mtime_ns, p.read_text() if p.is_file() else "") for p in found}


def resumed(place: Path, *folders: str | Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
    """Resume each folder; nothing outside may change, and no message be a traceback or hold an escape sequence."""
    before = outside(place)
    commands = [["resume", *([folder] if isinstance(folder, str) else folder)] for folder in folders]
    done = in_turn(commands, cwd=place, COLUMNS="80")
    assert outside(place) == before
    for answer in done:
        assert "Traceback" not in answer.stdout + answer.stderr, answer.stderr
        assert "\x1b" not in answer.stdout + answer.stderr
        assert answer.returncode in (0, 1, 2), answer.args
        assert answer.returncode == 0 or answer.stderr
    return done


def sweep_of(place: Path, name: str, overrides: Sequence[str], config_dir: Path | None = None) -> Path:
    (place / name).mkdir()
    SweepRecord(tuple(overrides), config_dir, False).write(place / name)
    return place / name


# ---------------------------------------------------------------- places outside


def strangers(place: Path, failed: Path, **data: str) -> Path:
    """A run whose record names other places than those that its own user signed."""
    run = Path(shutil.copytree(failed, place / "run"))
    status = json.loads((run / "status.json").read_text())
    status["config"]["data"] |= data
    (run / "status.json").write_text(json.dumps(status))
    return run


def dry(folder: Path, *overrides: str) -> int:
    return resume(folder, overrides, JobOptions(inline=True), dry_run=True)


def test_places_that_a_strangers_run_names_are_given_by_the_user_or_left_alone(place: Path, failed: Path) -> None:
    before, victim = outside(place), str(place.parent / "outside/new")
    run = strangers(place, failed, root=victim)
    for use in (dry, lambda folder: find([str(folder)], None, None, None)):
        with pytest.raises(
            RecordError, match=rf"run names data.root={victim}, and is no record of yours.*\ngive data.root="
        ):
            use(run)
    assert outside(place) == before
    assert dry(run, f"data.root={place}") == 0
    assert find([str(run), f"data.root={place}"], None, None, None).step is not None
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "done"}))
    assert dry(run) == 0  # nothing is left to do, and nothing is read
    assert [answer.returncode for answer in in_turn([["show", "run"], ["compare", "."]], cwd=place)] == [0, 0]
    assert outside(place) == before


def test_a_strangers_sweep_names_no_data_and_no_configurations(place: Path) -> None:
    victim = place.parent / "outside"
    for name, overrides, config_dir in (("data", ["data=folder", f"data.path={victim}"], None), ("conf", [], victim)):
        sweep = sweep_of(place, name, ["seed=0,1", *QUICK, *overrides], config_dir)
        said = json.loads((sweep / "sweep.json").read_text())
        (sweep / "sweep.json").write_text(json.dumps(said | {"origin": "0" * 64}))
        with pytest.raises(RecordError, match=f"{name} names .*{victim}, and is no record of yours"):
            dry(sweep)
    assert resume(place / "conf", (), JobOptions(inline=True), config_dir=place, dry_run=True) == 0


def test_ones_own_runs_name_what_they_like_and_may_be_moved(place: Path, tmp_path: Path) -> None:
    stop = Stop()
    with pytest.raises(KeyboardInterrupt):
        train([*QUICK, f"data.root={tmp_path}", "eval.every=0.2"], place / "run", stop, StopAt(stop, evaluation=8))
    (place / "run").rename(place / "moved")
    assert dry(place / "moved") == 0
    assert dry(sweep_of(place, "sweep", ["seed=0,1", *QUICK, f"data.root={tmp_path}"], place)) == 0


# ---------------------------------------------------------------- links


@pytest.mark.slow
def test_links_for_files_are_not_followed(place: Path, failed: Path) -> None:
    for name in FILES:
        run = Path(shutil.copytree(failed, place / name.replace(".", "_")))
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(place.parent / "outside/victim")
    done = resumed(place, *[name.replace(".", "_") for name in FILES])
    replaced = ("checkpoint.prev.pt", "summary.json", "environment.json")  # renamed over, unread
    for name, answer in zip(FILES, done, strict=True):
        if name == "config.yaml":  # neither read nor written
            assert answer.returncode == 0
            continue
        assert answer.returncode == int(name not in replaced), name
        if name in replaced:
            assert not (place / name.replace(".", "_") / name).is_symlink()
        else:
            shown = {".lock": "symbolic links", "checkpoint.sha256": "sha256 differs"}.get(name, name)
            assert shown in answer.stderr, answer.stderr


@pytest.mark.slow
def test_folders_that_are_links_are_not_entered(place: Path, failed: Path) -> None:
    sweep = sweep_of(place, "sweep", ["seed=0,1", *QUICK])
    (sweep / "0").symlink_to(place.parent / "outside/empty")
    dangling = sweep_of(place, "dangling", ["seed=0,1", *QUICK])
    (dangling / "0").symlink_to(place.parent / "outside/new")
    recorded = place / "recorded"
    recorded.mkdir()
    (recorded / "sweep.json").symlink_to(sweep / "sweep.json")
    shutil.copytree(failed, place / "run")
    (place / "link").symlink_to("run")
    first, second, third, fourth = resumed(place, "sweep", "dangling", "recorded", "link")
    assert (first.returncode, third.returncode, fourth.returncode) == (1, 1, 2)
    assert "0: a link to a folder is not followed" in first.stderr
    assert second.returncode in (0, 1)
    assert not (place.parent / "outside/new").exists()


# ---------------------------------------------------------------- records


def touching(place: Path) -> str:
    return str(place.parent / "outside/executed")


@pytest.mark.slow
def test_a_recorded_sweep_cannot_name_code(place: Path) -> None:
    target = touching(place)
    lines = {
        "launcher": ["hydra.launcher._target_=pathlib.Path.touch"],
        "callbacks": [f"+hydra.callbacks.x={{_target_:pathlib.Path,_args_:['{target}']}}"],
        "node": [f"hydra={{launcher:{{_target_:os.mkdir,path:'{target}'}}}}"],
        "key": ["+norm._target_=os.system"],
        "joblib": ["hydra/launcher=joblib", "hydra.sweep.dir=" + str(place.parent / "outside")],
        "spaces": [f" ++hydra.sweep.dir={place.parent / 'outside'}", "\thydra/launcher=joblib"],
        "search": ["hydra/sweeper=optuna", "hydra.sweeper.storage=sqlite:///" + target],
        "path": [f"+hydra.searchpath=[file://{place}]"],
        "resolver": ["name=${oc.env:HOME}"],
        "bomb": ["+b0=" + "x" * 100, *(f"+b{n}='{f'${{b{n - 1}}}' * 30}'" for n in range(1, 9))],
    }
    for name, more in lines.items():
        sweep_of(place, name, ["seed=0,1", *QUICK, *more])
    done = dict(zip(lines, resumed(place, *([name, "--dry-run"] for name in lines)), strict=True))
    for name in ("node", "key"):
        assert done[name].returncode == 2, name
    assert (done["resolver"].returncode, done["bomb"].returncode) == (1, 1)
    assert "name=${oc.env:HOME}: an interpolation is not taken from a folder" in done["resolver"].stderr
    assert "give name=... here again" in done["resolver"].stderr
    for name in ("launcher", "callbacks", "joblib", "spaces", "search", "path"):  # Hydra's own are left aside
        assert done[name].returncode == 0, done[name].stderr
        assert done[name].stdout.count("seed=") == 2
    for name in lines:
        assert sorted(path.name for path in (place / name).iterdir()) == [".lock", "sweep.json"]


@pytest.mark.slow
def test_a_recorded_folder_of_configurations_cannot_name_code(place: Path) -> None:
    target = touching(place)
    code = place / "stranger"
    code.mkdir()
    (code / "__init__.py").write_text(f"import pathlib\npathlib.Path({target!r}).touch()\n")
    original = (conf_dir() / "config.yaml").read_text()
    hostile = {
        "launcher": original + f"  launcher:\n    _target_: pathlib.Path.mkdir\n    self: {target}\n",
        "callback": original + "  callbacks:\n    x:\n      _target_: stranger.Callback\n",
        "package": original + "  searchpath: [pkg://stranger]\n",
        "python": f"x: !!python/object/apply:os.mkdir [{target}]\n" + original,
        "bomb": "a: &a [1,1]\n"
        + "".join(f"{n}: &{n} [*{p},*{p},*{p},*{p}]\n" for p, n in itertools.pairwise("abcdefghijklmno")),
    }
    batch = (conf_dir() / "norm/batch.yaml").read_text()
    hidden = "# @package _global_\nhydra:\n  callbacks:\n    x:\n      _target_: stranger.X\n"
    options = {  # new ones, and one that takes the place of Hydra's own
        "norm/stranger": (batch + f"_target_: os.mkdir\npath: {target}\n", "norm=stranger"),
        "schedule/stranger": (hidden, "schedule=stranger"),
        "hydra/launcher/basic": (f"_target_: os.mkdir\npath: {target}\n", "seed=0,1"),
    }
    for name, text in hostile.items():  # bnlab's own config.yaml comes first, so these are not even read
        (place / f"conf-{name}").mkdir()
        (place / f"conf-{name}/config.yaml").write_text(text)
        sweep_of(place, name, ["seed=0,1", *QUICK], place / f"conf-{name}")
    for number, (name, (text, chosen)) in enumerate(options.items()):
        path = place / f"conf{number}/{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        sweep_of(place, f"option{number}", ["seed=0,1", *QUICK, chosen], place / f"conf{number}")
    names = [*hostile, *(f"option{number}" for number in range(len(options)))]
    answers = resumed(place, *([name, "--dry-run"] for name in names))
    assert [answer.returncode for answer in answers] == [0] * len(hostile) + [2] * len(options)
    for answer in answers[-3:-1]:
        assert "may not name Python objects" in answer.stderr


@pytest.mark.slow
def test_records_of_any_shape_end_in_a_message(place: Path, failed: Path) -> None:
    records = {
        "text": "no JSON",
        "list": "[]",
        "huge": json.dumps({"schema": 1, "overrides": ["seed=0" + " " * 2**20]}),
        "nested": "[" * 100_000,
        "deep": '{"schema": 1, "overrides": ' + "[" * 900 + "]" * 900 + "}",
        "numbers": '{"schema": 1, "overrides": [1, 2]}',
        "newer": '{"schema": 99, "overrides": []}',
        "bytes": "\udcff",
        "nul": r'{"schema": 1, "overrides": [], "config_dir": "a\u0000b"}',
        "surrogate": r'{"schema": 1, "overrides": ["name=\ud800"]}',
    }
    for name, text in records.items():
        (place / name).mkdir()
        (place / name / "sweep.json").write_bytes(text.encode(errors="surrogateescape"))
    for name, answer in zip(records, resumed(place, *records), strict=True):
        assert answer.returncode == 1, name
        assert "sweep.json: " in answer.stderr

    tree = json.loads((failed / "status.json").read_text())["config"]
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": deep}
    configs: dict[str, Any] = {
        "absent": None,
        "empty": {},
        "unknown": tree | {"_target_": "os.system"},
        "deepnorm": tree | {"norm": deep},
        "hugeseed": tree | {"seed": 10**4000},
        "interpolation": tree | {"data": tree["data"] | {"root": "${oc.env:HOME}"}},
        "bomb": tree | {"name": "${seed}", "a": "x" * 100} | {f"b{n}": f"${{b{n - 1}}}" * 30 for n in range(1, 9)},
        "grammar": tree | {"data": tree["data"] | {"root": "${"}},
        "escape": tree | {"name": "\x1b[2J"},
        "norm": tree | {"norm": {"name": "\x1b[31mbatch"}},
        "list": [1],
    }
    for name, config in configs.items():
        run = Path(shutil.copytree(failed, place / f"run-{name}"))
        status = json.loads((run / "status.json").read_text()) | {"config": config}
        (run / "status.json").write_text(json.dumps(status))
    moved = [[f"run-{name}", "data.root=data"] for name in ("bomb", "escape")]
    for answer in resumed(place, *moved):
        assert answer.returncode in (1, 2)
    for name, answer in zip(configs, resumed(place, *[f"run-{name}" for name in configs]), strict=True):
        assert answer.returncode in (1, 2), name
        assert name != "interpolation" or "data.root=${oc.env:HOME}, " in answer.stderr  # it stays the text that it is


@pytest.mark.slow
def test_names_are_shown_with_their_control_characters_written_out(place: Path, failed: Path) -> None:
    evil = "a\x1b[31m\u202eb\r"
    shutil.copytree(failed, place / evil)
    sweep = sweep_of(place, "sweep", ["seed=0,1", *QUICK, "+x\x1b[2J=1"])
    (sweep / "labels").mkdir()
    labels = sweep_of(place, "labels", ["seed=0,1", *QUICK, "data.root=x\x1b]0;title\x07,y"])
    shutil.copytree(failed, labels / "9\x1b[1m")
    done = resumed(place, evil, "sweep", ["labels", "--dry-run"], "absent\x1b[2J")
    assert done[0].returncode == 0, done[0].stderr
    assert (done[1].returncode, done[3].returncode) == (2, 2)
    assert "\\x1b[31m" in done[0].stdout


def test_a_job_cannot_lie_outside_of_its_sweep(place: Path, failed: Path) -> None:
    tree = compose.jobs([*QUICK, "seed=0"], multirun=False)[0]
    known = identity(tree, bundle_of(parse_config(tree).data).fingerprint)
    sweep = sweep_of(place, "sweep", ["seed=0,1", *QUICK])
    deep = Path(shutil.copytree(failed, sweep / "x/y"))
    status = json.loads((deep / "status.json").read_text())
    (deep / "status.json").write_text(json.dumps(status | {"identity": known, "config": tree}))
    (answer,) = resumed(place, "sweep")
    assert answer.returncode == 1
    assert "sweep/x/y: lies deeper than the jobs of a sweep\nmove it away" in answer.stderr


@pytest.mark.slow
def test_a_finished_run_without_its_figures_stays_as_it_is(place: Path, failed: Path) -> None:
    run = Path(shutil.copytree(failed, place / "run"))
    assert [answer.returncode for answer in resumed(place, "run")] == [0]
    (run / "summary.json").unlink()
    before = (run / "status.json").read_bytes()
    (answer,) = resumed(place, "run")
    assert answer.returncode == 1
    assert "summary.json is missing though the run is done" in answer.stderr
    assert (run / "status.json").read_bytes() == before


def test_a_checkpoint_beyond_the_end_is_refused(place: Path, failed: Path) -> None:
    run = Path(shutil.copytree(failed, place / "run"))
    state = checkpoint.load(run)
    assert state is not None
    state["outcome"]["steps"] = 50
    checkpoint.save(run, state)
    (answer,) = resumed(place, "run")
    assert answer.returncode == 1
    assert "the checkpoint is of step 50, the run has 30" in answer.stderr
