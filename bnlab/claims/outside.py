"""What the pages of the claims say or ask that no claim answers, with the reason: a scorecard names it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outside:
    """Words of a source that are out of scope, and why."""

    quote: str
    source: str
    because: str


OUTSIDE = (
    Outside(
        "Is batch normalization an absolute must for GAN training success?",
        "003",
        "bnlab trains classifiers; a pair of networks against each other has no accuracy to compare",
    ),
    Outside(
        "closer in spirit to the good old Divisive Normalization technique from the 90s",
        "003",
        "a likeness of ideas, which no run confirms or refutes",
    ),
    Outside(
        "Is batch normalization over hyped for training deep neural networks?",
        "003",
        "no claim of its own: all of these together are the answer",
    ),
)
