"""Which figures a run that is to be made can have: a sentence about any other would end undecided after training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from bnlab.claims.cells import DEPTH, arm_of
from bnlab.claims.evaluate import free_keys
from bnlab.claims.language import Exact, Expression, Quantity, Rate, Slope, leaves, quantities
from bnlab.claims.rule import Part
from bnlab.compare.arms import text_of
from bnlab.compare.deciding import FEWEST_PAIRS
from bnlab.data.dataset import target_of
from bnlab.errors import ConfigError
from bnlab.mechanism import is_read_by_a_meter
from bnlab.metrics import BENCH, CHECK, Metric, find_metric
from bnlab.record.read import Run

OF_EACH_LAYER = ("mean_z", "log_std_ratio")  # in summaries
OF_A_MODEL = (*OF_EACH_LAYER, "initial_share", "gamma_drift", "beta_max", "refresh_ms")
VALIDATED = ("valid_accuracy", "valid_loss", "gen_gap", "area_under_curve", "test_at_best_valid")
Absent = Callable[[Metric, Run, bool], str | None]  # why no such run has it, or, with True, a slope of it over depth


def check_figures(
    expression: Expression, runs: Sequence[Run], best_of: Sequence[str] = (), absent: Absent | None = None
) -> None:
    """Refuse a metric that a queued run of its cell cannot have. Errors: ConfigError that says what it needs.

    `absent` is asked for what hangs on the strategies and the layers of a run.
    """
    for leaf in leaves(expression):
        free = [*free_keys(leaf), *best_of]
        for quantity in quantities(leaf):
            over_depth = isinstance(leaf, Slope) and leaf.over == DEPTH
            if over_depth and quantity.metric not in OF_EACH_LAYER:
                raise ConfigError(f"{leaf}: is no figure of each layer\nthese are: {', '.join(OF_EACH_LAYER)}")
            for run in (run for run in arm_of(quantity, runs, free) if run.state == "queued"):
                _check_figure(quantity, run, bool(best_of))
                metric = find_metric(quantity.metric)
                if absent and hangs_on_a_model(metric) and (reason := absent(metric, run, over_depth)):
                    raise ConfigError(f"{quantity}: {reason}")


def hangs_on_a_model(metric: Metric) -> bool:
    """Return whether the strategies and the layers of a run say if it can have this metric."""
    return metric.name in OF_A_MODEL or is_read_by_a_meter(metric)


def check_seeds(part: Part, runs: Sequence[Run], looks: Sequence[int], where: str = "") -> None:
    """Refuse a sentence on trainings whose interval so few seeds cannot give. Errors: ConfigError."""
    of, fewest = part.sentence.of, FEWEST_PAIRS["t"]
    if looks[-1] >= fewest or isinstance(of, (Exact, Rate)):
        return
    if not all(arm_of(each, runs, [*free_keys(of), *part.best_of])[0].is_bench for each in quantities(of)):
        raise ConfigError(f"{where or f'looks={list(looks)}'}: {fewest} seeds or more can decide {part.sentence}")


def _check_figure(quantity: Quantity, run: Run, chosen: bool) -> None:
    metric = find_metric(quantity.metric)
    if run.is_bench:
        mode = str((run.summary or {})["bench"]["mode"])
        wanted = metric.by.removeprefix(BENCH).strip(" -`")  # of a mode
        if wanted != (mode if mode in ("profile", "workers") else "") and metric.by.startswith(BENCH):
            raise ConfigError(f"{quantity}: is measured with bench.mode={wanted or 'steps'}, and this is {mode}")
        return
    if needed := lacking(metric, run):
        raise ConfigError(f"{quantity}: {needed}")
    if (chosen or metric.kind == "time to target" or metric.name in VALIDATED) and not run.config["data.valid_size"]:
        raise ConfigError(f"{quantity}: data.valid_size=0 leaves no validation split to read it on\nset it above 0")


def lacking(metric: Metric, run: Run) -> str | None:
    """Return what a training or check lacks without which it does not have this metric."""
    if "check.property" in run.config:
        return None if metric.by == CHECK else "is of a training, and this is a check"
    name, _, value = metric.by.rpartition(" ")[2].partition("=")
    now = text_of(run.config.get(name))
    asked = re.findall(r"\w+", now)  # it may be a list
    if value and value not in asked and not (value == "full" and "probe" in asked):
        return f"no run has it with {name}={now}\nset {name}={value}"
    if metric.by and not value:
        return f"is of {metric.by}, and this is a training"
    if metric.kind == "time to target" and target_of(run.config.get("data.name")) is None:
        return f"data={run.config.get('data.name')} has no usual target\ncompare an accuracy in its place"
    if metric.name == "variance_shift" and not run.config.get("model.dropout"):
        return "nothing is dropped\nset model.dropout above 0"
    return None
