"""Population normalization: each channel by its mean and variance over the whole training set.

The layers only normalize. Their statistics are taken by `measure/refresh.py`, layer after layer under the current
weights, and put in from outside: at the start and again before every k-th step. Training does not move them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bnlab.errors import ConfigError
from bnlab.norms.formula import normalize, per_channel
from bnlab.norms.running import RunningLayer
from bnlab.norms.strategy import Facts, NormLayer, OverSamples, Strategy, strategies
from bnlab.schema import param


@strategies.register("population")
@dataclass(frozen=True, kw_only=True)
class Population(OverSamples):
    """Normalize each channel over the whole training set under the current weights.

    y = gamma * (x - E[x]) / sqrt(Var[x] + eps) + beta, Var biased (1/n), over all training samples (and H, W) per
    channel, the layers before it already normalized by theirs: equal to one forward pass of batch normalization with
    the batch = the whole set, as training sees it: augmented as in epoch 0, with one draw of dropout. Training and
    evaluation normalize alike; evaluation takes them anew for the weights it evaluates.

    `through=false` treats the statistics as constants in the gradient, `through=true` gives the exact gradient of the
    loss as a function of the weights; it needs `every=1`. Errors: ConfigError without that.

    The limit of batch normalization for a growing batch (Ioffe and Szegedy 2015, section 3, who ruled it out for its
    cost). Defaults: every 1, all samples, through false, eps 1e-5, affine.
    """

    every: int = param(1, "steps between two refreshes of the statistics", low=1)
    samples: int | None = param(None, "statistics of the first M training samples; null: of all", low=2)
    through: bool = param(False, "let the gradient go through the statistics; needs every=1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.through and self.every > 1:
            raise ConfigError(
                f"norm.every={self.every}: with norm.through=true the statistics must be those of the current weights\n"
                "set norm.every=1 or norm.through=false"
            )

    facts = Facts(keeps_stats=True, cancels_bias=True, cancels_shift=True, cancels_scale=True, reads_training_set=True)

    def layer(self, channels: int) -> NormLayer:
        return TrainingSetLayer(channels, self, every=self.every, samples=self.samples, through=self.through)


class TrainingSetLayer(RunningLayer):
    """Normalizes with statistics that were put in, in training and evaluation; they are never its own batch's."""

    def __init__(
        self,
        channels: int,
        strategy: Strategy,
        *,
        every: int,
        again: bool = True,
        samples: int | None = None,
        through: bool = False,
    ) -> None:
        super().__init__(channels, strategy, momentum=None)
        self.refresh_every = every
        self.evaluated_anew = again
        self.refresh_samples = samples
        self.gradient_through = through

    def values_read(self, x: Tensor) -> None:
        """Its variance is not that of a batch."""

    def initial_left(self) -> None:
        """Its statistics were put in whole."""

    def normalized(self, x: Tensor) -> Tensor:
        if self.leaves is None:
            return self.with_running(x)
        mean, var = (per_channel(leaf, x) for leaf in self.leaves)
        return normalize(x, mean, var, self.gamma, self.beta, self.eps, self.eps_outside)
