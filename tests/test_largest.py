"""The largest level of a key: ladders, what they come to, `bnlab search`, and the early end of runs that are lost."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers_claims import run_of
from helpers_cli import bnlab, start
from helpers_resume import TABLES, interrupted, plain_summary
from helpers_training import train

from bnlab.claims.decide import decide
from bnlab.claims.ladder import Bracket, Levels, Outcome, Searched, bracket, median, next_level
from bnlab.claims.rule import parse_rule
from bnlab.errors import ConfigError
from bnlab.metrics import metrics
from bnlab.record.read import Run, read_runs
from bnlab.report.drawing import figure_of
from bnlab.report.largest_report import largest_picture, largest_sheet
from bnlab.report.page import sheet_page
from bnlab.runner import pool
from bnlab.runner.supervisor import JobOptions
from bnlab.training import loop

INF = math.inf


def climbed(passes: Any, levels: Levels) -> dict[float, bool]:
    """Return the levels in the order in which they are tried, and whether each passes."""
    passed: dict[float, bool] = {}
    while (level := next_level(passed, levels.all, levels.start, levels.resolution)) is not None:
        assert level not in passed
        passed[level] = passes(level)
    return passed


def descends(curvature: float, rate: float) -> bool:
    """Return whether gradient descent on curvature * w^2 / 2 comes nearer to 0: by theory, below 2 / curvature."""
    w = 1.0
    for _ in range(50):
        w -= rate * curvature * w
    return abs(w) < 1.0


# ---------------------------------------------------------------- ladders


def test_the_largest_rate_of_a_quadratic_is_two_over_its_curvature() -> None:
    rng = np.random.default_rng(0)
    for curvature in np.exp(rng.uniform(math.log(0.05), math.log(2000), 200)):
        levels = Levels(0.01, 100, rng.uniform(1.5, 10), rng.choice([None, 1.02]))
        passed = climbed(lambda rate, c=curvature: descends(c, rate), levels)
        found = bracket(passed)
        assert found.low <= 2 / curvature <= found.high
        assert found.later == 0
        if found.is_closed:
            assert found.high / found.low <= (levels.resolution or levels.factor) * (1 + 1e-4)
            assert list(passed.values()).count(False) <= 2 + 10  # two on the way up, the others by halving
            assert max(passed) <= found.high * levels.factor ** (2 if levels.resolution is None else 3)


def test_what_passes_nowhere_or_everywhere_is_known_on_one_side() -> None:
    levels = Levels(1, 16, 2)
    nowhere = climbed(lambda _: False, levels)
    assert list(nowhere)[:3] == [1, 0.5, 0.25]  # down to a hundredth
    assert bracket(nowhere) == Bracket(0.0, 2**-6)
    everywhere = climbed(lambda _: True, levels)
    assert list(everywhere) == [1, 2, 4, 8, 16]
    assert bracket(everywhere) == Bracket(16, INF)
    assert not bracket(everywhere).is_closed
    below = climbed(lambda level: level < 0.2, levels)
    assert list(below) == [1, 0.5, 0.25, 0.125]
    assert bracket(below) == Bracket(0.125, 0.25)


@pytest.mark.parametrize(
    ("outcomes", "tried", "found"),
    [
        ("PPFFPP", 4, Bracket(2, 4)),  # two in a row end it
        ("PPFPFF", 6, Bracket(2, 4, later=1)),
        ("PPFPFP", 6, Bracket(2, 4, later=2)),
        ("FPFFPP", 4, Bracket(0.0, 1, later=1)),  # nothing is below
        ("PPPPPF", 6, Bracket(16, 32)),
    ],
)
def test_levels_that_pass_above_a_failure_are_counted(outcomes: str, tried: int, found: Bracket) -> None:
    ladder = dict(zip([2.0**i for i in range(6)], outcomes, strict=True))
    passed: dict[float, bool] = {}
    while (level := next_level(passed, list(ladder), 1)) is not None:
        passed[level] = ladder[level] == "P"
    assert (len(passed), bracket(passed)) == (tried, found)


def test_a_level_whose_run_failed_leaves_a_wider_bracket() -> None:
    passed: dict[float, bool] = {}
    while (level := next_level(passed, [1, 2, 8, 16, 32], 1)) is not None:  # without 4
        passed[level] = level < 3
    assert bracket(passed) == Bracket(2, 8)


def test_levels_are_as_one_would_type_them() -> None:
    assert Levels(0.01, 0.1, 2).all == [0.00015625, 0.0003125, 0.000625, 0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08]
    with pytest.raises(ConfigError, match="--to 1: must be at least --from 2"):
        Levels(2, 1, 2)
    with pytest.raises(ConfigError, match="more than 200"):
        Levels(0.01, 100, 1.01)


def test_medians_and_ratios_hold_whatever_the_largest_levels_are() -> None:
    """Each value lies somewhere in its bracket: its median, ratio and interval of ranks lie where they are said to."""
    rng = np.random.default_rng(1)
    for n in (*range(1, 9), 20):
        for _ in range(50):
            true = np.exp(rng.normal(0, 2, (2, n)))
            known = [
                [Bracket(2.0 ** math.floor(math.log2(x)), 2.0 ** math.ceil(math.log2(x))) for x in arm] for arm in true
            ]
            known[0] = [each if x < 20 else Bracket(16, INF) for x, each in zip(true[0], known[0], strict=True)]
            known[1] = [each if x > 0.1 else Bracket(0.0, 0.125) for x, each in zip(true[1], known[1], strict=True)]
            for values, brackets in [
                *zip(true, known, strict=True),
                (true[0] / true[1], [a.over(b) for a, b in zip(*known, strict=True)]),
            ]:
                middle, interval = median(brackets)
                assert middle.low <= np.median(values) <= middle.high
                if n == 1:
                    assert interval is None
                    continue
                rank = {6: 1, 7: 1, 8: 1, 20: 6}.get(n, 1)  # of tables of the sign test
                assert interval is not None
                assert interval.low <= sorted(values)[rank - 1] <= sorted(values)[n - rank] <= interval.high


# ---------------------------------------------------------------- in the language of claims

LEVELS = [2.0**k for k in range(-3, 6)]
RULE = "largest(lr where learned[norm=batch] == 1) / largest(lr where learned[norm=none] == 1) >= 2"


def ladder(name: str, limits: Any, state_of: Any = lambda level, limit: "done") -> list[Run]:
    return [
        run_of(seed, {"train.accuracy": 0.9 if level <= limit else 0.1}, state=state_of(level, limit),
               norm__name=name, optim__lr=level)
        for seed, limit in enumerate(limits) for level in LEVELS
    ]  # fmt: skip


def test_levels_that_were_not_needed_change_no_verdict() -> None:
    rng = np.random.default_rng(2)

    def climbs(level: float, limit: float) -> str:
        return "not needed" if level > 4 * limit else "done"

    for _ in range(20):
        limits = np.exp(rng.normal(1, 0.5, 5)), np.exp(rng.normal(0, 0.5, 5))
        whole = [decide(parse_rule(RULE), ladder("batch", limits[0]) + ladder("none", limits[1]))]
        spared = [decide(parse_rule(RULE), ladder("batch", limits[0], climbs) + ladder("none", limits[1], climbs))]
        assert whole == spared


def test_a_seed_that_is_not_finished_is_left_out_and_one_that_fails_at_once_is_not() -> None:
    batch, none = [4.0, 8.0, 4.0, 8.0], [1.0, 1.0, 2.0, 1.0]
    runs = ladder("batch", batch) + ladder("none", none)
    (whole,) = decide(parse_rule(RULE), runs).parts
    late = ladder("batch", [*batch, 64.0], lambda level, limit: "failed" if level > 1 and limit == 64 else "done")
    (without,) = decide(parse_rule(RULE), late + ladder("none", [*none, 1.0])).parts
    assert (without.n, without.low, without.high) == (4, whole.low, whole.high)
    spared = ladder("none", [*none, 0.0], lambda level, limit: "not needed" if not limit and level > 0.25 else "done")
    (edge,) = decide(parse_rule(RULE), ladder("batch", [*batch, 8.0]) + spared).parts
    assert (edge.verdict, edge.reason) == ("undecided", "edge")


def test_of_two_classes_half_of_the_images_right_is_a_guess() -> None:
    learned = metrics["learned"].derive
    for classes, least in ((2, 0.75), (3, 0.5), (10, 0.5), (None, 0.5)):
        about = {"environment": {"data": {"classes": classes}}} if classes else {}
        for accuracy in (least - 0.01, least):
            assert learned({"curve": {"train.accuracy": [accuracy]}, **about}) == float(accuracy == least)


# ---------------------------------------------------------------- runs that are lost

WILD = ["data.train_size=300", "data.batch_size=32", "trainer.steps=90", "eval.every=20", "eval.probe_samples=64"]
WILD += ["model=mlp", "model.widths=[16]", "schedule=constant", "trainer.threads=1", "trainer.device=cpu"]
WILD += ["norm=batch", "optim.lr=50"]
STOPS = "trainer.stop_when_lost=true"


def losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader(io.StringIO((folder / "steps.csv").read_text()))]


def test_a_run_that_is_lost_ends_where_20_losses_in_a_row_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(WILD, tmp_path / "whole").state == "done"
    above = [loss > max(3 * math.log(10), losses(tmp_path / "whole")[0]) for loss in losses(tmp_path / "whole")]
    last = next(step for step in range(20, 91) if all(above[step - 20 : step]))
    assert 20 < last < 90
    for interval in (0.5, 0.0):  # brought to the host in one go, or one by one
        monkeypatch.setattr(loop, "INTERVAL_SECONDS", interval)
        folder = tmp_path / str(interval)
        ending = train([*WILD, STOPS], folder)
        said = f"lost at step {last}: 20 losses in a row above 3 ln(classes) (trainer.stop_when_lost)"
        status = json.loads((folder / "status.json").read_text())
        assert (ending.state, ending.reason, status["state"], status["error"]) == ("diverged", said, "diverged", said)
        assert losses(folder) == losses(tmp_path / "whole")[:last]
        assert plain_summary(folder)["diverged_at"] == last
    interrupted([*WILD, STOPS], tmp_path / "stopped", step=last - 7)
    assert train([*WILD, STOPS], tmp_path / "stopped").reason == said
    for table in TABLES:
        assert (tmp_path / "stopped" / table).read_bytes() == (tmp_path / "0.0" / table).read_bytes()


@pytest.mark.parametrize(
    "more", [["optim.lr=0.1"], ["norm=none", "model.input_norm=none", "model.input_scale=255", "optim.lr=1e-7"]]
)
def test_one_that_is_not_lost_is_the_same_to_the_bit(tmp_path: Path, more: list[str]) -> None:
    """Also where the first losses are far above those of a guess: they do not grow."""
    for name, key in (("a", []), ("b", [STOPS])):
        assert train([*WILD, *more, *key], tmp_path / name).state == "done"
    if "norm=none" in more:
        assert min(losses(tmp_path / "a")[:30]) > 3 * math.log(10)
    one, other = (plain_summary(tmp_path / name) for name in "ab")
    different = {"identity": "", "config": {}}
    assert one | different == other | different
    for table in TABLES:
        assert (tmp_path / "a" / table).read_bytes() == (tmp_path / "b" / table).read_bytes()


# ---------------------------------------------------------------- as a picture

HOSTILE = "<script>alert(1)</script>\x1b[2J"


def test_a_page_shows_every_level_that_was_tried_and_where_the_largest_lies() -> None:
    tried: dict[float, Outcome] = {0.1: "passes", 0.2: "passes", 0.4: "fails", 0.8: "lost"}
    all_pass: dict[float, Outcome] = {0.1: "passes", 0.2: "passes"}
    arms = [
        Searched("none", {0: Bracket(0.2, 0.4)}, 0, 4, {0: tried}),
        Searched(HOSTILE, {0: Bracket(0.2, INF)}, 0, 2, {0: all_pass}),
        Searched("layer", {}, 0, 0, {}),
    ]
    picture = largest_picture("optim.lr", arms)
    ((panel,),) = picture.rows
    assert [(row.colour, row.cell) for row in panel.series] == [(0, "0.2 to 0.4"), (1, "at least 0.2")]
    (axes,) = figure_of([picture]).axes
    assert axes.get_xscale() == "log"
    looks = [(line.get_xdata(), line.get_marker(), line.get_markerfacecolor()) for line in axes.lines]
    bars = [tuple(places) for places, _, _ in looks if len(places) == 2]
    assert bars[0] == (0.2, 0.4)
    assert bars[1][0] == 0.2
    assert bars[1][1] > 0.8  # open: beyond all that was tried
    marks = [(places[0], sign, face != "none") for places, sign, face in looks if len(places) == 1 and places[0] > 0]
    assert marks == [(0.1, "o", True), (0.2, "o", True), (0.4, "o", False), (0.8, "x", False),
                     (0.1, "o", True), (0.2, "o", True)]  # fmt: skip
    page = sheet_page(largest_sheet("optim.lr", arms, Levels(0.1, 1, 2), "digits"), {}, "bnlab search")
    assert "<script" not in page
    assert "\x1b" not in page
    assert re.search(r">none, seed 0</th><td>0.2 to 0.4</td><td>0.1 0.2</td><td>0.4</td><td>0.8</td>", page)
    assert sheet_page(largest_sheet("optim.lr", arms[2:], Levels(0.1, 1, 2), ""), {}, "bnlab search")


# ---------------------------------------------------------------- the commands

SMALL = ["model=mlp", "model.widths=[16]", "data.train_size=500", "trainer.epochs=4", "eval.every=4"]
SMALL += ["eval.probe_samples=64", "trainer.threads=1", "trainer.device=cpu"]
SEARCH = ["search", "optim.lr", "norm=none,batch", "seed=0,1", *SMALL, "--from", "0.1", "--to", "30", "--factor", "3"]


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_where_a_search_cannot_write_it_trains_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine")
    for out, said in (("search.md", "must end in .html or .svg or .pdf or .png"), ("mine.html", "was not written by"),
                      ("no/search.svg", "does not exist")):  # fmt: skip
        done = bnlab(*SEARCH, "--out", out, cwd=tmp_path)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_search_finds_what_a_whole_sweep_shows_and_trains_nothing_twice(tmp_path: Path) -> None:
    rates = [0.1, 0.3, 0.9, 2.7, 8.1, 24.3]
    sweep = ["norm=none,batch", "seed=0,1", *SMALL, "schedule=constant", STOPS, f"optim.lr={','.join(map(str, rates))}"]
    done = bnlab("train", "-m", *sweep, "--inline", cwd=tmp_path)
    trained = {
        (run["norm.name"], run["seed"], float(run["optim.lr"])): run["learned"] == "1.0" for run in _learned(tmp_path)
    }
    assert len(trained) == 24, done.stderr
    found = bnlab(*SEARCH, "--inline", "-f", "csv", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stderr.splitlines()[-1].startswith("0 runs trained"), found.stderr
    rows = rows_of(found.stdout)
    by_seed = {(row["arm"], row["seed"]): row for row in rows if row["row"] == "seed"}
    assert len(by_seed) == 4
    for (arm, seed), row in by_seed.items():
        passes = [trained[arm, seed, rate] for rate in rates]
        first = passes.index(False)
        assert (float(row["low"]), float(row["high"])) == (rates[first - 1], rates[first])
        base = by_seed["none", seed]
        if arm == "batch":
            assert float(row["ratio_low"]) == pytest.approx(float(row["low"]) / float(base["high"]))
            assert float(row["ratio_high"]) == pytest.approx(float(row["high"]) / float(base["low"]))
    table = bnlab(*SEARCH, "--inline", cwd=tmp_path, COLUMNS="80").stdout
    assert table.startswith("batch's largest lr is ")
    assert max(map(len, table.splitlines())) <= 80


def _learned(place: Path) -> list[dict[str, Any]]:
    return [
        {**{k: str(v) for k, v in run.config.items()}, "learned": str(metrics["learned"].derive(run.summary or {}))}
        for run in read_runs([place / "runs"])[0]
    ]


def test_an_open_end_is_said_and_a_failed_run_is_exit_code_1(tmp_path: Path) -> None:
    words = [
        "search",
        "lr",
        "norm=batch",
        "seed=0",
        *SMALL,
        "trainer.steps=20",
        "--from",
        "0.05",
        "--to",
        "0.2",
        "--inline",
    ]
    top = bnlab(*words, cwd=tmp_path)
    assert top.returncode == 0, top.stderr
    assert top.stdout.startswith("batch's largest lr is at least 0.2, the median of 1 seed\n")
    assert "passes at the highest level with a seed; try a higher --to" in " ".join(top.stdout.split())
    planned = bnlab(*words, "--dry-run", cwd=tmp_path)
    assert planned.stdout.split()[-4:] == ["batch", "1", "9", "3"]
    for name, said in (("found.html", "batch, seed 0"), ("found.svg", "batch, seed 0")):
        drawn = bnlab(*words, "--out", name, cwd=tmp_path)
        assert drawn.returncode == 0, drawn.stderr
        assert drawn.stderr.splitlines()[-2:] == [f"written: {name}", top.stderr.splitlines()[-1].replace("3", "0", 1)]
        assert said in (tmp_path / name).read_text()
    (folder,) = [path.parent for path in (tmp_path / "runs/pool").glob("*/status.json")
                 if json.loads(path.read_text())["config"]["optim"]["lr"] == 0.1]  # fmt: skip
    for path in folder.iterdir():
        path.unlink()
    (folder / "status.json").write_text("[]")
    blocked = bnlab(*words, cwd=tmp_path)
    assert blocked.returncode == 1
    assert folder.name in blocked.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["norm=batch"], "the first word is the key to search"),
        (["optim.lr", "optim.lr=1"], "optim.lr: is what is searched"),
        (["optim.lr", "hydra/launcher=joblib"], "hydra/launcher=joblib: must be basic for --inline"),
        (["optim.lr", "hydra/sweeper=optuna"], "hydra/sweeper: must be basic"),
        (["optim.lr=0.1"], "write bnlab search optim.lr\n"),
        (["optim.rate"], "optim.rate: no such key; did you mean optim.lr?\n"),
        (["model.norm"], "model.norm: no such key; did you mean model.norm_every?\n"),
        (["base_lr"], "base_lr: no such key; did you mean optim.lr?\n"),
        (["seed"], "seed: is no setting of the training\n"),
        (["name"], "name: is no setting of the training\n"),
        (["norm"], "norm: holds no number"),
        (["norm.name", "norm=none,batch"], "norm.name: holds no number"),
        (["trainer.device"], "trainer.device: holds no number"),
        (["norm.momentum", "norm=none,batch", "--to", "1"], "norm.momentum: norm=none"),
        (["data.batch_size", "--from", "8"], "must be a whole number (samples in a batch)\na search tries fractions: "),
        (["model.depth"], "sweep it instead, as bnlab train -m model.depth=1,2,4\n"),
        (["trainer.steps"], "sweep it instead"),
        (
            ["model.dropout"],
            "0.99 (share of activations dropped while training)\nlevels begin at a hundredth of --from, ",
        ),
        (["optim.lr", "norm=none,batch", "--baseline", "layer"], "--baseline layer: no such arm"),
    ],
)
def test_what_cannot_be_searched_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    done = bnlab("search", *words, "--inline", cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "runs/pool").exists()


def test_a_claim_trains_only_the_levels_that_its_rule_depends_on(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    claim = {
        "claim": "mine",
        "question": "Does batch take three times the rate of none?",
        "base": " ".join([*SMALL, "schedule=constant", STOPS, "data=digits"]),
        "train": "norm=none,batch optim.lr=0.1,0.3,0.9,2.7,8.1,24.3,72.9,218.7,656.1",
        "rule": {"all": [f"{RULE[:-4]}>= 1", "rate(learned[norm=batch lr=656.1] == 0) >= 0.1"]},
        "budget": {"quick": {"looks": [3]}},
    }
    (tmp_path / "claims/mine.yaml").write_text(yaml.safe_dump(claim))
    done = bnlab("claim", "run", "mine", "--inline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tried: dict[tuple[str, str], list[tuple[float, bool]]] = {}
    for run in _learned(tmp_path):
        one = tried.setdefault((run["norm.name"], run["seed"]), [])
        one.append((float(run["optim.lr"]), run["learned"] == "1.0"))
    assert len(tried) == 6
    for (norm, _), levels in tried.items():
        passes = [passed for _, passed in sorted(levels)]
        assert len(passes) < 9 or norm == "batch"  # all of batch, for its rate needs one of its levels
        if norm == "none":
            assert passes[-2:] == [False, False]
            assert (False, False) not in itertools.pairwise(passes[:-1])
    again = bnlab("claim", "run", "mine", "--inline", cwd=tmp_path)
    assert again.stderr.startswith("0 runs trained")
    assert again.stdout.splitlines()[3:] == done.stdout.splitlines()[3:]


@pytest.mark.slow
def test_killed_at_random_moments_the_same_search_finds_the_same(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for place in (whole, killed):
        place.mkdir()
    began = time.monotonic()
    wanted = bnlab(*SEARCH, "-f", "csv", cwd=whole, supervised=True)
    seconds = time.monotonic() - began
    draw = random.Random(0)
    for _ in range(8):
        with start(*SEARCH, cwd=killed, supervised=True) as command:
            time.sleep(draw.uniform(0.3, seconds / 2))
            command.kill()
    time.sleep(1.5)  # for the last worker, which ends after its parent
    found = bnlab(*SEARCH, "-f", "csv", cwd=killed, supervised=True)
    assert (found.returncode, found.stdout) == (0, wanted.stdout), found.stderr


def test_what_submitit_left_in_the_pool_goes_once_all_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".submitit-a1b2c3d4/0", "0123456789abcdef"):
        (tmp_path / "runs" / "pool" / name).mkdir(parents=True)
    assert pool.train([], {}, pool.Launch(None, JobOptions())) == {}  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "runs" / "pool").iterdir()] == ["0123456789abcdef"]
