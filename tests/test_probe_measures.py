"""Intervals, batches with other mates, and every figure of a probe against the formulas in numpy; and its edges."""

from __future__ import annotations

import math
import sys
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers_cases import for_each
from helpers_network import KINDS, Array, Flat, interval, kl, nats, right, twins
from helpers_probe import Doubles, assert_unchanged, picture, probe_of, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torchvision.models import resnet18

from bnlab.data.augment import Augment
from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.interval import Interval
from bnlab.measure import population_statistics
from bnlab.measure.discrepancy import mean_of, share_of
from bnlab.measure.layer_statistics import running_layers
from bnlab.measure.modes import training_statistics
from bnlab.measure.population_statistics import adopted, plan, population, precise
from bnlab.measure.probe_batches import Probe, batching, logits_in_batches, probe_indices
from bnlab.measure.probe_model import CURVE_SIZES, Evaluation, ProbeResult, probe
from bnlab.measure.verdict import explained, verdict
from bnlab.models.model import build, models
from bnlab.norms.strategy import strategies

CLOSE: dict[str, Any] = {"rel": 1e-5, "abs": 2e-6}  # logits are kept in float32


# ---------------------------------------------------------------- intervals


def test_an_interval_over_samples_is_that_of_the_t_test() -> None:
    values = torch.randn(17, generator=torch.Generator().manual_seed(0)).double()
    found = mean_of(values)
    low, high = stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((values.numpy().mean(), low, high), rel=1e-12)
    assert found.n == 17
    hits = values > 0
    assert mean_of(hits) == mean_of(hits.double())
    assert mean_of(hits).value == int(hits.sum()) / 17


@settings(max_examples=60, deadline=None)
@given(
    draws=st.integers(1, 9),
    n=st.integers(2, 30),
    scale=st.sampled_from([1e-120, 1e-90, 1e-8, 1.0, 1e8, 1e120]),
    offset=st.sampled_from([0.0, 3.0, -1e3]),
    seed=st.integers(0, 99),
)
def test_an_interval_over_samples_and_draws(draws: int, n: int, scale: float, offset: float, seed: int) -> None:
    source = np.random.default_rng(seed)
    plain = source.normal(size=(draws, n)) + source.normal(size=n) + source.normal(size=(draws, 1)) + offset
    found = mean_of(torch.from_numpy(plain * scale))
    for mine, theirs in zip((found.value, found.low, found.high), interval(plain), strict=True):
        assert mine == pytest.approx(theirs * scale, rel=1e-9, abs=1e-9 * scale)
    assert found.n == n


def test_the_degrees_of_freedom_lie_between_those_of_the_two_parts() -> None:
    """With draws that agree they are N - 1, with samples that agree K - 1."""
    column = torch.randn(12, generator=torch.Generator().manual_seed(1)).double()
    same_draws, same_samples = mean_of(column.expand(5, 12)), mean_of(column[:5, None].expand(5, 12))
    assert same_draws.high == pytest.approx(mean_of(column).high)
    assert same_samples.high == pytest.approx(mean_of(column[:5]).high)


@settings(max_examples=60, deadline=None)
@given(value=st.floats(-1e30, 1e30), draws=st.integers(1, 9), n=st.integers(2, 3000))
def test_equal_values_have_a_width_of_zero_and_few_of_them_no_interval(value: float, draws: int, n: int) -> None:
    bound = value if n > 5 else None
    assert mean_of(torch.full((draws, n), value, dtype=torch.float64)) == Interval(value, bound, bound, n)


def test_one_sample_and_values_that_are_not_finite_have_no_interval() -> None:
    assert mean_of(torch.tensor([3.0])) == Interval(3.0, None, None, 1)
    assert mean_of(torch.tensor([[3.0], [5.0]])) == Interval(4.0, None, None, 1)
    for bad in (math.nan, math.inf, -math.inf):
        for values in ([bad, 1.0], [bad, bad]):
            found = mean_of(torch.tensor(values))
            assert (found.low, found.high, found.n) == (None, None, 2)
            assert not math.isfinite(found.value)
            assert not found.excludes(0)
    beyond = mean_of(torch.tensor([-1e300, 1e300], dtype=torch.float64))
    assert (beyond.value, beyond.low, beyond.high) == (0, None, None)


def test_what_an_interval_lies_beyond() -> None:
    assert Interval(1.0, 0.5, 1.5, 9).excludes(0)
    assert Interval(-1.0, -1.5, -0.5, 9).excludes(0)
    assert not Interval(0.1, -0.5, 0.7, 9).excludes(0)
    assert not Interval(0.0, 0.0, 0.0, 9).excludes(0)
    assert not Interval(1.0, None, None, 1).excludes(0)
    assert Interval(1.1, 1.05, 1.2, 9).excludes(1)
    assert Interval(1.0, 0.5, 1.5, 9).is_above(0.4)
    assert not Interval(1.0, 0.5, 1.5, 9).is_above(None)
    assert Interval(1.0, 0.5, 1.5, 9).is_below(1.6)
    assert not Interval(1.0, 0.5, 1.5, 9).is_below(1.5)


@for_each("n, right_ones", [(2, 2), (320, 320), (320, 319), (320, 160), (5, 0)])
def test_an_interval_of_a_share_is_wilsons(n: int, right_ones: int) -> None:
    hits = torch.arange(n) < right_ones
    found, wanted = share_of(hits), stats.binomtest(right_ones, n).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((right_ones / n, wanted.low, wanted.high), abs=1e-12)


def test_a_share_that_varies_from_draw_to_draw_is_known_no_better_than_its_draws_tell() -> None:
    hits = torch.zeros(2, 1000)
    hits[1, :900] = 1
    found, by_draws = share_of(hits), mean_of(hits)
    assert by_draws.low is not None
    assert by_draws.low < 0
    assert (found.value, found.low, found.high) == (pytest.approx(0.45), 0.0, 1.0)
    assert share_of(torch.tensor([[1.0], [0.0]])) == Interval(0.5, None, None, 1)


@for_each("share", [0.9, 0.98, 0.99, 0.997, 0.999])
@for_each("n", [320, 10_000])
def test_coverage_of_shares(n: int, share: float) -> None:
    """Simulated in 40,000 draws 92.5 % or more; Student's t has 27 % of 0.999 with 320 samples."""
    by_count = {}
    counts = np.random.default_rng(0).binomial(n, share, 4000)
    for count in set(counts.tolist()):
        found = share_of((torch.arange(n) < count).double())
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low < found.high <= 1
        by_count[count] = found.low <= share <= found.high
    assert np.mean([by_count[count] for count in counts.tolist()]) >= 0.92


@for_each(
    ("draws", "by_sample", "by_draw", "by_both"),
    [(1, 1.0, 0.0, 0.0), (8, 1.0, 0.0, 0.0), (8, 1.0, 0.3, 0.0), (8, 0.0, 1.0, 0.0), (8, 1.0, 1.0, 1.0)],
)
def test_coverage(draws: int, by_sample: float, by_draw: float, by_both: float) -> None:
    """Of 2,000 simulated probes of 20 samples, 95 % contain the truth, 0; three standard errors are 1.5 points.

    What samples and draws do together is counted twice, which only widens: then and with few draws it may be more.
    """
    source = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        values = (
            by_sample * source.normal(size=20)
            + by_draw * source.normal(size=(draws, 1))
            + by_both * source.normal(size=(draws, 20))
        )
        found = mean_of(torch.from_numpy(values))
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0 <= found.high
    assert inside / 2000 >= 0.935
    if not (by_sample and by_draw):
        assert inside / 2000 <= 0.965


# ---------------------------------------------------------------- batches with other batch-mates


def mates(order: Tensor, size: int) -> list[frozenset[int]]:
    """Return the batch that each sample is in, by sample."""
    found: list[frozenset[int]] = [frozenset()] * len(order)
    for batch in order.split(size):
        for sample in batch.tolist():
            found[sample] = frozenset(batch.tolist())
    return found


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 70), size=st.integers(1, 20), draw=st.integers(0, 9))
def test_each_draw_of_batches(n: int, size: int, draw: int) -> None:
    order = batching(n, size, draw)
    assert sorted(order.tolist()) == list(range(n))
    whole = n // size * size
    places = torch.arange(n) % size
    assert torch.equal(order % size, places)  # each sample keeps its place in its batch
    assert torch.equal(order[whole:], torch.arange(whole, n))  # what is beyond whole batches stays
    assert torch.equal(order, batching(n, size, draw))
    if draw == 0 or whole <= size:
        assert torch.equal(order, torch.arange(n))


@settings(max_examples=60, deadline=None)
@given(batches=st.integers(2, 9), size=st.integers(2, 12), ghost=st.integers(2, 6))
def test_the_first_other_draw_changes_every_batch_and_every_ghost(batches: int, size: int, ghost: int) -> None:
    """So that two draws are enough to tell whether mates matter, however few the batches."""
    order = batching(batches * size, size, 1).view(batches, size)
    before = torch.arange(batches * size).view(batches, size)
    for first in range(0, size - 1, ghost):
        part = slice(first, first + min(ghost, size))
        if before[:, part].shape[1] > 1:
            assert not {frozenset(row.tolist()) for row in order[:, part]} & {
                frozenset(row.tolist()) for row in before[:, part]
            }


def test_other_draws_have_other_mates() -> None:
    seen = [mates(batching(96, 8, draw), 8) for draw in range(8)]
    for sample in range(96):
        assert len({draw[sample] for draw in seen}) >= 7
    state = torch.get_rng_state()
    batching(96, 8, 3)
    assert torch.equal(state, torch.get_rng_state())


@given(available=st.integers(1, 90), wanted=st.integers(1, 90), size=st.integers(1, 30))
def test_probe_samples_come_in_whole_batches(available: int, wanted: int, size: int) -> None:
    chosen = probe_indices(available, wanted, size)
    most = min(available, wanted)
    assert len(set(chosen.tolist())) == len(chosen)
    assert set(chosen.tolist()) <= set(range(available))
    assert len(chosen) == (most if most <= size else most // size * size)
    assert torch.equal(chosen, probe_indices(available, wanted, size))


# ---------------------------------------------------------------- batches in a given order


def by_index(images: Tensor, order: Tensor, drawn: Tensor | None, shift: int, flip: bool) -> Tensor:
    """Return uint8 images in that order, moved and mirrored one by one as was drawn for each of them."""
    rows = []
    for index in order.tolist():
        image = images[index]
        if drawn is not None and shift:
            top, left = int(drawn[0, index]), int(drawn[1, index])
            padded = torch.zeros(image.shape[0], image.shape[1] + 2 * shift, image.shape[2] + 2 * shift)
            padded[:, shift:-shift, shift:-shift] = image
            image = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        if drawn is not None and flip and drawn[-1, index]:
            image = image.flip(2)
        rows.append(image)
    return torch.stack(rows).float()


@for_each("storage", ["float32", "uint8"])
@for_each("channels_last", [False, True])
@for_each("augment", [Augment(), Augment(flip=True), Augment(shift=2), Augment(shift=1, flip=True)])
def test_batches_in_order(augment: Augment, channels_last: bool, storage: Literal["float32", "uint8"]) -> None:
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (11, 3, 5, 4), dtype=torch.uint8, generator=source)
    labels = torch.randint(0, 9, (11,), generator=source)
    mean, std = torch.tensor([0.2, 0.5, 0.7]), torch.tensor([0.1, 0.3, 1.0])
    found = Batches(
        Split(images, labels),
        batch_size=5,
        seed=7,
        channels_last=channels_last,
        mean=mean,
        std=std,
        storage=storage,
        augment=augment,
    )
    order = torch.randperm(11, generator=source)[:9]
    for draw in (0, 3):
        drawn = augment.draw(11, 7, draw) if augment.active else None
        expected = by_index(images, order, drawn, augment.shift, augment.flip) / 255
        expected = (expected - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        batches = list(found.in_order(order, 4, draw))
        assert [len(part) for part, _ in batches] == [4, 4, 1]
        torch.testing.assert_close(torch.cat([part for part, _ in batches]), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(torch.cat([part for _, part in batches]), labels[order])
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert all(part.is_contiguous(memory_format=layout) for part, _ in batches)
        # what is drawn for a sample does not depend on where it stands, nor on the size of its batch
        again = torch.cat([part for part, _ in found.in_order(order.flip(0), 2, draw)]).flip(0)
        assert torch.equal(again, torch.cat([part for part, _ in batches]))
    if not augment.active:
        whole = torch.cat([part for part, _ in found.sequential(4)])
        assert torch.equal(torch.cat([part for part, _ in found.in_order(torch.arange(11), 4)]), whole)


def test_logits_come_back_in_the_order_of_the_samples() -> None:
    images, labels = samples(11, (2, 1, 1))
    calls: list[int] = []

    class Places(nn.Module):
        """Returns each sample's first value and its place in the batch."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, 0, 0], torch.arange(len(x)).double()], 1)

    for draw in range(4):
        calls.clear()
        found = logits_in_batches(Places(), Doubles(images, labels), 4, draw, lambda: calls.append(1))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[:, 0], images[:, 0, 0, 0].float())
        assert found[:, 1].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
        assert len(calls) == 3


# ---------------------------------------------------------------- every figure of a probe


def probed(model: nn.Module, tests: list[Probe], training_set: Batches, limit: int = 100) -> ProbeResult:
    before = picture(model)
    found = probe(model, tests, training_set, limit)
    assert_unchanged(before, picture(model))
    return found


def check(found: Interval, values: Array) -> None:
    value, low, high = interval(np.atleast_2d(values))
    assert found.value == pytest.approx(value, **CLOSE)
    assert (found.low, found.high) == (pytest.approx(low, **CLOSE), pytest.approx(high, **CLOSE))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the shares p at which |share - p| is z sqrt(p (1 - p) / n): the roots of that in p."""
    z2 = stats.norm.ppf(0.975) ** 2
    low, high = sorted(np.roots([1 + z2 / n, -2 * share - z2 / n, share**2]).real)
    return low, high


def check_share(found: Interval, values: Array) -> None:
    table = np.atleast_2d(values).astype(float)
    value, low, high = interval(table)
    least, most = wilson(value, table.shape[1])
    if low is not None and (table != table[0]).any():  # draws that agree are one
        least, most = max(min(low, least), 0), min(max(high, most), 1)
    assert (found.value, found.low, found.high) == pytest.approx((value, least, most), **CLOSE)


@for_each(
    ("kind", "space"), [(kind, space) for kind in KINDS for space in (False, True) if space or kind != "torch instance"]
)
def test_every_figure_is_that_of_the_written_out_network(kind: str, space: bool) -> None:
    shape = (2, 2, 3) if space else (6, 1, 1)
    images, labels = samples(26, shape)
    others, other_labels = samples(40, shape, seed=1)
    net, reference = twins(kind, shape[0], space=space)
    model = net if space else Flat(net)
    x, y = images.flatten(2).numpy(), labels.numpy()
    taken = others.flatten(2).numpy()[:33]
    found = probed(
        model, [probe_of(images[:12], labels[:12], 6), probe_of(images, labels, 6)], Doubles(others, other_labels), 33
    )
    for gap, part, part_labels in zip(found.gaps, (x[:12], x), (y[:12], y), strict=True):
        whole = others.flatten(2).numpy() if kind == "population" else taken  # which takes its own from all
        chain = reference.stages(part, whole, 6)
        training, running = chain["norms"], chain["running"]
        check_share(gap.train_accuracy, right(training, part_labels))
        check_share(gap.eval_accuracy, right(running, part_labels))
        check(gap.acc_gap, right(training, part_labels) - right(running, part_labels))
        check(gap.loss_gap, nats(training, part_labels) - nats(running, part_labels))
        flips = (training.argmax(-1) != running.argmax(-1)).astype(float)
        (check_share if np.abs(training - running).max() > 0 else check)(gap.flip_rate, flips)
        check(gap.kl, kl(training, running))
        rms = math.sqrt((running**2).mean())
        assert gap.logit_rms == pytest.approx(math.sqrt(((training - running) ** 2).mean()) / rms, **CLOSE)
        noise = np.sqrt(training.var(0, ddof=1).mean(-1)).mean() / rms
        assert gap.mate_noise == pytest.approx(noise, rel=1e-5, abs=1e-7)
        assert gap.samples == len(part)
    learns = reference.norms[0].learns
    for each in found.agreement:
        assert each.largest < 1e-6
        assert each.flips == 0
    assert [each.batch_size for each in found.agreement] == [1, 2, 7]
    assert found.statistics_samples == 33
    if not learns:
        assert found.curve == found.layers == ()
        return
    check_curve(found, reference, x, y, taken, stateless=kind not in ("renorm", "streaming", "online"))
    exact = reference.population(taken)
    assert len(found.layers) == 2
    for layer, norm, (mean, var) in zip(found.layers, reference.norms, exact, strict=True):
        z, ratio = np.abs(norm.mean - mean) / np.sqrt(var), 0.5 * np.log(norm.var / var)
        assert layer.mean_z == pytest.approx(np.median(z))
        assert layer.mean_z_max == pytest.approx(z.max())
        assert layer.log_std_ratio == pytest.approx(np.median(ratio))
        assert layer.log_std_ratio_max == pytest.approx(ratio[np.abs(ratio).argmax()])
        shown = norm.shown(mean, var)
        assert layer.initial_left == (None if shown is None else pytest.approx(shown))
    assert [layer.name.rpartition("norms.")[2] for layer in found.layers] == ["0", "1"]


def check_curve(found: ProbeResult, reference: Any, x: Array, y: Any, taken: Array, *, stateless: bool) -> None:
    rows: dict[str, Evaluation] = {row.name: row for row in found.curve}
    sizes = [size for size in CURVE_SIZES if size <= 26]
    assert list(rows) == ["running", "precise", "population", *(f"batch of {size}" for size in sizes)]
    expected = {
        "running": reference.stored(x, reference.running),
        "population": reference.stored(x, reference.population(taken)),
        **{f"batch of {size}": reference.own(x[: 26 // size * size], size) for size in sizes},
    }
    if stateless:
        expected["precise"] = reference.stored(x, reference.precise(taken[:30], 6))  # whole batches of 33 samples
    for name, logits in expected.items():
        labels = y[: len(logits)]
        check_share(rows[name].accuracy, right(logits, labels))
        check(rows[name].loss, nats(logits, labels))
        assert rows[name].samples == len(logits)
    assert [rows[f"batch of {size}"].batch_size for size in sizes] == sizes
    assert rows["running"].batch_size is rows["precise"].batch_size is rows["population"].batch_size is None


def test_a_model_that_reads_its_batch_in_evaluation_disagrees_with_itself() -> None:
    """Logits x + mean of x over the batch, by hand for 4 samples at once and in batches of 1 and 2."""

    class Leaking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)
            return logits + logits.mean(0)

    images = torch.tensor([[0.0, 0.3], [2.0, 0.0], [0.0, 2.0], [6.0, 1.7]]).double().view(4, 2, 1, 1)
    labels = torch.tensor([0, 0, 1, 0])
    found = probed(Leaking(), [probe_of(images, labels, 2)], Doubles(images, labels))
    # the mean of all is (2, 1); of one its own; of two (1, 0.15) and (3, 1.85)
    whole = np.array([[2, 1.3], [4, 1], [2, 3], [8, 2.7]])
    rms = math.sqrt((whole**2).mean())
    alone, pairs = found.agreement
    assert (alone.batch_size, pairs.batch_size) == (1, 2)
    assert alone.largest == pytest.approx(4 / rms, rel=1e-6)  # (12, 3.4) - (8, 2.7)
    assert alone.flips == 0.25  # the first: (0, 0.6)
    assert pairs.largest == pytest.approx(1 / rms, rel=1e-6)  # (1, 0.45) - (2, 1.3) and the like
    assert pairs.flips == 0


# ---------------------------------------------------------------- population, one batch, precise


def whole_batch(model: nn.Module, images: Batches) -> Tensor:
    with torch.no_grad(), training_statistics(model):
        return model(next(images.sequential(len(images)))[0])  # type: ignore[no-any-return]


@for_each("chunk", [None, 5])
@for_each("kind", ["torch batch", "batch", "sync"])
def test_population_is_one_full_batch_and_precise_with_one(kind: str, chunk: int | None) -> None:
    for space in (False, True):
        images = Doubles(*samples(16, (2, 2, 3) if space else (6, 1, 1)))
        net, _ = twins(kind, 2 if space else 6, space=space)
        check_population((net if space else Flat(net)).eval(), images, chunk)


def test_population_of_a_resnet_18_with_its_own_batch_norm() -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=3).double().eval()
    check_population(model, Doubles(*samples(8, (3, 16, 16))), None)
    check_population(model, Doubles(*samples(8, (3, 16, 16))), 5)


def check_population(model: nn.Module, images: Batches, chunk: int | None) -> None:
    layers = running_layers(model)
    exact = population(model, plan(model, dict.fromkeys(layers), images, chunk))
    assert len(exact) == len(layers)
    once = precise(model, images.sequential(len(images)))
    for layer, statistics in exact.items():
        torch.testing.assert_close(once[layer], statistics, rtol=1e-8, atol=1e-10)
    with torch.no_grad(), adopted(model, exact):
        logits = model(next(images.sequential(len(images)))[0])
    torch.testing.assert_close(logits, whole_batch(model, images), rtol=1e-7, atol=1e-8)


# ---------------------------------------------------------------- edges


def mlp(norm: nn.Module | None, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    norms = [] if norm is None else [norm]
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), *norms, nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def small(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return samples(count, (6, 1, 1), seed=seed)


TRAINING = Doubles(*small(20, 1))


def finite(found: ProbeResult) -> None:
    for gap in found.gaps:
        figures = [gap.train_accuracy, gap.eval_accuracy, gap.acc_gap, gap.loss_gap, gap.flip_rate, gap.kl]
        assert all(math.isfinite(each.value) for each in figures)
        assert math.isfinite(gap.logit_rms)
        assert gap.mate_noise is None or math.isfinite(gap.mate_noise)
    for split in found.decompositions:
        assert sum(t.loss.value for t in split.terms) == pytest.approx(split.total.loss.value, abs=1e-12)
        assert "nan" not in explained(split)


@for_each("norm", ["batch", "ghost", "renorm", "streaming", "online", "population", "layer"])
@for_each(("count", "size"), [(3, 8), (5, 1), (1, 1), (1, 8), (7, 4)])
def test_few_samples_and_small_batches(norm: str, count: int, size: int) -> None:
    layer = strategies[norm](**({"size": 2} if norm == "ghost" else {})).layer(4)
    found = probed(mlp(layer), [probe_of(*small(count), size)], TRAINING)
    finite(found)
    (gap,) = found.gaps
    assert (gap.mate_noise is None) == (count < 2 * size)
    if count == 1:
        assert (gap.acc_gap.low, gap.acc_gap.high, gap.acc_gap.n) == (None, None, 1)
        assert found.agreement == ()
    if size == 1:
        assert gap.mate_noise == (None if count == 1 else 0.0)  # nobody to be with
    if found.curve:
        assert [row.name for row in found.curve][3:] == [f"batch of {k}" for k in CURVE_SIZES if k <= count]


def test_a_training_set_smaller_than_a_batch_or_than_the_samples_asked_for() -> None:
    for available, limit, size in ((3, 100, 8), (20, 3, 8), (20, 2, 4)):
        training_set = Doubles(*small(available, 1))
        model = mlp(nn.BatchNorm1d(4)).eval()
        found = probed(model, [probe_of(*small(8), size)], training_set, limit)
        finite(found)
        assert found.statistics_samples == min(available, limit)
        if limit == 3:  # then precise is one batch of those three, which is population
            at = {row.name: row for row in found.curve}
            assert at["precise"].loss.value == pytest.approx(at["population"].loss.value, rel=1e-6)


def test_torch_refuses_a_batch_of_one_and_nothing_is_left_changed() -> None:
    model = mlp(nn.BatchNorm1d(4))
    before = picture(model)
    with pytest.raises(ValueError):  # noqa: PT011 - in torch's words
        probe(model, [probe_of(*small(5), 1)], TRAINING, 20)
    assert_unchanged(before, picture(model))


def test_a_layer_called_twice_is_refused_by_name() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"shared": nn.BatchNorm1d(6)})

        def forward(self, x: Tensor) -> Tensor:
            return self.inner["shared"](self.inner["shared"](x.flatten(1)).tanh())  # type: ignore[no-any-return]

    model = Twice().double()
    before = picture(model)
    found = probe(model, [probe_of(*small(8), 4)], TRAINING, 20)
    assert_unchanged(before, picture(model))
    assert str(found.undefined).startswith("layer inner.shared: called more than once")
    assert [row.name for row in found.curve[:3]] == ["running", "precise", "batch of 1"]


@for_each("where", ["weight", "statistics", "readout"])
@for_each("value", [math.nan, math.inf, 3e38])
@for_each("norm", ["batch", "layer", "population", "online", "torch"])
def test_diverged_weights_end_in_figures(norm: str, value: float, where: str) -> None:
    layer = nn.BatchNorm1d(4) if norm == "torch" else strategies[norm]().layer(4)
    model = mlp(layer, torch.float32)
    with torch.no_grad():
        if where == "weight":
            model[1].weight.fill_(value)  # type: ignore[index,union-attr,operator]
        elif where == "readout":
            model[4].weight[0].fill_(value)  # type: ignore[index,union-attr,operator]
        elif running_layers(model):
            layer.running_mean[0], layer.running_var[1] = value, value  # type: ignore[index,operator]
    test = probe_of(*small(8), 4)
    test.plain._images, training_set = test.plain._images.float(), Doubles(*small(20, 1))
    training_set._images = training_set._images.float()
    found = probed(model, [test], training_set)
    (gap,), (split,) = found.gaps, found.decompositions
    said = explained(split)
    assert "nan" not in f"{said} {verdict(found)}"
    if not math.isfinite(gap.loss_gap.value):
        assert "not finite" in said
        assert gap.loss_gap.low is None
        assert not math.isfinite(gap.logit_rms)  # and not 0, as if they agreed
    else:
        assert "not finite" not in said
    if value != value and where == "weight":
        assert math.isnan(gap.loss_gap.value)
        assert all(math.isnan(each.mean_z) for each in found.layers)
        assert all(math.isnan(each.largest) for each in found.agreement)


@for_each("momentum", [None, 0.0, 1.0])
def test_momenta_at_the_ends(momentum: float | None) -> None:
    model = mlp(nn.BatchNorm1d(4, momentum=momentum)).train()
    for images, _ in TRAINING.sequential(5):
        model(images)
    (split,) = probed(model, [probe_of(*small(8), 4)], TRAINING).decompositions
    left = {None: 0.0, 0.0: 1.0, 1.0: 0.0}[momentum]
    assert (split.initial_left, split.momentum, split.updates) == (left, momentum, 4)
    initial = split.terms[4]
    assert (initial.moved > 0) == (momentum == 0.0)
    if momentum == 0.0:  # nothing but the start is in them
        assert split.terms[5].moved < 1e-10


def test_statistics_that_nobody_counted() -> None:
    model = mlp(nn.BatchNorm1d(4))
    model[2].running_mean.fill_(0.2)  # type: ignore[index,union-attr,operator]
    found = probed(model, [probe_of(*small(8), 4)], TRAINING)
    (split,) = found.decompositions
    assert split.initial_left is split.updates is split.momentum is None
    assert split.terms[4].moved == 0
    assert split.terms[5].moved > 0
    assert "initial statistics" not in explained(split)
    assert found.layers[0].initial_left is None


def test_no_normalization_at_all() -> None:
    found = probed(mlp(None), [probe_of(*small(8), 4), probe_of(*small(8, 2), 4)], TRAINING)
    assert found.layers == found.curve == ()
    for split in found.decompositions:
        assert all(term.absent for term in split.terms)
        assert "agree exactly" in explained(split)
    assert all(gap.mate_noise == gap.logit_rms == 0 for gap in found.gaps)


def test_logits_that_are_all_zero_agree() -> None:
    model = mlp(nn.BatchNorm1d(4))
    with torch.no_grad():
        model[4].weight.zero_()  # type: ignore[index,union-attr,operator]
        model[4].bias.zero_()  # type: ignore[index,union-attr,operator]
    (gap,) = probed(model, [probe_of(*small(8), 4)], TRAINING).gaps
    assert gap.logit_rms == gap.mate_noise == gap.kl.value == 0


def test_the_shares_of_a_model_with_two_momenta_are_those_of_the_slowest() -> None:
    model = build(models["mlp"](widths=(4, 4)), strategies["batch"](), (6, 1, 1), 3, 0).double()
    first, second = running_layers(model)
    first.momentum, second.momentum = 0.5, 0.01
    for layer in (first, second):
        layer.num_batches_tracked.fill_(3)  # type: ignore[operator,union-attr]
    (split,) = probed(model, [probe_of(*small(8), 4)], TRAINING).decompositions
    assert (split.initial_left, split.updates, split.momentum) == (pytest.approx(0.99**3), 3, 0.01)


def test_the_curve_takes_at_most_so_many_batches_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["bnlab.measure.probe_model"], "CURVE_BATCHES", 3)
    found = probed(mlp(nn.BatchNorm1d(4)).eval(), [probe_of(*small(16), 4)], TRAINING)
    assert [row.samples for row in found.curve] == [16, 16, 16, 3, 6, 12, 16, 16]


def test_it_tells_how_far_it_is_where_the_statistics_take_a_pass_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population_statistics, "WHOLE_BYTES", {})
    monkeypatch.setattr(population_statistics, "CHUNK_BYTES", {"cpu": 2000})
    model = nn.Sequential(nn.Flatten(), *(layer for _ in range(4) for layer in (nn.Linear(12, 12), nn.BatchNorm1d(12))))
    images, labels = samples(64, (3, 2, 2), classes=12)
    shares: list[float] = []
    probe(model.double(), [probe_of(images, labels, 16)], Doubles(images, labels), 64, shares.append)
    assert shares == sorted(shares)
    assert len(shares) == 8  # each layer, with the biased variance and without
    assert (shares[0] > 0, shares[-1]) == (True, 1)
