"""What a comparison comes to: one sentence an arm, and what it took."""

from __future__ import annotations

from bnlab.compare.arms import short_names
from bnlab.compare.notes import count_of
from bnlab.compare.result import Comparison, Row, Section
from bnlab.metrics import find_metric
from bnlab.report.figures import interval_text
from bnlab.report.heading import heading


def verdict_lines(comparison: Comparison) -> list[str]:
    """Return a sentence for each arm that has a baseline, and with how many of its jobs the sweep was decided."""
    lines, undecided, trained = [], 0, 0
    for section in comparison.sections:
        rows = [row for row in section.rows if row.against and not row.is_baseline]
        if len(comparison.sections) > 1:
            lines.append(" · ".join(heading(section)[:2]))
        lines += [verdict_sentence(row, section) for row in rows]
        lines += [note for note in section.notes if note.startswith("Exploratory")]
        undecided += sum(row.verdicts.get(section.main, "undecided") == "undecided" for row in rows)
        trained += sum(row.num_runs for row in section.rows)
    what = f"{count_of(undecided, 'arm')} undecided after" if undecided else "decided with"
    return [*lines, f"{what} {trained} of {trained + comparison.queued + comparison.spared} runs"]


def verdict_sentence(row: Row, section: Section) -> str:
    """Return what an arm's comparison with its baseline comes to."""
    metric, name = find_metric(section.main), section.main.replace("_", " ")
    difference = row.vs_baseline.get(section.main)
    verdict = row.verdicts.get(section.main, "undecided")
    unit = "points" if metric.unit == "%" else metric.unit
    figure = "" if difference is None else f"{interval_text(difference, metric.scale, signed=True)} {unit}".rstrip()
    seeds = "no seed of both" if difference is None else count_of(difference.n, "seed")
    keys = list(short_names(section.changed).values())
    arm, against = (
        f"{keys[0]}={label}" if keys not in (["norm"], []) and len(keys) == 1 else label
        for label in (row.label, row.against)
    )
    what = {
        "better": f"is better than {against} in {name}",
        "worse": f"is worse than {against} in {name}",
        "different": f"differs from {against} in {name}",
        "no difference that matters": f"has no difference from {against} in {name} that matters",
        "undecided": f"is undecided against {against} in {name}",
    }[verdict]
    margin = f"margin {section.margin:g}" if section.margin is not None else ""
    return f"{arm} {what}: {', '.join(filter(None, (figure, margin, seeds)))}"
