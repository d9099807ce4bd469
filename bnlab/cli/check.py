"""`bnlab check`: what normalizations do, and whether that is what they declare."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from bnlab.cli.options import Force, Format, Overrides, Page
from bnlab.cli.sheet_page import check_out, write_sheet
from bnlab.errors import ConfigError

if TYPE_CHECKING:
    from bnlab.conformance.subject import Subject


def check(
    overrides: Overrides = None,
    module: Annotated[
        Optional[str],
        typer.Option("--module", metavar="PACKAGE.MODULE:FACTORY", help="Your factory(channels) -> torch.nn.Module."),
    ] = None,
    format: Format = "table",
    out: Page = None,
    force: Force = False,
) -> None:
    """Measure on random and edge tensors what a normalization does, and whether that is what it declares.

    KEY=VALUE are Hydra overrides, such as norm=ghost norm.size=8; several strategies: norm=batch,ghost; default: all.
    Exit code 1: a property contradicts what is declared. Your own module declares nothing: its card says what it does.
    """
    if module is not None and overrides:
        raise ConfigError(f"{overrides[0]}: cannot be combined with --module\nomit one of the two")
    check_out(out, force)
    trees = _composed(overrides or [])  # before torch is loaded
    from bnlab.conformance.card import examine
    from bnlab.conformance.own_code import own_code
    from bnlab.conformance.subject import of_factory
    from bnlab.record.environment import environment
    from bnlab.report.check_report import CARD_FORMATS, card_sheet, card_table, matrix_table
    from bnlab.report.console import messages, results
    from bnlab.report.display import working

    subjects = _strategies(overrides or [], trees) if module is None else [of_factory(module)]
    cards = []
    with working(messages()) as tell:
        for subject in subjects:
            tell(f"checking {subject.label}")
            with nullcontext() if module is None else own_code(f"--module {module}", "on a random batch it"):
                cards.append(examine(subject))
    console = results()
    if format != "table":
        console.emit(CARD_FORMATS[format](cards))
    else:
        console.print(card_table(cards[0], console) if len(cards) == 1 else matrix_table(cards, console))
    if out is not None:
        write_sheet(out, card_sheet(cards), environment(), force)
    if any(card.contradictions for card in cards):
        raise typer.Exit(1)


def _composed(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Return the configurations of a run or a sweep with `overrides`; none without any. Errors: ConfigError."""
    if not overrides:
        return []
    from bnlab.config import compose

    return compose.jobs(overrides, multirun=True)


def _strategies(overrides: Sequence[str], trees: Sequence[dict[str, Any]]) -> list[Subject]:
    """Return the strategies of the configurations that `overrides` come to; where none is named, all as they come."""
    from bnlab.conformance.subject import of_strategy
    from bnlab.experiment.config import parse_config
    from bnlab.norms.strategy import strategies

    chosen = [parse_config(tree).norm for tree in trees]
    if not any(re.match(r"[+~]*norm[.=@]", line) for line in overrides):  # a card depends on nothing else
        chosen = [strategies[name]() for name in strategies]
    return [of_strategy(strategy) for strategy in chosen]
