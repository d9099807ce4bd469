"""What `bnlab probe` found: six tables in a terminal, a sheet for pages, or one row a figure for programs and files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from bnlab.interval import Interval
from bnlab.record.latest import name_of
from bnlab.report.bars import bar_column, bars, ruler, signed_bars, whiskers
from bnlab.report.chart import Scale
from bnlab.report.console import Terminal
from bnlab.report.figures import MISSING, Cell, interval_cells, interval_text, percent, small, with_sum
from bnlab.report.panels import Panel, Picture, Series
from bnlab.report.rows import Row
from bnlab.report.sheet import Plate, Sheet, grid
from bnlab.report.table import Column, draw, joined, shortened

if TYPE_CHECKING:
    import pandas as pd

    from bnlab.measure.by_layer import LayerGap
    from bnlab.measure.decomposition import Decomposition, Term
    from bnlab.measure.probe_model import Evaluation, ProbeResult


_LONGEST_NAME = 60  # of a layer on a page


@dataclass(frozen=True, repr=False)
class Probed:
    """What `bnlab.probe` returns: a probing with what a reader must know above it."""

    label: str
    about: tuple[str, ...]  # data, model, normalization
    step: int | None  # of the checkpoint
    batch_size: int
    probing: ProbeResult
    verdict: str
    explained: tuple[str, ...]  # one a decomposition

    def frame(self) -> pd.DataFrame:
        """Return one row a figure: table, split, name, metric, value, low, high, n; accuracies are shares."""
        import pandas as pd

        return pd.DataFrame(probe_rows(self))

    def __repr__(self) -> str:
        out = Terminal(io.StringIO())
        with out.capture() as shown:
            out.print(probe_tables(self, out), crop=False)
        return shown.get().rstrip()

    def _repr_html_(self) -> str:
        return probe_sheet(self).fragment()


# ---------------------------------------------------------------- in a terminal


def probe_tables(probed: Probed, out: Terminal) -> Group:
    """Return the whole report, as wide as the console."""
    probing = probed.probing
    lines: list[RenderableType] = [*joined(_heading(probed), out, "bold"), *joined(_samples(probed), out, "dim")]
    said, *commands = probed.verdict.split("\n")
    lines += [Text(""), *joined([said], out, "bold")]
    lines += [Text(out.show(each), "bold", no_wrap=True, overflow="ignore") for each in commands]  # to be copied
    lines += _titled("The gap", ["statistics of training against those of evaluation", *_same(probing)], out)
    lines += draw(_gap_columns(probing), out).lines
    for number, (decomposition, said) in enumerate(zip(probing.decompositions, probed.explained, strict=True)):
        lines += _titled(f"Where it comes from: {decomposition.split}", [] if number else _CAUSES, out)
        lines += _terms(decomposition, out)
        lines += [] if said in probed.verdict else joined([said], out)
    lines += _titled("Layers by depth", _layer_legend(probing), out)
    lines += _layers(probing, out)
    if probing.curve:
        scale = _scale([row.accuracy for row in probing.curve])
        about = ["test samples, normalized with stored statistics, or with those of their own batch"]
        lines += _titled("Statistics to evaluate with", about, out)
        lines += _curve(probing, scale, out)
    if probing.agreement:
        lines += _titled("Evaluation in other batches", ["evaluation mode against all samples at once"], out)
        lines += draw(_agreement_columns(probing), out).lines
    return Group(*lines)


def _same(probing: ProbeResult) -> list[str]:
    """Say what images the gap is on, and whether training's statistics are of others."""
    same = "same weights and samples; dropout and augmentation off"
    plain = any(row.name == "population plain" for row in probing.curve)
    last = probing.decompositions[-1]
    if last.unread:
        return [same, f"without what bnlab does not read: {last.unread}"]
    if last.terms[0].absent == "no layer averages batches":
        return [same, f"{last.terms[0].absent}: what differs is below"]
    return [same, *(["training itself takes its statistics with them on"] if plain else [])]


_CAUSES = (
    "training mode minus evaluation mode, one cause after the other taken away",
    "±: 95 % interval",
    "moved: KL divergence in nats, which cannot cancel",
)


def _heading(probed: Probed) -> list[str]:
    step = [] if probed.step is None else [f"checkpoint at step {probed.step:,}"]
    return [probed.label, *probed.about, *step]


def _samples(probed: Probed) -> list[str]:
    sizes = [f"{gap.samples:,} {gap.split}" for gap in probed.probing.gaps]
    over = f"population statistics over {probed.probing.statistics_samples:,} training samples"
    return [f"batches of {probed.batch_size:,} in training", f"probe samples: {', '.join(sizes)}", over]


def _titled(title: str, about: Sequence[str], out: Terminal) -> list[Text]:
    return [Text(""), Text(out.show(title), "bold"), *joined(about, out, "dim")]


def _gap_columns(probing: ProbeResult) -> list[Column]:
    gaps = probing.gaps
    names = [
        "accuracy, statistics of training, %",
        "accuracy, statistics of evaluation, %",
        "accuracy gap, points",
        "loss gap, nats",
        "predictions that change, %",
        "KL(training || evaluation), nats",
        "logit difference, RMS over RMS",
        "mate noise, over RMS of the logits",
    ]
    figures = [
        [
            *(map(str, interval_cells([gap.train_accuracy, gap.eval_accuracy], 100, least=2))),
            interval_text(gap.acc_gap, 100, signed=True, least=2),
            interval_text(gap.loss_gap, signed=True),
            interval_text(gap.flip_rate, 100),
            interval_text(gap.kl),
            small(gap.logit_rms),
            "one batch only" if gap.mate_noise is None else small(gap.mate_noise),
        ]
        for gap in gaps
    ]
    return [Column("", names, left=True), *(Column(gap.split, cells) for gap, cells in zip(gaps, figures, strict=True))]


def _term_columns(decomposition: Decomposition) -> list[Column]:
    terms, total = decomposition.terms, decomposition.total
    return [
        Column("", [*(term.name for term in terms), "sum of the terms", "total"], left=True),
        Column("points", with_sum([term.accuracy for term in terms], total.accuracy, 100, least=2)),
        Column("nats", with_sum([term.loss for term in terms], total.loss)),
        Column("moved", [*(small(term.moved) for term in terms), "", small(total.moved)]),
        Column("flips %", [*(percent(term.flips) for term in terms), "", percent(total.flips)]),
    ]


def _terms(decomposition: Decomposition, out: Terminal) -> list[Text]:
    terms, total = decomposition.terms, decomposition.total
    losses = [term.loss.value for term in terms]
    losses += [sum(losses), total.loss.value]
    columns = [
        *_term_columns(decomposition),
        bar_column("nats", lambda width: signed_bars(losses, width, out), 31, 9),
    ]
    notes = {}
    for row, term in enumerate(terms):
        if _is_absent(term):
            again = row - 1 in notes and terms[row - 1].absent == term.absent
            why = "as above" if again else term.absent
            notes[row] = f"{MISSING if math.isnan(term.moved) else 0}: {why}"
    return draw(columns, out, notes=notes, above={len(terms): ""}, styles={len(terms) + 1: "bold"}).lines


def _is_absent(term: Term) -> bool:
    return term.absent is not None and (math.isnan(term.moved) or not (term.moved or term.loss.value))


def _layer_legend(probing: ProbeResult) -> list[str]:
    if not probing.layers:
        unread = probing.decompositions[-1].unread
        none = "no layer keeps statistics of its batches for evaluation"
        return [f"not measurable: bnlab does not read {unread}" if unread else none]
    about = [
        "running statistics against those of the population",
        "mean z: |mean off| / sigma",
        "log ratio: log(running sigma / sigma)",
    ]
    kinds = {layer.kind for layer in probing.layers}
    left = {layer.initial_left for layer in probing.layers}
    about += [f"all {' '.join(kinds)}"] if len(kinds) == 1 else []
    return [
        *about,
        *(f"initial statistics left: {_left(share)} %" for share in left if len(left) == 1 and share is not None),
    ]


def _layer_columns(layers: Sequence[LayerGap], longest: int) -> list[Column]:
    columns = [
        Column("#", [str(layer.depth) for layer in layers]),
        Column("layer", [shortened(layer.name or "-", longest) for layer in layers], left=True),
        Column("channels", [f"{layer.channels:,}" for layer in layers], rank=2),
        Column("mean z median", [small(layer.mean_z) for layer in layers]),
        Column("mean z max", [small(layer.mean_z_max) for layer in layers]),
        Column("log ratio median", [small(layer.log_std_ratio, signed=True) for layer in layers]),
        Column("log ratio farthest", [small(layer.log_std_ratio_max, signed=True) for layer in layers]),
    ]
    if len({layer.kind for layer in layers}) > 1:
        columns.insert(2, Column("kind", [layer.kind for layer in layers], left=True, rank=3))
    if len({layer.initial_left for layer in layers}) > 1:
        columns.append(Column("initial left %", [_left(layer.initial_left) for layer in layers], rank=1))
    return columns


def _layers(probing: ProbeResult, out: Terminal) -> list[Text]:
    layers = probing.layers
    if not layers:
        return []
    columns = _layer_columns(layers, max(12, out.width - 55))
    means = [layer.mean_z for layer in layers]
    columns.append(bar_column("mean z median", lambda width: bars(means, width, out), 24, 8))
    return draw(columns, out).lines


def _left(share: float | None) -> str:
    return "< 0.01" if share is not None and 0 < share < 1e-4 else small(None if share is None else 100 * share)


def _scale(accuracies: Sequence[Interval]) -> Scale:
    ends = [end for each in accuracies for end in (each.low, each.value, each.high) if end is not None]
    return Scale.over(ends, "error")


def _curve_columns(probing: ProbeResult) -> list[Column]:
    rows = probing.curve
    return [
        Column("", [row.name for row in rows], left=True),
        Column("accuracy %", interval_cells([row.accuracy for row in rows], 100, least=2)),
        Column("loss, nats", interval_cells([row.loss for row in rows])),
        Column("samples", [f"{row.samples:,}" for row in rows], rank=1),
    ]


def _curve(probing: ProbeResult, scale: Scale, out: Terminal) -> list[Text]:
    rows, columns = probing.curve, _curve_columns(probing)
    accuracies = [row.accuracy for row in rows]

    def marks(width: int) -> list[Cell | str]:
        *others, last = whiskers(accuracies, scale, width, out)
        return [*others, Cell(last, below=(ruler(scale, width, out, factor=100),))]

    columns.append(bar_column("accuracy %, log scale of the error", marks, 50, 21))
    own = [number for number, row in enumerate(rows) if row.batch_size is not None]
    return draw(columns, out, above=dict.fromkeys(own[:1], "")).lines


def _agreement_columns(probing: ProbeResult) -> list[Column]:
    rows = probing.agreement
    return [
        Column("", [f"batch of {row.batch_size}" for row in rows], left=True),
        Column("largest logit difference, over RMS", [small(row.largest) for row in rows]),
        Column("predictions that change, %", [percent(row.flips) for row in rows]),
    ]


# ---------------------------------------------------------------- as a sheet


def probe_sheet(probed: Probed) -> Sheet:
    """Return what pages and notebooks show."""
    probing = probed.probing
    absent: dict[str, dict[str, None]] = {}  # by reason
    for term in (term for decomposition in probing.decompositions for term in decomposition.terms):
        if _is_absent(term):
            absent.setdefault(str(term.absent), {})[term.name] = None
    notes = [f"not in the pictures, {', '.join(names)}: {reason}" for reason, names in absent.items()]
    for name, far, flips in grid(_agreement_columns(probing))[1]:
        notes.append(f"evaluation in a {name}, not all at once: logits {far} off over RMS, {flips} % flips")
    notes += [] if probing.layers else _layer_legend(probing)
    return Sheet(
        f"How does {name_of(Path(probed.label))} differ between training and evaluation mode?",
        probed.verdict.split("\n"),
        [*_heading(probed)[1:], *_samples(probed)],
        _gap_columns(probing),
        ["statistics of training against those of evaluation", *_same(probing), "±: 95% interval over samples"],
        list(_plates(probed)),
        notes,
    )


def _plates(probed: Probed) -> Iterator[Plate]:
    probing = probed.probing
    for decomposition, said in zip(probing.decompositions, probed.explained, strict=True):
        terms = [term for term in decomposition.terms if not _is_absent(term) and math.isfinite(term.moved)]
        if terms:
            losses = _dots([*terms, decomposition.total], [each.loss for each in (*terms, decomposition.total)])
            moved = _dots(terms, [Interval(term.moved, None, None, term.loss.n) for term in terms])
            row = [Panel("loss, nats", losses, reference=0.0), Panel("moved: KL, nats", moved, reference=0.0)]
            remark = "; ".join(_CAUSES) if said in probed.verdict else said
            title = f"Where the gap on {decomposition.split} comes from"
            yield Plate(title, Picture([[panel] for panel in row], remark), _term_columns(decomposition))
    if layers := probing.layers:
        depths = [float(layer.depth) for layer in layers]
        rows = []
        for title, median, farthest in (
            ("mean z: |mean off| / sigma", "mean_z", "mean_z_max"),
            ("log(running sigma / sigma)", "log_std_ratio", "log_std_ratio_max"),
        ):
            lines = (("median channel", median), ("farthest channel", farthest))
            series = [
                Series(name, [Interval(getattr(each, key), None, None, 1) for each in layers], colour, depths)
                for colour, (name, key) in enumerate(lines, 1)
            ]
            rows.append(Panel(title, series, "depth", reference=0.0))
        yield Plate(
            "Layers by depth", Picture([rows], _layer_legend(probing)[0]), _layer_columns(layers, _LONGEST_NAME)
        )
    if curve := probing.curve:
        accuracies = [row.accuracy for row in curve]
        dots = _dots(curve, accuracies, interval_cells(accuracies, 100, least=2))
        remark = "test samples, normalized with stored statistics, or with those of their own batch"
        picture = Picture([[Panel("accuracy, %", dots, factor=100.0)]], remark)
        yield Plate("Statistics to evaluate with", picture, _curve_columns(probing))


def _dots(
    named: Sequence[Term | Evaluation], values: Sequence[Interval], cells: Sequence[Cell | str] = ()
) -> list[Series]:
    texts = cells or interval_cells(values)
    return [
        Series(each.name, [value], int(each.name != "total"), cell=str(cell))
        for each, value, cell in zip(named, values, texts, strict=True)
    ]


# ---------------------------------------------------------------- as rows


def probe_head(probed: Probed) -> dict[str, Any]:
    """Return what holds for all rows."""
    probing = probed.probing
    head: dict[str, Any] = {"label": probed.label, "about": ", ".join(probed.about), "step": probed.step}
    head["batch_size"] = probed.batch_size
    head |= {f"{gap.split}_samples": gap.samples for gap in probing.gaps}
    head["statistics_samples"] = probing.statistics_samples
    head["verdict"] = probed.verdict
    for decomposition, said in zip(probing.decompositions, probed.explained, strict=True):
        absent = [f"{term.name}: {term.absent}" for term in decomposition.terms if _is_absent(term)]
        head[f"{decomposition.split}_verdict"] = said
        head[f"{decomposition.split}_absent"] = "; ".join(absent) or None
    first = probing.decompositions[0]
    return head | {"initial_left": first.initial_left, "updates": first.updates, "momentum": first.momentum}


def probe_rows(probed: Probed) -> list[Row]:
    """Return one row a figure: table, split, name, metric, value, low, high, n; accuracies are shares, not points."""
    probing = probed.probing
    rows: list[Row] = []
    for gap in probing.gaps:
        for metric in ("train_accuracy", "eval_accuracy", "acc_gap", "loss_gap", "flip_rate", "kl"):
            rows.append(_row("gap", gap.split, "", metric, getattr(gap, metric)))
        rows.append(_row("gap", gap.split, "", "logit_rms", gap.logit_rms, gap.samples))
        rows.append(_row("gap", gap.split, "", "mate_noise", gap.mate_noise, gap.samples))
    for decomposition in probing.decompositions:
        for term in (*decomposition.terms, decomposition.total):
            place = ("term", decomposition.split, term.name)
            rows += [_row(*place, "accuracy", term.accuracy), _row(*place, "loss", term.loss)]
            rows += [_row(*place, metric, getattr(term, metric), term.loss.n) for metric in ("moved", "flips")]
    measured = ("depth", "channels", "mean_z", "mean_z_max", "log_std_ratio", "log_std_ratio_max", "initial_left")
    for layer in probing.layers:
        rows += [
            _row("layer", "train", layer.name, metric, getattr(layer, metric), probing.statistics_samples)
            for metric in measured
        ]
    last = probing.gaps[-1].split
    for each in probing.curve:
        rows += [
            _row("curve", last, each.name, "accuracy", each.accuracy),
            _row("curve", last, each.name, "loss", each.loss),
        ]
    for agreement in probing.agreement:
        name = f"batch of {agreement.batch_size}"
        rows += [_row("agreement", last, name, metric, getattr(agreement, metric)) for metric in ("largest", "flips")]
    return rows


def _row(where: str, split: str, name: str, metric: str, value: Any, n: int | None = None) -> Row:
    keys: dict[str, Any] = {"table": where, "split": split, "name": name, "metric": metric}
    if hasattr(value, "low"):
        return keys | {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
    return keys | {"value": value, "low": None, "high": None, "n": n}
