"""Run all benchmarks and print one table: `make bench`."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import compare, growth, loops, steps
from benchmarks.pairing import Ratio, side_by_side
from bnlab.norms import strategies
from bnlab.record.provenance import environment
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
        for kind, count in (("mlp", 600), ("cnn", 60)):
            found = side_by_side(loops.contenders(kind, count, Path(folder)), "minimal loop", rounds=9)
            show(f"training throughput, {kind}", "images/s", found)
    for kind, channels_last, rounds in (("cnn", True, 100), ("cnn", False, 100), ("mlp", True, 400)):
        layout = "" if kind == "mlp" else (", channels_last" if channels_last else ", contiguous")
        fitting = [n for n in strategies if kind != "mlp" or not strategies[n]().facts.needs_space]
        found = side_by_side(steps.contenders(kind, channels_last, fitting), "none", rounds=rounds)
        show(f"one training step, {kind}{layout}", "ms", found)
        pair = {name: steps.one_step(kind, channels_last, name) for name in ("batch", "ghost")}
        show(f"ghost over batch, {kind}{layout}", "ms", side_by_side(pair, "batch", rounds=rounds))
    for kind in ("cnn", "mlp"):
        show_growth(kind, growth.growth(kind, ("batch", "population"), rounds=9))
    show_times()


def show(title: str, unit: str, found: list[Ratio]) -> None:
    table = Table(
        title=f"{title} (ratio: median of {found[0].rounds} rounds, 95% interval)", title_justify="left", box=None
    )
    table.add_column("")
    for heading in (unit, "ratio", "interval"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(row.name, f"{row.figure:,.4g}", f"{row.ratio:.3f}", f"{row.low:.3f} to {row.high:.3f}")
    console.print(table)
    console.print()


def show_growth(kind: str, found: list[growth.Growth]) -> None:
    """The price of statistics of the whole training set, refreshed before every step."""
    table = Table(
        title=f"ms a step, {kind}, by images in the training set; epoch time ~ images^p "
        f"(medians of {found[0].rounds} rounds, 95% interval of p)",
        title_justify="left",
        box=None,
    )
    table.add_column("")
    for heading in (*(f"{size:,}" for size in growth.SIZES), "p", "interval"):
        table.add_column(heading, justify="right")
    for row in found:
        times = [f"{row.step_ms[size]:,.4g}" for size in growth.SIZES]
        table.add_row(row.name, *times, f"{row.exponent:.2f}", f"{row.low:.2f} to {row.high:.2f}")
    console.print(table)
    console.print()


def show_times() -> None:
    """Whole processes: start of the command line, a comparison of 1,000 runs."""
    table = Table(title="whole processes (median of 7, range)", title_justify="left", box=None)
    table.add_column("")
    table.add_column("seconds", justify="right")
    table.add_column("range", justify="right")
    with tempfile.TemporaryDirectory() as folder:
        compare.write_runs(Path(folder), 1000)
        bnlab = [sys.executable, "-m", "bnlab"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "bnlab --help": [*bnlab, "--help"],
            "bnlab compare, 1,000 runs": [*bnlab, "compare", folder],
        }
        for name, command in commands.items():
            seconds = sorted(process_seconds(command) for _ in range(7))
            table.add_row(name, f"{statistics.median(seconds):.2f}", f"{seconds[0]:.2f} to {seconds[-1]:.2f}")
    console.print(table)


def process_seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
