"""`--out FILE.html` of `probe`, `shift`, `check` and `search`: their result as a page, beside what they print.

A page is a file to send, so it is written as `bnlab report` and `bnlab plot` write theirs; `--format` is for what goes
to stdout, to be read by other programs.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.errors import ConfigError
from bnlab.record.latest import LATEST, find_run

if TYPE_CHECKING:
    from bnlab.report.sheet import Sheet


def check_out(out: Path | None, force: bool, figures: Sequence[str] = ()) -> None:
    """Refuse a file that cannot be written as a page, or as one of `figures`, before anything is measured.

    Errors: ConfigError.
    """
    if out is None:
        return
    from bnlab.report.page import refuse_others

    if out.suffix not in (".html", *figures):
        raise ConfigError(f"--out {out}: must end in {' or '.join(['.html', *figures])}")
    refuse_others(out, force)


def write_sheet(out: Path, sheet: Sheet, environment: Mapping[str, Any], force: bool) -> None:
    """Write what this command line found in this `environment`. Errors: ConfigError, EnvironmentFault."""
    from bnlab.report.console import messages
    from bnlab.report.page import sheet_page, write_own

    words = (str(find_run(word)) if word.partition("/")[0] == LATEST else word for word in sys.argv[1:])
    again = shlex.join(["bnlab", *words])  # the latest is soon another
    write_own(out, sheet_page(sheet, environment, again).encode(), force)
    messages().say(f"written: {out}")
