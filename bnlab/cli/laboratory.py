"""Commands that examine a normalization or a trained model."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from bnlab.cli.options import Format, complete_override


def check(
    overrides: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Hydra overrides, such as norm=ghost norm.size=8; several strategies: norm=batch,ghost; default: all",
            autocompletion=complete_override,
        ),
    ] = None,
    module: Annotated[
        Optional[str],
        typer.Option("--module", metavar="PACKAGE.MODULE:FACTORY", help="Your factory(channels) -> torch.nn.Module."),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.table,
) -> None:
    """Measure on random and edge tensors what a normalization does, and whether that is what it declares.

    Exit code 1: a property is against what is declared. Your own module declares nothing: its card says what it does.
    """
    from bnlab.cli.check import check as print_cards

    raise typer.Exit(print_cards(overrides or [], module, format.value))


class Recalibration(enum.StrEnum):
    precise = "precise"
    population = "population"


Targets = Annotated[
    Optional[list[str]],
    typer.Argument(
        metavar="[RUN] [KEY=VALUE]...",
        help="A run folder, with overrides such as data.root=...; beside --module only overrides: data.batch_size=, "
        "that of its training, model.input_norm=none for images in [0, 1]",
        autocompletion=complete_override,
    ),
]
Module = Annotated[
    Optional[str],
    typer.Option("--module", metavar="PACKAGE.MODULE:FACTORY", help="Your own model: factory() -> torch.nn.Module."),
]
Weights = Annotated[
    Optional[Path],
    typer.Option("--checkpoint", help="A file of weights: of --module, or instead of the run's own."),
]
Data = Annotated[
    Optional[str],
    typer.Option("--data", help="Data set for --module, such as mnist, or folder with data.path=...; as data=NAME."),
]
Samples = Annotated[
    int, typer.Option("--samples", min=2, help="Training samples that the population statistics are over, at most.")
]


def probe(
    targets: Targets = None,
    module: Module = None,
    weights: Weights = None,
    data: Data = None,
    samples: Samples = 10_000,
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.table,
) -> None:
    """Measure how one model behaves differently in train() and eval(), and split the difference into its causes.

    The model is left as it was.
    """
    from bnlab.cli.probe import probe as print_probing

    print_probing(targets or [], module, weights, data, samples, format.value)


def recalibrate(
    targets: Targets = None,
    stats: Annotated[
        Recalibration, typer.Option("--stats", help="In one pass with training behaviour, or layer after layer.")
    ] = Recalibration.population,
    samples: Annotated[
        Optional[int], typer.Option("--samples", min=2, help="Training samples to take; default: all.")
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option("--out", help="The new file; default: recalibrated-STATS-N.pt beside the old.")
    ] = None,
    module: Module = None,
    weights: Weights = None,
    data: Data = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.table,
) -> None:
    """Replace the running statistics of a trained model by those of the training set, in a new checkpoint.

    Before and after in one table, and how many samples would have been enough.
    """
    from bnlab.cli.recalibrate import recalibrate as print_recalibration

    print_recalibration(targets or [], module, weights, data, stats.value, samples, out, format.value)


def shift(
    targets: Targets = None,
    shifts: Annotated[
        Optional[list[str]], typer.Option("--shift", help="Shifts, such as rotation,noise; default: all.")
    ] = None,
    severity: Annotated[str, typer.Option("--severity", help="Severities 1 to 5, such as 1,3,5.")] = "1,3,5",
    stats: Annotated[
        Optional[list[str]],
        typer.Option("--stats", help="running, mixed, batch, test: statistics to evaluate with; default: all."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Test samples in a batch.")] = 64,
    module: Module = None,
    weights: Weights = None,
    data: Data = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.table,
) -> None:
    """Evaluate on shifted test images, with stored statistics and with those of the test images themselves.

    Accuracy, calibration, and how much a prediction depends on the images it is evaluated with.
    """
    from bnlab.cli.shift import shift as print_shifts

    print_shifts(targets or [], module, weights, data, shifts, severity, stats, batch_size, format.value)


class Size(enum.StrEnum):
    width = "width"
    image = "image"
    batch = "batch"


def bench(
    overrides: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Hydra overrides; lists make arms: norm=none,batch,layer model=cnn,mlp; and bench.seconds=, "
            "bench.precision=, bench.rounds=",
            autocompletion=complete_override,
        ),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="The normalization layers alone, by shape.")] = False,
    scale: Annotated[
        Optional[Size], typer.Option("--scale", help="The same comparison at growing width, image or batch size.")
    ] = None,
    workers: Annotated[
        Optional[int],
        typer.Option("--workers", min=2, help="Training on so many processes, one of them late: who waits for it?"),
    ] = None,
    delay: Annotated[
        str, typer.Option("--delay", metavar="MS,...", help="By how many milliseconds it is late, beside --workers.")
    ] = "0,5,20",
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.table,
) -> None:
    """Compare training steps: all arms in one process, one step each in turn, as ratios with intervals.

    Stops when every ratio is known to 2 % or after two minutes, and says which.
    """
    from bnlab.cli.bench import bench as print_bench

    print_bench(overrides or [], layers, None if scale is None else scale.value, format.value, workers, delay)
