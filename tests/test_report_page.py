"""`bnlab report` and `bnlab plot`: one page that needs nothing, and figures that draw what the tables say."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from helpers_cases import for_each
from helpers_cli import bnlab
from helpers_runs import make_run
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

import bnlab as bnlab_package
from bnlab.cli import app
from bnlab.cli.plot import FIGURES
from bnlab.compare.comparison import compare
from bnlab.compare.result import Section
from bnlab.errors import BnlabError, ConfigError, IncompatibleError
from bnlab.report.compare_formats import html_grid
from bnlab.report.drawing import image_of, inline_svg
from bnlab.report.page import comparison_markdown, comparison_page, write_own
from bnlab.report.pictures import KINDS
from bnlab.report.verdicts import answers, question

HOSTILE = '<b>"$\\frac{'  # HTML, an attribute's end, and a formula that matplotlib could not read
ENDS = {"none": (0.90, 0.91, 0.92, 0.93, 0.94), "batch": (0.95, 0.957, 0.971, 0.98, 0.985)}


def sweep(folder: Path, arms: Mapping[str, Sequence[float]] = ENDS, **how: Any) -> Path:
    """Write one run a seed of each arm, its accuracy at the end as given, half of it before."""
    for norm, ends in arms.items():
        for seed, end in enumerate(ends):
            make_run(
                folder / f"{list(arms).index(norm)}-{seed}",
                norm=norm,
                seed=seed,
                **how,
                test_accuracy=[0.1, end / 2, end],
            )
    return folder


def bench(folder: Path, floor: float | None = 1.05) -> Path:
    ratios = {"none": (1.0, 1.0, 1.0), "batch": (1.2, 1.15, 1.26), "layer": (1.01, 0.97, 1.04)}
    for norm, (ratio, low, high) in ratios.items():
        about = {"arm": norm, "baseline": "none", "ratio": ratio, "ratio_low": low, "ratio_high": high, "floor": floor}
        control = {"control": 1.0, "control_low": 0.98, "control_high": 1.03}
        make_run(folder / norm, norm=norm, summary={"bench": about | control, "curve": {}, "layers": {}})
    return folder


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and both ends of Student's 95% interval."""
    mean, n = statistics.fmean(values), len(values)
    half = stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# ---------------------------------------------------------------- a page


class Page(HTMLParser):
    """What a page holds: its tags with their attributes, its text, its tables as rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def attributes(self, *names: str) -> list[str]:
        return [value for _, of in self.tags for name, value in of.items() if name in names and value is not None]


def page_of(folder: Path, **how: Any) -> Page:
    return Page(comparison_page(compare([folder], **how), "bnlab report"))


def check_self_contained(text: str) -> None:
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "image", "object", "base", "form"})
    assert not re.search(r"https?:|@import|javascript:|src=", text)
    assert not [name for _, of in page.tags for name in of if name.startswith("on")]
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    aims = [*page.attributes("href", "xlink:href"), *re.findall(r"url\(([^)]*)\)", text)]
    assert {aim.removeprefix("#") for aim in aims} <= set(ids)
    assert len(text.encode()) <= 300_000
    for tag, of in page.tags:
        if tag == "svg":
            assert of["role"] == "img"
            assert of["aria-label"]


def test_a_page_says_what_compare_says(tmp_path: Path) -> None:
    compared = compare([sweep(tmp_path)], margin=0.2)
    (section,), (found,) = compared.sections, answers(compared)
    text = comparison_page(compared, "bnlab report runs")
    page = Page(text)
    check_self_contained(text)
    said = " ".join(page.texts)
    assert (
        question(section)
        == "Does batch differ from none in test accuracy on mnist, where differences below 0.2 points do not matter?"
    )
    assert "<li><code>bnlab report runs</code></li>" in text
    for sentence in (question(section), *found, *section.notes, "A processor", "torch 2.15.0", "bnlab report runs"):
        assert sentence in said
    titles, rows = html_grid(section)
    assert page.tables[0] == [titles, *rows]
    captions = [KINDS[name].title for name in ("curves", "differences", "gap", "depth")]
    assert [title for title in page.texts if title in {kind.title for kind in KINDS.values()}] == captions
    assert sum(tag == "svg" for tag, _ in page.tags) == sum(tag == "details" for tag, _ in page.tags)
    differences = next(table for table in page.tables if "minus that of none" in table[0][-1])
    assert differences[1:] == [["batch", rows[1][titles.index("vs none")]]]


def test_a_page_of_ten_arms_stays_small_and_names_stay_text(tmp_path: Path) -> None:
    names = [
        "none",
        HOSTILE,
        "_under",
        "\u202e\x1b[31m",
        "字",
        *(f"a rather long name of an arm, number {i}" for i in range(5)),
    ]
    curve = [0.1 + 0.8 * i / 40 for i in range(41)]
    for place, norm in enumerate(names):
        for seed in range(2):
            make_run(tmp_path / f"{place}-{seed}", norm=norm, seed=seed, test_accuracy=[a + 0.01 * seed for a in curve])
    text = comparison_page(compare([tmp_path]), f"bnlab report '{HOSTILE}'")
    check_self_contained(text)
    page = Page(text)
    assert "b" not in {tag for tag, _ in page.tags}
    assert page.texts.count(HOSTILE) >= 5  # tables, tick labels, a legend
    assert page.texts.count("_under") >= 5
    assert "\\u202e\\x1b[31m" in page.texts
    assert not {"\u202e", "\x1b"} & set(text)


def diverged(folder: Path) -> Path:
    sweep(folder, {"none": ENDS["none"][:3]})
    return sweep(folder / "more", {"batch": ENDS["batch"][:3]}, state="diverged").parent


def not_finite(folder: Path) -> Path:
    for seed in range(2):
        make_run(folder / f"n{seed}", norm="none", seed=seed, test_accuracy=[0.1, None, 0.9])
        make_run(folder / f"b{seed}", norm="batch", seed=seed, test_accuracy=[None, None, None])
    return folder


def unreadable(folder: Path) -> Path:
    (make_run(folder / "0") / "summary.json").unlink()
    return folder


@for_each(
    ("written", "figures", "says"),
    [
        (lambda folder: make_run(folder / "0"), ["Curves", "Discrepancy by depth"], "The run"),
        (lambda folder: make_run(folder / "0", state="diverged"), ["Curves"], "not finite at step 7"),
        (lambda folder: make_run(folder / "0", state="failed", error="<oh>"), [], "<oh>"),
        (lambda folder: sweep(folder, {"batch": ENDS["batch"]}), ["Curves", "Discrepancy by depth"], "no other arm"),
        (lambda folder: sweep(folder, {"batch": (0.9,), "none": (0.8,)}), ["Curves"], "one seed an arm"),
        (diverged, ["Curves"], "no curve of a finished run: batch"),
        (not_finite, ["Curves"], "no curve of a finished run: batch"),
        (unreadable, [], "unreadable (summary.json is missing"),
        (bench, ["Step times"], "the floor"),
        (lambda folder: bench(folder, None), ["Step times"], "1.20 (1.15–1.26)"),
    ],
)
def test_a_page_of_whatever_there_is(written: Any, figures: list[str], says: str, tmp_path: Path) -> None:
    place = tmp_path / str(len(list(tmp_path.iterdir())))
    written(place)
    text = comparison_page(compare([place]), "bnlab report")
    check_self_contained(text)
    page = Page(text)
    assert set(figures) <= set(page.texts)
    assert says in " ".join(page.texts)
    assert "nan" not in re.sub(r"\bnan[a-z]", "", text.lower())


def test_a_page_names_the_command_of_the_sweep_and_what_was_left_out(tmp_path: Path) -> None:
    place = sweep(tmp_path / "s")
    (place / "sweep.json").write_text('{"schema": 1, "overrides": ["norm=none,batch", "name=a b"], "config_dir": null}')
    make_run(place / "9", state="done")
    (place / "9" / "summary.json").unlink()
    said = " ".join(page_of(place).texts)
    assert "bnlab train -m norm=none,batch 'name=a b'" in said
    assert "9: unreadable (summary.json is missing" in said
    (place / "sweep.json").write_text("{")
    assert "bnlab train" not in " ".join(page_of(place).texts)


def test_markdown_has_the_same_words(tmp_path: Path) -> None:
    compared = compare([sweep(tmp_path)])
    text = comparison_markdown(compared, "bnlab report runs")
    (found,) = answers(compared)
    for words in (question(compared.sections[0]), " ".join(found), "torch 2.15.0", "`bnlab report runs`"):
        assert words in text.replace("\\", "")


# ---------------------------------------------------------------- figures


def drawn(name: str, folder: Path, **how: Any) -> Figure:
    figure: Figure = getattr(bnlab_package.plot, name)(bnlab_package.compare(folder, **how))
    return figure


def lines_of(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Return x and y of what has a label."""
    found = {}
    for line in axes.lines:
        if not str(line.get_label()).startswith("_child"):
            found[str(line.get_label())] = (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
    return found


def test_curves_are_means_with_students_interval_at_every_step(tmp_path: Path) -> None:
    (axes,) = drawn("curves", sweep(tmp_path)).axes
    lines = lines_of(axes)
    for number, (norm, ends) in enumerate(ENDS.items()):
        steps, means = lines[norm]
        assert steps == [0, 100, 200]
        assert means == pytest.approx([10, *(100 * statistics.fmean(ends) / part for part in (2, 1))])
        corners = axes.collections[number].get_paths()[0].vertices
        at_end = [y for x, y in corners if x == 200]
        _, low, high = interval(ends)
        assert (min(at_end), max(at_end)) == pytest.approx((100 * low, min(100 * high, 100)))
    (texts,) = [
        [text.get_text() for text in legend.get_texts()] for legend in axes.figure.get_figure(root=True).legends
    ]
    assert texts == list(ENDS)


def test_differences_are_paired_and_stand_against_the_margin(tmp_path: Path) -> None:
    (axes,) = drawn("differences", sweep(tmp_path), margin=0.5).axes
    pairs = [a - b for a, b in zip(ENDS["batch"], ENDS["none"], strict=True)]
    mean, low, high = (100 * value for value in interval(pairs))
    assert lines_of(axes) == {"batch": ([pytest.approx(mean)], [0.0])}
    assert any(
        list(line.get_xdata()) == pytest.approx([low, high]) for line in axes.lines if len(line.get_xdata()) == 2
    )
    (band,) = axes.patches
    assert band.get_extents().transformed(axes.transData.inverted()).intervalx == pytest.approx([-0.5, 0.5])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["batch"]
    assert axes.lines[-1].get_markerfacecolor() != "none"  # it is decided
    (axes,) = drawn("differences", sweep(tmp_path / "few", {norm: ends[:2] for norm, ends in ENDS.items()})).axes
    assert axes.lines[-1].get_markerfacecolor() == "none"


def test_steps_have_ratios_floors_and_the_second_copy(tmp_path: Path) -> None:
    (axes,) = drawn("steps", bench(tmp_path)).axes
    assert lines_of(axes) == {"batch": ([1.2], [0.0]), "layer": ([1.01], [1.0])}
    assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "|"] == [[1.05], [1.05]]
    assert [1.15, 1.26] in [list(line.get_xdata()) for line in axes.lines]
    (band,) = axes.patches
    assert band.get_extents().transformed(axes.transData.inverted()).intervalx == pytest.approx([0.98, 1.03])


def scaled(folder: Path, contests: Mapping[str, float], arms: Mapping[str, float], **how: Any) -> Path:
    """Write what `bnlab bench --scale` leaves: the ratio of an arm grows with the size of its contest."""
    for number, (contest, size) in enumerate(contests.items()):
        for norm, off in arms.items():
            ratio = 1.0 if norm == "batch" else 1 + off * math.log2(size)
            label = f"{norm} {size:,}" if contest.startswith("data") else norm
            about = {"contest": contest.rstrip("0123456789") if "data" in contest else contest, "arm": label}
            about |= {"baseline": f"batch {min(contests.values()):,}" if "data" in contest else "batch"}
            about |= {"ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1}
            config = {"data.name": contest} if "image" in contest else {"data.train_size": int(size)}
            make_run(folder / f"{norm}{number}", norm=norm, config=config, summary={"bench": about, "curve": {}}, **how)
    return folder


@for_each(
    ("contests", "over"),
    [
        ({"width 4-16": 16, "width 8-32": 32, "width 16-64": 64}, "width"),
        ({"image 8 x 8": 8, "image 16 x 16": 16}, "pixels a side"),  # a section a size, joined
        ({"batch 64": 64, "batch 1,024": 1024}, "batch size"),
        ({"data512": 512, "data1024": 1024}, "training images"),
    ],
)
def test_scaling_has_ratios_over_the_size_of_each_arm(contests: dict[str, int], over: str, tmp_path: Path) -> None:
    place = tmp_path / over
    (axes,) = drawn("scaling", scaled(place, contests, {"batch": 0, "layer": 0.1, "group": 0.2})).axes
    sizes = sorted(contests.values())
    expected = {
        name: (sizes, [1 + off * math.log2(size) for size in sizes]) for name, off in (("layer", 0.1), ("group", 0.2))
    }
    if over == "training images":  # the baseline's size grows, too
        expected |= {"batch": (sizes, [1.0] * len(sizes))}
    assert lines_of(axes) == {name: (places, pytest.approx(ratios)) for name, (places, ratios) in expected.items()}
    assert (axes.get_xlabel(), axes.get_xscale()) == (over, "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{size:,}" for size in sizes]
    band = next(each for each in axes.collections if each.get_paths())
    ends = [y for x, y in band.get_paths()[0].vertices if x == sizes[-1]]
    assert max(ends) - min(ends) == pytest.approx(0.2)
    page = page_of(place)
    assert page.texts.count(KINDS["scaling"].title) == 1


def test_what_has_one_size_does_not_scale(tmp_path: Path) -> None:
    for contests in ({"width 8": 8}, {"a width of 8": 8, "cnn": 16}, {"batch": 8, "data 3": 9}):
        with pytest.raises(IncompatibleError, match="bench --scale"):
            drawn("scaling", scaled(tmp_path / str(len(str(contests))), contests, {"batch": 0, "layer": 0.1}))


def test_gap_has_its_causes_where_they_were_recorded(tmp_path: Path) -> None:
    gaps = drawn("gap", sweep(tmp_path / "cheap")).axes
    assert [lines_of(axes)["batch"][0] for axes in gaps] == [[pytest.approx(size)] for size in (-1.0, 3.0, 7.0)]
    place = tmp_path / "full"
    for seed, moved in enumerate((0.1, 0.2, 0.4)):
        for norm in ("none", "batch"):
            folder = make_run(place / f"{norm}{seed}", norm=norm, seed=seed)
            text = (folder / "summary.json").read_text()
            size = moved if norm == "batch" else 0.0
            terms = f'"test.term_batch_noise_kl": [0, 0, {size}], "test.term_total_kl": [0, 0, {2 * size}], "test.kl"'
            (folder / "summary.json").write_text(text.replace('"test.kl"', terms, 1))
    *_, causes = drawn("gap", place).axes
    assert [label.get_text() for label in causes.get_yticklabels()] == ["batch noise", "total"]
    assert lines_of(causes)["batch noise"] == ([pytest.approx(0.7 / 3)], [0.0])
    assert "batch: KL, nats" in [axes.get_xlabel() for axes in [causes]]


def test_depth_has_a_value_a_layer(tmp_path: Path) -> None:
    mean_z, ratio = drawn("depth", sweep(tmp_path)).axes
    assert lines_of(mean_z)["batch"] == ([1, 2], [pytest.approx(0.01), pytest.approx(0.02)])
    assert lines_of(ratio)["none"] == ([1, 2], [pytest.approx(-0.02), pytest.approx(-0.04)])


def test_a_single_run_is_drawn_by_split(tmp_path: Path) -> None:
    accuracy, loss = drawn("curves", make_run(tmp_path / "0", test_accuracy=[0.1, 0.9, 1.0])).axes
    assert list(lines_of(accuracy)) == list(lines_of(loss)) == ["train", "valid", "test"]
    assert lines_of(accuracy)["test"][1] == pytest.approx([10, 90, 100])
    places = accuracy.transData.transform([(0, 10), (0, 90), (0, 99)])[:, 1]
    assert np.diff(places)[1] > 0.5 * np.diff(places)[0]  # 90 to 99 % is a decade of the error


def test_of_many_arms_each_strategy_is_drawn_in_its_colour_by_dashes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = [0.01 * 2**i for i in range(13)]
    for norm, end in (("batch", 0.95), ("none", 0.9), ("layer", 0.93)):
        for rate in rates:
            make_run(tmp_path / f"{norm}{rate}", norm=norm, test_accuracy=[0.1, end], config={"optim.lr": rate})
    (section,) = compare([tmp_path]).sections
    (axes,) = drawn("curves", tmp_path).axes
    assert len(axes.lines) == 12
    looks: dict[str, list[tuple[object, ...]]] = {}
    for line in axes.lines:
        norm = str(line.get_label()).partition(" ")[0]
        looks.setdefault(norm, []).append((line.get_color(), line.get_linestyle(), line.get_marker()))
    assert {norm: len(each) for norm, each in looks.items()} == {"none": 4, "batch": 4, "layer": 4}
    assert all(len(set(each)) == 4 and len({colour for colour, *_ in each}) == 1 for each in looks.values())
    assert len({each[0][0] for each in looks.values()}) == 3
    monkeypatch.chdir(tmp_path)
    assert len(section.rows) == 39
    run("plot", "curves", str(tmp_path))
    assert capsys.readouterr().err == "12 of 39 arms are drawn; choose with --where\nwritten: curves.svg\n"
    assert "12 of 39 arms" in (tmp_path / "curves.svg").read_text()
    run("report", str(tmp_path))
    assert "12 of 39 arms are drawn; choose with --where\n" in capsys.readouterr().err


def test_a_metric_of_a_meter_is_drawn_alone_and_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metered(tmp_path / "a")
    (axes,) = drawn("meters", tmp_path / "a", metrics="loss_range").axes
    assert axes.get_title(loc="left") == "loss range, nats"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--metric test_loss: no meter .*\nthey read loss_range, ics"):
        run("plot", "meters", "a", "--metric", "test_loss")


def test_a_figure_says_what_its_signs_mean(tmp_path: Path) -> None:
    (said,) = {text.get_text() for text in [drawn("steps", bench(tmp_path))._suptitle]}
    assert "tick: the floor" in " ".join(said.split())
    assert "grey: a second copy of the baseline" in " ".join(said.split())


def test_a_shift_is_drawn_over_its_severity(tmp_path: Path) -> None:
    for norm, plain in (("none", 0.9), ("batch", 0.8)):
        for shift, level in (("none", 0), ("blur-1", 1), ("blur-5", 5), ("noise-5", 5)):
            for seed in range(2):
                ends = [0.1, plain - 0.1 * level + 0.01 * seed]
                name = f"{norm}-{shift}-{seed}"
                make_run(tmp_path / name, norm=norm, seed=seed, config={"eval.shifted": shift}, test_accuracy=ends)
    blur, noise = drawn("shift", tmp_path).axes
    assert (blur.get_title(loc="left"), noise.get_title(loc="left")) == ("blur: test acc %", "noise: test acc %")
    assert lines_of(blur)["batch"] == ([0, 1, 5], pytest.approx([80.5, 70.5, 30.5]))
    assert lines_of(noise)["none"] == ([0, 5], pytest.approx([90.5, 40.5]))


def metered(folder: Path) -> Path:
    """Two arms of two seeds whose meters read at steps 0, 10 and 20."""
    for norm, factor in (("none", 4.0), ("batch", 1.0)):
        for seed in range(2):
            known = [factor * 2**seed * value for value in (1.0, 2.0, 4.0)]
            curve = {"step": [0, 10, 20], "loss_range": known, "ics": [-1.0, 0.0, 1.0]}
            run = make_run(
                folder / f"{norm}-{seed}", norm=norm, seed=seed, summary={"meters": {"landscape": {"curve": curve}}}
            )
            rows = ["step,epoch,meter,figure,layer,depth,axis,value"]
            for step, value in zip(curve["step"], known, strict=True):
                rows += [f"{step},0,landscape,loss_range,-,0,-,{value}"]
                rows += [f"{step},0,gradients,weight_gradient,{d}.x,{d},-,{value * d}" for d in (1, 2, 3)]
                for depth in (1, 2):
                    for axis in ("unit 3", "unit 7"):
                        bands = {"p15": -value, "p50": depth, "p85": value}
                        rows += [f"{step},0,activations,{p},{depth}.y,{depth},{axis},{v}" for p, v in bands.items()]
            (run / "meters.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_what_meters_read_is_drawn_over_training_by_depth_and_as_bands(tmp_path: Path) -> None:
    metered(tmp_path)
    ranges, ics = drawn("meters", tmp_path, baseline="none").axes
    assert (ranges.get_title(loc="left"), ics.get_title(loc="left")) == ("loss range, nats", "covariate shift, %")
    assert lines_of(ranges)["batch"] == ([0, 10, 20], pytest.approx([2**0.5, 2**1.5, 2**2.5]))  # the geometric mean
    assert lines_of(ics)["none"] == ([0, 10, 20], pytest.approx([-100, 0, 100]))
    first, last = drawn("layers", tmp_path, baseline="none").axes
    assert last.get_title(loc="left") == "weight gradient, at the end"  # no name of a column
    assert lines_of(first)["batch"] == ([1, 2, 3], pytest.approx([2**0.5 * d for d in (1, 2, 3)]))
    assert lines_of(last)["none"] == ([1, 2, 3], pytest.approx([4 * 4 * 2**0.5 * d for d in (1, 2, 3)]))
    none, batch = drawn("bands", tmp_path, baseline="none").axes
    assert {axes.get_title(loc="left") for axes in (none, batch)} == {"none", "batch"}
    drawn_lines = {axes.get_title(loc="left"): lines_of(axes) for axes in (none, batch)}
    assert drawn_lines["batch"]["p85"] == ([0, 10, 20], [1, 2, 4])
    assert drawn_lines["none"]["p50"] == ([0, 10, 20], [2, 2, 2])


def test_readings_that_no_axis_can_show_are_not_drawn(tmp_path: Path) -> None:
    for run in metered(tmp_path).iterdir():
        with (run / "meters.csv").open("a") as table:
            for depth, value in (("1", "nan"), ("2", "-1e308"), ("3", "inf"), ("1e308", "1")):
                table.write(f"20,0,gradients,weight_gradient,{depth[0]}.x,{depth},-,{value}\n")
            table.write("20,0,activations,p85,2.y,2,unit 3,1e308\n")
    pages = [image_of(drawn(kind, tmp_path, baseline="none"), "a.svg") for kind in ("meters", "layers", "bands")]
    assert all(b"made with bnlab" in page for page in pages)
    assert lines_of(drawn("bands", tmp_path, baseline="none").axes[1])["p85"][0] == [0, 10]


def test_a_reading_that_one_seed_lacks_is_drawn_of_the_others(tmp_path: Path) -> None:
    for seed, first in enumerate((1.0, 4.0, None)):
        curve = {"step": [0, 10, 20], "stable_rate": [first, 2.0, None if seed else 3.0]}
        make_run(tmp_path / f"{seed}", norm="none", seed=seed, summary={"meters": {"curvature": {"curve": curve}}})
    ((places, means),) = lines_of(drawn("meters", tmp_path).axes[0]).values()
    assert (places, means) == ([0, 10], pytest.approx([2.0, 2.0]))


def test_seeds_that_are_far_apart_have_an_interval_that_ends(tmp_path: Path) -> None:
    for seed, value in enumerate((1e-60, 1e60)):
        curve = {"step": [0, 10], "loss_range": [value, value]}
        make_run(tmp_path / f"{seed}", norm="none", seed=seed, summary={"meters": {"landscape": {"curve": curve}}})
    figure = drawn("meters", tmp_path)
    ((places, means),) = lines_of(figure.axes[0]).values()
    assert (places, means) == ([0, 10], pytest.approx([1, 1]))
    assert image_of(figure, "a.svg")


def test_the_command_knows_every_figure() -> None:
    assert set(FIGURES) == KINDS.keys()


@for_each("form", ["svg", "pdf", "png"])
def test_a_figure_in_every_form_is_the_same_each_time(form: str, tmp_path: Path) -> None:
    figure, before = drawn("curves", sweep(tmp_path / "runs")), dict(matplotlib.rcParams)
    image = image_of(figure, f"a.{form}")
    assert image == image_of(drawn("curves", tmp_path / "runs"), f"b.{form}")
    assert b"made with bnlab" in image
    assert dict(matplotlib.rcParams) == before
    bnlab_package.plot.save(drawn("curves", tmp_path / "runs"), tmp_path / f"figure.{form}")
    assert (tmp_path / f"figure.{form}").read_bytes() == image
    if form == "svg":
        texts = {text.text for text in ElementTree.fromstring(image).iter("{http://www.w3.org/2000/svg}text")}
        assert {"none", "batch", "step"} <= texts
        _, inside = inline_svg(figure, "x")
        assert "currentColor" in inside


def test_what_was_not_recorded_is_refused_by_name(tmp_path: Path) -> None:
    sweep(tmp_path / "s", {"batch": ENDS["batch"]})
    for name, needs in {
        "steps": "bnlab bench",
        "differences": "a baseline",
        "gap": "measure=full",
        "shift": "bnlab shift",
        "meters": "measure=landscape",
        "layers": "measure=gradients",
        "bands": "measure=activations",
    }.items():
        with pytest.raises(IncompatibleError, match=needs):
            drawn(name, tmp_path / "s")
    with pytest.raises(ConfigError, match=r"must end in \.svg, \.pdf or \.png"):
        bnlab_package.plot.save(drawn("curves", tmp_path / "s"), tmp_path / "figure.jpg")


# ---------------------------------------------------------------- the commands


def run(*words: str) -> None:
    """Do a command line in this process. Errors: those of the command."""
    app(args=list(words), prog_name="bnlab", standalone_mode=False)


def test_nothing_is_written_over_but_what_bnlab_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(tmp_path / "runs" / "a")
    for command, name in ((["report"], "report.html"), (["plot", "gap"], "gap.svg")):
        for _ in range(2):
            run(*command)
            assert capsys.readouterr().err.splitlines()[-1] == f"written: {name}"
            assert (tmp_path / name).stat().st_size > 5000
    page = tmp_path / "report.html"
    page.write_text("mine")
    with pytest.raises(ConfigError, match=r"report\.html: is there already, and was not written by bnlab\n"):
        run("report")
    assert page.read_text() == "mine"
    write_own(page, b"new", force=True)
    assert page.read_text() == "new"
    (tmp_path / "link.html").symlink_to("elsewhere.html")
    with pytest.raises(ConfigError, match="was not written by bnlab"):
        write_own(tmp_path / "link.html", b"new", force=False)
    assert not (tmp_path / "elsewhere.html").exists()


@for_each(
    ("words", "says"),
    [
        ("report --out page.txt", "--out page.txt: must end in .html or .md"),
        ("report --out missing/page.html", "the folder missing does not exist\nmake it"),
        ("check norm=batch --out missing/page.html", "the folder missing does not exist\nmake it"),
        ("report nowhere", "nowhere: does not exist"),
        ("report --metric speed", "metric speed: no such metric"),
        ("plot curve", "did you mean curves?"),
        ("plot curves --out c.jpg", "c.jpg: must end in .svg, .pdf or .png"),
        ("plot steps", "steps: there is nothing to draw"),
    ],
)
def test_what_is_wrong_is_said(words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(tmp_path / "runs" / "a", {norm: ends[:1] for norm, ends in ENDS.items()})
    with pytest.raises(BnlabError, match=re.escape(says)) as error:
        run(*words.split())
    assert error.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_who_looks_for_runs_of_claims_is_told_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(tmp_path / "runs" / "a", {norm: ends[:1] for norm, ends in ENDS.items()})
    (tmp_path / "runs/claims/mine").mkdir(parents=True)
    commands = ("plot steps", "plot steps runs/claims/mine", "report runs/claims", "compare runs/claims/mine")
    said = "; runs of claims are in runs/pool, and `bnlab claim show NAME` has a verdict"
    for there in (False, True):
        for words in commands:
            with pytest.raises(BnlabError) as error:
                run(*words.split())
            assert (said in str(error.value)) == there, words
        (tmp_path / "runs/pool").mkdir(exist_ok=True)


def test_options_are_those_of_compare_and_stand_in_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(tmp_path / "a")
    options = ["--metric", "test_loss", "--baseline", "batch", "--where", "norm=none,batch", "--margin", "0.5"]
    run("report", "a", *options, "--out", "p.html")
    said = " ".join(Page((tmp_path / "p.html").read_text()).texts)
    assert "Does none differ from batch in test loss on mnist, where differences below 0.5 nats do not matter?" in said
    assert f"bnlab report a {' '.join(options)}" in said


def test_a_question_in_words(tmp_path: Path) -> None:
    def asked(folder: Path) -> str:
        sections: list[Section] = compare([folder]).sections
        return question(sections[0])

    assert asked(bench(tmp_path / "b")) == "How long is a training step on mnist with batch and layer, beside none?"
    assert asked(make_run(tmp_path / "r")) == "What test accuracy does batch reach on mnist?"
    sweep(tmp_path / "s", {**ENDS, "layer": ENDS["none"]})
    assert asked(tmp_path / "s") == "Do batch and layer differ from none in test accuracy on mnist?"


# ---------------------------------------------------------------- a probe, a shift, a card


@pytest.fixture(scope="module")
def model_of_ones_own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("own")
    (place / "nets.py").write_text(
        """
from torch import nn

def make():
    net = nn.Sequential(nn.Conv2d(1, 4, 3))
    net.add_module("<script>alert(1)</script>", nn.BatchNorm2d(4))
    return net.append(nn.ReLU()).append(nn.Flatten()).append(nn.Linear(144, 10))
"""
    )
    return place


@for_each(
    ("command", "question", "tables"),
    [
        (["probe", "--samples", "64"], "How does nets:make differ between training and evaluation mode?", 5),
        (["shift", "--shift", "noise,blur,contrast", "--severity", "1,5"], "What do shifted test images do to", 4),
    ],
)
def test_a_model_has_a_page(command: list[str], question: str, tables: int, model_of_ones_own: Path) -> None:
    small = ["eval.probe_samples=64", "trainer.threads=1", "trainer.device=cpu"]
    line = [command[0], "--module", "nets:make", "--data", "digits", *command[1:], *small]
    plain = bnlab(*line, "--format", "json", cwd=model_of_ones_own)
    out = model_of_ones_own / "page.html"
    done = bnlab(*line, "--format", "json", "--out", "page.html", "--force", cwd=model_of_ones_own)
    assert (done.returncode, done.stdout) == (0, plain.stdout), done.stderr
    assert "written: page.html" in done.stderr
    check_self_contained(out.read_text())
    page, answer = Page(out.read_text()), json.loads(done.stdout)
    said = " ".join(page.texts)
    assert question in said
    assert len(page.tables) == tables
    assert f"bnlab {command[0]} --module nets:make" in said
    if command[0] == "probe":
        assert answer["verdict"] in said
        assert "<script>alert(1)</script>" in said
        (gap,) = (row for row in answer["rows"] if (row["split"], row["metric"]) == ("test", "kl"))
        assert next(row for row in page.tables[0] if row[0].startswith("KL"))[2].startswith(f"{gap['value']:.1g}"[:3])
    else:
        plain_rows = [row for row in answer["rows"] if row["shift"] == "none"]
        shown = [float(cell.split()[0]) for cell in page.tables[0][1][1 : 1 + len(plain_rows)]]
        assert shown == pytest.approx([100 * row["accuracy"] for row in plain_rows], abs=0.5)


@pytest.mark.slow
def test_cards_have_a_page(tmp_path: Path) -> None:
    done = bnlab("check", "norm=ghost", "--format", "json", "--out", "card.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_self_contained((tmp_path / "card.html").read_text())
    page = Page((tmp_path / "card.html").read_text())
    card = json.loads(done.stdout)
    truth = {None: "–", True: "yes", False: "no"}
    assert [row[1:3] for row in page.tables[0][1:]] == [
        [truth[each["declared"]], truth[each["holds"]]] for each in card["properties"].values()
    ]
    assert bnlab("check", "norm=none,layer", "--out", "two.html", cwd=tmp_path).returncode == 0
    titles, *rows = Page((tmp_path / "two.html").read_text()).tables[0]
    assert titles == ["property", "none", "layer"]
    assert len(rows) == len(card["properties"])


def test_a_page_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine")
    for out, said in (("a.pdf", "must end in .html"), ("mine.html", "was not written by bnlab")):
        done = bnlab("check", "norm=ghost", "--out", out, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
    assert (tmp_path / "mine.html").read_text() == "mine"
    sweep(tmp_path / "runs/s")
    for command in ("probe", "shift"):
        done = bnlab(command, "runs/s", "--out", "page.html", cwd=tmp_path)
        assert done.returncode == 2
        assert "--out" in done.stderr
