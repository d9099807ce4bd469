"""`bnlab runs`: what lies in the folder of runs, notes on it, and its removal."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from bnlab.cli.options import Format, Runs, run_argument
from bnlab.errors import ConfigError

if TYPE_CHECKING:
    from bnlab.record.inventory import Entry

app = typer.Typer(invoke_without_command=True)
HOURS = {"h": 1, "d": 24, "w": 7 * 24}


@app.callback()
def runs(context: typer.Context, format: Format = "table") -> None:
    """List sweeps and runs, the newest first: name, time, what was trained, states, how long, size on disk.

    A name, or its beginning where that is the only one, stands for the folder in every command; so does latest, and
    latest/3 for job 3 of the latest sweep. They lie in runs, or in the folder that BNLAB_RUNS names.
    """
    if context.invoked_subcommand is not None:
        return
    from bnlab.record.inventory import entries
    from bnlab.record.latest import no_runs, runs_folder
    from bnlab.record.read import read_runs
    from bnlab.report.console import messages
    from bnlab.report.rows import show
    from bnlab.report.runs_report import runs_rows, runs_table

    found = list(entries())
    if found:
        show(format, [partial(runs_table, found)], {}, runs_rows(found))
    else:
        for folder, reason in read_runs([runs_folder()])[1] if os.path.lexists(runs_folder()) else ():
            messages().say(f"{folder}: {reason}")
        messages().say(str(no_runs()))


@app.command(short_help="Note a text on a run or a sweep.")
def note(
    run: Annotated[Path, run_argument("RUN")], text: Annotated[str, typer.Argument(metavar="TEXT", hidden=True)]
) -> None:
    """Note TEXT on a run or a sweep, for `bnlab runs` and `bnlab show`; an empty TEXT takes the note away."""
    from bnlab.record.inventory import write_note

    write_note(run, text)


@app.command(short_help="Remove runs, sweeps, or their checkpoints.")
def rm(
    places: Runs = None,
    failed: Annotated[bool, typer.Option("--failed", help="All of which every run failed or was killed.")] = False,
    older: Annotated[
        Optional[str], typer.Option("--older", metavar="TIME", help="All that are older than such as 30d, 12h, 8w.")
    ] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Only the checkpoints, of runs that are over; by default of all.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove runs and sweeps that PATH names, or that are failed or old; asks before.

    Never what is running, and nothing outside of the folder of runs.
    """
    from bnlab.record.inventory import remove, remove_weights, weights_of
    from bnlab.report.console import messages, results
    from bnlab.report.runs_report import entry_line, size_text

    err, hours = messages(), None if older is None else _hours(older)
    chosen = list(_chosen(places, failed, hours, checkpoints))
    if not chosen:
        err.say("nothing to remove")
        return
    for entry in chosen:
        err.say(entry_line(entry, sum(weights_of(entry).values()) if checkpoints else entry.size))
    what = "the checkpoints of these" if checkpoints else f"these {len(chosen)}" if len(chosen) > 1 else "this"
    if not yes and not sys.stdin.isatty():
        raise ConfigError(f"remove {what}? nobody is there to ask\nadd --yes to remove")
    if not yes:
        typer.confirm(f"remove {what}?", err=True, abort=True)
    freed = sum((remove_weights if checkpoints else remove)(entry) for entry in chosen)
    results().say(f"{'checkpoints of ' if checkpoints else ''}{len(chosen)} removed, {size_text(freed)}")


def _chosen(places: Sequence[Path] | None, failed: bool, hours: float | None, checkpoints: bool) -> Iterator[Entry]:
    """Yield what is to be removed; what is named is checked, and of the others none that is at work is taken.

    Errors: ConfigError, BusyError.
    """
    from bnlab.record.inventory import at_work, check_removable, entries, entry_of
    from bnlab.record.latest import STAMP

    if places:
        if failed or hours is not None:
            raise ConfigError("--failed and --older: choose by themselves\nleave out what is named")
        for place in places:
            check_removable(place)
        yield from map(entry_of, dict.fromkeys(places))
        return
    if not (failed or hours is not None or checkpoints):
        raise ConfigError("name what to remove, or give --failed, --older 30d or --checkpoints")
    for entry in entries():
        busy = at_work(entry.folder, entry.runs) is not None
        old = hours is None or time.time() - entry.begun > 3600 * hours
        if STAMP.match(entry.folder.name) and not busy and old and (entry.is_failed or not failed):
            yield entry


def _hours(text: str) -> float:
    if not (found := re.fullmatch(r"(\d{1,6})([hdw])", text)):
        raise ConfigError(f"--older {text}: must be a time such as 12h, 30d or 8w")
    return int(found[1]) * HOURS[found[2]]
