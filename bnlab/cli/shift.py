"""`bnlab shift`: a trained model under shifts of its test images."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Optional

from bnlab.api import chosen, warn_of_scale
from bnlab.cli.options import (
    Data,
    Force,
    Format,
    Key,
    Module,
    Output,
    Page,
    Targets,
    Weights,
    number_in,
    several,
)
from bnlab.cli.sheet_page import check_out, write_sheet


def shift(
    targets: Targets = None,
    shifts: Annotated[
        Optional[list[str]],
        several("--shift", "NAME", "Shifts, such as rotation,noise; default: all."),
    ] = None,
    severity: Annotated[
        Optional[list[str]], several("--severity", "N", "Severities from 1 to 5; default: 1,3,5.")
    ] = None,
    stats: Annotated[
        Optional[list[str]],
        several("--stats", "NAME", "Statistics to evaluate with: running, mixed, batch, test; default: all."),
    ] = None,
    batch_size: Annotated[int, number_in("--batch-size", int, 1, help="Test samples in a batch.")] = 64,
    module: Module = None,
    weights: Weights = None,
    key: Key = None,
    output: Output = None,
    data: Data = None,
    format: Format = "table",
    out: Page = None,
    force: Force = False,
) -> None:
    """Evaluate on shifted test images, with stored statistics and with those of the test images themselves.

    RUN is a run folder, with overrides such as data.root=FOLDER. With --module there are only overrides:
    data.batch_size=N, that of its training; model.input_norm=none for images in [0, 1].
    Shows accuracy, calibration, and how much a prediction depends on the images it is evaluated with. Of a sweep's
    folder all finished runs are evaluated, and their arms compared; --shift says under which shifts.
    """
    from bnlab.cli.evaluate_again import FIGURES, evaluate_all, is_of_several, refuse_of_one
    from bnlab.data.severities import SEVERITIES, SEVERITY_TABLES, STATS
    from bnlab.experiment.target import check_target

    names = chosen("--shift", shifts, SEVERITY_TABLES)
    statistics = chosen("--stats", stats, STATS)
    severities = [
        int(text) for text in chosen("--severity", severity or ["1", "3", "5"], [str(known) for known in SEVERITIES])
    ]
    if module is None and is_of_several(targets or []):
        refuse_of_one(targets or [], {"--out": out})
        shown = [f"{name}-{level}" for name in names for level in severities]
        settings = {"shifted": ["none", *shown], "stats": statistics, "batch_size": [str(batch_size)]}
        lines = [f"eval.{key}={','.join(values)}" for key, values in settings.items()]
        evaluate_all([*(targets or []), *lines], FIGURES[:3], format)
        return
    check_out(out, force)
    check_target(targets or [], module, weights, data, key, output, "shift")  # before torch is loaded
    from bnlab.experiment.setup import environment_of
    from bnlab.experiment.shift_study import shift_study
    from bnlab.experiment.trained_model import find
    from bnlab.report.console import messages
    from bnlab.report.display import working
    from bnlab.report.rows import show
    from bnlab.report.shift_report import shift_rows, shift_sheet, shift_table

    trained = find(targets or [], module, weights, data, key, output)
    with working(messages()) as tell:
        warn_of_scale(trained)
        study = shift_study(trained, names, severities, statistics, batch_size, tell)
    show(format, [partial(shift_table, study)], *shift_rows(study))
    if out is not None:
        write_sheet(out, shift_sheet(study), environment_of(trained.device, trained.bundle, 1), force)
