"""`bnlab report`: one page to send."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from bnlab.cli.options import Baseline, BestOf, Force, Margin, Metrics, Runs, Where
from bnlab.errors import ConfigError


def report(
    paths: Runs = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="FILE.html, or FILE.md, which has no figures.")
    ] = Path("report.html"),
    metric: Metrics = None,
    baseline: Baseline = None,
    where: Where = None,
    best_of: BestOf = None,
    margin: Margin = None,
    force: Force = False,
) -> None:
    """Write a comparison as one page: question, answer, table, figures, notes, what ran where.

    PATH is the folder of a run, a sweep or a bench; default: the latest sweep. The page holds all that it shows: it can
    be sent, read offline and printed. `bnlab claim report` writes that of claims, `bnlab search --out` of a search.
    """
    from bnlab.cli.compare import default_places
    from bnlab.compare.comparison import compare
    from bnlab.report.console import messages
    from bnlab.report.page import comparison_markdown, comparison_page, left_out, write_own

    pages = {".html": comparison_page, ".md": comparison_markdown}
    if out.suffix not in pages:
        raise ConfigError(f"--out {out}: must end in {' or '.join(pages)}")
    places = paths or default_places()
    compared = compare(
        places, metrics=metric, baseline=baseline, where=where or (), best_of=best_of or (), margin=margin
    )
    options = {
        "--metric": metric or [],
        "--baseline": [baseline] if baseline else [],
        "--where": where or [],
        "--best-of": best_of or [],
        "--margin": [f"{margin:g}"] if margin else [],
    }
    given = [word for option, values in options.items() for value in values for word in (option, value)]
    command = shlex.join(["bnlab", "report", *map(str, places), *given])
    write_own(out, pages[out.suffix](compared, command).encode(), force)
    for line in (*left_out(compared), f"written: {out}"):
        messages().say(line)
