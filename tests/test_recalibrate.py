"""Recalibration: the statistics it takes, what it says of them, and the one new file that it leaves."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_cli import bnlab
from helpers_training import train
from torch import Tensor, nn

from bnlab.cli.compare import compare
from bnlab.cli.probe import probe
from bnlab.cli.recalibrate import recalibrate
from bnlab.data.augment import Augment
from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.errors import ConfigError, EnvironmentFault, IncompatibleError
from bnlab.experiment.trained_model import of_module, of_run
from bnlab.interval import Interval
from bnlab.measure.by_layer import layer_gaps
from bnlab.measure.layer_statistics import Statistics, initial_left, running_layers
from bnlab.measure.modes import training_statistics
from bnlab.measure.population_statistics import adopted
from bnlab.measure.recalibration import (
    Change,
    Point,
    Recalibration,
    SplitLevel,
    Stats,
    curve_sizes,
    enough,
    new_entries,
    recalibrated,
    recalibration,
    samples_used,
)
from bnlab.norms.strategy import strategies
from bnlab.record.new_weights import check_new_file
from bnlab.record.read import read_runs
from bnlab.report.recalibration_report import in_words
from bnlab.training import checkpoint

HERE = ["trainer.device=cpu", "trainer.threads=1"]


# ---------------------------------------------------------------- the statistics


class Images(Batches):
    """Random images in float64, (2, 6, 6), of four classes."""

    def __init__(self, count: int, augment: Augment | None = None) -> None:
        draw = torch.Generator().manual_seed(count)
        pixels = torch.randint(0, 256, (count, 2, 6, 6), generator=draw, dtype=torch.uint8)
        super().__init__(Split(pixels, torch.randint(0, 4, (count,), generator=draw)), batch_size=4, augment=augment)
        self._images = self._images.double()


def network(norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """Two convolutions, each with a normalization, in float64."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 3, 3)
    layers = [first, norm(5), nn.ReLU(), nn.Dropout(), second, norm(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)]
    return nn.Sequential(*layers).double().eval()


@torch.no_grad()
def of_one_forward(model: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and biased variance that torch itself finds in one forward pass over all of `images`."""
    model = copy.deepcopy(model)
    found = []
    x = images
    for layer in model:  # type: ignore[attr-defined]
        if isinstance(layer, nn.BatchNorm2d):
            found.append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
            x = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
        else:
            x = layer(x)
    return found


@pytest.mark.parametrize("stats", ["population", "precise"])
@pytest.mark.parametrize("count", [None, 7])
def test_statistics_are_those_of_one_forward_over_the_whole_batch(stats: Stats, count: int | None) -> None:
    model, images = network(), Images(23)
    found = recalibrated(model, images, stats, count, batch_size=23, plain=True)
    whole, _ = next(images.sequential(count or 23))
    expected = of_one_forward(model, whole)
    assert list(found) == [model[1], model[5]]  # type: ignore[index]
    for (mean, var), (other_mean, other_var) in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(mean, other_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(var, other_var, rtol=1e-12, atol=1e-12)


def test_precise_pools_whole_batches_each_normalized_by_its_own() -> None:
    model, images = network(), Images(23)
    assert samples_used(images, "precise", None, 5) == 20
    found = recalibrated(model, images, "precise", None, batch_size=5, plain=True)
    whole, _ = next(images.sequential(20))
    inputs = [of_one_forward(model, batch)[1] for batch in whole.split(5)]
    means = torch.stack([mean for mean, _ in inputs])
    mean, var = found[model[5]]  # type: ignore[index]
    torch.testing.assert_close(mean, means.mean(0), rtol=1e-12, atol=1e-12)
    within = torch.stack([var for _, var in inputs]).mean(0)
    torch.testing.assert_close(var, within + means.var(0, correction=0), rtol=1e-12, atol=1e-12)


def test_layers_of_another_kind_keep_what_they_hold() -> None:
    model = network()
    model[1] = strategies["frozen"]().layer(5).double()  # type: ignore[index]
    model[1].running_mean.fill_(0.25)  # type: ignore[index,operator]
    model.eval()
    found = recalibrated(model, Images(9), "population", None, 4, plain=True)
    assert list(found) == [model[5]]  # type: ignore[index]
    inputs: list[Tensor] = []
    model[5].register_forward_pre_hook(lambda _, x: inputs.append(x[0]))  # type: ignore[index]
    model(Images(9).sequential(9).__next__()[0])
    torch.testing.assert_close(found[model[5]][0], inputs[0].mean((0, 2, 3)), rtol=1e-12, atol=1e-12)  # type: ignore[index]


@pytest.mark.parametrize("norm", ["layer", "none", "group", "frozen", "population"])
def test_a_model_without_averages_is_refused(norm: str) -> None:
    model = nn.Sequential(strategies[norm]().layer(8) if norm != "none" else nn.Identity(), nn.Flatten())
    with pytest.raises(IncompatibleError, match=r"nothing to recalibrate: .*\n.*leave (it|them)"):
        recalibrated(model, Images(8), "population", None, 4)


@pytest.mark.parametrize("stats", ["population", "precise"])
def test_statistics_are_of_what_training_normalizes(stats: Stats) -> None:
    """Images mirrored as in epoch 0, dropout by its first masks; written out in float64."""
    model, images = network(), Images(23, Augment(flip=True))
    mirror = images.augment.draw(23, images.seed, 0)[-1].bool()[:, None, None, None]
    x, _ = next(images.sequential(23))
    x = model[0](torch.where(mirror, x.flip(3), x))  # type: ignore[index]
    first = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
    x = F.batch_norm(x, None, None, model[1].weight, model[1].bias, training=True).relu()  # type: ignore[index]
    torch.manual_seed(0)
    x = model[4](F.dropout(x, 0.5))  # type: ignore[index]
    second = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
    found = recalibrated(model, images, stats, None, batch_size=23)
    torch.testing.assert_close(list(found.values()), [first, second], rtol=1e-10, atol=1e-12)
    plain = recalibrated(model, images, stats, None, batch_size=23, plain=True)
    assert not torch.allclose(plain[model[5]][1], second[1], rtol=0.1)  # type: ignore[index]


class Folded(nn.Module):
    """Rows of the images as steps of time, (T, N, C) folded to (T N, C), and a norm that takes pieces of the batch."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces
        self.mix, self.norm = nn.Linear(12, 4), nn.BatchNorm1d(4)
        self.last, self.ghosts, self.fc = nn.Linear(24, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1, 3).flatten(2)  # (T, N, C)
        rows = self.norm(self.mix(steps).flatten(0, 1)).tanh()
        x = self.last(rows.view(*steps.shape[:2], -1).transpose(0, 1).flatten(1))
        return self.fc(torch.cat([self.ghosts(piece) for piece in x.split(self.pieces)]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("pieces", [9, 40])
@pytest.mark.parametrize("count", [23, 17])
def test_rows_and_pieces_of_a_batch_are_not_taken_for_images(count: int, pieces: int) -> None:
    model, images = Folded(pieces).double().eval(), Images(23)
    found = recalibrated(model, images, "population", count, batch_size=8)
    x, _ = next(images.sequential(count))
    rows = model.mix(x.permute(0, 2, 1, 3).flatten(2))  # (N, T, C): the order of the rows does not count
    mean, var = rows.mean((0, 1)), rows.var((0, 1), correction=0)
    torch.testing.assert_close(found[model.norm], (mean, var), rtol=1e-10, atol=1e-12)
    y = model.last(((rows - mean) / (var + 1e-5).sqrt()).tanh().flatten(1))
    torch.testing.assert_close(found[model.ghosts], (y.mean(0), y.var(0, correction=0)), rtol=1e-9, atol=1e-12)


class Routed(nn.Module):
    """A norm of its own for bright images, of which the first eight have none."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit, self.dark, self.bright = limit, nn.BatchNorm1d(72), nn.BatchNorm1d(72)
        self.last, self.fc = nn.BatchNorm1d(72), nn.Linear(72, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, y = x.flatten(1), torch.empty_like(x.flatten(1))
        bright = x.mean(1) > self.limit
        for rows, norm in ((bright, self.bright), (~bright, self.dark)):
            if rows.any():
                y[rows] = norm(x[rows])
        return self.fc(self.last(y.tanh()))  # type: ignore[no-any-return]


def test_a_layer_that_few_images_come_to_has_the_statistics_of_these() -> None:
    images = Images(60)
    x = next(images.sequential(60))[0].flatten(1)
    model = Routed(x[:8].mean(1).max().item()).double().eval()
    bright = x.mean(1) > model.limit
    assert 2 <= bright.sum() < 50
    found = recalibrated(model, images, "population", None, batch_size=8)
    y = torch.empty_like(x)
    for rows, norm in ((bright, model.bright), (~bright, model.dark)):
        mean, var = x[rows].mean(0), x[rows].var(0, correction=0)
        torch.testing.assert_close(found[norm], (mean, var), rtol=1e-10, atol=1e-12)
        y[rows] = ((x[rows] - mean) / (var + 1e-5).sqrt()).tanh()
    torch.testing.assert_close(found[model.last], (y.mean(0), y.var(0, correction=0)), rtol=1e-9, atol=1e-12)


def test_a_layer_that_is_called_twice_has_statistics_by_precise_only() -> None:
    shared = nn.BatchNorm2d(2).double()
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Flatten())
    with pytest.raises(IncompatibleError, match=r"called more than once.*\nstats=precise pools"):
        recalibrated(model, Images(8), "population", None, 8)
    x, _ = next(Images(8).sequential(8))
    both = torch.cat([x, F.batch_norm(x, None, None, training=True).tanh()])
    mean, _ = recalibrated(model, Images(8), "precise", None, 8)[shared]
    torch.testing.assert_close(mean, both.mean((0, 2, 3)), rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------- how many samples


def level(accuracy_off: float, loss_off: float, n: int = 10_000) -> SplitLevel:
    zero = Interval(0.0, 0.0, 0.0, n)
    return SplitLevel(
        zero, zero, Interval(accuracy_off, accuracy_off, accuracy_off, n), Interval(loss_off, loss_off, loss_off, n)
    )


def test_enough_is_where_nothing_is_far_from_all_any_more() -> None:
    near, far, nan = level(0.0009, -0.004), level(0.0, 0.006), level(0.0, float("nan"))
    sizes = [16, 64, 256, 1000]
    assert enough([near, near, near, near], sizes) == 16
    assert enough([near, far, near, near], sizes) == 256
    assert enough([far, far, far, near], sizes) == 1000
    assert enough([nan, near, near, near], sizes) == 64
    assert enough([nan], [16]) == 16
    coarse = level(1 / 200, 0.0, n=200)  # a single sample
    assert enough([level(-2 / 200, 0.0, n=200), coarse, level(0.0, 0.0, 200)], [16, 64, 90]) == 64
    assert enough([level(-1 / 200, 0.0), near], [16, 64]) == 64
    assert enough([level(1 / 200, -0.5), near], [16, 64]) == 16  # better than all is no reason to take more


def test_where_it_made_it_worse_nothing_is_enough() -> None:
    def changed(points: float, nats: float) -> Change:
        at = Interval(0.5, 0.4, 0.6, 100)
        accuracy, loss = (replace(at, value=v, low=v - 1e-4, high=v + 1e-4) for v in (points, nats))
        return Change("test", at, at, accuracy, at, at, loss, at)

    zero = level(0.0, 0.0)
    curve = (Point(16, {"test": zero}), Point(64, {"test": zero}))
    result = Recalibration("population", 64, 64, {}, (changed(-0.1, 0.2),), (), (), curve, "test", 16)
    assert "enough" not in in_words(result)
    assert in_words(result).endswith("keep the old statistics.")
    assert "16 of 64 samples, the fewest tried, were enough" in in_words(replace(result, changes=(changed(0.1, -0.2),)))


def test_the_curve_takes_whole_batches_for_precise() -> None:
    images = Images(300)
    assert curve_sizes(images, "population", 300, 50) == [16, 64, 256]
    assert curve_sizes(images, "precise", 300, 50) == [50, 250]
    assert curve_sizes(images, "precise", 300, 300) == []
    assert curve_sizes(images, "population", 16, 50) == []


def test_the_curve_and_the_changes_are_those_of_models_with_these_statistics() -> None:
    model, images, held_out = network(), Images(90), Images(31)
    found = recalibration(model, images, {"valid": held_out, "test": Images(40)}, "population", None, 8, 16, plain=True)
    assert [point.samples for point in found.curve] == [16, 64, 90]
    x, labels = next(held_out.sequential(31))
    logits = []
    for count in (None, 16, 90):
        other = copy.deepcopy(model)
        if count:
            statistics = of_one_forward(model, next(images.sequential(count))[0])
            for layer, (mean, var) in zip(running_layers(other), statistics, strict=True):
                layer.running_mean, layer.running_var = mean, var  # type: ignore[assignment]
        logits.append(other(x).detach().float().double())
    before, few, after = logits
    change, point = found.changes[0], found.curve[0].levels["valid"]
    close = pytest.approx
    assert change.split == found.judged_on == "valid"
    assert change.accuracy_before.value == close((before.argmax(1) == labels).double().mean().item())
    assert change.loss.value == close((F.cross_entropy(after, labels) - F.cross_entropy(before, labels)).item())
    assert change.flips.value == close((before.argmax(1) != after.argmax(1)).double().mean().item())
    off = F.cross_entropy(few, labels, reduction="none") - F.cross_entropy(after, labels, reduction="none")
    assert point.loss_off.value == close(off.mean().item(), abs=1e-7)
    half = 2.0423 * off.std().item() / 31**0.5  # Student's t with 30 degrees of freedom
    assert point.loss_off.high == close(off.mean().item() + half, abs=1e-6)
    assert found.curve[-1].levels["test"].loss_off == Interval(0.0, 0.0, 0.0, 40)
    assert max(gap.mean_z_max for gap in found.gaps_before) > 0.1
    assert max(gap.mean_z_max for gap in found.gaps_after) < 1e-12


# ---------------------------------------------------------------- what comes back


class Interrupting(nn.Module):
    """Is interrupted in its forward pass number `after`."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = torch.tensor(after)  # no buffer: it must not come back

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return x


def everything(model: nn.Module) -> tuple[Any, ...]:
    modules = list(model.modules())
    tensors = [(name, value.numpy().tobytes()) for name, value in model.state_dict().items()]
    return (
        tensors,
        [module.training for module in modules],
        [len(module._forward_pre_hooks) for module in modules],
        [getattr(module, "momentum", 0) for module in modules],
        torch.get_rng_state().numpy().tobytes(),
    )


@pytest.mark.parametrize("stats", ["population", "precise"])
@pytest.mark.parametrize("after", [0, 1, 3, 6, 10, 10**6])
def test_the_model_comes_back_as_it_was_also_when_interrupted(stats: Stats, after: int) -> None:
    model = network()
    model.insert(6, Interrupting(after))  # type: ignore[operator]
    model.train()
    before = everything(model)
    splits = {"valid": Images(12), "test": Images(20)}
    if after < 100:
        with pytest.raises(KeyboardInterrupt):
            recalibration(model, Images(40), splits, stats, None, 8, 8)
    else:
        found = recalibration(model, Images(40), splits, stats, None, 8, 8)
        assert new_entries(model, found.statistics)
    assert everything(model) == before


# ---------------------------------------------------------------- the entries of a file


def test_counts_begin_anew_where_a_share_is_told_from_them() -> None:
    fixed, cumulative = nn.BatchNorm2d(2, momentum=0.001), nn.BatchNorm2d(2, momentum=None)
    streaming = strategies["streaming"]().layer(2)
    model = nn.Sequential(fixed, cumulative, streaming)
    for layer in running_layers(model):
        layer.num_batches_tracked.fill_(500)  # type: ignore[operator,union-attr]
    assert initial_left(fixed) == pytest.approx(0.999**500)
    new: Statistics = {layer: (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5])) for layer in running_layers(model)}
    entries = new_entries(model, new)
    assert [int(entries[f"{i}.num_batches_tracked"]) for i in range(3)] == [0, 500, 500]
    assert torch.equal(entries["0.running_mean"], torch.tensor([1.0, 2.0]))
    assert set(entries) == {
        f"{i}.{k}" for i in range(3) for k in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert int(fixed.num_batches_tracked or 0) == 500
    model.load_state_dict(entries, strict=False)
    assert [initial_left(layer) for layer in running_layers(model)] == [None, 0.0, None]


def test_a_layer_that_is_the_model_or_is_known_by_two_names_is_named_as_in_the_state_dict() -> None:
    alone = nn.BatchNorm2d(2)
    new: Statistics = {alone: (torch.ones(2), torch.ones(2))}
    assert set(new_entries(alone, new)) == {"running_mean", "running_var", "num_batches_tracked"}
    twice = nn.ModuleDict({"a": alone, "b": alone})
    assert set(new_entries(twice, new)) == {
        name for name in twice.state_dict() if "weight" not in name and "bias" not in name
    }


# ---------------------------------------------------------------- files


def test_a_new_file_has_its_digest_and_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "new.pt"
    checkpoint.save_file(path, {"model": {"a": torch.ones(2)}})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "new.pt.sha256").read_text() == f"{digest}  new.pt\n"
    assert torch.equal(checkpoint.load_file(path)["model"]["a"], torch.ones(2))
    with pytest.raises(ConfigError, match=r"exists already.*\n.*--out"):
        checkpoint.save_file(path, {})
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("checkpoint", ConfigError),  # its digest would take the place of the run's
        ("checkpoint.prev.pt", ConfigError),
        ("link.pt", ConfigError),
        (".", ConfigError),
        ("missing/new.pt", ConfigError),
        ("file/new.pt", EnvironmentFault),
        ("x" * 240 + ".pt", ConfigError),
    ],
)
def test_places_that_are_refused_before_the_work(tmp_path: Path, place: str, error: type[Exception]) -> None:
    (tmp_path / "checkpoint.sha256").write_text("0\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "link.pt").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error):
        check_new_file(tmp_path / place)
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_is_full_leaves_neither_file_nor_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = checkpoint.write_bytes

    def full(path: Path, content: bytes) -> None:
        if path.suffix == ".pt":
            raise EnvironmentFault("no space left")
        written(path, content)

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    with pytest.raises(EnvironmentFault, match="no space"):
        checkpoint.save_file(tmp_path / "new.pt", {"a": 1})
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Short trainings on the digits whose running statistics are still mostly 0 and 1."""
    place = tmp_path_factory.mktemp("runs")
    sizes = ["data=digits", "data.valid_size=200", "model.widths=[8,16]", "trainer.steps=60"]
    done = bnlab(
        "train", "-m", "norm=batch,renorm", "norm.momentum=0.001", "name=low", "optim.lr=0.1", *sizes, *HERE, cwd=place
    )
    assert done.returncode == 0, done.stderr
    folders = sorted(place.glob("runs/*low*/[01]"))
    return dict(zip(("batch", "renorm"), folders, strict=True))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows_of(text: str) -> dict[tuple[str, ...], float]:
    keys = ("table", "split", "name", "samples", "metric")
    return {tuple(row[key] for key in keys): float(row["value"]) for row in csv.DictReader(io.StringIO(text))}


def test_recalibrating_a_run_removes_the_gap_of_a_low_momentum(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = runs["batch"]
    old = files(folder)
    done = bnlab("recalibrate", str(folder), *HERE, "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    file = folder / "recalibrated-population-1237.pt"
    assert {name for name in files(folder) if name not in old} == {file.name, f"{file.name}.sha256"}
    assert {name: content for name, content in files(folder).items() if name in old} == old
    rows = rows_of(done.stdout)
    change = {metric: rows["change", "test", "", "1237", metric] for metric in ("accuracy_before", "accuracy_after")}
    assert change["accuracy_after"] > change["accuracy_before"] + 0.05
    assert max(v for k, v in rows.items() if k[0] == "layer before" and k[4] == "mean_z") > 0.3
    assert max(v for k, v in rows.items() if k[0] == "layer after" and k[4] == "mean_z_max") < 1e-5

    # the gap to the statistics of training is gone, and what the file holds is what the table says
    before, after = of_run(folder), of_run(folder, file)
    images, labels = next(after.test.sequential(360))
    with torch.no_grad():
        with training_statistics(before.model):
            in_training = F.cross_entropy(before.model(images).double(), labels).item()
        gaps = [rows["change", "test", "", "1237", f"loss_{when}"] - in_training for when in ("before", "after")]
        assert abs(gaps[1]) < 0.02 < 0.2 < gaps[0]
        accuracy = (after.model(images).argmax(1) == labels).double().mean().item()
        loss = F.cross_entropy(after.model(images).double(), labels).item()
    assert accuracy == pytest.approx(change["accuracy_after"])
    assert loss == pytest.approx(rows["change", "test", "", "1237", "loss_after"], rel=1e-4)
    fresh = recalibrated(after.model, after.train, "population", None, 64)
    assert max(abs(gap.log_std_ratio_max) for gap in layer_gaps(after.model, fresh)) < 1e-5

    # nothing else differs, and nothing says that mean 0 and variance 1 are left
    new, known = checkpoint.load_file(file), checkpoint.load(folder)
    assert list(new) == [*known, "recalibrated"]
    assert new["recalibrated"] == {"stats": "population", "samples": 1237}
    changed = {name for name in known["model"] if not torch.equal(known["model"][name], new["model"][name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(gap.initial_left is None for gap in layer_gaps(after.model, fresh))
    assert [initial_left(layer) for layer in running_layers(before.model)] == [pytest.approx(0.999**60)] * 2


def test_a_schedule_told_from_the_count_stays_at_its_end(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "new.pt"
    recalibrate([str(runs["renorm"])], "precise", 200, out, format="plain")
    assert checkpoint.load_file(out)["recalibrated"] == {"stats": "precise", "samples": 192}
    for before, after in zip(
        running_layers(of_run(runs["renorm"]).model), running_layers(of_run(runs["renorm"], out).model), strict=True
    ):
        assert [float(bound) for bound in after.bounds()] == [float(bound) for bound in before.bounds()] == [3.0, 5.0]  # type: ignore[operator]
        assert initial_left(after) is None


def test_the_table_reads_well_at_any_width(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(runs["batch"]), tmp_path / "a.pt"
    monkeypatch.setenv("COLUMNS", "120")
    recalibrate([run], "precise", 300, out)
    wide = capsys.readouterr().out
    arguments = ["recalibrate", run, "--samples", "300", "--stats", "precise"]
    done = bnlab(*arguments, "--out", "b.pt", cwd=tmp_path, COLUMNS="80", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "stats=precise: whole batches of 64 are taken, 256 of the 300 samples asked for",
        "to examine it:",
        f"bnlab probe {run} --checkpoint b.pt",
    ]
    assert done.stdout.isascii()
    for text, columns in ((wide, 120), (done.stdout, 80)):
        assert max(map(len, text.splitlines())) <= columns
        words = " ".join(text.split())
        assert "precise: in one pass with training behaviour" in words
        assert "over 256 of 1,237 training samples" in words
        assert "were enough, judged on valid." in words
        assert "Recalibration made it better (accuracy on valid, loss on valid" in words
    again = bnlab(*arguments, "--out", "a.pt", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "a.pt: exists already, and nothing is written over\nname another file by --out\n"


def test_a_folder_that_is_missing_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnlab.experiment.trained_model.find", lambda *_: pytest.fail("read something"))
    with pytest.raises(ConfigError, match=r"a/b does not exist\nmake it, or name another by --out$"):
        recalibrate(["x"], out=tmp_path / "a" / "b" / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_json_says_what_was_enough_and_where_the_file_is(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new.pt"
    recalibrate([str(runs["batch"])], out=out, format="json")
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["stats"], found["samples"], found["judged_on"]) == (
        str(out),
        "population",
        1237,
        "valid",
    )
    assert found["enough"] in (16, 64, 256, 1024, 1237)
    assert found["verdict"].startswith(("All ", f"{found['enough']:,} of 1,237 samples"))


def test_an_interruption_leaves_no_file(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnlab.measure.recalibration.layer_gaps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recalibrate([str(runs["batch"])], samples=20, out=tmp_path / "new.pt", format="plain")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- modules

MODULE = """
from torch import nn

def net(norm=nn.BatchNorm2d):
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), norm(8), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

def plain():
    return net(nn.Identity)
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own, importable in the working directory."""
    name = f"their_net_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return name


@pytest.mark.parametrize("nesting", ["flat", "nested and wrapped", "none"])
def test_a_module_gets_a_file_in_the_form_of_its_own(theirs: str, nesting: str, tmp_path: Path) -> None:
    factory = f"{theirs}:net"
    own = of_module(factory, None, ["data=digits", *HERE]).model.state_dict()
    state: dict[str, Any] = own
    if nesting == "nested and wrapped":
        state = {"epoch": 3, "state_dict": OrderedDict((f"module.{name}", value) for name, value in own.items())}
    weights = None if nesting == "none" else tmp_path / "place" / "weights.pt"
    if weights is not None:
        weights.parent.mkdir()
        torch.save(state, weights)
    recalibrate(["trainer.device=cpu"], samples=50, module=factory, weights=weights, data="digits", format="plain")
    new = (
        weights.parent / "weights-recalibrated-population-50.pt"
        if weights
        else tmp_path / "recalibrated-population-50.pt"
    )
    found = torch.load(new, weights_only=True)
    assert list(found) == list(state)
    inner, names = (found["state_dict"], state["state_dict"]) if "state_dict" in state else (found, state)
    assert list(inner) == list(names)
    trained = of_module(factory, new, ["data=digits", *HERE])
    reference = of_module(factory, weights, ["data=digits", *HERE])
    expected = recalibrated(reference.model, reference.train, "population", 50, 64)
    with adopted(reference.model, expected):
        for name, value in reference.model.state_dict().items():
            assert name.endswith("tracked") or torch.equal(trained.model.state_dict()[name], value)


def test_a_module_without_averages_is_refused_and_leaves_nothing(theirs: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*.pt"))
    with pytest.raises(IncompatibleError, match=f"{theirs}:plain: nothing to recalibrate"):
        recalibrate(HERE, module=f"{theirs}:plain", data="digits")
    assert sorted(tmp_path.rglob("*.pt")) == before == []


# ---------------------------------------------------------------- sweeps


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of a strategy whose statistics are mostly 0 and 1, and one without any."""
    place = tmp_path_factory.mktemp("sweep")
    sizes = ["data=digits", "data.valid_size=200", "model=mlp", "model.widths=[16]", "trainer.steps=60", "optim.lr=0.1"]
    for number, words in enumerate(
        [*(["norm=batch", "norm.momentum=0.001", f"seed={i}"] for i in range(3)), ["norm=layer"]]
    ):
        assert train([*sizes, *HERE, *words], place / str(number)).state == "done"
    return place


Printed = Callable[..., tuple[str, str]]


@pytest.fixture
def printed(sweep: Path, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Return what recalibrating the sweep prints, on stdout and on stderr."""

    def call(**options: Any) -> tuple[str, str]:
        recalibrate([str(sweep)], **options)
        shown = capsys.readouterr()
        return shown.out, shown.err

    return call


def test_every_run_of_a_sweep_is_recalibrated_and_its_arm_compared_with_itself(sweep: Path, printed: Printed) -> None:
    old = {path: path.read_bytes() for path in sweep.rglob("*.pt")}
    found = json.loads(printed(format="json")[0])["rows"]
    new = sorted(sweep.rglob("recalibrated-*.pt"))
    assert [path.relative_to(sweep).as_posix() for path in new] == [
        f"{i}/recalibrated-population-1237.pt" for i in range(3)
    ]
    assert {path: path.read_bytes() for path in old} == old
    rows = {row["arm"]["recalibrated"]: row["metrics"] for row in found}
    for word, weights in (("before", [None] * 3), ("population", new)):
        losses, hits = [], []
        for path, file in zip(new, weights, strict=True):
            trained = of_run(path.parent, file)
            images, labels = next(trained.test.sequential(360))
            with torch.no_grad():
                logits = trained.model(images).double()
            losses.append(F.cross_entropy(logits, labels).item())
            hits.append((logits.argmax(1) == labels).double().mean().item())
        assert rows[word]["test_loss"]["mean"] == pytest.approx(sum(losses) / 3, rel=1e-5)
        assert rows[word]["test_accuracy"]["mean"] == pytest.approx(sum(hits) / 3 * 100, abs=1e-9)
    assert rows["population"]["test_loss"]["mean"] < rows["before"]["test_loss"]["mean"] - 0.1
    (pair,) = (row["vs_baseline"] for row in found if row["arm"]["recalibrated"] == "population")
    assert pair["test_accuracy"]["n"] == 3
    whole = of_run(sweep / "0")
    alone = recalibration(whole.model, whole.train, {"valid": whole.valid or whole.test}, "population", None, 64, 200)
    (run,) = read_runs([sweep / "0"])[0]
    assert run.evaluations["recalibrated-population-1237"]["curve"]["train.samples_needed"] == alone.enough


def test_the_answer_comes_first_and_what_cannot_be_recalibrated_is_named(
    sweep: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, err = printed()
    whole = " ".join(out.split())
    assert whole.startswith("recalibrated=population is not shown to differ from recalibrated=before in test loss: 3")
    assert max(map(len, out.splitlines())) <= 80
    assert "initial mean 0 and variance 1: before 94 %." in " ".join(out.split())
    assert f"{sweep}/3: nothing to recalibrate: no layer keeps" in err


def test_what_was_recalibrated_stays_as_it_is(
    sweep: Path, printed: Printed, capsys: pytest.CaptureFixture[str]
) -> None:
    few: dict[str, Any] = {"stats": "precise", "samples": 128, "format": "csv"}
    first, err = printed(**few)
    assert "3 runs recalibrated" in err
    files = {path: path.read_bytes() for path in sweep.rglob("*.pt*")}
    assert printed(**few)[0] == first
    (sweep / "1" / "evaluations.json").unlink()  # as where `recalibrate RUN` had made the file
    again, err = printed(**few)
    assert "1 run recalibrated" in err
    assert again == first
    assert {path: path.read_bytes() for path in files} == files
    assert "precise 128 plain" in printed(**few, plain=True)[0]
    assert len(list(sweep.rglob("recalibrated-precise-plain-128.pt"))) == 3
    compare([sweep], evaluated=True, metric=["samples_needed"], format="csv")
    assert "precise 128 plain" in capsys.readouterr().out
    probe([str(sweep), "eval.stats=running"], format="csv")
    assert "precise 128" not in capsys.readouterr().out


def test_a_sweep_cannot_be_recalibrated_into_one_file(sweep: Path) -> None:
    with pytest.raises(ConfigError, match="--out: is for one run"):
        recalibrate([str(sweep)], out=sweep / "x.pt")
    with pytest.raises(ConfigError, match="--checkpoint: is for one run"):
        recalibrate([str(sweep)], weights=sweep / "x.pt")
    with pytest.raises(ConfigError, match=r"optim\.lr=1: cannot be set here"):
        recalibrate([str(sweep), "optim.lr=1"])
