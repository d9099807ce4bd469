"""`bnlab compare`: arms against a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from bnlab.cli.gates import Gate, end_by_gates_on, parse_gates
from bnlab.cli.options import Baseline, Format, Margin, Runs, Strict, Test, Where, number_in


def compare(
    paths: Runs = None,
    by: Annotated[
        Optional[list[str]],
        typer.Option("--by", metavar="KEY", help="Keys that make an arm; default: all that differ."),
    ] = None,
    baseline: Baseline = None,
    metric: Annotated[
        Optional[list[str]],
        typer.Option(
            "--metric", metavar="NAME", help="Metrics to show, the first is compared; see `bnlab list metrics`."
        ),
    ] = None,
    where: Where = None,
    sort: Annotated[
        Optional[str], typer.Option("--sort", metavar="METRIC", help="Metric to sort by, best first.")
    ] = None,
    target: Annotated[
        Optional[float], number_in("--target", float, 0, 1, help="Validation accuracy to reach, such as 0.98.")
    ] = None,
    best_of: Annotated[
        Optional[list[str]],
        typer.Option("--best-of", metavar="KEY", help="Each arm at its best value of KEY, chosen on validation."),
    ] = None,
    pivot: Annotated[
        Optional[str],
        typer.Option("--pivot", metavar="ROWxCOL", help="A matrix, each column's best bold: 'norm x model'."),
    ] = None,
    gate: Gate = None,
    margin: Margin = None,
    test: Test = None,
    format: Format = "table",
    strict: Strict = False,
) -> None:
    """Compare arms (all runs that differ in the seed only) with intervals, paired by seed against a baseline.

    PATH is the folder of a run or of a sweep; default: runs.
    """
    from bnlab.compare import comparison
    from bnlab.report.compare_report import comparison_table, skipped_lines
    from bnlab.report.console import messages, results

    gates = parse_gates(gate)
    compared = comparison.compare(
        paths or [Path("runs")],
        by=by or (),
        baseline=baseline,
        metrics=metric,
        where=where or (),
        sort=sort,
        target=target,
        best_of=best_of or (),
        pivot=pivot,
        margin=margin,
        test=test,
    )
    out = results()
    if pivot is not None:
        from bnlab.report.pivot_report import PIVOT_FORMATS, pivot_table

        if format == "table":
            out.print(pivot_table(compared, out))
        else:
            out.emit(PIVOT_FORMATS[format](compared))
    elif format == "table":
        out.print(comparison_table(compared, out, (metric or [])[1:]))
    else:
        from bnlab.report.compare_formats import FORMATS

        out.emit(FORMATS[format](compared))
    for line in skipped_lines(compared):
        messages().say(line)
    end_by_gates_on(paths or [Path("runs")], where or (), gates, format)
    if strict and compared.skipped:
        raise typer.Exit(1)
