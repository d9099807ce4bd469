"""A small network twice: as a torch module with any normalization, and written out in numpy from the formulas.

Nothing here calls what is tested, but for the order of the samples in a draw of batches, which has its own tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

from bnlab.measure.probe_batches import batching
from bnlab.norms.strategy import strategies

Array = npt.NDArray[np.float64]
MOMENTUM, UPDATES, EPS = 0.1, 7, 1e-3
GHOST = 2
DRAWS = 8


class Net(nn.Module):
    """Per layer: weights over channels, norm, dropout, tanh; then the mean over pixels and a linear readout."""

    def __init__(self, weights: Sequence[Array], norms: Sequence[nn.Module], readout: Array, dropout: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.from_numpy(w.copy()) for w in weights])
        self.norms = nn.ModuleList(norms)
        self.readout = nn.Parameter(torch.from_numpy(readout.copy()))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        for weight, norm in zip(self.weights, self.norms, strict=True):
            x = torch.einsum("oc,nc...->no...", weight, x)
            x = torch.tanh(self.dropout(norm(x)))
        return (x.flatten(2).mean(2) if x.dim() > 2 else x) @ self.readout.T


class Flat(nn.Module):
    """A network over flattened images."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1))  # type: ignore[no-any-return]


@dataclass
class Norm:
    """One normalization written out; inputs and outputs are (N, C, pixels)."""

    kind: str
    gamma: Array
    beta: Array
    mean: Array
    var: Array

    @property
    def learns(self) -> bool:
        return self.kind not in ("population", "frozen")

    @property
    def left(self) -> float | None:
        """What is left of the initial statistics, where they fade."""
        return (1 - MOMENTUM) ** UPDATES if self.kind not in ("streaming", "online", "population", "frozen") else None

    def shown(self, mean: Array, var: Array) -> float | None:
        """That share where the running statistics are nearer to the mix with it than to `mean` and `var`."""

        def apart(share: float) -> float:
            m, v = (1 - share) * mean, (1 - share) * var + share
            return float(((self.mean - m) ** 2 / var + ((self.var - v) / var) ** 2 / 2).mean())

        return self.left if self.left is not None and apart(self.left) < apart(0.0) else None

    def shrinkage(self, samples: int, pixels: int) -> float:
        """The expected biased variance of a batch, over that of all."""
        values = {"ghost": GHOST * pixels, "torch instance": pixels}.get(self.kind, samples * pixels)
        whole = self.kind in ("renorm", "streaming", "online", "population", "frozen") or values == 1
        return 1.0 if whole else (values - 1) / values

    def affine(self, x: Array) -> Array:
        return x * self.gamma[:, None] + self.beta[:, None]

    def with_statistics(self, x: Array, mean: Array, var: Array) -> Array:
        y = self.affine((x - mean[:, None]) / np.sqrt(var[:, None] + EPS))
        return y / np.sqrt((y**2).mean((1, 2), keepdims=True) + EPS) if self.kind == "online" else y

    def in_training(self, x: Array) -> Array:
        if self.kind == "ghost":
            ends = list(range(GHOST, len(x), GHOST))
            if len(x) % GHOST == 1 and len(x) > 1:
                ends = ends[:-1]
            return np.concatenate([self._by_batch(part) for part in np.split(x, ends)])
        if self.kind == "torch instance":
            return np.concatenate([self._by_batch(part) for part in np.split(x, len(x))])
        if self.kind == "online":
            return self._one_by_one(x)
        if self.kind in ("population", "frozen"):
            return self.with_statistics(x, self.mean, self.var)
        if self.kind == "streaming":
            mean, var = x.mean((0, 2)), x.var((0, 2))
            var = (1 - MOMENTUM) * self.var + MOMENTUM * var + MOMENTUM * (1 - MOMENTUM) * (mean - self.mean) ** 2
            return self.with_statistics(x, (1 - MOMENTUM) * self.mean + MOMENTUM * mean, var)
        if self.kind == "renorm":
            sigma, of_batch = np.sqrt(self.var + EPS), np.sqrt(x.var((0, 2)) + EPS)
            r = np.clip(of_batch / sigma, 1 / 3, 3)
            d = np.clip((x.mean((0, 2)) - self.mean) / sigma, -5, 5)
            hat = (x - x.mean((0, 2))[:, None]) / of_batch[:, None]
            return self.affine(hat * r[:, None] + d[:, None])
        return self._by_batch(x)

    def _by_batch(self, x: Array) -> Array:
        return self.with_statistics(x, x.mean((0, 2)), x.var((0, 2)))

    def _one_by_one(self, x: Array) -> Array:
        decay, mean, var, rows = 0.9, self.mean, self.var, []
        for sample in x:
            rows.append(self.with_statistics(sample[None], mean, var))
            m, v = sample.mean(1), sample.var(1)
            var = decay * var + (1 - decay) * v + decay * (1 - decay) * (m - mean) ** 2
            mean = decay * mean + (1 - decay) * m
        return np.concatenate(rows)

    def statistics(self, x: Array) -> tuple[Array, Array]:
        """What its running statistics estimate."""
        if self.kind == "torch instance":
            return x.mean(2).mean(0), x.var(2, ddof=1).mean(0)
        return x.mean((0, 2)), x.var((0, 2))


Stored = list[tuple[Array, Array]]


@dataclass
class Reference:
    """The network of `Net` written out; images are (N, C, pixels)."""

    weights: list[Array]
    norms: list[Norm]
    readout: Array
    dropout: Callable[[Array], Array] | None = None
    inputs: list[Array] = field(default_factory=list)  # of each norm, in the last pass
    shares: list[float | None] = field(default_factory=list)  # of the initial statistics, by norm, as `stages` found

    def logits(self, x: Array, normalize: Callable[[int, Array], Array], *, drop: bool = False) -> Array:
        self.inputs = []
        for i, weight in enumerate(self.weights):
            x = np.einsum("oc,ncp->nop", weight, x)
            self.inputs.append(x)
            x = normalize(i, x)
            x = np.tanh(self.dropout(x) if drop and self.dropout else x)
        found: Array = x.mean(2) @ self.readout.T
        return found

    def training(self, x: Array, size: int, draw: int, *, drop: bool = False) -> Array:
        """In batches with the mates of `draw`, back in the order of the samples."""
        order = batching(len(x), size, draw).numpy()
        found = np.empty((len(x), len(self.readout)))
        for start in range(0, len(x), size):
            rows = order[start : start + size]
            found[rows] = self.logits(x[rows], lambda i, h: self.norms[i].in_training(h), drop=drop)
        return found

    def stored(self, x: Array, statistics: Stored) -> Array:
        return self.logits(x, lambda i, h: self.norms[i].with_statistics(h, *statistics[i]))

    def stored_in_batches(self, x: Array, statistics: Stored, size: int, draw: int, *, drop: bool) -> Array:
        """With stored statistics, in the batches of `draw`, so that masks are drawn as in `training`."""
        order = batching(len(x), size, draw).numpy()
        found = np.empty((len(x), len(self.readout)))
        for start in range(0, len(x), size):
            rows = order[start : start + size]
            found[rows] = self.logits(x[rows], lambda i, h: self.norms[i].with_statistics(h, *statistics[i]), drop=drop)
        return found

    def own(self, x: Array, size: int) -> Array:
        """In evaluation, each batch with its own statistics; with a single value a channel the running ones."""

        def normalize(i: int, h: Array) -> Array:
            norm = self.norms[i]
            alone = h.shape[0] * h.shape[2] == 1
            return norm.with_statistics(h, *((norm.mean, norm.var) if alone else norm.statistics(h)))

        return np.concatenate([self.logits(x[start : start + size], normalize) for start in range(0, len(x), size)])

    @property
    def running(self) -> Stored:
        return [(norm.mean, norm.var) for norm in self.norms]

    def population(self, x: Array, factors: Sequence[float] | None = None, *, drop: bool = False) -> Stored:
        """Layer after layer over the training set, each variance times its factor."""
        found: Stored = []

        def normalize(i: int, h: Array) -> Array:
            mean, var = self.norms[i].statistics(h)
            found.append((mean, var * (factors[i] if factors else 1.0)))
            return self.norms[i].with_statistics(h, *found[-1])

        self.logits(x, normalize, drop=drop)
        return found

    def precise(self, x: Array, size: int) -> Stored:
        """Pooled over batches as in training, each layer's input."""
        seen: list[list[Array]] = [[] for _ in self.norms]
        for start in range(0, len(x), size):
            self.logits(x[start : start + size], lambda i, h: self.norms[i].in_training(h))
            for parts, h in zip(seen, self.inputs, strict=True):
                parts.append(h)
        return [norm.statistics(np.concatenate(parts)) for norm, parts in zip(self.norms, seen, strict=True)]

    def stages(self, x: Array, training_set: Array, size: int) -> dict[str, Array]:
        """Every stage by name, (K, N, classes)."""
        pixels = x.shape[2]
        factors = [norm.shrinkage(min(size, len(x)), pixels) for norm in self.norms]
        learn = self.norms[0].learns
        exact = self.population(training_set) if learn else self.running
        biased = self.population(training_set, factors) if learn else self.running
        self.shares = [norm.shown(mean, var) for norm, (mean, var) in zip(self.norms, exact, strict=True)]
        initial = [
            ((1 - (left or 0)) * mean, (1 - (left or 0)) * var + (left or 0))
            for left, (mean, var) in zip(self.shares, exact, strict=True)
        ]
        last = self.population(training_set) if self.norms[0].kind == "population" else self.running
        return {
            "norms": np.stack([self.training(x, size, draw) for draw in range(DRAWS)]),
            "biased": self.stored(x, biased)[None],
            "population": self.stored(x, exact)[None],
            "initial": self.stored(x, initial)[None],
            "running": self.stored(x, last)[None],
        }


KINDS = (
    "torch batch",
    "batch",
    "ghost",
    "sync",
    "renorm",
    "streaming",
    "online",
    "population",
    "frozen",
    "torch instance",
)


def module_of(norm: Norm, channels: int, *, space: bool) -> nn.Module:
    """Return the layer of torch's or ours with the same parameters and statistics."""
    layer: nn.Module
    if norm.kind == "torch batch":
        layer = (nn.BatchNorm2d if space else nn.BatchNorm1d)(channels, eps=EPS, momentum=MOMENTUM)
    elif norm.kind == "torch instance":
        layer = nn.InstanceNorm2d(channels, eps=EPS, momentum=MOMENTUM, affine=True, track_running_stats=True)
    else:
        own = {
            "ghost": {"size": GHOST, "momentum": MOMENTUM},
            "online": {"forward_decay": 0.9},
            "population": {},
            "frozen": {},
        }.get(norm.kind, {"momentum": MOMENTUM})
        layer = strategies[norm.kind](eps=EPS, **own).layer(channels)
    layer = layer.double()
    with torch.no_grad():
        for name, value in (
            ("weight", norm.gamma),
            ("bias", norm.beta),
            ("running_mean", norm.mean),
            ("running_var", norm.var),
        ):
            getattr(layer, name).copy_(torch.from_numpy(value))
        layer.num_batches_tracked.fill_(UPDATES)  # type: ignore[operator,union-attr]
    return layer


def twins(kind: str, inputs: int, *, space: bool, dropout: float = 0.0, classes: int = 3) -> tuple[Net, Reference]:
    """Return a network of two layers of 4 channels, weights small integers, as a module and written out."""
    draw = np.random.default_rng(1)
    widths = [inputs, 4, 4]
    weights = [draw.integers(-2, 3, (a, b)).astype(float) + np.eye(a, b) for b, a in itertools.pairwise(widths)]
    norms = [
        Norm(kind, draw.uniform(0.5, 1.5, 4), draw.normal(size=4), 0.4 * draw.normal(size=4), draw.uniform(1, 4, 4))
        for _ in weights
    ]
    readout = 2 * draw.normal(size=(classes, 4))
    layers = [module_of(norm, 4, space=space) for norm in norms]
    return Net(weights, layers, readout, dropout), Reference(weights, norms, readout)


# ---------------------------------------------------------------- figures


def right(logits: Array, labels: npt.NDArray[np.int64]) -> Array:
    return (logits.argmax(-1) == labels).astype(float)


def log_softmax(logits: Array) -> Array:
    top = logits.max(-1, keepdims=True)
    found: Array = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return found


def nats(logits: Array, labels: npt.NDArray[np.int64]) -> Array:
    found = -log_softmax(logits)
    index = np.broadcast_to(labels, logits.shape[:-1])[..., None]
    picked: Array = np.take_along_axis(found, index, -1)[..., 0]
    return picked


def kl(before: Array, after: Array) -> Array:
    p, q = log_softmax(before), log_softmax(after)
    found: Array = (np.exp(p) * (p - q)).sum(-1)
    return found


def interval(values: Array) -> tuple[float, float, float]:
    """Return mean and 95% interval of (K, N): the variance over samples and that over draws, t of Satterthwaite."""
    draws, n = values.shape
    parts = [(values.mean(0).var(ddof=1) / n, n - 1)]
    if draws > 1:
        parts.append((values.mean(1).var(ddof=1) / draws, draws - 1))
    variance = sum(part for part, _ in parts)
    if variance < 1e-25:
        return values.mean(), values.mean(), values.mean()
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    return values.mean(), values.mean() - half, values.mean() + half
