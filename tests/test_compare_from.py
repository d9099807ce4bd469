"""Runs that bnlab did not make: the same statistics and formats, and what is wrong in a file is said with its line."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import statistics
from pathlib import Path

import pytest
from helpers_cli import Done, bnlab
from helpers_runs import make_run
from scipy import stats

from bnlab.compare.imported import Others, others_of, read_csv
from bnlab.errors import ConfigError
from bnlab.metrics import metrics

ACCURACY = {
    "sgd": (0.90, 0.93, 0.91, 0.95, 0.92),
    "adam": (0.92, 0.96, 0.93, 0.96, 0.95),
    "lion": (0.89, 0.93, 0.92, 0.94, 0.91),
}
ASKED = ("--arm", "optimizer", "--seed", "fold", "--metric", "val_acc")


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = ["optimizer,fold,val_acc,val_loss"]
    for arm, values in ACCURACY.items():
        lines += [f"{arm},{seed},{value},{1 - value:.3f}" for seed, value in enumerate(values)]
    return write(tmp_path / "runs.csv", lines)


def compared(folder: Path, *arguments: str) -> Done:
    return bnlab("compare", "--from", *arguments, cwd=folder, COLUMNS="100", NO_COLOR="1")


def refusal(folder: Path, *arguments: str) -> str:
    shown = compared(folder, *arguments)
    assert (shown.returncode, shown.stdout) == (2, ""), shown
    assert "Traceback" not in shown.stderr
    return shown.stderr


def read(path: Path, *, arms: tuple[str, ...] = ("arm",), wanted: tuple[str, ...] = ("acc",)) -> Others:
    return others_of(str(path), read_csv(path), arms=arms, seed="seed", wanted=wanted)


def test_means_intervals_and_paired_differences_are_those_of_scipy(table: Path) -> None:
    shown = compared(table.parent, "runs.csv", *ASKED, "--baseline", "sgd", "-f", "json")
    assert (shown.returncode, shown.stderr) == (0, "")
    document = json.loads(shown.stdout)
    rows = {row["label"]: row for row in document["rows"]}
    assert (document["main"], document["baseline"]) == ("val_acc", "sgd")
    ps = {}
    for arm, values in ACCURACY.items():
        figure = rows[arm]["metrics"]["val_acc"]
        low, high = stats.t.interval(0.95, 4, statistics.fmean(values), stats.sem(values))
        assert (figure["mean"], figure["low"], figure["high"]) == pytest.approx((statistics.fmean(values), low, high))
        assert figure["better"] == "higher"
        if arm != "sgd":
            ps[arm] = stats.ttest_rel(values, ACCURACY["sgd"]).pvalue
            difference = rows[arm]["vs_baseline"]["val_acc"]["difference"]
            assert difference == pytest.approx(statistics.fmean(values) - statistics.fmean(ACCURACY["sgd"]))
    smaller, larger = sorted(ps, key=lambda arm: float(ps[arm]))
    holm = {smaller: 2 * ps[smaller], larger: max(2 * ps[smaller], ps[larger])}
    assert {arm: rows[arm]["vs_baseline"]["val_acc"]["p"] for arm in ps} == pytest.approx(holm)


def test_the_same_table_and_formats_with_the_options_of_a_comparison(table: Path) -> None:
    shown = compared(table.parent, "runs.csv", *ASKED, "--metric", "val_loss", "--margin", "0.1", "--sort", "val_loss")
    assert shown.returncode == 0, shown.stderr
    assert "\n\nruns.csv · 5 seeds an arm\n" in shown.stdout
    for part in ("val_acc", "val_loss", "no difference", "±: 95% interval over seeds"):
        assert part in shown.stdout
    assert [line.split()[0] for line in shown.stdout.partition("\n\n")[2].splitlines()[4:7]] == ["adam", "sgd", "lion"]
    rows = list(csv.DictReader(compared(table.parent, "runs.csv", *ASKED, "-f", "csv").stdout.splitlines()))
    assert [(row["arm"], row["metric"]) for row in rows] == [(arm, "val_acc") for arm in ("adam", "lion", "sgd")]
    for arguments in (["-f", "plain"], ["-f", "md", "--where", "optimizer=sgd,adam"], ["--pivot", "optimizer x seed"]):
        assert "sgd" in compared(table.parent, "runs.csv", *ASKED, *arguments).stdout


def test_what_is_missing_is_named_with_what_there_is(table: Path) -> None:
    folder = table.parent
    assert "needs --arm, --seed, --metric COLUMN\nthere are: optimizer, fold, val_acc" in refusal(folder, "runs.csv")
    assert "did you mean optimizer?" in refusal(folder, "runs.csv", "--arm", "optimzer", *ASKED[2:])
    assert "--seed seed: runs.csv has no such column" in refusal(folder, "runs.csv", *ASKED, "--seed", "seed")
    assert "--metric acc: runs.csv has no such column" in refusal(folder, "runs.csv", *ASKED[:4], "--metric", "acc")
    assert "does not exist" in refusal(folder, "other.csv", *ASKED)
    assert "cannot be combined with PATH" in refusal(folder, "runs.csv", *ASKED, ".")
    shown = bnlab("compare", *ASKED, cwd=folder)
    assert shown.returncode == 2
    assert "--arm: names a column of --from" in shown.stderr
    table.write_text(table.read_text().replace("lion,3,0.94,0.060\n", ""))
    shown = compared(folder, "runs.csv", *ASKED)
    assert "fold in some arms only: optimizer=lion lacks 3" in shown.stderr


def test_a_run_without_a_figure_is_counted_as_lost(table: Path) -> None:
    table.write_text(table.read_text().replace("adam,3,0.96,", "adam,3,,"))
    shown = compared(table.parent, "runs.csv", *ASKED, "--baseline", "sgd", "--notes")
    assert shown.returncode == 0
    assert "val_acc: 1 finished run without a finite value" in shown.stdout
    (row,) = [line for line in shown.stdout.splitlines() if line.startswith("adam")]
    assert "†" in row
    assert "*" not in row  # the run that is lost may undo it


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("b,1,nan", "line 4: acc is nan, no number"),
        ("b,1,inf", "line 4: acc is inf, no number"),
        ("b,1,1e300", "line 4: acc is 1e300, no number"),
        ("b,1,1_0", "line 4: acc is 1_0, no number"),
        ("b,1,=1+1", "line 4: acc is =1+1, no number"),
        ("b,1,\"=cmd|' /C calc'!A0\"", "line 4: acc is =cmd"),
        ("a,0,0.5", "line 2 and line 4 are both arm=a seed=0"),
        ("a,00,0.5", "line 2 and line 4 are both arm=a seed=00"),
        ("b,,0.5", "line 4: seed is empty"),
        ("b,1", "line 4 has 2 cells, line 1 3"),
        ("b,1,0.5,6", "line 4 has 4 cells, line 1 3"),
        ('b,1,"0.5', "line 4: unexpected end of data"),
        ("b,1,\0", "line 4 is not text"),
        ("b" * 5000 + ",1,0.5", "line 4: arm has 5,000 characters"),
        ("b,1," + "9" * 200_000, "line 4: field larger than field limit"),
        ("b,1," + "9" * 100_000, "line 4: acc is 999"),
    ],
    ids=lambda text: text[:12],
)
def test_a_hostile_line_is_named_with_the_reason(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "runs.csv", ["arm,seed,acc", "a,0,0.9", "a,1,0.8", line])
    with pytest.raises(ConfigError) as error:
        read(path)
    assert reason in str(error.value)
    assert len(str(error.value)) < 400
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "has_way"),
    [("b;1;95,3", True), ("b;1;1.234,5", True), ("b;1;1,234,567", True), ("b,1,95,3", True), ("b;1;95,3 %", False),
     ("b,1", False), ("b;1;95;3", False)],
)  # fmt: skip
def test_decimal_commas_are_told_the_way_out(tmp_path: Path, line: str, has_way: bool) -> None:
    titles = "arm;seed;acc" if ";" in line else "arm,seed,acc"
    with pytest.raises(ConfigError, match="line 2") as error:
        read(write(tmp_path / "runs.csv", [titles, line]))
    assert ("write numbers with a decimal point" in str(error.value)) == has_way


def test_a_file_that_is_no_csv_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"arm,seed,acc\na,0,1\n\xff\xfe\x80\n")
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "head.csv").write_bytes(b"arm,seed,acc\n")
    (tmp_path / "twice.csv").write_bytes(b"arm,seed,acc,acc\na,0,1,2\n")
    os.mkfifo(tmp_path / "fifo.csv")
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate(2**40)
    for name, reason in {
        "binary": "line 3 is not text in UTF-8",
        "empty": "has no runs",
        "head": "has no runs",
        "twice": "line 1 names acc twice",
        "fifo": "is not a regular file",
        "huge": "is larger than 32 MB",
    }.items():
        with pytest.raises(ConfigError, match=reason):
            read(tmp_path / f"{name}.csv")


def test_labels_from_a_file_reach_terminal_and_spreadsheet_as_text(tmp_path: Path) -> None:
    lines = ["arm,seed,acc", *(f"{arm},{seed},0.{seed + 5}" for arm in ("=1+1", "\x1b[31mred") for seed in range(3))]
    write(tmp_path / "runs.csv", lines)
    asked = ("--arm", "arm", "--seed", "seed", "--metric", "acc")
    assert "\x1b" not in compared(tmp_path, "runs.csv", *asked).stdout
    assert "'=1+1" in compared(tmp_path, "runs.csv", *asked, "-f", "csv").stdout


def test_columns_called_as_keys_of_bnlab_tell_arms_apart_too(tmp_path: Path) -> None:
    lines = ["name;seed;acc", *(f"{name};{seed};0.{seed + 5}" for name in "xy" for seed in range(3))]
    found = read(write(tmp_path / "runs.csv", ["\ufeff" + lines[0], *lines[1:]]), arms=("name",))
    assert len(found.runs) == 6
    shown = compared(tmp_path, "runs.csv", "--arm", "name", "--seed", "seed", "--metric", "acc", "--baseline", "y")
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines() if line[:2] in ("x ", "y ")] == ["x", "y"]


def test_the_direction_is_that_of_the_name_or_of_its_sign(tmp_path: Path) -> None:
    names = {
        "val_acc": "higher",
        "trainLoss": "lower",
        "top1-error": "lower",
        "flip_rate": "lower",
        "accuracy_loss": None,
    }
    path = write(tmp_path / "runs.csv", [f"arm,seed,{','.join(names)},x", "a,0,1,2,3,4,5,6", "b,0,1,2,3,4,5,6"])
    found = read(path, wanted=(*names, "-x"))
    assert {metric.name: metric.better for metric in found.metrics} == {**names, "x": "lower"}
    assert "`--metric +accuracy_loss` or `-accuracy_loss` says it" in found.remarks[0]
    before = dict(metrics)
    with found.declared():
        assert metrics["x"].better == "lower"
    assert metrics == before


def test_seeds_may_be_any_text(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.csv", ["arm,seed,acc", "a,blue,1", "a,red,2", "b,red,1", "b,blue,2"])
    assert [run.seed for run in read(path).runs] == [0, 1, 1, 0]
    path = write(tmp_path / "runs.csv", ["arm,seed,acc", "a,1.0,1", "a,2.0,2"])
    assert [run.seed for run in read(path).runs] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "mlflow", "tensorboard"])
def test_what_bnlab_exports_compares_as_the_runs_do(tmp_path: Path, form: str) -> None:
    for norm, values in {"none": (0.90, 0.93, 0.91, 0.95), "batch": (0.92, 0.96, 0.93, 0.96)}.items():
        for seed, value in enumerate(values):
            make_run(tmp_path / "runs" / norm / str(seed), norm=norm, seed=seed, test_accuracy=[0.1, value])
    assert bnlab("export", form, cwd=tmp_path).returncode == 0
    source = {"csv": "export/csv/runs.csv"}.get(form, f"{form}:export/{form}")
    asked = ("--arm", "norm.name", "--seed", "seed", "--metric", "test_accuracy", "-f", "json")
    shown = compared(tmp_path, source, *asked)
    assert shown.returncode == 0, shown.stderr
    own = json.loads(bnlab("compare", "--metric", "test_accuracy", "-f", "json", cwd=tmp_path).stdout)
    for row, mine in zip(json.loads(shown.stdout)["rows"], own["rows"], strict=True):
        assert row["label"] == mine["label"]
        assert 100 * row["metrics"]["test_accuracy"]["mean"] == pytest.approx(mine["metrics"]["test_accuracy"]["mean"])
        if not row["is_baseline"]:
            theirs, ours = row["vs_baseline"]["test_accuracy"], mine["vs_baseline"]["test_accuracy"]
            assert theirs["p"] == pytest.approx(ours["p"], rel=1e-4)  # event files have 32 bits


@pytest.mark.slow
def test_a_store_that_is_none_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    before = (tmp_path / "other.db").read_bytes()
    write(tmp_path / "runs.csv", ["a,b"])
    (tmp_path / "logs").mkdir()
    for source, reason in {
        "mlflow:other.db": "is no store of MLflow",
        "mlflow:runs.csv": "is no store of MLflow",
        "mlflow:nowhere.db": "does not exist",
        "mlflow:sqlite:///nowhere.db": "is no store of MLflow",
        "tensorboard:runs.csv": "is no folder",
        "tensorboard:logs": "has no runs",
    }.items():
        assert reason in refusal(tmp_path, source, *ASKED)
    assert (tmp_path / "other.db").read_bytes() == before
    assert not (tmp_path / "nowhere.db").exists()


def test_signs_of_too_few_pairs_plan_the_seeds_of_a_first_look(table: Path) -> None:
    shown = compared(table.parent, "runs.csv", *ASKED, "--baseline", "sgd", "--test", "signs", "-f", "json")
    assert (shown.returncode, shown.stderr) == (0, "")
    gains = [a - b for a, b in zip(ACCURACY["lion"], ACCURACY["sgd"], strict=True)]
    size, sd = abs(statistics.fmean(gains)), statistics.stdev(gains)
    enough = (n for n in range(6, 300) if (stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) * sd / n**0.5 <= size)
    notes = json.loads(shown.stdout)["notes"]
    assert any("fewer than 6 pairs" in note for note in notes)
    wanted = next(enough)
    assert any(f"lion about {wanted:,}" in note for note in notes)


def test_as_many_seeds_as_signs_take_are_asked_for(tmp_path: Path) -> None:
    """Three large gains would be enough for t with four pairs; signs decide nothing below six."""
    gains = (0.10, 0.11, 0.12)
    rows = [f"a,{seed},0.5\nb,{seed},{0.5 + gain}" for seed, gain in enumerate(gains)]
    write(tmp_path / "runs.csv", ["optimizer,fold,val_acc", *rows])
    for test, said in {"t": "is better than", "signs": "3 seeds of both decide nothing, it takes 6"}.items():
        shown = compared(tmp_path, "runs.csv", *ASKED, "--baseline", "a", "--test", test, "--margin", "0.01")
        assert said in " ".join(shown.stdout.split()), shown.stdout


def test_texts_that_are_one_number_are_no_arm_without_a_word(tmp_path: Path) -> None:
    """Versions 2.1 and 2.10 would be pooled, where they have seeds of their own."""
    lines = ["torch,seed,acc", *(f"2.1,{seed},90.{seed}" for seed in range(3))]
    write(tmp_path / "runs.csv", [*lines, *(f"2.10,{seed},95.{seed}" for seed in range(3, 6))])
    said = refusal(tmp_path, "runs.csv", "--arm", "torch", "--seed", "seed", "--metric", "acc")
    assert "line 2 has 2.1 in torch, line 5 2.10: one number\n" in said
    assert "put a letter before it: v2.10" in said


@pytest.mark.parametrize("first", ["", "# made by a script"])
def test_a_first_line_that_names_no_columns_is_said_to_be_the_fault(tmp_path: Path, first: str) -> None:
    write(tmp_path / "runs.csv", [first, "arm,seed,acc", "a,0,95"])
    assert "let line 1 name the columns" in refusal(tmp_path, "runs.csv", *ASKED)


def test_small_figures_have_powers_of_ten(tmp_path: Path) -> None:
    """Four decimals would show a loss of 3.5e-6 as 0.0000 ± 0.0001."""
    values = {"a": (3.1e-6, 3.6e-6, 3.4e-6), "b": (4.2e-6, 4.9e-6, 4.3e-6)}
    rows = [f"{arm},{seed},{value}" for arm, each in values.items() for seed, value in enumerate(each)]
    write(tmp_path / "runs.csv", ["arm,seed,loss", *rows])
    shown = compared(tmp_path, "runs.csv", "--arm", "arm", "--seed", "seed", "--metric", "loss").stdout
    apart = [b - a for a, b in zip(*values.values(), strict=True)]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(apart) / 3**0.5
    assert f"+{statistics.mean(apart):.1e} ± {half:.1e} *".replace("e-0", "e-") in shown
    assert "0.0000" not in shown
