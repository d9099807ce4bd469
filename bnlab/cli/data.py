"""`bnlab data`: data sets, what is there of them, and their download."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from bnlab.cli.options import Root, number_in

app = typer.Typer(no_args_is_help=True, help="Data sets: what is there; download.")


@app.command("list")
def list_data(root: Root = Path("data")) -> None:
    """Show what is there, what is missing, sizes and licences."""
    from bnlab.data.dataset import datasets
    from bnlab.report.listing import show_rows

    rows = []
    for name in datasets:
        source = datasets[name].source
        there = source.status(root)
        size = f"{there.bytes_on_disk / 1e6:,.0f} MB" if there.bytes_on_disk else "-"
        rows.append((name, there.state, size, source.images, source.shape, source.licence))
    show_rows(("data", "state", "on disk", "images", "shape", "licence"), rows)


@app.command(short_help="Download data sets, checked against their checksums.")
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME", hidden=True)],
    root: Root = Path("data"),
    mirror: Annotated[
        Optional[str], typer.Option("--mirror", metavar="URL", help="Fetch from here instead of the published places.")
    ] = None,
    timeout: Annotated[
        float, number_in("--timeout", float, 0.1, 86_400, help="Seconds to wait for a connection or for more data.")
    ] = 20.0,
) -> None:
    """Download data sets: with progress, resuming what is there, checked against the published checksum.

    NAME is one of `bnlab data list`.
    """
    from bnlab.data import download
    from bnlab.report.console import messages, results
    from bnlab.report.display import download_meter

    for name in names:
        waits = partial(messages().say, f"{name}: another process fetches it; waiting")
        with download_meter(sys.stderr, name) as meter:
            folder = download.fetch(name, root, mirror=mirror, timeout=timeout, report=meter, waiting=waits)
        results().say(f"{name}: in {folder}")
