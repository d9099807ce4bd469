"""Claims in the terminal and as files: a card each, a list, and the scorecard as a table, Markdown and JSON."""

from __future__ import annotations

import itertools
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.text import Text

from bnlab.claims.claim import Claim
from bnlab.claims.language import Exact, Largest, Rate, Slope, quantities
from bnlab.claims.outcome import PartVerdict
from bnlab.claims.outside import OUTSIDE, Outside
from bnlab.claims.rule import Combination, Rule, parts_of
from bnlab.claims.verdict import ClaimVerdict
from bnlab.compare.statistics import holm
from bnlab.errors import count_of
from bnlab.metrics import find_metric
from bnlab.report.bars import arrow
from bnlab.report.claim_figures import figures_of, interval_of
from bnlab.report.console import Terminal
from bnlab.report.rows import as_markdown, escaped, json_text
from bnlab.report.strips import scales_of, signs, strips
from bnlab.report.table import NARROWEST, Column, draw, joined

STYLES = {"confirmed": "green", "refuted": "red", "undecided": "yellow", "not run": "dim"}
_WIDE, _NARROW = 24, 16  # columns of a picture
_PICTURE = "picture"
_LONG = 24  # columns of a label, from which it wraps
_WORDS = {
    Exact: "the largest absolute value over seeds, without an interval",
    Rate: "the share of runs in which that holds",
    Slope: "that of a line through the levels or layers, in each seed or block",
    Largest: "the last level before the first at which that fails, in each seed",
}
Pair = tuple[Claim, ClaimVerdict | None]


# ---------------------------------------------------------------- a card


def card(claim: Claim, verdict: ClaimVerdict | None, out: Terminal, more: Sequence[str] = ()) -> Group:
    """Return a claim's card: what was asked, what came of it, and all that a reader needs to judge it.

    `more` are the overrides that the command line has.
    """
    from bnlab.report.claim_mechanism import charts  # not for a list, which draws none

    about = [claim.name, f"from source {', '.join(claim.sources)}" if claim.sources else "your own"]
    if verdict is not None:
        about += [f"{verdict.budget} budget, {verdict.seconds:g} s"]
    lines = [*joined(about, out, "bold"), *_wrapped(claim.question, out)]
    for quote in claim.quotes:
        lines += _wrapped(f"“{quote}”", out, "italic")
    lines.append(Text(""))
    if verdict is not None:
        style = f"bold {STYLES[verdict.verdict]}"
        lines += _wrapped(headline(claim.rule, verdict), out, style)
        drawn = draw(_part_columns(verdict.parts, out), out)
        lines += drawn.lines
        if any(column.key == _PICTURE for column in drawn.kept):
            fill, left, line, dot, right = signs(out)
            legend = [f"{fill} where it must lie", f"{left}{line}{dot}{line}{right} the value with its interval"]
            legend += [f"{arrow(out)} its threshold"]
            lines += joined(legend, out, "dim")
        lines += [*charts(claim, verdict, out), Text("")]
    for key, value in _facts(claim, verdict, more):
        lines += _fact(key, value, out)
    return Group(*lines)


def headline(rule: Rule, verdict: ClaimVerdict) -> str:
    """Return the verdict in a sentence: `REFUTED on this machine (both parts have to hold): 1 confirmed, 1 refuted`."""
    words = verdict.verdict.upper()
    if verdict.guards:
        return f"{words}: what it takes for granted does not hold: {'; '.join(verdict.guards)}"
    several, counts = isinstance(rule, Combination), parts_text(verdict)
    need = f" ({_needs(rule)})" if isinstance(rule, Combination) else ""
    if verdict.verdict != "undecided":
        return f"{words} on this machine{need}{f': {counts}' if several else ''}"
    names = _names([(part.label, part.text) for part in verdict.parts])
    reasons = [(f"{name}: " if several else "") + part.because for name, part in zip(names, verdict.parts, strict=True)]
    because = next((text for text, part in zip(reasons, verdict.parts, strict=True) if part.because), verdict.reason)
    return f"{words}{need}: {f'{counts}; ' if several else ''}{because or ''}"


def _needs(rule: Combination) -> str:
    """Return how many of its parts a rule needs: `all 4 parts have to hold`."""
    noun = "groups of parts" if any(isinstance(part, Combination) for part in rule.parts) else "parts"
    if rule.how == "any":
        return f"one of {len(rule.parts)} {noun} has to hold"
    return f"{'both' if len(rule.parts) == 2 else f'all {len(rule.parts)}'} {noun} have to hold"


def _part_columns(parts: Sequence[PartVerdict], out: Terminal) -> list[Column]:
    figures = [interval_of(part, f" {part.unit}" if part.unit else "") or "–" for part in parts]
    styles = [STYLES[part.verdict] for part in parts]
    names = _names([(part.label, part.text) for part in parts])
    return [
        *([Column("part", names, left=True, wraps=max(map(len, names)) > _LONG, is_name=True)] if any(names) else []),
        Column("value", figures, left=True),
        *_picture_column(parts, out),
        Column("confirmed if", [part.region for part in parts], left=True),
        Column("", [part.verdict for part in parts], left=True, styles=styles),
    ]


def _picture_column(parts: Sequence[PartVerdict], out: Terminal) -> Iterator[Column]:
    """Yield it where a part has a picture and there is room; its title is what all scales are in."""
    wide, narrow = (strips(parts, width, out) for width in (_WIDE, _NARROW))
    if out.width >= NARROWEST and any(cell.head for cell in wide):
        scales = [(part.unit, scale.axis) for part, scale in zip(parts, scales_of(parts), strict=True) if scale]
        titles = {", ".join(filter(None, (unit, "log scale" * (axis == "log")))) for unit, axis in scales}
        yield Column(titles.pop() if len(titles) == 1 else "", wide, _PICTURE, narrow, 1, left=True)


def _names(parts: Sequence[tuple[str, str]]) -> list[str]:
    """Return what parts, each with a label and a sentence, are called: by labels of their own, else by numbers."""
    if len(parts) == 1 and not _is_named(*parts[0]):
        return [""]
    return [label if _is_named(label, text) else str(n) for n, (label, text) in enumerate(parts, 1)]


def _is_named(label: str, text: str) -> bool:
    return bool(label) and not text.startswith(label)


def _facts(claim: Claim, verdict: ClaimVerdict | None, more: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield "rule", "all of these" if (several := isinstance(claim.rule, Combination)) else rule_text(claim.rule)
    if several:
        parts = list(parts_of(claim.rule))
        names = _names([(part.label, str(part.sentence)) for part in parts])
        yield from (("", f"{name}: {rule_text(part)}") for name, part in zip(names, parts, strict=True))
    if claim.requires:
        yield "given", "; ".join(map(str, claim.requires))
    yield from zip(itertools.chain(["where"], itertools.repeat("")), meanings(claim), strict=False)
    if verdict is not None:
        together = ", all looks together wrong in 5 % of cases at most" if len(verdict.looks) > 1 else ""
        yield "over", n_text(verdict) + together
        for line in verdict.notes:
            yield "note", line
        yield "scope", verdict.scope
    if claim.expected:
        because = f" ({claim.because})" if claim.because else ""
        yield "expected", f"{claim.expected}{because}{f': {agreement(claim, verdict)}' if verdict else ''}"
    if claim.caveats:
        yield "caveat", "; ".join(claim.caveats)
    if verdict is not None and verdict.exploratory:
        yield "note", "the rule was changed after runs were seen: exploratory"
    yield "again" if verdict else "run", command(claim, verdict, more)
    yield "file", f"{claim.path} · digest of the rule {claim.rule_sha256[:8]}"


def meanings(claim: Claim) -> Iterator[str]:
    """Yield what the words of a claim's sentences mean, each once."""
    asked = [*(part.sentence.of for part in parts_of(claim.rule)), *(guard.of for guard in claim.requires)]
    for kind, meaning in _WORDS.items():
        if any(isinstance(of, kind) for of in asked):
            yield f"{kind.__name__.lower()}: {meaning}"
    for name in dict.fromkeys(quantity.metric for of in asked for quantity in quantities(of)):
        metric = find_metric(name)
        yield f"{name}: {metric.meaning}{f', in {metric.unit}' if metric.unit else ''}"


def rule_text(rule: Rule) -> str:
    """Return a rule in words."""
    if isinstance(rule, Combination):
        word = "all of" if rule.how == "all" else "any of"
        return f"{word}: {'; '.join(rule_text(part) for part in rule.parts)}"
    best = f" (each at its best {', '.join(rule.best_of)})" if rule.best_of else ""
    return f"{rule.sentence}{best}"


def n_text(verdict: ClaimVerdict) -> str:
    """Return how many seeds, rounds or blocks a verdict rests on, and how often it was looked at."""
    most = max((part.n for part in verdict.parts), default=0)
    if not verdict.looks:
        return count_of(most, verdict.parts[0].over) if verdict.benches else "the cases of `bnlab check`"
    looks = f"; looked at with {', '.join(map(str, verdict.looks))}" if len(verdict.looks) > 1 else ""
    return f"{count_of(verdict.seeds, 'seed')} of at most {verdict.looks[-1]}{looks}"


def agreement(claim: Claim, verdict: ClaimVerdict | None) -> str:
    """Return whether a verdict is the expected one."""
    if claim.expected is None or verdict is None:
        return "no prior"
    if verdict.verdict == claim.expected:
        return "agrees"
    return "open" if "undecided" in (verdict.verdict, claim.expected) else "goes against it"


def command(claim: Claim, verdict: ClaimVerdict | None, more: Sequence[str] = ()) -> str:
    """Return the command line that makes the verdict (again)."""
    budget = ["--budget", verdict.budget] if verdict and verdict.budget != "quick" else []
    words = dict.fromkeys([*(verdict.variant if verdict else ()), *more])
    return shlex.join(["bnlab", "claim", "run", claim.name, *budget, *words])


def _wrapped(text: str, out: Terminal, style: str = "") -> Iterator[Text]:
    yield from draw([Column("", [text], left=True, wraps=True, styles=[style])], out).lines


def _fact(key: str, text: str, out: Terminal) -> Iterator[Text]:
    """Yield the lines of a fact; without a key it goes on with the one before."""
    columns = [Column("", [f"{key:<8}"], left=True, styles=["dim"]), Column("", [text], left=True, wraps=True)]
    yield from draw(columns, out).lines


# ---------------------------------------------------------------- all of them


def rows_of(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return one row a claim."""
    stars = _stands(pairs)
    rows = []
    for (claim, verdict), stands in zip(pairs, stars, strict=True):
        rows.append(
            {
                "claim": claim.name,
                "source": ", ".join(claim.sources) or None,
                "question": claim.question,
                "verdict": verdict.verdict if verdict else "not run",
                "reason": verdict.reason if verdict else None,
                "figures": None if verdict is None else _figures(verdict),
                "stands": stands,
                "expected": claim.expected,
                "agrees": agreement(claim, verdict) if verdict else None,
                "budget": verdict.budget if verdict else None,
                "age": age(verdict.made) if verdict else None,
                "jobs": claim.num_runs(claim.budgets["quick"]),
            }
        )
    return rows


def _figures(verdict: ClaimVerdict) -> str | None:
    """Return the figures of a single part, or why it has none; how several parts came out."""
    if len(verdict.parts) != 1:
        return parts_text(verdict)
    return "edge" if verdict.reason == "edge" else figures_of(verdict.parts[0]) or verdict.reason


def parts_text(verdict: ClaimVerdict) -> str:
    """Return how many parts came to what."""
    counts = {word: sum(part.verdict == word for part in verdict.parts) for word in STYLES}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def _stands(pairs: Sequence[Pair]) -> list[bool]:
    """Return which verdicts stand after Holm's correction over all decided claims; none of an exploratory one."""
    strengths: list[float | None] = []
    for _, verdict in pairs:
        usable = verdict is not None and verdict.verdict != "undecided" and not verdict.exploratory
        parts = [part for part in verdict.parts if part.verdict == verdict.verdict] if verdict and usable else []
        known = [part.strength for part in parts if part.statistic != "exact"]  # which hangs on no chance
        numbers = [strength for strength in known if strength is not None]
        strengths.append(max(numbers) if numbers and len(numbers) == len(known) else None)
    return [p is not None and p <= 0.05 for p in holm(strengths)]


def stars_of(pairs: Sequence[Pair]) -> list[str]:
    """Return the star of each verdict that stands, where `chance_line` says what it means."""
    is_told = bool(chance_line(pairs))
    return ["*" * (stands and is_told) for stands in _stands(pairs)]


def age(made: float) -> str:
    """Return how long ago that was: `3 h`."""
    seconds = max(0.0, time.time() - made)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def day(made: float) -> str:
    """Return the date of a moment here: `2026-12-01`; empty where it has none."""
    try:
        return time.strftime("%Y-%m-%d", time.localtime(made))
    except (OverflowError, ValueError, OSError):
        return ""


def summary_line(pairs: Sequence[Pair]) -> str:
    """Return `64 claims: 12 confirmed, 3 refuted, ...`."""
    words = [verdict.verdict if verdict else "not run" for _, verdict in pairs]
    counts = ", ".join(f"{words.count(word)} {word}" for word in STYLES if word in words)
    return f"{count_of(len(pairs), 'claim')}: {counts}" if pairs else "no claims"


def chance_line(pairs: Sequence[Pair]) -> str:
    """Return how many verdicts may be wrong by chance, and how many stand after Holm's correction."""
    decided = sum(verdict is not None and verdict.verdict != "undecided" for _, verdict in pairs)
    if decided < 2:  # of one its interval says so
        return ""
    by_chance = max(1, math.floor(0.05 * decided))
    return (
        f"{count_of(decided, 'decided claim')} at 5 % each: up to {by_chance} wrong by chance; "
        f"{sum(_stands(pairs))} of those decided by seeds stand after Holm's correction (*)"
    )


def claims_table(
    pairs: Sequence[Pair], out: Terminal, outside: Sequence[Outside] = OUTSIDE, summary: str = ""
) -> Group:
    """Return the list of claims, and what is out of scope; `summary` takes the place of the line of counts."""
    rows = rows_of(pairs)
    words = [row["verdict"] + star for row, star in zip(rows, stars_of(pairs), strict=True)]
    columns = [
        Column("claim", [row["claim"] for row in rows], left=True, is_name=True),
        Column("verdict", words, left=True, styles=[STYLES[row["verdict"]] for row in rows]),
        Column("figures", [row["figures"] or "" for row in rows], left=True, rank=1),
        Column("expected", [row["expected"] or "" for row in rows], left=True, rank=4),
        Column("budget", [row["budget"] or "" for row in rows], left=True, rank=3),
        Column("age", [row["age"] or "" for row in rows], rank=2),
        Column("question", [row["question"] for row in rows], left=True, rank=5),
    ]
    drawn = draw(columns, out)
    lines = drawn.lines if rows else []
    if any(column.title == "question" for column in drawn.left_out):
        head = len(lines) - len(rows)
        lines, below = lines[:head], lines[head:]
        for line, row in zip(below, rows, strict=True):
            question = Column("", [row["question"]], left=True, wraps=True, styles=["dim"])
            lines += [line, *draw([Column("", [""]), question], out).lines]
    titles = ", ".join(column.title for column in drawn.left_out if column.title != "question")
    narrow = f"left out for width: {titles} (a wider terminal or --format shows them)" if titles else ""
    beyond = [f'out of scope: "{each.quote}" ({each.source}): {each.because}' for each in outside]
    texts = [narrow, summary or summary_line(pairs), chance_line(pairs), *beyond]
    return Group(*lines, Text(""), *(line for text in texts if text for line in _wrapped(text, out)))


def as_json(pairs: Sequence[Pair], outside: Sequence[Outside] = OUTSIDE, summary: str = "") -> str:
    """Return the scorecard as JSON: every verdict with all its parts."""
    claims = [
        {**row, "rule": rule_text(claim.rule), "quotes": claim.quotes, "caveats": claim.caveats,
         "command": command(claim, verdict), "record": asdict(verdict) if verdict else None}
        for row, (claim, verdict) in zip(rows_of(pairs), pairs, strict=True)
    ]  # fmt: skip
    found = {"schema": 1, "summary": summary or summary_line(pairs), "claims": claims}
    return json_text(found | {"out_of_scope": [asdict(each) for each in outside]})


def as_md(pairs: Sequence[Pair], outside: Sequence[Outside] = OUTSIDE, summary: str = "") -> str:
    """Return the scorecard as Markdown: a line of counts, a table, each claim's parts, and what is out of scope."""
    head = {"claims": summary or summary_line(pairs), "chance": chance_line(pairs) or None}
    keys = ("claim", "source", "question", "verdict", "figures", "expected", "budget")
    starred = zip(rows_of(pairs), stars_of(pairs), strict=True)
    rows = [{key: row[key] for key in keys} | {"verdict": row["verdict"] + star} for row, star in starred]
    text = as_markdown(head, rows)
    for claim, verdict in pairs:
        if verdict is not None:
            text += f"\n## {escaped(claim.name)}\n\n{escaped(claim.question)} **{verdict.verdict}**\n\n"
            text += "".join(f"> {escaped(quote)}\n\n" for quote in claim.quotes)
            rows = [
                {"part": part.label, "value": figures_of(part), "confirmed if": part.region, "verdict": part.verdict}
                for part in verdict.parts
            ]
            text += as_markdown({"scope": verdict.scope, "command": command(claim, verdict)}, rows)
    return text + ("\n## out of scope\n\n" + as_markdown({}, [asdict(each) for each in outside]) if outside else "")
