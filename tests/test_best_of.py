"""`bnlab compare --best-of`: each arm at its own best setting, chosen on validation only, and what is said about it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
from helpers_cli import bnlab
from helpers_runs import bnlab_compare, make_run

from bnlab.compare.comparison import compare
from bnlab.compare.frames import runs_frame
from bnlab.compare.result import Section
from bnlab.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
# Final accuracies by strategy and learning rate, one a seed: validation, then test. On test the order is another one.
VALID = {
    "none": {0.01: [0.90, 0.91, 0.92], 0.1: [0.95, 0.94, 0.96], 1.0: [0.93, 0.93, 0.93]},
    "batch": {0.01: [0.93, 0.93, 0.93], 0.1: [0.96, 0.95, 0.97], 1.0: [0.97, 0.98, 0.96]},
}
TEST = {
    "none": {0.01: [0.99, 0.99, 0.99], 0.1: [0.941, 0.939, 0.950], 1.0: [0.98, 0.98, 0.98]},
    "batch": {0.01: [0.99, 0.99, 0.99], 0.1: [0.98, 0.98, 0.98], 1.0: [0.965, 0.970, 0.960]},
}


def write(root: Path, norm: str, rate: float, valid: Sequence[float | None], **options: object) -> None:
    """Write a run for each seed; None among the accuracies stands for a run that diverged."""
    test = TEST.get(norm, {}).get(rate, [0.9] * len(valid))
    more = dict(options.pop("config", {}))  # type: ignore[call-overload]
    for seed, final in enumerate(valid):
        make_run(
            root / "-".join(map(str, (norm, rate, *more.values(), seed))),
            norm=norm,
            seed=seed,
            valid_accuracy=[0.1, 0.5, 0.99 if final is None else final],
            test_accuracy=[0.1, 0.5, test[seed] if seed < len(test) else 0.9],
            state="done" if final is not None else "diverged",
            config={"optim.lr": rate, **more},
            **options,  # type: ignore[arg-type]
        )


def grid(root: Path, valid: Mapping[str, Mapping[float, Sequence[float | None]]] = VALID) -> Path:
    for norm, rates in valid.items():
        for rate, finals in rates.items():
            write(root, norm, rate, finals)
    return root


def chosen(root: Path, key: str = "optim.lr", **options: object) -> dict[str, object]:
    return {row.label: row.best.get(key) for row in best_of(root, key, **options).rows}


def best_of(root: Path, *keys: str, **options: object) -> Section:
    (section,) = compare([root], best_of=keys or ["lr"], **options).sections  # type: ignore[arg-type]
    return section


def test_the_choice_is_on_validation_and_everything_is_read_there(tmp_path: Path) -> None:
    section = best_of(grid(tmp_path))
    frame = runs_frame([tmp_path])
    means = frame.groupby(["norm.name", "optim.lr"])[["valid_accuracy", "test_accuracy"]].mean()
    for row in section.rows:
        rates = means.loc[row.label]
        best = rates["valid_accuracy"].idxmax()
        assert row.best == {"optim.lr": best}
        assert best != rates["test_accuracy"].idxmax()
        assert row.metrics["test_accuracy"].value == pytest.approx(rates["test_accuracy"][best])
        assert (row.n, row.states) == (3, {"done": 3})
        assert row.curve[-1] == pytest.approx(sorted(TEST[row.label][float(best)])[1])
    assert [row.label for row in section.rows] == ["none", "batch"]
    assert (section.changed, section.chosen) == (["norm.name"], ["optim.lr"])
    assert "optim.lr" not in section.settings
    difference = section.rows[1].vs_baseline["test_accuracy"]
    by_seed = frame.set_index(["norm.name", "optim.lr", "seed"])["test_accuracy"]
    expected: pd.Series[float] = by_seed.loc["batch", 1.0] - by_seed.loc["none", 0.1]
    assert (difference.value, difference.n) == (pytest.approx(expected.mean()), 3)


def test_the_warning_of_one_shared_rate_gives_way_to_how_it_was_chosen(tmp_path: Path) -> None:
    grid(tmp_path)
    assert any("All arms ran at optim.lr=0.1" in n for n in compare([tmp_path], where=["lr=0.1"]).sections[0].notes)
    notes = best_of(tmp_path).notes
    assert notes[0] == (
        "Each arm is at its best setting of optim.lr (0.01, 0.1, 1.0), chosen by mean validation accuracy at the last "
        "evaluation; the test split was not looked at. The intervals do not include the choice."
    )
    assert notes[1] == "At the edge of the values tried, so a better optim.lr may lie beyond: batch 1.0."
    assert not any("All arms ran" in note or "more than the table shows" in note for note in notes)


def test_the_warning_stays_where_another_key_is_chosen(tmp_path: Path) -> None:
    for norm in ("none", "batch"):
        for decay in (0.0, 0.001):
            write(tmp_path, norm, 0.1, [0.9 + decay, 0.9], config={"optim.weight_decay": decay})
    notes = best_of(tmp_path, "weight_decay").notes
    assert any("All arms ran at optim.lr=0.1" in note for note in notes)


def test_a_seed_without_a_finished_run_counts_as_nothing(tmp_path: Path) -> None:
    lost = {"none": {0.1: [0.90, 0.90, 0.90], 1.0: [0.99, None, 0.99]}, "batch": {0.1: [0.9, 0.9, 0.9], 1.0: [0.99]}}
    section = best_of(grid(tmp_path, lost))
    assert [row.best["optim.lr"] for row in section.rows] == [0.1, 0.1]  # 0.90 against 0.66 and 0.33
    assert (
        "For the choice a seed without a finished run counts as 0 %: none 1.0 (1 of 3 seeds), batch 1.0 (2 of 3 seeds)."
    ) in section.notes


def test_a_setting_that_loses_a_seed_may_still_be_the_best(tmp_path: Path) -> None:
    lost = {"none": {0.1: [0.10, 0.10, 0.10], 1.0: [0.99, None, 0.99]}}
    section = best_of(grid(tmp_path, lost))
    (row,) = section.rows
    assert (row.best, row.n, row.states) == ({"optim.lr": 1.0}, 2, {"done": 2, "diverged": 1})
    assert any(note.startswith("Runs not finished: 1 of 3 (1 diverged)") for note in section.notes)


@pytest.mark.parametrize("state", ["failed", "killed", "interrupted", "running"])
def test_runs_without_a_summary_count_as_nothing_too(tmp_path: Path, state: str) -> None:
    write(tmp_path, "none", 0.1, [0.8, 0.8])
    write(tmp_path, "none", 1.0, [0.9])
    make_run(tmp_path / "lost", norm="none", seed=1, state=state, config={"optim.lr": 1.0})
    assert chosen(tmp_path) == {"none": 0.1}


def test_a_final_accuracy_that_is_not_finite_counts_as_nothing(tmp_path: Path) -> None:
    write(tmp_path, "none", 0.1, [0.6, 0.6])
    for seed, final in enumerate((0.99, None)):
        make_run(
            tmp_path / f"x{seed}", norm="none", seed=seed, valid_accuracy=[0.1, 0.99, final], config={"optim.lr": 1.0}
        )
    assert chosen(tmp_path) == {"none": 0.1}


def test_of_equal_settings_the_smaller_is_taken_and_told(tmp_path: Path) -> None:
    section = best_of(grid(tmp_path, {"none": {1.0: [0.9, 0.8], 0.1: [0.8, 0.9], 0.01: [0.1, 0.1]}}))
    assert section.rows[0].best == {"optim.lr": 0.1}
    assert "Equal on validation, so the first was taken: none 0.1, 1.0." in section.notes


def test_an_arm_without_a_finished_run_has_no_setting(tmp_path: Path) -> None:
    section = best_of(grid(tmp_path, {"none": VALID["none"], "batch": {0.1: [None, None], 1.0: [None]}}))
    none, batch = section.rows
    assert (none.best, batch.best) == ({"optim.lr": 0.1}, {})
    assert batch.states == {"diverged": 3}
    assert "batch: nothing was chosen, since no run is finished; all its runs are counted." in section.notes


def test_different_grids_are_told(tmp_path: Path) -> None:
    ghost = {rate: finals for rate, finals in VALID["none"].items() if rate < 1}
    section = best_of(grid(tmp_path, {**VALID, "ghost": ghost}))
    assert section.notes[1] == (
        "The arms had different grids, and a larger one helps: ghost 0.01, 0.1; all others 0.01, 0.1, 1.0; "
        "p is multiplied by the number of pairs of settings of two arms that had unequally many."
    )
    assert "may lie beyond: batch 1.0, ghost 0.1." in section.notes[2]


def test_no_edge_at_zero_nor_inside(tmp_path: Path) -> None:
    for decay, final in ((0.0, 0.9), (0.1, 0.8), (0.2, 0.7)):
        write(tmp_path, "none", 0.1, [final], config={"optim.weight_decay": decay})
        write(tmp_path, "batch", 0.1, [1 - abs(decay - 0.1)], config={"optim.weight_decay": decay})
    section = best_of(tmp_path, "optim.weight_decay")
    assert [row.best["optim.weight_decay"] for row in section.rows] == [0.0, 0.1]
    assert not any("edge" in note for note in section.notes)


def test_two_keys_are_chosen_together(tmp_path: Path) -> None:
    finals = {(0.1, 0.0): 0.8, (0.1, 0.01): 0.95, (1.0, 0.0): 0.9, (1.0, 0.01): 0.7}
    for (rate, decay), final in finals.items():
        write(tmp_path, "none", rate, [final, final], config={"optim.weight_decay": decay})
    section = best_of(tmp_path, "lr", "weight_decay")
    assert section.rows[0].best == {"optim.lr": 0.1, "optim.weight_decay": 0.01}
    assert "optim.lr and optim.weight_decay (lr 0.1, 1.0, weight_decay 0.0, 0.01: 4 settings)" in section.notes[0]
    alone = best_of(tmp_path, "lr")  # an arm for each weight decay
    assert {tuple(row.arm.values()): row.best["optim.lr"] for row in alone.rows} == {(0.0,): 1.0, (0.01,): 0.1}


def test_by_pools_before_the_choice(tmp_path: Path) -> None:
    for model, finals in {"cnn": {0.1: 0.9, 1.0: 0.7}, "mlp": {0.1: 0.5, 1.0: 0.8}}.items():
        for rate, final in finals.items():
            write(tmp_path, "none", rate, [final, final], config={"model.name": model})
    section = best_of(tmp_path, "lr", by=["norm"])
    assert [row.best for row in section.rows] == [{"optim.lr": 1.0}]  # 0.75 against 0.70
    assert any(note.startswith("Runs that differ in model (cnn, mlp) are pooled") for note in section.notes)
    assert {row.arm["model.name"]: row.best["optim.lr"] for row in best_of(tmp_path).rows} == {"cnn": 0.1, "mlp": 1.0}


def test_a_figure_of_the_validation_split_is_said_to_flatter(tmp_path: Path) -> None:
    grid(tmp_path)
    assert any(n.startswith("valid acc: on the split") for n in best_of(tmp_path, metrics=["valid_accuracy"]).notes)
    assert not any("flatters." in n for n in best_of(tmp_path).notes)


@pytest.mark.parametrize(
    ("keys", "more", "message"),
    [
        (["optim.lrr"], {}, "did you mean"),
        (["weight_decay"], {}, "--best-of optim.weight_decay: it is 0.0005 in every run"),
        (["lr", "weight_decay"], {}, "--best-of optim.weight_decay: it is 0.0005"),
        (["seed"], {}, "--best-of seed: this is no setting"),
        (["lr"], {"by": ["norm", "lr"]}, "compared or chosen, not both"),
        (["lr"], {"where": ["lr=0.1"]}, "it is 0.1 in every run"),
        (["momentum"], {}, "norm.momentum, optim.momentum"),
    ],
)
def test_what_cannot_be_chosen(tmp_path: Path, keys: list[str], more: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare([grid(tmp_path)], best_of=keys, **more)  # type: ignore[arg-type]


def test_a_key_that_changes_with_the_arms_only_cannot_be_chosen(tmp_path: Path) -> None:
    for norm, rate in (("none", 0.1), ("batch", 1.0)):
        write(tmp_path, norm, rate, [0.9], config={"schedule.warmup": rate / 2})
    with pytest.raises(ConfigError, match=r"--best-of optim.lr: no arm .* has more than one value of it"):
        best_of(tmp_path)


def test_runs_without_a_validation_split_are_refused(tmp_path: Path) -> None:
    grid(tmp_path)
    summary = json.loads((tmp_path / "none-0.1-0" / "summary.json").read_text())
    del summary["curve"]["valid.accuracy"]
    (tmp_path / "none-0.1-0" / "summary.json").write_text(json.dumps(summary))
    done = bnlab_compare(str(tmp_path), "--best-of", "lr")
    assert (done.returncode, done.stdout) == (2, "")
    assert "none-0.1-0 has no validation accuracy, and the test split is never used to choose" in done.stderr
    assert bnlab_compare(str(tmp_path), "--best-of", "lr", "--where", "norm=batch").returncode == 0


def test_a_bench_beside_the_runs_is_left_as_it_is(tmp_path: Path) -> None:
    bench = {"arm": "none", "baseline": "none", "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    make_run(tmp_path / "bench", norm="none", summary={"bench": bench})
    with pytest.raises(ConfigError, match="benches, which have no validation split"):
        compare([tmp_path], best_of=["lr"])
    trained, timed = compare([grid(tmp_path)], best_of=["lr"]).sections
    assert (trained.chosen, timed.chosen) == (["optim.lr"], [])
    assert timed.rows[0].best == {}


@pytest.mark.slow
def test_the_command_line_in_every_format(tmp_path: Path) -> None:
    where = [str(grid(tmp_path)), "--best-of", "optim.lr"]
    shown = bnlab_compare(*where, "--baseline", "norm=none")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["none", "0.1", "94.3", "±", "1.5", "baseline"] in [line[:6] for line in lines]
    assert ["batch", "1.0", "96.5", "±", "1.2"] in [line[:5] for line in lines]
    made = json.loads(bnlab_compare(*where, "-f", "json").stdout)
    assert [row["best"] for row in made["rows"]] == [{"optim.lr": 0.1}, {"optim.lr": 1.0}]
    records = list(csv.DictReader(io.StringIO(bnlab_compare(*where, "-f", "csv").stdout)))
    assert {(r["norm.name"], r["best optim.lr"]) for r in records} == {("none", "0.1"), ("batch", "1.0")}
    assert "| norm | best lr | n |" in bnlab_compare(*where, "-f", "md").stdout
    assert "norm.name  best optim.lr  n  states" in bnlab_compare(*where, "-f", "plain").stdout
    against = bnlab_compare(*where, "--baseline", "norm=batch")
    assert "vs batch" in against.stdout


@pytest.fixture(scope="module")
def harmful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("harmful")
    for value, final in (("\x1b[2J[red]x\n\u202e", 0.9), ("b", 0.5)):
        for norm in ("none", "evil\x1b[31m"):
            make_run(root / f"{norm[:4]}{final}", norm=norm, valid_accuracy=[0.1, final], test_accuracy=[0.1, final],
                     config={"schedule.name": value})  # fmt: skip
    return root


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [40, 80, 120])
def test_values_that_mean_harm_in_the_table(harmful: Path, width: int, encoding: str) -> None:
    done = bnlab_compare(str(harmful), "--best-of", "schedule", COLUMNS=str(width), PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= width
    assert "[red]x" in done.stdout.replace("\n", "").replace(" ", "")
    assert done.stdout.isascii() or encoding == "utf-8"


@pytest.mark.parametrize("form", ["plain", "csv", "json", "md"])
def test_values_that_mean_harm_in_the_formats(harmful: Path, form: str) -> None:
    done = bnlab_compare(str(harmful), "--best-of", "schedule", "-f", form)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout


def test_pages_and_figures_are_of_the_best_settings_and_a_plan_refuses_them(tmp_path: Path) -> None:
    for norm, rates in VALID.items():
        for rate, valid in rates.items():
            write(tmp_path / "runs" / "sweep", norm, rate, valid)
    for command in (["report", "--out", "page.md"], ["plot", "differences", "--out", "figure.svg"]):
        done = bnlab(*command, "runs/sweep", "--best-of", "lr", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.md").read_text()
    assert "Each arm is at its best setting of optim.lr" in page
    assert "--best-of lr" in page
    assert (tmp_path / "figure.svg").stat().st_size > 1000
    done = bnlab("train", "-m", "norm=none,batch", "--until-decided", "--best-of", "optim.lr", cwd=tmp_path)
    assert done.returncode == 2
    assert "bnlab compare SWEEP --best-of optim.lr" in done.stderr
