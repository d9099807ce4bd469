"""`bnlab compare --pivot`: one metric as a matrix of two keys, in every format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_runs import bnlab_compare, make_run
from scipy import stats

from bnlab.compare.arms import where_of
from bnlab.compare.comparison import compare
from bnlab.compare.frames import runs_frame
from bnlab.compare.pivot import Matrix, matrices, pivot_keys
from bnlab.errors import ConfigError
from bnlab.record.read import Run
from bnlab.report.console import Terminal, clean
from bnlab.report.pivot_report import PIVOT_FORMATS, pivot_table

KEYS = ["norm.name", "norm.momentum", "model.name", "optim.name", "optim.lr", "optim.momentum", "x.mixup", "seed"]
MODELS, NORMS = ("cnn", "mlp"), ("none", "batch", "ghost")


def accuracy(norm: str, model: str, seed: int) -> float:
    base = {"none": 0.90, "batch": 0.95, "ghost": 0.93}[norm] - 0.02 * (model == "mlp")
    return round(base + 0.004 * seed * (1 + NORMS.index(norm)), 4)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three strategies, two models, three seeds; ghost has no mlp, and batch with mlp loses a seed."""
    for norm in NORMS:
        for model in MODELS:
            for seed in range(3):
                if (norm, model) == ("ghost", "mlp"):
                    continue
                lost = (norm, model, seed) == ("batch", "mlp", 2)
                make_run(
                    tmp_path / f"{norm}-{model}-{seed}",
                    norm=norm,
                    seed=seed,
                    test_accuracy=[0.1, accuracy(norm, model, seed)],
                    state="diverged" if lost else "done",
                    config={"model.name": model},
                )
    return tmp_path


COLOURED = {"NO_COLOR": "", "FORCE_COLOR": "1", "TERM": "xterm-256color"}


def run_with(*keys: str, **others: object) -> Run:
    config: Any = {**dict.fromkeys(keys, 1), **others}
    return Run(folder=Path("run"), state="done", identity="", config=config, seed=0)


def only(root: Path, pivot: str, **options: object) -> Matrix:
    (matrix,) = matrices(compare([root], pivot=pivot, **options))  # type: ignore[arg-type]
    return matrix


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("normxmodel", ("norm.name", "model.name")),
        ("norm x model", ("norm.name", "model.name")),
        ("norm.name x model.name", ("norm.name", "model.name")),
        ("model.namexoptim.lr", ("model.name", "optim.lr")),
        ("lrxoptim.momentum", ("optim.lr", "optim.momentum")),
        ("mixupxlr", ("x.mixup", "optim.lr")),
        ("lr x x.mixup", ("optim.lr", "x.mixup")),
        ("lrxx.mixup", ("optim.lr", "x.mixup")),
        ("  normxseed ", ("norm.name", "seed")),
    ],
)
def test_a_pivot_is_two_keys_joined_by_an_x(text: str, keys: tuple[str, str]) -> None:
    assert pivot_keys(text, [run_with(*KEYS)]) == keys


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("normxmodle", "modle: no run has such a key; did you mean model?"),
        ("nrm x model", "nrm: no run has such a key; did you mean norm?"),
        ("normxmomentum", "norm.momentum, optim.momentum"),
        ("normxnorm.name", "rows and columns are both norm.name"),
        ("xxx", "x: no run has such a key"),
        ("x", "names no two keys"),
        ("fooxbar", "no run has such a key"),
    ],
)
def test_what_is_no_pair_of_keys(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pivot_keys(text, [run_with(*KEYS)])
    assert message in str(caught.value)


def test_an_x_that_can_be_read_in_two_ways_needs_spaces() -> None:
    with pytest.raises(ConfigError, match="2 ways"):
        pivot_keys("axbxb", [run_with("a", "axb", "b", "bxb")])
    assert pivot_keys("axb x b", [run_with("a", "b", "axb", "bxb")]) == ("axb", "b")


def test_of_keys_that_end_alike_the_one_that_differs_is_meant() -> None:
    sweep = [run_with("norm.name", "eval.batch_size", **{"data.batch_size": size}) for size in (4, 16)]
    assert pivot_keys("norm x batch_size", sweep) == ("norm.name", "data.batch_size")
    assert where_of(["batch_size=16"], sweep) == sweep[1:]
    with pytest.raises(ConfigError, match="batch_size: more than one key ends so"):
        where_of(["batch_size=16"], sweep[1:])


def test_cells_are_the_means_and_intervals_over_seeds(runs: Path) -> None:
    matrix = only(runs, "normxmodel")
    assert (matrix.keys, matrix.rows, matrix.columns) == (("norm.name", "model.name"), list(NORMS), list(MODELS))
    frame = runs_frame([runs]).query("state == 'done'").groupby(["norm.name", "model.name"])["test_accuracy"]
    for norm, cells in zip(matrix.rows, matrix.cells, strict=True):
        for model, cell in zip(matrix.columns, cells, strict=True):
            if (norm, model) == ("ghost", "mlp"):
                assert cell is None
                continue
            assert cell is not None
            values = frame.get_group((norm, model)).to_numpy()
            found = cell.metrics["test_accuracy"]
            low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
            assert (found.value, found.n) == (pytest.approx(values.mean()), len(values))
            assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
            assert cell.vs_baseline == {}


def test_the_table(runs: Path) -> None:
    done = bnlab_compare(str(runs), "--pivot", "norm x model", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "test acc % by norm.name (down) and model.name (across)" in lines
    start = next(i for i, line in enumerate(lines) if line.startswith("norm \\ model"))
    assert lines[start].split() == ["norm", "\\", "model", "cnn", "mlp"]
    table = [line.split() for line in lines[start + 2 : start + 8]]
    half = stats.t.ppf(0.975, 2) * 0.4 / np.sqrt(3)
    assert table[0] == ["none", "90.4", "±", f"{half:.1f}", "88.4", "±", f"{half:.1f}"]
    assert table[1] == ["n=3", "n=3"]
    assert table[2][:2] == ["batch", "95.8"]
    assert table[3] == ["n=3", "1/3", "diverged"]
    assert (table[4][:2], table[4][-1]) == (["ghost", "94.2"], "–")
    assert any(line.startswith("· Runs not finished: 1 of 15 (1 diverged)") for line in lines)
    assert not any("vs none" in line or "baseline" in line for line in lines)


def test_equal_runs_are_said_once_in_the_header(runs: Path) -> None:
    shown = bnlab_compare(str(runs), "--pivot", "modelxnorm", "--where", "model=cnn").stdout
    assert "3 seeds an arm" in shown
    assert "n=3" not in shown


def test_the_best_of_each_column_is_bold(runs: Path) -> None:
    shown = bnlab_compare(
        str(runs), "--pivot", "normxmodel", NO_COLOR="", FORCE_COLOR="1", TERM="xterm-256color"
    ).stdout
    bold = [part.partition("\x1b[0m")[0].split()[0] for part in shown.split("\x1b[1m")[1:] if "±" in part[:20]]
    assert bold == ["95.8"]  # the best of the other column is the mean of two survivors
    shown = bnlab_compare(
        str(runs), "--pivot", "modelxnorm", NO_COLOR="", FORCE_COLOR="1", TERM="xterm-256color"
    ).stdout
    bold = [part.partition("\x1b[0m")[0].split()[0] for part in shown.split("\x1b[1m")[1:] if "±" in part[:20]]
    assert bold == ["90.4", "95.8"]  # ghost has one cell, which is no best


def test_a_third_key_is_refused_with_the_ways_out(runs: Path) -> None:
    for seed in range(3):
        make_run(runs / f"more-{seed}", norm="none", seed=seed, test_accuracy=[0.1, 0.99], config={"optim.lr": 0.5})
    done = bnlab_compare(str(runs), "--pivot", "normxmodel")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the runs differ in optim.lr too" in done.stderr
    assert "--where optim.lr=0.1" in done.stderr
    assert "--best-of optim.lr" in done.stderr
    assert "--by norm --by model" in done.stderr

    def cell(**options: object) -> tuple[float | None, object]:
        row = only(runs, "normxmodel", **options).cells[0][0]
        assert row is not None
        return row.metrics["test_accuracy"].value, row.best.get("optim.lr")

    means = [np.mean([accuracy("none", "cnn", seed) for seed in range(3)]), 0.99]
    assert cell(where=["optim.lr=0.1"]) == (pytest.approx(means[0]), None)
    assert cell(best_of=["lr"]) == (pytest.approx(means[1]), 0.5)
    assert cell(by=["norm", "model"]) == (pytest.approx(np.mean(means)), None)


def test_a_chosen_setting_stands_in_its_cell(runs: Path) -> None:
    for seed in range(3):
        make_run(runs / f"more-{seed}", norm="none", seed=seed, test_accuracy=[0.1, 0.99], config={"optim.lr": 0.5})
    shown = bnlab_compare(str(runs), "--pivot", "normxmodel", "--best-of", "lr").stdout
    assert "n=3, lr 0.5" in shown
    assert "1/3 diverged, lr 0.1" in shown
    line = next(
        csv.DictReader(
            io.StringIO(bnlab_compare(str(runs), "--pivot", "normxmodel", "--best-of", "lr", "-f", "csv").stdout)
        )
    )
    assert (line["model.name=cnn best optim.lr"], line["model.name=mlp best optim.lr"]) == ("0.5", "0.1")


def test_keys_that_change_together_are_shown_both(tmp_path: Path) -> None:
    for norm, model in (("none", "mlp"), ("batch", "cnn")):
        make_run(tmp_path / norm, norm=norm, config={"model.name": model})
    matrix = only(tmp_path, "normxmodel")
    assert [[cell is None for cell in cells] for cells in matrix.cells] == [[True, False], [False, True]]


def test_a_key_that_some_arms_lack(tmp_path: Path) -> None:
    for norm in ("none", "batch"):
        make_run(tmp_path / norm, norm=norm)
    found = compare([tmp_path], pivot="norm x norm.momentum")
    assert "–" in PIVOT_FORMATS["plain"](found).splitlines()[2]
    made = json.loads(PIVOT_FORMATS["json"](found))
    assert (made["rows"], made["columns"]) == (["none", "batch"], [None, 0.1])


def test_seeds_as_columns(runs: Path) -> None:
    matrix = only(runs, "norm x seed", where=["model=cnn"])
    assert matrix.columns == [0, 1, 2]
    centers = [[cell.metrics["test_accuracy"].value for cell in cells if cell] for cells in matrix.cells]
    assert centers == [[accuracy(norm, "cnn", seed) for seed in range(3)] for norm in NORMS]


def test_the_metric_is_shown_with_its_unit(runs: Path) -> None:
    shown = bnlab_compare(str(runs), "--pivot", "normxmodel", "--metric", "steps_to_target").stdout
    assert "steps to 98 % by norm.name" in shown
    assert "> 100 (0 of 3)" in shown
    titles = {
        "test_loss": "test loss (nats)",
        "acc_gap": "gap train-eval (points)",
        "test_accuracy": "test acc %",
        "seconds_to_target": "seconds to 98 %",
        "images_per_second": "images/s",
        "step_ms": "step ms",
    }
    for name, title in titles.items():
        assert f"# {title} by norm.name" in PIVOT_FORMATS["plain"](compare([runs], pivot="normxmodel", metrics=[name]))


def test_pooled_runs_are_counted_by_seed(tmp_path: Path) -> None:
    for norm in ("none", "batch"):
        for rate in (0.1, 0.5):
            for seed in range(2):
                make_run(tmp_path / f"{norm}{rate}{seed}", norm=norm, seed=seed, config={"optim.lr": rate})
    shown = bnlab_compare(str(tmp_path), "--pivot", "normxmodel", "--by", "norm", "--by", "model").stdout
    assert "2 seeds (4 runs) an arm" in shown
    assert "n=2" not in shown, "the header says it for all cells"


def test_data_sets_side_by_side(tmp_path: Path) -> None:
    for data, off in (("mnist", 0.0), ("digits", 0.1)):
        for norm in ("none", "batch"):
            for seed in range(2):
                make_run(
                    tmp_path / f"{data}{norm}{seed}",
                    norm=norm,
                    seed=seed,
                    data=data,
                    fingerprint=data,
                    test_accuracy=[0.1, 0.9 - off + 0.01 * seed],
                    config={"trainer.epochs": 3.0 + 10 * off},
                )
    matrix = only(tmp_path, "norm x data")
    assert (matrix.rows, matrix.columns) == (["none", "batch"], ["digits", "mnist"])
    centers = [[cell.metrics["test_accuracy"].value for cell in cells if cell] for cells in matrix.cells]
    assert centers == [[pytest.approx(0.805), pytest.approx(0.905)]] * 2
    assert "The data sets were not trained alike: trainer.epochs (4.0, 3.0)." in matrix.section.notes
    apart = matrices(compare([tmp_path], pivot="norm x lr"))
    assert [m.section.settings["data.name"] for m in apart] == ["digits", "mnist"]
    made = json.loads(PIVOT_FORMATS["json"](compare([tmp_path], pivot="norm x lr")))
    assert [len(section["cells"]) for section in made["sections"]] == [2, 2]


def test_two_data_sets_of_one_name_stay_apart(tmp_path: Path) -> None:
    for mark, final in (("a", 0.8), ("b", 0.9)):
        make_run(tmp_path / mark, norm="none", fingerprint=mark, test_accuracy=[0.1, final])
    found = matrices(compare([tmp_path], pivot="norm x data"))
    assert [m.cells[0][0].metrics["test_accuracy"].value for m in found if m.cells[0][0]] == [0.8, 0.9]


def test_the_formats_hold_the_same_figures(runs: Path) -> None:
    where = [str(runs), "--pivot", "normxmodel", "-f"]
    made = json.loads(bnlab_compare(*where, "json").stdout)
    assert (made["schema"], made["metric"], made["row_key"], made["column_key"]) == (
        1, "test_accuracy", "norm.name", "model.name",
    )  # fmt: skip
    assert (made["rows"], made["columns"]) == (list(NORMS), list(MODELS))
    assert made["cells"][2][1] is None
    assert made["cells"][1][1]["status"] == {"done": 2, "diverged": 1}
    lines = list(csv.DictReader(io.StringIO(bnlab_compare(*where, "csv").stdout)))
    for line, cells in zip(lines, made["cells"], strict=True):
        for model, cell in zip(MODELS, cells, strict=True):
            name = f"model.name={model}"
            known = cell or {"mean": "", "low": "", "high": "", "n": 0, "status": {}}
            found = [line[name], line[f"{name} low"], line[f"{name} high"], line[f"{name} n"], line[f"{name} runs"]]
            assert found == [str(known[k]) for k in ("mean", "low", "high", "n")] + [str(sum(known["status"].values()))]
    assert lines[0]["model.name=cnn"] == "90.4"
    plain = bnlab_compare(*where, "plain").stdout.splitlines()
    assert [line.split()[0] for line in plain if not line.startswith("#")] == ["norm.name", *NORMS]
    assert any("1/3 diverged" in line for line in plain)
    table = [line for line in bnlab_compare(*where, "md").stdout.splitlines() if line.startswith("|")]
    assert table[:2] == ["| norm.name | cnn | mlp |", "| --- | ---: | ---: |"]
    assert table[4].endswith("n=3 | – |")


def test_a_wide_matrix_is_broken_between_columns_and_at_last_into_blocks(tmp_path: Path) -> None:
    rates = [0.001 * i for i in range(1, 10)]
    for norm in ("none", "batch"):
        for rate in rates:
            for seed in range(2):
                make_run(tmp_path / f"{norm}{rate}{seed}", norm=norm, seed=seed, config={"optim.lr": rate},
                         test_accuracy=[0.1, 0.9 + rate * (1 + seed)])  # fmt: skip
    figures: dict[int, list[str]] = {}
    for width in (18, 40, 80, 120, 200):
        shown = bnlab_compare(str(tmp_path), "--pivot", "normxlr", COLUMNS=str(width)).stdout
        assert max(map(len, shown.splitlines())) <= width
        figures[width] = sorted(word for word in shown.split() if word.startswith("9") and "." in word)
        assert shown.count("norm \\ lr") == {18: 0, 40: 5, 80: 2, 120: 2, 200: 1}[width]
    assert len(figures[200]) == 18
    assert figures[18] == figures[40] == figures[80] == figures[120] == figures[200]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pivot", "norm", "x", "model"], "quoted: --pivot 'norm x model'"),
        (["--pivot", "normxmodel", "--baseline", "none"], "--baseline: a matrix has no such thing"),
        (["--pivot", "normxmodel", "--sort", "ece"], "--sort: a matrix has no such thing"),
        (["--pivot", "normxmodel", "--metric", "ece", "--metric", "kl"], "--metric: a matrix shows one metric"),
        (["--pivot", "normxmodel", "--best-of", "norm"], "compared or chosen, not both"),
        (["--pivot", "normxmodle"], "did you mean model?"),
    ],
)
def test_mistakes_on_the_command_line(runs: Path, arguments: list[str], message: str) -> None:
    done = bnlab_compare(*arguments, *([str(runs)] if "x" not in arguments else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


HOSTILE = "a\x1b[2J[red]b[/red]\n\u202e|<script>"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    for i, norm in enumerate(("none", HOSTILE, "=cmd()")):
        for j, model in enumerate(("cnn", HOSTILE)):
            make_run(root / f"{i}{j}", norm=norm, config={"model.name": model})
    return root


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [40, 80, 120])
def test_values_that_mean_harm_in_the_table(hostile: Path, width: int, encoding: str) -> None:
    done = bnlab_compare(str(hostile), "--pivot", "normxmodel", COLUMNS=str(width), PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= width or width == 40
    assert "[red]b[/red]" in done.stdout.replace("\n", "").replace(" ", "")
    assert done.stdout.isascii() or encoding == "utf-8"


@pytest.mark.parametrize("form", PIVOT_FORMATS)
def test_values_that_mean_harm_in_the_formats(hostile: Path, form: str) -> None:
    text = PIVOT_FORMATS[form](compare([hostile], pivot="normxmodel"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    if form == "csv":
        rows = list(csv.reader(io.StringIO(text)))
        assert {row[3] for row in rows[1:]} == {"none", clean(HOSTILE), "'=cmd()"}
    if form == "md":
        assert len({line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("| ")}) == 1


def test_nothing_to_show_is_nothing_printed(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "status.json").write_text("{}")
    found = compare([tmp_path], pivot="normxmodel")
    assert (found.sections, len(found.skipped)) == ([], 1)
    assert PIVOT_FORMATS["plain"](found) == PIVOT_FORMATS["md"](found) == ""
    assert json.loads(PIVOT_FORMATS["json"](found))["sections"] == []
    assert pivot_table(found, Terminal(io.StringIO())).renderables == []
