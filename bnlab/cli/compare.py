"""`bnlab compare`: arms against a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from bnlab.cli.compare_from import Columns, Seed, Source, others
from bnlab.cli.gates import Gate, end_by_gates_on, parse_gates
from bnlab.cli.options import (
    Baseline,
    BestOf,
    Format,
    Margin,
    Metrics,
    Runs,
    Strict,
    Test,
    Where,
    complete_key,
    complete_metric,
    number_in,
    refuse_beside,
    several,
)

if TYPE_CHECKING:
    from bnlab.compare.result import Comparison

By = Annotated[
    Optional[list[str]], several("--by", "KEY", "Keys that make an arm; default: all that differ.", complete_key)
]
Over = Annotated[
    Optional[str],
    typer.Option(
        "--over",
        metavar="KEY",
        autocompletion=complete_key,
        help="A number across, such as data.train_size, and slopes over it.",
    ),
]
Sort = Annotated[
    Optional[str],
    typer.Option("--sort", metavar="METRIC", autocompletion=complete_metric, help="Metric to sort by, best first."),
]
Evaluated = Annotated[
    bool, typer.Option("--evaluated", help="Also what `probe` and `shift` made of the runs by other settings.")
]
Notes = Annotated[bool, typer.Option("--notes", help="Print all notes below the table.")]
All = Annotated[bool, typer.Option("--all", help="Without PATH: all of runs, not the latest sweep only.")]


def compare(
    paths: Runs = None,
    by: By = None,
    baseline: Baseline = None,
    metric: Metrics = None,
    where: Where = None,
    sort: Sort = None,
    target: Annotated[
        Optional[float], number_in("--target", float, 0, 1, help="Validation accuracy to reach, such as 0.98.")
    ] = None,
    best_of: BestOf = None,
    pivot: Annotated[
        Optional[str],
        typer.Option("--pivot", metavar="ROWxCOL", help="A matrix, each column's best bold: 'norm x model'."),
    ] = None,
    over: Over = None,
    source: Source = None,
    arm: Columns = None,
    seed: Seed = None,
    gate: Gate = None,
    margin: Margin = None,
    test: Test = None,
    evaluated: Evaluated = False,
    notes: Notes = False,
    everything: All = False,
    format: Format = "table",
    strict: Strict = False,
) -> None:
    """Compare arms (all runs that differ in the seed only) with intervals, paired by seed against a baseline.

    PATH is the folder of a run or of a sweep; default: the latest sweep.
    """
    from bnlab.compare import comparison
    from bnlab.report.compare_report import skipped_lines
    from bnlab.report.console import messages

    refuse_beside("--over", over, {"--pivot": pivot, "--sort": sort, "--best-of": best_of, "--margin": margin})
    refuse_beside("--evaluated", evaluated, {"--over": over, "--from": source})
    of_others = {"PATH": paths, "--by": by, "--target": target, "--best-of": best_of, "--gate": gate, "--over": over}
    refuse_beside("--from", source, of_others)
    gates, places = parse_gates(gate), paths or default_places(everything or source is not None)
    with others(source, arm, seed, metric, where) as given:
        if over is not None:
            compared = _over(places, over, by or (), baseline, metric, where or (), target, test, format)
        else:
            compared = comparison.compare(
                places,
                by=by or (),
                baseline=baseline,
                metrics=metric if given is None else given.names,
                where=(where or ()) if given is None else (),
                sort=sort,
                target=target,
                best_of=best_of or (),
                pivot=pivot,
                margin=margin,
                test=test,
                of=None if given is None else given.runs,
                with_evaluated=evaluated,
            )
            show_comparison(compared, format, (metric if given is None else given.names) or (), notes)
    for line in skipped_lines(compared):
        messages().say(line)
    end_by_gates_on(places, where or (), gates, format)
    if strict and compared.skipped:
        raise typer.Exit(1)


def default_places(everything: bool = False) -> list[Path]:
    """Return what is compared where no path is given, and say which that is."""
    from bnlab.record.latest import latest, runs_folder
    from bnlab.report.console import messages

    places, which = ([runs_folder()], None) if everything else latest()
    if which is not None:
        messages().say(which)
    return places


def show_comparison(compared: Comparison, format: str, names: Sequence[str], all_notes: bool) -> None:
    """Print a comparison, or its matrices; `names` are the metrics asked for."""
    from bnlab.report.console import results

    out = results()
    if compared.pivot is not None:
        from bnlab.report.pivot_report import PIVOT_FORMATS, pivot_table

        out.print(pivot_table(compared, out)) if format == "table" else out.emit(PIVOT_FORMATS[format](compared))
    elif format == "table":
        from bnlab.report.compare_report import comparison_table

        out.print(comparison_table(compared, out, names[1:], all_notes))
    else:
        from bnlab.report.compare_formats import FORMATS

        out.emit(FORMATS[format](compared))


def _over(
    places: Sequence[Path],
    over: str,
    by: Sequence[str],
    baseline: str | None,
    metric: Sequence[str] | None,
    where: Sequence[str],
    target: float | None,
    test: Test | None,
    format: str,
) -> Comparison:
    """Print arms over the levels of a key. Errors: ConfigError, as for more than one metric."""
    from bnlab.compare.over import compare_over
    from bnlab.report.console import results
    from bnlab.report.over_report import OVER_FORMATS, over_table

    main, *more = metric or ["test_accuracy"]
    refuse_beside("--over", over, {f"--metric {more[0]}" if more else "": more})
    levels, compared = compare_over(
        places, over, by=by, baseline=baseline, metric=main, where=where, target=target, test=test
    )
    out = results()
    out.print(over_table(levels, out)) if format == "table" else out.emit(OVER_FORMATS[format](levels, compared))
    return compared
