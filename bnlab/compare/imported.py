"""Runs that bnlab did not make: a row each, of which columns are arms, a seed and figures, as runs to be compared."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bnlab.compare.arms import NOT_COMPARED, text_of, where_of
from bnlab.compare.notes import named
from bnlab.compare.result import Value
from bnlab.errors import ConfigError, did_you_mean
from bnlab.metrics import ANY, Direction, Metric, Summary, metrics
from bnlab.record.read import Run
from bnlab.record.read_files import Unreadable, read_bytes

LARGEST_CSV = 32 * 2**20  # bytes
LARGEST_NUMBER = 1e100  # beyond it squares overflow
LONGEST_VALUE = 1000  # characters of an arm, a seed or a name
MOST_LISTED = 60  # columns
SEPARATORS = ",;\t"
HIGHER = "acc accuracy auc auroc bleu f1 iou map precision psnr r2 recall return reward score ssim"
LOWER = "cer ece err error fid loss mae ms mse nll perplexity ppl rmse runtime seconds time latency wer"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Record:
    """What someone wrote down of one run."""

    place: str  # such as `line 7`
    values: Mapping[str, str | float | None]  # by column


@dataclass(frozen=True)
class Others:
    """Runs of others, ready to be compared."""

    source: str
    runs: list[Run]
    metrics: list[Metric]
    remarks: list[str]  # seeds that only some arms have, directions that are not known

    @property
    def names(self) -> list[str]:
        return [metric.name for metric in self.metrics]

    @contextmanager
    def declared(self) -> Iterator[None]:
        """Let every table know these metrics as long as this lasts."""
        before = dict(metrics)
        for metric in self.metrics:
            metrics[metric.name] = metric
        try:
            yield
        finally:
            metrics.clear()
            metrics.update(before)


def read_csv(path: Path) -> list[Record]:
    """Return the rows of a CSV in UTF-8 under its first line. Errors: ConfigError with line and reason."""
    try:
        content = read_bytes(os.path.realpath(path), LARGEST_CSV)
    except FileNotFoundError:
        raise ConfigError(f"--from {path}: does not exist\ngive a CSV, mlflow:URI or tensorboard:FOLDER") from None
    except Unreadable as error:
        reason = str(error).removeprefix(f"{os.path.basename(os.path.realpath(path))} ")
        raise ConfigError(f"--from {path}: {reason}\ngive a CSV with a row for each run") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"--from {path}: line {line} is not text in UTF-8") from error
    if "\0" in text:
        raise ConfigError(f"--from {path}: line {text.count(chr(10), 0, text.index(chr(0))) + 1} is not text")
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(SEPARATORS, key=first.count), strict=True)
    records: list[Record] = []
    try:
        titles = [title.strip() for title in next(reader, [])]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ConfigError(f"--from {path}: line 1 names {named(twice)} twice")
        for row in reader:
            if row and len(row) != len(titles):
                told = f"--from {path}: line {reader.line_num} has {len(row)} cells, line 1 {len(titles)}"
                if len(titles) < 2:
                    told += "\nlet line 1 name the columns, without blank lines or comments before it"
                elif reader.dialect.delimiter == "," and len(row) > len(titles):
                    told += "\nwrite numbers with a decimal point, as 95.3"
                raise ConfigError(told)
            if row:
                cells = (cell.strip() for cell in row)
                records.append(Record(f"line {reader.line_num}", dict(zip(titles, cells, strict=True))))
    except csv.Error as error:
        raise ConfigError(f"--from {path}: line {reader.line_num}: {error}") from error
    return records


def others_of(
    source: str,
    records: Sequence[Record],
    *,
    arms: Sequence[str],
    seed: str,
    wanted: Sequence[str],
    where: Sequence[str] = (),
) -> Others:
    """Return the records as runs: `arms` and `seed` are columns, `wanted` those of figures, + or - before a direction.

    Errors: ConfigError naming a column, a row or a figure that is missing, with what there is.
    """
    if not records:
        raise ConfigError(f"--from {source}: has no runs")
    columns = list(dict.fromkeys(column for record in records for column in record.values))
    found = [_metric(word, columns) for word in wanted]
    for option, name in [*(("--arm", arm) for arm in arms), ("--seed", seed), *(("--metric", m.name) for m in found)]:
        if name not in columns:
            near = did_you_mean(name, columns)
            raise ConfigError(f"{option} {name}: {source} has no such column{near}\nthere are: {listed(columns)}")
    kept = _kept(source, records, where)
    seeds = _seeds(source, kept, seed)
    _check_numbers(source, kept, arms)
    keys = {arm: f"arm.{arm}" if arm in NOT_COMPARED else arm for arm in arms}  # or it would tell no runs apart
    runs: dict[tuple[object, ...], Run] = {}
    for order, (record, number) in enumerate(zip(kept, seeds, strict=True)):
        config = {key: v for arm, key in keys.items() if (v := _value(source, record, arm)) is not None}
        figures = {m.name: _figure(source, record, m.name) for m in found}
        run = Run(
            folder=Path(source) / record.place,  # below the source, where no sweep has a record
            state="done",
            identity="",
            config=config | {"seed": number},
            seed=number,
            order=order,
            environment={"source": source},
            summary={"figures": figures, "curve": {}},
        )
        if (other := runs.setdefault((number, *map(config.get, keys.values())), run)) is not run:
            first = next(r for r in kept if r.place == other.folder.name)
            raise ConfigError(_twice(source, first, record, [*arms, seed], [m.name for m in found]))
    remarks = [
        f"{m.name}: it is not known which direction is better; `--metric +{m.name}` or `-{m.name}` says it"
        for m in found
        if m.better is None
    ]
    return Others(source, list(runs.values()), found, [*_gaps(list(runs.values()), kept, seeds, seed), *remarks])


def listed(columns: Sequence[str]) -> str:
    """Return the names of columns for a message."""
    more = f" and {len(columns) - MOST_LISTED} more" if len(columns) > MOST_LISTED else ""
    return ", ".join(column[:100] for column in columns[:MOST_LISTED]) + more


def _metric(word: str, columns: Sequence[str]) -> Metric:
    """Return a metric whose figures stay as they are; its direction is its sign's or what its name is known for."""
    has_sign = word not in columns and word[:1] in ("+", "-")
    name = word[1:] if has_sign else word
    better: Direction | None = _direction(name)
    if has_sign:
        better = "higher" if word[0] == "+" else "lower"

    def figure(run: Summary) -> float | None:
        value: float | None = run["figures"][name]
        return value

    return Metric(name, "", better, name, "", 1.0, "mean", None, figure, ANY, None, None, False, False)


def _direction(name: str) -> Direction | None:
    if name in metrics:
        return metrics[name].better
    words = set(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    is_higher, is_lower = bool(words & {*HIGHER.split()}), bool(words & {*LOWER.split()})
    return None if is_higher == is_lower else "higher" if is_higher else "lower"


def _kept(source: str, records: Sequence[Record], where: Sequence[str]) -> Sequence[Record]:
    """Return the records that meet every condition. Errors: ConfigError."""
    if not where:
        return records
    whole = []
    for order, record in enumerate(records):
        config = {column: _typed(value) for column, value in record.values.items() if value not in (None, "")}
        whole.append(Run(folder=Path(record.place), state="done", identity="", config=config, seed=0, order=order))
    return [records[run.order] for run in where_of(where, whole)]


def _typed(value: str | float | None) -> Value:
    """Return a number for text that is one and finite, else the text."""
    if isinstance(value, str) and len(value) <= 30 and _NUMBER.fullmatch(value):
        number = float(value)
        if value.lstrip("+-").isdecimal():
            return int(value)
        return number if math.isfinite(number) else value
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _value(source: str, record: Record, column: str) -> Value:
    """Return what stands in a column; None where nothing does. Errors: ConfigError."""
    value = record.values.get(column)
    if isinstance(value, str) and len(value) > LONGEST_VALUE:
        raise ConfigError(f"--from {source}: {record.place}: {column} has {len(value):,} characters")
    return None if value == "" else _typed(value)


def _check_numbers(source: str, records: Sequence[Record], arms: Sequence[str]) -> None:
    """Refuse one number that is written in two ways, as versions 2.1 and 2.10 are: they would be one arm."""
    for arm in arms:
        seen: dict[Value, Record] = {}
        for record in records:
            value = _value(source, record, arm)
            first = seen.setdefault(value, record)
            one, other = first.values.get(arm), record.values.get(arm)
            if isinstance(value, (int, float)) and one != other:
                raise ConfigError(
                    f"--from {source}: {first.place} has {one} in {arm}, {record.place} {other}: one number\n"
                    f"write it alike; where it is no number, as of a version, put a letter before it: v{other}"
                )


def _figure(source: str, record: Record, column: str) -> float | None:
    """Return a figure; None where a run has none. Errors: ConfigError for text, nan and what is too large."""
    value = record.values.get(column)
    if value is None or value == "":
        return None
    number = _typed(value) if isinstance(value, str) else value
    if isinstance(number, float) and not isinstance(value, str) and not math.isfinite(number):
        return None  # as trackers log it of a run that diverged
    if not isinstance(number, (int, float)) or not abs(number) <= LARGEST_NUMBER:
        way = "leave the cell empty where a run has no figure: it is counted as lost"
        if isinstance(value, str) and "," in value and _NUMBER.fullmatch(value.replace(",", "")):
            way = "write numbers with a decimal point, as 95.3, and without commas"
        shown = str(value)[:40]
        raise ConfigError(
            f"--from {source}: {record.place}: {column} is {shown}, no number that can be compared\n{way}"
        )
    return float(number)


def _seeds(source: str, records: Sequence[Record], column: str) -> list[int]:
    """Return the seed of each record: its whole number, or where not all are numbers the rank of its text."""
    values: list[Value] = []
    for record in records:
        value = _value(source, record, column)
        if value is None:
            raise ConfigError(f"--from {source}: {record.place}: {column} is empty\na run needs a seed to be paired by")
        values.append(int(value) if isinstance(value, float) and value.is_integer() else value)
    if all(isinstance(value, int) for value in values):
        return [int(value) for value in values if value is not None]
    rank = {text: i for i, text in enumerate(sorted(set(map(text_of, values))))}
    return [rank[text_of(value)] for value in values]


def _twice(source: str, first: Record, second: Record, keys: Sequence[str], figures: Sequence[str]) -> str:
    """Return the error of two rows of one arm and seed."""
    label = " ".join(f"{key}={second.values.get(key)}" for key in keys)
    columns = dict.fromkeys([*first.values, *second.values])
    apart = [c for c in columns if c not in figures and first.values.get(c) != second.values.get(c)]
    way = f"add one that tells them apart with --arm: {named(apart)}" if apart else "remove one"
    return f"--from {source}: {first.place} and {second.place} are both {label}\n{way}, or keep some with --where"


def _gaps(runs: Sequence[Run], records: Sequence[Record], numbers: Sequence[int], column: str) -> list[str]:
    """Say which seeds only some arms have."""
    names = {number: text_of(record.values[column]) for record, number in zip(records, numbers, strict=True)}
    seeds: dict[tuple[tuple[str, Value], ...], set[int]] = {}
    for run in runs:
        arm = tuple((key, value) for key, value in run.config.items() if key != "seed")
        seeds.setdefault(arm, set()).add(run.seed)
    everywhere = set().union(*seeds.values())
    gaps = [
        f"{' '.join(f'{key}={text_of(value)}' for key, value in arm)} lacks {', '.join(names[s] for s in missing[:12])}"
        for arm, there in seeds.items()
        if (missing := sorted(everywhere - there))
    ]
    return [f"{column} in some arms only: {named(gaps, by='; ')}"] if gaps else []
