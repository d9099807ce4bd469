"""What a claim came to, on disk: `runs/claims/NAME/BUDGET/verdict.json`, and the rule that stood before its runs."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bnlab.claims.claim import VERDICTS, Claim
from bnlab.claims.language import parse_region
from bnlab.claims.outcome import PartVerdict, Verdict
from bnlab.errors import ConfigError
from bnlab.metric import LARGEST as LARGEST_NUMBER
from bnlab.record.latest import OF_CLAIMS, runs_folder
from bnlab.record.plain_files import read_plain, write_bytes, write_json

FILE, COPY, REGISTERED = "verdict.json", "claim.yaml", "registered.json"
SCHEMA = 1
LARGEST = 2**20
NOT_ASKED = ("data.root=", "trainer.timeout=")  # where data lie and how long to wait are no part of a question


@dataclass(frozen=True)
class ClaimVerdict:
    """A verdict with all that a reader needs to judge it."""

    claim: str
    budget: str
    variant: tuple[str, ...]  # overrides of the command line
    rule_sha256: str
    exploratory: bool  # the rule was changed after runs were seen
    verdict: Verdict
    reason: str | None
    parts: tuple[PartVerdict, ...]
    guards: tuple[str, ...]  # those that failed, in words
    looks: tuple[int, ...]
    seeds: int  # that were used
    runs: tuple[str, ...]  # identities
    benches: tuple[str, ...]  # folders
    failed: int  # jobs without which it had to be formed
    version: str  # of bnlab
    scope: str  # data, model, machine
    seconds: float
    made: float  # seconds since 1970
    notes: tuple[str, ...] = ()  # why runs were refused, and which learned nothing, in words

    def write(self, folder: Path) -> None:
        """Put it into the claim's folder. Errors: EnvironmentFault."""
        write_json(folder / FILE, {"schema": SCHEMA, **asdict(self)})


def variant_of(more: Sequence[str]) -> tuple[str, ...]:
    """Return the further overrides that make a variant of a claim, in an order of their own."""
    return tuple(sorted(word for word in more if not word.startswith(NOT_ASKED)))


def folder_of(claim: str, budget: str, more: Sequence[str] = ()) -> Path:
    """Return where a claim's verdict lies; further overrides make a variant."""
    variant = variant_of(more)
    digest = hashlib.sha256(json.dumps(variant).encode()).hexdigest()[:8]
    return runs_folder() / OF_CLAIMS / claim / (f"{budget}-{digest}" if variant else budget)


def register(claim: Claim, folder: Path, *, has_runs: bool) -> bool:
    """Keep the claim's file as it is before its first run; return whether the rule was another when runs were seen.

    Errors: EnvironmentFault.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = _read_json(folder / REGISTERED).get("rule_sha256")
    if before is None or (before != claim.rule_sha256 and not has_runs):
        write_bytes(folder / COPY, claim.path.read_bytes())
        write_json(folder / REGISTERED, {"rule_sha256": claim.rule_sha256, "made": time.time()})
        return False
    return bool(before != claim.rule_sha256)


def read_verdict(folder: Path) -> ClaimVerdict | None:
    """Return the verdict in a folder; None where there is none that can be read."""
    found = _read_json(folder / FILE)
    if found.get("schema") != SCHEMA or found.get("verdict") not in VERDICTS:
        return None
    try:
        first, *rest = (_part(part) for part in _list(found, "parts"))
        keys = ("variant", "guards", "runs", "benches", "notes")
        lists = {key: tuple(map(str, _list({"notes": [], **found}, key))) for key in keys}
        return ClaimVerdict(
            claim=str(found["claim"]),
            budget=str(found["budget"]),
            rule_sha256=str(found["rule_sha256"]),
            exploratory=found["exploratory"] is True,
            verdict=found["verdict"],
            reason=None if found["reason"] is None else str(found["reason"]),
            parts=(first, *rest),
            looks=tuple(map(int, _list(found, "looks"))),
            seeds=int(found["seeds"]),
            failed=int(found["failed"]),
            version=str(found["version"]),
            scope=str(found["scope"]),
            seconds=float(found["seconds"]),
            made=float(found["made"]),
            **lists,
        )
    except (LookupError, TypeError, ValueError, OverflowError, ConfigError):
        return None


def latest_verdict(name: str, budget: str | None = None, more: Sequence[str] = ()) -> ClaimVerdict | None:
    """Return the last verdict of any budget, or of one, on a claim or on its variant with further overrides."""
    found = [read_verdict(folder_of(name, each, more)) for each in ((budget,) if budget else ("quick", "full"))]
    return max((verdict for verdict in found if verdict), key=lambda verdict: verdict.made, default=None)


def _part(found: object) -> PartVerdict:
    """Return a part that can be shown. Errors: ConfigError, ValueError and others of Python for what it is not."""
    if not isinstance(found, Mapping) or found.get("verdict") not in VERDICTS:
        raise ValueError("no verdict")
    found = {"over": "seed", **found}  # a verdict of before it was kept
    known: dict[str, Any] = {each.name: found[each.name] for each in fields(PartVerdict)}
    texts = {key: str(known[key] or "") for key in ("text", "label", "statistic", "unit", "region", "because", "over")}
    known["thresholds"] = parse_region(texts["region"]).thresholds
    ends = [-math.inf if known["low"] is None else known["low"], math.inf if known["high"] is None else known["high"]]
    figures = [*ends, *(known[key] or 0.0 for key in ("estimate", "strength", "level"))]
    counts = [known["n"], known["needed"] or 0]
    if {*map(type, figures)} - {int, float} or {*map(type, counts)} - {int}:
        raise ValueError("not a number")
    if (
        not ends[0] <= ends[1]
        or min(counts) < 0
        or not all(abs(each) <= LARGEST_NUMBER or math.isinf(each) for each in figures)
    ):
        raise ValueError("out of range")
    return PartVerdict(**{**known, **texts})


def _list(found: Mapping[str, Any], key: str) -> Sequence[Any]:
    if not isinstance(found[key], list):
        raise TypeError(key)
    return found[key]  # type: ignore[no-any-return]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_plain(path, LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
