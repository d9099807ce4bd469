"""What a strategy costs: `bnlab bench` with every strategy, on random images of MNIST's shape."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.loops import images
from bnlab.bench.arms import contest, read
from bnlab.bench.engine import BenchConfig, Contest, ContestTime, measure
from bnlab.data.bundle import DataBundle

TRAINING_SET = 1024  # images, for the strategies that read it


def contest_of(kind: str, channels_last: bool, norms: str, training_set: int = TRAINING_SET) -> Contest:
    """Return the contest of `norms`, such as `none,batch` or `glob(*)`, without those that do not fit the model."""
    overrides = [f"norm={norms}", f"model={kind}", f"trainer.channels_last={str(channels_last).lower()}"]
    _, (section,), _ = read(overrides)
    split = images(training_set)
    random = DataBundle("random images", tuple("0123456789"), split, split, split, "")
    return contest(replace(section, images=random))


def times(kind: str, channels_last: bool, norms: str, seconds: float) -> ContestTime:
    """Take steps in turn for so many seconds."""
    limits = BenchConfig(precision=1e-6)
    return measure(contest_of(kind, channels_last, norms), limits, seconds, lambda turns, left: None)
