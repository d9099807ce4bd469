"""Sweeps under every launcher: the same results, isolation, exit codes and resume; no process is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers_cli import BNLAB, ROOT, Done, bnlab
from helpers_launchers import QUICK, settings
from helpers_launchers import run as forked
from helpers_training import train

from bnlab.config.compose import compose
from bnlab.errors import EnvironmentFault
from bnlab.record.latest import short_name
from bnlab.runner import launchers
from bnlab.runner.parent import asked_to_stop

# all of them come with the dev group, so that none is skipped unseen
LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm", "ray")
LONG = [*QUICK[:3], "eval.every=50", *QUICK[4:-1], "trainer.steps=2000000"]
FAULTS = {"1": "raise", "2": "exit", "3": "segv", "4": "kill", "5": "hang"}


def left(known: dict[str, str]) -> list[str]:
    """Return the processes that were started with this environment and still run."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if known["BNLAB_TEST_TAG"].encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in found if line]  # a zombie has none


def wait(what: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


# ---------------------------------------------------------------- what every launcher must do


class Swept(NamedTuple):
    first: subprocess.CompletedProcess[str]
    resumed: subprocess.CompletedProcess[str]


def run(place: Path, known: dict[str, str], *words: str) -> Done:
    return bnlab(*words, cwd=place, fresh=True, **known)


def swept(place: Path, known: dict[str, str], launcher: str, run: Callable[..., Done]) -> Swept:
    """Run a sweep under a launcher whose jobs do harm to their processes, and resume it."""
    faults = {seed: [kind, 5, str(place)] for seed, kind in FAULTS.items()}
    known |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/faults'}", "BNLAB_TEST_FAULTS": json.dumps(faults)}
    chosen = f"hydra/launcher={launcher}"
    first = run(place, known, "train", "-m", "--timeout", "4", chosen, "seed=range(7)", *QUICK)
    (folder,) = place.glob("runs/2*")
    return Swept(first, run(place, known, "resume", str(folder.relative_to(place)), chosen))


@pytest.fixture(scope="session")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """What the others must come to, by a command line that was forked."""
    place = tmp_path_factory.mktemp("basic")
    return swept(place, {}, "basic", forked)


def lines(printed: str) -> list[str]:
    """Return the summary without the sweep's name and without clock readings."""
    return re.sub(r"runs/[^/\s]+|(step_ms|train_seconds)=\S+", "", printed).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_that_harm_their_process_cost_themselves_only_and_are_finished(
    launcher: str, basic: Swept, tmp_path: Path
) -> None:
    known = settings(tmp_path)
    found = swept(tmp_path, known, launcher, run)
    check_states(found.first, basic.first)
    check_nothing_else_is_said(found.first.stderr)
    assert not list(Path(known["HOME"]).iterdir())
    wait(lambda: not left(known))
    assert found.resumed.returncode == 0, found.resumed.stderr
    assert found.resumed.stdout.count("  done  ") == 7
    assert lines(found.resumed.stdout) == lines(basic.resumed.stdout)
    assert "5 jobs" in found.resumed.stderr.splitlines()
    if launcher == "submitit_local":
        check_submitits_folders(next(tmp_path.glob("runs/2*")))


def check_states(found: Done, basic: Done) -> None:
    assert found.returncode == 1, found.stderr
    states = [line.split()[1] for line in found.stdout.splitlines()]
    assert states == ["done", "failed", "failed", "killed", "killed", "killed", "done"], found.stderr
    assert lines(found.stdout) == lines(basic.stdout)
    for words in (
        "1 failed: RuntimeError: a fault of the test",
        "2 failed: called sys.exit(7)",
        "3 killed: killed by SIGSEGV",
        "4 killed: killed by SIGKILL",
        "5 killed: took longer than 4 s (--timeout)",
        "2 of 7 jobs done; bnlab compare ",
        "to finish: bnlab resume ",
    ):
        assert words in found.stderr


def check_nothing_else_is_said(stderr: str) -> None:
    """Each end of a job is told once, in its own words; what else comes is the summary."""
    told = [line for line in stderr.splitlines() if re.match(r"\d/7 seed=\d: ", line)]
    assert sorted(line.partition(":")[0] for line in told) == [f"{i + 1}/7 seed={i}" for i in range(7)]
    assert any(re.match(r"1/7 seed=0: done, test \d\d\.\d\d %, ", line) for line in told)
    rest = set(stderr.splitlines()) - set(told)
    ours = re.compile(r"7 jobs$|warning: |runs/\S+ (failed|killed): |2 of 7 jobs done|to finish: ")
    assert [line for line in rest if not ours.match(line)] == []


def check_submitits_folders(sweep: Path) -> None:
    """Each is new: what lies in it is unpickled, and a sweep's folder may come from anywhere."""
    own = list(sweep.glob(".submitit*"))
    assert len(own) == 2  # of train, and of resume
    assert all(re.fullmatch(r"\.submitit-.{8}", path.name) and path.stat().st_mode & 0o777 == 0o700 for path in own)
    assert any(path.glob("*/*.pkl") for path in own)


@pytest.mark.parametrize("text", ["it's", "a${b}", "\\", "c\\", "d\\'", '"', "a,b=c", "x y", "$", "[1]", "ä…", "'"])
def test_a_quoted_value_means_its_own_characters(text: str) -> None:
    line = f"hydra.sweep.dir={launchers.quoted(text)}"
    assert compose([line], True).hydra.sweep.dir == text


def test_a_mark_of_a_killed_command_line_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / ".stop").symlink_to(tmp_path / "outside")
    with asked_to_stop(tmp_path) as signals:
        assert not os.path.lexists(tmp_path / ".stop")
        (tmp_path / ".stop").symlink_to(tmp_path / "outside")
        os.kill(os.getpid(), signal.SIGTERM)
        wait(lambda: signals, 5)
    assert signals == [signal.SIGTERM]
    assert os.listdir(tmp_path) == [], "nothing is written through a link"


# ---------------------------------------------------------------- the end of the command line


class Begun(NamedTuple):
    process: subprocess.Popen[str]
    folder: Path
    environment: dict[str, str]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Begun]]:
    """Start a long sweep of two jobs under a launcher, and wait until both are trained."""
    begun: list[Begun] = []

    def start(launcher: str, *words: str, trained: int = 2) -> Begun:
        known = settings(tmp_path)
        process = subprocess.Popen(
            [*BNLAB, "train", "-m", f"hydra/launcher={launcher}", *LONG, *(words or ["seed=0,1,2"])],
            cwd=tmp_path,
            env=known,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait(lambda: len([t for t in tmp_path.glob("runs/*/*/steps.csv") if t.stat().st_size > 500]) == trained)
        (folder,) = tmp_path.glob("runs/2*")
        begun.append(Begun(process, folder, known))
        return begun[0]

    yield start
    for found in begun:
        found.process.kill()
        found.process.communicate()


def states(folder: Path) -> list[str]:
    return [json.loads(path.read_text())["state"] for path in sorted(folder.glob("*/status.json"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number"),
    [("joblib", signal.SIGTERM), ("submitit_local", signal.SIGINT), ("ray", signal.SIGTERM)],
)
def test_a_stopped_sweep_saves_its_jobs(begin: Callable[..., Begun], launcher: str, number: signal.Signals) -> None:
    begun = begin(launcher)
    if number == signal.SIGINT:
        os.killpg(begun.process.pid, number)  # as a terminal does
    else:
        begun.process.send_signal(number)
        time.sleep(0.05)
        os.killpg(begun.process.pid, number)  # as `timeout` does
    out, err = begun.process.communicate(timeout=300)
    assert begun.process.returncode == 128 + number, err
    assert states(begun.folder) == ["interrupted", "interrupted", "queued"]
    assert [line.split()[1] for line in out.splitlines()] == ["interrupted", "interrupted"]
    assert len(list(begun.folder.glob("*/checkpoint.pt"))) == 2
    assert "Traceback" not in err
    assert f"to finish: bnlab resume {short_name(begun.folder.name)}\n" in err
    assert "1 of 3 jobs: not started" in err
    assert not list(begun.folder.glob(".stop"))
    wait(lambda: not left(begun.environment), 20)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_killed_command_line_leaves_no_process(begin: Callable[..., Begun], launcher: str) -> None:
    begun = begin(launcher)
    begun.process.kill()
    wait(lambda: not left(begun.environment), 20)
    assert states(begun.folder) == ["interrupted", "interrupted", "queued"]
    assert len(list(begun.folder.glob("*/checkpoint.pt"))) == 2


# ---------------------------------------------------------------- Slurm


@pytest.mark.slow
def test_a_preempted_job_of_submitit_goes_on_in_its_folder(begin: Callable[..., Begun], tmp_path: Path) -> None:
    words = ["seed=3", "trainer.steps=6000", "hydra.launcher.timeout_min=60"]
    begun = begin("submitit_slurm", *words, trained=1)
    subprocess.run(["scancel", "4242", "--signal", "USR2"], env=begun.environment, check=True)
    _, err = begun.process.communicate(timeout=300)
    assert begun.process.returncode == 0, err
    assert states(begun.folder) == ["done"]
    assert "going on from step" in (begun.folder / "0/run.log").read_text()
    train([*LONG, *words[:2]], tmp_path / "whole")
    for table in ("steps.csv", "evals.csv", "layers.csv"):
        assert (begun.folder / "0" / table).read_bytes() == (tmp_path / "whole" / table).read_bytes(), table


# ---------------------------------------------------------------- what is set for them


@pytest.mark.slow
def test_a_failed_job_keeps_those_behind_it_from_starting(tmp_path: Path) -> None:
    known = settings(tmp_path, BNLAB_TEST_FAULTS=json.dumps({"0": ["raise", 3, None]}))
    known["PYTHONPATH"] += f":{ROOT / 'tests/faults'}"
    chosen = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=range(12)", *QUICK, "trainer.steps=2000"]
    done = run(tmp_path, known, "train", "-m", "--fail-fast", *chosen)
    assert done.returncode == 1
    assert "0 failed: RuntimeError: a fault of the test" in done.stderr
    assert re.search(r"\d+ of 12 jobs: not started", done.stderr), done.stderr
    assert {line.split()[1] for line in done.stdout.splitlines()[1:]} <= {"done"}


@pytest.mark.slow
def test_paths_of_data_start_where_the_command_was_given(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            _images(tmp_path / "photos" / split / label)
    words = [
        "data=folder",
        "data.path=photos",
        "model=mlp",
        "model.widths=[4]",
        "trainer.steps=2",
        "data.batch_size=4",
        "data.valid_size=4",
    ]
    done = run(tmp_path, settings(tmp_path), "train", "-m", "hydra/launcher=joblib", "seed=0,1", *words)
    assert done.stdout.count("  done  ") == 2, done.stderr


def _images(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, len(folder.name) * 9, 7)).save(folder / f"{number}.png")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(launchers.EXTRAS, "hydra/launcher=rq", ("joblib", "hydra_plugins.hydra_rq_launcher"))
    with pytest.raises(EnvironmentFault, match=r"hydra/launcher=rq: is not installed\npip install 'bnlab\[joblib\]'"):
        launchers.machinery(["hydra/launcher=rq"])


def test_jobs_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    chosen = ["hydra/launcher=joblib"]

    def found(jobs: int, threads: int | None, *more: str) -> tuple[int | None, int, str]:
        got = launchers.settings([*chosen, *more], "joblib", "basic", jobs, threads)
        return got.at_once, got.threads, got.crowded

    assert found(20, None) == (8, 1, "")
    assert found(3, None) == (3, 2, "")
    assert found(20, 4) == (2, 4, "")
    assert found(20, None, "hydra.launcher.n_jobs=4") == (4, 2, "")
    crowded = "warning: 4 jobs at once with 4 threads each on 8 cores slow each other down"
    assert found(20, 4, "hydra.launcher.n_jobs=4") == (4, 2, crowded)
    assert "4 jobs at once" in found(20, 4, "hydra.launcher.n_jobs=-5")[2]  # all cores but four


def test_what_a_user_sets_stays(tmp_path: Path) -> None:
    own = tmp_path / "hydra/launcher/cluster.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("defaults: [submitit_slurm]\npartition: short\nmax_num_timeout: 3\n")
    chosen = ["hydra/launcher=cluster"]
    assert launchers.machinery(chosen, tmp_path) == ("submitit_slurm", "basic")
    got = launchers.settings(chosen, "submitit_slurm", "basic", 2, 3, tmp_path)
    assert (got.at_once, got.lines) == (None, ("hydra/launcher=cluster", "++hydra.launcher.cpus_per_task=3"))
    ours = f"++hydra.launcher.submitit_folder='{tmp_path}/new/%j'"
    assert ours in launchers.settings(chosen, "submitit_slurm", "basic", 2, 3, tmp_path, tmp_path / "new").lines
    own.write_text(own.read_text() + "submitit_folder: /shared/%j\n")
    lines = launchers.settings(chosen, "submitit_slurm", "basic", 2, 3, tmp_path, tmp_path / "new").lines
    assert not any("submitit_folder" in line for line in lines)
