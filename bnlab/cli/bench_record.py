"""What a bench leaves on disk: a run folder an arm, which `bnlab compare` reads like any other, and every round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.bench.arms import BenchArm, BenchSection
from bnlab.bench.engine import ContestTime, by_block, figures, observations
from bnlab.bench.straggler_launch import figures as figures_of_workers
from bnlab.bench.straggler_launch import threads_of
from bnlab.config import compose
from bnlab.errors import IncompatibleError
from bnlab.experiment.config import identity
from bnlab.experiment.setup import bundle_of, device_of, environment_of
from bnlab.record.latest import runs_folder
from bnlab.record.plain_files import write_bytes
from bnlab.record.run_folder import RunFolder, fresh_folder, queue
from bnlab.report.rows import as_csv, csv_text

if TYPE_CHECKING:
    import torch

    from bnlab.bench.profiling import SectionProfile
    from bnlab.bench.straggler_result import StragglerTime
    from bnlab.data.bundle import DataBundle


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
            summary = {
                "steps": times.rounds,
                "num_parameters": time.num_parameters,
                "step_ms": {"median": time.step_ms, "p10": time.p10_ms, "p90": time.p90_ms},
                "images_per_second": time.images_per_second,
                "bench": figures(times, time) | {"by_block": by_block(time)},
            }
            _write_arm(folder / str(number), arm, section.images, times.device, times.threads, summary)
            number += 1
    return folder


def record_profiles(
    sections: Sequence[BenchSection], found: Sequence[SectionProfile], base: Path | None = None
) -> Path:
    """Write a run folder an arm, and all shares to `bench.csv`; return the folder."""
    folder = fresh_folder(base or runs_folder(), "bench")
    write_bytes(folder / "bench.csv", as_csv({}, [row for item in found for row in item.rows]).encode())
    pairs = [
        (section, arm, item, shares)
        for section, item in zip(sections, found, strict=True)
        for arm, shares in zip(section.arms, item.arms, strict=True)
    ]
    for number, (section, arm, item, shares) in enumerate(pairs):
        bench = {"arm": shares.label, "baseline": item.arms[0].label, **shares.figures, "by_block": shares.by_step}
        summary = {"steps": len(shares.by_step["norm_share"]), "num_parameters": shares.num_parameters, "bench": bench}
        _write_arm(folder / str(number), arm, section.images, item.device, item.threads, summary)
    return folder


def record_workers(sections: Sequence[BenchSection], found: Sequence[StragglerTime], base: Path | None = None) -> Path:
    """Write a run folder an arm, what it comes to while a worker is late, and all steps to `bench.csv`."""
    folder = fresh_folder(base or runs_folder(), "bench")
    write_bytes(
        folder / "bench.csv", as_csv({}, [row for times in found for row in figures_of_workers(times)]).encode()
    )
    pairs = [(section, arm, times) for section, times in zip(sections, found, strict=True) for arm in section.arms]
    for number, (section, arm, times) in enumerate(pairs):
        local = [step for step in times.steps if (step.norm, step.gradients) == (arm.label, "local")]
        usual, late = (pick(local, key=lambda step: step.delay_ms) for pick in (min, max))
        figures = {
            "collectives": usual.forward_collectives + usual.backward_collectives,
            "exchanged_kb": usual.sent_bytes / 1e3,
            "wait_ms": late.step_growth.value,
        }
        by_block = {key: [figures[key]] for key in ("collectives", "exchanged_kb")}
        by_block["wait_ms"] = list(late.growth_by_block)
        bench = {"arm": arm.label, "baseline": times.steps[0].norm, "contest": times.title, **figures}
        summary = {"steps": times.rounds, "step_ms": {"median": usual.step_ms}, "bench": bench | {"by_block": by_block}}
        device = device_of(arm.config.trainer.device)
        _write_arm(folder / str(number), arm, section.images, device, threads_of(sections), summary, times.workers)
    return folder


def _write_arm(
    place: Path,
    arm: BenchArm,
    images: DataBundle | None,
    device: torch.device,
    threads: int,
    summary: dict[str, Any],
    workers: int = 1,
) -> None:
    bundle = images or bundle_of(arm.config.data)
    where = environment_of(device, bundle, workers=workers) | {"threads": threads}
    tree = {**arm.tree, "data": {**arm.tree["data"], "name": bundle.name}}
    known = identity(tree | {"bench": place.parent.name}, bundle.fingerprint)  # another than that of the training
    queue(place, tree, compose.as_yaml(tree), known)
    run = RunFolder(place, known)
    run.write_environment(where)
    run.finish("done", summary={"state": "done", **summary, "curve": {}, "environment": where})
