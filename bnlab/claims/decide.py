"""Verdicts: confirmed where a whole interval lies in a sentence's region, refuted where it lies outside of it.

Anything else is undecided, with a reason. The level is shared beforehand. `all` confirms without a correction, since
every part has to hold (intersection-union), and refutes through any of its k parts, so that their refuting intervals
are at 1 - alpha / k; `any` the other way round. An exact part takes no share. Several looks at growing numbers of seeds
are together at alpha (`compare/deciding.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bnlab.claims.evaluate import evidence_of
from bnlab.claims.evidence import Evidence, Sample, Timed, Undecidable
from bnlab.claims.language import Difference, Exact, Expression, Largest, Quantity, Rate, Ratio, Region, Sentence, Slope
from bnlab.claims.outcome import ALPHA, PartVerdict, RuleVerdict, Verdict
from bnlab.claims.rule import Combination, Part, Rule
from bnlab.compare.statistics import SMALLEST_P, pairs_needed, t_tails
from bnlab.errors import ConfigError
from bnlab.interval import Interval
from bnlab.metrics import find_metric
from bnlab.record.read import Run


@dataclass(frozen=True)
class _Levels:
    """At which levels a part confirms and refutes."""

    confirm: float
    refute: float

    def of_parts(self, rule: Combination) -> _Levels:
        count = max(1, sum(not (isinstance(part, Part) and part.is_exact) for part in rule.parts))
        if rule.how == "all":
            return _Levels(self.confirm, self.refute / count)
        return _Levels(self.confirm / count, self.refute)


def decide(rule: Rule, runs: Sequence[Run], looks: tuple[int, ...] = ()) -> RuleVerdict:
    """Return what runs say of a rule; `looks` are the numbers of seeds at which it is looked at in all.

    Errors: ConfigError for a cell that is no arm of these runs.
    """
    verdict, parts = _decide(rule, runs, _Levels(ALPHA, ALPHA), looks)
    reasons = list(dict.fromkeys(part.reason for part in parts if part.reason))
    reason = None if verdict != "undecided" else reasons[0] if len(reasons) == 1 else "mixed"
    return RuleVerdict(verdict, reason, tuple(parts))


def failed_guards(guards: Sequence[Sentence], runs: Sequence[Run]) -> list[str]:
    """Return in words which of these sentences the mean over seeds does not meet, or cannot be formed for.

    Errors: ConfigError for a cell that is no arm.
    """
    failed = []
    for guard in guards:
        try:
            value = evidence_of(guard.of, runs).value
        except Undecidable as error:
            failed.append(f"{guard}: {error}")
        else:
            if not guard.region.contains(value, value):
                failed.append(f"{guard}: it is {value:.4g}")
    return failed


def _decide(
    rule: Rule, runs: Sequence[Run], levels: _Levels, looks: tuple[int, ...]
) -> tuple[Verdict, list[PartVerdict]]:
    if isinstance(rule, Part):
        part = _decide_part(rule, runs, levels, looks)
        return part.verdict, [part]
    inner = levels.of_parts(rule)
    found = [_decide(part, runs, inner, looks) for part in rule.parts]
    verdicts = {verdict for verdict, _ in found}
    settles: Verdict = "refuted" if rule.how == "all" else "confirmed"
    unless: Verdict = "confirmed" if rule.how == "all" else "refuted"
    verdict: Verdict = settles if settles in verdicts else unless if verdicts == {unless} else "undecided"
    return verdict, [part for _, parts in found for part in parts]


def _decide_part(part: Part, runs: Sequence[Run], levels: _Levels, looks: tuple[int, ...]) -> PartVerdict:
    of, region = part.sentence.of, part.sentence.region
    open_one = PartVerdict(
        text=str(part.sentence),
        label=part.label or str(of),
        statistic=type(of).__name__.lower(),
        unit=unit_of(of),
        region=str(region),
        thresholds=region.thresholds,
        verdict="undecided",
    )
    try:
        evidence = evidence_of(of, runs, part.best_of)
        confirming = evidence.interval(levels.confirm, looks)
        refuting = evidence.interval(levels.refute, looks)
    except Undecidable as error:
        undecided = replace(open_one, reason=error.reason, because=str(error))
        return _at_edge(undecided, part, runs, min(levels.confirm, levels.refute), looks)
    except ConfigError as error:
        raise ConfigError(f"{part.sentence}: {error}") from error
    open_one = replace(open_one, over=evidence.over)
    if region.contains(*_bounds(confirming)):
        found = _with_figures(replace(open_one, verdict="confirmed"), confirming, levels.confirm)
        return replace(found, strength=_strength(evidence, region, levels.confirm, looks))
    if region.excludes(*_bounds(refuting)):
        found = _with_figures(replace(open_one, verdict="refuted"), refuting, levels.refute)
        return replace(found, strength=_strength(evidence, region, levels.refute, looks))
    interval = confirming if levels.confirm < levels.refute else refuting  # the wider one
    found = _with_figures(open_one, interval, min(levels.confirm, levels.refute))
    low, high = _bounds(interval)
    inside = [f"{end:g}" for end in region.thresholds if low <= end <= high]
    because = f"the interval includes {' and '.join(inside) or region}"
    needed = _needed(evidence, region, levels, looks)
    if needed is not None and needed > interval.n and isinstance(evidence, Sample):
        because += f"; about {needed} {evidence.over}s would decide it if the value is what it seems"
    return replace(found, reason="clock" if isinstance(evidence, Timed) else "wide", because=because, needed=needed)


def _at_edge(
    undecided: PartVerdict, part: Part, runs: Sequence[Run], alpha: float, looks: tuple[int, ...]
) -> PartVerdict:
    """Return a part whose best settings are at an edge with the figures there, for the reader."""
    if undecided.reason != "edge":
        return undecided
    try:
        evidence = evidence_of(part.sentence.of, runs, part.best_of, at_edge=True)
        return _with_figures(replace(undecided, over=evidence.over), evidence.interval(alpha, looks), alpha)
    except Undecidable:
        return undecided


def _with_figures(part: PartVerdict, interval: Interval, alpha: float) -> PartVerdict:
    return replace(part, estimate=interval.value, low=interval.low, high=interval.high, n=interval.n, level=1 - alpha)


def _bounds(interval: Interval) -> tuple[float, float]:
    low, high = interval.low, interval.high
    return (-math.inf if low is None else low, math.inf if high is None else high)


def _distance(sample: Sample, region: Region) -> float:
    """Return how far the mean is from the nearest threshold, beyond its slack, on the scale of the values."""
    mean = sample.paired(ALPHA, ()).mean
    ends = [math.log(end) if sample.logs and end > 0 else end for end in region.thresholds]
    low, high = sample.slack
    return max(0.0, min(mean - low - end if mean > end else end - mean - high for end in ends))


def _needed(evidence: Evidence, region: Region, levels: _Levels, looks: tuple[int, ...]) -> int | None:
    """Return how many seeds would tell the mean from the nearest threshold at a further look, if it stays there."""
    if not isinstance(evidence, Sample):
        return None
    confirms = region.contains(evidence.value, evidence.value)
    paired = evidence.paired(levels.confirm if confirms else levels.refute, looks)
    level = paired.rule.level * (len(looks) / (len(looks) + 1) if looks else 1)
    return pairs_needed(_distance(evidence, region), paired.sd, level) if paired.sd > 0 else None


def _strength(evidence: Evidence, region: Region, level: float, looks: tuple[int, ...]) -> float | None:
    """Return the smallest alpha of the rule, of which the part has the share `level` / ALPHA, at which this stands.

    None where there is no closed form.
    """
    if not isinstance(evidence, Sample):
        return None
    paired = evidence.paired(ALPHA, looks)
    if paired.sd == 0.0:
        return None
    distance = _distance(evidence, region)
    p = max(t_tails(distance / paired.sd * math.sqrt(evidence.n), evidence.n - 1), SMALLEST_P)
    return min(1.0, paired.rule.sequential(p) * ALPHA / level)


def unit_of(of: Expression) -> str:
    """Return the unit of an expression: of a difference of percentages, points."""
    match of:
        case Quantity(metric):
            return find_metric(metric).unit
        case Difference(inner, _):
            return "points" if unit_of(inner) == "%" else unit_of(inner)
        case Exact(inner):
            return unit_of(inner)
        case Ratio() | Slope() | Rate() | Largest():
            return ""
