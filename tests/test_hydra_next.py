"""The same bnlab beside the next Hydra, its launchers and its search, in an environment of its own.

Everything else comes from the environment that runs the tests. Without a package registry this is skipped.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_cli import ROOT, SHORT, environment

from bnlab.record.latest import short_name

NEXT = [
    *("hydra-core", "hydra-joblib-launcher", "hydra-submitit-launcher", "hydra-ray-launcher", "hydra-optuna-sweeper"),
]
SAME = [  # what these prove of the present Hydra holds for the next one
    "test_conf.py::test_a_sweep_is_taken_apart_into_its_jobs",
    "test_conf.py::test_glob_takes_every_strategy",
    "test_conf.py::test_configurations_of_ones_own",
    "test_conf.py::test_jobs_of_a_sweep_are_what_hydra_composes_for_each",
    "test_cli.py::test_mistakes_end_in_one_message",
    "test_cli.py::test_cfg_and_info_run_nothing",
    "test_cli.py::test_completion_of_overrides",
    "test_faults_input.py::test_a_folder_of_configurations_that_mean_harm",
    "test_launchers.py::test_jobs_of_one_machine_share_its_cores",
    "test_launchers.py::test_what_a_user_sets_stays",
]
pytestmark = pytest.mark.slow


def called(*command: str, cwd: Path, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    given = environment(PYTHONWARNINGS="", OMP_NUM_THREADS="1")
    return subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of that environment: its own packages first, those of the present one after them."""
    place = tmp_path_factory.mktemp("next")
    made = called(sys.executable, "-m", "venv", "env", cwd=place)
    if made.returncode:
        pytest.skip(f"no environment can be made: {made.stdout}{made.stderr}")
    (packages,) = place.glob("env/lib/python*/site-packages")
    packages.joinpath("present.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    pip = [str(place / "env/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        installed = called(*pip, *(f"{name}>=1.4.0rc1" for name in NEXT), cwd=place)
    except subprocess.TimeoutExpired:
        pytest.skip("the package registry is too slow")
    if installed.returncode:
        pytest.skip(f"not to be had from a package registry: {installed.stderr.splitlines()[-1]}")
    return pip[0]


def test_configurations_and_messages_are_the_same(python: str, tmp_path: Path) -> None:
    tests = [str(ROOT / "tests" / name) for name in SAME]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT), "--basetemp", str(tmp_path)]
    done = called(python, "-m", "pytest", *options, *tests, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_a_sweep_is_trained_without_a_warning(python: str, tmp_path: Path, launcher: str) -> None:
    words = [f"hydra/launcher={launcher}", "norm=none,layer", "seed=0", *SHORT]
    done = called(python, "-m", "bnlab", "train", "-m", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout.count("  done  norm=")) == (0, 2), done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith(("2 jobs", "1/2 ", "2/2 "))]
    assert said == [f"2 of 2 jobs done; bnlab compare {short_name(next(tmp_path.glob('runs/2*')).name)}"]


def test_a_study_is_stored_with_the_newest_sqlalchemy(python: str, tmp_path: Path) -> None:
    major = called(python, "-c", "import sqlalchemy; print(sqlalchemy.__version__)", cwd=tmp_path).stdout.split(".")[0]
    assert int(major) >= 2
    words = ["hydra.sweeper.n_trials=3", "hydra.sweeper.storage='sqlite:///study.db'", "optim.lr=interval(0.01,0.3)"]
    done = called(python, "-m", "bnlab", "train", "-m", "hydra/sweeper=optuna", *words, *SHORT, cwd=tmp_path)
    assert (done.returncode, "3 of 3 jobs done" in done.stderr) == (0, True), done.stderr
    with sqlite3.connect(tmp_path / "study.db") as study:
        ended = study.execute("select state, value from trials join trial_values using (trial_id)").fetchall()
        (direction,) = study.execute("select direction from study_directions").fetchone()
    study.close()
    assert [state for state, _ in ended] == ["COMPLETE"] * 3
    assert all(0 < value <= 1 for _, value in ended)
    assert direction == "MAXIMIZE"
