"""`bnlab resume` of a sweep: what is done stays untouched, what is not is done, and nothing is done twice."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import helpers_cli
import pytest
from helpers_cli import QUICK, ROOT, Command, start
from helpers_training import train
from PIL import Image

from bnlab.training import checkpoint

pytestmark = pytest.mark.slow

TABLES = ("steps.csv", "evals.csv", "layers.csv")
bnlab = partial(helpers_cli.bnlab, supervised=True)
FAULTY = {"PYTHONPATH": f"{ROOT / 'tests/faults'}:{ROOT}"}


def faults(**by_seed: object) -> dict[str, str]:
    """Return the environment in which jobs of these seeds do harm: `s1=["raise", 5]`."""
    return FAULTY | {"BNLAB_TEST_FAULTS": json.dumps({seed[1:]: [*fault, None] for seed, fault in by_seed.items()})}  # type: ignore[misc]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of four seeds: 0 is done, 1 raised, 2 was killed, 3 was done; in `runs/sweep` of a folder of its own."""
    place = tmp_path_factory.mktemp("broken")
    done = bnlab("train", "-m", "seed=0,1,2,3", *QUICK, cwd=place, **faults(s1=["raise", 11], s2=["kill", 20]))
    assert done.returncode == 1, done.stderr
    (folder,) = place.glob("runs/2*")
    folder.rename(place / "runs/sweep")
    assert states(place) == ["done", "failed", "killed", "done"]
    return place


@pytest.fixture(scope="module")
def repaired(broken: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same after `bnlab resume`."""
    place = tmp_path_factory.mktemp("repaired")
    shutil.copytree(broken, place, dirs_exist_ok=True)
    return place, bnlab("resume", "runs/sweep", cwd=place)


@pytest.fixture
def place(broken: Path, tmp_path: Path) -> Path:
    """A copy of the broken sweep, its times included."""
    return Path(shutil.copytree(broken, tmp_path / "place"))


def states(place: Path) -> list[str]:
    runs = sorted((place / "runs/sweep").glob("*/status.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text())["state"] for path in runs]


def left(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return when each file was written, and what is in it; the lock and the counter of runs apart."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", ".order")]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# ---------------------------------------------------------------- what is run


def test_what_is_done_is_skipped_and_the_rest_run(
    broken: Path, repaired: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    place, done = repaired
    assert (done.returncode, done.stdout.count("  done  ")) == (0, 4), done.stderr
    assert states(place) == ["done"] * 4
    for seed in (0, 3):
        assert left(place / f"runs/sweep/{seed}") == left(broken / f"runs/sweep/{seed}")
    for seed in (1, 2):
        assert train([*QUICK, f"seed={seed}"], tmp_path / str(seed)).state == "done"
        for table in TABLES:
            assert (place / f"runs/sweep/{seed}" / table).read_bytes() == (tmp_path / str(seed) / table).read_bytes()


def test_a_finished_sweep_has_nothing_left_and_takes_new_seeds(
    repaired: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    place = Path(shutil.copytree(repaired[0], tmp_path / "place"))
    before = left(place)
    done = bnlab("resume", "runs/sweep", cwd=place)
    assert (done.returncode, done.stdout.count("  done  ")) == (0, 4)
    assert "nothing is left to do" in done.stderr
    after = left(place)
    after.pop("runs/sweep/sweep.json")
    before.pop("runs/sweep/sweep.json")
    assert after == before

    raised = bnlab("resume", "runs/sweep", "seed=0,1,2,3,4,5", cwd=place, **faults(s5=["raise", 3]))
    assert raised.returncode == 1
    assert states(place) == [*["done"] * 5, "failed"]
    assert {name: found for name, found in left(place).items() if name in before} == before
    done = bnlab("resume", "runs/sweep", cwd=place)  # the new seeds belong to the sweep from now on
    assert done.returncode == 0, done.stderr
    assert states(place) == ["done"] * 6
    assert {name: found for name, found in left(place).items() if name in before} == before


def test_errored_runs_what_failed_and_nothing_new(place: Path) -> None:
    listed = bnlab("resume", "runs/sweep", "seed=0,1,2,3,4", "--errored", "--dry-run", cwd=place, COLUMNS="80")
    assert listed.returncode == 0
    rows = [line.split() for line in listed.stdout.splitlines() if "seed=" in line]
    assert rows == [["1", "seed=1", "runs/sweep/1", "failed"], ["2", "seed=2", "runs/sweep/2", "killed"]]
    assert states(place) == ["done", "failed", "killed", "done"]
    done = bnlab("resume", "runs/sweep", "seed=0,1,2,3,4", "--errored", cwd=place)
    assert done.returncode == 1  # one job has not been started
    assert states(place) == [*["done"] * 4, "queued"]


def test_a_dry_run_touches_nothing(place: Path) -> None:
    before = left(place)
    listed = bnlab("resume", "runs/sweep", "seed=1,2,4", "--dry-run", cwd=place)
    rows = [line.split()[-2:] for line in listed.stdout.splitlines() if "seed=" in line]
    assert rows == [["runs/sweep/1", "failed"], ["runs/sweep/2", "killed"], ["runs/sweep/4", "new"]]
    assert left(place) == before


def test_from_scratch_leaves_checkpoints_aside(place: Path) -> None:
    stopped = start("resume", "runs/sweep", cwd=place, supervised=True, **faults(s2=["hang", 25]))
    wait_for(lambda: states(place)[2] == "running", stopped)
    time.sleep(0.5)  # it hangs and is killed after STOP_SECONDS
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=300)
    assert stopped.returncode == 130, err
    assert err.count("bnlab resume sweep\n") == 1
    assert "Traceback" not in err
    assert states(place) == ["done", "done", "interrupted", "done"]
    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        (place / "runs/sweep/2" / name).write_bytes(b"damaged")
    done = bnlab("resume", "runs/sweep", cwd=place)
    assert done.returncode == 1
    assert "checkpoint.pt: sha256 differs" in done.stderr
    assert "--from-scratch" in done.stderr
    done = bnlab("resume", "runs/sweep", "--from-scratch", cwd=place)
    assert done.returncode == 0, done.stderr
    assert states(place) == ["done"] * 4
    assert checkpoint.load(place / "runs/sweep/2", pytest.fail)["step"] == 30


def test_fail_fast_and_retries(place: Path) -> None:
    done = bnlab("resume", "runs/sweep", "seed=0,1,2,3,4", "--fail-fast", cwd=place, **faults(s1=["raise", 3]))
    assert done.returncode == 1
    assert states(place) == ["done", "failed", "killed", "done", "queued"]
    assert "1 of 5 jobs: not started" in done.stderr
    marks = place / "marks"
    marks.mkdir()
    once = json.dumps({"1": ["raise", 3, str(marks)], "2": ["kill", 3, str(marks)]})
    done = bnlab("resume", "runs/sweep", "--retries", "1", cwd=place, **FAULTY, BNLAB_TEST_FAULTS=once)
    assert done.returncode == 0, done.stderr
    assert states(place) == ["done"] * 5
    assert sorted(path.name for path in marks.iterdir()) == ["1", "2"]


def test_one_job_of_a_sweep_can_be_resumed_alone(place: Path) -> None:
    done = bnlab("resume", "runs/sweep/1", cwd=place)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["runs/sweep/1", "done"]), done.stderr
    assert states(place) == ["done", "done", "killed", "done"]


# ---------------------------------------------------------------- what is refused


def wait_for(condition: Callable[[], bool], process: Command) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_second_of_two_resumes_is_refused(place: Path) -> None:
    with start("resume", "runs/sweep", cwd=place, supervised=True, **faults(s1=["hang", 5])) as first:
        wait_for(lambda: states(place)[1] == "running", first)
        time.sleep(1)
        before = left(place)
        for folder in ("runs/sweep", "runs/sweep/1"):
            second = bnlab("resume", folder, cwd=place)
            assert second.returncode == 1
            assert f"{folder} is in use by another process" in second.stderr
            assert "Traceback" not in second.stderr
            assert left(place) == before
    end = time.monotonic() + 60
    while "in use" in (third := bnlab("resume", "runs/sweep", cwd=place)).stderr and time.monotonic() < end:
        time.sleep(0.1)  # the first one's worker notices a moment later
    assert third.returncode == 0, third.stderr


def test_not_the_folder_of_a_run(tmp_path: Path, broken: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(broken / "runs/sweep")
    for name in ("empty", "file", "link", "absent"):
        done = bnlab("resume", name, cwd=tmp_path)
        assert done.returncode == 2, name
        assert name in done.stderr
        assert "give the folder of a run or of a sweep" in done.stderr
    assert not list((tmp_path / "empty").iterdir())
    done = bnlab("resume", str(broken / "runs/sweep/1"), "optim.lr=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "optim.lr=1: cannot be set here" in done.stderr


def test_another_version_is_refused(place: Path) -> None:
    for path in (place / "runs/sweep").glob("*/environment.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"bnlab": "0.0.1"}))
    for path in (place / "runs/sweep").glob("*/summary.json"):
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | {"environment": found["environment"] | {"bnlab": "0.0.1"}}))
    before = left(place)
    done = bnlab("resume", "runs/sweep", cwd=place)
    assert done.returncode == 1
    assert "runs/sweep/0 is of bnlab 0.0.1" in done.stderr
    assert left(place) == before


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "here"
    for split, count in (("train", 20), ("test", 6)):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), 100 * (label == "b") + number).save(folder / split / label / f"{number}.png")
    return folder


def test_data_may_move_but_not_change(pictures: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(pictures, tmp_path / "here"))
    own = [*QUICK, "data=folder", f"data.path={here}", "data.batch_size=8", "trainer.steps=10", "data.valid_size=8"]
    done = bnlab("train", "-m", "seed=0,1", *own, cwd=tmp_path, **faults(s1=["raise", 4]))
    assert done.returncode == 1, done.stderr
    (folder,) = tmp_path.glob("runs/2*")
    assert "raised" not in done.stderr
    there = here.rename(tmp_path / "there")
    before = left(folder)
    done = bnlab("resume", str(folder), cwd=tmp_path)
    assert done.returncode == 2
    assert str(here) in done.stderr
    assert left(folder) == before

    changed = shutil.copytree(there, tmp_path / "changed")
    Image.new("L", (8, 8), 255).save(changed / "train/a/0.png")
    for target in (folder, folder / "1"):
        done = bnlab("resume", str(target), f"data.path={changed}", cwd=tmp_path)
        assert done.returncode == 1
        assert "other" in done.stderr
        assert "data" in done.stderr
    untouched = left(folder)
    untouched.pop("1/run.log")
    before.pop("1/run.log")
    assert untouched == before

    done = bnlab("resume", str(folder), f"data.path={there}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "1/status.json").read_text())["state"] == "done"


def test_a_sweep_over_data_is_finished(pictures: Path, tmp_path: Path) -> None:
    """Jobs that differ in where their data lie only are not taken for one whose data changed."""
    for name in ("one", "other"):
        shutil.copytree(pictures, tmp_path / name)
    Image.new("L", (8, 8), 255).save(tmp_path / "other/train/a/0.png")
    own = [*QUICK, "data=folder", "data.path=one,other", "data.batch_size=8", "trainer.steps=10", "data.valid_size=8"]
    done = bnlab("train", "-m", *own, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("runs/2*")
    shutil.rmtree(folder / "1")
    done = bnlab("resume", str(folder), cwd=tmp_path)
    assert (done.returncode, done.stdout.count("  done  ")) == (0, 2), done.stderr
