"""`--gate` of compare and bench: sentences that must hold, and the exit code that says whether they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from bnlab.claims.rule import Part
    from bnlab.record.read import Run

Gate = Annotated[
    Optional[list[str]],
    typer.Option("--gate", metavar="SENTENCE", help="Exit 0 if it holds, 1 if not, 3 if undecided: 'test_loss < 0.5'."),
]
NOT_MET, UNDECIDED = 1, 3  # exit codes


def parse_gates(sentences: Sequence[str] | None) -> list[Part]:
    """Return what `--gate` was given. Errors: ConfigError."""
    if not sentences:
        return []
    from bnlab.claims.language import parse_sentence
    from bnlab.claims.rule import Part
    from bnlab.errors import ConfigError

    try:
        return [Part(parse_sentence(sentence)) for sentence in sentences]
    except ConfigError as error:
        raise ConfigError(f"--gate {error}") from error


def check_gates(gates: Sequence[Part], runs: Sequence[Run]) -> None:
    """Find the arms of gates, of runs that need not be over. Errors: ConfigError."""
    from bnlab.claims.cells import check_cells
    from bnlab.claims.figures import check_figures
    from bnlab.errors import ConfigError

    for gate in gates:
        try:
            check_cells(gate.sentence.of, runs)
            check_figures(gate.sentence.of, runs)
        except ConfigError as error:
            raise ConfigError(f"--gate {gate.sentence}: {error}") from error


def end_by_gates(gates: Sequence[Part], runs: Sequence[Run], format: str) -> None:
    """Say what runs make of each gate, beside a table on stdout, else on stderr; exit unless all hold.

    Errors: ConfigError for a cell that is no arm.
    """
    from bnlab.claims.decide import decide
    from bnlab.report.claim_figures import figures_of
    from bnlab.report.console import messages, results

    if not gates:
        return
    check_gates(gates, runs)
    out = results() if format == "table" else messages()
    words = {"confirmed": "met", "refuted": "not met", "undecided": "undecided"}
    verdicts = []
    for gate in gates:
        looks = _looks_at(gate, runs)
        (part,) = decide(gate, runs, looks=looks).parts
        verdicts.append(part.verdict)
        figures = figures_of(part)
        seen = f"looks at {', '.join(map(str, looks))} seeds" if len(looks) > 1 else ""
        wider = "the interval is widened by that of the second copy" if "step_ratio" in part.text else ""
        after = "; ".join(text for text in (figures, part.because, wider, seen) if text)
        out.say(f"gate {words[part.verdict]}: {part.text}: {after}")
    if "refuted" in verdicts:
        raise typer.Exit(NOT_MET)
    if "undecided" in verdicts:
        raise typer.Exit(UNDECIDED)


def end_by_gates_on(paths: Sequence[Path], where: Sequence[str], gates: Sequence[Part], format: str) -> None:
    """Do the same with the runs below `paths` that meet `where`. Errors: ConfigError."""
    if gates:
        from bnlab.compare.arms import where_of
        from bnlab.record.read import read_runs, started

        end_by_gates(gates, where_of(where, started(read_runs(paths)[0])), format)


def _looks_at(gate: Part, runs: Sequence[Run]) -> tuple[int, ...]:
    """Return the numbers of seeds at which the runs of a gate were looked at, as `compare` counts them."""
    from bnlab.claims.cells import arm_of
    from bnlab.claims.evaluate import free_keys
    from bnlab.claims.language import quantities
    from bnlab.compare.looked import Looked
    from bnlab.metrics import find_metric

    of = gate.sentence.of
    sides = [arm_of(quantity, runs, free_keys(of)) for quantity in quantities(of)]
    if any(run.is_bench for side in sides for run in side):
        return ()
    rule, _ = Looked().rule(sides, find_metric(next(quantities(of)).metric), False)
    return rule.counted
