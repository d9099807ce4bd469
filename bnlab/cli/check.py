"""`bnlab check`: which normalizations a command line stands for, their cards, and what they come to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bnlab.conformance.card import examine
from bnlab.conformance.subject import Subject, of_factory, of_strategy
from bnlab.errors import ConfigError
from bnlab.norms.strategy import strategies
from bnlab.report.check_formats import CARD_FORMATS
from bnlab.report.check_report import card_table, checking, matrix_table
from bnlab.report.console import messages, results


def check(overrides: Sequence[str], factory: str | None, form: str) -> int:
    """Print the card of one normalization, or the matrix of several; return the exit code.

    `overrides` stand for a run or a sweep; where they name no strategy, for all as they come; `factory` is
    `package.module:name`; `form` is `table` or one of CARD_FORMATS. Errors: ConfigError.
    """
    if factory is not None and overrides:
        raise ConfigError(f"{overrides[0]}: has no meaning beside --module\nleave out one of the two")
    subjects = [of_factory(factory)] if factory is not None else _strategies(overrides)
    cards = []
    with checking(messages()) as tell:
        for subject in subjects:
            tell(subject.label)
            cards.append(examine(subject))
    out = results()
    if form != "table":
        out.emit(CARD_FORMATS[form](cards))
    else:
        out.print(card_table(cards[0], out) if len(cards) == 1 else matrix_table(cards, out))
    return 1 if any(card.contradictions for card in cards) else 0


def _strategies(overrides: Sequence[str]) -> list[Subject]:
    chosen = []
    if overrides:
        from bnlab.config import compose
        from bnlab.experiment.config import parse_config

        chosen = [parse_config(tree).norm for tree in compose.jobs(overrides, multirun=True)]
    if not any(re.match(r"[+~]*norm[.=@]", line) for line in overrides):  # a card depends on nothing else
        chosen = [strategies[name]() for name in strategies]
    return [of_strategy(strategy) for strategy in chosen]
