"""The command line, one file a command: parse, call, print. `train.py` is the one to read first.

Everything heavy is imported by the command that needs it, so that `bnlab --help` answers at once. Results go to stdout;
progress, logs and errors to stderr. Exit codes: 0 all done, 1 a job failed or the machine is at fault, 2 the command
line is wrong, or what it names (nothing was started), 130 Ctrl-C, 143 SIGTERM; errors.py has the rule.
"""

from __future__ import annotations

import bnlab.interrupts  # before all that takes time to load

# isort: split
import os
import signal
import sys
import traceback
from typing import Annotated

import typer

from bnlab import __version__
from bnlab.cli import (
    bench,
    check,
    claim,
    compare,
    data,
    doctor,
    explain,
    export,
    guide,
    list_options,
    plot,
    probe,
    recalibrate,
    report,
    resume,
    runs,
    search,
    shift,
    show,
    train,
)
from bnlab.cli.loading import announce_torch
from bnlab.cli.options import OWN_WORDS
from bnlab.errors import OF_THE_PATH, BnlabError

LONGEST_LINE = 500  # characters of a message, which may quote what a user gave

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


app.command(short_help="Train one run, or a sweep with -m.", context_settings=OWN_WORDS)(train.train)
app.command(short_help="Finish a run or a sweep.", context_settings=OWN_WORDS)(resume.resume)
app.command(short_help="Find the largest learning rate of each arm.", context_settings=OWN_WORDS)(search.search)
app.command(short_help="Compare arms with intervals, paired by seed.")(compare.compare)
app.command(short_help="Show one run: settings, outcome, curves.")(show.show)
app.command(short_help="Write a comparison as one page to send.")(report.report)
app.command(short_help="Draw a figure for a paper.")(plot.plot)
app.add_typer(runs.app, name="runs", short_help="List runs and sweeps, note, remove.")
app.command(short_help="Write runs for pandas, TensorBoard, MLflow.")(export.export)
app.command(short_help="Train against eval: every measure, and the causes.")(probe.probe)
app.command(short_help="Put statistics of the training set into a model.")(recalibrate.recalibrate)
app.command(short_help="Evaluate under shifts of the test images.")(shift.shift)
app.command(short_help="Step times as ratios with intervals, in minutes.", context_settings=OWN_WORDS)(bench.bench)
app.command(short_help="Check what a strategy says of itself, or your own module.", context_settings=OWN_WORDS)(
    check.check
)
app.command("list", short_help="List every option with one line each.")(list_options.list_options)
app.command(short_help="Explain a key, a metric or an option.")(explain.explain)
app.add_typer(claim.app, name="claim")
app.add_typer(data.app, name="data")
app.command(short_help="Read a guide in the terminal.")(guide.guide)
app.command(short_help="Look at what runs need on this machine.")(doctor.doctor)


def main() -> None:
    """Run the command line; every error ends in one message and its exit code."""
    _stand_in_for_closed_streams()
    arguments = [a for a in sys.argv[1:] if a != "--traceback"]
    wants_traceback = len(arguments) < len(sys.argv) - 1
    try:
        try:
            _refuse_removed_folder()
            announce_torch()
            app(args=arguments, prog_name="bnlab")
        finally:
            sys.stdout.flush()  # or the interpreter finds a full disk when it is too late to say so
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)  # 128 + SIGPIPE: the reader went away
    except (BnlabError, OSError) as error:
        from bnlab.report.console import messages

        if isinstance(error, OSError):  # stdout on a full disk, above all
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in its buffer is lost either way
            text = f"cannot read or write {error.filename or 'the output'}: {error.strerror or error}"
            code = 2 if error.errno in OF_THE_PATH else 1
        else:
            text, code = str(error), error.exit_code
        for line in (traceback.format_exc() if wants_traceback else text).splitlines():
            messages().say(line if len(line) <= LONGEST_LINE else f"{line[:200]} … {line[-100:]}")
        sys.exit(code)
    finally:
        if signal.getsignal(signal.SIGINT) is bnlab.interrupts.interrupted:  # while the interpreter ends
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _refuse_removed_folder() -> None:
    """Say so where the current folder is gone, in which torch ends the process and no name of a file means one."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise BnlabError("the current folder has been removed\ncd to one that is there") from None


def _stand_in_for_closed_streams() -> None:
    """Put /dev/null in the place of what was closed when we were started, or the next file opened would take it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
