"""Commands about what there is here: options, data sets, the machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from bnlab.errors import ConfigError, did_you_mean

Root = Annotated[Path, typer.Option("--root", help="Folder that holds the data sets.")]

KINDS = {
    "norms": "norm",
    "models": "model",
    "data": "data",
    "optimizers": "optim",
    "schedules": "schedule",
    "recipes": "recipe",
}


def list_options(
    kinds: Annotated[
        Optional[list[str]],
        typer.Argument(metavar="[KIND]...", help=f"{', '.join(KINDS)}, metrics; default: all of them"),
    ] = None,
) -> None:
    """List every option of the given kinds with one line each."""
    from bnlab.config.files import groups
    from bnlab.metrics import metrics
    from bnlab.report.listing import show_options

    known = groups()
    options = {kind: known[group] for kind, group in KINDS.items()}
    options["metrics"] = {m.name: f"{m.meaning} [{m.unit or 'count'}]" for m in metrics.values()}
    wanted = [word for words in kinds or [",".join(options)] for word in words.split(",")]
    for kind in wanted:
        if kind not in options:
            raise ConfigError(f"{kind}: no such kind{did_you_mean(kind, options)}\nthere are: {', '.join(options)}")
    show_options({kind: options[kind] for kind in wanted})


def data_list(root: Root = Path("data")) -> None:
    """What is there, what is missing, sizes and licences."""
    from bnlab.data.dataset import datasets
    from bnlab.report.listing import show_rows

    rows = []
    for name in datasets:
        source = datasets[name].source
        there = source.status(root)
        size = f"{there.bytes_on_disk / 1e6:,.0f} MB" if there.bytes_on_disk else "-"
        rows.append((name, there.state, size, source.images, source.shape, source.licence))
    show_rows(("data", "state", "on disk", "images", "shape", "licence"), rows)


def data_fetch(
    names: Annotated[list[str], typer.Argument(help="Names of `bnlab data list`.")],
    root: Root = Path("data"),
    mirror: Annotated[
        Optional[str], typer.Option("--mirror", help="A URL to fetch from instead of the published ones.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds to wait for a connection or for more.")
    ] = 20.0,
) -> None:
    """Download data sets: with progress, resuming what is there, checked against the published checksum."""
    from bnlab.data.download import fetch
    from bnlab.report.console import results
    from bnlab.report.download_report import download_meter

    for name in names:
        with download_meter(sys.stderr, name) as meter:
            where = fetch(name, root, mirror=mirror, timeout=timeout, report=meter)
        results().say(f"{name}: in {where}")


def doctor(root: Root = Path("data")) -> None:
    """Look at what runs need here: versions, device, threads, data, disk, a write test."""
    from bnlab.cli.doctor import examine
    from bnlab.report.listing import show_findings

    findings = []
    for finding in examine(Path("runs"), root):
        show_findings([(finding.subject, finding.state, finding.text)])
        findings.append(finding)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)
