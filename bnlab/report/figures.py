"""Figures as text: as many digits as the interval supports, aligned within a column, and never an invented interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bnlab.interval import Interval

MISSING = "–"
SURVIVORS = "†"  # beside a figure over the runs that are left
AT_ONCE = "‡"  # beside a time of runs that ran while others did
_LARGEST_PLAIN = 1e7  # from here on a figure is written with an exponent
_FAR = 1e6  # times a value
_POWERS = -1  # decimals of a column of which four would show next to nothing: three digits, with a power of ten
_VANISHING = 3e-4  # estimates below it are written with powers of ten: four decimals would leave one digit


@dataclass(frozen=True)
class Cell:
    """One figure: the value, aligned on the decimal, its interval and a remark, aligned to the left; lines below it."""

    head: str
    interval: str = ""
    remark: str = ""
    below: tuple[str, ...] = ()

    @property
    def tail(self) -> str:
        return " ".join(part for part in (self.interval, self.remark) if part)

    def __str__(self) -> str:
        return " ".join(part for part in (self.head, self.tail) if part)


def number(value: float | None, decimals: int, *, signed: bool = False) -> str:
    """Return `value` with `decimals` places and thousands separators; nothing finite reads `–`.

    A `signed` value keeps its sign where it is rounded to nothing: -0.04 reads `-0.0`, and only 0 itself `+0.0`.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if decimals == _POWERS:
        return small(value, signed=signed)
    if abs(value) >= _LARGEST_PLAIN:
        return f"{value:{'+' if signed else ''}.2e}"
    if signed:
        return f"{value + 0.0:+,.{decimals}f}"  # 0.0 makes -0.0 a plain 0
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"


def significant(value: float | None) -> str:
    """Return a single figure, four significant digits of it."""
    return number(value, decimals_for([math.nan if value is None else value], []))


def small(value: float | None, *, signed: bool = False) -> str:
    """Return a figure in three significant digits, two with a power of ten below 0.001; `0` is exactly 0."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return power_of_ten(value, 1, signed=signed)
    return number(value, min(max(2 - _exponent(abs(value)), 0), 5), signed=signed)


def percent(share: float) -> str:
    """Return a share in percent with two decimals; `0` is exactly 0."""
    points = 100 * share
    return number(points, 2) if round(points, 2) else small(points)


def on_axis(value: float, digits: int = 6) -> str:
    """Return a round value as scales have it: `0.3`, `1,000`, `1e-7`."""
    return f"{value:,.{digits}g}".replace("e-0", "e-").replace("e+0", "e")


def power_of_ten(value: float, decimals: int, *, signed: bool = False) -> str:
    """Return `value` as `1.5e-7`."""
    mantissa, _, power = f"{value:{'+' if signed else ''}.{decimals}e}".partition("e")
    return f"{mantissa}e{int(power)}"


def decimals_for(values: Iterable[float], halves: Iterable[float]) -> int:
    """Return the decimal places of a column.

    The typical half-width shows two significant digits up to 0.354 and one above, as the Particle Data Group rounds
    (Review of Particle Physics, Introduction, 5.3). Without any interval the largest value shows four significant
    digits.
    """
    known = sorted(h for h in halves if 0 < h < math.inf)
    if known:
        typical = known[len(known) // 2]
        second_digit = typical < 3.545 * 10.0 ** _exponent(typical)
        return min(max(second_digit - _exponent(typical), 0), 4)
    sizes = [abs(value) for value in values if 0 < abs(value) < math.inf]
    return min(max(3 - _exponent(max(sizes)), 0), 3) if sizes else 0


def _is_tiny(values: Iterable[float]) -> bool:
    sizes = [abs(value) for value in values if 0 < abs(value) < math.inf]
    return bool(sizes) and max(sizes) < 1e-3


def bound(end: float, value: float) -> float:
    """Return an end of the interval of a value; what is so far away that it bounds nothing is infinite, or 0.

    Of two seeds whose times differ by a factor the interval, on the logarithm, goes from 1e-48 to 6e50.
    """
    if abs(end) >= _LARGEST_PLAIN and abs(end) > _FAR * abs(value):
        return math.copysign(math.inf, end)
    return 0.0 if abs(end) < 1 / _LARGEST_PLAIN and abs(end) * _FAR < abs(value) else end


def estimate_cells(estimates: Sequence[Interval | None], scale: float, *, whole: bool = False) -> list[Cell]:
    """Return one metric's column, multiplied by `scale`: center and interval of each arm; `whole` bars decimals."""
    known = [_scaled(e, scale) if e else None for e in estimates]
    values, halves = [e.value for e in known if e], [e.half for e in known if e]
    decimals = 0 if whole else _POWERS if _is_tiny([*values, *halves]) else decimals_for(values, halves)
    cells = [_estimate(e, decimals) if e else Cell(MISSING) for e in known]
    return _align_halves(cells)


def difference_cells(differences: Sequence[Interval | None], scale: float, places: int) -> list[Cell]:
    """Return the column of differences to the baseline, signed, a star on those with p < 0.05.

    Without any interval they have `places` decimals.
    """
    known = [_scaled(d, scale) if d else None for d in differences]
    halves = [d.half for d in known if d and 0 < d.half < math.inf]
    decimals = decimals_for([], halves) if halves else places
    if _is_tiny([*(d.value for d in known if d), *halves]):
        decimals = _POWERS
    cells = []
    for d in known:
        if d is None:
            cells.append(Cell(MISSING))
            continue
        interval = _interval(d, decimals)
        remark = "*" if is_clear(d) else "" if interval else f"n={d.n}"
        cells.append(Cell(number(d.value, decimals, signed=True), interval, _marked(remark, d)))
    return _align_halves(cells)


def interval_cells(
    values: Sequence[Interval], factor: float = 1.0, *, signed: bool = False, least: int = 0
) -> list[Cell]:
    """Return a column of values times `factor` with their intervals; `0` is exactly 0, also at its ends.

    The column has the decimals that its typical interval supports, and `least` of them; an estimate that would vanish
    has powers of ten.
    """
    known = [_scaled(each, factor) for each in values]
    decimals = max(least, decimals_for([each.value for each in known], [each.half for each in known]))
    return [_measured(each, decimals, signed) for each in known]


def interval_text(value: Interval, factor: float = 1.0, *, signed: bool = False, least: int = 0) -> str:
    """Return a single value with its interval, in the digits that this supports."""
    return str(interval_cells([value], factor, signed=signed, least=least)[0])


def with_sum(terms: Sequence[Interval], total: Interval, factor: float = 1.0, *, least: int = 0) -> list[Cell]:
    """Return the column of `terms`, their sum, and `total`; the sum has the digits of the total, and no interval."""
    *cells, last = interval_cells([*terms, total], factor, signed=True, least=least)
    value = factor * sum(term.value for term in terms)
    if last.head in ("0", MISSING) or "e" in last.head:
        return [*cells, Cell(small(value, signed=True)), last]
    return [*cells, Cell(number(value, len(last.head.partition(".")[2]), signed=True)), last]


def is_clear(difference: Interval) -> bool:
    """Whether the difference stands at the 5% level after the correction over arms."""
    return difference.p is not None and difference.p < 0.05


def _measured(e: Interval, decimals: int, signed: bool) -> Cell:
    value, half = e.value, e.half
    if half == math.inf:
        return Cell("0" if value == 0 else significant(value))
    if value == 0 and half == 0:
        return Cell("0")
    if max(abs(value), half) < _VANISHING:
        return Cell(small(value, signed=signed), f"± {small(half)}")
    return Cell(number(value, decimals, signed=signed), _interval(e, decimals) if half else "± 0")


def _estimate(e: Interval, decimals: int) -> Cell:
    reached = _marked(f"({e.n - e.num_missed} of {e.n})" if e.num_missed else "", e)
    if math.isnan(e.value):
        if e.limit is None or not e.num_missed:
            return Cell(MISSING)
        return Cell(f"> {_limit(e.limit, decimals)}", "", reached)
    return Cell(number(e.value, decimals), _interval(e, decimals, even=e.kind == "mean"), reached)


def _marked(remark: str, e: Interval) -> str:
    return " ".join(filter(None, (remark, SURVIVORS if e.num_lost and e.n else "", AT_ONCE if e.is_beside else "")))


def _limit(value: float, decimals: int) -> str:
    """Return the value with its column's decimals; where those show less than two digits of a fraction, with two."""
    if value < 10.0 ** (1 - decimals) and not value.is_integer():
        return f"{value:.2g}"
    return number(value, decimals)


def _interval(e: Interval, decimals: int, *, even: bool = True) -> str:
    """Return `± half` where the interval is even about the value, else both ends, and nothing where there is none.

    A time that is known to the grid of evaluations has a half-open interval, also where there is a single one of it.
    """
    low, high = e.low, e.high
    if e.since is not None:
        low, high = (e.since, e.value) if e.n == 1 else (low, high)
        if low is not None:
            return (
                f"(> {number(low, decimals)})"
                if high is None
                else f"({number(low, decimals)}–{number(high, decimals)}]"
            )
    if low is None and high is None:
        return ""
    if low is None or high is None:
        return f"(≥ {number(low, decimals)})" if low is not None else f"(≤ {number(high, decimals)})"
    if low == high or (even and abs((high - e.value) - (e.value - low)) <= 0.05 * (high - low)):
        least = 10.0**-decimals if e.half and decimals != _POWERS else 0.0  # never a false ± 0.00
        return f"± {number(max(e.half, least), decimals)}"
    low, high = bound(low, e.value), bound(high, e.value)
    return f"({end_text(low, decimals)}–{end_text(high, decimals)})"


def end_text(end: float, decimals: int, *, signed: bool = False) -> str:
    """Return an end of an interval with `decimals` places, or the sign of infinity."""
    return f"{'-' * (end < 0)}∞" if math.isinf(end) else number(end, decimals, signed=signed)


def _align_halves(cells: list[Cell]) -> list[Cell]:
    width = max((len(c.interval) for c in cells if c.interval.startswith("±")), default=0)
    return [
        replace(c, interval="± " + c.interval[2:].rjust(width - 2)) if c.interval.startswith("±") else c for c in cells
    ]


def _scaled(e: Interval, scale: float) -> Interval:
    low, high, limit, since = (_times(value, scale) for value in (e.low, e.high, e.limit, e.since))
    return replace(e, value=e.value * scale, low=low, high=high, limit=limit, since=since)


def _times(value: float | None, scale: float) -> float | None:
    return None if value is None or not math.isfinite(value) else value * scale


def _exponent(value: float) -> int:
    return math.floor(math.log10(value))
