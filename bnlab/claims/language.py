"""The sentences of gates and claims: a number made of metrics, and where it has to lie.

    test_accuracy[norm=ghost] - test_accuracy[norm=batch] > -0.3
    steps_to_target[norm=batch] / steps_to_target[norm=none] < 1
    slope(log train_seconds[norm=population] over log train_size) in [1.7, 2.2]
    rate(learned[norm=batch lr=10] == 0) <= 0.1
    exact(acc_gap[norm=instance]) == 0
    largest(lr where learned[norm=batch] == 1) / largest(lr where learned[norm=none] == 1) >= 3

The grammar, in which CELL is what `compare --where` takes, separated by blanks, and must leave a single arm:

    sentence  = sum region
    region    = ("<" | "<=" | ">" | ">=" | "==") NUMBER | ("in" | "outside") "[" NUMBER "," NUMBER "]"
    sum       = product { "-" product }
    product   = factor { ("/" | "*") factor }
    factor    = "(" sum ")" | quantity | slope | rate | exact | largest
    quantity  = METRIC [ "[" CELL "]" ] | "abs(" METRIC [ "[" CELL "]" ] ")"
    slope     = "slope(" ["log"] quantity "over" ["log"] (KEY | "depth") ")"
    rate      = "rate(" quantity comparison NUMBER ")"
    exact     = "exact(" sum ")"
    largest   = "largest(" KEY "where" quantity comparison NUMBER ")"

Nothing is evaluated but what this grammar names: a sentence is data, whoever wrote it.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from bnlab.errors import ConfigError
from bnlab.metric import LARGEST
from bnlab.metrics import BENCH, CHECK, find_metric

T = TypeVar("T")
LONGEST = 1000  # characters of a sentence
DEEPEST = 8  # brackets within one another
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "in": "outside", "outside": "in"}
WORDS = ("abs", "slope", "rate", "exact", "largest")
EXAMPLE = "such as `test_accuracy[norm=ghost] - test_accuracy[norm=batch] > -0.3`"
_TOKEN = re.compile(r"\s*(?:(?P<word>[A-Za-z_][\w.]*)|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
                    r"|(?P<sign><=|>=|==|<|>|[-/*()\[]))")  # fmt: skip
_BOUNDS = re.compile(r"\s*([^,\s]+)\s*,\s*([^,\s]+)\s*")


@dataclass(frozen=True)
class Quantity:
    """A metric of one arm, in the unit that `bnlab list metrics` gives it."""

    metric: str
    cell: tuple[str, ...] = ()
    absolute: bool = False

    def __str__(self) -> str:
        text = self.metric + (f"[{' '.join(self.cell)}]" if self.cell else "")
        return f"abs({text})" if self.absolute else text


@dataclass(frozen=True)
class Difference:
    """Seed by seed."""

    of: Expression
    minus: Expression

    def __str__(self) -> str:
        minus = f"({self.minus})" if isinstance(self.minus, Difference) else str(self.minus)
        return f"{self.of} - {minus}"


@dataclass(frozen=True)
class Ratio:
    """Seed by seed, averaged as logarithms; with `inverse` the product instead."""

    of: Expression
    over: Expression
    inverse: bool = False

    def __str__(self) -> str:
        of = f"({self.of})" if isinstance(self.of, Difference) else str(self.of)
        over = f"({self.over})" if isinstance(self.over, (Difference, Ratio)) else str(self.over)
        return f"{of} {'*' if self.inverse else '/'} {over}"


@dataclass(frozen=True)
class Slope:
    """Of a least-squares line through the levels of a key, or through the layers (`depth`), within each seed."""

    of: Quantity
    over: str
    log_of: bool = False
    log_over: bool = False

    def __str__(self) -> str:
        return f"slope({'log ' * self.log_of}{self.of} over {'log ' * self.log_over}{self.over})"


@dataclass(frozen=True)
class Condition:
    """A quantity compared with a number, of a single run."""

    of: Quantity
    sign: str
    number: float

    def holds(self, value: float) -> bool:
        return COMPARISONS[self.sign](value, self.number)

    def __str__(self) -> str:
        return f"{self.of} {self.sign} {self.number:g}"


@dataclass(frozen=True)
class Rate:
    """The share of runs in which a condition holds; a run that diverged counts."""

    condition: Condition

    def __str__(self) -> str:
        return f"rate({self.condition})"


@dataclass(frozen=True)
class Exact:
    """The largest absolute value over all seeds, known without an interval."""

    of: Expression

    def __str__(self) -> str:
        return f"exact({self.of})"


@dataclass(frozen=True)
class Largest:
    """The largest level of a key below the first at which a condition fails, within each seed."""

    key: str
    condition: Condition

    def __str__(self) -> str:
        return f"largest({self.key} where {self.condition})"


Expression = Quantity | Difference | Ratio | Slope | Rate | Exact | Largest


@dataclass(frozen=True)
class Region:
    """Where a number has to lie."""

    sign: str
    low: float
    high: float = math.nan  # of `in` and `outside` only

    def contains(self, low: float, high: float) -> bool:
        """Return whether the whole interval lies in the region."""
        if self.sign == "in":
            return self.low <= low and high <= self.high
        if self.sign == "outside":
            return high < self.low or low > self.high
        if self.sign == "==":
            return low == high == self.low
        return COMPARISONS[self.sign](low if self.sign[0] == ">" else high, self.low)

    def excludes(self, low: float, high: float) -> bool:
        """Return whether the whole interval lies outside of the region."""
        if self.sign == "==":
            return high < self.low or low > self.low
        return Region(OPPOSITE[self.sign], self.low, self.high).contains(low, high)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Its ends."""
        return (self.low,) if math.isnan(self.high) else (self.low, self.high)

    def __str__(self) -> str:
        numbers = [f"{number:g}" for number in self.thresholds]
        return f"{self.sign} [{', '.join(numbers)}]" if len(numbers) > 1 else f"{self.sign} {numbers[0]}"


@dataclass(frozen=True)
class Sentence:
    """What a part of a rule says: confirmed where the number lies in the region, refuted where it does not."""

    of: Expression
    region: Region

    def __str__(self) -> str:
        return f"{self.of} {self.region}"


def leaves(expression: Expression) -> Iterator[Quantity | Slope | Rate | Largest]:
    """Yield what an expression is made of by differences and ratios."""
    match expression:
        case Difference(of, other) | Ratio(of, other, _):
            yield from leaves(of)
            yield from leaves(other)
        case Exact(of):
            yield from leaves(of)
        case Quantity() | Slope() | Rate() | Largest():
            yield expression


def quantities(expression: Expression) -> Iterator[Quantity]:
    """Yield every metric of a cell that an expression is made of."""
    for leaf in leaves(expression):
        match leaf:
            case Quantity():
                yield leaf
            case Slope(of):
                yield of
            case Rate(condition) | Largest(_, condition):
                yield condition.of


def parse_sentence(text: object) -> Sentence:
    """Return what a sentence says. Errors: ConfigError that names the place and what is allowed there."""
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{text!r:.80}: must be a sentence {EXAMPLE}")
    if len(text) > LONGEST:
        raise ConfigError(f"{text[:40]}…: a sentence has at most {LONGEST:,} characters, this one {len(text):,}")
    parser = _Parser(text)
    of = parser.sum()
    region = parser.region()
    parser.end()
    _check(text, of)
    _check_region(text, of, region)
    return Sentence(of, region)


def _check(text: str, of: Expression, around: Expression | None = None) -> None:
    """Refuse what has no interval where it stands, within the expression `around` it. Errors: ConfigError."""
    match of:
        case Rate() | Exact() if around is not None:
            raise ConfigError(f"{text}: {str(of).partition('(')[0]}(…) stands alone, left of the comparison")
        case Quantity("learned"):
            raise ConfigError(f"{text}: learned is 0 or 1 in a run, so it has no interval of a mean\n"
                              "write rate(learned[…] == 1), or largest(lr where learned[…] == 1)")  # fmt: skip
        case Quantity("check_error") if not isinstance(around, Exact):
            raise ConfigError(f"{text}: check_error is one number without an interval\nwrite exact({of})")
        case Slope(Quantity(name)) if find_metric(name).kind == "time to target":
            raise ConfigError(f"{text}: {name} is known to the grid of evaluations, and cut where a run ends\n"
                              "compare two levels as a ratio")  # fmt: skip
        case Quantity("step_ratio") if isinstance(around, Difference):
            raise ConfigError(f"{text}: step_ratio is compared as a ratio, with / in place of -")
        case Rate(condition) | Largest(_, condition):
            if find_metric(condition.of.metric).by.startswith((BENCH, CHECK)):
                raise ConfigError(f"{text}: {condition.of.metric} is no figure of trainings, which {of} goes over")
            _check_region(text, condition.of, Region(condition.sign, condition.number))
        case Difference(a, b) | Ratio(a, b, _):
            if isinstance(of, Difference) and any(isinstance(part, Largest) for part in (a, b)):
                raise ConfigError(f"{text}: largest(…) is compared as a ratio, since its levels are multiples")
            if a == b and not (isinstance(of, Ratio) and of.inverse):
                raise ConfigError(f"{text}: both sides are {a}\nname another arm, or another metric, on one of them")
            _check(text, a, of)
            _check(text, b, of)
        case Exact(inner):
            if isinstance(inner, (Ratio, Largest, Slope)):
                raise ConfigError(f"{text}: exact(…) takes metrics and their differences")
            _check(text, inner, of)


def _check_region(text: str, of: Expression, region: Region) -> None:
    """Refuse a region that every possible value lies in, or none. Errors: ConfigError."""
    low, high = _span(of)
    for word, settled in (("always", region.contains(low, high)), ("never", region.excludes(low, high))):
        if settled:
            span = f"from {low:g} to {high:g}" if high < math.inf else "0 or more" if low == 0 else "above 0"
            raise ConfigError(f"{text}: {of} is {span}, so it is {word} {region}\nchoose a number in between")


def _span(of: Expression) -> tuple[float, float]:
    """Return between what an expression lies, whatever runs come to."""
    match of:
        case Quantity(name, _, absolute):
            metric = find_metric(name)
            low, high = (end * metric.scale for end in metric.bounds)
            return (max(low, 0.0), max(-low, high)) if absolute else (low, high)
        case Difference(a, b):
            (low, high), (low_b, high_b) = _span(a), _span(b)
            return low - high_b, high - low_b
        case Exact(inner):
            return 0.0, max(map(abs, _span(inner)))
        case Rate():
            return 0.0, 1.0
        case Ratio() | Largest():
            return math.ulp(0.0), math.inf
    return -math.inf, math.inf


class _Parser:
    """One sentence, read from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.depth = text, 0, 0

    def sum(self) -> Expression:
        found = self.product()
        while self.peek() == "-":
            self.take()
            found = Difference(found, self.product())
        return found

    def product(self) -> Expression:
        found = self.factor()
        while (sign := self.peek()) in ("/", "*"):
            self.take()
            found = Ratio(found, self.factor(), sign == "*")
        return found

    def factor(self) -> Expression:
        word = self.peek()
        if word == "(":
            return self.within(self.sum)
        special: Mapping[str, Callable[[], Expression]] = {
            "slope": self.slope,
            "rate": self.rate,
            "exact": self.exact,
            "largest": self.largest,
        }
        if (inner := special.get(word or "")) is not None:
            self.take()
            return self.within(inner)
        return self.quantity()

    def quantity(self) -> Quantity:
        word = self.take()
        if word == "abs" and self.peek() == "(":
            inner = self.within(self.quantity)
            return Quantity(inner.metric, inner.cell, True)
        if not re.fullmatch(r"[A-Za-z_][\w.]*", word or ""):
            raise self.wrong(f"a metric, or one of {', '.join(WORDS)}", word)
        try:
            metric = find_metric(str(word)).name
        except ConfigError as error:
            raise ConfigError(f"{self.text}: {error}") from error
        return Quantity(metric, self.cell() if self.peek() == "[" else ())

    def cell(self) -> tuple[str, ...]:
        inside = self.bracket()
        conditions = tuple(re.split(r"\s+(?![^\[]*\])", inside.strip()))
        for condition in conditions:
            if not re.fullmatch(r"[A-Za-z_][\w.]*=\S(?:.*\S)?", condition):
                raise ConfigError(f"{self.text}: [{inside}]: must be KEY=VALUE, several with blanks between them")
            if condition.startswith("seed="):
                raise ConfigError(f"{self.text}: [{inside}]: an arm is all of its seeds; leave {condition} out")
        return conditions

    def slope(self) -> Slope:
        log_of = self.word("log")
        of = self.quantity()
        self.expect("over")
        log_over = self.word("log")
        return Slope(of, self.key(), log_of, log_over)

    def rate(self) -> Rate:
        return Rate(self.condition())

    def exact(self) -> Exact:
        return Exact(self.sum())

    def largest(self) -> Largest:
        key = self.key()
        self.expect("where")
        return Largest(key, self.condition())

    def condition(self) -> Condition:
        of = self.quantity()
        sign = self.take()
        if sign not in COMPARISONS:
            raise self.wrong(f"one of {' '.join(COMPARISONS)}", sign)
        return Condition(of, str(sign), self.number())

    def region(self) -> Region:
        sign = self.take()
        if sign in ("in", "outside"):
            inside = self.bracket() if self.peek() == "[" else ""
            bounds = _BOUNDS.fullmatch(inside)
            numbers = [_finite(part) for part in bounds.groups()] if bounds else []
            if len(numbers) != 2 or None in numbers or float(numbers[0] or 0) >= float(numbers[1] or 0):
                raise self.wrong(f"two numbers after `{sign}`, such as {sign} [-0.5, 0.5]", inside or self.peek())
            return Region(str(sign), float(numbers[0] or 0), float(numbers[1] or 0))
        if sign not in COMPARISONS:
            raise self.wrong("a comparison, such as > 0.3 or in [-0.5, 0.5]", sign)
        return Region(str(sign), self.number())

    def number(self) -> float:
        word = self.take(number=True)
        number = _finite(word or "")
        if number is None:
            raise self.wrong("a number", word)
        return number

    def key(self) -> str:
        word = self.take()
        if not re.fullmatch(r"[A-Za-z_][\w.]*", word or "") or word == "seed":
            raise self.wrong("a key other than seed, such as lr or data.train_size", word)
        return str(word)

    def end(self) -> None:
        if (word := self.peek()) is not None:
            raise self.wrong("nothing more", word)

    # words

    def within(self, inner: Callable[[], T]) -> T:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ConfigError(f"{self.text[:80]}: more than {DEEPEST} brackets within one another")
        self.expect("(")
        found = inner()
        self.expect(")")
        self.depth -= 1
        return found

    def peek(self) -> str | None:
        return self._next(self.place, False)[0]

    def take(self, number: bool = False) -> str | None:
        word, self.place = self._next(self.place, number)
        return word

    def word(self, wanted: str) -> bool:
        found = self.peek() == wanted
        if found:
            self.take()
        return found

    def expect(self, wanted: str) -> None:
        if (word := self.take()) != wanted:
            raise self.wrong(f"`{wanted}`", word)

    def bracket(self) -> str:
        """Return what stands between `[` and its `]`, brackets within it included."""
        start, open_ones = self.text.index("[", self.place), 0
        for place in range(start, len(self.text)):
            open_ones += {"[": 1, "]": -1}.get(self.text[place], 0)
            if open_ones == 0:
                self.place = place + 1
                return self.text[start + 1 : place]
        raise self.wrong("`]`", None)

    def _next(self, place: int, number: bool) -> tuple[str | None, int]:
        """Return the next word and where it ends; a sign before a number belongs to it where a number is wanted."""
        if not self.text[place:].strip():
            return None, len(self.text)
        match = _TOKEN.match(self.text, place)
        if match is None:
            raise self.wrong("a metric, a number or one of < <= > >= == - / * ( ) [", self.text[place:].strip()[:1])
        if not number and match["number"] and match["number"][0] in "+-":
            sign = self.text.index(match["number"][0], place)
            return self.text[sign], sign + 1
        return match[0].strip(), match.end()

    def wrong(self, wanted: str, word: str | None) -> ConfigError:
        there = "at its end" if word is None else f"where `{word}` stands"
        return ConfigError(f"{self.text}: must have {wanted} {there}\nwrite a sentence {EXAMPLE}")


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) <= LARGEST else None


def parse_region(text: str) -> Region:
    """Return a region as a sentence ends with it: `> 0.3`. Errors: ConfigError."""
    parser = _Parser(text)
    region = parser.region()
    parser.end()
    return region
