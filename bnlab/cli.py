"""The command line: parse, call, print. Everything heavy is imported by the command that needs it.

Results go to stdout; progress, logs and errors to stderr. Exit codes: 0 all done, 1 a job failed or the environment is
at fault, 2 usage or configuration (nothing was started), 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import enum
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer

from bnlab import __version__
from bnlab.errors import BnlabError, ConfigError, did_you_mean

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: what is there; download.")
app.add_typer(data_app, name="data")


class CfgPart(enum.StrEnum):
    job = "job"
    hydra = "hydra"
    all = "all"


class InfoPart(enum.StrEnum):
    all = "all"
    config = "config"
    defaults = "defaults"
    defaults_tree = "defaults-tree"
    plugins = "plugins"
    searchpath = "searchpath"


class Format(enum.StrEnum):
    table = "table"
    plain = "plain"
    csv = "csv"
    json = "json"
    md = "md"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bnlab {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Measure what normalization strategies do: step time, convergence, train-versus-eval discrepancy.

    Every command takes --traceback: show where an error came from.
    """


def _complete_override(incomplete: str) -> list[str]:
    from bnlab.completion import overrides

    return overrides(incomplete)


@app.command(short_help="Train one run, or a sweep with -m.")
def train(
    overrides: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Hydra overrides, such as norm=ghost norm.size=16 data=mnist seed=0,1,2",
            autocompletion=_complete_override,
        ),
    ] = None,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="One run for each combination of a,b lists.")
    ] = False,
    cfg: Annotated[Optional[CfgPart], typer.Option("--cfg", "-c", help="Print the configuration, run nothing.")] = None,
    resolve: Annotated[bool, typer.Option("--resolve", help="With --cfg: resolve interpolations.")] = False,
    package: Annotated[Optional[str], typer.Option("--package", "-p", help="With --cfg: only this part.")] = None,
    info: Annotated[
        Optional[InfoPart], typer.Option("--info", "-i", help="Print what Hydra knows, run nothing.")
    ] = None,
    config_dir: Annotated[
        Optional[Path],
        typer.Option("--config-dir", exists=True, file_okay=False, help="A folder of further configurations."),
    ] = None,
) -> None:
    """Train one model, or with -m a whole sweep; one line a run on stdout: folder, status, headline figures.

    `bnlab list` names every option, `bnlab train --cfg job` prints every key with its value.
    """
    from bnlab import hydra_app

    lines = list(overrides or [])
    if cfg is not None:
        return hydra_app.show_config(lines, cfg.value, resolve, package, config_dir)
    if resolve or package:
        raise ConfigError("--resolve and --package go with --cfg")
    if info is not None:
        return hydra_app.show_info(lines, info.value, config_dir)
    from bnlab.sweep import launch

    signal.signal(signal.SIGTERM, _terminated)
    raise typer.Exit(launch(lines, multirun, config_dir))


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


@app.command(short_help="Compare arms with intervals, paired by seed.")
def compare(
    paths: Annotated[Optional[list[Path]], typer.Argument(help="Run or sweep folders; default: runs")] = None,
    by: Annotated[
        Optional[list[str]], typer.Option("--by", help="Keys that make an arm; default: all that differ.")
    ] = None,
    baseline: Annotated[
        Optional[str], typer.Option("--baseline", help="The arm to compare with, such as norm=none.")
    ] = None,
    metric: Annotated[
        Optional[list[str]],
        typer.Option("--metric", help="Metrics to show, the first is compared; see `list metrics`."),
    ] = None,
    where: Annotated[Optional[list[str]], typer.Option("--where", help="Only runs with KEY=VALUE[,VALUE].")] = None,
    sort: Annotated[Optional[str], typer.Option("--sort", help="Metric to sort by, best first.")] = None,
    target: Annotated[
        Optional[float], typer.Option("--target", help="Validation accuracy to reach, such as 0.98.", min=0.0, max=1.0)
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.table,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when a run folder cannot be read.")] = False,
) -> None:
    """Compare arms (all runs that differ in the seed only) with intervals, paired by seed against a baseline."""
    from bnlab.compare.compare import compare as compare_runs
    from bnlab.report.console import messages, results
    from bnlab.report.table import comparison_table, skipped_lines

    found = compare_runs(
        paths or [Path("runs")],
        by=by or (),
        baseline=baseline,
        metrics=metric,
        where=where or (),
        sort=sort,
        target=target,
    )
    out = results()
    if format is Format.table:
        out.print(comparison_table(found, width=out.width, unicode=out.unicode, names=(metric or [])[1:]))
    else:
        from bnlab.report.formats import FORMATS

        out.emit(FORMATS[format.value](found))
    for line in skipped_lines(found):
        messages().say(line)
    if strict and found.skipped:
        raise typer.Exit(1)


@app.command(short_help="Show one run: settings, outcome, curves.")
def show(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
) -> None:
    """Show one run: what it was, where it ran, how it went, curves as a chart."""
    from bnlab.compare.read import read_documents
    from bnlab.report.console import results
    from bnlab.report.show import show_run

    status, summary = read_documents(run)
    out = results()
    out.print(show_run(summary, status, run, out.width, unicode=out.unicode, coloured=out.coloured))


@app.command(short_help="Check what a strategy says of itself, or your own module.")
def check(
    overrides: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Hydra overrides, such as norm=ghost norm.size=8; several strategies: norm=batch,ghost; default: all",
            autocompletion=_complete_override,
        ),
    ] = None,
    module: Annotated[
        Optional[str],
        typer.Option("--module", metavar="PACKAGE.MODULE:FACTORY", help="Your factory(channels) -> torch.nn.Module."),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.table,
) -> None:
    """Measure on random and edge tensors what a normalization does, and whether that is what it declares.

    Exit code 1: a property is against what is declared. Your own module declares nothing: its card says what it does.
    """
    from bnlab.check import check as print_cards

    raise typer.Exit(print_cards(overrides or [], module, format.value))


KINDS = {
    "norms": "norm",
    "models": "model",
    "data": "data",
    "optimizers": "optim",
    "schedules": "schedule",
    "recipes": "recipe",
}


@app.command("list", short_help="List every option with one line each.")
def list_options(
    kinds: Annotated[
        Optional[list[str]],
        typer.Argument(metavar="[KIND]...", help=f"{', '.join(KINDS)}, metrics; default: all of them"),
    ] = None,
) -> None:
    """List every option of the given kinds with one line each."""
    from bnlab.hydra_app import groups
    from bnlab.measure.metrics import metrics
    from bnlab.report.listing import show_options

    known = groups()
    options = {kind: known[group] for kind, group in KINDS.items()}
    options["metrics"] = {m.name: f"{m.meaning} [{m.unit or 'count'}]" for m in metrics.values()}
    wanted = [word for words in kinds or [",".join(options)] for word in words.split(",")]
    for kind in wanted:
        if kind not in options:
            raise ConfigError(f"{kind}: no such kind{did_you_mean(kind, options)}\nthere are: {', '.join(options)}")
    show_options({kind: options[kind] for kind in wanted})


Root = Annotated[Path, typer.Option("--root", help="Folder that holds the data sets.")]


@data_app.command("list")
def data_list(root: Root = Path("data")) -> None:
    """What is there, what is missing, sizes and licences."""
    from bnlab.download.catalog import SOURCES, status
    from bnlab.report.listing import show_rows

    rows = []
    for name in SOURCES:
        found = status(name, root)
        size = f"{found.bytes_on_disk / 1e6:,.0f} MB" if found.bytes_on_disk else "-"
        rows.append((name, found.state, size, found.source.images, found.source.shape, found.source.licence))
    show_rows(("data", "state", "on disk", "images", "shape", "licence"), rows)


@data_app.command("fetch")
def data_fetch(
    names: Annotated[list[str], typer.Argument(help="mnist, fashion_mnist, cifar10, cifar100")],
    root: Root = Path("data"),
    mirror: Annotated[
        Optional[str], typer.Option("--mirror", help="A URL to fetch from instead of the published ones.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds to wait for a connection or for more.")
    ] = 20.0,
) -> None:
    """Download data sets: with progress, resuming what is there, checked against the published checksum."""
    from bnlab.download.fetch import fetch
    from bnlab.report.console import results
    from bnlab.report.download import download_meter

    for name in names:
        with download_meter(sys.stderr, name) as meter:
            where = fetch(name, root, mirror=mirror, timeout=timeout, report=meter)
        results().say(f"{name}: in {where}")


@app.command(short_help="Look at what runs need on this machine.")
def doctor(root: Root = Path("data")) -> None:
    """Look at what runs need here: versions, device, threads, data, disk, a write test."""
    from bnlab.doctor import examine
    from bnlab.report.listing import show_findings

    findings = []
    for finding in examine(Path("runs"), root):
        show_findings([(finding.subject, finding.state, finding.text)])
        findings.append(finding)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; every error ends in one message and its exit code."""
    arguments = [a for a in sys.argv[1:] if a != "--traceback"]
    wants_traceback = len(arguments) < len(sys.argv) - 1
    try:
        app(args=arguments, prog_name="bnlab")
    except (BnlabError, OSError) as error:
        if wants_traceback:
            raise
        from bnlab.report.console import messages

        if isinstance(error, OSError):  # stdout on a full disk, above all
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in its buffer is lost either way
            messages().say(f"cannot read or write {error.filename or 'the output'}: {error.strerror or error}")
            sys.exit(1)
        for line in str(error).splitlines():
            messages().say(line)
        sys.exit(error.exit_code)
