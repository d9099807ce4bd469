"""What a probe comes to, in words: how large the gap is, what dominates it, and what the remedies tried came to.

A sentence says what was measured first, then what that is consistent with. Nothing is advised that was not evaluated.
"""

from __future__ import annotations

import math

from bnlab.compare.statistics import wilson_interval
from bnlab.errors import brief
from bnlab.measure.by_layer import LayerGap
from bnlab.measure.decomposition import BY_STATISTICS, Decomposition, Term
from bnlab.measure.probe_model import OWN_STATISTICS, ProbeResult, Remedy
from bnlab.metrics import MOST_INITIAL_SHARE

SMALL_ACCURACY = 0.005  # a gap below both is called small
SMALL_LOSS = 0.02  # nats
SMALL_FLIPS = 0.005  # share of predictions
USUAL_MOMENTUM = 0.1
HIGH_MOMENTUM = 0.5  # from here on the last batch outweighs all others
FAR_Z, FAR_RATIO = 0.1, 0.1  # medians over channels

_REASONS = {
    "batch noise": "batches of {batch} give other statistics each time",
    "biased variance": "training divides by a variance that is too small by 1/n, n the values of a batch",
    "dropout in statistics": "the running statistics are nearer to those without dropout than to those training takes",
    "augmentation in statistics": "the running statistics are nearer to those of plain images than to those of the "
    "augmented ones that training takes",
    "initial statistics": "{few}: {left} of the initial mean 0 and variance 1 is left{larger}",
    "moving average": "the running statistics are not those of the training set under these weights",
    "dropout": "what is dropped in training is there in evaluation",
    "other": "what depends on the mode, and is neither dropout nor a normalization layer that bnlab can see",
    "augmentation": "training sees augmented images, evaluation plain ones",
}
TO_BE_READ = (
    "If these are moving averages, call the buffers running_mean and running_var and the weight of the new batch "
    "momentum: then it reads them."
)
_NEVER = "the running statistics were never updated (mean 0, variance 1): check that the weights were loaded"
_NOISE = "the layers add noise of their own in training"
_HELD_OUT = "images held out"
_UNKNOWN = "images that no statistics here are taken from (your model may have trained on them)"
_OWN = "training takes each sample's own statistics, evaluation those of all"


def explained(gap: Decomposition, said: str = "") -> str:
    """Return how large the gap of one split is, and which term moves the predictions most.

    A reason that was `said` is left out. Where augmentation or dropout, which are meant to, moves them most, the
    normalization's part follows by itself.
    """
    total = gap.total
    if not math.isfinite(total.loss.value):
        return f"No comparison on {gap.split}: a loss is not finite."
    if total.moved == 0 and not any(term.moved for term in gap.terms):
        return f"Training and evaluation mode agree exactly on {gap.split}: 0 points, 0 nats, no prediction changes."
    sentences = [_size(total, gap.split)]
    defined = [term for term in gap.terms if math.isfinite(term.moved)]
    by_normalization = [term for term in defined if term.name in BY_STATISTICS]
    if not by_normalization and not gap.unread:
        return " ".join([*sentences, f"It is not split into terms: {gap.terms[0].absent}."])
    cause = max(defined, key=_moved)
    if cause.name == "other" and gap.unread:
        sentences.append(f"Most of it is in what bnlab does not read: {gap.unread}. {TO_BE_READ}")
    else:
        sentences.append(f"Most of it is {_with_reason(cause, gap, said)}.")
    if not by_normalization:
        return " ".join(sentences)
    if cause not in by_normalization:
        accuracy, loss = by_statistics(gap)
        part = "The part of the normalization layers that it sees" if cause.name == "other" else "Normalization's part"
        sentences.append(f"{part} is {_points_and_nats(accuracy, loss)}.")
        if not _is_small(accuracy, loss):
            cause = max(by_normalization, key=_moved)
            sentences.append(f"Most of that is {_with_reason(cause, gap, said)}.")
    return " ".join(sentences)


def by_statistics(gap: Decomposition) -> tuple[float, float]:
    """Return the part of the gap, accuracy and loss, that is not dropout's, augmentation's or other."""
    others = [term for term in gap.terms if term.name not in BY_STATISTICS]
    return (
        gap.total.accuracy.value - sum(term.accuracy.value for term in others),
        gap.total.loss.value - sum(term.loss.value for term in others),
    )


def verdict(
    found: ProbeResult, recalibrate: str = "bnlab recalibrate", *, of_own: bool = False, scale: str = ""
) -> str:
    """Return what a reader should know first: the gap on the last split, its cause, and what was tried against it.

    `recalibrate` is the command that does so, with all that names the model; it comes last, on a line of its own.
    `of_own`: bnlab did not train the model, and cannot know on which images it was. `scale`: what `other_scale` says
    of them, which makes all else void.
    """
    gap = found.decompositions[-1]
    if found.again:
        return (
            f"{_size(gap.total, gap.split)} It is not split: evaluation is random, {brief(100 * found.again)} % of the "
            "predictions change where the same images are evaluated once more. That comes of F.dropout without "
            "training=self.training, or of noise drawn in forward."
        )
    if scale:
        return f"{scale} {_size(gap.total, gap.split)} Its causes are those of the wrong scale."
    notes = [note for note in (_not_sound(found), _frozen(found), _called_again(found), _by_batch(found)) if note]
    if _is_at_chance(found, gap):
        here = (
            f"At chance in both modes ({gap.classes:,} classes): check that size, input_norm and the order of the "
            "classes are those of training."
        )
        if _is_never_updated(gap):
            here = f"At chance in both modes ({gap.classes:,} classes), and {_NEVER}."
        came = _size(gap.total, gap.split) if gap.total.moved else explained(gap)
        return " ".join([here, came, *notes])
    sentences = [explained(gap), *notes]
    measured = _measured(found, gap)
    remedy = _remedy(found, gap, recalibrate)
    if remedy and of_own:
        remedy = remedy.replace(_HELD_OUT, _UNKNOWN)
    sentences += [sentence for sentence in (measured, _larger_batches(found, gap), remedy) if sentence]
    left = gap.initial_left or 0.0
    small = _is_small(*by_statistics(gap)) and left <= MOST_INITIAL_SHARE
    main = max(gap.terms, key=lambda term: term.moved if math.isfinite(term.moved) else 0.0)
    if (
        len(sentences) == 1
        and math.isfinite(gap.total.loss.value)
        and small
        and main.name != "other"
        and not gap.unread
        and gap.total.moved
    ):
        sentences.append("Nothing needs to be done.")
    return " ".join(sentences)


def _is_at_chance(found: ProbeResult, gap: Decomposition) -> bool:
    """Return whether no share of right predictions can be told from one in so many classes, or is below it."""
    at = found.gaps[-1]
    shares = [at.eval_accuracy.value, at.eval_accuracy.value + gap.total.accuracy.value]
    if gap.classes < 2 or not math.isfinite(gap.total.loss.value) or not all(map(math.isfinite, shares)):
        return False
    shares += [remedy.change.accuracy_after.value for remedy in found.remedies]
    return all(
        wilson_interval(min(max(share, 0.0), 1.0), at.samples)[0] <= 1 / gap.classes
        for share in shares
        if math.isfinite(share)
    )


# ---------------------------------------------------------------- what was measured beside the gap


def _not_sound(found: ProbeResult) -> str | None:
    if not found.not_sound:
        return None
    return f"In the running statistics of {_layers(found.not_sound)} is NaN, inf or a variance below 0."


def _frozen(found: ProbeResult) -> str | None:
    frozen = [layer for layer in found.layers if layer.frozen]
    if not frozen:
        return None
    worst = max(frozen, key=_off)
    far = "far from" if _is_far(worst) else "near"
    return (
        f"Training leaves {_layers([layer.name for layer in frozen])} in evaluation mode (frozen); the statistics held "
        f"are {far} those of these images ({_figures(worst)})."
    )


def _called_again(found: ProbeResult) -> str | None:
    if found.undefined is None:
        return None
    return (
        "Training normalizes each call by itself, evaluation all of them with one set of statistics pooled over the "
        "calls."
    )


def _by_batch(found: ProbeResult) -> str | None:
    dependent = [each for each in found.agreement if each.flips > SMALL_FLIPS]
    alone = any(math.isnan(each.flips) for each in found.agreement) and "a single image cannot be evaluated, "
    if not dependent:
        return None
    sizes = ", ".join(f"{brief(100 * each.flips)} % in batches of {each.batch_size}" for each in dependent)
    return (
        f"Evaluation depends on the batch it is given: {alone or ''}against all samples at once, {sizes} of the "
        "predictions are others. Evaluate in batches as large and as mixed as those of training."
    )


def _measured(found: ProbeResult, gap: Decomposition) -> str | None:
    """Say how far the running statistics are off, and what that is consistent with, where that matters."""
    term = next(term for term in gap.terms if term.name == "moving average")
    averaging = [layer for layer in found.layers if not layer.frozen and math.isfinite(layer.mean_z)]
    if not averaging or not math.isfinite(term.moved):
        return None
    worst = max(averaging, key=_off)
    low, high = (found.momenta[0], found.momenta[-1]) if found.momenta else (math.nan, math.nan)
    if _is_small(term.accuracy.value, term.loss.value) or not (_is_far(worst) or high >= HIGH_MOMENTUM or low == 0):
        return None
    if high >= HIGH_MOMENTUM:
        why = (
            f"a momentum of {high:g}, the weight of the new batch: they are of the last batch or two. Lower it in "
            f"training ({1 - high:.2g}, if a decay of {high:g} is meant)"
        )
    elif low == 0:
        why = "a momentum of 0: batches are never averaged. Raise it in training"
    else:
        why = "an average of few batches, of earlier weights, or of other images than these"
    return f"The running statistics are off ({_figures(worst)}), which is consistent with {why}."


def _off(layer: LayerGap) -> float:
    """Return how far a layer is off, for the largest."""
    off = max(layer.mean_z / FAR_Z, abs(layer.log_std_ratio) / FAR_RATIO)
    return off if math.isfinite(off) else math.inf


def _is_far(layer: LayerGap) -> bool:
    return _off(layer) >= 1


def _figures(layer: LayerGap) -> str:
    ratio = math.exp(layer.log_std_ratio)
    factor = f"{ratio:.2f}" if 0.1 <= ratio < 10 else brief(ratio)
    return (
        f"layer {layer.name or '-'}: means {brief(layer.mean_z)} sigma, deviations a factor of {factor}, "
        "medians over channels"
    )


# ---------------------------------------------------------------- what was tried


def _larger_batches(found: ProbeResult, gap: Decomposition) -> str | None:
    """Say what the statistics of larger batches come to, where a batch's noise dominates a gap that is not small."""
    noise = gap.terms[0]
    others = [term.moved for term in gap.terms[1:] if term.name in BY_STATISTICS]
    rows = {row.batch_size: row for row in found.curve if row.batch_size is not None}
    now = rows.get(max((size for size in rows if size <= gap.batch_size), default=0))
    if (
        now is None
        or not math.isfinite(gap.total.loss.value)
        or not noise.moved
        or noise.moved < max(others)
        or not gap.reads_batch
    ):
        return None
    if _is_small(noise.accuracy.value, noise.loss.value):
        return None
    best = max(rows.values(), key=lambda row: row.accuracy.value)
    if best.batch_size is None or best.batch_size <= gap.batch_size or best.accuracy.value <= now.accuracy.value:
        return None
    return (
        f"With the statistics of {best.batch_size} images in place of {now.batch_size} these weights have "
        f"{100 * best.accuracy.value:.2f} instead of {100 * now.accuracy.value:.2f} % on {gap.split}: larger batches "
        "or ghosts take that noise out of training."
    )


def _remedy(found: ProbeResult, gap: Decomposition, recalibrate: str) -> str | None:
    """Say what the tried statistics change on the last split: the best that helps, or that recalibrating would harm."""
    if not found.remedies:
        return None
    helping = [remedy for remedy in found.remedies if _helps(remedy)]
    if helping:
        best = min(helping, key=lambda remedy: (remedy.change.loss_after.value, remedy is not found.remedies[0]))
        if best.name == OWN_STATISTICS:
            return f"{_title(best)} ({best.name}) brings {_brings(best)}."
        return f"{_title(best)} brings {_brings(best)}:\n{recalibrate} {best.name}".rstrip()
    first, last = found.remedies[0], found.remedies[-1]
    if last.name == OWN_STATISTICS and last.change.flips.value > 0 and not _is_small(*by_statistics(gap)):
        return f"{_title(last)} ({last.name}) brings {_brings(last)}."
    if not math.isfinite(first.change.loss_after.value):
        return "With the statistics of the training set the loss is not finite either: the weights have diverged."
    if _is_small(*by_statistics(gap)) and (gap.initial_left or 0.0) <= MOST_INITIAL_SHARE:
        return None
    if any(gain < 0 for gain in first.change.clear.values()) and not first.change.small:
        return f"{_title(first)} would harm: it brings {_brings(first)}. Keep the statistics."
    return f"{_title(first)} does not mend it: it brings {_brings(first)}."


def _helps(remedy: Remedy) -> bool:
    """Whether it clearly gains more than what a gap may be, and loses nothing; from no finite loss to one is a gain."""
    change = remedy.change
    if math.isfinite(change.loss_after.value) and not math.isfinite(change.loss_before.value):
        return True
    gains = change.clear.values()
    return bool(gains) and min(gains) > 0 and not _is_small(change.accuracy.value, change.loss.value)


def _title(remedy: Remedy) -> str:
    if remedy.name == OWN_STATISTICS:
        return "Letting evaluation take each sample's own statistics too"
    return f"Recalibrating{' with plain images' if remedy.name == '--plain' else ''}"


def _brings(remedy: Remedy) -> str:
    change = remedy.change
    if not math.isfinite(change.loss_before.value):
        after = f"{100 * change.accuracy_after.value:.2f} %, {change.loss_after.value:.3f} nats"
        return f"{change.split} from no finite loss to {after}, on {change.loss.n:,} {_HELD_OUT}"
    return (
        f"{change.split} from {100 * change.accuracy_before.value:.2f} to {100 * change.accuracy_after.value:.2f} %, "
        f"{change.loss_before.value:.3f} to {change.loss_after.value:.3f} nats, on {change.loss.n:,} {_HELD_OUT}"
    )


# ---------------------------------------------------------------- words


def _layers(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(name or "-" for name in names[:4])
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"layer{'s' if len(names) > 1 else ''} {shown}{more}"


def _moved(term: Term) -> float:
    return term.moved


def _is_small(accuracy: float, loss: float) -> bool:
    return abs(accuracy) < SMALL_ACCURACY and abs(loss) < SMALL_LOSS


def _points_and_nats(accuracy: float, loss: float) -> str:
    return f"{100 * accuracy:+z.2f} points and {loss:+z.4f} nats"


def _size(total: Term, split: str) -> str:
    accuracy, loss = total.accuracy, total.loss
    points = f" ± {100 * accuracy.half:.2f}" if accuracy.half < math.inf else ""
    nats = f" ± {loss.half:.4f}" if loss.half < math.inf else ""
    came = f"{100 * accuracy.value:+z.2f}{points} points and {loss.value:+z.4f}{nats} nats"
    figures = f"{came} in training mode on {split}, {brief(100 * total.flips)} % flips"
    small = _is_small(accuracy.value, loss.value)
    return f"The gap is small: {figures}." if small else f"There is a gap: {figures}."


def _with_reason(cause: Term, gap: Decomposition, said: str) -> str:
    reason = _reason(cause, gap)
    return cause.name if reason in said else f"{cause.name}: {reason}"


def _reason(cause: Term, gap: Decomposition) -> str:
    if cause.name == "batch noise" and not gap.reads_batch:
        return _OWN
    if cause.name == "initial statistics" and _is_never_updated(gap):
        return _NEVER
    reason = _REASONS[cause.name].format(**_facts(gap))
    return f"{reason}, and {_NOISE}" if cause.name == "batch noise" and gap.adds_noise else reason


def _is_never_updated(gap: Decomposition) -> bool:
    return gap.initial_left == 1 and gap.updates == 0


def _facts(gap: Decomposition) -> dict[str, str]:
    updates, larger = f"{gap.updates or 0:,} updates", ""
    few = f"{updates} are too few"
    if gap.momentum is not None:
        power = f" ({1 - gap.momentum:g}^{gap.updates or 0:,})"
        few += power
        if gap.momentum < USUAL_MOMENTUM:
            few = f"momentum {gap.momentum:g} is too small for {updates}{power}"
            larger = f"; train with {USUAL_MOMENTUM:g}"
    left = f"{100 * (gap.initial_left or 0.0):.3g} %"
    return {"batch": f"{gap.batch_size:,}", "left": left, "few": few, "larger": larger}
