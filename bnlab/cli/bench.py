"""`bnlab bench`: step times, paired; every contest in turn with its share of the budget, printed and recorded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, cast

import typer

from bnlab.cli.gates import Gate, check_gates, end_by_gates, parse_gates
from bnlab.cli.options import Format, Overrides, number_in, one_of, refuse_beside
from bnlab.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Group

    from bnlab.bench.arms import BenchSection
    from bnlab.bench.engine import BenchConfig, Contest, ContestTime
    from bnlab.bench.scaling import Level, Size
    from bnlab.claims.rule import Part
    from bnlab.report.console import Terminal

DEFAULT_DELAYS = "0,5,20"
LONGEST_DELAY = 10_000.0  # ms


def bench(
    overrides: Overrides = None,
    layers: Annotated[bool, typer.Option("--layers", help="The normalization layers alone, by shape.")] = False,
    scale: Annotated[
        Optional[str],
        one_of(
            "--scale",
            choices=("width", "image", "batch", "data"),
            help="The same comparison at growing width, image or batch size, or size of the training set.",
        ),
    ] = None,
    workers: Annotated[
        Optional[int],
        number_in("--workers", int, 2, help="Train on so many processes, one of them late: who waits for it?"),
    ] = None,
    delay: Annotated[
        str, typer.Option("--delay", metavar="MS,...", help="By how many milliseconds it is late, with --workers.")
    ] = DEFAULT_DELAYS,
    inference: Annotated[
        bool, typer.Option("--inference", help="Evaluation in place of training steps: kept, own, folded statistics.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Where a step's time goes: norms, layers, optimizer; by torch's profiler.")
    ] = False,
    gate: Gate = None,
    format: Format = "table",
) -> None:
    """Compare training steps: all arms in one process, one step each in turn, as ratios with intervals.

    KEY=VALUE are Hydra overrides; lists make arms: norm=none,batch,layer model=cnn,mlp; also bench.seconds=N,
    bench.precision=N, bench.rounds=N. Stops when every ratio is known to 2 % or after two minutes, and says which.
    """
    from bnlab.bench.arms import limits_of
    from bnlab.bench.inference import USUAL

    lines, gates = list(overrides or []), parse_gates(gate)
    modes = {"--layers": layers, "--scale": scale, "--workers": workers}
    refuse_beside("--profile", profile, {"--inference": inference, **modes, "--gate": gate})
    refuse_beside("--inference", inference, modes)
    refuse_beside("--gate", gate, {"--layers": layers, "--workers": workers})
    refuse_beside("--layers", layers, {"--scale": scale, "--workers": workers})
    refuse_beside("--workers", workers, {"--scale": scale})
    if profile:
        return _profile_steps(lines, format)
    if inference:
        lines += ["bench.mode=inference", *unless_named(USUAL, lines)]
    if (layers or workers is not None) and limits_of(lines).graph:
        raise ConfigError("bench.graph=true: cannot be combined with --layers or --workers\nomit one of the two")
    if workers is None:
        if delay != DEFAULT_DELAYS:
            raise ConfigError(f"--delay={delay}: only with --workers")
        return _bench_steps(lines, layers, cast("Size | None", scale), gates, format)
    return _bench_stragglers(lines, workers, delays_of(delay), format)


def delays_of(text: str) -> list[float]:
    """Return the delays of `0,5,20` in ms, ascending and 0 among them. Errors: ConfigError."""
    try:
        delays = {float(part) for part in text.split(",")}
    except ValueError:
        raise ConfigError(f"--delay={text}: must be milliseconds such as {DEFAULT_DELAYS}") from None
    if not all(math.isfinite(delay) and 0 <= delay <= LONGEST_DELAY for delay in delays):
        raise ConfigError(f"--delay={text}: each must be from 0 to {LONGEST_DELAY:g} ms")
    if not delays - {0.0}:
        raise ConfigError(f"--delay={text}: name one above 0, such as {DEFAULT_DELAYS}")
    return sorted(delays | {0.0})


def _bench_steps(
    overrides: Sequence[str], layers: bool, scale: Size | None, gates: Sequence[Part], format: str
) -> None:
    """Time whole training steps, also at growing sizes, or layers alone."""
    from bnlab.bench.arms import read
    from bnlab.bench.engine import figures
    from bnlab.bench.layer_times import SHAPES, layer_contest, uncompared
    from bnlab.bench.scaling import growth_rows, levels
    from bnlab.claims.planned import planned
    from bnlab.cli.bench_record import record
    from bnlab.record.latest import name_of
    from bnlab.record.read import read_runs
    from bnlab.report.console import messages
    from bnlab.report.rows import show

    limits, sections, notes = read(overrides, layers)
    if layers:
        notes += [line for section in sections for line in uncompared(section)]
    for line in dict.fromkeys(notes):
        messages().say(line)
    grown: list[list[Level]] = []
    if layers:
        times = timed(limits, [partial(layer_contest, section, shape) for section in sections for shape in SHAPES])
        folder = record([], times)
    else:
        if scale is not None:
            grown = [levels(section, scale) for section in sections]
            sections = [level.section for part in grown for level in part]
        check_gates(gates, [planned(arm.tree, bench_mode=limits.mode) for section in sections for arm in section.arms])
        times = timed(limits, contests(limits, sections))
        folder = record(sections, times)
    rows = [figures(item, arm) for item in times for arm in item.arms]
    if scale == "data":
        rows = [row for part, item in zip(grown, times, strict=True) for row in growth_rows(part[0].section, item)]
    tables = _tables(times, grown, scale)
    if len(times) == 1 and not layers and scale is None:  # of several a table each tells more
        tables = itertools.chain([partial(_answer, folder)], tables)
    show(format, tables, {"record": str(folder)}, rows)
    messages().say(f"recorded in {folder}" + ("" if layers else f"; bnlab compare {name_of(folder)}"))
    end_by_gates(gates, read_runs([folder])[0], format)


def _profile_steps(overrides: Sequence[str], format: str) -> None:
    """Take some steps of each arm under the profiler."""
    from bnlab.bench.arms import read
    from bnlab.bench.profiling import profiled
    from bnlab.cli.bench_record import record_profiles
    from bnlab.report.bench_report import profile_table
    from bnlab.report.console import messages
    from bnlab.report.rows import show

    limits, sections, notes = read(overrides)
    if limits.graph or limits.mode != "steps":
        raise ConfigError("--profile: takes training steps as they are\nomit bench.graph and bench.mode")
    for line in dict.fromkeys(notes):
        messages().say(line)
    found = [profiled(section) for section in sections]
    folder = record_profiles(sections, found)
    rows = [row for item in found for row in item.rows]
    show(format, [partial(profile_table, item) for item in found], {"record": str(folder)}, rows)
    messages().say(f"recorded in {folder}")


def unless_named(usual: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Return the overrides of `usual` whose keys `lines` do not set."""
    named = {line.partition("=")[0].lstrip("+~") for line in lines}
    return [line for line in usual if line.partition("=")[0] not in named]


def contests(limits: BenchConfig, sections: Sequence[BenchSection]) -> list[Callable[[], Contest | None]]:
    """Return what makes the contest of each section, one after the other."""
    from bnlab.bench.arms import contest
    from bnlab.bench.inference import inference_contest

    if limits.mode in ("profile", "workers"):
        raise ConfigError(f"bench.mode={limits.mode}: is --{limits.mode} here\nomit it")
    if limits.mode == "inference":
        return [partial(inference_contest, section) for section in sections]
    return [partial(contest, section, limits.graph) for section in sections]


def timed(limits: BenchConfig, contests: Sequence[Callable[[], Contest | None]]) -> list[ContestTime]:
    """Time one after the other; the seconds that one leaves are the others'."""
    from bnlab.bench.engine import measure
    from bnlab.report.bench_report import benching
    from bnlab.report.console import messages

    times: list[ContestTime] = []
    left = limits.seconds
    with benching(messages()) as watch:
        for number, make in enumerate(contests):
            ready = make()
            if ready is not None:
                share = left / (len(contests) - number)
                times.append(measure(ready, limits, share, partial(watch, ready.title)))
                left = max(left - times[-1].seconds, 0.0)
                del ready  # its data and models, before the next are built
    return times


def _answer(folder: Path, out: Terminal) -> Group:
    """Return what a record comes to in words, as `bnlab compare` has it."""
    from rich.console import Group

    from bnlab.compare.comparison import compare
    from bnlab.report.table import joined
    from bnlab.report.verdicts import answers

    said = itertools.chain(*answers(compare([folder])))
    return Group(*(line for sentence in said for line in joined([sentence], out, "bold")))


def _tables(
    times: Sequence[ContestTime], grown: Sequence[Sequence[Level]], scale: Size | None
) -> Iterator[Callable[[Terminal], Group]]:
    """Yield what makes a table of each contest, then one of each section over its sizes."""
    from bnlab.bench.scaling import growths
    from bnlab.report.bench_report import bench_table, growth_table, scaling_table

    yield from (partial(bench_table, item) for item in times)
    rest = iter(times)
    for part in grown:
        its = list(itertools.islice(rest, len(part)))
        if scale == "data":
            yield partial(growth_table, growths(part[0].section, its[0]))
        else:
            yield partial(scaling_table, str(scale), [(level.label, level.size) for level in part], its)


def _bench_stragglers(overrides: Sequence[str], workers: int, delays: Sequence[float], format: str) -> None:
    """Time training on several processes while one of them is late, for each delay in ms."""
    from bnlab.bench.straggler_launch import figures, plan_of, read_sections, run_workers, threads_of
    from bnlab.cli.bench_record import record_workers
    from bnlab.report.console import messages
    from bnlab.report.rows import show
    from bnlab.report.straggler_report import straggler_table, watching

    err = messages()
    limits, sections, notes = read_sections(overrides, workers, delays)
    for line in notes:
        err.say(line)
    with watching(err, workers) as watch:
        times = run_workers(plan_of(sections, delays, limits), workers, threads_of(sections), watch)
    rows = [row for part in times for row in figures(part)]
    folder = record_workers(sections, times)
    show(format, [partial(straggler_table, part) for part in times], {"record": str(folder)}, rows)
    err.say(f"recorded in {folder}")
