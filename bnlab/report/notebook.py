"""A comparison in Python: `bnlab.compare("runs/…")` is a table in a notebook, a frame for pandas, and sentences."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from types import NoneType
from typing import TYPE_CHECKING, get_args

from bnlab.compare import comparison
from bnlab.compare.deciding import Test, Verdict
from bnlab.compare.result import Comparison
from bnlab.errors import ConfigError, texts_of
from bnlab.record.latest import find_run, latest
from bnlab.report.compare_formats import as_plain, html_grid, lines_of
from bnlab.report.heading import heading
from bnlab.report.sheet import escaped, html_table
from bnlab.report.verdicts import answers, compared_rows

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Compared:
    """What `bnlab.compare` returns."""

    comparison: Comparison
    which: str | None = None  # which runs these are, where no path was given

    @property
    def answer(self) -> list[str]:
        """What was found, in sentences."""
        return [sentence for found in answers(self.comparison) for sentence in found]

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each arm that has a baseline, in the main metric."""
        sections = self.comparison.sections
        return {
            row.label if len(sections) == 1 else f"{heading(section)[0]}: {row.label}": row.verdicts.get(
                section.main, "undecided"
            )
            for section in sections
            for row in compared_rows(section)
        }

    @property
    def decided(self) -> bool:
        """Whether there are such arms, and none of them is undecided."""
        return bool(self.verdicts) and "undecided" not in self.verdicts.values()

    def frame(self) -> pd.DataFrame:
        """Return one row an arm and metric, with its interval and its difference from the baseline, in their unit."""
        import pandas as pd

        titles, lines = lines_of(self.comparison)
        return pd.DataFrame(lines, columns=titles)

    def __repr__(self) -> str:
        return as_plain(self.comparison).rstrip()

    def _repr_html_(self) -> str:
        whole = f"<p>{escaped(self.which)}</p>" if self.which else ""
        for section, found in zip(self.comparison.sections, answers(self.comparison), strict=True):
            whole += "".join(f"<p><strong>{escaped(sentence)}</strong></p>" for sentence in found)
            whole += f"<p>{escaped(' · '.join(heading(section)))}</p>"
            whole += html_table(html_grid(section))
            whole += f"<ul>{''.join(f'<li>{escaped(note)}</li>' for note in section.notes)}</ul>"
        return whole


def compare(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    *,
    by: str | Sequence[str] = (),
    baseline: str | None = None,
    metrics: str | Sequence[str] | None = None,
    where: str | Sequence[str] = (),
    sort: str | None = None,
    target: float | None = None,
    best_of: str | Sequence[str] = (),
    margin: float | None = None,
    test: Test | None = None,
    evaluated: bool = False,
) -> Compared:
    """Compare the runs below a path or several, by default the latest sweep below `runs`.

    The options are those of `bnlab compare`, and so are the errors: ConfigError, RecordError.
    """
    given = {"by": by, "where": where, "best_of": best_of, **({} if metrics is None else {"metrics": metrics})}
    words = {option: texts_of(option, value) for option, value in given.items()}
    for option, word in (("baseline", baseline), ("sort", sort)):
        if not isinstance(word, (str, NoneType)):
            raise ConfigError(f"{option}={word!r}: must be a text")
    for option, value in (("margin", margin), ("target", target)):
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 < value < math.inf):
            raise ConfigError(f"{option}={value!r}: must be a number above 0, or None")
    if test not in (None, *get_args(Test)):
        raise ConfigError(f"test={test!r}: must be {' or '.join(get_args(Test))}")
    which = None
    if paths is None:
        places, said = latest()
        which = said and said.partition(" (")[0]  # the option is of the command line
    else:
        several = [paths] if isinstance(paths, (str, bytes, os.PathLike)) or not isinstance(paths, Iterable) else paths
        places = [find_run(path) for path in several]
        if not places:
            raise ConfigError(f'{paths!r}: names no run\ngive its path, or "latest"')
    found = comparison.compare(
        places,
        by=words["by"],
        baseline=baseline,
        metrics=words.get("metrics"),
        where=words["where"],
        sort=sort,
        target=target,
        best_of=words["best_of"],
        margin=margin,
        test=test,
        with_evaluated=evaluated,
    )
    return Compared(found, which)
