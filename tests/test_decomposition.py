"""The gap as a sum of causes: every term against the formulas in numpy, by hand, and what is said of it in words."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_network import DRAWS, KINDS, Array, Flat, Stored, interval, kl, nats, right, twins
from helpers_probe import Doubles, probe_of, samples
from helpers_training import train
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from bnlab.data.augment import Augment
from bnlab.data.batches import Batches
from bnlab.experiment.trained_model import of_run
from bnlab.interval import Interval
from bnlab.measure.decomposition import IMAGE_DRAWS, NAMES, Decomposition, Stages, Term, decompose, levels, stages
from bnlab.measure.layer_statistics import adopt
from bnlab.measure.modes import learners
from bnlab.measure.population_statistics import plan, population_of
from bnlab.measure.probe_batches import Probe, batching
from bnlab.measure.probe_model import ProbeResult, probe
from bnlab.measure.refresh import refreshed
from bnlab.measure.verdict import explained, verdict

CLOSE = {"rel": 1e-5, "abs": 2e-6}  # logits are kept in float32


def staged(model: nn.Module, test: Probe, training_set: Batches) -> tuple[Stages, Decomposition]:
    """Return what `probe` works out for one split."""
    model.eval()
    how = plan(model, dict.fromkeys(learners(model)), training_set)
    batch, _ = next(test.plain.sequential(test.batch_size))
    at = levels(model, how, batch, refreshed(model, training_set))
    found = stages(model, test, at)
    return found, decompose(model, test, found, at)


def check_term(term: Term, before: Array, after: Array, labels: Tensor) -> None:
    """Hold a term against two stages (K, N, classes) of the reference."""
    y = labels.numpy()
    for found, values in (
        (term.accuracy, right(before, y) - right(after, y)),
        (term.loss, nats(before, y) - nats(after, y)),
    ):
        value, low, high = interval(values)
        assert found.value == pytest.approx(value, **CLOSE)
        assert (found.low, found.high) == (pytest.approx(low, **CLOSE), pytest.approx(high, **CLOSE))
        assert found.n == len(y)
    assert term.moved == pytest.approx(kl(before, after).mean(), rel=1e-4, abs=1e-9)
    assert term.flips == pytest.approx((before.argmax(-1) != after.argmax(-1)).mean(), abs=1e-12)


def check_sum(found: Decomposition) -> None:
    assert tuple(term.name for term in found.terms) == NAMES
    assert sum(term.accuracy.value for term in found.terms) == pytest.approx(found.total.accuracy.value, abs=1e-12)
    assert sum(term.loss.value for term in found.terms) == pytest.approx(found.total.loss.value, abs=1e-12)


def pixels(images: Tensor) -> Array:
    """Return images as the reference takes them: (N, C, pixels)."""
    return images.flatten(2).numpy()


# ---------------------------------------------------------------- against the formulas


@pytest.mark.parametrize(
    ("kind", "space"), [(kind, space) for kind in KINDS for space in (False, True) if space or kind != "torch instance"]
)
def test_every_term_is_that_of_the_written_out_network(kind: str, space: bool) -> None:
    shape = (2, 2, 3) if space else (6, 1, 1)
    images, labels = samples(24, shape)
    others, other_labels = samples(30, shape, seed=1)
    net, reference = twins(kind, shape[0], space=space)
    found, split = staged(net if space else Flat(net), probe_of(images, labels, 6), Doubles(others, other_labels))
    chain = reference.stages(pixels(images), pixels(others), 6)
    for name, logits in chain.items():
        mine = getattr(found, name).numpy()
        np.testing.assert_allclose(np.broadcast_to(mine, logits.shape), logits, rtol=1e-5, atol=2e-6, err_msg=name)
    assert found.full is found.norms
    assert torch.equal(found.running, found.evaluation)
    reads_batch = kind not in ("population", "frozen", "torch instance")
    assert len(found.norms) == (DRAWS if reads_batch else 1)
    names = ("norms", "biased", *["population"] * 3, "initial", *["running"] * 4)
    for term, (before, after) in zip(split.terms, itertools.pairwise(names), strict=True):
        check_term(term, chain[before], chain[after], labels)
    check_term(split.total, chain["norms"], chain["running"], labels)
    check_sum(split)
    learns, counted = reference.norms[0].learns, reference.norms[0].left
    left = max((share for share in reference.shares if share is not None), default=None)
    absent = {term.name for term in split.terms if term.absent}
    never = {"other", *(name for name in NAMES if "dropout" in name or "augmentation" in name)}
    unshown = learns and left is None and counted is not None
    assert absent == never | ({"initial statistics"} if unshown else set() if learns else set(NAMES[:5]))
    assert split.initial_left == (None if left is None else pytest.approx(left))
    assert (split.updates, split.momentum) == ((None, None) if left is None else (7, pytest.approx(0.1)))
    assert split.batch_size == 6
    if kind == "frozen":
        assert all(term.moved == term.loss.value == term.flips == 0 for term in (*split.terms, split.total))
    elif kind == "population":
        assert [term.name for term in split.terms if term.moved] == ["moving average"]
    else:
        expected = {"batch noise", "moving average"} | (set() if left is None else {"initial statistics"})
        if kind in ("torch batch", "batch", "ghost", "sync", "torch instance"):
            expected.add("biased variance")
        assert {term.name for term in split.terms if term.moved} == expected


@pytest.mark.parametrize("kind", ["batch", "torch batch"])
def test_augmentation_and_dropout_are_in_the_statistics_of_every_stage(kind: str) -> None:
    """Flips of images 2 x 3; masks of dropout as torch draws them after the seed of each draw; all written out."""
    images, labels = samples(24, (1, 2, 3))
    others, other_labels = samples(30, (1, 2, 3), seed=1)
    net, reference = twins(kind, 6, space=False, dropout=0.25)
    augment = Augment(flip=True)
    training_set = Doubles(others, other_labels, augment)
    found, split = staged(Flat(net), probe_of(images, labels, 6, augment), training_set)

    def masked(x: Array) -> Array:
        return x * F.dropout(torch.ones(x.shape, dtype=torch.float64), 0.25).numpy()

    def mirrored(plain: Tensor, draw: int) -> Array:
        mirror = augment.draw(len(plain), 0, draw)[-1].bool()[:, None, None, None]
        return pixels(torch.where(mirror, plain.flip(3), plain).flatten(1)[..., None])

    reference.dropout = masked
    torch.manual_seed(0)
    exact = reference.population(mirrored(others, 0), drop=True)
    torch.manual_seed(0)
    factors = [norm.shrinkage(6, 1) for norm in reference.norms]
    biased = reference.population(mirrored(others, 0), factors, drop=True)

    def evaluated(statistics: Stored, *, drop: bool) -> Array:
        rows = []
        for draw in range(IMAGE_DRAWS):
            torch.manual_seed(draw)
            rows.append(reference.stored_in_batches(mirrored(images, draw), statistics, 6, draw, drop=drop))
        return np.stack(rows)

    full = []
    for draw in range(IMAGE_DRAWS):
        torch.manual_seed(draw)
        full.append(reference.training(mirrored(images, draw), 6, draw, drop=True))
    shares = [norm.shown(*both) or 0.0 for norm, both in zip(reference.norms, exact, strict=True)]
    mixed = [((1 - s) * mean, (1 - s) * var + s) for s, (mean, var) in zip(shares, exact, strict=True)]
    chain = {
        "full": np.stack(full),
        "biased": evaluated(biased, drop=True),
        "population": evaluated(exact, drop=True),
        "undropped_statistics": evaluated(exact, drop=True),
        "plain_statistics": evaluated(exact, drop=True),
        "initial": evaluated(mixed, drop=True),
        "running": evaluated(reference.running, drop=True),
        "dropless": evaluated(reference.running, drop=False),
        "undropped": evaluated(reference.running, drop=False),
        "evaluation": reference.stored(pixels(images.flatten(1)[..., None]), reference.running)[None],
    }
    for name, logits in chain.items():
        np.testing.assert_allclose(getattr(found, name).numpy(), logits, rtol=1e-5, atol=2e-6, err_msg=name)
    for term, (before, after) in zip(split.terms, itertools.pairwise(chain.values()), strict=True):
        check_term(term, before, after, labels)
    check_term(split.total, chain["full"], chain["evaluation"], labels)
    check_sum(split)
    absent = {term.name for term in split.terms if term.absent}
    assert absent - {"initial statistics"} == {"dropout in statistics", "augmentation in statistics", "other"}


def test_statistics_of_other_images_than_training_sees_are_told_from_a_lag() -> None:
    """The running statistics are put in from plain images without dropout: each of the two is a term of its own."""
    images, labels = samples(24, (1, 2, 3))
    others, other_labels = samples(300, (1, 2, 3), seed=1)
    net, _ = twins("torch batch", 6, space=False, dropout=0.5)
    training_set = Doubles(others, other_labels, Augment(flip=True))
    model = Flat(net).eval()
    for layer, both in population_of(model, training_set, plain=True).items():
        adopt(layer, *both)
    found, split = staged(model, probe_of(images, labels, 6, Augment(flip=True)), training_set)
    check_sum(split)
    moved = {term.name: term.moved for term in split.terms}
    assert min(moved["dropout in statistics"], moved["augmentation in statistics"]) > 1e-3
    assert max(moved["initial statistics"], moved["moving average"]) < 1e-9
    for layer, both in population_of(model, training_set).items():
        adopt(layer, *both)
    found, split = staged(model, probe_of(images, labels, 6, Augment(flip=True)), training_set)
    moved = {term.name: term.moved for term in split.terms}
    assert moved["dropout in statistics"] == moved["augmentation in statistics"] == 0
    assert moved["moving average"] < 1e-9
    assert found.undropped_statistics is found.population


def test_by_hand() -> None:
    """One channel, weight 1, no epsilon, logits (y, 0); training set 0, 2, 4, 6: mean 3, variance 5."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1, eps=1e-12, momentum=0.5, affine=False).double()

        def forward(self, x: Tensor) -> Tensor:
            return F.pad(self.norm(x.flatten(1)), (0, 1))

    model = Line()
    model.norm.running_mean.fill_(1.0)  # type: ignore[union-attr]
    model.norm.running_var.fill_(2.25)  # type: ignore[union-attr]
    model.norm.num_batches_tracked.fill_(1)  # type: ignore[union-attr]
    images = torch.tensor([0.0, 2.0, 4.0, 6.0]).double().view(4, 1, 1, 1)
    labels = torch.tensor([1, 1, 0, 0])  # class 0 where y >= 0
    found, split = staged(model, probe_of(images, labels, 2), Doubles(images, labels))

    # batches (0, 2) and (4, 6), or (0, 6) and (4, 2): the smaller of two gets -1, the larger 1
    apart, together = torch.tensor([-1.0, -1, 1, 1]), torch.tensor([-1.0, 1, -1, 1])
    expected = [
        together if set(batching(4, 2, draw)[:2].tolist()) in ({0, 1}, {2, 3}) else apart for draw in range(DRAWS)
    ]
    torch.testing.assert_close(found.norms[..., 0], torch.stack(expected))
    assert torch.equal(found.norms[1, :, 0], apart)
    same = sum(row is together for row in expected)
    root = math.sqrt
    rows = {
        "biased": [-3 / root(2.5), -1 / root(2.5), 1 / root(2.5), 3 / root(2.5)],  # 5 (2 - 1)/2
        "population": [-3 / root(5), -1 / root(5), 1 / root(5), 3 / root(5)],
        "initial": [-1.5 / root(3), 0.5 / root(3), 2.5 / root(3), 4.5 / root(3)],  # half of 0 and 1: mean 1.5, var 3
        "running": [-1 / 1.5, 1 / 1.5, 3 / 1.5, 5 / 1.5],
    }
    for name, row in rows.items():
        torch.testing.assert_close(getattr(found, name)[0, :, 0], torch.tensor(row))
    # accuracy: half where neighbours stay together, else 1; 1, 1, 3/4 (2 is taken for class 0), 3/4
    accuracy = [term.accuracy.value for term in split.terms]
    assert accuracy == pytest.approx([(0.5 * same + 1.0 * (DRAWS - same)) / DRAWS - 1, 0, 0, 0, 0.25, 0, 0, 0, 0])

    def loss(row: list[float]) -> float:
        return sum(math.log1p(math.exp(y if label else -y)) for y, label in zip(row, labels.tolist(), strict=True)) / 4

    levels_ = [loss(row) for row in rows.values()]
    batch = sum(loss(row.tolist()) for row in expected) / DRAWS
    biased, of_population, initial, running = levels_
    by_hand = [batch - biased, biased - of_population, 0, 0, of_population - initial, initial - running, 0, 0, 0]
    assert [term.loss.value for term in split.terms] == pytest.approx(by_hand, abs=1e-6)
    assert (split.terms[4].flips, split.terms[5].flips) == (0.25, 0)
    assert (split.initial_left, split.updates, split.momentum) == (0.5, 1, 0.5)


# ---------------------------------------------------------------- what others keep and do


class Unseen(nn.Module):
    """Subtracts the mean of its batch in training, and holds no statistics."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


def head(*modules: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), *modules, nn.Tanh(), nn.Linear(4, 3)).double().eval()


def of_head(model: nn.Module) -> tuple[Stages, Decomposition]:
    images, labels = samples(24, (6, 1, 1))
    return staged(model, probe_of(images, labels, 6), Doubles(*samples(30, (6, 1, 1), seed=1)))


def test_layers_left_frozen_in_training_are_no_cause() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[2].eval()
            return self

    model = Frozen(*head(nn.BatchNorm1d(4)))
    model[2].running_mean.fill_(0.3)  # type: ignore[union-attr,operator]
    found, split = of_head(model)
    assert all(term.moved == 0 for term in (*split.terms, split.total))
    assert len(found.norms) == 1
    assert "agree exactly" in explained(split)


def test_spectral_norm_moves_in_training_and_no_later_stage_sees_it() -> None:
    model = head(nn.BatchNorm1d(4), spectral_norm(nn.Linear(4, 4)))
    direction = model[3].parametrizations.weight[0]._u  # type: ignore[index,union-attr]
    direction.copy_(F.normalize(torch.tensor([1.0, -2, 3, 1]).double(), dim=0))  # far from where it will settle
    images, _ = samples(24, (6, 1, 1))
    evaluated = model(images)
    found, split = of_head(model)
    torch.testing.assert_close(found.evaluation[0].double(), evaluated, rtol=1e-5, atol=1e-6)
    check_sum(split)


def test_a_gap_that_no_layer_explains_is_shown_and_not_called_absent() -> None:
    """Statistics of the batch in evaluation too, a batch norm of another name, and one that keeps nothing."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(4))
            self.register_buffer("running_var", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return (x - x.mean(0)) / x.std(0)
            return (x - self.running_mean) / self.running_var.sqrt()  # type: ignore[operator,union-attr]

    for norm in (nn.BatchNorm1d(4, track_running_stats=False), Own(), Unseen()):
        _, split = of_head(head(norm))
        check_sum(split)
        shown = [term for term in split.terms if term.moved]
        assert shown
        assert not any(term.absent for term in shown)


class OwnDropout(nn.Module):
    """Drops by a function, torch's or attention's, inside a recurrent layer, or by numbers that it draws."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.recurrent = nn.GRU(4, 4, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "recurrent":
            return self.recurrent(x[:, None])[0][:, 0]  # type: ignore[no-any-return]
        if self.how == "attention":
            pairs = x.view(-1, 2, 2)
            return F.scaled_dot_product_attention(pairs, pairs, pairs, None, 0.5 * self.training).flatten(1)
        if self.how == "torch":
            return F.dropout(x, 0.5, self.training)
        return x * (torch.rand_like(x) > 0.5) if self.training else x


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1, dtype=x.dtype) > 0.5) * 2 if self.training else x


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        (OwnDropout("torch"), "dropout"),
        (OwnDropout("attention"), "dropout"),
        (OwnDropout("recurrent"), "dropout"),
        (DropPath(), "dropout"),
        (OwnDropout("drawn"), "other"),
        (Unseen(), "other"),
        (nn.Sequential(Unseen(), nn.Dropout()), "both"),
    ],
)
def test_dropout_is_what_switching_dropout_off_takes_away(module: nn.Module, cause: str) -> None:
    found, split = of_head(head(module))
    check_sum(split)
    causes = {"dropout", "other"} if cause == "both" else {cause}
    assert {term.name for term in split.terms if term.moved} == causes
    assert (found.dropless is found.undropped) == (cause == "dropout")
    said = explained(split)
    main = max(split.terms, key=lambda term: term.moved).name
    assert f"Most of it is {main}" in said
    assert ("neither dropout nor a normalization layer that bnlab can see" in said) == (main == "other")


def test_a_layer_that_tells_the_mode_from_the_gradient_mode_is_seen_to_differ() -> None:
    class Textbook(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0) if torch.is_grad_enabled() else x

    model = head(Textbook())
    found, split = of_head(model)
    images, labels = samples(24, (6, 1, 1))
    with torch.enable_grad():
        expected = torch.cat([model(part) for part in images.split(6)]).detach()
    torch.testing.assert_close(found.full[0], expected.float())
    assert [term.name for term in split.terms if term.moved] == ["other"]
    with torch.no_grad():
        check_term(split.total, found.full.numpy(), model(images).numpy()[None], labels)


def test_a_layer_called_by_keyword_is_split_as_any_other() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=x)  # type: ignore[no-any-return]

    _, expected = of_head(head(nn.BatchNorm1d(4)))
    _, split = of_head(head(Keyword()))
    assert split == expected


def test_a_batch_norm_of_another_library_is_split_too() -> None:
    """It has running statistics and a momentum; how it takes its variance is not known."""

    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.full((4,), 0.7))
            self.register_buffer("running_var", torch.full((4,), 2.0))
            self.momentum = 0.1

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, training=self.training, momentum=0.1)  # type: ignore[arg-type]

    _, split = of_head(head(Foreign()))
    check_sum(split)
    assert [term.name for term in split.terms if term.moved] == ["batch noise", "moving average"]
    assert split.initial_left is None


# ---------------------------------------------------------------- in words


def made(total: tuple[float, float], left: float | None = 0.0, batch: int = 64, **moved: float) -> Decomposition:
    """Return a decomposition in which the named terms move the predictions; the first of them is all of the gap."""
    accuracy, loss = total
    zero = Interval(0.0, 0.0, 0.0, 100)
    names = {key.replace("_", " "): value for key, value in moved.items()}
    first = next(iter(names), None)
    terms = tuple(
        Term(
            name,
            Interval(accuracy, accuracy, accuracy, 100) if name == first else zero,
            Interval(loss, loss, loss, 100) if name == first else zero,
            names.get(name, 0.0),
            0.0,
        )
        for name in NAMES
    )
    whole = Term(
        "total", Interval(accuracy, None, None, 100), Interval(loss, None, None, 100), sum(names.values()), 0.1
    )
    return Decomposition("test", terms, whole, batch, left, 938, 0.001)


def test_each_cause_is_named_with_what_it_is() -> None:
    large = (-0.2, 0.5)
    said = explained(made(large, batch_noise=0.3, moving_average=0.1, batch=4))
    assert said.startswith("There is a gap: -20.00 points and +0.5000 nats")
    assert "Most of it is batch noise: batches of 4 give other statistics each time." in said
    said = explained(replace(made(large, batch_noise=0.3), adds_noise=True))
    assert "other statistics each time, and the layers add noise of their own in training." in said
    said = explained(made(large, left=0.999**938, initial_statistics=0.3, moving_average=0.2))
    few = "momentum 0.001 is too small for 938 updates (0.999^938): 39.1 % of the initial mean 0 and variance 1 is left"
    assert f"Most of it is initial statistics: {few}; train with 0.1." in said
    never = explained(replace(made(large, left=1.0, initial_statistics=0.3), updates=0))
    assert never.endswith("never updated (mean 0, variance 1): check that the weights were loaded.")
    again = explained(made(large, left=0.999**938, initial_statistics=0.3), said)
    assert again.endswith("Most of it is initial statistics.")
    usual = explained(replace(made(large, left=0.9**3, initial_statistics=0.3), momentum=0.1, updates=3))
    assert usual.endswith("3 updates are too few (0.9^3): 72.9 % of the initial mean 0 and variance 1 is left.")
    for name in NAMES:
        assert f"Most of it is {name}: " in explained(made(large, **{name.replace(" ", "_"): 0.3}))


def test_what_is_meant_to_move_predictions_does_not_hide_normalization() -> None:
    for cause in ("augmentation", "dropout"):
        said = explained(made((-0.2, 0.5), **{cause: 0.9}, batch_noise=0.001))
        assert f"Most of it is {cause}" in said
        assert said.endswith("Normalization's part is +0.00 points and +0.0000 nats.")
        said = explained(made((-0.2, 0.5), **{"moving_average": 0.3, cause: 0.9}))
        assert f"Most of it is {cause}" in said
        assert "Normalization's part is -20.00 points and +0.5000 nats. Most of that is moving average" in said


def test_exact_agreement_is_said_in_those_words() -> None:
    expected = "Training and evaluation mode agree exactly on test: 0 points, 0 nats, no prediction changes."
    assert explained(made((0.0, 0.0), left=None)) == expected
    # terms that cancel are no agreement
    found = made((0.0, 0.0), batch_noise=0.1, moving_average=0.1)
    assert "agree" not in explained(replace(found, total=replace(found.total, moved=0.0)))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_no_cause(loss: float) -> None:
    said = explained(made((0.0, loss), batch_noise=math.nan))
    assert "not finite" in said
    assert "Most of it" not in said
    assert "nan" not in said


# ---------------------------------------------------------------- the whole verdict, on small models


def learned(*modules: nn.Module, momentum: float = 0.2, steps: int = 60, size: int = 20) -> nn.Module:
    """Return a small classifier of `samples` that has learned them."""
    torch.manual_seed(0)
    body = modules or (nn.BatchNorm1d(12, momentum=momentum),)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 12), *body, nn.ReLU(), nn.Linear(12, 3)).double().train()
    images, labels = samples(400, (6, 1, 1), seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        rows = torch.randint(0, 400, (size,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model.eval()


def examined(model: nn.Module, batch_size: int = 20) -> tuple[ProbeResult, str]:
    images, labels = samples(400, (6, 1, 1), seed=1)
    test = probe_of(*samples(200, (6, 1, 1), seed=2), batch_size)
    found = probe(model, [test], Doubles(images, labels), 400)
    return found, verdict(found, "bnlab recalibrate RUN")


def test_a_remedy_is_named_with_what_it_brought() -> None:
    model = learned()
    _, said = examined(model)
    assert "bnlab recalibrate" not in said
    model[2].running_mean += 4  # type: ignore[index,operator]
    found, said = examined(model)
    assert "Most of it is moving average" in said
    assert "layer 2: means" in said
    change = found.remedies[0].change
    images, labels = samples(200, (6, 1, 1), seed=2)
    with torch.no_grad():
        before = (model(images).argmax(1) == labels).double().mean().item()
        x = model[1](model[0](samples(400, (6, 1, 1), seed=1)[0]))  # type: ignore[index]
        model[2].running_mean, model[2].running_var = x.mean(0), x.var(0, correction=0)  # type: ignore[index]
        after = (model(images).argmax(1) == labels).double().mean().item()
    assert (change.accuracy_before.value, change.accuracy_after.value) == (before, after)
    brought = f"Recalibrating brings test from {100 * before:.2f} to {100 * after:.2f} %"
    assert brought in said
    assert said.endswith("on 200 images held out:\nbnlab recalibrate RUN")


def test_at_chance_in_both_modes_nothing_is_diagnosed() -> None:
    """Whether 200 images are above 1 in 3 is the score test's to say: p > 1/3 + 1.96 sqrt(1/3 2/3 / 200) = 0.3987."""
    found, _ = examined(learned())
    gap = found.decompositions[0]
    assert gap.classes == 3

    def with_share(share: float, training: float = 0.0) -> str:
        at = replace(found.gaps[0], eval_accuracy=replace(found.gaps[0].eval_accuracy, value=share))
        change = replace(gap.total, accuracy=replace(gap.total.accuracy, value=training - share))
        return verdict(replace(found, gaps=(at,), decompositions=(replace(gap, total=change),), remedies=()))

    said = with_share(0.398, 0.2)
    assert said.startswith("At chance in both modes (3 classes): check that size, input_norm and the order of the")
    assert "ecalibrat" not in said
    assert "Most of it" not in said
    for share, training in ((0.4, 0.2), (0.2, 0.4)):
        assert "chance" not in with_share(share, training)


def test_recalibrating_that_would_harm_is_not_advised() -> None:
    """Weights that need the statistics they have: evaluation is right, training is not."""
    model = learned()
    images, labels = samples(400, (6, 1, 1), seed=1)
    model[2].running_mean += 4  # type: ignore[index,operator]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(300):  # in evaluation mode, as with frozen layers
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    _, said = examined(model)
    assert "Recalibrating would harm" in said
    assert "Keep the statistics." in said


@pytest.mark.parametrize(("momentum", "advice"), [(0.99, "Lower it in training (0.01"), (0.0, "Raise it in training")])
def test_a_momentum_of_another_convention_is_named(momentum: float, advice: str) -> None:
    model = learned(momentum=momentum)
    if momentum:  # the last batch is a small one, of other images
        model.train()(samples(400, (6, 1, 1), seed=1)[0][:3] + 1)
    else:
        model[2].running_mean += 3  # type: ignore[index,operator]
    _, said = examined(model.eval())
    assert f"a momentum of {momentum:g}" in said
    assert advice in said
    assert "Recalibrating brings" in said


@pytest.mark.parametrize("damaged", [math.nan, -0.5])
def test_statistics_that_cannot_be_are_named_and_mended(damaged: float) -> None:
    model = learned()
    model[2].running_var[3] = damaged  # type: ignore[index,operator]
    found, said = examined(model)
    assert found.not_sound == ("2",)
    assert math.isnan(found.gaps[0].eval_accuracy.value)  # logits that are NaN predict nothing
    assert math.isfinite(found.gaps[0].train_accuracy.value)
    assert math.isnan(found.gaps[0].acc_gap.value)
    assert math.isnan(found.gaps[0].flip_rate.value)
    # NaN beside NaN is no difference: nothing here depends on the mode but normalization
    assert {term.absent for term in found.decompositions[0].terms if term.name in ("dropout", "other")} == {
        "nothing but normalization depends on the mode"
    }
    assert "In the running statistics of layer 2 is NaN, inf or a variance below 0" in said
    assert "Recalibrating brings test" in said
    assert "nan" not in said


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


def test_evaluation_that_is_random_is_not_taken_for_one_that_reads_its_batch() -> None:
    model = learned(nn.BatchNorm1d(12), AlwaysDropping())
    found, said = examined(model)
    assert not found.agreement
    with torch.no_grad():
        images, _ = samples(200, (6, 1, 1), seed=2)
        draws = torch.stack([model(images).argmax(1) for _ in range(100)])
    assert found.again == pytest.approx((draws[1:] != draws[:-1]).double().mean().item(), abs=0.1)
    assert "It is not split: evaluation is random" in said
    assert "depends on the batch" not in said


def test_evaluation_that_reads_its_batch_needs_to_be_told() -> None:
    found, said = examined(learned(nn.BatchNorm1d(12, track_running_stats=False)))
    alone, pairs, *_ = found.agreement
    assert (alone.batch_size, math.isnan(alone.flips)) == (1, True)
    assert pairs.flips > 0.02
    assert "Evaluation depends on the batch it is given: a single image cannot be evaluated, against all" in said
    assert f"{100 * pairs.flips:.2g} % in batches of 2" in said
    assert "Nothing needs to be done" not in said


def test_a_model_that_fails_on_a_single_image_is_examined_in_larger_batches() -> None:
    class Pairs(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 1:
                raise IndexError("too few dimensions")
            return super().forward(x)  # type: ignore[no-any-return]

    whole, _ = examined(learned())
    found, _ = examined(Pairs(*learned()))
    assert [each.name for each in found.curve] == [each.name for each in whole.curve if each.batch_size != 1]
    assert math.isnan(found.agreement[0].flips)
    assert found.agreement[1:] == whole.agreement[1:]
    assert found.gaps == whole.gaps


def test_a_function_that_reads_a_layers_buffers_has_no_figures_of_other_batches() -> None:
    class Functional(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            flatten, first, norm, *rest = self
            x = first(flatten(x))
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training)
            for layer in rest:
                x = layer(x)
            return x

    assert examined(Functional(*learned()))[0].curve == ()


def test_frozen_layers_are_held_against_the_data() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[2].eval()
            return self

    model = Frozen(*learned())
    model[2].running_mean += 5 * model[2].running_var.sqrt()  # type: ignore[operator,union-attr]
    found, said = examined(model)
    (layer,) = found.layers
    assert layer.frozen
    assert layer.mean_z == pytest.approx(5, rel=0.1)
    assert "agree exactly" in said
    assert "Training leaves layer 2 in evaluation mode (frozen); the statistics held are far" in said
    model[2].running_var *= 1e30  # type: ignore[operator,union-attr]
    assert re.search(r"deviations a factor of \d(\.\d+)?e\+1[456],", examined(model)[1])


def test_a_shared_layer_leaves_only_the_terms_of_the_population_open() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.BatchNorm1d(3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.fc(torch.cat([self.norm(x[:, :3]), self.norm(5 * x[:, 3:] + 9)], 1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Twins().double().train()
    images, labels = samples(400, (6, 1, 1), seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    found, said = examined(model.eval())
    (split,) = found.decompositions
    assert [term.name for term in split.terms if math.isnan(term.moved)] == list(NAMES[:6])
    assert all("norm: called more than once" in str(term.absent) for term in split.terms[:6])
    x = images.flatten(1)
    both = torch.cat([x[:, :3], 5 * x[:, 3:] + 9])
    (layer,) = found.layers
    z = (model.norm.running_mean - both.mean(0)).abs() / both.std(0, correction=0)  # type: ignore[operator]
    assert layer.mean_z == pytest.approx(z.median().item(), rel=1e-6)
    assert split.total.loss.value < -0.1
    assert "There is a gap" in said
    assert "Training normalizes each call by itself" in said
    assert [remedy.name for remedy in found.remedies] == ["--stats precise"]


def test_a_count_that_the_statistics_contradict_claims_no_initial_share() -> None:
    model = learned(momentum=0.1, steps=200)
    model[2].num_batches_tracked.fill_(6)  # type: ignore[index,union-attr,operator]
    found, said = examined(model)
    (split,) = found.decompositions
    term = split.terms[NAMES.index("initial statistics")]
    assert (term.moved, term.loss.value) == (0, 0)
    assert term.absent == "53.1 % by the count of updates, which the statistics do not show"
    assert split.initial_left is found.layers[0].initial_left is None
    assert "variance 1" not in said
    model[2].running_mean.mul_(1 - 0.9**6)  # type: ignore[index,union-attr,operator]
    model[2].running_var.mul_(1 - 0.9**6).add_(0.9**6)  # type: ignore[index,union-attr,operator]
    found, _ = examined(model)
    assert found.decompositions[0].initial_left == pytest.approx(0.9**6)


# ---------------------------------------------------------------- runs on the digits

RUN = ("model.widths=[8,8]", "trainer.device=cpu", "trainer.threads=1", "eval.probe_samples=256", "eval.every=100")


def probed(folder: Path, *overrides: str) -> ProbeResult:
    train([*RUN, *overrides], folder)
    trained = of_run(folder)
    probes = [trained.probe("train"), trained.probe("test")]
    found = probe(trained.model, probes, trained.train, 1000)
    for split in found.decompositions:
        check_sum(split)
    assert [split.split for split in found.decompositions] == ["train", "test"]
    return found


def cause(found: Decomposition) -> str:
    return max(found.terms, key=lambda term: term.moved).name


def test_a_low_momentum_leaves_the_initial_statistics(tmp_path: Path) -> None:
    steps = 40
    found = probed(tmp_path / "run", f"trainer.steps={steps}", "norm.momentum=0.001")
    for split in found.decompositions:
        assert cause(split) == "initial statistics"
        assert split.initial_left == pytest.approx(0.999**steps, rel=1e-9)
        assert split.updates == steps
        assert "Most of it is initial statistics" in explained(split)
        assert f"(0.999^{steps})" in explained(split)
    assert "Recalibrating brings" in verdict(found)
    assert {layer.initial_left for layer in found.layers} == {split.initial_left}


def test_a_small_batch_is_noise(tmp_path: Path) -> None:
    found = probed(tmp_path / "run", "model=mlp", "trainer.epochs=1", "data.batch_size=4", "optim.lr=0.01")
    for split in found.decompositions:
        assert cause(split) == "batch noise"
        assert split.batch_size == 4
        assert "batches of 4" in explained(split)
    assert "larger batches" in verdict(found)


@pytest.mark.parametrize("norm", ["layer", "instance", "group"])
def test_what_reads_no_batch_has_no_gap_at_all(tmp_path: Path, norm: str) -> None:
    found = probed(tmp_path / "run", "trainer.steps=5", f"norm={norm}")
    for split in found.decompositions:
        for term in (*split.terms, split.total):
            assert (term.moved, term.flips) == (0, 0)
            for each in (term.accuracy, term.loss):
                assert (each.value, each.low, each.high) == (0, 0, 0)
        assert "agree exactly" in explained(split)
    for gap in found.gaps:
        assert (gap.logit_rms, gap.mate_noise, gap.kl.value, gap.flip_rate.value) == (0, 0, 0, 0)
        assert gap.acc_gap.value == gap.loss_gap.value == 0
    assert found.layers == found.curve == ()


def test_dropout_and_augmentation_of_a_run(tmp_path: Path) -> None:
    found = probed(tmp_path / "run", "trainer.epochs=2", "model.dropout=0.5", "data.shift=1")
    for split in found.decompositions:
        terms = {term.name: term for term in split.terms}
        assert terms["augmentation"].absent is terms["dropout"].absent is None
        assert terms["augmentation"].loss.value > 0  # shifted images are harder
        assert terms["dropout"].loss.value > 0
        assert abs(terms["moving average"].accuracy.value) < 0.05
        assert cause(split) in ("augmentation", "dropout", "batch noise")
    ways = {row.name: row for row in found.curve}
    assert ways["population"].loss.value != ways["population plain"].loss.value
