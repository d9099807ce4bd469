"""What a bench leaves on disk: a run folder an arm, which `bnlab compare` reads like any other, and every round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnlab.bench.arms import BenchSection
from bnlab.bench.engine import ContestTime, by_block, figures, observations
from bnlab.config import compose
from bnlab.errors import IncompatibleError
from bnlab.experiment.config import identity
from bnlab.experiment.setup import bundle_of, environment_of
from bnlab.record.latest import runs_folder
from bnlab.record.plain_files import write_bytes
from bnlab.record.run_folder import RunFolder, fresh_folder, queue
from bnlab.report.rows import as_csv, csv_text


def record(sections: Sequence[BenchSection], found: Sequence[ContestTime], base: Path | None = None) -> Path:
    """Write a run folder an arm of each of `sections`, and all figures to `bench.csv`; return the folder.

    Errors: IncompatibleError where nothing was measured.
    """
    if not found:
        raise IncompatibleError("nothing to measure: no strategy fits any shape")
    folder = fresh_folder(base or runs_folder(), "bench")
    rows = [figures(times, arm) for times in found for arm in times.arms]
    write_bytes(folder / "bench.csv", as_csv({}, rows).encode())
    rounds = (observation for times in found for observation in observations(times))
    write_bytes(folder / "rounds.csv", csv_text(("contest", "arm", "block", "step_ms"), rounds).encode())
    number = 0
    for section, times in zip(sections, found, strict=False):
        timed = {time.label: time for time in times.arms}
        for arm in section.arms:
            if (time := timed.get(arm.label)) is None:
                continue  # it was left out
            bundle = section.images or bundle_of(arm.config.data)
            where = environment_of(times.device, bundle, workers=1) | {"threads": times.threads}
            tree = {**arm.tree, "data": {**arm.tree["data"], "name": bundle.name}}
            place = folder / str(number)
            number += 1
            known = identity(tree | {"bench": folder.name}, bundle.fingerprint)  # another than that of the training
            queue(place, tree, compose.as_yaml(tree), known)
            run = RunFolder(place, known)
            run.write_environment(where)
            run.finish(
                "done",
                summary={
                    "state": "done",
                    "steps": times.rounds,
                    "num_parameters": time.num_parameters,
                    "step_ms": {"median": time.step_ms, "p10": time.p10_ms, "p90": time.p90_ms},
                    "images_per_second": time.images_per_second,
                    "bench": figures(times, time) | {"by_block": by_block(time)},
                    "curve": {},
                    "environment": where,
                },
            )
    return folder
