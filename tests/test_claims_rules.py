"""The language of gates and claims: what it reads, what it refuses, and how often its verdicts are wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from helpers_claims import arm, bench, run_of
from scipy import stats

from bnlab.claims.cells import check_cells
from bnlab.claims.decide import decide
from bnlab.claims.evaluate import unlearned
from bnlab.claims.language import parse_sentence
from bnlab.claims.rule import Part, parse_rule, parts_of
from bnlab.compare.looks import critical_level
from bnlab.errors import ConfigError
from bnlab.record.read import Run
from bnlab.report.claim_figures import figures_of

BATCH, NONE = "test_accuracy[norm=batch]", "test_accuracy[norm=none]"


def verdict(rule: object, runs: list[Run], looks: tuple[int, ...] = ()) -> tuple[str, str | None]:
    found = decide(parse_rule(rule), runs, looks=looks)
    return found.verdict, found.reason


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    "text",
    [
        "test_accuracy[norm=ghost] - test_accuracy[norm=batch] > -0.3",
        "step_ratio[norm=ghost] < 1.3",
        "train_accuracy[a=1] - valid_accuracy[a=1] - (train_accuracy[b=1] - valid_accuracy[b=1]) > 0.2",
        "steps_to_target[norm=batch] / steps_to_target[norm=none] * step_ratio[norm=batch] < 1",
        "slope(log abs(log_std_ratio[norm=batch]) over depth) > 0.05",
        "slope(log train_seconds[norm=population] over log train_size) in [1.7, 2.2]",
        "rate(learned[norm=batch lr=30] == 0) <= 0.1",
        "exact(acc_gap[norm=instance]) == 0",
        "largest(lr where learned[norm=batch] == 1) / largest(lr where learned[norm=none] == 1) >= 3",
        "test_accuracy[model.widths=[32,32] norm=batch] outside [-1, 1]",
    ],
)
def test_a_sentence_is_read_and_written_again(text: str) -> None:
    sentence = parse_sentence(text)
    assert str(sentence) == text
    assert parse_sentence(str(sentence)) == sentence


def test_signs_may_touch() -> None:
    assert str(parse_sentence("test_loss[a=1]-test_loss[a=2]<-.5")) == "test_loss[a=1] - test_loss[a=2] < -0.5"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__import__('os').system('true') > 1", "no such metric"),
        ("test_accuracy", "must have a comparison"),
        ("test_acuracy > 1", "did you mean test_accuracy?"),
        ("test_accuracy > nan", "must have a number"),
        ("test_accuracy > 1e999", "must have a number"),
        ("test_loss > 1e200", "must have a number"),
        ("test_accuracy in [2, 1]", "two numbers after `in`"),
        ("test_accuracy in 2", "two numbers after `in`"),
        ("test_accuracy > 1 > 2", "nothing more"),
        ("test_accuracy[norm] > 1", "must be KEY=VALUE"),
        ("test_accuracy[norm=batch > 1", "must have `]`"),
        ("test_accuracy; test_loss > 1", "must have a metric, a number or one of"),
        ("(" * 60 + "test_accuracy > 1", "more than 8 brackets"),
        ("test_accuracy > " + "1" * 2000, "at most 1,000 characters"),
        ("rate(learned[a=1] == 1) - rate(learned[a=2] == 1) > 0", "stands alone"),
        ("learned[norm=batch] > 0.5", "learned is 0 or 1"),
        ("exact(test_accuracy[a=1] / test_accuracy[a=2]) > 1", "metrics and their differences"),
        ("", "must be a sentence"),
        (3, "must be a sentence"),
        (f"{BATCH} > 100", f"{BATCH} is from 0 to 100, so it is never > 100\nchoose a number in between"),
        (f"{BATCH} >= 0", "so it is always >= 0"),
        (f"{BATCH} - {NONE} < -100", "from -100 to 100, so it is never < -100"),
        ("rate(learned[norm=batch] == 1) > 90", "is from 0 to 1, so it is never > 90"),
        ("rate(learned[norm=batch] > 1) > 0.5", "learned[norm=batch] is from 0 to 1, so it is never > 1"),
        ("test_loss[norm=batch] / test_loss[norm=none] > 0", "is above 0, so it is always > 0"),
        ("abs(loss_gap[norm=batch]) >= 0", "is 0 or more, so it is always >= 0"),
        ("exact(acc_gap[norm=batch]) < 0", "is from 0 to 100, so it is never < 0"),
        (f"{BATCH} - {BATCH} > 1", f"both sides are {BATCH}\nname another arm"),
        (f"{BATCH} / {BATCH} > 1", f"both sides are {BATCH}\nname another arm"),
        ("test_accuracy[norm=batch seed=0] > 1", "an arm is all of its seeds; leave seed=0 out"),
        ("slope(test_loss[norm=batch] over seed) > 1", "a key other than seed"),
        ("slope(log steps_to_target[norm=batch] over lr) < 0", "steps_to_target is known to the grid of evaluations"),
        ("check_error[norm=batch] < 1", "write exact(check_error[norm=batch])"),
        ("step_ratio[norm=a] - step_ratio[norm=b] < 1", "with / in place of -"),
        ("rate(step_ratio[norm=batch] < 2) > 0.5", "step_ratio is no figure of trainings"),
        ("rate(check_error[norm=batch] < 2) > 0.5", "check_error is no figure of trainings"),
    ],
)
def test_what_is_no_sentence_is_refused_in_words(text: object, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_sentence(text)
    assert said in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"holds": "test_accuracy > 1", "unless": 1}, "rule.unless: no such key"),
        ({"all": [], "any": []}, "must have one of holds, all, any"),
        ({"all": []}, "must be a list of sentences"),
        ({"all": ["test_accuracy > 1", 7]}, "rule.all.1=7: must be a sentence"),
        ({"all": [{"any": [{"all": ["test_accuracy > 1"]}]}]}, "nested more than 2 levels"),
        ({"for": {"norm": "batch"}, "holds": "test_accuracy > 1"}, "rule.for.norm=batch: must be a list"),
        ({"for": {"a": list(range(11)), "b": list(range(11))}, "holds": "test_accuracy > 1"}, "stands for 121 parts"),
        ({"for": {"a": ["x] > 1; ["]}, "holds": "test_accuracy > 1"}, "must be a list of words"),
        ({"holds": "test_accuracy > 1", "best_of": 3}, "rule.best_of=3"),
        ({"all": ["test_accuracy[norm=batch > 1"]}, "rule.all.0: test_accuracy[norm=batch > 1"),
        (["test_accuracy > 1"], "must be a sentence"),
        ({"holds": "test_accuracy > 1", "best_of": "seed"}, "or a list of keys, not seed"),
        ({"all": ["test_accuracy > 1", "test_loss > 1", "test_accuracy>1"]}, "test_accuracy > 1: stands there twice"),
        ({"for": {"model": ["mlp", "cnn"]}, "holds": "test_accuracy > 1"}, "put its {name} into the sentence"),
    ],
)
def test_what_is_no_rule_is_refused_with_its_key(rule: object, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_rule(rule)
    assert said in str(error.value)


def test_for_repeats_a_part_with_each_value() -> None:
    rule = parse_rule({"for": {"model": ["mlp", "cnn"], "norm": ["batch"]}, "label": "{model}",
                       "holds": "step_ratio[model={model} norm={norm}] < 3"})  # fmt: skip
    assert [(part.label, str(part.sentence)) for part in parts_of(rule)] == [
        ("mlp", "step_ratio[model=mlp norm=batch] < 3"),
        ("cnn", "step_ratio[model=cnn norm=batch] < 3"),
    ]


# ---------------------------------------------------------------- cells


def test_a_cell_must_be_one_arm() -> None:
    runs = arm("batch", [0.9] * 3, optim__lr=0.1) + arm("batch", [0.9] * 3, optim__lr=0.2) + arm("none", [0.9] * 3)
    for text, said in (
        ("test_accuracy[norm=batch] > 1", "means 2 arms"),
        ("test_accuracy[norm=bach] > 1", "norm=bach: no run has it"),
        ("test_accuracy[nrm=batch] > 1", "nrm: no run has such a key; did you mean norm?"),
        ("slope(test_accuracy[norm=batch] over lr) > 1", "needs 3 numbers or more; optim.lr is 0.1, 0.2"),
        ("step_ratio[norm=batch] > 1", "is of a bench, and there is none here"),
    ):
        with pytest.raises(ConfigError) as error:
            check_cells(parse_sentence(text).of, runs)
        assert said in str(error.value)
    check_cells(parse_sentence("test_accuracy[norm=batch lr=0.1] - test_accuracy[norm=none] > 1").of, runs)


def test_several_arms_are_named_by_key_and_best_of_helps() -> None:
    runs = arm("batch", [0.9] * 3, optim__lr=0.03) + arm("batch", [0.9] * 3, optim__lr=0.1)
    of = parse_sentence("test_accuracy[norm=batch] > 1").of
    with pytest.raises(ConfigError, match=r"`best_of`; there are: optim.lr=0.03, optim.lr=0.1$"):
        check_cells(of, runs)


def test_a_best_of_two_numbers_is_refused_since_either_is_an_edge() -> None:
    runs = [run for lr in (0.03, 0.1) for run in arm("batch", [0.9] * 3, optim__lr=lr)]
    sentences = ("test_accuracy[norm=batch] > 1", "exact(test_accuracy[norm=batch]) > 1", "rate(learned == 1) > 0")
    for text in (*sentences, "slope(abs(mean_z) over depth) > 0"):
        with pytest.raises(ConfigError, match="and either is at the edge"):
            check_cells(parse_sentence(text).of, runs, ["lr"])
        check_cells(parse_sentence(text).of, runs + arm("batch", [0.9] * 3, optim__lr=0.3), ["lr"])
    words = [run for name in ("mlp", "cnn") for run in arm("batch", [0.9] * 3, model__name=name)]
    check_cells(parse_sentence("test_accuracy > 1").of, words, ["model"])  # names have no edge
    sizes = [run for n in (100, 200, 400) for lr in (0.03, 0.1)
             for run in arm("batch", [0.9] * 3, optim__lr=lr, data__train_size=n)]  # fmt: skip
    with pytest.raises(ConfigError, match="either is at the edge"):
        check_cells(parse_sentence("slope(test_accuracy over train_size) > 0").of, sizes, ["lr"])


def test_runs_on_other_data_of_the_same_name_are_no_arm() -> None:
    runs = [run_of(0, {"test.accuracy": 0.9}), run_of(1, {"test.accuracy": 0.9}, fingerprint="beef")]
    with pytest.raises(ConfigError, match="different data"):
        check_cells(parse_sentence("test_accuracy > 1").of, runs)


# ---------------------------------------------------------------- figures against independent formulas


def test_a_difference_is_student_s_t_over_pairs() -> None:
    a, b = [0.95, 0.96, 0.94, 0.97], [0.93, 0.95, 0.94, 0.94]
    (part,) = decide(parse_rule(f"{BATCH} - {NONE} > 0"), arm("batch", a) + arm("none", b)).parts
    wanted = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (part.low, part.high) == pytest.approx((100 * wanted.low, 100 * wanted.high))
    assert (part.n, part.unit) == (4, "points")
    assert part.estimate == pytest.approx(100 * (np.mean(a) - np.mean(b)))


def test_a_ratio_is_t_of_logarithms() -> None:
    a, b = np.array([2.0, 3.0, 2.5]), np.array([1.0, 1.1, 1.2])
    text = "train_seconds[norm=batch] / train_seconds[norm=none] > 1"
    (part,) = decide(parse_rule(text), arm("batch", a, "train_seconds") + arm("none", b, "train_seconds")).parts
    wanted = stats.ttest_1samp(np.log(a / b), 0).confidence_interval(0.95)
    assert (part.low, part.high) == pytest.approx((math.exp(wanted.low), math.exp(wanted.high)))


def test_an_end_that_bounds_nothing_is_infinite() -> None:
    values = [1e-60, 1.0, 1e60]
    text = "train_seconds[norm=batch] / train_seconds[norm=none] > 1"
    runs = arm("batch", values, "train_seconds") + arm("none", [1.0] * 3, "train_seconds")
    (part,) = decide(parse_rule(text), runs, looks=(3, 5, 8)).parts
    assert (part.verdict, part.high) == ("undecided", math.inf)


def test_a_rate_is_clopper_and_pearson_s_and_counts_runs_that_diverged() -> None:
    runs = [run_of(s, {"train.accuracy": 0.9 if s else 0.2}, norm__name="batch") for s in range(9)]
    runs.append(run_of(9, {"train.accuracy": 0.9}, state="diverged", norm__name="batch"))
    runs.append(run_of(10, {}, state="failed", norm__name="batch"))
    (part,) = decide(parse_rule("rate(learned == 0) <= 0.1"), runs).parts
    wanted = stats.binomtest(2, 10).proportion_ci(0.95)
    assert (part.estimate, part.n) == (0.2, 10)
    assert (part.low, part.high) == pytest.approx((wanted.low, wanted.high))


def test_a_slope_is_least_squares_within_each_seed() -> None:
    rng = np.random.default_rng(0)
    sizes, runs, slopes = np.array([128, 256, 512]), [], []
    for seed in range(4):
        seconds = sizes**2.0 * np.exp(rng.normal(0, 0.1, 3))
        slopes.append(stats.linregress(np.log(sizes), np.log(seconds)).slope)
        runs += [run_of(seed, {"train_seconds": v}, fingerprint=str(n), data__train_size=int(n))
                 for n, v in zip(sizes, seconds, strict=True)]  # fmt: skip
    (part,) = decide(parse_rule("slope(log train_seconds over log train_size) in [1.7, 2.2]"), runs).parts
    wanted = stats.ttest_1samp(slopes, 0).confidence_interval(0.95)
    assert (part.low, part.high) == pytest.approx((wanted.low, wanted.high))


def test_a_slope_over_depth_reads_the_layers() -> None:
    def layers(seed: int) -> dict[str, object]:
        return {"layers": {str(d): {"depth": d, "mean_z": math.exp((0.2 + seed / 100) * d)} for d in range(1, 6)}}

    runs = [run_of(seed, layers(seed)) for seed in range(5)]  # type: ignore[arg-type]
    (part,) = decide(parse_rule("slope(log mean_z over depth) > 0.05"), runs).parts
    assert part.estimate == pytest.approx(0.22)
    assert part.verdict == "confirmed"


def test_the_largest_level_is_known_to_a_step_of_its_ladder() -> None:
    def ladder(name: str, limits: list[float]) -> list[Run]:
        return [run_of(seed, {"train.accuracy": 0.9 if lr <= limit else 0.1}, norm__name=name, optim__lr=lr)
                for seed, limit in enumerate(limits) for lr in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)]  # fmt: skip

    text = "largest(lr where learned[norm=batch] == 1) / largest(lr where learned[norm=none] == 1) >= 2"
    batch, none = [0.8, 1.6, 0.8, 0.8], [0.2, 0.2, 0.1, 0.2]
    (part,) = decide(parse_rule(text), ladder("batch", batch) + ladder("none", none)).parts
    logs = np.log(np.array(batch) / np.array(none))
    wanted = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    step = math.log(2)  # half a step of each
    assert (part.low, part.high) == pytest.approx((math.exp(wanted.low - step), math.exp(wanted.high + step)))
    edge = decide(parse_rule(text), ladder("batch", [9.0] * 4) + ladder("none", none))
    assert (edge.verdict, edge.reason) == ("undecided", "edge")


def test_a_bench_is_widened_by_its_second_copy() -> None:
    runs = [bench("none", (1, 1, 1), (0.9, 1.2)), bench("batch", (1.3, 1.2, 1.4), (0.9, 1.2))]
    (part,) = decide(parse_rule("step_ratio[norm=batch] < 3"), runs).parts
    assert (part.estimate, part.low, part.high) == pytest.approx((1.3, 1.2 * 0.9, 1.4 * 1.2))
    assert part.verdict == "confirmed"
    assert verdict("step_ratio[norm=batch] < 1.5", runs) == ("undecided", "clock")


def test_times_of_runs_that_ran_at_once_decide_nothing() -> None:
    seconds = {"batch": [1.0, 1.1, 1.2], "none": [2.0, 1.9, 2.3]}
    runs = [run for name, values in seconds.items() for run in arm(name, values, "train_seconds")]
    rates = [run for lr in (0.1, 0.2, 0.4) for run in arm("batch", [lr] * 3, "train_seconds", optim__lr=lr)]
    for text, its, alone in (
        ("train_seconds[norm=batch] / train_seconds[norm=none] < 1", runs, ("confirmed", None)),
        ("rate(train_seconds[norm=batch] < 1.5) > 0.1", runs, ("confirmed", None)),
        ("largest(lr where train_seconds[norm=batch] < 0.3) in [0.2, 0.4]", rates, ("undecided", "few")),
    ):
        at_once = [replace(run, is_beside=True) for run in its]
        assert (verdict(text, its), verdict(text, at_once)) == (alone, ("undecided", "clock"))
    accuracies = [replace(run, is_beside=True) for run in arm("batch", [0.9, 0.91, 0.92])]
    assert verdict("test_accuracy[norm=batch] > 80", accuracies) == ("confirmed", None)


def test_seconds_are_steps_times_the_ratio_of_a_bench() -> None:
    steps = {"batch": [100.0, 110.0, 120.0], "none": [200.0, 190.0, 230.0]}
    runs = [run for name, values in steps.items() for run in arm(name, values, "train_seconds")]
    runs += [bench("none", (1, 1, 1), (1, 1)), bench("batch", (1.2, 1.1, 1.3), (1, 1))]
    text = "train_seconds[norm=batch] / train_seconds[norm=none] * step_ratio[norm=batch] < 1"
    (part,) = decide(parse_rule(text), runs).parts
    logs = np.log(np.array(steps["batch"]) / np.array(steps["none"]))
    center, wanted = logs.mean(), stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    high = math.hypot(wanted.high - center, math.log(1.3 / 1.2))
    assert part.estimate == pytest.approx(math.exp(center) * 1.2)
    assert part.high == pytest.approx(math.exp(center) * 1.2 * math.exp(high))


def test_an_exact_value_is_its_own_interval() -> None:
    assert verdict("exact(acc_gap) == 0", arm("instance", [0.0, 0.0], "test.acc_gap")) == ("confirmed", None)
    assert verdict("exact(acc_gap) == 0", arm("instance", [0.0, -1e-9], "test.acc_gap")) == ("refuted", None)


def test_n_counts_what_the_figure_is_of() -> None:
    """Seeds, runs, rounds or blocks; the error of a property of `bnlab check` is of no runs."""
    seeds = arm("batch", [0.91, 0.93, 0.96])
    checked = [run_of(0, {"check": 1e-9}, norm__name="batch", check__property="merged")]
    timed = [bench("none", (1, 1, 1)), bench("batch", (1.3, 1.2, 1.4))]
    cases = {
        "test_accuracy[norm=batch] > 50": (seeds, "3 seeds"),
        "rate(test_accuracy[norm=batch] > 92) > 0.5": (seeds, "3 runs"),
        "exact(test_accuracy[norm=batch]) <= 99": (seeds, "3 seeds"),
        "exact(check_error[property=merged]) <= 1e-6": (checked, "1.0e-9"),
        "step_ratio[norm=batch] < 3": (timed, "50 rounds"),
    }
    for text, (runs, wanted) in cases.items():
        (part,) = decide(parse_rule(text), runs).parts
        assert figures_of(part).rpartition(", ")[2] == wanted


def test_arms_that_learned_nothing_are_named() -> None:
    found = {"test.accuracy": 0.5}
    runs = [run_of(s, found | {"train.accuracy": 0.1 if s < 2 else 0.9}, norm__name="batch") for s in range(3)]
    runs += [run_of(s, found | {"train.accuracy": 0.9}, norm__name="none") for s in range(3)]
    runs += [bench("none", (1, 1, 1)), bench("batch", (1.3, 1.2, 1.4))]
    for text in (f"{BATCH} - {NONE} > 1", f"exact({BATCH}) < 1", f"{BATCH} / {NONE} * step_ratio[norm=batch] < 2"):
        assert list(unlearned(parse_sentence(text).of, runs)) == ["not learned: norm=batch (2 of 3 runs)"]
    for text in (f"{NONE} > 1", "rate(learned[norm=batch] == 1) > 0.5"):
        assert not list(unlearned(parse_sentence(text).of, runs))


def timed(name: str, reached: list[int], evaluations: int, **config: object) -> list[Run]:
    """Return runs evaluated every 100 steps from step 0 on, that reach the target at these evaluations."""
    runs = [run_of(seed, {}, norm__name=name, **config) for seed in range(len(reached))]
    for run, at in zip(runs, reached, strict=True):
        assert run.summary is not None
        curve = [0.1] * min(at, evaluations) + [0.99] * (evaluations - at)
        run.summary["curve"] = {"step": [100.0 * i for i in range(evaluations)], "valid.accuracy": curve}
    return runs


STEPS = "steps_to_target[norm=batch] / steps_to_target[norm=none]"


def test_a_time_that_was_not_reached_is_cut_where_the_run_ended() -> None:
    late = timed("none", [9] * 3, 3)
    text = "steps_to_target[norm=batch] - steps_to_target[norm=none] < 0"
    (part,) = decide(parse_rule(text), timed("batch", [1] * 3, 3) + late).parts
    assert part.reason == "few"  # -100 in each of three seeds
    assert verdict(text, timed("batch", [9] * 3, 3) + late) == ("undecided", "censored")
    short = timed("none", [5, 9, 99], 10)  # its last never arrives, by step 900
    (part,) = decide(parse_rule(f"{STEPS} > 9"), timed("batch", [40, 41, 42], 60) + short).parts
    assert part.estimate == pytest.approx((900 / 500 * 900 / 900 * 900 / 900) ** (1 / 3))


def test_times_that_were_all_reached_are_cut_nowhere() -> None:
    """Also where the runs of one arm are shorter: 1,000 steps against 6,000."""
    runs = timed("batch", [40, 41, 42], 60) + timed("none", [5, 6, 7], 10)
    (part,) = decide(parse_rule(f"{STEPS} > 4"), runs).parts
    logs = np.log([40 / 5, 41 / 6, 42 / 7])
    wanted = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    below, above = (
        np.log([40 / 39, 41 / 40, 42 / 41]).mean(),
        np.log([5 / 4, 6 / 5, 7 / 6]).mean(),
    )  # evaluations before
    assert part.estimate == pytest.approx(math.exp(logs.mean()))
    assert (part.low, part.high) == pytest.approx((math.exp(wanted.low - below), math.exp(wanted.high + above)))
    assert part.verdict == "confirmed"


def test_a_target_reached_at_the_first_evaluation_bounds_no_ratio_from_below() -> None:
    runs = timed("batch", [1] * 3, 10) + timed("none", [2, 3, 4], 10)
    runs += [bench("none", (1, 1, 1), (1, 1)), bench("batch", (1.2, 1.19, 1.21), (1, 1))]
    for text in (STEPS, f"{STEPS} * step_ratio[norm=batch]"):
        (part,) = decide(parse_rule(f"{text} > 0.3"), runs).parts
        assert (part.verdict, part.low) == ("undecided", 0.0)


def test_a_slope_over_depth_of_those_that_are_left_decides_nothing() -> None:
    layers = {str(depth): {"depth": depth, "mean_z": 2.0**depth} for depth in range(1, 5)}
    runs = [run_of(seed, {"layers": layers}) for seed in range(6)]  # type: ignore[dict-item]
    rule = "slope(log mean_z over depth) > 0.5"
    assert verdict(rule, runs) == ("confirmed", None)
    assert verdict(rule, [*runs, *(run_of(6 + s, {}, state="diverged") for s in range(2))]) == ("undecided", "unpaired")


# ---------------------------------------------------------------- reasons


def test_why_it_is_undecided() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.95, 0.01, 5), rng.normal(0.95, 0.01, 5)
    rule = f"{BATCH} - {NONE} > 0.3"
    assert verdict(rule, arm("batch", a) + arm("none", b)) == ("undecided", "wide")
    assert verdict(rule, arm("batch", a[:2]) + arm("none", b[:2])) == ("undecided", "few")
    constant = arm("batch", [0.98] * 5) + arm("none", [0.95] * 5)
    assert verdict(rule, constant) == ("undecided", "few")  # no spread, and too few for signs
    assert verdict(rule, arm("batch", [0.98] * 8) + arm("none", [0.95] * 8)) == ("confirmed", None)
    assert verdict("test_loss[norm=batch] > 1", arm("batch", a)) == ("undecided", "missing")
    lost = arm("batch", a) + [run_of(5 + s, {}, state="diverged", norm__name="batch") for s in range(2)]
    assert verdict(rule, lost + arm("none", b)) == ("undecided", "unpaired")


def test_the_best_setting_is_chosen_on_validation_and_not_at_an_edge() -> None:
    def grid(name: str, valid: list[float], test: list[float]) -> list[Run]:
        settings = list(zip((0.1, 0.2, 0.4), valid, test, strict=True))
        return [
            run_of(s, {"valid.accuracy": v, "test.accuracy": t * (1 + s / 1000)}, norm__name=name, optim__lr=lr)
            for s in range(4)
            for lr, v, t in settings
        ]

    rule = {"holds": f"{BATCH} - {NONE} in [4, 6]", "best_of": "lr"}
    inner = grid("batch", [0.8, 0.9, 0.7], [0.99, 0.95, 0.99])
    other = grid("none", [0.8, 0.9, 0.7], [0.1, 0.9, 0.1])
    found = decide(parse_rule(rule), inner + other)
    assert found.parts[0].estimate == pytest.approx(5.0, rel=0.01)
    assert found.verdict == "confirmed"
    edge = grid("batch", [0.95, 0.9, 0.7], [0.99, 0.95, 0.99])
    assert verdict(rule, edge + other) == ("undecided", "edge")
    (part,) = decide(parse_rule(rule), edge + other).parts  # with the figures there, for the reader
    pairs = [[100 * t * (1 + s / 1000) for s in range(4)] for t in (0.99, 0.9)]
    wanted = stats.ttest_rel(*pairs).confidence_interval(0.95)
    assert (part.low, part.high) == pytest.approx((wanted.low, wanted.high))
    (part,) = decide(parse_rule(rule), [run for run in edge + other if run.seed < 2]).parts
    assert (part.reason, part.estimate) == ("edge", None)  # too few for an interval


# ---------------------------------------------------------------- combination


@pytest.mark.parametrize(
    ("how", "parts", "wanted"),
    [
        ("all", "cc", "confirmed"), ("all", "cr", "refuted"), ("all", "cu", "undecided"), ("all", "ru", "refuted"),
        ("any", "rr", "refuted"), ("any", "cr", "confirmed"), ("any", "ru", "undecided"), ("any", "cu", "confirmed"),
    ],
)  # fmt: skip
def test_all_and_any(how: str, parts: str, wanted: str) -> None:
    rng = np.random.default_rng(2)
    values = {"c": rng.normal(0.9, 0.001, 5), "r": rng.normal(0.1, 0.001, 5), "u": rng.normal(0.5, 0.1, 5)}
    runs = [run for letter, found in values.items() for run in arm(letter, found)]
    assert (
        verdict({how: [f"test_accuracy[norm={letter}] > {50 + i}" for i, letter in enumerate(parts)]}, runs)[0]
        == wanted
    )


def test_the_level_is_shared_where_one_of_several_parts_settles() -> None:
    rng = np.random.default_rng(3)
    runs = arm("a", rng.normal(0.1, 0.01, 5)) + arm("b", rng.normal(0.9, 0.01, 5))
    rule = ["test_accuracy[norm=a] > 50", "test_accuracy[norm=b] > 50", "exact(test_accuracy[norm=b]) > 50"]
    assert [part.level for part in decide(parse_rule({"all": rule}), runs).parts[:2]] == [0.975, 0.95]
    assert [part.level for part in decide(parse_rule({"any": rule}), runs).parts[:2]] == [0.95, 0.975]


def test_the_strength_of_a_part_is_what_the_whole_rule_has_to_be_asked_at() -> None:
    """A rule that any of three parts refutes shares its level among them; what all confirm does not."""
    rng = np.random.default_rng(8)
    values = {name: rng.normal(mean, 0.03, 5) for name, mean in zip("abc", (0.45, 0.55, 0.56), strict=True)}
    runs = [run for name, found in values.items() for run in arm(name, found)]
    rule = [f"test_accuracy[norm={name}] > 50" for name in values]
    p = {name: stats.ttest_1samp(found, 0.5).pvalue for name, found in values.items()}
    for how, shares in (("all", (3, 1, 1)), ("any", (1, 3, 3))):
        parts = decide(parse_rule({how: rule}), runs).parts
        wanted = [min(1.0, share * each) for share, each in zip(shares, p.values(), strict=True)]
        decided = [part.strength for part in parts if part.verdict != "undecided"]
        assert decided == pytest.approx([each for each in wanted if each <= 0.05])
    assert len(decided) >= 2


def test_how_many_seeds_would_decide_counts_the_looks_and_the_share_of_a_part() -> None:
    values = np.random.default_rng(9).normal(0.505, 0.01, 8)
    runs = arm("a", values) + arm("b", [0.5] * 8)
    rule = {"all": [f"test_accuracy[norm=a] < {limit}" for limit in (50.2, 50.1)]}
    parts = decide(parse_rule(rule), runs, looks=(3, 5, 8)).parts
    for part, limit in zip(parts, (50.2, 50.1), strict=True):
        level = critical_level((3, 5, 8), 0.05 / 2) * 3 / 4  # refuted by any of two, at one look more
        size, sd = abs(100 * values.mean() - limit), 100 * values.std(ddof=1)
        ns = np.arange(2, 999)
        shown = (stats.t.ppf(1 - level / 2, ns - 1) + stats.t.ppf(0.8, ns - 1)) * sd / np.sqrt(ns)
        assert (part.verdict, part.needed) == ("undecided", ns[shown <= size][0])
        assert f"about {part.needed} seeds would decide it" in part.because


def test_swapping_two_arms_swaps_the_verdict() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.97, 0.003, 5), rng.normal(0.92, 0.003, 5)
    rule = f"{BATCH} - {NONE} > 0.3"
    assert verdict(rule, arm("batch", a) + arm("none", b))[0] == "confirmed"
    assert verdict(rule, arm("batch", b) + arm("none", a))[0] == "refuted"


# ---------------------------------------------------------------- against truth

Make = Callable[[np.random.Generator, int, float], list[Run]]


def _accuracy(rng: np.random.Generator, n: int, true: float) -> list[Run]:
    return arm("batch", rng.normal(0.9 + true, 0.01, n)) + arm("none", rng.normal(0.9, 0.01, n))


def _digits(rng: np.random.Generator, n: int, true: float) -> list[Run]:
    """Accuracies near 100 % on 360 images."""
    return arm("batch", rng.binomial(360, 0.975 + true, n) / 360) + arm("none", rng.binomial(360, 0.975, n) / 360)


def _seconds(rng: np.random.Generator, n: int, true: float) -> list[Run]:
    times = np.exp(rng.normal(0, 0.2, (2, n)))
    return arm("batch", math.exp(true) * times[0], "train_seconds") + arm("none", times[1], "train_seconds")


def _four(rng: np.random.Generator, n: int, true: float) -> list[Run]:
    shift = {"a": true, "b": 0.0, "c": 0.0, "d": 0.0}
    return [run for name, by in shift.items() for run in arm(name, rng.normal(0.9 + by, 0.01, n))]


def _sizes(rng: np.random.Generator, n: int, true: float) -> list[Run]:
    return [run_of(seed, {"train_seconds": size**true * math.exp(rng.normal(0, 0.2))}, data__train_size=size)
            for seed in range(n) for size in (100, 200, 400)]  # fmt: skip


def _chance(rng: np.random.Generator, n: int, true: float) -> list[Run]:
    return [run_of(seed, {"train.accuracy": 0.1 if rng.random() < true else 0.9}) for seed in range(n)]


def _ladder(rng: np.random.Generator, n: int, true: float) -> list[Run]:
    levels = [2.0**k for k in range(-2, 5)]
    limits = {"batch": np.exp(rng.normal(true, 0.3, n)), "none": np.exp(rng.normal(0, 0.3, n))}
    return [run_of(seed, {"train.accuracy": 0.9 if lr <= limit else 0.1}, norm__name=name, optim__lr=lr)
            for name, found in limits.items() for seed, limit in enumerate(found) for lr in levels]  # fmt: skip


LARGEST = "largest(lr where learned[norm=batch] == 1) / largest(lr where learned[norm=none] == 1)"
FOUR = "test_accuracy[norm=a] - test_accuracy[norm=b] - (test_accuracy[norm=c] - test_accuracy[norm=d])"
# sentence, how its runs are made, the truth at the margin
CASES: dict[str, tuple[str, Make, float]] = {
    "value": (f"{BATCH} > 90", _accuracy, 0.0),
    "difference": (f"{BATCH} - {NONE} > 1", _accuracy, 0.01),
    "equivalence": (f"{BATCH} - {NONE} in [-1, 1]", _accuracy, 0.01),
    "digits": (f"{BATCH} - {NONE} > 0.5", _digits, 0.005),
    "differences": (f"{FOUR} > 1", _four, 0.01),
    "ratio": ("train_seconds[norm=batch] / train_seconds[norm=none] > 1.5", _seconds, math.log(1.5)),
    "slope": ("slope(log train_seconds over log train_size) > 2", _sizes, 2.0),
    "rate": ("rate(learned == 0) <= 0.3", _chance, 0.3),
    "largest": (f"{LARGEST} >= 3", _ladder, math.log(3)),
}


def sequential(rng: np.random.Generator, case: str, looks: tuple[int, ...], off: float = 0.0) -> str:
    """Return how a claim ends that is looked at while seeds are added, and stops at the first verdict."""
    sentence, make, true = CASES[case]
    runs, rule = make(rng, looks[-1], true + off), parse_rule(sentence)
    for n in looks:
        found = decide(rule, [run for run in runs if run.seed < n], looks=looks).verdict
        if found != "undecided":
            return found
    return "undecided"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_wrong_verdicts_at_the_margin_are_at_most_5_percent(case: str) -> None:
    rng = np.random.default_rng(5)
    ends = [sequential(rng, case, (3, 5, 8)) for _ in range(2000)]
    assert max(ends.count("confirmed"), ends.count("refuted")) <= 100


@pytest.mark.parametrize("case", ["difference", "rate"])
def test_wrong_verdicts_are_rare(case: str) -> None:
    rng = np.random.default_rng(6)
    ends = [sequential(rng, case, (3, 5)) for _ in range(60)]
    assert min(stats.binomtest(ends.count(v), 60, 0.05, "greater").pvalue for v in ("confirmed", "refuted")) > 1e-3


def test_undecided_falls_as_seeds_are_added() -> None:
    def undecided(n: int) -> int:
        rng = np.random.default_rng(7)
        return [sequential(rng, "difference", (n,), off=0.01) for _ in range(60)].count("undecided")

    counts = [undecided(n) for n in (3, 8, 20)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 40 > 20 > counts[-1]


def test_a_rule_of_one_sentence_is_a_part() -> None:
    assert isinstance(parse_rule(f"{BATCH} > 1"), Part)
