"""Run all benchmarks and print one table: `make bench`."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import loops, processes, steps
from benchmarks.pairing import Row, side_by_side
from bnlab.record.environment import environment
from bnlab.report.bench_report import bench_table
from bnlab.report.console import results
from bnlab.training.allocator import keep_freed_memory

console = Console()


def main() -> None:
    here = environment()
    console.print(
        f"{here['cpu']}, {here['cores']} cores, {torch.get_num_threads()} threads · Python {platform.python_version()}"
        f" · torch {torch.__version__} · batch {loops.BATCH}, 28 x 28 images",
        highlight=False,
    )
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        for kind, count in (("mlp", 450), ("cnn", 60)):
            found = side_by_side(loops.contenders(kind, count, Path(folder)), "minimal loop", rounds=9)
            show(f"training throughput, {kind}", "images/s", found)
    out = results()
    for kind, channels_last in (("cnn", True), ("cnn", False), ("mlp", True)):
        for norms, seconds in (("glob(*)", 25.0), ("batch,ghost", 10.0)):
            out.print(bench_table(steps.times(kind, channels_last, norms, seconds), out))
            out.say("")
    show("step of the cnn by allocator, a process each", "ms", processes.allocator())
    for kind, count in (("mlp", 2500), ("cnn", 800)):
        show(f"a sweep's training by launcher, {kind} on digits", "images/s", processes.sweep(kind, count))
    show_seconds(processes.whole_processes())


def show(title: str, unit: str, found: list[Row]) -> None:
    table = Table(
        title=f"{title} (ratio: median of {found[0].ratio.n} rounds, 95% interval)", title_justify="left", box=None
    )
    table.add_column("")
    for heading in (unit, "ratio", "interval"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(
            row.name, f"{row.figure:,.4g}", f"{row.ratio.value:.3f}", f"{row.ratio.low:.3f} to {row.ratio.high:.3f}"
        )
    console.print(table)
    console.print()


def show_seconds(found: list[processes.Seconds]) -> None:
    table = Table(title="whole processes (median of 7, range)", title_justify="left", box=None)
    table.add_column("")
    table.add_column("seconds", justify="right")
    table.add_column("range", justify="right")
    for row in found:
        table.add_row(row.name, f"{row.median:.2f}", f"{row.low:.2f} to {row.high:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
