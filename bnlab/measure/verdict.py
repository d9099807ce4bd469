"""What a decomposition comes to, in words: how large the gap is, what dominates it, and what to do."""

from __future__ import annotations

import math

from bnlab.measure.decomposition import BESIDE_NORMALIZATION, Decomposition, Term
from bnlab.metrics import MOST_INITIAL_SHARE

SMALL_ACCURACY = 0.005  # a gap below both is called small
SMALL_LOSS = 0.02  # nats

_REASONS = {
    "augmentation": "training sees augmented images, which are harder",
    "dropout": "what is dropped in training is there in evaluation",
    "other": "what depends on the mode, and is neither dropout nor a normalization layer that bnlab can see",
    "batch noise": "batches of {batch} give other statistics each time",
    "biased variance": "training divides by a variance that is too small by 1/n, n the values of a batch",
    "initial statistics": "{left} of the initial statistics (mean 0, variance 1) are left after {updates}",
    "moving average": "the running statistics are of earlier weights and few batches, as training saw them",
}
_REMEDIES = {
    "batch noise": "Take larger batches or ghosts, or a strategy that reads no batch (group, layer)",
    "biased variance": "Take larger batches",
    "initial statistics": "Recalibrate (bnlab recalibrate), raise the momentum, or train longer",
    "moving average": "Recalibrate (bnlab recalibrate), raise the momentum, or end with a lower learning rate",
}
_OWN = "training takes each sample's own statistics, evaluation those of all"
_OWN_REMEDY = "Let evaluation take them too (track_running_stats=False)"


def verdict(gap: Decomposition) -> str:
    """Return a few sentences. The term that moves the predictions most is named as the cause.

    Where augmentation or dropout, which are meant to, moves them most, the normalization's part follows by itself.
    """
    total = gap.total
    if not math.isfinite(total.loss.value):
        return f"No comparison on {gap.split}: a loss is not finite, so the weights or the statistics have diverged."
    if total.moved == 0 and not any(term.moved for term in gap.terms):
        return f"Training and evaluation mode agree exactly on {gap.split}: 0 points, 0 nats, no prediction changes."
    by_normalization = [term for term in gap.terms if term.name not in BESIDE_NORMALIZATION]
    accuracy = sum(term.accuracy.value for term in by_normalization)
    loss = sum(term.loss.value for term in by_normalization)
    small = _is_small(accuracy, loss)
    main = cause = max(gap.terms, key=_moved)
    sentences = [_size(total, gap.split), f"Most of it is {cause.name}: {_reason(cause, gap)}."]
    if cause not in by_normalization:
        cause = max(by_normalization, key=_moved)
        sentences.append(f"Normalization's part is {100 * accuracy:+.2f} points and {loss:+.4f} nats.")
        if not small:
            sentences.append(f"Most of that is {cause.name}: {_reason(cause, gap)}.")
    left = gap.initial_left or 0.0
    if not small or (cause.name == "initial statistics" and left > MOST_INITIAL_SHARE):
        own = cause.name == "batch noise" and not gap.reads_batch
        sentences.append(f"{_OWN_REMEDY if own else _REMEDIES[cause.name]}.")
    elif left <= MOST_INITIAL_SHARE and main.name != "other":
        sentences.append("Nothing needs to be done.")
    if left > MOST_INITIAL_SHARE and cause.name != "initial statistics":
        sentences.append(f"Besides, {_REASONS['initial statistics'].format(**_facts(gap))}: recalibrate.")
    return " ".join(sentences)


def _moved(term: Term) -> float:
    return term.moved


def _is_small(accuracy: float, loss: float) -> bool:
    return abs(accuracy) < SMALL_ACCURACY and abs(loss) < SMALL_LOSS


def _size(total: Term, split: str) -> str:
    points, nats = 100 * total.accuracy.value, total.loss.value
    figures = f"{points:+.2f} points and {nats:+.4f} nats in training mode on {split}, {100 * total.flips:.2g} % flips"
    small = _is_small(total.accuracy.value, total.loss.value)
    return f"The gap is small: {figures}." if small else f"There is a gap: {figures}."


def _reason(cause: Term, gap: Decomposition) -> str:
    if cause.name == "batch noise" and not gap.reads_batch:
        return _OWN
    return _REASONS[cause.name].format(**_facts(gap))


def _facts(gap: Decomposition) -> dict[str, str]:
    updates = f"{gap.updates or 0:,} updates"
    if gap.momentum is not None:
        updates += f" ({1 - gap.momentum:g}^{gap.updates or 0:,})"
    return {"batch": f"{gap.batch_size:,}", "left": f"{100 * (gap.initial_left or 0.0):.3g} %", "updates": updates}
