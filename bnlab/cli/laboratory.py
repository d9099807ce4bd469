"""Commands that examine a normalization or a trained model."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from bnlab.cli.options import Format, complete_override


def check(
    overrides: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Hydra overrides, such as norm=ghost norm.size=8; several strategies: norm=batch,ghost; default: all",
            autocompletion=complete_override,
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
