"""Shifts of test images by independent formulas, evaluation under them by hand, and `bnlab shift` as users meet it."""

from __future__ import annotations

import bisect
import hashlib
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from helpers_cli import bnlab
from scipy import stats
from torch import Tensor, nn

from bnlab.cli.shift import shift
from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.data.severities import SEVERITIES, STATS
from bnlab.data.shifts import SHIFTS, shifted
from bnlab.errors import ConfigError, IncompatibleError
from bnlab.experiment.shift_study import Study
from bnlab.interval import Interval
from bnlab.measure.probe_batches import batching
from bnlab.measure.robustness import DRAWS, Condition, Robustness, robustness
from bnlab.report.console import Terminal
from bnlab.report.shift_report import shift_rows, shift_table


def split(count: int, channels: int = 1, height: int = 8, width: int = 8, classes: int = 10, seed: int = 0) -> Split:
    source = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=source)
    return Split(images, torch.randint(0, classes, (count,), generator=source))


def apply(name: str, samples: Split, amount: float, seed: int = 0) -> Split:
    return SHIFTS[name].apply(samples, amount, torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the shifts


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 14)])
@pytest.mark.parametrize("name", SHIFTS)
def test_every_shift_keeps_what_an_image_is_and_comes_out_the_same(name: str, shape: tuple[int, int, int]) -> None:
    samples = split(60, *shape)
    images, labels = samples.images.clone(), samples.labels.clone()
    for severity in SEVERITIES:
        states = torch.get_rng_state(), random.getstate()
        first = shifted(samples, name, severity)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        torch.manual_seed(severity)
        again = shifted(samples, name, severity)
        assert (first.images.dtype, first.labels.dtype) == (torch.uint8, torch.int64)
        assert first.images.shape == (len(first), *shape)
        assert len(first) == 60 or (name == "imbalance" and len(first) < 60)
        assert torch.equal(first.images, again.images)
        assert torch.equal(first.labels, again.labels)
        changed = not torch.equal(first.images[:10], images[:10]) or len(first) < 60 or name == "label-sorted"
        assert changed
    assert torch.equal(samples.images, images)
    assert torch.equal(samples.labels, labels)


def test_rotation_by_right_angles_is_exact_and_goes_both_ways() -> None:
    samples = split(40, 3, 8, 8)
    assert torch.equal(apply("rotation", samples, 0.0).images, samples.images)
    turned = apply("rotation", samples, 90.0).images
    left = (turned == samples.images.rot90(1, (2, 3))).flatten(1).all(1)
    right = (turned == samples.images.rot90(-1, (2, 3))).flatten(1).all(1)
    assert (left ^ right).all()
    assert 8 < int(left.sum()) < 32


def test_rotation_is_bilinear_and_black_outside() -> None:
    samples = split(6, 1, 11, 11)
    turned = apply("rotation", samples, 30.0).images
    for before, after in zip(samples.images[:, 0].double().numpy(), turned[:, 0].double().numpy(), strict=True):
        ways = [
            scipy.ndimage.rotate(before, angle, reshape=False, order=1, mode="grid-constant", cval=0)
            for angle in (30, -30)
        ]
        assert min(np.abs(way - after).max() for way in ways) <= 0.51  # rounding
    assert int(turned[:, 0, 0, 0].max()) == 0


@pytest.mark.parametrize(("percent", "pixels"), [(5, 1), (10, 3), (30, 8)])
def test_translation_moves_into_all_four_corners(percent: float, pixels: int) -> None:
    samples = split(80, 1, 28, 30)
    moved = apply("translation", samples, percent).images
    seen = torch.zeros(80, dtype=torch.int64)
    for down in (-pixels, pixels):
        for right in (-pixels, pixels):
            rolled = samples.images.roll((down, right), (2, 3))
            rows, columns = torch.arange(28), torch.arange(30)
            inside = (
                ((rows - down >= 0) & (rows - down < 28))[:, None] & (columns - right >= 0) & (columns - right < 30)
            )
            hit = (moved == torch.where(inside, rolled, 0)).flatten(1).all(1)
            assert hit.any()
            seen += hit
    assert (seen == 1).all()


def test_noise_has_the_standard_deviation_of_the_table() -> None:
    grey = Split(torch.full((600, 1, 16, 16), 128, dtype=torch.uint8), torch.zeros(600, dtype=torch.int64))
    for percent in (8, 12):
        noisy = apply("noise", grey, percent).images.double()
        assert noisy.std().item() == pytest.approx(percent / 100 * 255, rel=0.01)
        assert noisy.mean().item() == pytest.approx(128, abs=0.3)
    assert len(apply("noise", grey, 8).images.flatten(1).unique(dim=0)) == 600


def test_blur_is_a_gaussian_of_that_width() -> None:
    samples = split(3, 3, 20, 24)
    for percent, sigma in ((6.0, 0.06 * 20), (1.0, 0.4)):
        blurred = apply("blur", samples, percent).images
        for before, after in zip(samples.images.flatten(0, 1), blurred.flatten(0, 1), strict=True):
            expected = scipy.ndimage.gaussian_filter(before.double(), sigma, mode="mirror", radius=math.ceil(3 * sigma))
            assert np.abs(expected - after.double().numpy()).max() <= 0.51


def test_contrast_is_less_about_each_images_mean_grey() -> None:
    for channels, weights in ((1, [1.0]), (3, [0.2989, 0.587, 0.114])):
        samples = split(5, channels, 8, 8)
        x = samples.images.double()
        mean = (x * torch.tensor(weights, dtype=torch.float64).view(-1, 1, 1)).sum(1).mean((1, 2)).view(-1, 1, 1, 1)
        expected = (mean + 0.2 * (x - mean)).clamp(0, 255)
        assert (apply("contrast", samples, 20.0).images.double() - expected).abs().max() <= 0.51


def test_inversion_ends_in_the_negative() -> None:
    samples = split(5, 3, 8, 8)
    x = samples.images
    assert torch.equal(shifted(samples, "inversion", 5).images, 255 - x)
    halfway = shifted(samples, "inversion", 3).images.double()
    assert (halfway - (0.4 * x.double() + 0.6 * (255 - x.double()))).abs().max() <= 0.51


def test_imbalance_thins_out_class_by_class() -> None:
    labels = torch.arange(10).repeat(200)
    samples = Split(torch.arange(2000).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).to(torch.uint8), labels)
    for severity, ratio in zip(SEVERITIES, (2, 5, 10, 50, 100), strict=True):
        kept = shifted(samples, "imbalance", severity)
        counts = [round(200 * ratio ** (-c / 9)) for c in range(10)]
        assert kept.labels.bincount().tolist() == counts
        rows = [row for row in range(2000) if row // 10 < counts[row % 10]]  # the first of each class, in their order
        assert torch.equal(kept.labels, labels[rows])
        assert torch.equal(kept.images, samples.images[rows])
    single = Split(samples.images[:5], torch.zeros(5, dtype=torch.int64))
    assert len(shifted(single, "imbalance", 5)) == 5


def test_label_sorted_sorts_a_growing_share_of_the_order() -> None:
    samples = split(250, classes=5)
    before = samples.images.flatten(1).tolist()
    by_label = samples.labels.argsort(stable=True)
    whole = shifted(samples, "label-sorted", 5)
    assert torch.equal(whole.labels, samples.labels[by_label])
    assert torch.equal(whole.images, samples.images[by_label])
    for severity, percent in zip(SEVERITIES, (20, 40, 60, 80, 100), strict=True):
        found = shifted(samples, "label-sorted", severity)
        place = [before.index(image) for image in found.images.flatten(1).tolist()]
        assert sorted(place) == list(range(250))
        assert torch.equal(found.labels, samples.labels[place])
        assert sum(i == p for i, p in enumerate(place)) >= 250 * (100 - percent) // 100
        assert longest_sorted(found.labels.tolist()) >= 250 * percent // 100
    assert longest_sorted(shifted(samples, "label-sorted", 1).labels.tolist()) < 150


def longest_sorted(labels: list[int]) -> int:
    """Length of the longest subsequence that does not fall."""
    ends: list[int] = []
    for label in labels:
        place = bisect.bisect_right(ends, label)
        ends[place : place + 1] = [label]
    return len(ends)


# ---------------------------------------------------------------- evaluation under a shift, by hand

SIZE = 16


def network(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """A network whose running statistics are off from those of its data."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), norm(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
    )
    for layer in model:
        if getattr(layer, "running_mean", None) is not None:
            layer.running_mean.uniform_(-0.3, 0.3)
            layer.running_var.uniform_(0.01, 0.3)
    return model.eval()


def device_batches(samples: Split) -> Batches:
    return Batches(samples, batch_size=SIZE)


def pixels(samples: Split) -> Tensor:
    return samples.images.float() / 255


def judge(model: nn.Module, samples: Split, *stats: str, size: int = SIZE, prior: float = 16) -> list[Robustness]:
    return list(robustness(model, samples, device_batches, stats or STATS, size, prior))


@torch.no_grad()
def at_once(model: nn.Sequential, x: Tensor, mean: Tensor | None = None, var: Tensor | None = None) -> Tensor:
    """Logits in float64 with statistics put into the second layer; None: those that it holds."""
    x = model[0](x)
    layer: Any = model[1]
    mean = layer.running_mean if mean is None else mean
    var = layer.running_var if var is None else var
    normed = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + layer.eps).sqrt()
    x = normed * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
    for part in list(model)[2:]:
        x = part(x)
    return x.double()


@torch.no_grad()
def moments(model: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    x = model[0](x)
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)


def in_batches(model: nn.Sequential, samples: Split, order: Tensor, weight: Callable[[int], float]) -> Tensor:
    """Logits in sample order, each batch normalized with weight * its own + (1 - weight) * running statistics."""
    layer: Any = model[1]
    found = torch.empty(len(samples), 10, dtype=torch.float64)
    for rows in order.split(SIZE):
        x = pixels(samples)[rows]
        mean, var = moments(model, x)
        w = weight(len(rows))
        mixed = layer.running_mean.lerp(mean, w), layer.running_var.lerp(var, w)
        found[rows] = at_once(model, x, *mixed)
    return found


def expect(found: Robustness, logits: Tensor, labels: Tensor) -> None:
    hits = (logits.argmax(1) == labels).double()
    wanted = stats.binomtest(int(hits.sum()), len(labels)).proportion_ci(method="wilson")
    assert found.accuracy.value == pytest.approx(hits.mean().item())
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((wanted.low, wanted.high))
    assert found.loss.value == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_running_is_plain_evaluation() -> None:
    model, samples = network(), split(70)
    (found,) = judge(model, samples, "running")
    with torch.no_grad():
        expect(found, model(pixels(samples)).double(), samples.labels)
    assert (found.stats, found.samples, found.difference) == ("running", 70, None)
    assert (found.flips, found.mate_noise) == (0.0, 0.0)


@pytest.mark.parametrize("stats", ["batch", "mixed"])
def test_batches_and_their_mates_by_hand(stats: str) -> None:
    model, samples = network(), split(70)  # the last batch is short
    (found,) = judge(model, samples, stats, prior=5)

    def weight(n: int) -> float:
        return 1.0 if stats == "batch" else n / (5 + n)

    drawn = torch.stack([in_batches(model, samples, batching(70, SIZE, draw), weight) for draw in range(DRAWS)])
    expect(found, drawn[0], samples.labels)
    predicted = drawn.argmax(2)
    assert found.flips == pytest.approx((predicted[1:] != predicted[0]).double().mean().item())
    assert (predicted[1:] != predicted[0]).any()
    noise = drawn.var(0).mean(1).sqrt().mean() / drawn[0].square().mean().sqrt()
    assert found.mate_noise == pytest.approx(noise.item(), rel=1e-4)
    hits = (predicted[0] == samples.labels).double() - (
        at_once(model, pixels(samples)).argmax(1) == samples.labels
    ).double()
    assert found.difference is not None
    assert found.difference.value == pytest.approx(hits.mean().item())
    assert found.difference.low is not None
    half = 1.995 * hits.std().item() / math.sqrt(70)  # Student's t, 69 degrees of freedom
    assert found.difference.value - found.difference.low == pytest.approx(half, rel=1e-3)


def test_test_has_the_statistics_of_the_whole_set_and_depends_on_it_by_halves() -> None:
    model, samples = network(), split(70)
    (found,) = judge(model, samples, "test")
    x = pixels(samples)
    expect(found, at_once(model, x, *moments(model, x)), samples.labels)
    from bnlab.measure.robustness import _halves

    one, other = _halves(70)
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(70))
    assert len(one) == len(other) == 35
    halves = torch.stack([at_once(model, x, *moments(model, x[half])) for half in (one, other)])
    assert found.flips == pytest.approx((halves[0].argmax(1) != halves[1].argmax(1)).double().mean().item())
    whole = at_once(model, x, *moments(model, x))
    noise = halves.var(0).mean(1).sqrt().mean() / whole.square().mean().sqrt()
    assert found.mate_noise == pytest.approx(noise.item(), rel=1e-4)


def test_one_whole_batch_is_the_whole_set() -> None:
    model, samples = network(), split(70)
    batch, test = judge(model, samples, "batch", "test", size=70)
    assert batch.loss.value == pytest.approx(test.loss.value, rel=1e-6)
    assert batch.accuracy.value == test.accuracy.value
    assert batch.ece == pytest.approx(test.ece, abs=1e-6)
    assert (batch.flips, batch.mate_noise) == (None, None)  # there are no other batches
    assert test.flips is not None


def test_a_single_sample_has_no_mates() -> None:
    found = judge(network(), split(1))
    assert [row.flips for row in found] == [None] * 4
    assert [row.accuracy.low for row in found] == [None] * 4


def test_sorted_labels_touch_only_what_depends_on_mates() -> None:
    model, samples = network(), split(160)
    samples = Split(samples.images // 4 + 20 * samples.labels.to(torch.uint8).view(-1, 1, 1, 1), samples.labels)
    before = {row.stats: row for row in judge(model, samples)}
    after = {row.stats: row for row in judge(model, shifted(samples, "label-sorted", 5))}
    for name in ("running", "test"):
        assert after[name].loss.value == pytest.approx(before[name].loss.value, rel=1e-6)
        assert after[name].accuracy.value == before[name].accuracy.value
    for name in ("mixed", "batch"):
        assert abs(after[name].loss.value - before[name].loss.value) > 0.01
    assert (after["running"].flips, after["running"].mate_noise) == (0.0, 0.0)
    noise = {name: row.mate_noise or 0.0 for name, row in after.items()}
    assert noise["batch"] > noise["mixed"] > noise["test"] > 0
    assert noise["batch"] > 1.5 * (before["batch"].mate_noise or 0.0)


@pytest.mark.parametrize("norm", [nn.Identity, lambda c: nn.GroupNorm(2, c), nn.InstanceNorm2d])
def test_without_running_statistics_there_is_nothing_to_choose(norm: Callable[[int], nn.Module]) -> None:
    (found,) = judge(network(norm), split(70))
    assert (found.stats, found.flips, found.mate_noise, found.difference) == ("running", 0.0, 0.0, None)


def test_a_layer_that_keeps_no_statistics_and_reads_its_batch_shows_it() -> None:
    (found,) = judge(network(lambda c: nn.BatchNorm2d(c, track_running_stats=False)), split(70))
    assert found.stats == "running"
    assert found.flips is not None
    assert found.flips > 0


def test_a_layer_called_twice_bars_only_the_statistics_of_the_set() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(self.norm(x)).flatten(1))
            return out

    model, samples = Twice().eval(), split(40)
    assert [row.stats for row in judge(model, samples, "running", "mixed", "batch")] == ["running", "mixed", "batch"]
    with pytest.raises(IncompatibleError, match="called more than once"):
        judge(model, samples, "test")


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_states_are_left_as_they_were(fails: bool) -> None:
    model = network()
    model[1].train()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if fails and calls == 21:
            raise RuntimeError("stop")

    model.register_forward_hook(count)

    def state() -> tuple[Any, ...]:
        layers = [(m.training, list(m._forward_pre_hooks), list(m._forward_hooks)) for m in model.modules()]
        rng = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
        return layers, {k: v.tolist() for k, v in model.state_dict().items()}, rng

    before = state()
    if fails:
        with pytest.raises(RuntimeError, match="stop"):
            judge(model, split(70))
    else:
        assert len(judge(model, split(70))) == 4
    assert calls >= 21
    assert state() == before


# ---------------------------------------------------------------- the table


def row(stats: str, accuracy: float, difference: float | None, flips: float | None = 0.02) -> Robustness:
    def about(value: float, half: float) -> Interval:
        return Interval(value, value - half, value + half, 100)

    against = None if difference is None else about(difference, 0.01)
    return Robustness(stats, 100, about(accuracy, 0.02), against, about(0.3, 0.1), 0.051, flips, 0.1)


def study(**changes: Any) -> Study:
    conditions = (
        Condition("none", 0, None, "", (row("running", 0.95, None, 0.0), row("batch", 0.955, 0.005))),
        Condition("blur", 3, 4.5, "% of the side", (row("running", 0.5, None, 0.0), row("batch", 0.75, 0.25))),
        Condition("label-sorted", 5, 100, "%", (row("running", 0.95, None, 0.0), row("batch", 0.2, -0.75, None))),
    )
    usual: dict[str, Any] = {"label": "a\x1brun", "batch_size": 64, "prior": 16.0, "available": 500}
    return Study(**usual | {"keeps_statistics": True, "conditions": conditions} | changes)


def printed(what: Study, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    out = Terminal(stream)
    out.print(shift_table(what, out))
    return stream.getvalue()


def test_the_table_marks_what_is_clear_and_says_it_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(study(), 120, monkeypatch)
    lines = [line.split() for line in text.splitlines()]
    assert ["none", "95.0", "±", "2.0", "95.5", "±", "2.0", "5.1", "5.1", "0.0", "2.0"] in lines
    assert ["blur", "3", "50.0", "±", "2.0", "75.0", "±", "2.0*", "5.1", "5.1", "0.0", "2.0"] in lines
    assert ["label-sorted", "5", "95.0", "±", "2.0", "20.0", "±", "2.0*", "5.1", "5.1", "0.0", "–"] in lines
    assert "batch: clearly better than running in 1 row, most under blur 3 (+25.0 ± 1.0 points)" in text
    assert "clearly worse in 1 row, most under label-sorted 5 (-75.0 ± 1.0 points)" in " ".join(text.split())
    assert "n = 100 of 500 test images" in text
    mixed = Condition("none", 0, None, "", (row("running", 0.95, None, 0.0), row("mixed", 0.955, 0.005)))
    text_of_one = " ".join(printed(study(conditions=(mixed,), prior=1.0), 120, monkeypatch).split())
    assert "count for 1 sample (eval.prior)" in text_of_one
    assert "blur 4.5 % of the side" in " ".join(text.split())
    assert "a\\x1brun" in text
    assert "\x1b" not in text


def test_the_best_is_bold_and_a_clear_difference_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    table = shift_table(study(), Terminal(io.StringIO()))
    styled = {
        (str(line).split()[0], str(line)[span.start : span.end].strip()): span.style
        for line in table.renderables
        for span in line.spans  # type: ignore[union-attr]
    }
    assert styled["none", "95.5 ± 2.0"] == "bold"
    assert styled["blur", "75.0 ± 2.0*"] == "bold green"
    assert styled["label-sorted", "95.0 ± 2.0"] == "bold"
    assert styled["label-sorted", "20.0 ± 2.0*"] == "red"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_the_table_keeps_to_the_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(study(label="run"), width, monkeypatch).splitlines()
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line.startswith(("label-sorted 5", "shift=label-sorted 5"))]
    assert len(rows) >= 1 + (20 < width < 80)  # in parts below one another, at last a block a row


def test_no_choice_is_one_column_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = tuple(Condition(at.shift, at.severity, at.amount, at.unit, at.found[:1]) for at in study().conditions)
    text = printed(study(conditions=conditions, keeps_statistics=False), 120, monkeypatch)
    assert "no layer keeps running statistics" in text
    assert "batch:" not in text
    assert "clear" not in text


def test_rows_for_programs_are_one_a_shift_severity_and_choice() -> None:
    head, rows = shift_rows(study())
    assert (head["samples"], head["available"], head["prior"]) == (100, 500, 16.0)
    assert [(r["shift"], r["severity"], r["stats"]) for r in rows[2:4]] == [
        ("blur", 3, "running"),
        ("blur", 3, "batch"),
    ]
    assert rows[2]["difference"] is rows[2]["difference_low"] is None
    assert (rows[3]["accuracy"], rows[3]["difference"], rows[3]["difference_high"]) == (0.75, 0.25, 0.26)
    assert len({tuple(r) for r in rows}) == 1


# ---------------------------------------------------------------- the command

SHORT = ["trainer.steps=80", "model=mlp", "model.widths=[32,32]", "trainer.device=cpu", "trainer.threads=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("shift")
    done = bnlab("train", "-m", "norm=batch,layer", *SHORT, cwd=where)
    assert done.returncode == 0, done.stderr
    (sweep,) = where.glob("runs/2*")
    sweep.rename(where / "trained")
    return where


def test_a_run_under_shifts_at_80_columns(place: Path) -> None:
    run = place / "trained" / "0"
    files = {path: hashlib.sha256(path.read_bytes()).digest() for path in run.iterdir()}
    done = bnlab(
        "shift", "trained/0", "--shift", "contrast,label-sorted", "--severity", "5", "--batch-size", "40",
        cwd=place, COLUMNS="80",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout
    text = " ".join(done.stdout.split())
    assert "360 test images under shifts" in text
    assert "batch: clearly better than running in 1 row, most under contrast 5" in text
    assert "most under label-sorted 5 (-" in text
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in run.iterdir()} == files


def test_formats_and_choices(place: Path) -> None:
    options = ["--shift", "noise", "--shift", "imbalance", "--severity", "5,1", "--stats", "batch,running"]
    done = bnlab("shift", "trained/0", *options, "-f", "json", cwd=place)
    found = json.loads(done.stdout)
    assert (found["schema"], found["samples"], found["batch_size"], found["keeps_statistics"]) == (1, 360, 64, True)
    keys = [(row["shift"], row["severity"], row["stats"]) for row in found["rows"]]
    expected = [("none", 0), ("noise", 1), ("noise", 5), ("imbalance", 1), ("imbalance", 5)]
    assert keys == [(*key, stats) for key in expected for stats in ("running", "batch")]
    assert found["rows"][0]["accuracy"] > 0.8
    assert found["rows"][-1]["samples"] < 100


def test_a_model_without_statistics_in_ascii(place: Path) -> None:
    done = bnlab(
        "shift", "trained/1", "eval.probe_samples=100", "--shift", "blur", "--severity", "3",
        cwd=place, COLUMNS="80", PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "no layer keeps running statistics" in done.stdout
    assert "n = 100 of 360 test images" in done.stdout
    (blurred,) = [line.split() for line in done.stdout.splitlines() if line.startswith("blur")]
    assert len(blurred) == 6  # blur, 3, accuracy and its interval, ECE, changed: one choice
    assert blurred[-1] == "0.0" or blurred[-1] == "-"


@pytest.mark.parametrize(
    ("shifts", "severity", "stats", "said"),
    [
        ("noise,", "1", "batch", "--shift '': no such choice"),
        ("noise,none", "1", "batch", "--shift none: no such choice"),
        ("noise", "0,3", "batch", "--severity 0: no such choice\nthere are: 1, 2, 3, 4, 5"),
        ("noise", "1-5", "batch", "--severity 1-5: no such choice"),
        ("noise", "", "batch", "--severity '': no such choice"),
        ("noise", "1", "runing", "--stats runing: no such choice; did you mean running?"),
        ("noise", "1", "precise", "--stats precise: no such choice"),
    ],
)
def test_wrong_choices(shifts: str, severity: str, stats: str, said: str) -> None:
    shape = {"shifts": shifts.split(","), "severity": severity.split(","), "stats": stats.split(",")}
    with pytest.raises(ConfigError) as error:
        shift(["nowhere"], **shape)
    assert str(error.value).startswith(said)


def test_a_wrong_choice_ends_in_2(tmp_path: Path) -> None:
    done = bnlab("shift", "nowhere", "--shift", "nois", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--shift nois: no such choice; did you mean noise?\nthere are: rotation, ")
    assert done.stderr.count("\n") == 2
