"""TensorBoard's event files: a folder a run, its curves by step, its configuration as hyperparameters."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from bnlab.compare.arms import text_of
from bnlab.compare.frames import Tables, curves_of
from bnlab.export.about import figures_of, labels_of, started_of
from bnlab.record.read import Run
from bnlab.report.console import clean

FILE = "events.out.tfevents.0"
LONGEST_LABEL = 100  # characters of a folder's name


def write_events(folder: Path, runs: Sequence[Run], tables: Sequence[Tables]) -> None:
    """Write every curve as scalars and, of runs that are done, the metrics beside the configuration (HParams).

    An event's time is the start of its run plus the seconds trained until then. Values have 32 bits.
    """
    for run, of_run, name, figures in zip(runs, tables, _names(runs), figures_of(runs), strict=True):
        place = folder / name
        place.mkdir(parents=True)
        with open(place / FILE, "wb") as file:
            _write_run(file, run, curves_of(of_run), figures)


def _write_run(file: BinaryIO, run: Run, curves: Tables, figures: Mapping[str, float]) -> None:
    # Not SummaryWriter: that names its files after the machine, and takes seven times as long for each value.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import hparams

    writer, started, last = RecordWriter(file), started_of(run), 0
    writer.write(Event(wall_time=started, file_version="brain.Event:2").SerializeToString())

    def add(summary: Summary, step: int, seconds: float) -> None:
        writer.write(Event(wall_time=started + seconds, step=step, summary=summary).SerializeToString())

    def scalar(tag: str, value: float) -> Summary:
        return Summary(value=[Summary.Value(tag=clean(tag), simple_value=value)])

    for summary in hparams({clean(key): _parameter(value) for key, value in run.config.items()}, dict(figures)):
        add(summary, 0, 0.0)
    for tag, curve in curves.items():
        points = zip(curve["step"].tolist(), curve["value"].tolist(), curve["seconds"].tolist(), strict=True)
        for step, value, seconds in points:
            add(scalar(tag, value), step, seconds)
        last = max(last, int(curve["step"].max()))
    for tag, value in figures.items():
        add(scalar(tag, value), last, 0.0)


def _names(runs: Sequence[Run]) -> list[str]:
    """Return a path for each run: its folder below what all have in common, and its label to find it in the list."""
    folders = [run.folder.resolve() for run in runs]
    common = os.path.commonpath([folder.parent for folder in folders])
    return [
        f"{folder.relative_to(common)},{re.sub(r'[^A-Za-z0-9_.,=+-]+', ',', label)[:LONGEST_LABEL]}"
        for folder, label in zip(folders, labels_of(runs), strict=True)
    ]


def _parameter(value: object) -> object:
    """Return a number that fits into a float, or text; null stays away."""
    if value is None or isinstance(value, (bool, float)):
        return value
    return value if isinstance(value, int) and abs(value) < 2**63 else clean(text_of(value))
