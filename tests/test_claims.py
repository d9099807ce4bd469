"""Claim files, the pool of runs, and the commands of `bnlab claim`."""

from __future__ import annotations

import io
import json
import math
import random
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_cli import bnlab, start
from helpers_launchers import run as run_as
from helpers_launchers import settings

from bnlab.claims.claim import claim_files, find_claims, read_claim
from bnlab.claims.outcome import PartVerdict
from bnlab.claims.outside import OUTSIDE
from bnlab.claims.rule import parse_rule, parts_of
from bnlab.claims.verdict import ClaimVerdict, folder_of, read_verdict
from bnlab.config.files import conf_dir
from bnlab.errors import ConfigError
from bnlab.record.read import read_runs
from bnlab.report.claim_page import page
from bnlab.report.claim_report import card, chance_line, headline
from bnlab.report.console import Terminal
from bnlab.runner.claims import Wish, plan_of

SMALL = "data=digits model=mlp model.widths=[8] trainer.steps=5 eval.probe_samples=64 trainer.threads=1"
MINE: dict[str, Any] = {
    "claim": "mine",
    "question": "Is batch better than none?",
    "quote": "it <b>is</b> \x1b[31m & better",
    "source": "001",
    "expects": {"verdict": "confirmed", "because": "they say so"},
    "base": SMALL,
    "train": "norm=none,batch",
    "rule": "test_accuracy[norm=batch] - test_accuracy[norm=none] > 60",
    "budget": {"quick": {"looks": [3, 4]}},
}


def write(place: Path, changes: Mapping[str, Any] = {}, name: str = "mine") -> Path:
    """Write a claim; a key that is changed to None is left out."""
    (place / "claims").mkdir(exist_ok=True)
    tree = {key: value for key, value in (MINE | {"claim": name} | dict(changes)).items() if value is not None}
    path = place / "claims" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    return path


def verdict_of(place: Path, name: str = "mine", budget: str = "quick") -> ClaimVerdict:
    found = read_verdict(place / "runs" / "claims" / name / budget)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a claim was run; to be copied, not changed."""
    write(place := tmp_path_factory.mktemp("claimed"))
    assert bnlab("claim", "run", "mine", "--inline", cwd=place).returncode == 0
    return place


@pytest.fixture
def claimed(first_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first_run, tmp_path, dirs_exist_ok=True))


# ---------------------------------------------------------------- files


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"rules": "x"}, "rules: no such key; did you mean rule?"),
    "code": ({"rule": "__import__('os').system('touch x') > 1"}, "no such metric"),
    "python object": ({"train": "norm._target_=os.system"}, "norm._target_"),
    "hydra": ({"train": "hydra.run.dir=/tmp"}, "a key of a training or bench"),
    "launcher": ({"train": "hydra/launcher=joblib"}, "a key of a training or bench"),
    "flag": ({"train": "--config-dir=/etc"}, "must be KEY=VALUE"),
    "multirun": ({"train": "-m norm=none,batch"}, "train.0: -m: leave it out; a claim always sweeps"),
    "interpolation": ({"train": "model.widths=${oc.env:HOME}"}, "an interpolation is not allowed"),
    "absolute": ({"train": "data=folder data.path=/etc"}, "inside of the working directory"),
    "above": ({"base": "data.root=a/../../b"}, "inside of the working directory"),
    "seed": ({"train": "norm=batch seed=1"}, "is set by bnlab"),
    "two arms": ({"rule": "test_accuracy > 1"}, "means 2 arms, and must mean one"),
    "no arm": ({"rule": "test_accuracy[norm=bach] > 1"}, "norm.name is none, batch"),
    "no such key": ({"train": "norm=batch optim.rate=1", "rule": "test_loss > 1"}, "optim.rate"),
    "no question": ({"question": "It is better."}, "must end with a question mark"),
    "name": ({"claim": "../x"}, "claim=../x: must be mine"),
    "deep rule": ({"rule": {"all": [{"all": [{"all": ["test_loss > 1"]}]}]}}, "nested more than 2 levels"),
    "huge": ({"caveats": ["x" * 2**20]}, "cannot be read: File too large"),
    "looks": ({"budget": {"quick": {"looks": [5, 3]}}}, "budget.quick.looks=[5, 3]: must be rising"),
    "many seeds": ({"budget": {"quick": {"looks": [10**9]}}}, "must be rising numbers"),
    "budget": ({"budget": {"slow": {}}}, "budget.slow: no such budget"),
    "expects": ({"expects": {"verdict": "yes"}}, "must be one of confirmed, refuted, undecided"),
    "nothing to run": ({"train": None}, "must have a sweep"),
    "a list": ({"rule": [1]}, "must be a sentence"),
    "a misfit": ({"train": "norm=batch data.batch_size=1", "rule": "test_loss > 1"}, "one value a channel"),
}
FIGURES = {
    "loss_range[norm=none] < 1": "loss_range[norm=none]: no run has it with measure=cheap\nset measure=landscape",
    "slope(log lambda_max[norm=none] over lr) < 1": "with measure=cheap\nset measure=curvature",
    "rate(mate_noise[norm=batch] > 1) > 0.5": "with measure=cheap\nset measure=full",
    "exact(fold_error[norm=batch]) < 1": "with eval.stats=running\nset eval.stats=folded",
    "samples_needed[norm=batch] < 1": "is of `bnlab recalibrate SWEEP`, and this is a training",
    "exact(check_error[norm=batch]) < 1": "is of the lines `check` of a claim, and this is a training",
    "slope(test_loss[norm=batch] over depth) < 1": "is no figure of each layer\nthese are: mean_z, log_std_ratio",
    "exact(test_loss[norm=layer]) < 1": "is of a training, and this is a check",
    "norm_share[norm=rms] < 1": "is measured with bench.mode=profile, and this is steps",
}
SOME = {"train": "norm=none,batch optim.lr=0.1,0.2,0.4", "bench": "norm=rms", "check": "norm=layer property=chain"}
HOSTILE |= {
    text: (SOME | {"rule": {"holds": text} | ({} if re.search("over lr|layer", text) else {"best_of": "lr"})}, said)
    for text, said in FIGURES.items()
}  # fmt: skip
BENCHED = {"train": None, "rule": "step_ratio[norm=batch] < 2"}
HOSTILE |= {
    "no meter of a guard": ({"requires": ["ics[norm=none] < 1"]}, "requires: ics[norm=none] < 1: ics[norm=none]:"),
    "nothing dropped": ({"base": "measure=statistics", "rule": "variance_shift[norm=batch] > 1"}, "set model.dropout"),
    "nothing validated": (
        {"base": f"{SMALL} data.valid_size=0", "rule": "gen_gap[norm=batch] > 1"}, "data.valid_size=0 leaves no"
    ),
    "no list of meters with it": (
        {"base": "measure=[gradients,activations]", "rule": "drift_slope[norm=batch] > 1"},
        "with measure=[gradients,activations]\nset measure=statistics",
    ),
    "no such key of a bench": (BENCHED | {"bench": "norm=none,batch bench.speed=1"}, "bench.speed"),
    "no such mode of a bench": (BENCHED | {"bench": "norm=none,batch bench.mode=x"}, "bench.mode=x: must be one of"),
    "no such rate in a bench": (BENCHED | {"bench": "norm=none,batch optim.lr=fast"}, "optim.lr=fast: must be a num"),
    "no such key of a check": (
        {"train": None, "check": "norm=rms norm.size=3 property=chain", "rule": "exact(check_error) < 1"}, "norm.size"
    ),
    "nothing to choose from": (
        {"rule": {"holds": "test_accuracy[norm=batch] > 1", "best_of": "lr"}}, "all its runs have optim.lr=0.1"
    ),
    "no text": ({"question": None}, "question=null: must be text"),
    "few seeds": ({"budget": {"quick": {"looks": [1, 2]}}}, "looks=[1, 2]: 3 seeds or more can decide test_acc"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_wrong_with_a_claim_is_said_before_anything_starts(case: str, tmp_path: Path) -> None:
    changes, said = HOSTILE[case]
    path = write(tmp_path, changes)
    with pytest.raises(ConfigError) as error:
        plan_of(read_claim(path), Wish(), _preflight)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "claims"]


def test_a_time_to_no_target_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"base": "data=folder data.path=photos", "rule": "steps_to_target[norm=batch] > 1"})
    with pytest.raises(ConfigError, match="data=folder has no usual target\ncompare an accuracy"):
        plan_of(read_claim(path), Wish(), identities)


def _preflight(trees: Any) -> list[str]:
    from bnlab.experiment.run import preflight

    return preflight(trees)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/object/apply:os.system [x]", "the tag"),
        ("a: &a [x, x, x, x, x, x, x, x]\n" + "".join(f"b{i}: [*a, *a, *a]\n" for i in range(900)), "more than"),
        ("a: " + "[" * 100, "nested more than 20 levels"),
        ("claim: mine\nclaim: mine", "the key claim is given twice"),
        ("- a", "is no mapping"),
    ],
)  # fmt: skip
def test_a_file_is_looked_at_before_it_is_read(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_claim(path)


def test_a_file_that_is_no_claim_is_named_once_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("42")
    with pytest.raises(ConfigError) as error:
        read_claim(Path("mine.yaml"))
    assert str(error.value) == "mine.yaml: is no mapping of keys to values"


def test_both_budgets_of_a_claim_are_checked(tmp_path: Path) -> None:
    full = {"overrides": "optim.rate=1"}
    write(tmp_path, {"budget": {"full": full}})
    done = bnlab("claim", "check", "mine", cwd=tmp_path)
    assert (done.returncode, "claims/mine.yaml: optim.rate" in done.stderr) == (2, True), done.stderr
    write(tmp_path, {"budget": {"full": {"overrides": "data=mnist data.root=nowhere"}}})
    done = bnlab("claim", "check", "mine", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "claims/mine.yaml: right; at most 16 trainings\n")
    assert "the full budget is not checked: claims/mine.yaml: " in done.stderr


def test_a_claim_may_not_be_a_link_to_a_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "mine.yaml").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="leads out of"):
        read_claim(tmp_path / "claims" / "mine.yaml")


def test_the_command_line_refuses_with_exit_code_2(tmp_path: Path) -> None:
    write(tmp_path, HOSTILE["two arms"][0])
    done = bnlab("claim", "run", "mine", "--inline", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("claims/mine.yaml: rule: ")
    assert not (tmp_path / "runs").exists()
    for wrong in (["mien"], ["mine", "seed=1"], ["mine", "--seeds", "0"], ["norm=batch"]):
        assert bnlab("claim", "run", *wrong, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("show all", "all: must name one claim\n`bnlab claim list` names all\n"),
        ("show placement mine", "placement mine: must name one claim\n`bnlab claim list` names all\n"),
        ("new all", "all: means every claim\nchoose another name\n"),
        (f"show {'x' * 300}.yaml", f"{'x' * 300}.yaml: no such file\n"),
        ("show 'what makes steps slow 1.5 times'", "slow 1.5 times: no such claim"),
        ("show 'what makes steps slow'", "`bnlab claim list WORD` finds claims by their words\n"),
        (
            "report mine --out x.png",
            "--out x.png: must end in .html, .md or .json\nthe page, .html, has the pictures\n",
        ),
        ("run mine --seeds 2 --dry-run", "--seeds 2: 3 seeds or more can decide test_accuracy[norm=batch]"),
        ("run mine.yaml claims/mine.yaml", "claims/mine.yaml: mine.yaml is of the same name\nname one of them\n"),
    ],
)
def test_a_mistake_is_answered_with_the_way_out(words: str, said: str, tmp_path: Path) -> None:
    shutil.copy(write(tmp_path), tmp_path / "mine.yaml")
    done = bnlab("claim", *shlex.split(words), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims", "mine.yaml"]


@pytest.mark.parametrize("word", ["compare", "report", "plot curves", "show latest"])
def test_where_only_claims_have_runs_commands_say_so(word: str, tmp_path: Path) -> None:
    (tmp_path / "runs/claims/mine/quick").mkdir(parents=True)
    said = "runs: has only runs of claims and searches\n`bnlab claim report` shows verdicts"
    done = bnlab(*word.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"{said}\n")
    (tmp_path / "runs/pool").mkdir()
    assert bnlab(*word.split(), cwd=tmp_path).stderr == f"{said}; runs/pool as PATH takes all these runs\n"
    (tmp_path / "runs/mine").mkdir()
    assert "runs/claims" not in bnlab(*word.split(), cwd=tmp_path).stderr


def test_several_names_of_one_file_are_one_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [claim.name for claim in find_claims(["mine", "claims/mine.yaml", "./claims/mine.yaml"])] == ["mine"]


@pytest.mark.parametrize(
    ("how", "parts", "said"),
    [
        ("all", 4, "all 4 parts have to hold"),
        ("all", 2, "both parts have to hold"),
        ("any", 3, "one of 3 parts has to hold"),
    ],
)
def test_a_headline_says_how_many_parts_a_rule_needs(how: str, parts: int, said: str) -> None:
    rule = parse_rule({how: [f"test_accuracy[norm=batch] > {n}" for n in range(parts)]})
    part = PartVerdict("", "", "difference", "", "> 0", (0.0,), "refuted", None, "", 0.0, 0.0, 0.0, n=5)
    found = ClaimVerdict(
        "mine", "quick", (), "", False, "refuted", None, (part,) * parts, (), (5,), 5, (), (), 0, "1", "", 1.0, 0.0
    )
    assert headline(rule, found) == f"REFUTED on this machine ({said}): {parts} refuted"


@pytest.mark.parametrize(
    ("strengths", "stand"),
    [
        ([{"": 0.001}, {"": 0.02}], 2),
        ([{"": 0.001}, {"": 0.03}], 2),
        ([{"": 0.03}, {"": 0.03}], 0),  # 2 x 0.03
        ([{"": 0.001, "exact": None}, {"exact": None}], 1),  # what is exact hangs on no chance, and is no test
        ([{"": 0.001, "rate": None}, {"": 0.06}], 0),  # of a part that has to hold it is not known
    ],
)
def test_a_star_is_for_what_stands_after_holms_correction(
    strengths: list[dict[str, float | None]], stand: int, tmp_path: Path
) -> None:
    claim = read_claim(write(tmp_path))
    pairs = []
    for parts in strengths:
        made = tuple(
            PartVerdict("", "", kind, "", "> 0", (0.0,), "confirmed", n=5, strength=strength)
            for kind, strength in parts.items()
        )
        found = ClaimVerdict(
            "mine", "quick", (), "", False, "confirmed", None, made, (), (5,), 5, (), (), 0, "1", "", 1.0, 0.0
        )
        pairs.append((claim, found))
    assert f"; {stand} of those decided by seeds stand after Holm's correction" in chance_line(pairs)


SHIPPED = sorted((conf_dir() / "claim").glob("*.yaml"))


def identities(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    return [json.dumps(tree, sort_keys=True) for tree in trees]


@pytest.mark.slow
def test_every_shipped_claim_is_composed_and_its_cells_are_arms() -> None:
    assert len(SHIPPED) >= 110
    for path in SHIPPED:
        claim = read_claim(path)
        for budget in ("quick", "full"):
            plan = plan_of(claim, Wish(budget, seeds=3), identities)
            assert plan.trainings or plan.benches or plan.checks
        assert claim.sources
        assert claim.quotes
        assert claim.because


def test_what_meters_read_is_of_trainings_with_them_and_of_no_evaluation_again() -> None:
    claim = read_claim(next(path for path in SHIPPED if path.stem == "stable-gradient-flow"))
    plan = plan_of(claim, Wish("quick", seeds=3), identities)
    assert [wanted.base for wanted in plan.trainings] == [None] * 6
    assert all(wanted.run.config["measure"] == "gradients" for wanted in plan.trainings)


def test_what_the_worked_examples_of_rules_say_can_be_said() -> None:
    """A ratio for all, equivalence, exactness, slope, largest rate, rate, two clocks, differences of differences."""
    texts = [path.read_text() for path in SHIPPED]
    for word in ("step_ratio", "in [-1, 1]", "exact(", "slope(log", "largest(", "rate(", "* step_ratio", "best_of: ",
                 "for: {", "all:", "over depth", ")) - ("):  # fmt: skip
        assert any(word in text for text in texts), word


# ---------------------------------------------------------------- verdicts


def test_a_claim_runs_once_and_is_read_afterwards(tmp_path: Path) -> None:
    write(tmp_path)
    first = bnlab("claim", "run", "mine", "--inline", cwd=tmp_path, COLUMNS="80")
    assert first.returncode == 0, first.stderr
    assert "REFUTED on this machine" in first.stdout
    assert "note      not learned: norm=none (3 of 3 runs)\n" in first.stdout
    assert "expected confirmed (they say so): goes against it" in " ".join(first.stdout.split())
    assert max(map(len, first.stdout.splitlines())) <= 80
    assert "\x1b" not in first.stdout
    verdict = verdict_of(tmp_path)
    assert (verdict.verdict, verdict.exploratory, verdict.failed, len(verdict.runs)) == ("refuted", False, 0, 6)
    again = bnlab("claim", "run", "mine", "--inline", "--expect", "refuted", cwd=tmp_path)
    assert again.returncode == 0
    assert again.stderr.startswith("0 runs trained")
    assert bnlab("claim", "run", "mine", "--inline", "--expect", "confirmed", cwd=tmp_path).returncode == 1
    # another claim has the same runs, and those that anybody made
    write(tmp_path, {"rule": "test_accuracy[norm=none] - test_accuracy[norm=batch] > 60"}, "turned")
    assert bnlab("claim", "run", "turned", "--inline", cwd=tmp_path).stderr.startswith("0 runs trained")
    for word in (["list"], ["show", "mine"], ["report"]):
        shown = bnlab("claim", *word, cwd=tmp_path)
        assert shown.returncode == 0
        assert "refuted" in shown.stdout.lower()
    assert bnlab("claim", "report", "--out", "verdicts.html", cwd=tmp_path).returncode == 0
    assert "<dd>not learned: norm=none (3 of 3 runs)</dd>" in (tmp_path / "verdicts.html").read_text()


def test_a_card_breaks_no_sentence_and_says_what_its_words_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    of = "test_accuracy[norm=batch batch_size=64] - test_accuracy[norm=none batch_size=64]"
    named = {"holds": "exact(ece[norm=batch]) <= 0", "label": "ece"}
    claim = read_claim(write(tmp_path, {"rule": {"all": [f"{of} > 60", f"{of} > 70", named]}}))
    first = PartVerdict(
        f"{of} > 60", of, "difference", "points", "> 60", (60.0,), "undecided", "wide", "the interval includes 60",
        62.0, 50.0, 75.0, n=5,
    )  # fmt: skip
    second = replace(first, text=f"{of} > 70", region="> 70", thresholds=(70.0,))
    exact = PartVerdict(
        named["holds"], "ece", "exact", "points", "<= 0", (0.0,), "confirmed", None, "", 0.0, 0.0, 0.0, n=5
    )
    found = ClaimVerdict(
        "mine", "quick", (), claim.rule_sha256, False, "undecided", "wide", (first, second, exact), (), (3, 5), 5, (),
        (), 0, "1", "digits", 1.0, 0.0,
    )  # fmt: skip
    out = Terminal(stream := io.StringIO())
    out.print(card(claim, found, out))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "UNDECIDED (all 3 parts have to hold): 1 confirmed, 2 undecided; 1: the interval" in lines
    rows = [line for line in lines if line.endswith(("  undecided", "  confirmed"))]
    assert [row.split()[0] for row in rows] == ["1", "2", "ece"]
    assert ["●" in row for row in rows] == [True, True, False]  # an exact value has no interval to draw
    scales = [line.split() for line in lines if "▲" in line and "threshold" not in line]
    assert [[word for word in scale if "▲" in word] for scale in scales] == [["▲60"], ["▲70"]]
    assert all(len(scale) >= 2 for scale in scales)
    assert any(line.startswith("part") and " points " in line for line in lines)  # what the scale is in
    text = " ".join(" ".join(lines).split())
    for words in (f"1: {of} > 60", f"2: {of} > 70", "ece: exact(ece[norm=batch]) <= 0", "░ where it must lie",
                  "exact: the largest absolute value", "test_accuracy: accuracy on the test set"):  # fmt: skip
        assert words in text, words


def test_runs_of_a_sweep_are_used(tmp_path: Path) -> None:
    write(tmp_path)
    sweep = bnlab("train", "-m", "norm=none,batch", "seed=0,1", *SMALL.split(), "--inline", cwd=tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    assert "2 runs trained" in bnlab("claim", "run", "mine", "--inline", cwd=tmp_path).stderr


def test_swapping_the_arms_swaps_the_verdict(tmp_path: Path) -> None:
    runs = {"train": "norm=batch trainer.steps=1,300", "rule": None}
    long, short = "test_accuracy[steps=300]", "test_accuracy[steps=1]"
    write(tmp_path, runs | {"rule": f"{long} - {short} > 10"}, "long")
    write(tmp_path, runs | {"rule": f"{short} - {long} > 10"}, "short")
    assert bnlab("claim", "run", "long", "short", "--inline", cwd=tmp_path).returncode == 0
    assert [verdict_of(tmp_path, name).verdict for name in ("long", "short")] == ["confirmed", "refuted"]
    for form, star in (("html", r"\w\*</td>"), ("md", r"\w\\\* \|")):
        told = bnlab("claim", "report", "-f", form, cwd=tmp_path).stdout
        stand = re.search(r"(\d) of those decided by seeds stand", told)
        assert stand, told
        assert len(re.findall(star, told)) == int(stand[1]) > 0, told
    assert "Holm" not in bnlab("claim", "report", "long", cwd=tmp_path).stdout  # one decided claim needs none


def test_a_rule_that_is_changed_after_runs_were_seen_is_exploratory(claimed: Path) -> None:
    write(claimed, {"question": "Is it any better, then?"})  # no part of the rule
    assert bnlab("claim", "run", "mine", "--inline", cwd=claimed).returncode == 0
    assert not verdict_of(claimed).exploratory
    write(claimed, {"rule": "test_accuracy[norm=batch] - test_accuracy[norm=none] > -60"})
    changed = bnlab("claim", "run", "mine", "--inline", cwd=claimed)
    assert "the rule was changed after runs were seen: exploratory" in changed.stdout
    assert verdict_of(claimed).exploratory
    (row,) = [r for r in json.loads(bnlab("claim", "report", "-f", "json", cwd=claimed).stdout)["claims"]
              if r["claim"] == "mine"]  # fmt: skip
    assert not row["stands"]


def test_where_the_data_lie_makes_no_variant(tmp_path: Path) -> None:
    write(tmp_path)
    first = bnlab("claim", "run", "mine", "data.root=there", "--inline", cwd=tmp_path)
    assert (first.returncode, "bnlab claim run mine data.root=there" in first.stdout) == (0, True)
    assert verdict_of(tmp_path).variant == ()
    assert "REFUTED" in bnlab("claim", "show", "mine", cwd=tmp_path).stdout
    again = bnlab("claim", "run", "mine", "trainer.timeout=300", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "0 runs trained; `bnlab claim report` shows all verdicts\n")


def test_the_order_of_overrides_makes_no_variant() -> None:
    assert folder_of("mine", "quick", ["seed=1", "model=cnn"]) == folder_of("mine", "quick", ["model=cnn", "seed=1"])
    assert folder_of("mine", "quick", ["model=cnn"]).name != folder_of("mine", "quick", ["model=mlp"]).name


def test_overrides_make_a_variant_with_a_verdict_of_its_own(tmp_path: Path) -> None:
    write(tmp_path)
    assert bnlab("claim", "run", "mine", "model.widths=[4]", "--inline", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "runs/claims/mine/quick").exists()
    (folder,) = (tmp_path / "runs/claims/mine").iterdir()
    found = read_verdict(folder)
    assert found is not None
    assert found.variant == ("model.widths=[4]",)
    shown = bnlab("claim", "show", "mine", "model.widths=[4]", cwd=tmp_path).stdout
    assert "REFUTED" in shown
    assert "bnlab claim run mine 'model.widths=[4]'" in shown
    for word in ("mine", "mine model.widths=[5]"):  # whose verdicts are not there
        shown = bnlab("claim", "show", *word.split(), cwd=tmp_path).stdout
        assert ("REFUTED" in shown, f"bnlab claim run {shlex.join(word.split())}" in shown) == (False, True)
    for words in (["model.widths=[4]"], ["mine", "placement"], ["mine", "seed=1"]):
        assert bnlab("claim", "show", *words, cwd=tmp_path).returncode == 2


def test_a_guard_that_fails_leaves_a_claim_undecided(tmp_path: Path) -> None:
    write(tmp_path, {"requires": ["valid_accuracy[norm=batch] >= 99.9"]})
    done = bnlab("claim", "run", "mine", "--inline", cwd=tmp_path)
    assert (
        "UNDECIDED: what it takes for granted does not hold: valid_accuracy[norm=batch] >= 99.9: it is" in done.stdout
    )
    assert verdict_of(tmp_path).reason == "guard"


def test_a_failed_job_is_said_and_exit_code_1(tmp_path: Path) -> None:
    write(tmp_path)
    blocked = tmp_path / "runs" / "pool"
    blocked.mkdir(parents=True)
    (identity,) = {run.identity for run in _planned(tmp_path) if run.seed == 1 and run.config["norm.name"] == "batch"}
    (blocked / identity).write_text("a file where a folder should be")
    done = bnlab("claim", "run", "mine", "--inline", cwd=tmp_path)
    assert done.returncode == 1
    assert identity in done.stderr


def _planned(place: Path) -> list[Any]:
    claim = read_claim(place / "claims" / "mine.yaml")
    return [wanted.run for wanted in plan_of(claim, Wish(), _preflight).trainings]


@pytest.mark.slow
def test_killed_at_20_random_moments_the_same_command_comes_to_the_same(tmp_path: Path) -> None:
    write(tmp_path, {"base": SMALL.replace("steps=5", "steps=60"), "budget": {"quick": {"looks": [3, 6]}}})
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copytree(tmp_path / "claims", whole / "claims")
    begin = time.monotonic()
    assert bnlab("claim", "run", "mine", cwd=whole, supervised=True).returncode == 0
    seconds, draw, trained = time.monotonic() - begin, random.Random(0), dict[str, int]()
    (tmp_path / "runs").mkdir()
    for _ in range(20):
        with start("claim", "run", "mine", cwd=tmp_path, supervised=True) as command:
            command.poll(draw.uniform(0.3, 1.0) * seconds)
            command.kill()
        time.sleep(1.5)  # for the worker, which ends after its parent
        for run in read_runs([tmp_path / "runs"])[0]:
            if run.state == "done":
                assert trained.setdefault(run.identity, run.order) == run.order, "trained twice"
    assert bnlab("claim", "run", "mine", cwd=tmp_path, supervised=True).returncode == 0
    one, other = verdict_of(whole), verdict_of(tmp_path)
    assert (one.verdict, one.parts, one.runs) == (other.verdict, other.parts, other.runs)
    assert {run.state for run in read_runs([tmp_path / "runs"])[0]} == {"done"}


@pytest.mark.slow
def test_under_a_launcher_verdicts_are_the_same_and_the_rest_is_refused(tmp_path: Path) -> None:
    alone, joined = tmp_path / "alone", tmp_path / "joblib"
    for place, words in ((alone, []), (joined, ["hydra/launcher=joblib"])):
        place.mkdir()
        write(place)
        done = run_as(place, settings(place), "claim", "run", "mine", *words)
        assert (done.returncode, "6 runs trained" in done.stderr) == (0, True), done.stderr
    one, other = verdict_of(alone), verdict_of(joined)
    assert (one.verdict, one.parts, one.runs, one.variant) == (other.verdict, other.parts, other.runs, other.variant)
    assert "0 runs trained" in bnlab("claim", "run", "mine", cwd=joined).stderr
    for words, said in (
        (["hydra/launcher=joblib", "--inline"], "hydra/launcher=joblib: must be basic for --inline"),
        (["hydra/sweeper=optuna"], "hydra/sweeper: must be basic"),
        (["hydra/launcher=job"], "hydra/launcher=job"),
    ):
        refused = bnlab("claim", "run", "mine", *words, cwd=tmp_path / "alone", supervised="--inline" not in words)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr


# ---------------------------------------------------------------- the rest of the surface


def test_what_lies_in_a_verdict_is_data(claimed: Path) -> None:
    path = claimed / "runs/claims/mine/quick/verdict.json"
    whole = json.loads(path.read_text())
    (part,) = whole["parts"]
    damages: list[dict[str, Any]] = [{"parts": 3}, {"verdict": "yes"}, {"seeds": "many"}, {"schema": 9}]
    for damage in (*damages, {"parts": [{"verdict": "refuted"}]}, {"parts": [part | {"estimate": "x"}]}):
        path.write_text(json.dumps(whole | damage))
        assert read_verdict(path.parent) is None
    assert f"{(n := 1 + len(claim_files()))} claims: {n} not run" in bnlab("claim", "list", cwd=claimed).stdout
    wrong: list[dict[str, Any]] = [
        {"low": math.nan}, {"high": math.nan}, {"low": 5.0, "high": 4.0}, {"estimate": math.nan}, {"estimate": 10**400},
        {"n": None}, {"n": -1}, {"n": 2.5}, {"needed": True}, {"level": "x"}, {"region": "> x"}, {"region": ""},
    ]  # fmt: skip
    for each in wrong:
        path.write_text(json.dumps(whole | {"parts": [part | each]}))
        assert read_verdict(path.parent) is None
    path.write_text(json.dumps(whole | {"parts": []}))
    assert read_verdict(path.parent) is None
    fails = part | {"estimate": math.inf, "low": math.inf, "high": math.inf, "thresholds": "of the region"}
    path.write_text(json.dumps(whole | {"parts": [fails]}))
    assert (found := read_verdict(path.parent)) is not None
    assert (found.parts[0].estimate, found.parts[0].thresholds) == (math.inf, (60.0,))
    path.write_text("[" * 100_000)
    assert bnlab("claim", "report", cwd=claimed).returncode == 0


def test_the_page_is_one_file_that_needs_nothing(claimed: Path) -> None:
    assert bnlab("claim", "report", "--out", "page.html", cwd=claimed).returncode == 0
    text = (claimed / "page.html").read_text()
    for each in OUTSIDE:
        assert each.because in text
    for word in ("<script", "http:", "https:", "src=", "@import", "<b>", "\x1b"):
        assert word not in text
    assert "it &lt;b&gt;is&lt;/b&gt; \\x1b[31m &amp; better" in text
    assert text.count("<article") == 1  # of what ran; of the others is said how many there are
    assert f"{len(claim_files()) + 1} claims: 1 refuted, {len(claim_files())} not run" in text
    assert ("placement" in text, "How to read this." in text) == (False, True)
    assert "<dt><code>test_accuracy</code></dt><dd>accuracy on the test set" in text
    assert f", quick budget, {time.strftime('%Y-%m-%d', time.localtime(verdict_of(claimed).made))}</dd>" in text
    (run,) = read_runs([claimed / "runs/pool" / verdict_of(claimed).runs[0]])[0]
    assert f" · {run.environment['cpu']} · torch {run.environment['torch']}" in text
    assert "<svg" in text
    assert "</text>" in text
    assert 'viewBox="0 0 260 34"' in text  # on a phone as wide as the page


def test_the_whole_list_and_the_scorecard_name_what_is_out_of_scope(tmp_path: Path) -> None:
    lists = [
        ["list"],
        ["report"],
        ["report", "-f", "md"],
        ["list", "--source", "003"],
        ["list", "--verdict", "not run"],
    ]
    said = [" ".join(bnlab("claim", *words, cwd=tmp_path).stdout.split()) for words in lists]
    for each in OUTSIDE:
        assert [each.because in text for text in said] == [True, True, True, False, False]
    found = json.loads(bnlab("claim", "report", "-f", "json", cwd=tmp_path).stdout)["out_of_scope"]
    assert found == [vars(each) for each in OUTSIDE]


def test_a_name_or_a_file_says_which_claims(tmp_path: Path) -> None:
    """A report of these alone, which can be sent; `run`, `show` and `check` take a file as well."""
    path = tmp_path / "mine.yaml"
    write(tmp_path).rename(path)
    assert bnlab("claim", "run", "mine.yaml", "--inline", cwd=tmp_path).returncode == 0
    shown = bnlab("claim", "show", "mine.yaml", cwd=tmp_path).stdout
    assert "REFUTED" in shown
    assert bnlab("claim", "report", "mine.yaml", "placement", "--out", "page.html", cwd=tmp_path).returncode == 0
    text = (tmp_path / "page.html").read_text()
    assert (text.count("<article"), "<td>placement</td>" in text, "folding" in text) == (1, True, False)
    assert text.index('<article id="mine">') < text.index("<h2>Not run</h2>")
    found = json.loads(bnlab("claim", "report", "placement", "mine.yaml", "-f", "json", cwd=tmp_path).stdout)
    assert [claim["claim"] for claim in found["claims"]] == ["placement", "mine"]
    assert found["out_of_scope"] == []
    assert "out of scope" not in bnlab("claim", "report", "placement", "-f", "md", cwd=tmp_path).stdout
    for word in ("none.yaml", "mien"):
        assert bnlab("claim", "report", word, cwd=tmp_path).returncode == 2


def test_a_claim_that_is_none_hides_no_other_in_a_list(tmp_path: Path) -> None:
    write(tmp_path, {"question": None})
    for words in (["list"], ["report", "-f", "md"]):
        done = bnlab("claim", *words, cwd=tmp_path)
        assert (done.returncode, f"{len(claim_files())} claims: " in done.stdout) == (0, True)
        assert done.stderr == "claims/mine.yaml: question=null: must be text of up to 2,000 characters\n"
    assert bnlab("claim", "run", "all", "--dry-run", cwd=tmp_path).returncode == 2
    done = bnlab("claim", "new", "other", "--from", "nowhere.yaml", cwd=tmp_path)
    assert (done.returncode, done.stderr.startswith("nowhere.yaml: no such file\n")) == (2, True)


def test_the_page_of_all_claims_stays_below_300_kb() -> None:
    """Pictures of mechanism come on top, of 29 panels of 1.4 kB at the quick budget."""
    pairs = []
    for claim in find_claims(["all"]):
        parts = tuple(
            PartVerdict(
                str(part.sentence), part.label or str(part.sentence.of), "difference", "points",
                str(part.sentence.region), part.sentence.region.thresholds, "confirmed",
                None, "", 12.3456, -1.23456, 23.4567, n=8,
            )
            for part in parts_of(claim.rule)
        )  # fmt: skip
        scope = "digits · mlp · batch 64 · 400 steps · cpu, 1 thread · Intel(R) Xeon(R) Processor · torch 2.14.1"
        found = ClaimVerdict(
            claim.name, "quick", (), claim.rule_sha256, False, "confirmed", None, parts, (), (3, 5, 8), 8, (), (), 0,
            "1", scope, 1.0, 0.0,
        )  # fmt: skip
        pairs.append((claim, found))
    assert len(page(pairs).encode()) < 300_000 - 29 * 1_400


def test_a_page_has_confirmed_claims_first(claimed: Path) -> None:
    found = verdict_of(claimed)
    claim = read_claim(claimed / "claims/mine.yaml")
    words = ("undecided", "refuted", "confirmed", None, "confirmed")
    pairs = [(replace(claim, name=f"c{n}"), replace(found, verdict=w) if w else None) for n, w in enumerate(words)]
    assert re.findall("<article id=.(c.)", page(pairs)) == ["c2", "c4", "c1", "c0"]


@pytest.mark.parametrize("format", ["plain", "csv", "json", "md"])
def test_a_list_in_every_format(format: str, tmp_path: Path) -> None:
    done = bnlab("claim", "list", "--source", "003", "-f", format, cwd=tmp_path)
    assert done.returncode == 0
    assert "folding" in done.stdout
    assert "step-time-3-to-5" not in done.stdout


def test_a_list_has_the_questions_and_finds_a_word_in_them(tmp_path: Path) -> None:
    claims = {name: read_claim(path) for name, path in claim_files().items()}
    found = {
        name
        for name, claim in claims.items()
        if any("dropout" in text.lower() for text in (name, claim.question, *claim.quotes))
    }
    assert 1 < len(found) < 20
    for width in ("80", "160"):
        done = bnlab("claim", "list", "Dropout", cwd=tmp_path, COLUMNS=width)
        assert {name for name in claims if f"\n{name} " in done.stdout} == found
        assert all(claims[name].question in " ".join(done.stdout.split()) for name in found)
        assert max(map(len, done.stdout.splitlines())) <= int(width)
    assert bnlab("claim", "list", "no such words", cwd=tmp_path).returncode == 2
    several = bnlab("claim", "list", "Dropout", "batch", "-f", "json", cwd=tmp_path).stdout
    names = {row["claim"] for row in json.loads(several)["rows"]}
    assert names == {
        name for name in found if "batch" in str((name, claims[name].question, claims[name].quotes)).lower()
    }
    narrow = bnlab("claim", "list", cwd=tmp_path, COLUMNS="62").stdout
    assert "left out for width: budget, expected (a wider" in " ".join(narrow.split())


@pytest.mark.slow
def test_a_new_claim_is_right_as_it_is_and_overwrites_nothing(tmp_path: Path) -> None:
    assert bnlab("claim", "new", "my-own", cwd=tmp_path).returncode == 0
    assert bnlab("claim", "new", "copied", "--from", "placement", cwd=tmp_path).returncode == 0
    done = bnlab("claim", "check", "claims/my-own.yaml", "claims/copied.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": right; at most") == 2
    for name in ("my-own", "../x", "A"):
        assert bnlab("claim", "new", name, cwd=tmp_path).returncode == 2


def test_a_property_that_there_is_not_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "claims").mkdir()
    claim = {"claim": "mine", "question": "Is it?", "rule": "exact(check_error[norm=batch]) == 0"}
    (tmp_path / "claims/mine.yaml").write_text(yaml.safe_dump(claim | {"check": "norm=batch property=zzz"}))
    for command, word in (("check", "mine"), ("run", "mine"), ("check", "claims/mine.yaml")):
        done = bnlab("claim", command, word, cwd=tmp_path)
        said = "claims/mine.yaml: property=zzz: no such property"
        assert (done.returncode, done.stderr.partition("\n")[0]) == (2, said), done.stderr
        assert not (tmp_path / "runs").exists()
    assert "no such claim; did you mean mine?" in bnlab("claim", "check", "mien", cwd=tmp_path).stderr
