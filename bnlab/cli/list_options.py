"""`bnlab list`: every option with one line."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from bnlab.cli.options import among
from bnlab.errors import ConfigError, did_you_mean

GROUPS = {
    "norms": "norm",
    "models": "model",
    "data": "data",
    "optimizers": "optim",
    "schedules": "schedule",
    "recipes": "recipe",
    "experiments": "experiment",
}
KINDS = (*GROUPS, "meters", "metrics", "keys")


def list_options(
    kinds: Annotated[
        Optional[list[str]], typer.Argument(metavar="KIND", autocompletion=among(lambda: KINDS), hidden=True)
    ] = None,
) -> None:
    """List every option with one line each.

    KIND is norms, models, data, optimizers, schedules, recipes, experiments, meters, metrics or keys; default: all but
    keys.
    `bnlab explain WORD` says more of each.
    """
    from bnlab.config.files import groups, keys, meter_lines
    from bnlab.metrics import metrics
    from bnlab.report.listing import show_options

    known = groups()
    options = {kind: known[group] for kind, group in GROUPS.items()}
    options["meters"] = meter_lines()
    options["metrics"] = {m.name: f"{m.meaning} [{m.unit or 'count'}]" for m in metrics.values()}
    options["keys"] = {key: entries[0].meaning for key, entries in keys().items() if entries}
    wanted = [word for words in kinds or KINDS[:-1] for word in words.split(",")]
    for kind in wanted:
        if kind not in options:
            raise ConfigError(f"{kind}: no such kind{did_you_mean(kind, options)}\nthere are: {', '.join(options)}")
    show_options({kind: options[kind] for kind in wanted})
