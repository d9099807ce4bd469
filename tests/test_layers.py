"""Normalization layers of any model: which they are, what is left of their start, how far their statistics are off."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers_cases import for_each
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from bnlab.measure.by_layer import layer_gaps
from bnlab.measure.layer_statistics import (
    adopt,
    initial_left,
    keeps_statistics,
    kept,
    learns_from_batches,
    normalizations,
    running_layers,
    statistics_of,
    values_read,
)
from bnlab.measure.moments import InstanceMoments
from bnlab.models.model import build, models, norm_layers
from bnlab.norms.strategy import strategies


def ours(name: str, **p: object) -> nn.Module:
    return strategies[name](**p).layer(4)


class Lookalike(nn.Module):
    """Goes by the same names as a batch norm, without being one."""

    def __init__(self, *, learning: bool) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))
        if learning:
            self.momentum = 0.1


# kind -> (makes a layer, it keeps statistics, it averages its batches)
LAYERS: dict[str, tuple[Callable[[], nn.Module], bool, bool]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), True, True),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), True, True),
    "BatchNorm2d, none kept": (lambda: nn.BatchNorm2d(4, track_running_stats=False), False, False),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(4), True, True),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4), False, False),
    "InstanceNorm2d, kept": (lambda: nn.InstanceNorm2d(4, track_running_stats=True), True, True),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), False, False),
    "LayerNorm": (lambda: nn.LayerNorm(4), False, False),
    "RMSNorm": (lambda: nn.RMSNorm(4), False, False),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), False, False),
    "FrozenBatchNorm2d": (lambda: FrozenBatchNorm2d(4), True, False),
    "like a frozen one": (lambda: Lookalike(learning=False), True, False),
    "like a batch norm": (lambda: Lookalike(learning=True), True, True),
    **{
        name: (
            lambda name=name: ours(name, **({"groups": 2} if "groups" in strategies[name].__annotations__ else {})),  # type: ignore[misc]
            strategies[name]().facts.keeps_stats,
            strategies[name]().facts.keeps_stats and not strategies[name]().facts.reads_training_set,
        )
        for name in strategies
        if name != "none"
    },
}


@for_each("kind", LAYERS)
def test_what_a_layer_is(kind: str) -> None:
    make, keeps, learns = LAYERS[kind]
    layer = make()
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), layer), "b": nn.Dropout()})
    assert normalizations(model) == {"a.1": layer}
    assert running_layers(model) == ([layer] if keeps else [])
    assert keeps_statistics(layer) is keeps
    assert learns_from_batches(layer) is learns


def test_what_is_no_normalization() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Dropout(), nn.Identity(), nn.Flatten())
    assert normalizations(model) == {}
    model.running_mean = None  # type: ignore[assignment]
    assert running_layers(model) == []


def test_names_are_in_the_order_of_the_modules() -> None:
    model = build(models["cnn"](widths=(4, 4)), strategies["batch"](), (1, 8, 8), 3, 0)
    assert list(normalizations(model)) == [name for name, _ in norm_layers(model)]
    assert normalizations(nn.BatchNorm1d(2)).keys() == {""}


def test_statistics_are_copied_in_both_directions() -> None:
    layer = nn.BatchNorm1d(2)
    before = (layer.running_mean, layer.running_var)
    mean, var = kept(layer)
    assert mean.dtype == var.dtype == torch.float64
    mean += 5
    assert not layer.running_mean.any()  # type: ignore[union-attr]
    new = torch.tensor([1.5, -2.0], dtype=torch.float64)
    adopt(layer, new, new.square())
    assert (layer.running_mean, layer.running_var) == before  # the same tensors
    new += 1
    torch.testing.assert_close(kept(layer), (torch.tensor([1.5, -2.0]).double(), torch.tensor([2.25, 4.0]).double()))


# ---------------------------------------------------------------- values of a variance


@for_each(
    ("layer", "flat", "spatial"),
    [
        (lambda: nn.BatchNorm2d(4), None, 6 * 15),
        (lambda: nn.BatchNorm1d(4), 6, None),
        (lambda: nn.InstanceNorm2d(4, track_running_stats=True), None, 15),
        (lambda: ours("batch"), 6, 6 * 15),
        (lambda: ours("sync"), 6, 6 * 15),
        (lambda: ours("ghost", size=4), 4, 4 * 15),
        (lambda: ours("ghost", size=32), 6, 6 * 15),
        (lambda: ours("batch", stat_samples=2), 2, 2 * 15),
        (lambda: ours("batch", stat_stride=2), 6, 6 * 2 * 3),  # of 3 x 5 every second row and column: 2 x 3
        (lambda: ours("renorm"), None, None),
        (lambda: ours("streaming"), None, None),
        (lambda: ours("online"), None, None),
        (lambda: ours("population"), None, None),
        (lambda: ours("frozen"), None, None),
        (lambda: FrozenBatchNorm2d(4), None, None),
    ],
)
def test_over_how_many_values_training_divides(
    layer: Callable[[], nn.Module], flat: int | None, spatial: int | None
) -> None:
    made = layer()
    if not isinstance(made, (nn.BatchNorm2d, nn.InstanceNorm2d)):
        assert values_read(made, torch.zeros(6, 4)) == flat or isinstance(made, nn.BatchNorm1d)
    if not isinstance(made, nn.BatchNorm1d):
        assert values_read(made, torch.zeros(6, 4, 3, 5)) == spatial


# ---------------------------------------------------------------- what is left of the start


@for_each("updates", [0, 1, 5])
@for_each(
    ("make", "per_batch"),
    [
        (lambda m: nn.BatchNorm2d(4, momentum=m), 1),
        (lambda m: ours("batch", momentum=m), 1),
        (lambda m: ours("sync", momentum=m), 1),
        (lambda m: ours("renorm", momentum=m), 1),
        (lambda m: ours("ghost", size=2, momentum=m), 1),
        (lambda m: ours("ghost", size=2, momentum=m, update="sequential"), 3),
    ],
    ids=["BatchNorm2d", "batch", "sync", "renorm", "ghost", "ghost, one by one"],
)
def test_what_is_left_of_the_start_is_what_constant_batches_leave(
    make: Callable[[float | None], nn.Module], per_batch: int, updates: int
) -> None:
    """Batches of one value have variance 0, so that the running variance is the share of the initial 1 itself."""
    for momentum in (0.3, 1.0):
        layer = make(momentum).double()
        for _ in range(updates):
            layer(torch.zeros(6, 4, 2, 2).double())
        share = (1 - momentum) ** (updates * per_batch)
        assert initial_left(layer) == pytest.approx(share, abs=1e-15)
        torch.testing.assert_close(kept(layer)[1], torch.full((4,), share).double())
    layer = make(None).double()
    for _ in range(updates):
        layer(torch.zeros(6, 4, 2, 2).double())
    assert initial_left(layer) == (0.0 if updates else 1.0)
    assert bool((kept(layer)[1] == (0 if updates else 1)).all())


def test_instance_norm_does_not_count() -> None:
    layer = nn.InstanceNorm2d(4, track_running_stats=True)
    assert initial_left(layer) == 1.0
    layer(torch.zeros(6, 4, 2, 2))
    assert layer.num_batches_tracked == 0
    assert initial_left(layer) is None


def test_a_momentum_of_zero_never_forgets() -> None:
    layer = nn.BatchNorm1d(4, momentum=0.0)
    layer(torch.randn(6, 4))
    assert layer.num_batches_tracked == 1
    assert initial_left(layer) == 1.0
    adopt(layer, torch.ones(4), torch.ones(4))
    assert initial_left(layer) is None


@for_each("make", [lambda: nn.BatchNorm1d(4), lambda: ours("batch"), lambda: ours("ghost")])
def test_weights_published_without_a_count_tell_nothing(make: Callable[[], nn.Module]) -> None:
    for mean, var in ((0.1, 1.0), (0.0, 1.1), (0.0, 0.0)):
        layer = make()
        adopt(layer, torch.tensor([0.0, 0, 0, mean]), torch.tensor([1.0, 1, 1, var]))
        assert initial_left(layer) is None
    layer = make()
    assert initial_left(layer) == 1.0
    if isinstance(layer, nn.BatchNorm1d):
        layer.num_batches_tracked = None
        assert initial_left(layer) is None


def test_no_share_is_given_where_none_fades() -> None:
    for layer in (ours("streaming"), ours("online"), ours("population"), ours("frozen"), FrozenBatchNorm2d(4)):
        assert initial_left(layer) is None
    assert initial_left(Lookalike(learning=True)) is None


# ---------------------------------------------------------------- statistics of instance norm


@for_each("sizes", [[7], [3, 4], [1] * 7])
def test_instance_moments_are_what_the_running_ones_estimate(sizes: list[int]) -> None:
    x = torch.randn(7, 3, 2, 5, generator=torch.Generator().manual_seed(0)) + 100
    gathered = InstanceMoments()
    for part in x.split(sizes):
        gathered.add(part)
    values = x.double().numpy().reshape(7, 3, 10)
    np.testing.assert_allclose(gathered.result()[0].numpy(), values.mean(2).mean(0), rtol=1e-12)
    np.testing.assert_allclose(gathered.result()[1].numpy(), values.var(2, ddof=1).mean(0), rtol=1e-9)
    layer = nn.InstanceNorm2d(3, momentum=1.0, track_running_stats=True).double()
    layer(x.double())
    torch.testing.assert_close(statistics_of(layer, x.double()), (layer.running_mean, layer.running_var))
    assert not statistics_of(layer, x[:, :, :1, :1])[1].any()
    with pytest.raises(ValueError, match="no values"):
        InstanceMoments().result()


# ---------------------------------------------------------------- gaps by layer


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_gap_by_hand() -> None:
    """Five channels, the fourth without variance. z: 1, 0.5, 3, 0; ratios of sigma: 2, 1/4, 1, 3/2."""
    model = nn.Sequential(nn.Identity(), nn.BatchNorm1d(5).double())
    adopt(model[1], double(3, 0, 6, 9, 0), double(4, 1, 4, 9, 2.25))
    model[1].num_batches_tracked.fill_(3)  # type: ignore[union-attr,operator]
    (found,) = layer_gaps(model, {model[1]: (double(2, 2, 0, 1, 0), double(1, 16, 4, 0, 1))})
    z, ratios = [1, 0.5, 3, 0], [math.log(2), math.log(1 / 4), 0, math.log(1.5)]
    assert found.mean_z == pytest.approx(np.median(z))
    assert found.mean_z_max == pytest.approx(3)
    assert found.log_std_ratio == pytest.approx(np.median(ratios))
    assert found.log_std_ratio_max == pytest.approx(math.log(1 / 4))  # farthest from 0, with its sign
    assert (found.depth, found.name, found.kind, found.channels) == (1, "1", "BatchNorm1d", 5)
    assert found.initial_left is None  # 0.9^3 by the count, which these statistics do not bear out


def test_depth_is_the_order_of_the_reference() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(3))
    reference = {model[1]: (double(0, 0, 0), double(1, 1, 1)), model[0]: (double(0, 0), double(1, 1))}
    found = layer_gaps(model, reference)
    assert [(gap.depth, gap.name, gap.kind) for gap in found] == [(1, "1", "BatchNorm2d"), (2, "0", "BatchNorm1d")]
    assert all(gap.mean_z == gap.mean_z_max == gap.log_std_ratio == gap.log_std_ratio_max == 0 for gap in found)


def test_channels_without_variance_are_left_out_and_those_not_finite_are_not() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3).double())
    (found,) = layer_gaps(model, {model[0]: (double(1, 2, 3), double(0, 0, 0))})
    assert (found.mean_z, found.mean_z_max, found.log_std_ratio, found.log_std_ratio_max) == (0, 0, 0, 0)
    (found,) = layer_gaps(model, {model[0]: (double(1, math.nan, 3), double(0, math.nan, 1))})
    assert math.isnan(found.mean_z)
    assert math.isnan(found.mean_z_max)
    assert math.isnan(found.log_std_ratio)
    assert math.isnan(found.log_std_ratio_max)
    adopt(model[0], double(math.nan, 0, 0), double(math.nan, 1, 1))
    (found,) = layer_gaps(model, {model[0]: (double(0, 0, 0), double(1, 1, 1))})
    assert math.isnan(found.mean_z_max)
    assert math.isnan(found.log_std_ratio_max)
