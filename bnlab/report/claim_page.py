"""The scorecard of claims as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bnlab.claims.claim import VERDICTS, Claim
from bnlab.claims.language import parse_region
from bnlab.claims.outcome import PartVerdict
from bnlab.claims.outside import OUTSIDE, Outside
from bnlab.claims.verdict import ClaimVerdict
from bnlab.report.chart import Scale
from bnlab.report.claim_figures import figures_of
from bnlab.report.claim_mechanism import Runs, pictures, runs_of
from bnlab.report.claim_report import (
    Pair,
    agreement,
    chance_line,
    command,
    day,
    headline,
    meanings,
    n_text,
    rule_text,
    stars_of,
    summary_line,
)
from bnlab.report.console import clean
from bnlab.report.figures import on_axis
from bnlab.report.line_svg import svg_of
from bnlab.report.page import render
from bnlab.report.strips import scales_of, spans

_WIDTH = 260  # of a picture
_TICKS, _APART = 5, 24  # values of its scale, and how far from a threshold they stand


def page(pairs: Sequence[Pair], outside: Sequence[Outside] = OUTSIDE, summary: str = "") -> str:
    """Return the page: claims with a verdict, confirmed ones first, then the questions of the others."""
    stars = {claim.name: star for (claim, _), star in zip(pairs, stars_of(pairs), strict=True)}
    decided = [(claim, verdict) for word in VERDICTS for claim, verdict in pairs if verdict and verdict.verdict == word]
    runs = runs_of(decided)
    return render(
        "claim_page.html",
        title="claims and verdicts",
        summary=summary or summary_line(pairs),
        chance=chance_line(pairs),
        claims=[_claim(claim, verdict, runs) | {"star": stars[claim.name]} for claim, verdict in decided],
        meanings=[each.split(": ", 1) for each in sorted({each for claim, _ in decided for each in meanings(claim)})],
        width=_WIDTH,
        not_run=[{"name": claim.name, "question": clean(claim.question)} for claim, verdict in pairs if not verdict],
        outside=outside,
    )


def _claim(claim: Claim, verdict: ClaimVerdict, runs: Runs) -> dict[str, Any]:
    """Return what a page of many has room for: nothing twice, of rule and command only what the page says nowhere."""
    rule, again = rule_text(claim.rule), command(claim, verdict)
    return {
        "name": claim.name,
        "source": ", ".join(claim.sources),
        "question": clean(claim.question),
        "quotes": [clean(quote) for quote in claim.quotes],
        "rule": clean(rule) * (rule not in [f"{part.label} {part.region}" for part in verdict.parts]),
        "day": day(verdict.made),
        "caveats": [clean(caveat) for caveat in claim.caveats],
        "expected": claim.expected or "",
        "because": clean(claim.because),
        "command": clean(again) * (again != f"bnlab claim run {claim.name}"),
        "verdict": verdict.verdict,
        "headline": clean(headline(claim.rule, verdict)),
        "n": n_text(verdict),
        "scope": clean(verdict.scope),
        "agreement": agreement(claim, verdict),
        "notes": [clean(note) for note in verdict.notes],
        "exploratory": verdict.exploratory,
        "budget": clean(verdict.budget),
        "parts": [_part(*each) for each in zip(verdict.parts, scales_of(verdict.parts), strict=True)],
        "pictures": [
            {"panels": [svg_of(panel) for row in picture.rows for panel in row], "remark": picture.remark}
            for picture in pictures(claim, verdict, runs)
        ],
    }


def _part(part: PartVerdict, scale: Scale | None) -> dict[str, Any]:
    return {
        "label": clean(part.label),
        "figures": clean(
            "; ".join(filter(None, [figures_of(part), part.because * (part.reason == "edge")])) or part.because
        ),
        "region": clean(part.region),
        "verdict": part.verdict,
        "picture": _picture(part, scale),
    }


def _picture(part: PartVerdict, scale: Scale | None) -> dict[str, Any] | None:
    """Return the places of a picture's lines and words; of the scale's values those that are clear of thresholds."""
    if scale is None or part.estimate is None:
        return None

    def at(value: float) -> int:
        return round(scale.height(value) * _WIDTH)

    low, high = (part.estimate if v is None else v for v in (part.low, part.high))
    regions = [(round(a * _WIDTH), round((b - a) * _WIDTH)) for a, b in spans(parse_region(part.region), scale)]
    ends = [(at(end), f"{end:g}") for end in part.thresholds]
    ticks = [(at(tick), on_axis(tick)) for tick in scale.ticks(_TICKS)]
    ticks = [(x, text) for x, text in ticks if all(abs(x - end) > _APART for end, _ in ends) and 8 < x < _WIDTH - 8]
    where = {"low": at(low), "high": at(high), "dot": at(part.estimate)}
    return {"spans": regions, "ends": ends, "ticks": ticks} | where
