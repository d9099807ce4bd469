"""`bnlab search`: the largest learning rate, or level of another key, at which each arm learns."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from bnlab.cli.options import (
    Baseline,
    ConfigDir,
    DryRun,
    Force,
    Format,
    Inline,
    Overrides,
    Retries,
    Timeout,
    complete_key,
    number_in,
)
from bnlab.errors import ConfigError, count_of, did_you_mean

if TYPE_CHECKING:
    from bnlab.claims.ladder import Levels
    from bnlab.config.files import Key
    from bnlab.record.read import Run
    from bnlab.runner.largest import ArmLadders

FIGURES = (".svg", ".pdf", ".png")


def search(
    key: Annotated[str, typer.Argument(metavar="KEY", autocompletion=complete_key, hidden=True)],
    overrides: Overrides = None,
    start: Annotated[float, number_in("--from", float, 1e-12, 1e12, help="The level to begin with.")] = 0.01,
    top: Annotated[float, number_in("--to", float, 1e-12, 1e12, help="No level is above this.")] = 100.0,
    factor: Annotated[float, number_in("--factor", float, 1.01, 1e6, help="From one level to the next.")] = 2.0,
    resolution: Annotated[
        Optional[float],
        number_in("--resolution", float, 1.001, 1e6, help="Halve the last step until it is such a factor."),
    ] = None,
    baseline: Baseline = None,
    config_dir: ConfigDir = None,
    timeout: Timeout = None,
    retries: Retries = 0,
    inline: Inline = False,
    dry_run: DryRun = False,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", metavar="FILE", help="Write a page to send, FILE.html, or its figure, .svg, .pdf, .png."),
    ] = None,
    force: Force = False,
    format: Format = "table",
) -> None:
    """Find the largest level of KEY, such as optim.lr, at which each arm learns, with each seed.

    KEY=VALUE are overrides as of `bnlab train -m`; without others it trains seed=0,1,2 with schedule=constant and
    trainer.stop_when_lost=true. Levels rise until two in a row fail. Runs are shared (runs/pool): the same command goes
    on where it was.
    """
    from bnlab.claims.ladder import Levels
    from bnlab.cli.sheet_page import check_out
    from bnlab.cli.train import handle_signals, stopped
    from bnlab.config.compose import hydra_lines
    from bnlab.record.latest import POOL, runs_folder
    from bnlab.record.run_folder import held
    from bnlab.report.console import messages
    from bnlab.report.progress import make_progress
    from bnlab.runner.climb import climb
    from bnlab.runner.largest import arms_searched, ladders_of
    from bnlab.runner.pool import Launch, find_finished, launcher_of
    from bnlab.runner.supervisor import JobOptions
    from bnlab.runner.sweep import refuse_launcher, runner_for
    from bnlab.training.job import Terminated

    key = _searched(key, has_others=config_dir is not None)
    levels = Levels(start, top, factor, resolution)
    check_out(out, force, FIGURES)
    launch = hydra_lines(overrides or [])
    lines = [line for line in overrides or [] if line not in launch]
    handle_signals()
    options = JobOptions(timeout, retries, inline=inline)
    try:
        with runner_for(options) as runner, make_progress(sys.stderr, in_rounds=True) as progress:
            refuse_launcher(launcher_of(launch), runner)
            ladders = ladders_of(key, lines, levels, config_dir, runner.preflight)
            arms = arms_searched(ladders, key, baseline)
            pool = find_finished()
            if dry_run:
                return _show_plan(arms, pool)
            runner.callback = progress
            with held(runs_folder() / POOL):
                num_trained, failed = climb(ladders, pool, Launch(runner, options, tuple(launch)))
    except (KeyboardInterrupt, Terminated) as stop:
        raise typer.Exit(stopped(stop)) from None
    _answer(key, arms, levels, format, out, force)
    for line in failed.values():
        messages().say(line)
    messages().say(
        f"{count_of(num_trained, 'run')} trained; the same command with a finer --resolution goes on from here"
    )
    raise typer.Exit(int(bool(failed)))


def _answer(key: str, arms: Sequence[ArmLadders], levels: Levels, format: str, out: Path | None, force: bool) -> None:
    """Show what was found, and write it as a page, or as its figure. Errors: ConfigError, EnvironmentFault."""
    from bnlab.cli.sheet_page import write_sheet
    from bnlab.report.console import messages
    from bnlab.report.largest_report import largest_picture, largest_rows, largest_sheet, largest_table
    from bnlab.report.rows import show

    found, runs = [arm.found for arm in arms], [run for arm in arms for run in arm.runs]
    show(format, [partial(largest_table, key, found, levels)], *largest_rows(key, found, levels))
    if out is None:
        return
    if out.suffix == ".html":
        from bnlab.runner.claims import scope_of

        sheet = largest_sheet(key, found, levels, scope_of(runs) if runs else "")
        write_sheet(out, sheet, runs[0].environment if runs else {}, force)
    else:
        from bnlab.report.drawing import figure_of, image_of
        from bnlab.report.page import write_own

        write_own(out, image_of(figure_of([largest_picture(key, found)], captioned=True), str(out)), force)
        messages().say(f"written: {out}")


def _searched(word: str, *, has_others: bool) -> str:
    """Return the key that a word, such as `lr`, names; `has_others`: a folder of the user's may have keys of its own.

    Errors: ConfigError for one that holds no number, is none, or is no setting of the training.
    """
    from bnlab.compare.arms import NOT_COMPARED
    from bnlab.config.files import keys
    from bnlab.config.messages import meant_by
    from bnlab.schema import EVERY_KEY

    known, (name, assigned, _) = keys(), word.partition("=")
    meant = [each for each in known if each.endswith(f".{name}")]
    key = meant[0] if len(meant) == 1 else name
    if assigned:
        usage = key if key in known and _has_numbers(known[key]) else f"optim.lr {word}"
        raise ConfigError(f"{word}: the first word is the key to search\nwrite bnlab search {usage}")
    if not _has_numbers(known.get(key.removesuffix(".name"))):
        raise ConfigError(f"{key}: holds no number\nsearch a key that does, such as optim.lr or model.gain")
    if key in NOT_COMPARED:
        raise ConfigError(f"{key}: is no setting of the training\nsearch one, such as optim.lr or model.gain")
    if key not in known and not has_others and not key.startswith("hydra"):
        numbers = [each for each in known if _has_numbers(known[each])]
        meant = [each for each in meant_by(key) if each in numbers]
        hint = f"; did you mean {meant[0]}?" if meant else did_you_mean(key, numbers)
        raise ConfigError(f"{key}: no such key{hint}\n{EVERY_KEY}")
    return key


def _has_numbers(declared: Sequence[Key] | None) -> bool:
    """Return whether a key may hold a number: by its defaults, of which null may stand for one; own keys may."""
    return declared is None or any(re.fullmatch(r"null|[-+]?[\d.]+(e[-+]?\d+)?", each.default) for each in declared)


def _show_plan(arms: Sequence[ArmLadders], pool: dict[str, Run]) -> None:
    """Say how many trainings each arm takes at most, and which of them there are."""
    from bnlab.report.listing import show_rows

    rows = []
    for arm in arms:
        wanted = [each for ladder in arm.ladders.values() for each in ladder.levels.values()]
        there = sum(each.run.identity in pool for each in wanted)
        rows.append((arm.label, str(len(arm.ladders)), str(len(wanted)), str(there)))
    show_rows(("arm", "seeds", "trainings at most", "there"), rows)
