"""Why a model behaves differently in evaluation: its total gap as a sum of causes.

The same weights are evaluated again and again on the same samples, each time with one cause less:

training mode as it is
  - augmentation            the images as they are
  - dropout                 only the normalization layers as in training
  - batch noise             statistics of the training set in place of each batch's, the variance still too small by
                            (n - 1)/n as that of a batch of n values is on average
  - biased variance         the variance in full
  - initial statistics      mixed with the share of mean 0 and variance 1 that the moving average still has
  - moving average          the running statistics: what else there is in them, above all of earlier weights
evaluation mode

Each term is the difference of two neighbours, so that they add up to the total. How far a term moves the predictions is
the mean KL divergence between the two; unlike a difference of losses it cannot cancel, so it tells which one dominates.
"""

from __future__ import annotations

from dataclasses import dataclass

from bnlab.measure.interval import Interval

SMALL_ACCURACY = 0.005  # a total gap below both is called small
SMALL_LOSS = 0.02  # nats
DRAWS = 8  # of batches, for everything that depends on batch mates


@dataclass(frozen=True)
class Term:
    """One cause: accuracy and loss before it is taken away minus after."""

    name: str
    accuracy: Interval  # a share, not points
    loss: Interval  # nats
    moved: float  # mean KL(before || after) in nats
    flips: float  # share of predictions that change
    absent: str | None = None  # why it is 0 without a measurement: "the model has no dropout"


@dataclass(frozen=True)
class Decomposition:
    """The total gap, training mode minus evaluation mode, and its terms in the order above."""

    split: str
    terms: tuple[Term, ...]
    total: Term
    batch_size: int
    initial_left: float | None  # the largest share of the initial statistics among the layers; None: they keep none
    updates: int | None  # of that layer's running statistics
    momentum: float | None  # of that layer
