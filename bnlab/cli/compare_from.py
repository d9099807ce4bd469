"""`bnlab compare --from`: runs that bnlab did not make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from bnlab.cli.options import several

if TYPE_CHECKING:
    from bnlab.compare.imported import Others

Source = Annotated[
    Optional[str],
    typer.Option("--from", metavar="SOURCE", help="Runs of others: FILE.csv, mlflow:URI or tensorboard:FOLDER."),
]
Columns = Annotated[Optional[list[str]], several("--arm", "COLUMN", "With --from: a column that makes an arm.")]
Seed = Annotated[
    Optional[str], typer.Option("--seed", metavar="COLUMN", help="With --from: the column that runs are paired by.")
]


@contextmanager
def others(
    source: str | None,
    arms: Sequence[str] | None,
    seed: str | None,
    wanted: Sequence[str] | None,
    where: Sequence[str] | None,
) -> Iterator[Others | None]:
    """Read the runs in `source` and let tables know their metrics meanwhile; None without a source.

    Errors: ConfigError for what cannot be read, or where `--arm`, `--seed` or `--metric` is missing.
    """
    from bnlab.errors import ConfigError

    needed = {"--arm": arms, "--seed": seed, "--metric": wanted}
    if source is None:
        if arms or seed:
            raise ConfigError(
                f"{'--arm' if arms else '--seed'}: names a column of --from\ngive --from, or leave it out"
            )
        yield None
        return
    from bnlab.compare.imported import listed, others_of
    from bnlab.export.read_back import read_records
    from bnlab.report.console import messages

    records = read_records(source)
    if not arms or not seed or not wanted:
        columns = list(dict.fromkeys(column for record in records for column in record.values))
        absent = ", ".join(option for option, value in needed.items() if not value)
        raise ConfigError(f"--from {source}: needs {absent} COLUMN\nthere are: {listed(columns) or 'none'}")
    given = others_of(source, records, arms=arms, seed=seed, wanted=wanted, where=where or ())
    for remark in given.remarks:
        messages().say(remark)
    with given.declared():
        yield given
