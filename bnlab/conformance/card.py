"""The conformance card: what a normalization does, each property measured on random batches and edge cases.

`dependence.py`, `edges.py`, `exactness.py` and `statistics.py` hold the properties, one function each; importing them
enters them in `CHECKS`. Whatever a property raises is a finding too.
"""

from __future__ import annotations

import math
import warnings

import torch

from bnlab.conformance import dependence, edges, exactness, statistics  # noqa: F401  (they enter properties, in the order of the card)
from bnlab.conformance.findings import Card, Finding
from bnlab.conformance.own_code import described
from bnlab.conformance.proving import CHECKS, Check, Undefined
from bnlab.conformance.subject import Bench, Subject
from bnlab.errors import ConfigError, did_you_mean


def examine(subject: Subject) -> Card:
    """Return the card of `subject`; what a property does to the random state is undone."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        bench = Bench(subject)
        findings = [_find(check, bench) for check in CHECKS.values()]
    if subject.facts is None and all(finding.failed for finding in findings):
        raise ConfigError(f"{subject.label}: nothing can be measured: {findings[0].note}")
    axes = len(subject.spaces[0]) if subject.spaces else 0
    declares, flat = subject.facts is not None, bench.takes_flat
    return Card(subject.label, declares, bench.channels, bench.samples, not flat, findings, axes)


def check_property(key: str) -> None:
    """Raise ConfigError for what is no property."""
    if key not in CHECKS:
        raise ConfigError(
            f"property={key}: no such property{did_you_mean(key, CHECKS)}\nthere are: {', '.join(CHECKS)}"
        )


def error_of(subject: Subject, key: str) -> float:
    """Return the largest error of one property; infinity where it fails, NaN where it is undefined.

    Errors: as of `check_property`.
    """
    check_property(key)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        finding = _find(CHECKS[key], Bench(subject))
    if finding.found is None:
        return math.nan
    return (0.0 if finding.found else math.inf) if finding.error is None else finding.error


def _find(check: Check, bench: Bench) -> Finding:
    expected = None
    try:
        if bench.facts is not None:
            expected = check.expects(bench.facts, bench)
        measured = check.measure(bench)
    except Undefined as error:
        return Finding(check.about, None, None, None, str(error))
    except Exception as error:
        return Finding(check.about, expected, False, None, f"fails: {described(error)}", failed=True)
    if measured is None:
        return Finding(check.about, None, None, None)
    return Finding(check.about, expected, measured.holds, measured.error, measured.flaw or measured.note)
