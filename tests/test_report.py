"""What `bnlab compare` and `bnlab show` print: whole renderings of a small comparison, and data that means harm."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bnlab.compare.result import Comparison, Row, Section
from bnlab.conformance.findings import Card
from bnlab.errors import brief
from bnlab.interval import Interval
from bnlab.metrics import metrics
from bnlab.report.bars import ruler
from bnlab.report.chart import Scale, line_chart, sparkline
from bnlab.report.check_report import CARD_FORMATS
from bnlab.report.compare_formats import FORMATS
from bnlab.report.compare_report import comparison_table, section_columns, skipped_lines
from bnlab.report.console import Terminal, clean
from bnlab.report.figures import bound, decimals_for, difference_cells, estimate_cells, number
from bnlab.report.heading import _flags, heading
from bnlab.report.layers_report import by_depth
from bnlab.report.run_report import run_page
from bnlab.report.table import draw
from bnlab.report.verdicts import baseline_name

ESC = "\x1b"
HOSTILE = "a\x1b[2J[red]b[/red]\n\u202e|<script>"


def mean(center: float, half: float | None, n: int = 5) -> Interval:
    low, high = (None, None) if half is None else (center - half, center + half)
    return Interval(center, low, high, n)


def row(name: str, accuracy: float, steps: Interval, **changes: Any) -> Row:
    metrics = {
        "test_accuracy": mean(accuracy, 0.0005),
        "steps_to_target": steps,
        "step_ms": mean(9.31, 0.25),
        "acc_gap": mean(-0.0021, 0.0008),
        "flip_rate": mean(0.0048, 0.0012),
    }
    curve = [0.1, accuracy - 0.08, accuracy - 0.02, accuracy - 0.005, accuracy]
    plain = Row({"norm.name": name}, name, 5, {"done": 5}, name == "none", metrics, {}, curve, learned=(5, 5))
    return replace(plain, **changes)


def section(**changes: Any) -> Section:
    reached = Interval(1204.0, 1118.0, 1290.0, 5, kind="median")
    better = {"test_accuracy": Interval(0.0041, 0.0031, 0.0051, 5, 0.003)}
    unclear = {"test_accuracy": Interval(-0.0003, -0.0013, 0.0007, 5, 0.41)}
    rows = [
        row("none", 0.983, reached),
        row(
            "batch",
            0.9871,
            Interval(412.0, 390.0, 455.0, 5, kind="median"),
            vs_baseline=better,
            against="none",
            verdicts={"test_accuracy": "better", "steps_to_target": "better"},
        ),
        row(
            "instance",
            0.9827,
            Interval(math.nan, None, None, 5, num_missed=3, limit=1880.0, kind="median"),
            n=4,
            states={"done": 4, "diverged": 1},
            vs_baseline=unclear,
            against="none",
            learned=(4, 5),
            p_learned=1.0,
        ),
    ]
    settings = {
        "data.name": "mnist",
        "model.name": "cnn",
        "model.widths": "[32,64]",
        "schedule.name": "one_cycle",
        "trainer.epochs": 3.0,
        "trainer.steps": None,
        "data.batch_size": 64,
        "trainer.channels_last": True,
    }
    machine = {"device": "cpu", "threads": 2, "torch": "2.15.0"}
    plain = Section(
        settings, [machine], ["norm.name"], "test_accuracy", rows, ["compare speed by `bnlab bench`"], 0.98, steps=1880
    )
    return replace(plain, **changes)


def printed(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch, columns: int, encoding: str = "utf-8", **environ: str
) -> str:
    """Return what a console with this environment writes."""
    for key in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(key, raising=False)
    for key, value in {"COLUMNS": str(columns), **environ}.items():
        monkeypatch.setenv(key, value)
    raw = io.BytesIO()
    terminal = Terminal(io.TextIOWrapper(raw, encoding=encoding))
    terminal.print(comparison_table(comparison, terminal))
    terminal.file.flush()
    return "\n".join(line.rstrip() for line in raw.getvalue().decode(encoding).split("\n"))


AT_120 = """\
instance learns in 4 of 5 seeds (exact p = 1), none in 5 of 5: too few seeds to be sure by counts alone.
batch is better than none in test accuracy (+0.41 ± 0.10 points); instance is undecided.

mnist · cnn 32-64 · one-cycle, 3 epochs, batch 64 · cpu, 2 threads, channels_last · torch 2.15.0 · 5 seeds an arm

norm      runs            test acc %         vs none          steps to 98 %      step ms  gap train-eval  flips %  curve
────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
none                    98.30 ± 0.05        baseline    1,204 (1,118–1,290)  9.31 ± 0.25    -0.21 ± 0.08     0.48  ▁▁▄▆▇
batch                   98.71 ± 0.05  +0.41 ± 0.10 *      412 (390–455)      9.31 ± 0.25    -0.21 ± 0.08     0.48  ▁▁▅▇█
instance  1/5 diverged  98.27 ± 0.05  -0.03 ± 0.10    > 1,880 (2 of 5)       9.31 ± 0.25    -0.21 ± 0.08     0.48  ▁▁▄▆▇

±: 95% interval over seeds · *: differs from none at the 5% level, paired by seed, Holm-corrected
curve: test accuracy, ▁ 90.27 % or less to █ 98.71 % on a log scale of the error, one axis for all rows
· compare speed by `bnlab bench`
"""

AT_80 = """\
instance learns in 4 of 5 seeds (exact p = 1), none in 5 of 5: too few seeds to
be sure by counts alone.
batch is better than none in test accuracy (+0.41 ± 0.10 points); instance is
undecided.

mnist · cnn 32-64 · one-cycle, 3 epochs, batch 64
cpu, 2 threads, channels_last · torch 2.15.0 · 5 seeds an arm

norm      runs            test acc %         vs none     steps to 98 %  curve
─────────────────────────────────────────────────────────────────────────────
none                    98.30 ± 0.05        baseline    1,204           ▁▁▄▆▇
batch                   98.71 ± 0.05  +0.41 ± 0.10 *      412           ▁▁▅▇█
instance  1/5 diverged  98.27 ± 0.05  -0.03 ± 0.10    > 1,880 (2 of 5)  ▁▁▄▆▇

±: 95% interval over seeds
*: differs from none at the 5% level, paired by seed, Holm-corrected
curve: test accuracy, ▁ 90.27 % or less to █ 98.71 % on a log scale of the
error, one axis for all rows
left out for width: acc_gap, step_ms, flip_rate (--metric NAME shows them)
· compare speed by `bnlab bench`
"""

AT_40 = """\
instance learns in 4 of 5 seeds (exact p
= 1), none in 5 of 5: too few seeds to
be sure by counts alone.
batch is better than none in test
accuracy (+0.41 ± 0.10 points); instance
is undecided.

mnist · cnn 32-64
one-cycle, 3 epochs, batch 64
cpu, 2 threads, channels_last
torch 2.15.0 · 5 seeds an arm

norm=none
  test acc %      98.30 ± 0.05
  vs none         baseline
  steps to 98 %   1,204 (1,118–1,290)
  step ms         9.31 ± 0.25
  gap train-eval  -0.21 ± 0.08
  flips %         0.48 ± 0.12
  curve           ▁▁▄▆▇

norm=batch
  test acc %      98.71 ± 0.05
  vs none         +0.41 ± 0.10 *
  steps to 98 %   412 (390–455)
  step ms         9.31 ± 0.25
  gap train-eval  -0.21 ± 0.08
  flips %         0.48 ± 0.12
  curve           ▁▁▅▇█

norm=instance
  runs            1/5 diverged
  test acc %      98.27 ± 0.05
  vs none         -0.03 ± 0.10
  steps to 98 %   > 1,880 (2 of 5)
  step ms         9.31 ± 0.25
  gap train-eval  -0.21 ± 0.08
  flips %         0.48 ± 0.12
  curve           ▁▁▄▆▇

±: 95% interval over seeds
*: differs from none at the 5% level,
paired by seed, Holm-corrected
curve: test accuracy, ▁ 90.27 % or less
to █ 98.71 % on a log scale of the
error, one axis for all rows
· compare speed by `bnlab bench`
"""


@pytest.mark.parametrize(("columns", "golden"), [(120, AT_120), (80, AT_80), (40, AT_40)])
def test_the_table_at_three_widths(monkeypatch: pytest.MonkeyPatch, columns: int, golden: str) -> None:
    assert printed(Comparison([section()]), monkeypatch, columns) == golden


@pytest.mark.parametrize("columns", [20, 45, 60, 61, 70, 80, 95, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_the_main_figures_stay_whole(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    text = printed(Comparison([section()]), monkeypatch, columns)
    assert max(map(len, text.split("\n"))) <= columns
    for whole in ("98.71 ± 0.05", "+0.41 ± 0.10 *", "instance"):
        assert whole in text


def test_columns_go_by_their_rank_and_are_named() -> None:
    columns = section_columns(section())
    terminal = Terminal(io.StringIO())
    terminal.width = 120
    everything = draw(columns, terminal)
    assert ([c.title for c in everything.kept], everything.left_out) == ([c.title for c in columns], [])
    terminal.width = 70
    drawn = draw(columns, terminal)
    assert max(line.cell_len for line in drawn.lines) <= 70
    assert [c.key for c in drawn.left_out] == ["curve", "acc_gap", "step_ms", "flip_rate"]
    terminal.width = 30
    blocks = draw(columns, terminal)  # the arm, the runs, the figure and the difference stay: blocks instead
    assert (len(blocks.kept), blocks.left_out, blocks.lines[0].plain) == (len(columns), [], "norm=none")


def test_the_curve_is_not_named_as_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(printed(Comparison([section()]), monkeypatch, 72).split())
    assert "left out for width: the curve (a wider terminal shows it)" in text
    named = re.findall(r"left out for width: ([\w, ]+) \(--metric NAME", text)
    assert len(named) == 1
    assert set(named[0].split(", ")) < set(metrics)


def test_metrics_asked_for_take_the_place_of_the_usual_ones() -> None:
    titles = [column.title for column in section_columns(section(), ["flip_rate"])]
    assert titles == ["norm", "runs", "test acc %", "vs none", "flips %", "curve"]


def test_an_ascii_stream_gets_the_same_table_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(Comparison([section()]), monkeypatch, 120, encoding="ascii")
    assert "98.71 +- 0.05" in text
    assert "+0.41 +- 0.10 *" in text
    assert "mnist | cnn 32-64" in text
    lines = [line for line in text.split("\n") if "+-" in line and "98." in line]
    assert len({line.index("98.") for line in lines}) == 1


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Comparison([section()])
    assert ESC in printed(whole, monkeypatch, 120, FORCE_COLOR="1", TERM="xterm")
    assert ESC not in printed(whole, monkeypatch, 120)
    assert ESC not in printed(whole, monkeypatch, 120, FORCE_COLOR="1", TERM="xterm", NO_COLOR="1")
    assert ESC not in printed(whole, monkeypatch, 120, FORCE_COLOR="1", TERM="dumb")


def hostile() -> Comparison:
    bad = [replace(r, arm={"norm.name": HOSTILE}, label=HOSTILE) for r in section().rows]
    environment = {"gpu": HOSTILE, "threads": [HOSTILE], "torch": {"a": HOSTILE}}
    settings = {"data.name": HOSTILE, "trainer.epochs": HOSTILE, "data.batch_size": math.inf, "model.widths": 7}
    return Comparison(
        [section(rows=bad, settings=settings, environments=[environment], notes=[HOSTILE])], [(Path(HOSTILE), HOSTILE)]
    )


@pytest.mark.parametrize("columns", [30, 80, 200])
def test_no_control_character_comes_from_data_in_the_table(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    text = printed(hostile(), monkeypatch, columns)
    assert ESC not in text
    assert "\u202e" not in text
    assert "[red]" in text.replace("\n", "").replace(" ", "")  # markup is text
    assert all(ESC not in line and "\n" not in line for line in skipped_lines(hostile()))


def test_of_very_many_folders_that_cannot_be_read_the_first_are_named() -> None:
    lines = skipped_lines(Comparison([], [(Path(f"runs/{n}"), "no status.json") for n in range(1020)]))
    assert lines[0] == "runs/0: unreadable (no status.json)"
    assert lines[19:] == [
        "runs/19: unreadable (no status.json)",
        "1,000 more are unreadable; bnlab compare --format json names all",
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_no_control_character_comes_from_data_in_any_format(name: str) -> None:
    text = FORMATS[name](hostile())
    assert ESC not in text
    assert "\u202e" not in text


def test_json_has_the_documented_shape_and_figures_in_their_unit() -> None:
    made = json.loads(FORMATS["json"](Comparison([section()])))
    assert (made["schema"], made["baseline"], made["skipped"]) == (2, "none", [])
    assert made["answer"][1] == (
        "batch is better than none in test accuracy (+0.41 ± 0.10 points); instance is undecided."
    )
    batch, instance = made["rows"][1:]
    assert (batch["arm"], batch["n"], batch["status"]) == ({"norm.name": "batch"}, 5, {"done": 5})
    accuracy = batch["metrics"]["test_accuracy"]
    assert {k: accuracy[k] for k in ("mean", "low", "high", "n", "unit", "better")} == {
        "mean": 98.71, "low": 98.66, "high": 98.76, "n": 5, "unit": "%", "better": "higher",
    }  # fmt: skip
    assert batch["vs_baseline"]["test_accuracy"] == {
        "difference": 0.41, "low": 0.31, "high": 0.51, "p": 0.003, "n": 5, "verdict": "better",
    }  # fmt: skip
    late = instance["metrics"]["steps_to_target"]
    assert (late["median"], late["num_reached"], late["limit"]) == (None, 2, 1880)


def test_json_of_several_sections_is_a_list_of_the_same() -> None:
    made = json.loads(FORMATS["json"](Comparison([section(), section()], [(Path("runs/x"), "is empty")])))
    assert [s["baseline"] for s in made["sections"]] == ["none", "none"]
    assert made["skipped"] == [{"path": "runs/x", "reason": "is empty"}]


def test_json_writes_null_for_what_is_not_finite() -> None:
    rows = [row("none", math.nan, Interval(math.nan, None, None, 0))]
    made = json.loads(FORMATS["json"](Comparison([section(rows=rows)])), parse_constant=pytest.fail)
    assert made["rows"][0]["metrics"]["test_accuracy"]["mean"] is None
    assert made["rows"][0]["curve"][-1] is None


def test_several_baselines_are_called_by_what_they_share() -> None:
    arms = [
        row("none", 0.98, mean(400.0, None), arm={"norm.name": "none", "optim.lr": lr}, label=f"norm=none lr={lr}")
        for lr in (0.1, 0.5)
    ]
    two = section(rows=arms, changed=["norm.name", "optim.lr"])
    assert baseline_name(two) == "none"
    assert json.loads(FORMATS["json"](Comparison([two])))["baseline"] == ["norm=none lr=0.1", "norm=none lr=0.5"]


@pytest.mark.parametrize("label", ["=cmd()", "+1", "-rf", "@SUM(A1)", "\t=1", " =1"])
def test_a_csv_cell_is_never_a_formula(label: str) -> None:
    arm = replace(section().rows[0], arm={"norm.name": label}, label=label)
    records = list(csv.DictReader(io.StringIO(FORMATS["csv"](Comparison([section(rows=[arm])])))))
    assert {r["arm"] for r in records} == {f"'{clean(label)}"} or clean(label).startswith("\\")
    assert all(not value or value[0] not in "=+@\t\r" for r in records for value in r.values())


def test_two_digits_are_of_a_figure_and_not_of_its_power_of_ten() -> None:
    figures = [0.0042, 1, 42.4, 99.4, 99.6, 100, -223.4, 4200, 9.8e14, math.inf, 0]
    said = ["0.0042", "1", "42", "99", "100", "100", "-223", "4,200", "9.8e+14", "inf", "0"]
    assert [brief(figure) for figure in figures] == said


def test_csv_has_a_line_for_each_arm_and_metric() -> None:
    records = list(csv.DictReader(io.StringIO(FORMATS["csv"](Comparison([section()])))))
    assert len(records) == 3 * 5
    accuracy = next(r for r in records if r["norm.name"] == "batch" and r["metric"] == "test_accuracy")
    assert [accuracy[k] for k in ("center", "low", "high", "difference", "p")] == [
        "98.71",
        "98.66",
        "98.76",
        "0.41",
        "0.003",
    ]
    gap = next(r for r in records if r["norm.name"] == "instance" and r["metric"] == "acc_gap")
    assert (gap["center"], gap["states"], gap["difference"]) == ("-0.21", "done=4 diverged=1", "")


def test_plain_text_is_one_line_an_arm() -> None:
    lines = FORMATS["plain"](Comparison([section()])).splitlines()
    arms = [line for line in lines if not line.startswith("#")]
    assert arms[0].split()[:4] == ["norm.name", "n", "states", "test_accuracy[%]"]
    assert [line.split()[0] for line in arms[1:]] == ["none", "batch", "instance"]
    assert len({line.index("98.") for line in arms[1:]}) == 1
    assert not any("\t" in line for line in lines)


def test_markdown_escapes_what_would_break_its_table() -> None:
    arm = replace(section().rows[0], arm={"norm.name": "a|b<c>"}, label="x")
    lines = FORMATS["md"](Comparison([section(rows=[arm])])).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[2].startswith(r"| a\|b\<c> | 5 | 98.30 ± 0.05 |")
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1
    assert lines[lines.index(table[-1]) + 2] == "±: 95% interval over seeds"
    told = FORMATS["md"](Comparison([section(level=0.02)]))
    assert "\n±: 95% interval over seeds, of differences 98%; \\*: differs from none at the 5% level" in told


@pytest.mark.parametrize(
    ("half", "text"), [(0.0534, "98.71 ± 0.05"), (0.1049, "98.71 ± 0.10"), (0.512, "98.7 ± 0.5"), (12.3, "99 ± 12")]
)
def test_digits_follow_the_interval(half: float, text: str) -> None:
    assert str(estimate_cells([mean(98.7123, half)], 1)[0]) == text


def test_an_interval_is_never_invented_nor_rounded_to_nothing() -> None:
    single, exact, zero = estimate_cells([mean(98.7123, None, n=1), mean(98.7, 0.11), mean(98.7, 0.0)], 1)
    assert (str(single), str(exact), str(zero)) == ("98.71", "98.70 ± 0.11", "98.70 ± 0.00")
    wide, narrow = estimate_cells([mean(98.7, 0.11), mean(98.7, 0.0004)], 1)
    assert (str(wide), str(narrow)) == ("98.70 ± 0.11", "98.70 ± 0.01")


def test_a_column_that_would_vanish_has_powers_of_ten() -> None:
    cells = estimate_cells([mean(3.5e-6, 2.9e-7), Interval(4e-6, 3e-6, 7e-6, 5), mean(0.0, None, n=1)], 1)
    assert [str(cell) for cell in cells] == ["3.5e-6 ± 2.9e-7", "4.0e-6 (3.0e-6–7.0e-6)", "0"]
    assert str(estimate_cells([mean(3.5e-6, 2.9e-7), mean(0.25, 0.02)], 1)[0]) == "0.000 ± 0.001"
    assert str(difference_cells([mean(-9.8e-7, 4.4e-7)], 1, 2)[0]).startswith("-9.8e-7 ± 4.4e-7")


def test_uneven_and_censored_estimates_say_so() -> None:
    cells = estimate_cells(
        [
            Interval(412.0, 390.0, 450.0, 5, kind="median"),
            Interval(940.0, 900.0, None, 5, num_missed=1, limit=1880.0, kind="median"),
            Interval(math.nan, None, None, 5, num_missed=3, limit=1880.0, kind="median"),
            Interval(math.nan, None, None, 0),
            None,
        ],
        1,
        whole=True,
    )
    assert [str(cell) for cell in cells] == ["412 (390–450)", "940 (≥ 900) (4 of 5)", "> 1,880 (2 of 5)", "–", "–"]


@pytest.mark.parametrize(
    ("limit", "text"), [(0.1, "0.1"), (0.0523, "0.052"), (5.26, "5.3"), (26.9, "27"), (5.0, "5"), (0.0, "0")]
)
def test_a_limit_is_never_rounded_to_nothing(limit: float, text: str) -> None:
    cells = estimate_cells([Interval(math.nan, None, None, 3, num_missed=3, limit=limit, kind="median")], 1)
    assert str(cells[0]) == f"> {text} (0 of 3)"


def test_a_difference_keeps_its_sign() -> None:
    cells = difference_cells([Interval(c, c - 0.5, c + 0.5, 3, 0.9) for c in (-0.037, 0.037, 0.0)], 1, 2)
    assert [str(cell) for cell in cells] == ["-0.0 ± 0.5", "+0.0 ± 0.5", "+0.0 ± 0.5"]


def test_a_star_needs_a_corrected_p_below_five_percent() -> None:
    cells = difference_cells([Interval(0.4, 0.3, 0.5, 5, 0.0499), Interval(0.4, 0.3, 0.5, 5, 0.05), None], 1, 2)
    assert [str(cell) for cell in cells] == ["+0.40 ± 0.10 *", "+0.40 ± 0.10", "–"]


def test_numbers() -> None:
    assert number(1880.4, 0) == "1,880"
    assert number(-0.001, 2) == "0.00"
    assert number(-0.001, 2, signed=True) == "-0.00"
    assert (number(0.0, 1, signed=True), number(-0.0, 1, signed=True)) == ("+0.0", "+0.0")
    assert number(3.2e12, 2) == "3.20e+12"
    assert number(math.inf, 2) == "–"
    assert decimals_for([98.7, 3.0], []) == 2


def test_an_end_that_bounds_nothing_is_no_number_to_read() -> None:
    far = Interval(77.0, 1.2e-48, 6.5e50, 2)
    assert [str(cell) for cell in estimate_cells([far], 1)] == ["77 (0–∞)"]
    assert [str(cell) for cell in estimate_cells([replace(far, high=900.0)], 1)] == ["77 (0–900)"]
    large = Interval(3e12, 1e12, 9e12, 2)
    assert [bound(end, large.value) for end in (1e12, 9e12, 1e19, -1e19)] == [1e12, 9e12, math.inf, -math.inf]
    only = section(rows=[row("none", 0.98, far, metrics={"test_accuracy": mean(0.98, 0.1), "step_ms": far})])
    told = json.loads(FORMATS["json"](Comparison([only])))["rows"][0]["metrics"]["step_ms"]
    assert (told["low"], told["high"]) == (1.2e-48, 6.5e50)  # for programs as it is
    assert "(0–∞)" in FORMATS["md"](Comparison([only]))


def test_a_ruler_has_round_values_where_they_lie() -> None:
    out = Terminal(io.StringIO())
    for scale, marks in (
        (Scale("linear", -1.3, 4.2), (-1.0, 1.0)), (Scale("log", 0.3, 470.0), (2.0,)),
        (Scale("log", 1.08, 1.31), (1.2,)), (Scale("error", 0.766, 0.967), ()),
        (Scale("error", 0.951, 0.953), ()), (Scale("log", 1e-6, 3e9), (1.0,)),
    ):  # fmt: skip
        for width in (16, 24, 50):
            line = ruler(scale, width, out, marks=marks)
            assert len(line) <= width
            values = [(found, float(found[0])) for found in re.finditer(r"[-.e\d]+", line)]
            assert len(values) >= (1 if width == 16 else 2)
            for found, value in values:
                place = scale.height(value) * (width - 1)
                assert found.start() - 1.6 <= place <= found.end() + 0.6, (line, value)
            assert all(line[round(scale.height(mark) * (width - 1))] == "▲" for mark in marks)


def test_one_seed_and_arms_without_runs_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    one = row("none", 0.98, Interval(400.0, None, None, 1, kind="median"), n=1, states={"done": 1})
    one = replace(one, metrics={"test_accuracy": mean(0.98, None, n=1)})
    empty = row("batch", 0.9, one.metrics["test_accuracy"], n=0, states={"failed": 1}, metrics={}, curve=[])
    text = printed(Comparison([section(rows=[one, empty])]), monkeypatch, 100)
    assert "98.00 n=1" in text
    assert "1/1 failed" in text
    assert "±" not in text


def test_the_header_names_what_is_shared_only() -> None:
    settings = {k: v for k, v in section().settings.items() if k != "data.batch_size"}
    machines = [{"device": "cpu", "threads": 1, "torch": "2.14.0"}, {"device": "cpu", "threads": 2, "torch": "2.15.0"}]
    parts = heading(section(settings=settings, environments=machines))
    assert parts == [
        "mnist", "cnn 32-64", "one-cycle, 3 epochs", "cpu, 1 / 2 threads, channels_last", "torch 2.14.0 / 2.15.0",
        "5 seeds an arm",
    ]  # fmt: skip


def test_no_length_is_said_where_the_steps_differ() -> None:
    shared = section().settings
    assert "one-cycle, 1 step, batch 64" in heading(section(settings=shared | {"trainer.steps": 1}))
    differing = {key: value for key, value in shared.items() if key != "trainer.steps"}
    assert "one-cycle, batch 64" in heading(section(settings=differing))


def test_seeds_are_counted_where_runs_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    def arm(name: str, *seeds: int, runs: int) -> Row:
        figures = {"test_accuracy": mean(0.98, 0.01 if len(seeds) > 1 else None, n=len(seeds))}
        made = row(name, 0.98, figures["test_accuracy"])
        return replace(made, n=runs, states={"done": runs}, metrics=figures, seeds=frozenset(seeds))

    assert heading(section(rows=[arm("none", 0, 1, runs=4)]))[-1] == "2 seeds (4 runs) an arm"
    rows = [arm("none", 0, 1, runs=4), arm("batch", 0, 1, runs=4), arm("layer", 0, runs=2)]
    assert heading(section(rows=rows))[-1] == "1 to 2 seeds (2 to 4 runs) an arm"
    lines = printed(Comparison([section(rows=rows)]), monkeypatch, 100).splitlines()
    assert next(line for line in lines if line.startswith("none")).split()[:4] == ["none", "98.0", "±", "1.0"]
    assert next(line for line in lines if line.startswith("layer")).split()[:4] == ["layer", "n=1", "98.0", "n=1"]
    for name, cell in (("plain", 1), ("md", 3)):
        lines = FORMATS[name](Comparison([section(rows=rows)])).splitlines()
        assert [line.split()[cell] for line in lines if "done=" in line] == ["2", "2", "1"]


def test_curves_near_one_are_told_apart_on_the_scale_of_the_error() -> None:
    scale = Scale.over([0.9, 0.98, 0.99], "error")
    assert sparkline([0.9, 0.98, 0.99], scale, 8) == "▁▆█"
    assert scale.at(scale.height(0.98)) == pytest.approx(0.98)
    assert sparkline([0.9, math.nan, 0.99], scale, 8) == "▁×█"
    assert sparkline([0.9] * 50 + [0.99], scale, 6) == "▁▁▁▁▁█"


@pytest.mark.parametrize("braille", [True, False])
def test_a_chart_rises_with_its_curve(braille: bool) -> None:
    lines = line_chart({"a": ([0, 10], [0.0, 1.0])}, "linear", 40, 5, braille=braille)
    assert len(lines) == 6
    filled = [line.plain.split("┤")[-1].split("│")[-1].split("|")[-1] for line in lines[:5]]
    starts = [len(text) - len(text.lstrip()) for text in filled]
    assert starts == sorted(starts, reverse=True)
    assert all(len(line.plain) <= 40 for line in lines)
    assert line_chart({"a": ([], [])}, "log", 40)[0].plain == "no finite values"


def test_the_labels_of_a_log_axis_tell_its_places_apart() -> None:
    lines = line_chart({"a": ([0, 10], [2e-7, 1.0])}, "log", 40, 6)
    labels = [float(line.plain.partition("┤")[0]) for line in lines if "┤" in line.plain]
    ends = math.log(2e-7) / 12  # the middle of the first row lies a twelfth below the top
    assert labels == pytest.approx([math.exp(ends), math.exp(5 * ends), math.exp(11 * ends)], rel=0.1)


def shown(summary: Any, status: Any, folder: Path, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    terminal = Terminal(io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    terminal.width = width  # whatever COLUMNS says
    terminal.print(run_page(summary, status, folder, terminal))
    return raw.getvalue().decode(encoding)


def test_a_run_at_a_glance(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").touch()
    summary = {
        "state": "done",
        "config": {"seed": 0, "norm": {"name": "batch", "momentum": 0.1}, "model": {"name": "cnn", "widths": [32, 64]}},
        "environment": {"cpu": "a CPU", "torch": "2.15.0", "git_commit": "0123456789abcdef", "git_dirty": True},
        "initial_share": {"momentum": 0.1, "decay": 0.9, "share_left": 0.02, "half_life_steps": 6.58},
        "steps": 1880, "epochs": 2.0, "step_ms": {"median": 9.3, "p10": 9.0, "p90": 10.0}, "unnormalizable_batches": 3,
        "curve": {"step": [0, 940, 1880], "test.accuracy": [0.1, 0.97, 0.9871], "test.loss": [2.3, 0.1, 0.04],
                  "test.acc_gap": [0, 0, -0.003], "test.flip_rate": [0, 0, 0.0048]},
    }  # fmt: skip
    text = " ".join(shown(summary, {"state": "done"}, tmp_path).split())
    for part in (
        "state done", "norm batch, momentum=0.1", "model cnn, widths=[32,64]", "test 98.71 %", "-0.30 points",
        "0.48 % of the predictions change", "0.1 of each new batch, 0.9 of the old value, half-life 6.58 steps",
        "2 % of the initial statistics left", "1,880 steps (2 epochs)", "3 batches had one value a channel",
        "2 % of the initial statistics (mean 0, variance 1) are left",
        "commit 0123456789 with changes", "steps.csv loss and learning rate of every step",
    ):  # fmt: skip
        assert part in text
    assert "evals.csv" not in text


LAYERS = {
    "stem.norm": {"depth": 1, "channels": 8, "mean_z": 0.02, "log_std_ratio": 0.01,
                  "curve": {"mean_z": [0.5, 0.1, 0.02], "log_std_ratio": [-0.7, 0.2, 0.01]}},
    "head.norm": {"depth": 2, "channels": 8, "mean_z": 0.4, "log_std_ratio": -0.05,
                  "curve": {"mean_z": [0.1, 0.3, 0.4], "log_std_ratio": [0.1, -0.3, -0.05]}},
}  # fmt: skip
WITH_LAYERS = {
    "state": "done", "eval_seconds": 3.0, "train_seconds": 15.0, "discrepancy_seconds": 1.1, "discrepancy_share": 0.073,
    "config": {"seed": 0, "measure": "full"}, "layers": LAYERS,
    "curve": {"step": [0, 940, 1880], "test.kl": [0.5, 0.02, 0.001], "test.acc_gap": [0.8, 0, -0.003]},
}  # fmt: skip
BY_DEPTH = """\
running statistics against those of the test probe, by depth
layer      mean z                            log std ratio
────────────────────────────────────────────────────────────────────────
stem.norm   0.020  █▎                               +0.010  ██▍
head.norm   0.400  ████████████████████████         -0.050  ████████████
"""


def test_the_discrepancy_by_depth_and_over_training(tmp_path: Path) -> None:
    text = "\n".join(line.rstrip() for line in shown(WITH_LAYERS, {}, tmp_path, 110).splitlines())
    assert BY_DEPTH in text
    words = " ".join(text.split())
    assert "3.0 s evaluation, of evaluation 1.1 s (7 % of training) for train-versus-eval" in words
    assert "measure full" in words
    assert "KL(training mode || evaluation mode), nats (log scale)" in words
    assert "layer that is farthest off (log scale)" in words


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_layers_fit_the_terminal_and_have_an_ascii_form(tmp_path: Path, width: int) -> None:
    deep = {f"stage{i}.block.norm_of_a_long_name": LAYERS["head.norm"] | {"depth": i} for i in range(1, 60)}
    for unicode in (True, False):
        encoding = "utf-8" if unicode else "ascii"
        text = shown(WITH_LAYERS | {"layers": deep}, {}, Path("r"), width, encoding)
        assert max(map(len, text.splitlines())) <= width
        assert unicode or text.isascii()
        assert "and 19 more in layers.csv" in text
        assert ("█" if unicode else "####") in text


def test_a_bar_is_short_where_the_figure_does_not_matter() -> None:
    tiny = {"layers": {"1": {"depth": 1, "mean_z": 0.001, "log_std_ratio": 0.0}}}
    terminal = Terminal(io.StringIO())
    (line,) = (text.plain for text in by_depth(tiny, terminal) if str(text).startswith("1"))
    assert line.replace("▎", "").split() == ["1", "0.001", "+0.000"]


def test_runs_without_a_discrepancy_by_layer_show_none(tmp_path: Path) -> None:
    older = {key: value for key, value in WITH_LAYERS.items() if not key.startswith(("layers", "discrepancy"))}
    older["curve"] = {"step": [0, 940], "test.acc_gap": [0.8, 0.1], "test.flip_rate": [0.8, 0.1]}
    without = WITH_LAYERS | {"layers": {}, "curve": {"step": [0, 940], "test.kl": [0.0, 0.0]}}
    for summary in (older, without):
        text = shown(summary, {}, tmp_path)
        assert "3.0 s evaluation" in text
        for part in ("by depth", "farthest", "KL("):
            assert part not in text
    assert "train-versus-eval" not in shown(older, {}, tmp_path)


def test_a_run_without_a_summary_says_what_happened_and_where_the_log_is() -> None:
    status = {"state": "killed", "error": "killed by \x1b[31mSIGKILL"}
    text = " ".join(shown({}, status, Path("runs/x"), 200).split())
    assert r"killed, killed by \x1b[31mSIGKILL, see runs/x/run.log" in text


def test_a_run_that_diverged_says_where(tmp_path: Path) -> None:
    summary = {"state": "diverged", "diverged_at": 1313, "curve": {"step": [0], "test.loss": [None]}}
    status = {"state": "diverged", "error": "loss not finite at step 1313"}
    text = shown(summary, status, tmp_path)
    assert "diverged, loss not finite at step 1313" in text
    assert text.count("not finite") == 1


def test_one_is_no_plural(tmp_path: Path) -> None:
    bench = {"rounds": 1, "stopped_by": "budget"}
    text = shown({"steps": 1, "epochs": 1.0, "initial_share": {"half_life_steps": 1.0}}, {}, tmp_path)
    assert "1 step (1 epoch)" in text
    assert "half-life 1 step\n" in "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    assert "1 round, stopped by" in shown({"bench": bench}, {}, tmp_path)
    card = Card("batch", declared=True, channels=1, batch=8, images_only=False, findings=[])
    assert CARD_FORMATS["md"]([card]).startswith("**batch**, 1 channel\n")


@pytest.mark.parametrize("junk", [None, 7, "x", [], {}, True, [None], {"step": "x"}, 10**400])
def test_a_summary_of_any_json_is_shown_without_failing(tmp_path: Path, junk: Any) -> None:
    keys = ("config", "environment", "initial_share", "steps", "epochs", "step_ms", "curve", "diverged_at", "state")
    shown(dict.fromkeys(keys, junk), {"state": junk, "error": junk, "started": junk}, tmp_path)
    curve = {"step": [0, junk], "test.accuracy": [0.1, junk], "train.loss": junk, "test.acc_gap": [junk]}
    shown({"curve": curve, "config": {"norm": junk, "seed": junk}}, {}, tmp_path)
    whole = {"depth": 1, "mean_z": 0.1, "log_std_ratio": 0.1, "curve": {"mean_z": [junk, 0.1], "log_std_ratio": junk}}
    for layers in (junk, {"a": junk}, {"a": dict.fromkeys(whole, junk)}, {"a": whole}, {HOSTILE: whole}):
        made = {"layers": layers, "curve": {"step": [0, 1], "test.kl": [junk, 0.1]}, "discrepancy_share": junk}
        text = shown(made, {}, tmp_path)
        assert ESC not in text
        assert "\u202e" not in text


def test_workers_stand_in_the_heading_where_there_are_several() -> None:
    def lines(*counts: int) -> list[str]:
        environments: list[dict[str, Any]] = [{"device": "cpu", "workers": count} for count in counts]
        return heading(section(environments=environments))

    assert not any("worker" in line for line in lines(1))
    assert any("2 workers" in line for line in lines(2))
    assert any("1/2 workers" in line for line in lines(1, 2))


def test_a_network_over_vectors_has_no_memory_layout() -> None:
    for model, said in (("mlp", []), ("cnn", ["channels_last"])):
        assert list(_flags({"trainer.channels_last": True, "model.name": model})) == said
