"""What `bnlab compare` says was found: above the table, in json and md, for the latest sweep unless a path is named."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers_cases import for_each
from helpers_cli import bnlab, environment
from helpers_runs import make_run
from scipy import stats

import bnlab as bnlab_package
from bnlab.compare.comparison import compare
from bnlab.compare.statistics import detectable_difference, sign_test
from bnlab.config.files import conf_dir, defaults
from bnlab.errors import ConfigError
from bnlab.experiment.config import parse_config
from bnlab.record.latest import latest
from bnlab.report.heading import heading
from bnlab.report.verdicts import answers

SPREAD = (-0.001, 0.0, 0.002, 0.001, -0.002)  # of the differences, by seed
BASE = (0.970, 0.972, 0.974, 0.971, 0.973)


def sweep(folder: Path, arms: Mapping[str, float | None], seeds: int = 3, **how: Any) -> Path:
    """Write runs of arms that differ from `BASE` by so much in the mean; None diverges."""
    for norm, off in arms.items():
        for seed in range(seeds):
            last = BASE[seed] + (off or 0.0) + (SPREAD[seed] if off else 0.0)
            state = {} if off is not None else {"state": "diverged"}
            make_run(folder / f"{norm}{seed}", norm=norm, seed=seed, test_accuracy=[0.1, 0.95, last], **state, **how)
    return folder


def empty(folder: Path) -> Path:
    """Return a new folder in `folder`, which the cases of a test share."""
    return folder / str(len(list(folder.iterdir())))


def found(folder: Path, **asked: Any) -> list[str]:
    (sentences,) = answers(compare([folder], **asked))
    return sentences


@for_each(
    ("arms", "seeds", "expected"),
    [
        (
            {"none": 0.0, "batch": 0.0005, "layer": -0.0004},
            3,
            "No arm is shown to differ from none in test accuracy: 3 seeds ca",
        ),
        (
            {"none": 0.0, "batch": 0.0005},
            3,
            "batch is not shown to differ from none in test accuracy: 3 seeds can show",
        ),
        ({"none": 0.0, "batch": 0.02}, 2, "2 seeds of both decide nothing, it takes 3."),
        ({"none": 0.0, "batch": 0.02}, 1, "1 seed of both decides nothing, it takes 3."),
        ({"none": 0.0, "batch": None}, 3, "batch cannot be compared with none in test accuracy: no seed of both has"),
        ({"none": 0.0, "batch": 0.02}, 5, "batch is better than none in test accuracy (+2.00 ± 0.20 points)."),
        (
            {"none": 0.0, "batch": 0.02, "ghost": 0.01, "layer": -0.03, "instance": 0.0003},
            5,
            "batch and ghost are better than none in test accuracy (+2.00 ± 0.20, +1.00 ± 0.20 points); "
            "layer is worse than it (-3.00 ± 0.20 points); instance is undecided; about 267 seeds would decide.",
        ),
        ({"none": None, "batch": 0.01}, 3, "none has no test accuracy (3 of 3 runs diverged), so no arm has a differ"),
        ({"batch": 0.01}, 3, "The test accuracy of batch is 98.2 ± 0.9 % in 3 seeds; there is no other arm."),
        ({"none": 0.0, "batch": 0.0}, 3, "batch does not differ from none in test accuracy: equal in 3 seeds."),
    ],
)
def test_the_first_sentences_say_what_was_found(
    tmp_path: Path, arms: Mapping[str, float | None], seeds: int, expected: str
) -> None:
    assert expected in " ".join(found(sweep(empty(tmp_path), arms, seeds)))


def test_a_margin_that_holds_is_said(tmp_path: Path) -> None:
    (sentence,) = found(sweep(tmp_path, {"none": 0.0, "batch": 0.0001}, 5, step_ms=2.0), margin=1.0)
    assert sentence.startswith("batch has no difference from none in test accuracy that matters (+0.01 ± ")


def test_a_difference_that_may_be_less_than_the_margin_is_said_to_be(tmp_path: Path) -> None:
    sweep(tmp_path, {"none": 0.0, "batch": 0.02, "layer": 0.01}, 5)
    assert found(tmp_path, margin=0.5)[0].endswith("(+2.00 ± 0.20, +1.00 ± 0.20 points).")
    assert found(tmp_path, margin=0.9)[0].endswith(
        "(+2.00 ± 0.20, +1.00 ± 0.20 points, of layer maybe by less than 0.9 points)."
    )
    assert "(+2.00 ± 0.20 points, maybe by less than 1.9 points); layer has no" in found(tmp_path, margin=1.9)[0]


def test_undecided_at_a_margin_is_said_first_with_the_seeds_it_takes(tmp_path: Path) -> None:
    arms = {"none": 0.0, "batch": 0.0012, "layer": -0.0005}
    (sentence,) = found(sweep(tmp_path, arms, 5), margin=0.1)
    needed = [
        next(n for n in range(6, 10_000) if (detectable_difference(stdev(SPREAD), n, 0.025) or 1) <= size)
        for size in (0.0012, 0.001 - 0.0005)  # beyond 0, and within the margin
    ]
    assert sentence == (
        "Undecided against none in test accuracy at a margin of 0.1 points: batch (+0.12 ± 0.20), "
        f"layer (-0.05 ± 0.20); about {needed[0]} and {needed[1]} seeds would decide."
    )
    (sentence,) = found(tmp_path, margin=0.1, where=["seed=0,1"])
    assert sentence.endswith("; 2 seeds of both decide nothing, it takes 3.")


def test_that_the_better_side_lost_runs_is_said_of_the_arms_where_it_did(tmp_path: Path) -> None:
    sweep(tmp_path, {"none": 0.0, "batch": 0.0005, "layer": 0.0004}, 4)
    make_run(tmp_path / "layer4", norm="layer", seed=4, state="diverged")
    (sentence,) = [each for each in found(tmp_path) if "shown" in each]
    assert sentence.startswith("No arm is shown to differ from none in test accuracy: 4 seeds can show ")
    assert sentence.endswith("; the better side of layer lost runs that could undo it.")
    for seed in range(5):  # what has no p since all its differences are equal
        state = "done" if seed < 4 else "diverged"
        make_run(
            tmp_path / f"equal{seed}", norm="group", seed=seed, test_accuracy=[0.1, BASE[seed] - 0.01], state=state
        )
    assert any(each.endswith("; the better side of layer lost runs that could undo it.") for each in found(tmp_path))


def test_counts_of_seeds_that_learn_say_for_how_many_arms_p_is_corrected(tmp_path: Path) -> None:
    first, _ = found(sweep(tmp_path, {"none": -0.9, "batch": 0.01, "layer": -0.9}))
    assert first == (
        "batch learns at lr 0.1 in 3 of 3 seeds (exact p = 0.5, corrected for 2 arms), none in 0 of 3: "
        "too few seeds to be sure by counts alone."
    )


def test_counts_of_seeds_are_not_called_too_few_where_the_metric_tells_the_arms_apart(tmp_path: Path) -> None:
    sweep(tmp_path, {"batch": 0.01}, 5)
    for seed, last in enumerate(BASE):
        make_run(tmp_path / f"none{seed}", norm="none", seed=seed, test_accuracy=[0.1, 0.1, last - 0.9])
    first, second = found(tmp_path)
    assert first.endswith("none in 0 of 5.")
    assert second.startswith("batch is better than none in test accuracy (+91")


def test_an_arm_that_diverged_against_one_that_did_not(tmp_path: Path) -> None:
    first, second = found(sweep(tmp_path, {"none": None, "batch": 0.01}, config={"optim.lr": 1.0}))
    p = stats.binomtest(3, 3).pvalue
    assert (
        first == f"batch learns at lr 1.0 in 3 of 3 seeds (exact p = {p:.2g}), none in 0 of 3: "
        "too few seeds to be sure by counts alone."
    )
    assert second.startswith("none has no test accuracy")


def test_a_run_below_half_of_the_training_images_is_named_where_its_accuracy_is(tmp_path: Path) -> None:
    sweep(tmp_path, {"none": -0.9, "batch": 0.01})
    (section,) = compare([tmp_path]).sections
    assert {row.label: (row.learned, row.num_unlearned) for row in section.rows} == {
        "none": ((0, 3), 3),
        "batch": ((3, 3), 0),
    }
    shown = bnlab("compare", str(tmp_path), cwd=tmp_path, COLUMNS="120").stdout
    assert "3/3 not learned" in shown
    assert "batch learns at lr 0.1 in 3 of 3 seeds" in shown


@for_each(("more", "fewer"), [(0, 0), (1, 0), (3, 0), (6, 0), (0, 6), (5, 2), (40, 60)])
def test_the_exact_test_is_the_binomial_one(more: int, fewer: int) -> None:
    expected = stats.binomtest(more, more + fewer).pvalue if more + fewer else 1.0
    assert sign_test(more, fewer) == pytest.approx(expected)


def test_p_of_learning_is_corrected_over_the_arms(tmp_path: Path) -> None:
    for seed in range(8):
        for norm in ("none", "batch", "layer"):
            state = "diverged" if norm == "none" else "done"
            make_run(tmp_path / f"{norm}{seed}", norm=norm, seed=seed, state=state)
    (section,) = compare([tmp_path]).sections
    assert [row.p_learned for row in section.rows] == [None, *[pytest.approx(2 * 2 * 0.5**8)] * 2]


def test_sooner_is_said_where_it_is_decided(tmp_path: Path) -> None:
    for seed in range(4):
        for norm, at in (("none", 9 + seed % 2), ("batch", 3)):
            curve = [0.1] * at + [0.985] * (15 - at)
            make_run(tmp_path / f"{norm}{seed}", norm=norm, seed=seed, test_accuracy=curve)
    sentences = found(tmp_path)
    assert sentences[-1] == "batch reaches 98 % in fewer steps (300 against 950 of 1,400)."
    shown = bnlab("compare", str(tmp_path), cwd=tmp_path, COLUMNS="120").stdout
    assert all(figure in shown.split("\n\n", 1)[1] for figure in ("950 (", "300"))


def test_the_words_are_the_same_everywhere(tmp_path: Path) -> None:
    sweep(tmp_path / "runs", {"none": 0.0, "batch": 0.02, "layer": -0.0001}, 5)
    document = json.loads(bnlab("compare", "-f", "json", cwd=tmp_path).stdout)
    whole = " ".join(document["answer"])
    assert whole.startswith("batch is better than none in test accuracy (+2.00 ± 0.20 points); layer ")
    for width in ("80", "120"):
        for options in ({}, {"NO_COLOR": "1"}):
            head = bnlab("compare", cwd=tmp_path, COLUMNS=width, **options).stdout.partition("\n\n")[0]
            assert " ".join(head.split()) == whole
    assert whole in bnlab("compare", "-f", "md", cwd=tmp_path).stdout.replace("\\", "")
    assert [f"# {sentence}" for sentence in document["answer"]] == bnlab(
        "compare", "-f", "plain", cwd=tmp_path
    ).stdout.splitlines()[: len(document["answer"])]


def test_three_notes_unless_all_are_asked_for(tmp_path: Path) -> None:
    sweep(tmp_path / "runs", {"none": 0.0, "batch": 0.001})
    every = json.loads(bnlab("compare", "-f", "json", cwd=tmp_path).stdout)["notes"]
    short, long = (bnlab("compare", *how, cwd=tmp_path, COLUMNS="500").stdout for how in ((), ("--notes",)))
    assert [line[2:] for line in short.splitlines() if line[:2] == "· "] == [
        *every[:3],
        f"{len(every) - 3} more: --notes",
    ]
    assert [line[2:] for line in long.splitlines() if line[:2] == "· "] == every


def test_bold_is_what_is_decided(tmp_path: Path) -> None:
    sweep(tmp_path / "a", {"none": 0.0, "batch": 0.02}, 5)
    sweep(tmp_path / "b", {"none": 0.0, "batch": 0.0005}, 3)
    decided, open_ = (
        bnlab("compare", str(tmp_path / name), cwd=tmp_path, FORCE_COLOR="1", NO_COLOR="").stdout for name in "ab"
    )
    assert re.search(r"\x1b\[1m *99\.20 ", decided)
    assert "\x1b[1m" not in open_


# ---------------------------------------------------------------- in Python


def test_a_comparison_in_python(tmp_path: Path) -> None:
    place = sweep(tmp_path, {"none": 0.0, "batch": 0.02, "layer": -0.0001}, 5)
    compared = bnlab_package.compare(str(place))
    assert compared.answer == found(place)
    assert compared.verdicts == {"batch": "better", "layer": "undecided"}
    assert not compared.decided
    assert bnlab_package.compare([place], where=["norm=none,batch"]).decided
    table = compared.frame()
    rows = table[table["metric"] == "test_accuracy"].set_index("arm")
    assert list(rows.index) == ["none", "batch", "layer"]
    assert rows.loc["batch", "difference"] == pytest.approx(2.0)
    assert rows.loc["batch", "verdict"] == "better"
    assert not table.duplicated(["arm", "metric"]).any()
    with pytest.raises(ConfigError, match="does not exist"):
        bnlab_package.compare(place / "nowhere")


def test_its_page_holds_data_as_text(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / f"a{seed}", norm="<script>\u202e&", seed=seed)
        make_run(tmp_path / f"b{seed}", norm="none", seed=seed)
    page = bnlab_package.compare(tmp_path)._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;\\u202e&amp;" in page
    root = ElementTree.fromstring(f"<div>{page}</div>")
    assert [len(line) for line in root.iter("tr")] == [len(root.findall("table/thead/tr/th"))] * 3


def test_importing_bnlab_loads_nothing_and_a_comparison_no_torch(tmp_path: Path) -> None:
    sweep(tmp_path, {"none": 0.0, "batch": 0.02})
    code = (
        "import sys, bnlab; heavy = {'torch', 'pandas', 'numpy', 'rich', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), any(name.startswith('bnlab.') for name in sys.modules))\n"
        "bnlab.compare(sys.argv[1]); import bnlab.compare.comparison; bnlab.compare(sys.argv[1])\n"
        "print(sorted({'torch', 'pandas', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout == "[] False\n[]\n"


# ---------------------------------------------------------------- which runs


def folders(base: Path, *names: str) -> None:
    for number, name in enumerate(names):
        if "sweep" in name:
            sweep(base / name, {"none": 0.0, "batch": 0.001 * number})
            (base / name / "sweep.json").write_text("{}")
        else:
            make_run(base / name, norm="batch", seed=number)


@for_each(
    ("names", "chosen"),
    [
        (["20260101-000000-sweep-a"], None),
        (["20260101-000000-sweep-a", "20260102-000000-sweep-b"], ["20260102-000000-sweep-b"]),
        (["20260101-000000-sweep-a", "20260102-000000-run-b"], ["20260102-000000-run-b"]),
        (
            ["20260101-000000-run-a", "20260102-000000-sweep-b", "20260103-000000-run-c", "20260104-000000-run-d"],
            ["20260103-000000-run-c", "20260104-000000-run-d"],
        ),
        (["mine", "other"], None),
        (["20260101-000000-sweep-a", "zzz"], ["20260101-000000-sweep-a"]),
    ],
)
def test_the_latest_sweep_or_the_single_runs_since(
    tmp_path: Path, names: Sequence[str], chosen: list[str] | None
) -> None:
    folders(base := empty(tmp_path), *names)
    paths, said = latest(base)
    assert paths == ([base] if chosen is None else [base / name for name in chosen])
    assert (said is None) == (chosen is None)


def test_without_a_path_the_pool_is_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/pool/a", norm="batch")
    with pytest.raises(
        ConfigError, match=r"has only runs of claims and searches\n`bnlab claim report` shows verdicts; .*runs/pool"
    ):
        latest(tmp_path / "runs")
    sweep(tmp_path / "runs/mine", {"none": 0.0, "batch": 0.001})
    assert latest(tmp_path / "runs") == ([tmp_path / "runs/mine"], None)
    folders(tmp_path / "runs", "20260101-000000-sweep-a")
    assert latest(tmp_path / "runs")[0] == [tmp_path / "runs/20260101-000000-sweep-a"]
    assert [len(section.rows) for section in compare([tmp_path / "runs/pool"]).sections] == [1]


def test_without_a_path_the_latest_is_compared_and_said(tmp_path: Path) -> None:
    folders(tmp_path / "runs", "20260101-000000-sweep-a", "20260102-000000-sweep-b")
    done = bnlab("compare", "-f", "json", cwd=tmp_path)
    assert done.stderr == "the latest of runs: runs/20260102-000000-sweep-b (--all: everything)\n"
    assert [row["n"] for row in json.loads(done.stdout)["rows"]] == [3, 3]
    every = bnlab("compare", "--all", cwd=tmp_path)
    assert every.stderr == ""
    assert "6 runs left out: same configuration and seed" in bnlab("compare", "--all", "--notes", cwd=tmp_path).stdout


# ---------------------------------------------------------------- the heading


def test_every_shared_setting_that_is_no_default_is_named(tmp_path: Path) -> None:
    changes = {"norm.momentum": 0.01, "data.train_size": 300, "model.dropout": 0.5, "eval.stats": "precise"}
    for norm in ("batch", "ghost"):
        for seed in range(3):
            make_run(tmp_path / f"{norm}{seed}", norm=norm, seed=seed, config=changes)
    (section,) = compare([tmp_path]).sections
    parts = heading(section)
    assert "mnist, 300 images" in parts[0]
    assert parts[1].startswith("cnn 32-64, dropout 0.5")
    assert "momentum 0.01" in parts
    assert "stats precise" in " ".join(parts)
    for line in bnlab("compare", str(tmp_path), cwd=tmp_path, COLUMNS="80").stdout.splitlines():
        assert len(line) <= 80


def test_a_setting_at_its_default_is_not_named(tmp_path: Path) -> None:
    usual = defaults({"data": "digits", "model": "cnn", "norm": "batch", "optim": "sgd", "schedule": "one_cycle"})
    tree: dict[str, Any] = {}
    for key, value in usual.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = [32, 64] if key == "model.widths" else value
    parse_config(tree)  # it is a whole configuration
    place = make_run(tmp_path / "a", data="digits")
    for name in ("status.json", "summary.json"):
        document = json.loads((place / name).read_text())
        (place / name).write_text(json.dumps(document | {"config": tree}))
    (section,) = compare([tmp_path]).sections
    assert heading(section)[:4] == ["digits", "cnn 32-64", "batch", "sgd lr 0.1, one-cycle, 20 epochs, batch 64"]
    assert (conf_dir() / "config.yaml").is_file()
    assert not math.isnan(section.rows[0].metrics["test_accuracy"].value)
