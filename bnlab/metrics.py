"""Every metric of the tables, declared once: name, unit, direction, meaning, and how it follows from a run's summary.

Adding one is adding a function here; its docstring is the line that `bnlab list metrics` prints. No torch here.

What a metric is stands in `metric.py`; those of meters are in `mechanism.py`.

A split or a curve that a run does not have (no validation samples, too few steps to time one) gives None.

The target of the times to a target is an accuracy on the validation split. Its default is a table by data set, fixed
beforehand: a target taken from the runs at hand ("95% of the best") would move whenever an arm is added, and would let
the arms choose their own yardstick. A data set that is not in the table has no default; `--target` gives one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from bnlab.errors import brief, count_of
from bnlab.metric import (
    ANY,
    SHARE,
    Censored,
    Direction,
    Metric,
    Summary,
    curve_of,
    final,
    find_metric,
    is_of_the_end,
    metric,
    metrics,
    number,
    of_farthest_layer,
    of_part,
)

BENCH = "`bnlab bench"
CHECK = "the lines `check` of a claim"
IN_FULL = "`bnlab probe` or measure=full"
LEARNED = 0.5  # training accuracy
MOST_INITIAL_SHARE = 0.01  # of the initial statistics left at the end of a run, before it is worth a warning

__all__ = [
    "ANY",
    "BENCH",
    "CHECK",
    "MOST_INITIAL_SHARE",
    "Censored",
    "Direction",
    "Metric",
    "Summary",
    "bench_width",
    "end_of",
    "evaluation_before",
    "find_metric",
    "is_of_the_end",
    "metrics",
    "not_learned",
    "share_left",
    "step_ratio_interval",
    "uses_running",
    "warnings_of",
]


# Accuracy and loss, in evaluation mode.


@metric("test acc", "%", "higher", scale=100, curve="test.accuracy", bounds=SHARE, split="test")
def test_accuracy(run: Summary) -> float | None:
    """accuracy on the test set at the last evaluation"""
    return final(run, "test.accuracy")


@metric("valid acc", "%", "higher", scale=100, curve="valid.accuracy", bounds=SHARE, split="valid")
def valid_accuracy(run: Summary) -> float | None:
    """accuracy on the validation split at the last evaluation"""
    return final(run, "valid.accuracy")


@metric("train acc", "%", "higher", scale=100, curve="train.accuracy", bounds=SHARE, split="train")
def train_accuracy(run: Summary) -> float | None:
    """accuracy on a fixed sample of the training split at the last evaluation"""
    return final(run, "train.accuracy")


@metric("test at best valid", "%", "higher", scale=100, curve="test.accuracy", bounds=SHARE, split="test", along=True)
def test_at_best_valid(run: Summary) -> float | None:
    """test accuracy at the first evaluation with the best validation accuracy: chosen on validation, read on test"""
    pairs = zip(curve_of(run, "valid.accuracy"), curve_of(run, "test.accuracy"), strict=False)
    valid = [(v, t) for v, t in pairs if math.isfinite(v)]
    return max(valid, key=lambda pair: pair[0])[1] if valid else None


@metric("test loss", "nats", "lower", curve="test.loss")
def test_loss(run: Summary) -> float | None:
    """mean cross-entropy on the test set at the last evaluation"""
    return final(run, "test.loss")


@metric("ECE", "points", "lower", scale=100, curve="test.ece", bounds=SHARE)
def ece(run: Summary) -> float | None:
    """expected calibration error on the test set at the last evaluation: 15 equal bins of the top probability"""
    return final(run, "test.ece")


@metric("valid loss", "nats", "lower", curve="valid.loss")
def valid_loss(run: Summary) -> float | None:
    """mean cross-entropy on the validation split at the last evaluation"""
    return final(run, "valid.loss")


@metric("train loss", "nats", "lower", curve="train.loss")
def train_loss(run: Summary) -> float | None:
    """mean cross-entropy on a fixed sample of the training split at the last evaluation"""
    return final(run, "train.loss")


# Convergence.


@metric("learned", "", "higher", bounds=SHARE, of_diverged=True)
def learned(run: Summary) -> float | None:
    """1 if the training accuracy at the last evaluation is 50 % or more, of two classes 75 %; 0 if not, or no end"""
    if run.get("state") in ("diverged", "refused"):
        return 0.0
    accuracy = final(run, "train.accuracy")
    return None if accuracy is None else float(accuracy >= _least(run))


def _least(run: Summary) -> float:
    environment = run.get("environment")
    classes = of_part(environment, "data", "classes") if isinstance(environment, Mapping) else None
    return max(LEARNED, 1.5 / classes) if classes else LEARNED  # of two classes a guess has 50 % right


def not_learned(run: Summary) -> str:
    """Return what to say of a run that came to its end and did not learn, with what that means; of others nothing."""
    is_lost = run.get("state") == "done" and metrics["learned"].derive(run, None) == 0.0
    return f"not learned: under {100 * _least(run):g} % in training" if is_lost else ""


@metric("gen gap", "points", "lower", scale=100, bounds=(-1.0, 1.0))
def gen_gap(run: Summary) -> float | None:
    """accuracy on the fixed sample of the training split minus that on the validation split, at the last evaluation"""
    train, valid = final(run, "train.accuracy"), final(run, "valid.accuracy")
    return None if train is None or valid is None else train - valid


@metric("gamma drift", "", None)
def gamma_drift(run: Summary) -> float | None:
    """RMS of gamma - 1 over all channels of all norm layers, at the end"""
    return of_part(run, "affine", "gamma_drift")


@metric("beta max", "", None)
def beta_max(run: Summary) -> float | None:
    """largest |beta| over all channels of all norm layers, at the end"""
    return of_part(run, "affine", "beta_max")


@metric("steps to target", "steps", "lower", kind="time to target", curve="valid.accuracy", axis="step")
def steps_to_target(run: Summary, target: float) -> float | Censored | None:
    """optimizer steps to the first evaluation whose validation accuracy reaches the target"""
    return _first_reaching(run, target, "step")


@metric("epochs to target", "epochs", "lower", kind="time to target", curve="valid.accuracy", axis="epoch")
def epochs_to_target(run: Summary, target: float) -> float | Censored | None:
    """passes over the training split to the first evaluation whose validation accuracy reaches the target"""
    return _first_reaching(run, target, "epoch")


@metric("seconds to target", "s", "lower", kind="time to target", curve="valid.accuracy", axis="seconds")
def seconds_to_target(run: Summary, target: float) -> float | Censored | None:
    """seconds of training, evaluation not counted, to the first evaluation that reaches the target"""
    return _first_reaching(run, target, "seconds")


@metric("mean valid acc", "%", "higher", scale=100, curve="valid.accuracy", bounds=SHARE, along=True)
def area_under_curve(run: Summary) -> float | None:
    """area under validation accuracy over steps (trapezoids), divided by the steps: the mean accuracy on the way"""
    points = list(zip(curve_of(run, "step"), curve_of(run, "valid.accuracy"), strict=False))
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return None
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))
    return area / (points[-1][0] - points[0][0])


# Train-versus-eval discrepancy, on the test probe.


@metric("gap train-eval", "points", None, scale=100, curve="test.acc_gap", bounds=(-1.0, 1.0))
def acc_gap(run: Summary) -> float | None:
    """accuracy with the statistics of training minus that with those of evaluation, same weights and plain samples"""
    return final(run, "test.acc_gap")


@metric("loss gap", "nats", None, curve="test.loss_gap", bounds=ANY)
def loss_gap(run: Summary) -> float | None:
    """loss with the statistics of training minus that with those of evaluation, same weights and plain samples"""
    return final(run, "test.loss_gap")


@metric("flips", "%", "lower", scale=100, curve="test.flip_rate", bounds=SHARE)
def flip_rate(run: Summary) -> float | None:
    """share of samples whose predicted class changes between the statistics of training and those of evaluation"""
    return final(run, "test.flip_rate")


@metric("KL", "nats", "lower", curve="test.kl")
def kl(run: Summary) -> float | None:
    """mean KL(p_train || p_eval): how far the predictions move between the two, also where losses cancel"""
    return final(run, "test.kl")


@metric("logit RMS", "%", "lower", scale=100, curve="test.logit_rms")
def logit_rms(run: Summary) -> float | None:
    """RMS of the logit difference between the two over the RMS of the logits in evaluation"""
    return final(run, "test.logit_rms")


@metric("mate noise", "%", "lower", scale=100, curve="test.mate_noise", by=IN_FULL)
def mate_noise(run: Summary) -> float | None:
    """standard deviation of a sample's logits over other batch mates, over their RMS"""
    return final(run, "test.mate_noise")


def _term(cause: str, meaning: str) -> None:
    """Declare by how much one cause of the gap moves predictions."""

    def derive(run: Summary) -> float | None:
        return final(run, f"test.term_{cause}_kl")

    derive.__name__ = f"term_{cause}"
    derive.__doc__ = f"KL between predictions by {meaning}"
    metric(cause.replace("_", " "), "nats", "lower", by=IN_FULL)(derive)


_term("batch_noise", "a batch's statistics and by the training set's")
_term("biased_variance", "the biased variance and by the unbiased")
_term("initial_statistics", "statistics with what is left of mean 0 and variance 1 and by those without")
_term("moving_average", "the training set's statistics and by the averaged")


@metric("flips by size", "%", "lower", scale=100, bounds=SHARE, by=IN_FULL)
def size_flips(run: Summary) -> float | None:
    """share of predictions that change with the size of evaluation's batches"""
    return final(run, "test.size_flips")


@metric("error by size", "ppm", "lower", scale=1e6, by=IN_FULL)
def size_error(run: Summary) -> float | None:
    """largest logit difference between evaluation's batches of 1, 2, 7, 64 and all, over the RMS of the logits"""
    return final(run, "test.size_error")


@metric("images needed", "images", "lower", by="`bnlab recalibrate SWEEP`")
def samples_needed(run: Summary) -> float | None:
    """training samples from which on new statistics are as good as those of all"""
    return final(run, "train.samples_needed")


@metric("mean z", "sigma", "lower")
def mean_z(run: Summary) -> float | None:
    """|running mean - mean| / sigma of the layer where it is largest: its median channel, on the test probe"""
    return of_farthest_layer(run, "mean_z")


@metric("log std ratio", "log", None, bounds=ANY)
def log_std_ratio(run: Summary) -> float | None:
    """log(running sigma / sigma) of the layer where it is farthest from 0: its median channel, on the test probe"""
    return of_farthest_layer(run, "log_std_ratio")


@metric("gap cost", "%", "lower", scale=100)
def discrepancy_share(run: Summary) -> float | None:
    """seconds that telling training mode from evaluation mode took, over the seconds of training"""
    return number(run, "discrepancy_share")


@metric("initial share", "%", "lower", scale=100, bounds=SHARE)
def initial_share(run: Summary) -> float | None:
    """share of the initial mean 0 and variance 1 left in the running statistics at the end"""
    return share_left(run)


@metric("error", "", "lower", by=CHECK)
def check_error(run: Summary) -> float | None:
    """error of a property of `bnlab check`, over the RMS of the output"""
    return number(run, "check")


# Time and size.


@metric("step ms", "ms", "lower")
def step_ms(run: Summary) -> float | None:
    """median time of a step: forward, backward, optimizer; warm-up left out"""
    return of_part(run, "step_ms", "median")


@metric("step ratio", "", "lower", by=f"{BENCH}`")
def step_ratio(run: Summary) -> float | None:
    """median over the rounds of a bench of the arm's step over the baseline's in the same round"""
    return of_part(run, "bench", "ratio")


@metric("epoch ms", "ms", "lower", by=f"{BENCH}`")
def epoch_ms(run: Summary) -> float | None:
    """time of the steps of an epoch"""
    return of_part(run, "bench", "epoch_ms")


@metric("norm share", "%", "lower", scale=100.0, by=f"{BENCH} --profile`")
def norm_share(run: Summary) -> float | None:
    """share of the norms, both passes, in the operations of a step"""
    return of_part(run, "bench", "norm_share")


@metric("norm forward", "%", "lower", scale=100.0, by=f"{BENCH} --profile`")
def norm_forward_share(run: Summary) -> float | None:
    """share of statistics and normalization in the operations of a step"""
    return of_part(run, "bench", "norm_forward_share")


@metric("norm backward", "%", "lower", scale=100.0, by=f"{BENCH} --profile`")
def norm_backward_share(run: Summary) -> float | None:
    """share of the backward pass of the norms in the operations of a step"""
    return of_part(run, "bench", "norm_backward_share")


@metric("collectives", "", "lower", by=f"{BENCH} --workers`")
def collectives(run: Summary) -> float | None:
    """how often all workers meet in a step in order to normalize"""
    return of_part(run, "bench", "collectives")


@metric("exchanged KB", "KB", "lower", by=f"{BENCH} --workers`")
def exchanged_kb(run: Summary) -> float | None:
    """1,000 bytes that one worker hands to the others in a step in order to normalize"""
    return of_part(run, "bench", "exchanged_kb")


@metric("wait ms", "ms", "lower", bounds=ANY, by=f"{BENCH} --workers`")
def wait_ms(run: Summary) -> float | None:
    """by how much a step takes longer while another worker is late, gradients not averaged"""
    return of_part(run, "bench", "wait_ms")


@metric("refresh ms", "ms", "lower")
def refresh_ms(run: Summary) -> float | None:
    """median time of a refresh of training-set statistics, which is part of its step"""
    return number(run, "refresh_ms")


@metric("images/s", "1/s", "higher")
def images_per_second(run: Summary) -> float | None:
    """training images a second, preparation of the batches included"""
    return number(run, "images_per_second")


@metric("seconds", "s", "lower")
def train_seconds(run: Summary) -> float | None:
    """seconds of training; evaluation and recording are not counted"""
    return number(run, "train_seconds")


@metric("parameters", "", None)
def num_parameters(run: Summary) -> float | None:
    """trainable parameters of the network"""
    return number(run, "num_parameters")


@metric("fold error", "ppm", "lower", scale=1e6, curve="test.fold_error", by="eval.stats=folded")
def fold_error(run: Summary) -> float | None:
    """largest logit difference after the norms are merged into the weights, over the RMS of the logits"""
    return final(run, "test.fold_error")


def step_ratio_interval(run: Summary) -> tuple[float, float] | None:
    """Return the bootstrap 95% interval, over the rounds of the bench, that `step_ratio` has; None without one."""
    low, high = of_part(run, "bench", "ratio_low"), of_part(run, "bench", "ratio_high")
    return None if low is None or high is None else (low, high)


def bench_width(run: Summary) -> float:
    """Return the width of the interval of a bench's ratio over the ratio; of a baseline, that of its control."""
    for figure in ("ratio", "control"):
        value, low, high = (of_part(run, "bench", name) for name in (figure, f"{figure}_low", f"{figure}_high"))
        if value and low is not None and high is not None and high > low:
            return (high - low) / value
    return math.inf


def share_left(run: Summary) -> float | None:
    """Return the share of the initial statistics left at the end; None for a strategy without running statistics."""
    return of_part(run, "initial_share", "share_left")


def uses_running(stats: object) -> bool:
    """Return whether evaluation with these `eval.stats` depends on running statistics; runs of old have none."""
    return stats in (None, "running", "mixed", "folded")


def warnings_of(run: Summary, stats: object = None) -> list[str]:
    """Return what in a run's figures and data makes it doubtful under these `eval.stats`, one sentence each."""
    warnings = _data_warnings(run)
    bare = run.get("unnormalizable_batches")
    if isinstance(bare, int) and bare:
        warnings.append(
            f"{count_of(bare, 'batch')} had one value a channel, normalized with the running statistics; "
            "take a larger data.batch_size, or data.last_batch=merge"
        )
    left = share_left(run)
    if left is not None and left > MOST_INITIAL_SHARE and uses_running(stats):
        warnings.append(
            f"{brief(100 * left)} % of the initial statistics (mean 0, variance 1) are left in the running ones; "
            "train longer, or give new batches more weight"
        )
    return warnings


def _data_warnings(run: Summary) -> list[str]:
    """Return what was odd about the user's own images; other data sets have no such part in their environment."""
    environment = run.get("environment")
    data = environment.get("data") if isinstance(environment, Mapping) else None
    doubts = data.get("warnings") if isinstance(data, Mapping) else None
    return [doubt for doubt in doubts if isinstance(doubt, str)] if isinstance(doubts, list) else []


def _first_reaching(run: Summary, target: float, axis: str) -> float | Censored | None:
    points = list(zip(curve_of(run, axis), curve_of(run, "valid.accuracy"), strict=False))
    if not points:
        return None
    return next((at for at, accuracy in points if accuracy >= target), Censored(points[-1][0]))


def evaluation_before(run: Summary, metric: Metric, time: float) -> float:
    """Return when the last evaluation before `time` was: a target reached at `time` was not reached there."""
    return max((at for at in curve_of(run, metric.axis or "") if at < time), default=time)


def end_of(run: Summary, metric: Metric) -> float:
    """Return when the run ended, in the unit of a time to a target."""
    return max(curve_of(run, metric.axis or ""), default=0.0)


from bnlab import mechanism  # noqa: E402, F401  last in every list
