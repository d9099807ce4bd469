"""The gap as a sum of causes: every term against the formulas in numpy, by hand, and what is said of it in words."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_network import DRAWS, KINDS, Array, Flat, interval, kl, nats, right, twins
from helpers_probe import Doubles, probe_of, samples
from helpers_training import train
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from bnlab.data.augment import Augment
from bnlab.data.batches import Batches
from bnlab.experiment.trained_model import of_run
from bnlab.interval import Interval
from bnlab.measure.decomposition import NAMES, Decomposition, Stages, Term, decompose, levels, stages
from bnlab.measure.modes import learners
from bnlab.measure.population_statistics import plan
from bnlab.measure.probe_batches import Probe, batching
from bnlab.measure.probe_model import ProbeResult, probe
from bnlab.measure.refresh import refreshed
from bnlab.measure.verdict import verdict

CLOSE = {"rel": 1e-5, "abs": 2e-6}  # logits are kept in float32


def staged(model: nn.Module, test: Probe, training_set: Batches) -> tuple[Stages, Decomposition]:
    """Return what `probe` works out for one split."""
    model.eval()
    how = plan(model, dict.fromkeys(learners(model)), training_set)
    batch, _ = next(test.plain.sequential(test.batch_size))
    found = stages(model, test, levels(model, how, batch, refreshed(model, training_set)))
    return found, decompose(model, test, found)


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
    assert found.full is found.unaugmented is found.dropless is found.undropped
    reads_batch = kind not in ("population", "frozen", "torch instance")
    assert len(found.undropped) == (DRAWS if reads_batch else 1)
    steps = [chain[name] for name in (*["undropped"] * 4, "biased", "population", "initial", "running")]
    for term, before, after in zip(split.terms, steps, steps[1:], strict=False):
        check_term(term, before, after, labels)
    check_term(split.total, chain["undropped"], chain["running"], labels)
    check_sum(split)
    learns, left = reference.norms[0].learns, reference.norms[0].left
    absent = {term.name for term in split.terms if term.absent}
    assert absent == {"augmentation", "dropout", "other"} | (set() if learns else set(NAMES[3:6]))
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


@pytest.mark.parametrize("kind", ["batch", "torch batch", "population"])
def test_dropout_and_augmentation_are_the_outermost_causes(kind: str) -> None:
    """Flips of images 2 x 3; masks of dropout as torch draws them after the seed of each draw."""
    images, labels = samples(24, (1, 2, 3))
    others, other_labels = samples(30, (1, 2, 3), seed=1)
    net, reference = twins(kind, 6, space=False, dropout=0.25)
    augment = Augment(flip=True)
    found, split = staged(Flat(net), probe_of(images, labels, 6, augment), Doubles(others, other_labels))

    def masked(x: Array) -> Array:
        return x * F.dropout(torch.ones(x.shape, dtype=torch.float64), 0.25).numpy()

    reference.dropout = masked
    unaugmented, full = [], []
    flat = images.flatten(1).numpy()[..., None]
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        unaugmented.append(reference.training(flat, 6, draw, drop=True))
        mirror = augment.draw(24, 0, draw)[-1].bool()
        mirrored = torch.where(mirror[:, None, None, None], images.flip(3), images).flatten(1).numpy()[..., None]
        torch.manual_seed(draw)
        full.append(reference.training(mirrored, 6, draw, drop=True))
    chain = reference.stages(flat, others.flatten(1).numpy()[..., None], 6)
    before = [np.stack(full), np.stack(unaugmented), chain["undropped"]]
    np.testing.assert_allclose(found.full.numpy(), before[0], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(found.unaugmented.numpy(), before[1], rtol=1e-5, atol=2e-6)
    check_term(split.terms[0], before[0], before[1], labels)
    check_term(split.terms[1], before[1], before[2], labels)
    check_term(split.total, before[0], chain["running"], labels)
    check_sum(split)
    assert split.terms[0].absent is None
    assert split.terms[1].absent is None
    assert split.terms[2].absent == "nothing but normalization and dropout depends on the mode"
    assert found.dropless is found.undropped


def test_by_hand() -> None:
    """One channel, weight 1, no epsilon, logits (y, 0); training set 0, 2, 4, 6: mean 3, variance 5."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1, eps=1e-12, momentum=0.5, affine=False).double()

        def forward(self, x: Tensor) -> Tensor:
            return F.pad(self.norm(x.flatten(1)), (0, 1))

    model = Line()
    model.norm.running_mean.fill_(2.5)  # type: ignore[union-attr]
    model.norm.running_var.fill_(4.0)  # type: ignore[union-attr]
    model.norm.num_batches_tracked.fill_(1)  # type: ignore[union-attr]
    images = torch.tensor([0.0, 2.0, 4.0, 6.0]).double().view(4, 1, 1, 1)
    labels = torch.tensor([1, 1, 0, 0])  # class 0 where y >= 0
    found, split = staged(model, probe_of(images, labels, 2), Doubles(images, labels))

    # batches (0, 2) and (4, 6), or (0, 6) and (4, 2): the smaller of two gets -1, the larger 1
    apart, together = torch.tensor([-1.0, -1, 1, 1]), torch.tensor([-1.0, 1, -1, 1])
    expected = [
        together if set(batching(4, 2, draw)[:2].tolist()) in ({0, 1}, {2, 3}) else apart for draw in range(DRAWS)
    ]
    torch.testing.assert_close(found.undropped[..., 0], torch.stack(expected))
    assert torch.equal(found.undropped[1, :, 0], apart)
    same = sum(row is together for row in expected)
    root = math.sqrt
    rows = {
        "biased": [-3 / root(2.5), -1 / root(2.5), 1 / root(2.5), 3 / root(2.5)],  # 5 (2 - 1)/2
        "population": [-3 / root(5), -1 / root(5), 1 / root(5), 3 / root(5)],
        "initial": [-1.5 / root(3), 0.5 / root(3), 2.5 / root(3), 4.5 / root(3)],  # half of 0 and 1: mean 1.5, var 3
        "running": [-1.25, -0.25, 0.75, 1.75],
    }
    for name, row in rows.items():
        torch.testing.assert_close(getattr(found, name)[0, :, 0], torch.tensor(row))
    # accuracy: half where neighbours stay together, else 1; 1, 1, 3/4 (2 is taken for class 0), 1
    accuracy = [term.accuracy.value for term in split.terms]
    assert accuracy == pytest.approx([0, 0, 0, (0.5 * same + 1.0 * (DRAWS - same)) / DRAWS - 1, 0, 0.25, -0.25])

    def loss(row: list[float]) -> float:
        return sum(math.log1p(math.exp(y if label else -y)) for y, label in zip(row, labels.tolist(), strict=True)) / 4

    levels_ = [loss(row) for row in rows.values()]
    batch = sum(loss(row.tolist()) for row in expected) / DRAWS
    by_hand = [0, 0, 0, batch - levels_[0], *(a - b for a, b in itertools.pairwise(levels_))]
    assert [term.loss.value for term in split.terms] == pytest.approx(by_hand, abs=1e-6)
    assert split.terms[5].flips == split.terms[6].flips == 0.25
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
    assert len(found.undropped) == 1
    assert "agree exactly" in verdict(split)


def test_spectral_norm_moves_in_training_and_no_later_stage_sees_it() -> None:
    model = head(nn.BatchNorm1d(4), spectral_norm(nn.Linear(4, 4)))
    direction = model[3].parametrizations.weight[0]._u  # type: ignore[index,union-attr]
    direction.copy_(F.normalize(torch.tensor([1.0, -2, 3, 1]).double(), dim=0))  # far from where it will settle
    images, _ = samples(24, (6, 1, 1))
    evaluated = model(images)
    found, split = of_head(model)
    torch.testing.assert_close(found.running[0].double(), evaluated, rtol=1e-5, atol=1e-6)
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
    assert torch.equal(found.dropless, found.undropped) == (cause == "dropout")
    said = verdict(split)
    main = max(split.terms, key=lambda term: term.moved).name
    assert f"Most of it is {main}" in said
    assert ("neither dropout nor a normalization layer that bnlab can see" in said) == (main == "other")
    assert ("Nothing needs to be done." in said) == (main == "dropout")


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


def test_each_cause_is_named_with_its_remedy() -> None:
    large = (-0.2, 0.5)
    said = verdict(made(large, batch_noise=0.3, moving_average=0.1, batch=4))
    assert said.startswith("There is a gap: -20.00 points and +0.5000 nats")
    assert "Most of it is batch noise: batches of 4 give" in said
    assert "larger batches or ghosts" in said
    said = verdict(made(large, left=0.999**938, initial_statistics=0.3, moving_average=0.2))
    assert "Most of it is initial statistics: 39.1 %" in said
    assert "938 updates (0.999^938)" in said
    assert "bnlab recalibrate" in said
    said = verdict(made(large, moving_average=0.3))
    assert "Most of it is moving average" in said
    assert "raise the momentum" in said
    said = verdict(made(large, biased_variance=0.3))
    assert "Most of it is biased variance" in said
    assert "Take larger batches." in said


def test_a_small_gap_needs_nothing() -> None:
    said = verdict(made((0.001, 0.01), batch_noise=0.01))
    assert said.startswith("The gap is small")
    assert said.endswith("Nothing needs to be done.")
    # but what is left of the initial statistics is told, whatever the gap
    said = verdict(made((0.001, 0.01), left=0.5, batch_noise=0.01))
    assert "Besides, 50 % of the initial statistics" in said
    assert "Nothing" not in said
    said = verdict(made((0.001, 0.01), left=0.5, initial_statistics=0.01))
    assert "Recalibrate" in said
    assert "Nothing" not in said


def test_what_is_meant_to_move_predictions_does_not_hide_normalization() -> None:
    for cause in ("augmentation", "dropout"):
        said = verdict(made((-0.2, 0.5), **{cause: 0.9}, batch_noise=0.001))
        assert f"Most of it is {cause}" in said
        assert "Normalization's part is +0.00 points and +0.0000 nats." in said
        assert said.endswith("Nothing needs to be done.")
        found = made((-0.2, 0.5), **{"moving_average": 0.3, cause: 0.9})
        said = verdict(found)
        assert f"Most of it is {cause}" in said
        assert "Normalization's part is -20.00 points and +0.5000 nats. Most of that is moving average" in said
        assert "raise the momentum" in said


def test_exact_agreement_is_said_in_those_words() -> None:
    expected = "Training and evaluation mode agree exactly on test: 0 points, 0 nats, no prediction changes."
    assert verdict(made((0.0, 0.0), left=None)) == expected
    # terms that cancel are no agreement
    found = made((0.0, 0.0), batch_noise=0.1, moving_average=0.1)
    assert "agree" not in verdict(replace(found, total=replace(found.total, moved=0.0)))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_no_cause(loss: float) -> None:
    said = verdict(made((0.0, loss), batch_noise=math.nan))
    assert "not finite" in said
    assert "Most of it" not in said
    assert "nan" not in said


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
        said = verdict(split)
        assert "Most of it is initial statistics" in said
        assert f"(0.999^{steps})" in said
        assert "Recalibrate" in said
    assert {layer.initial_left for layer in found.layers} == {split.initial_left}


def test_a_small_batch_is_noise(tmp_path: Path) -> None:
    found = probed(tmp_path / "run", "model=mlp", "trainer.epochs=1", "data.batch_size=4", "optim.lr=0.01")
    for split in found.decompositions:
        assert cause(split) == "batch noise"
        assert split.batch_size == 4
        assert "batches of 4" in verdict(split)
        assert "larger batches" in verdict(split)


@pytest.mark.parametrize("norm", ["layer", "instance", "group"])
def test_what_reads_no_batch_has_no_gap_at_all(tmp_path: Path, norm: str) -> None:
    found = probed(tmp_path / "run", "trainer.steps=5", f"norm={norm}")
    for split in found.decompositions:
        for term in (*split.terms, split.total):
            assert (term.moved, term.flips) == (0, 0)
            for each in (term.accuracy, term.loss):
                assert (each.value, each.low, each.high) == (0, 0, 0)
        assert "agree exactly" in verdict(split)
    for gap in found.gaps:
        assert (gap.logit_rms, gap.mate_noise, gap.kl.value, gap.flip_rate.value) == (0, 0, 0, 0)
        assert gap.acc_gap.value == gap.loss_gap.value == 0
    assert found.layers == found.curve == ()


def test_dropout_and_augmentation_of_a_run(tmp_path: Path) -> None:
    found = probed(tmp_path / "run", "trainer.epochs=2", "model.dropout=0.5", "data.shift=1")
    for split in found.decompositions:
        augmentation, dropout, *_ = split.terms
        assert augmentation.absent is dropout.absent is None
        assert augmentation.loss.value > 0  # shifted images are harder
        assert dropout.loss.value > 0
        assert cause(split) in ("augmentation", "dropout")
        assert "Normalization's part is" in verdict(split)
