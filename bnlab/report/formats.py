"""A comparison for programs and files: plain text, CSV, JSON and Markdown; every figure is in the metric's unit.

JSON keeps labels as they are (its strings escape every control character); the others show control characters as
escapes. A text cell of a CSV that a spreadsheet would run as a formula starts with an apostrophe.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bnlab.compare.arms import short_names, text_of
from bnlab.compare.result import Comparison, Row, Section
from bnlab.interval import Interval
from bnlab.metrics import Metric, metrics
from bnlab.report.columns import aligned, baseline_name, table_title
from bnlab.report.console import clean
from bnlab.report.figures import MISSING, Cell, difference_cells, estimate_cells
from bnlab.report.heading import heading

SCHEMA = 1
_CSV_FIGURES = (
    *("n", "center", "low", "high", "num_reached", "limit", "kind"),
    *("difference", "difference_low", "difference_high", "p"),
)
_FORMULA = re.compile(r"\s*[=+\-@]")


def as_plain(comparison: Comparison) -> str:
    """Return aligned text to grep: `#` before all that is no arm, every metric with its interval, one line an arm."""
    lines: list[str] = []
    for section in comparison.sections:
        titles, rows = _grid(section, plain=True)
        table = [titles, *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(titles))]
        lines += ["# " + " · ".join(map(clean, heading(section)))]
        lines += [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        lines += [f"# {clean(note)}" for note in section.notes] + [""]
    return "\n".join(lines[:-1]) + "\n" if lines else ""


def as_markdown(comparison: Comparison) -> str:
    """Return one GitHub table a section, under its header as a line of text, with the notes as a list."""
    blocks: list[str] = []
    for section in comparison.sections:
        titles, rows = _grid(section, plain=False)
        text_columns = {*titles[: titles.index("n")], "states"}
        ruler = ["---" if titles[i] in text_columns else "---:" for i in range(len(titles))]
        table = [titles, ruler, *rows]
        blocks.append(escaped(" · ".join(map(clean, heading(section)))))
        blocks.append("\n".join(f"| {' | '.join(row if row is ruler else map(escaped, row))} |" for row in table))
        if section.notes:
            blocks.append("\n".join(f"- {escaped(clean(note))}" for note in section.notes))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def as_csv(comparison: Comparison) -> str:
    """Return one line an arm and metric; its keys are columns of their own, empty where a section has them not."""
    keys = list(dict.fromkeys(key for section in comparison.sections for key in section.changed))
    chosen = list(dict.fromkeys(key for section in comparison.sections for key in section.chosen))
    names = [*keys, *(f"best {key}" for key in chosen)]
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(map(inert, ["section", *names, "arm", "baseline", "states", "metric", "unit", *_CSV_FIGURES]))
    for number, section in enumerate(comparison.sections, 1):
        for row in section.rows:
            values = [*(row.arm.get(key) for key in keys), *(row.best.get(key) for key in chosen)]
            arm = [number, *values, row.label, row.is_baseline, states_text(row)]
            for metric, estimate, difference in _measured(row):
                figures = estimate_values(estimate, metric) | {"center": _shown(estimate.value, metric)}
                if difference is not None:
                    against = _difference(difference, metric)
                    figures |= {"difference": against["difference"], "p": against["p"]}
                    figures |= {"difference_low": against["low"], "difference_high": against["high"]}
                cells = [*arm, metric.name, metric.unit, *(figures.get(name) for name in _CSV_FIGURES)]
                writer.writerow(map(inert, cells))
    return target.getvalue()


def as_json(comparison: Comparison) -> str:
    """Return JSON: of one section the object itself, of several `{"schema": 1, "sections": [...]}` of such objects.

    A section is {"schema", "baseline" (its label, or a list of several), "settings", "environments", "main", "target",
    "rows", "notes"}, the whole adds "skipped". A metric is {"mean" or "median", "low", "high", "n", "num_reached",
    "limit", "kind", "unit", "better"}; what is unknown or not finite is null. The "n" of a metric counts seeds, that of
    a row finished runs. "best" of a row is the setting that was chosen for it on validation.
    """
    return document([_section(section) for section in comparison.sections], comparison)


def document(sections: list[dict[str, Any]], comparison: Comparison) -> str:
    """Return JSON of the only section, or of several, with the run folders that were left out."""
    whole = sections[0] if len(sections) == 1 else {"schema": SCHEMA, "sections": sections}
    whole["skipped"] = [{"path": str(path), "reason": reason} for path, reason in comparison.skipped]
    return json.dumps(finite(whole), indent=2, allow_nan=False) + "\n"


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "plain": as_plain,
    "csv": as_csv,
    "json": as_json,
    "md": as_markdown,
}


def _grid(section: Section, *, plain: bool) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of text: arm, n, states, then each metric, behind the main one what it differs by.

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
    columns += [("n", [str(_seeds_of(row, section)) for row in rows]), ("states", [states_text(row) for row in rows])]
    measured = [name for name in metrics if any(name in row.metrics for row in rows)]
    for name in sorted(measured, key=lambda name: name != section.main):
        metric = metrics[name]
        unit = f"[{metric.unit}]" if metric.unit else ""
        cells = estimate_cells([row.metrics.get(name) for row in rows], metric.scale, whole=metric.unit == "steps")
        columns.append((name + unit if plain else table_title(metric, section), _texts(cells, plain)))
        if name == section.main:
            differences = [row.vs_baseline.get(name) for row in rows]
            cells = difference_cells(differences, metric.scale, 2)
            columns.append((f"difference{unit}" if plain else f"vs {baseline_name(section)}", _texts(cells, plain)))
            columns.append(("p", [MISSING if d is None or d.p is None else f"{d.p:.2g}" for d in differences]))
    texts = [[clean(cell) or MISSING for cell in cells] for _, cells in columns]
    return [clean(title) for title, _ in columns], [list(row) for row in zip(*texts, strict=True)]


def _texts(cells: list[Cell], plain: bool) -> list[str]:
    return aligned(cells) if plain else [str(cell) for cell in cells]


def _seeds_of(row: Row, section: Section) -> int:
    """Return the n behind the main metric's interval: seeds, of which `--by` may pool several runs."""
    return row.metrics[section.main].n if section.main in row.metrics else row.n


def states_text(row: Row) -> str:
    """Return an arm's runs by state: `done=4 diverged=1`."""
    return " ".join(f"{state}={count}" for state, count in row.states.items())


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
        "metrics": {metric.name: estimate_values(estimate, metric) for metric, estimate, _ in measured},
        "vs_baseline": {metric.name: _difference(d, metric) for metric, _, d in measured if d is not None},
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
        "limit": _shown(e.limit, metric),
        "kind": e.kind,
        "unit": metric.unit,
        "better": metric.better,
    }


def _difference(d: Interval, metric: Metric) -> dict[str, Any]:
    low, high = _shown(d.low, metric), _shown(d.high, metric)
    return {"difference": _shown(d.value, metric), "low": low, "high": high, "p": d.p, "n": d.n}


def _shown(value: float | None, metric: Metric) -> float | None:
    """Return the value in the metric's unit, free of the noise that the multiplication adds to the last digits."""
    return None if value is None or not math.isfinite(value) else float(f"{value * metric.scale:.12g}")


def finite(value: Any) -> Any:
    """Return the value with null for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def inert(value: Any) -> Any:
    """Return a CSV cell: numbers as they are, text cleaned and never a formula."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    text = clean(text_of(value))
    return f"'{text}" if _FORMULA.match(text) else text


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in a table too."""
    return re.sub(r"([\\*<\[|])", r"\\\1", text.strip())
