"""Metrics of mechanism: what the meters of a run (`bnlab/meters`) read of the network, over its training."""

from __future__ import annotations

from bnlab.metric import ANY, SHARE, Metric, Summary, geometric_mean, mean, metric, over_readings

OF_LAYERS = {"gradient_slope": "gradient", "drift_slope": "mean_drift_1"}  # slopes over depth: of what of each layer


def is_read_by_a_meter(metric: Metric) -> bool:
    """Return whether it is one of these, each with the name of the figure that it is made of."""
    return metric.function.__module__ == __name__


@metric("loss range", "nats", "lower", along=True, by="measure=landscape")
def loss_range(run: Summary) -> float | None:
    """change of the loss along a step of 1/2 to 4 times the learning rate, geometric mean"""
    return geometric_mean(over_readings(run, "landscape", "loss_range"))


@metric("gradient change", "", "lower", along=True, by="measure=landscape")
def grad_change(run: Summary) -> float | None:
    """largest change of the gradient along such a step, geometric mean over readings"""
    return geometric_mean(over_readings(run, "landscape", "grad_change"))


@metric("smoothness", "", "lower", along=True, by="measure=landscape")
def beta_smooth(run: Summary) -> float | None:
    """change of the gradient over the length of the step, geometric mean over readings"""
    return geometric_mean(over_readings(run, "landscape", "beta_smooth"))


@metric("covariate shift", "%", "lower", scale=100, along=True, by="measure=landscape")
def ics(run: Summary) -> float | None:
    """change of a layer's gradient once those before it are updated, median layer, mean"""
    return mean(over_readings(run, "landscape", "ics"))


@metric("lambda max", "", None, bounds=ANY, along=True, by="measure=curvature")
def lambda_max(run: Summary) -> float | None:
    """largest eigenvalue of the Hessian of the loss, mean over readings"""
    return mean(over_readings(run, "curvature", "lambda_max"))


@metric("stable rate", "", "higher", along=True, by="measure=curvature")
def stable_rate(run: Summary) -> float | None:
    """2 over the largest eigenvalue of the Hessian, geometric mean over readings"""
    return geometric_mean(over_readings(run, "curvature", "stable_rate"))


@metric("gradient slope", "", None, bounds=ANY, along=True, by="measure=gradients")
def gradient_slope(run: Summary) -> float | None:
    """slope of log10 of the gradient's length over the layers, mean over readings"""
    return mean(over_readings(run, "gradients", "gradient_slope"))


@metric("gradient noise", "", "lower", along=True, by="measure=gradients")
def gradient_noise(run: Summary) -> float | None:
    """variance of the gradient from batch to batch, geometric mean over readings"""
    return geometric_mean(over_readings(run, "gradients", "gradient_noise"))


@metric("effective rate", "", None, along=True, by="measure=gradients")
def effective_rate(run: Summary) -> float | None:
    """learning rate over |weights|^2, median layer, geometric mean over readings"""
    return geometric_mean(over_readings(run, "gradients", "effective_rate"))


@metric("euler", "", None, bounds=SHARE, along=True, by="measure=gradients")
def euler_residual(run: Summary) -> float | None:
    """|cosine| of weights and their gradient, median layer, largest reading"""
    return max(over_readings(run, "gradients", "euler_residual"), default=None)


@metric("bias gradient", "", None, along=True, by="measure=gradients")
def bias_gradient(run: Summary) -> float | None:
    """length of a bias's gradient over that of its weights, median layer, largest reading"""
    return max(over_readings(run, "gradients", "bias_gradient"), default=None)


@metric("drift index", "widths", "lower", along=True, by="measure=activations")
def drift_index(run: Summary) -> float | None:
    """way of the median of what enters an activation, in widths of its band, mean unit"""
    return mean(over_readings(run, "activations", "drift_index")[-1:])


@metric("mean drift 1", "sigma", "lower", along=True, by="measure=statistics")
def mean_drift_1(run: Summary) -> float | None:
    """change of a mean over the training set from one reading to the next, median layer, mean"""
    return mean(over_readings(run, "statistics", "mean_drift_1"))


@metric("mean drift 10", "sigma", "lower", along=True, by="measure=statistics")
def mean_drift_10(run: Summary) -> float | None:
    """the same from a reading to the tenth after it"""
    return mean(over_readings(run, "statistics", "mean_drift_10"))


@metric("drift slope", "", None, bounds=ANY, along=True, by="measure=statistics")
def drift_slope(run: Summary) -> float | None:
    """slope of the logarithm of that change over depth, mean over readings"""
    return mean(over_readings(run, "statistics", "drift_slope"))


@metric("input drift", "sigma", "lower", along=True, by="measure=statistics")
def input_drift(run: Summary) -> float | None:
    """change of the statistics of the network's input between readings, the largest"""
    return max(over_readings(run, "statistics", "input_drift"), default=None)


@metric("error slope", "", None, bounds=ANY, along=True, by="measure=statistics")
def error_slope(run: Summary) -> float | None:
    """slope of log error of a small batch's means over the log of its samples, median layer"""
    return mean(over_readings(run, "statistics", "error_slope")[-1:])


@metric("variance shift", "log", None, bounds=ANY, along=True, by="measure=statistics")
def variance_shift(run: Summary) -> float | None:
    """log of a variance with dropout on over that with dropout off, where largest, mean"""
    return mean(over_readings(run, "statistics", "variance_shift"))
