"""`bnlab bench`: every contest in turn, each with its share of the budget, printed and recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from bnlab.bench.arms import contest, limits_of, read
from bnlab.bench.engine import BenchConfig, Contest, ContestTime, figures, measure
from bnlab.bench.layer_times import SHAPES, layer_contest, uncompared
from bnlab.bench.scaling import Level, Size, levels
from bnlab.cli.bench_record import record
from bnlab.cli.bench_workers import DEFAULT_DELAYS, parallel
from bnlab.errors import ConfigError
from bnlab.report.bench_report import bench_table, benching, scaling_table
from bnlab.report.console import messages, results
from bnlab.report.rows import TIDY_FORMATS


def bench(
    overrides: Sequence[str],
    layers: bool,
    scale: Size | None,
    form: str,
    workers: int | None = None,
    delay: str = DEFAULT_DELAYS,
) -> None:
    """Print the paired comparison that `overrides` stand for; `form` is `table` or one of TIDY_FORMATS.

    `layers`: of normalization layers alone; `scale`: at growing sizes; `workers`: on so many
    processes, of which one is late by each `delay` in ms. Errors: ConfigError.
    """
    if layers and scale is not None:
        raise ConfigError("--layers: not beside --scale\nleave out one of the two")
    if (layers or workers is not None) and limits_of(overrides).graph:
        raise ConfigError("bench.graph=true: not beside --layers or --workers\nleave out one of the two")
    if workers is not None:
        if layers or scale is not None:
            raise ConfigError("--workers: not beside --layers or --scale\nleave out one of the two")
        parallel(overrides, workers, delay, form)
        return
    if delay != DEFAULT_DELAYS:
        raise ConfigError(f"--delay={delay}: only beside --workers")
    limits, sections, notes = read(overrides, layers)
    if layers:
        notes += [line for section in sections for line in uncompared(section)]
    for line in dict.fromkeys(notes):
        messages().say(line)
    grown: list[list[Level]] = []
    if layers:
        found = _measured(limits, [partial(layer_contest, section, shape) for section in sections for shape in SHAPES])
        folder = record([], found)
    else:
        if scale is not None:
            grown = [levels(section, scale) for section in sections]
            sections = [level.section for part in grown for level in part]
        found = _measured(limits, [partial(contest, section, limits.graph) for section in sections])
        folder = record(sections, found)
    if form != "table":
        rows = [figures(item, arm) for item in found for arm in item.arms]
        results().emit(TIDY_FORMATS[form]({"record": str(folder)}, rows))
    else:
        _print(found, grown, scale)
    messages().say(f"recorded in {folder}" + ("" if layers else f"; bnlab compare {folder}"))


def _measured(limits: BenchConfig, contests: Sequence[Callable[[], Contest | None]]) -> list[ContestTime]:
    """Measure one after the other; the seconds that one leaves are the others'."""
    found: list[ContestTime] = []
    left = limits.seconds
    with benching(messages()) as watch:
        for number, make in enumerate(contests):
            ready = make()
            if ready is not None:
                share = left / (len(contests) - number)
                found.append(measure(ready, limits, share, partial(watch, ready.title)))
                left = max(left - found[-1].seconds, 0.0)
                del ready  # its data and models, before the next are built
    return found


def _print(found: Sequence[ContestTime], grown: Sequence[Sequence[Level]], scale: Size | None) -> None:
    out = results()
    for number, item in enumerate(found):
        if number:
            out.say("")
        out.print(bench_table(item, out))
    done = 0
    for part in grown:
        out.say("")
        sizes = [(level.label, level.size) for level in part]
        out.print(scaling_table(str(scale), sizes, found[done : done + len(part)], out))
        done += len(part)
