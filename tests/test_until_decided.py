"""`bnlab train -m ... --until-decided`: a plan first, seeds in looks, and an end that says what was found."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers_cases import for_each
from helpers_cli import QUICK, bnlab, start
from helpers_launchers import run, settings
from helpers_runs import make_run
from scipy import stats

from bnlab.compare.comparison import compare
from bnlab.compare.looks import critical_level, sequential_p
from bnlab.errors import ConfigError
from bnlab.record.decision_plan import DecisionPlan
from bnlab.record.sweep_record import SweepRecord
from bnlab.runner.resume import about_looks
from bnlab.runner.until_decided import Wishes, plan_of, wishes_of
from bnlab.training.job import Job

RATES = ["optim.lr=0.005,0.1,0.3", "norm=batch", *QUICK]  # the first is far worse, the others are about equal
DECIDE = ["--until-decided", "--baseline", "0.1", "--margin", "40"]


def states(folder: Path) -> list[str]:
    paths = sorted(folder.glob("*/status.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text())["state"] for path in paths]


def seeds_by_arm(place: Path) -> dict[str, int]:
    """Return how many seeds each arm was trained with."""
    counts: Counter[str] = Counter()
    for path in place.glob("runs/2*/*/summary.json"):
        counts[str(json.loads(path.read_text())["config"]["optim"]["lr"])] += 1
    return dict(counts)


def compared(place: Path, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bnlab("compare", "-f", "json", *options, cwd=place).stdout)
    return found


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    rows = [row for row in found["rows"] if not row["is_baseline"]]
    return {row["label"]: row["vs_baseline"]["test_accuracy"]["verdict"] for row in rows}


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A sweep of three rates with at most six seeds, and what it printed."""
    place = tmp_path_factory.mktemp("decided")
    done = bnlab("train", "-m", "seed=range(6)", "--looks", "3,5", *DECIDE, *RATES, cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done.stdout, done.stderr


def test_decided_arms_get_no_further_seeds(decided: tuple[Path, str, str]) -> None:
    place, printed, said = decided
    counts = seeds_by_arm(place)
    found = compared(place)
    assert verdicts(found) == {"0.005": "worse", "0.3": "no difference that matters"}
    assert max(counts["0.005"], counts["0.3"]) == counts["0.1"]  # the baseline has as many as any arm needs
    (folder,) = place.glob("runs/2*")
    trained = sum(counts.values())
    assert trained < 18
    assert Counter(states(folder)) == {"done": trained, "not needed": 18 - trained}
    *_, first, second, price = printed.splitlines()
    assert first.startswith("lr=0.005 is worse than lr=0.1 in test accuracy: -")
    assert second.startswith("lr=0.3 has no difference from lr=0.1 in test accuracy that matters: ")
    assert price == f"decided with {trained} of 18 runs"
    assert f"{trained} of 18 jobs done, {18 - trained} not needed; " in said
    assert "not started" not in said + bnlab("compare", cwd=place).stderr


def test_the_plan_lies_in_the_folder_before_the_first_run(decided: tuple[Path, str, str]) -> None:
    (folder,) = decided[0].glob("runs/2*")
    plan, record = (json.loads((folder / name).read_text()) for name in ("plan.json", "sweep.json"))
    assert plan["sha256"] == record["plan"]
    assert (plan["metric"], plan["baseline"], plan["looks"], plan["margin"]) == ("test_accuracy", "0.1", [3, 5, 6], 40)
    assert (folder / "plan.json").stat().st_mtime_ns < min(p.stat().st_mtime_ns for p in folder.glob("*/steps.csv"))


def test_its_page_has_the_command_line_that_makes_the_plan_again(decided: tuple[Path, str, str]) -> None:
    place = decided[0]
    assert bnlab("report", "latest", "--out", "page.md", cwd=place).returncode == 0
    (line,) = (line for line in (place / "page.md").read_text().splitlines() if "bnlab train" in line)
    words = shlex.split(line.strip("- `"))
    again = bnlab(*words[1:], "--dry-run", cwd=place)
    assert again.returncode == 0, again.stderr
    (folder,) = place.glob("runs/2*")
    plan = DecisionPlan.read(folder)
    assert plan is not None
    assert words[words.index("--until-decided") :] == plan.options()
    assert (plan.options()[-6:-4], plan.options()[-4:-2]) == (["--looks", "3,5,6"], ["--margin", "40"])


def test_compare_follows_the_plan_in_every_format(decided: tuple[Path, str, str]) -> None:
    place = decided[0]
    found = compared(place)
    assert (found["schema"], found["baseline"], found["margin"], found["planned"]) == (2, "0.1", 40.0, True)
    assert any(note.startswith("Looks at 3, 5, 6 seeds, as planned: p is corrected") for note in found["notes"])
    for width in ("80", "120"):
        table = bnlab("compare", cwd=place, COLUMNS=width).stdout
        assert "worse" in table
        assert "no difference" in table
        assert "a difference within ±40 points does not matter" in table.replace("\n", " ")
    assert "no difference that matters" in bnlab("compare", "-f", "md", cwd=place).stdout
    rows = csv.DictReader(io.StringIO(bnlab("compare", "-f", "csv", cwd=place).stdout))
    assert {r["arm"]: r["verdict"] for r in rows if r["metric"] == "test_accuracy" and r["baseline"] == "false"} == (
        verdicts(found)
    )


@for_each(
    "change, said",
    [
        (["--margin", "1"], "the plan has the margin 40"),
        (["--metric", "valid_accuracy"], "the plan decides by test_accuracy"),
        (["--test", "signs"], "the plan tests by t"),
        (["--baseline", "0.3"], "the plan compares with 0.1"),
    ],
)
def test_another_question_than_the_plans_is_exploratory(
    change: list[str], said: str, decided: tuple[Path, str, str]
) -> None:
    notes = compared(decided[0], *change)["notes"]
    assert any(note.startswith("Exploratory") and said in note for note in notes), notes


@pytest.mark.parametrize("harm", ["changed", "lost", "no plan"])
def test_a_plan_that_was_changed_makes_the_comparison_exploratory(
    harm: str, decided: tuple[Path, str, str], tmp_path: Path
) -> None:
    shutil.copytree(decided[0] / "runs", tmp_path / "runs")
    (plan,) = tmp_path.glob("runs/2*/plan.json")
    if harm == "lost":
        plan.unlink()
    else:
        plan.write_text(plan.read_text().replace("40", "30") if harm == "changed" else '{"looks": [[]]}')
    notes = compared(tmp_path)["notes"]
    assert any("the plan of the sweep was changed or lost after its runs began" in note for note in notes), notes


@pytest.mark.slow
def test_resume_has_nothing_to_do_and_takes_new_arms_and_new_seeds(
    decided: tuple[Path, str, str], tmp_path: Path
) -> None:
    shutil.copytree(decided[0] / "runs", tmp_path / "runs")
    (folder,) = tmp_path.glob("runs/2*")
    before = seeds_by_arm(tmp_path)
    again = bnlab("resume", str(folder), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert seeds_by_arm(tmp_path) == before
    assert "decided with" in again.stdout
    more = bnlab("resume", str(folder), "optim.lr=0.005,0.1,0.3,0.004", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "lr=0.004 is worse than lr=0.1" in more.stdout
    after = seeds_by_arm(tmp_path)
    assert 3 <= after["0.004"] <= 6
    assert "goes on with its plan: test_accuracy, looks at 3, 5, 6 seeds\n" in more.stderr
    last = bnlab("resume", str(folder), "seed=range(8)", cwd=tmp_path)
    assert last.returncode == 0
    assert "looks at 3, 5, 6, 8 seeds; seeds after its last look make the comparison exploratory" in last.stderr
    assert json.loads((folder / "sweep.json").read_text())["seeds"] == [6, 8]
    notes = compared(tmp_path)["notes"]
    assert any("seeds were added after the last look of the plan" in note for note in notes), notes


def sweep_of(place: Path, name: str, seeds: range, *looks: int) -> None:
    """Write a sweep of two arms with these seeds, which had as many seeds as `looks` say."""
    for norm in ("none", "batch"):
        for seed in seeds:
            accuracy = [0.1, 0.9 + 0.001 * ((7 * seed) % 5) + 0.002 * (norm == "batch") * (1 + seed % 2)]
            make_run(place / name / f"{norm}{seed}", norm=norm, seed=seed, test_accuracy=accuracy)
    SweepRecord((), None, search=False, seeds=looks).write(place / name)


@for_each(
    "planned, looks, before, errored, said",
    [
        (True, (5,), 5, False, "goes on with its plan: test_accuracy, looks at 3, 5 seeds"),
        (True, (5, 8), 5, False, "looks at 3, 5, 8 seeds; seeds after its last look make the comparison exploratory"),
        (True, (5,), 5, True, "its plan is left aside"),
        (False, (3, 5), 3, False, "5 seeds an arm after 3: a further look, for which p is corrected"),
        (False, (3,), 3, False, None),
    ],
)
def test_resuming_says_first_what_it_is_to_the_looks(
    tmp_path: Path, planned: bool, looks: tuple[int, ...], before: int, errored: bool, said: str | None
) -> None:
    plan = DecisionPlan("test_accuracy", "none", (3, 5), None, "t")
    plan.write(tmp_path)
    record = SweepRecord((), None, search=False, seeds=looks, plan=plan.sha256 if planned else None)
    found = about_looks(tmp_path, record, before, errored)
    assert found == said if said is None else said in str(found)


def test_without_a_plan_each_extension_is_a_look(tmp_path: Path) -> None:
    sweep_of(tmp_path, "one", range(5), 5)
    make_run(tmp_path / "alone", norm="none", seed=9)  # which is no look
    found = compare([tmp_path])
    (row,) = (row for row in found.sections[0].rows if not row.is_baseline)
    plain = row.vs_baseline["test_accuracy"]
    assert not any("Looks at" in note for note in found.sections[0].notes)
    sweep_of(tmp_path, "one", range(5), 3, 5)
    sweep_of(tmp_path, "two", range(3, 8), 5)  # a second sweep of the same arms is a look, too; three seeds are new
    found = compare([tmp_path])
    (row,) = (row for row in found.sections[0].rows if not row.is_baseline)
    assert "Looks at 3, 5, 8 seeds: p is corrected" in found.sections[0].notes[0]
    assert found.sections[0].notes[0].endswith(f"are at {100 * (1 - critical_level((3, 5, 8), 0.05)):.1f}% each.")
    shown = row.vs_baseline["test_accuracy"]
    assert shown.n == 8
    t = shown.value / shown.sd * 8**0.5
    assert shown.p == pytest.approx(sequential_p((3, 5, 8), 2 * stats.t.sf(abs(t), 7)), rel=1e-9)
    half = stats.t.ppf(1 - critical_level((3, 5, 8), 0.05) / 2, 7) * shown.sd / 8**0.5
    assert shown.half == pytest.approx(half, rel=1e-9)
    assert plain.n == 5


def test_only_looks_that_are_over_count(tmp_path: Path) -> None:
    sweep_of(tmp_path, "sweep", range(5), 8)
    for i, folder in enumerate(
        sorted(tmp_path.glob("sweep/*/"), key=lambda path: (path.name[:4] != "none", path.name))
    ):
        folder.rename(folder.with_name(str(i)))  # as a sweep numbers its jobs
    plan = DecisionPlan("test_accuracy", None, (3, 5, 8))
    plan.write(tmp_path / "sweep")
    SweepRecord((), None, search=False, seeds=(8,), plan=plan.sha256).write(tmp_path / "sweep")
    for seed in (2, 4):
        shutil.rmtree(tmp_path / "sweep" / str(seed))
    make_run(tmp_path / "sweep" / "2", norm="none", seed=2)
    make_run(tmp_path / "sweep" / "4", norm="none", seed=4, state="killed")
    (row,) = (row for row in compare([tmp_path]).sections[0].rows if not row.is_baseline)
    assert row.vs_baseline["test_accuracy"].n == 3
    shutil.rmtree(tmp_path / "sweep" / "2")
    make_run(tmp_path / "sweep" / "2", norm="none", seed=2, state="killed")
    (row,) = (row for row in compare([tmp_path]).sections[0].rows if not row.is_baseline)
    assert (row.vs_baseline["test_accuracy"].p, row.verdicts["test_accuracy"]) == (None, "undecided")


@for_each(
    "given, said",
    [
        ({"margin": 1.0}, "--margin: goes with --until-decided"),
        ({"until_decided": True, "multirun": False}, "--until-decided: needs a sweep"),
        ({"until_decided": True, "looks": "3,x"}, "--looks 3,x: must be numbers of seeds"),
    ],
)
def test_options_without_a_plan_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        wishes_of(**{"until_decided": False, "multirun": True, "looks": None} | given)


@for_each(
    "norms, seeds, wishes, said",
    [
        (("none", "batch"), 1, Wishes(), "1 seed decides nothing by t\ngive the most"),
        (("none", "batch"), 2, Wishes(), "2 seeds decide nothing by t"),
        (("none", "batch"), 5, Wishes(test="signs"), "5 seeds decide nothing by signs"),
        (("batch",), 5, Wishes(), "no arm has a baseline"),
        (("none", "batch"), 5, Wishes(baseline="layer"), "--baseline layer: no such arm\nthere are: none, batch"),
        (("none", "batch", "batch"), 5, Wishes(), "a seed is there twice"),
        (("none", "batch"), 5, Wishes(metric="speed"), "speed"),
        (
            ("none", "batch"),
            5,
            Wishes(metric="ics"),
            "--metric ics: no run has it with measure=cheap\nset measure=land",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(norms: tuple[str, ...], seeds: int, wishes: Wishes, said: str) -> None:
    trees = [
        {"seed": seed, "norm": {"name": norm}, "data": {"name": "digits"}, "measure": "cheap"}
        for norm in norms
        for seed in range(seeds)
    ]
    with pytest.raises(ConfigError, match=said):
        plan_of(wishes, [(Job(Path(str(i)), i), tree) for i, tree in enumerate(trees)])


def test_a_refused_plan_leaves_nothing_behind(tmp_path: Path) -> None:
    done = bnlab("train", "-m", "norm=none,batch", "seed=0,1", "--until-decided", *QUICK, cwd=tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, []), done.stderr
    assert "seed=range(20)" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local", "submitit_slurm"])
def test_every_launcher_decides_alike(launcher: str, decided: tuple[Path, str, str], tmp_path: Path) -> None:
    words = ["train", "-m", f"hydra/launcher={launcher}", "seed=range(6)", "--looks", "3,5", *DECIDE, *RATES]
    done = run(tmp_path, settings(tmp_path), *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == decided[1].splitlines()[-3:]
    assert seeds_by_arm(tmp_path) == seeds_by_arm(decided[0])


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_its_plan(decided: tuple[Path, str, str], tmp_path: Path) -> None:
    words = ["train", "-m", "seed=range(6)", "--looks", "3,5", *DECIDE, *RATES]
    with start(*words, cwd=tmp_path, supervised=True, session=True) as command:
        while len(list(tmp_path.glob("runs/2*/*/summary.json"))) < 5:
            assert command.poll() is None
        command.send_signal(signal.SIGKILL)
        command.wait()
    (folder,) = tmp_path.glob("runs/2*")
    resumed = bnlab("resume", str(folder), cwd=tmp_path, supervised=True)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.splitlines()[-3:] == decided[1].splitlines()[-3:]
    assert seeds_by_arm(tmp_path) == seeds_by_arm(decided[0])


def test_a_plan_by_signs_is_told_as_one(tmp_path: Path) -> None:
    """Four pairs are too few for signs, and enough for t: whoever reads the folder is told which."""
    plan = DecisionPlan("test_accuracy", "none", (6, 8), test="signs")
    plan.write(tmp_path)
    SweepRecord((), None, False, (8,), plan.sha256).write(tmp_path)
    for seed in range(4):
        for place, (norm, end) in enumerate((("none", 0.9), ("batch", 0.95))):
            make_run(tmp_path / str(2 * seed + place), norm=norm, seed=seed, test_accuracy=[0.1, end + seed**2 / 900])
    (section,) = compare([tmp_path]).sections
    assert section.test == "signs"
    assert any("fewer than 6 pairs" in note for note in section.notes)
