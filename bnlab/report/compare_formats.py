"""A comparison for programs and files: plain text, CSV, JSON and Markdown; every figure is in the metric's unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bnlab.compare.arms import short_names, text_of
from bnlab.compare.result import Comparison, Row, Section
from bnlab.interval import Interval
from bnlab.metrics import Metric, metrics
from bnlab.report.compare_report import stars, table_title
from bnlab.report.console import clean
from bnlab.report.figures import MISSING, Cell, difference_cells, estimate_cells
from bnlab.report.heading import heading, interval_words
from bnlab.report.rows import aligned_lines, csv_text, escaped, json_text, markdown_table
from bnlab.report.verdicts import answers, baseline_name

SCHEMA = 2  # 1 had neither verdicts nor margin, and the p of one look

_CSV_FIGURES = (
    *("n", "center", "low", "high", "num_reached", "num_lost", "at_once", "since", "limit", "kind"),
    *("difference", "difference_low", "difference_high", "p", "verdict"),
)


def as_plain(comparison: Comparison) -> str:
    """Return aligned text to grep: `#` before all that is no arm, every metric with its interval, one line an arm."""
    blocks = [
        "".join(f"# {clean(sentence)}\n" for sentence in found)
        + commented(section, aligned_lines(*_grid(section, plain=True)))
        for section, found in zip(comparison.sections, answers(comparison), strict=True)
    ]
    return "\n".join(blocks)


def as_markdown(comparison: Comparison) -> str:
    """Return one GitHub table a section, under its header as a line of text, with its signs explained and its notes."""
    parts: list[str] = []
    for section, found in zip(comparison.sections, answers(comparison), strict=True):
        parts += [escaped(" ".join(found))] if found else []
        titles, rows = _grid(section, plain=False)
        figures = {*titles[titles.index("n") :]} - {"states"}
        titles, rows = list(map(escaped, titles)), [list(map(escaped, row)) for row in rows]
        sign = [f"±: {interval_words(section)}"] if any("±" in cell for row in rows for cell in row) else []
        legend = filter(None, [escaped("; ".join([*sign, *stars(section)]))])
        parts += listed(section, [markdown_table(titles, rows, set(map(escaped, figures))), *legend])
    return "\n\n".join(parts) + "\n" if parts else ""


def commented(section: Section, lines: list[str], *titles: str) -> str:
    """Return the lines of a table between those of its heading and notes, which start with `#`."""
    above = [f"# {' · '.join(map(clean, heading(section)))}", *(f"# {clean(title)}" for title in titles)]
    return "\n".join([*above, *lines, *(f"# {clean(note)}" for note in section.notes)]) + "\n"


def listed(section: Section, parts: list[str]) -> list[str]:
    """Return Markdown's paragraphs: heading, `parts`, and the notes as a list."""
    notes = ["\n".join(f"- {escaped(note)}" for note in section.notes)] if section.notes else []
    return [escaped(" · ".join(heading(section))), *parts, *notes]


def as_csv(comparison: Comparison) -> str:
    """Return one line an arm and metric; its keys are columns of their own, empty where a section has them not."""
    return csv_text(*lines_of(comparison))


def lines_of(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """Return the titles and the lines of `as_csv`."""
    keys = list(dict.fromkeys(key for section in comparison.sections for key in section.changed))
    chosen = list(dict.fromkeys(key for section in comparison.sections for key in section.chosen))
    names = [*keys, *(f"best {key}" for key in chosen)]
    lines = []
    for number, section in enumerate(comparison.sections, 1):
        for row in section.rows:
            values = [*(row.arm.get(key) for key in keys), *(row.best.get(key) for key in chosen)]
            arm = [number, *values, row.label, row.is_baseline, states_text(row)]
            for metric, estimate, difference in _measured(row):
                figures = estimate_values(estimate, metric) | {"center": _shown(estimate.value, metric)}
                if difference is not None:
                    against = difference_values(difference, metric)
                    figures |= {"difference": against["difference"], "p": against["p"]}
                    figures |= {"verdict": row.verdicts.get(metric.name)}
                    figures |= {"difference_low": against["low"], "difference_high": against["high"]}
                lines.append([*arm, metric.name, metric.unit, *(figures.get(name) for name in _CSV_FIGURES)])
    return ["section", *names, "arm", "baseline", "states", "metric", "unit", *_CSV_FIGURES], lines


def as_json(comparison: Comparison) -> str:
    """Return JSON: of one section the object itself, of several `{"schema": 2, "sections": [...]}` of such objects.

    A section is {"schema", "answer" (what was found, in sentences), "baseline" (its label, or a list of several),
    "settings", "environments", "main", "target", "margin", "planned", "rows", "notes"}, the whole adds "skipped". A
    metric is {"mean" or "median", "low", "high", "n", "num_reached", "limit", "kind", "unit", "better"}; what is
    unknown or not finite is null, and what is "at_once", a time of runs that ran while others did, decides nothing. A
    difference from the baseline has a "verdict" and the p after all corrections. The "n" of a metric counts seeds, that
    of a row finished runs; "learned" of a row are its "seeds" that learned, "of" those that are known, with the exact
    "p" that the baseline's do as often. "best" of a row is the setting that was chosen for it on validation.
    """
    sections = [
        _section(section) | {"answer": found}
        for section, found in zip(comparison.sections, answers(comparison), strict=True)
    ]
    return document(sections, comparison)


def document(sections: list[dict[str, Any]], comparison: Comparison) -> str:
    """Return JSON of the only section, or of several, with the run folders that were left out."""
    whole = (
        sections[0]
        if len(sections) == 1
        else {"schema": sections[0]["schema"] if sections else SCHEMA, "sections": sections}
    )
    whole["skipped"] = [{"path": str(path), "reason": reason} for path, reason in comparison.skipped]
    if comparison.refused:
        whole["refused"] = comparison.refused
    return json_text(whole)


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "plain": as_plain,
    "csv": as_csv,
    "json": as_json,
    "md": as_markdown,
}


def html_grid(section: Section) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of a page's table."""
    return _grid(section, plain=False)


def _grid(section: Section, *, plain: bool) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of text: arm, n, states, then each metric, behind the main one what it differs by.

    States that say no more than n are left out, unless it is `plain`.
    `plain` takes full keys and metric names, and aligns the figures.
    """
    rows, short = section.rows, short_names(section.changed)
    columns = [
        (key if plain else short[key], [text_of(row.arm.get(key, "")) for row in rows]) for key in section.changed
    ]
    if not columns:
        columns = [("arm", [row.label for row in rows])]
    for key, name in short_names(section.chosen).items():
        columns.append((f"best {key if plain else name}", [text_of(row.best.get(key, "")) for row in rows]))
    columns.append(("n", [str(_seeds_of(row, section)) for row in rows]))
    if plain or any(_ended(row) != f"done={_seeds_of(row, section)}" for row in rows):
        columns.append(("states", [_ended(row) for row in rows]))
    measured = [name for name in metrics if any(name in row.metrics for row in rows)]
    for name in sorted(measured, key=lambda name: name != section.main):
        metric = metrics[name]
        unit = f"[{metric.unit}]" if metric.unit else ""
        cells = estimate_cells([row.metrics.get(name) for row in rows], metric.scale, whole=metric.is_whole)
        columns.append((name + unit if plain else table_title(metric, section), _texts(cells, plain)))
        if name == section.main:
            differences = [row.vs_baseline.get(name) for row in rows]
            cells = difference_cells(differences, metric.scale, 2)
            columns.append((f"difference{unit}" if plain else f"vs {baseline_name(section)}", _texts(cells, plain)))
            if section.margin is not None or section.is_planned:
                columns.append(("verdict", [row.verdicts.get(name, "") for row in rows]))
            columns.append(("p", [MISSING if d is None or d.p is None else f"{d.p:.2g}" for d in differences]))
    texts = [[clean(cell) or MISSING for cell in cells] for _, cells in columns]
    return [clean(title) for title, _ in columns], [list(row) for row in zip(*texts, strict=True)]


def _texts(cells: Sequence[Cell], aligned: bool) -> list[str]:
    """Return the cells as text, if `aligned` heads to the right of their part and tails to the left of theirs."""
    if not aligned:
        return list(map(str, cells))
    head = max((len(c.head) for c in cells), default=0)
    tail = max((len(c.tail) for c in cells), default=0)
    return [f"{c.head:>{head}} {c.tail:<{tail}}" if tail else f"{c.head:>{head}}" for c in cells]


def _seeds_of(row: Row, section: Section) -> int:
    """Return the n behind the main metric's interval: seeds, of which `--by` may pool several runs."""
    return row.metrics[section.main].n if section.main in row.metrics else row.n


def states_text(row: Row) -> str:
    """Return an arm's runs by state: `done=4 diverged=1`."""
    return " ".join(f"{state}={count}" for state, count in row.states.items())


def _ended(row: Row) -> str:
    return states_text(row) + (f", {row.num_unlearned} not learned" if row.num_unlearned else "")


def _measured(row: Row) -> Iterator[tuple[Metric, Interval, Interval | None]]:
    for name, metric in metrics.items():
        if name in row.metrics:
            yield metric, row.metrics[name], row.vs_baseline.get(name)


def _section(section: Section) -> dict[str, Any]:
    baselines = [row.label for row in section.rows if row.is_baseline]
    return {
        "schema": SCHEMA,
        "baseline": baselines[0] if len(baselines) == 1 else baselines or None,
        "settings": section.settings,
        "environments": section.environments,
        "main": section.main,
        "target": section.target,
        "margin": section.margin,
        "planned": section.is_planned,
        "rows": [_row(row) for row in section.rows],
        "notes": section.notes,
    }


def _row(row: Row) -> dict[str, Any]:
    measured = list(_measured(row))
    return {
        "arm": row.arm,
        "best": row.best,
        "label": row.label,
        "is_baseline": row.is_baseline,
        "n": row.n,
        "status": row.states,
        "learned": {"seeds": row.learned[0], "of": row.learned[1], "p": row.p_learned},
        "metrics": {metric.name: estimate_values(estimate, metric) for metric, estimate, _ in measured},
        "vs_baseline": {
            metric.name: difference_values(d, metric) | {"verdict": row.verdicts.get(metric.name)}
            for metric, _, d in measured
            if d is not None
        },
        "curve": row.curve,
    }


def estimate_values(e: Interval, metric: Metric) -> dict[str, Any]:
    """Return an estimate as JSON shows it, in the metric's unit."""
    return {
        e.kind: _shown(e.value, metric),
        "low": _shown(e.low, metric),
        "high": _shown(e.high, metric),
        "n": e.n,
        "num_reached": e.n - e.num_missed,
        "num_lost": e.num_lost,
        "at_once": e.is_beside,
        "since": _shown(e.since, metric),
        "limit": _shown(e.limit, metric),
        "kind": e.kind,
        "unit": metric.unit,
        "better": metric.better,
    }


def difference_values(d: Interval, metric: Metric) -> dict[str, Any]:
    """Return a difference as JSON shows it, in the metric's unit."""
    low, high = _shown(d.low, metric), _shown(d.high, metric)
    return {"difference": _shown(d.value, metric), "low": low, "high": high, "p": d.p, "n": d.n}


def _shown(value: float | None, metric: Metric) -> float | None:
    """Return the value in the metric's unit, free of the noise that the multiplication adds to the last digits."""
    return None if value is None or not math.isfinite(value) else float(f"{value * metric.scale:.12g}")
