"""What a comparison comes to, in sentences: one or a few for a table, one an arm for a sweep that stops by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bnlab.compare.arms import short_names, text_of
from bnlab.compare.deciding import FEWEST_PAIRS, Verdict
from bnlab.compare.notes import can_show, named, seeds_needed, states_of, unit_of
from bnlab.compare.result import Comparison, Row, Section
from bnlab.errors import count_of
from bnlab.metrics import Metric, metrics
from bnlab.report.console import clean
from bnlab.report.figures import MISSING, decimals_for, difference_cells, estimate_cells
from bnlab.report.heading import heading

WORDS: dict[Verdict, tuple[str, str]] = {  # of one arm and of several: against which, in what
    "better": ("is better than {}{}", "are better than {}{}"),
    "worse": ("is worse than {}{}", "are worse than {}{}"),
    "different": ("differs from {}{}", "differ from {}{}"),
    "no difference that matters": (
        "has no difference from {}{} that matters",
        "have no difference from {}{} that matters",
    ),
    "undecided": ("is undecided against {}{}", "are undecided against {}{}"),
}
SIDES = ("better", "worse", "different")
MOST_ASKED = 6  # arms that a question names
TIMES = ("steps_to_target", "epochs_to_target", "seconds_to_target")


def verdict_lines(comparison: Comparison) -> list[str]:
    """Return a sentence for each arm that has a baseline, and with how many of its jobs the sweep was decided."""
    lines, undecided, trained = [], 0, 0
    for section in comparison.sections:
        rows = compared_rows(section)
        if len(comparison.sections) > 1:
            lines.append(" · ".join(heading(section)[:2]))
        lines += [_verdict_sentence(row, section) for row in rows]
        lines += [note for note in section.notes if note.startswith("Exploratory")]
        undecided += sum(_verdict(row, section) == "undecided" for row in rows)
        trained += sum(row.num_runs for row in section.rows)
    what = f"{count_of(undecided, 'arm')} undecided after" if undecided else "decided with"
    return [*lines, f"{what} {trained} of {trained + comparison.queued + comparison.spared} runs"]


def answers(comparison: Comparison) -> list[list[str]]:
    """Return by section one or two sentences: what was found, in the figures of its table; none of a matrix."""
    several = len(comparison.sections) > 1
    found = [[] if comparison.pivot is not None else answer(section) for section in comparison.sections]
    names = [section.data or text_of(section.settings.get("data.name")) for section in comparison.sections]
    return [
        [f"{name}: {first}", *rest] if several and each else each
        for name, each in zip(names, found, strict=True)
        for first, rest in [(each[0] if each else "", each[1:])]
    ]


def question(section: Section) -> str:
    """Return what a section answers."""
    data = section.data or text_of(section.settings.get("data.name", ""))
    where = f" on {data}" if data else ""
    rows = compared_rows(section) or section.rows
    others = [row for row in rows if not row.is_baseline]
    arms = _listed(others, section) if len(others) <= MOST_ASKED else f"{len(others)} arms"
    if section.is_bench and others:
        return f"How long is a training step{where} with {arms}, beside {baseline_name(section)}?"
    if not compared_rows(section):
        many = len(section.rows) > MOST_ASKED
        arms = f"{len(section.rows)} arms" if many else _listed(section.rows, section) or "nothing"
        return f"What {_title(section)} {'does' if len(section.rows) == 1 else 'do'} {arms} reach{where}?"
    bases = [row for row in section.rows if row.is_baseline]
    against = arm_name(bases[0].label, section) if len(bases) == 1 else baseline_name(section)
    margin = ""
    if section.margin is not None:
        margin = f", where differences below {_margin(section)} do not matter"
    if (crossed := _crossed(rows, section)) and len(bases) > 1:
        arms, against = crossed[0], f"{against} at each {crossed[1]}"
    verb = "Does" if len(rows) == 1 else "Do"
    return f"{verb} {arms} differ from {against} in {_title(section)}{where}{margin}?"


def _crossed(rows: Sequence[Row], section: Section) -> tuple[str, str] | None:
    """Return the values of the one key in which arms differ from their baselines, and the names of the others."""
    arms, names = {row.label: row.arm for row in section.rows}, short_names(section.changed)
    apart = {key for row in rows for key in names if row.arm.get(key) != arms[row.against].get(key)}
    if len(apart) != 1:
        return None
    (key,) = apart
    values = dict.fromkeys(arm_name(f"{names[key]}={text_of(row.arm.get(key))}", section) for row in rows)
    return _and(list(values)), _and([name for each, name in names.items() if each != key])


def answer(section: Section) -> list[str]:
    """Return what was found in one section."""
    if section.is_bench:
        return list(_bench(section))
    if not compared_rows(section):
        return list(_alone(section))
    found = [*_learned(section), *_main(section)]
    return found if len(found) > 1 else [*found, *_sooner(section)]


def compared_rows(section: Section) -> list[Row]:
    """Return the arms that have a baseline."""
    return [row for row in section.rows if row.against and not row.is_baseline]


def baseline_name(section: Section) -> str:
    """Return what the baselines have in common (`none`), or `baseline` where that is nothing or long."""
    arms = [row.arm for row in section.rows if row.is_baseline]
    shared = (
        [text_of(value) for key, value in arms[0].items() if all(arm.get(key) == value for arm in arms)] if arms else []
    )
    name = clean(" ".join(shared))
    return name if 0 < len(name) <= 12 else "baseline"


def _verdict(row: Row, section: Section) -> Verdict:
    return row.verdicts.get(section.main, "undecided")


def _verdict_sentence(row: Row, section: Section) -> str:
    """Return what an arm's comparison with its baseline comes to."""
    difference = row.vs_baseline.get(section.main)
    seeds = "no seed of both" if difference is None else count_of(difference.n, "seed")
    margin = "" if section.margin is None else _maybe_less([row], section) or f"margin {section.margin:g}"
    what = WORDS[_verdict(row, section)][0].format(arm_name(row.against, section), f" in {_title(section)}")
    figures = ", ".join(filter(None, (_differences(section, [row]), margin, seeds)))
    return f"{arm_name(row.label, section)} {what}: {figures}"


def _margin(section: Section) -> str:
    return f"{section.margin:g} {unit_of(metrics[section.main])}".rstrip()


def _maybe_less(rows: Sequence[Row], section: Section) -> str:
    """Return which differences that are decided may all the same be smaller than the margin."""
    known = [(row, d) for row in rows if (d := row.vs_baseline.get(section.main)) and _verdict(row, section) in SIDES]
    margin = (section.margin or 0.0) / metrics[section.main].scale
    small = [row for row, d in known if any(end is not None and abs(end) < margin for end in (d.low, d.high))]
    whose = f"of {_listed(small, section)} " if len(small) < len(rows) else ""
    return f"{whose}maybe by less than {_margin(section)}" if small else ""


def arm_name(label: str, section: Section) -> str:
    """Return an arm's label, of a number with what it is a value of: `lr=0.1`, `ghost size=8`."""
    keys = list(short_names(section.changed).values())
    return f"{keys[0]}={label}" if len(keys) == 1 and keys != ["norm"] else label.removeprefix("norm=")


def _title(section: Section) -> str:
    return section.main.replace("_", " ")


def _differences(section: Section, rows: Sequence[Row]) -> str:
    """Return the differences of these arms as the table has them, with the unit: `+0.4 ± 0.1, +0.5 ± 0.2 points`."""
    metric = metrics[section.main]
    known = [row.vs_baseline.get(section.main) for row in section.rows]
    values = [e.value * metric.scale for row in section.rows if (e := row.metrics.get(section.main))]
    cells = dict(
        zip(map(id, section.rows), difference_cells(known, metric.scale, decimals_for(values, [])), strict=True)
    )
    shown = [f"{cell.head} {' '.join(cell.interval.split())}".rstrip() for row in rows for cell in [cells[id(row)]]]
    return f"{named(shown)} {unit_of(metric)}".rstrip() if set(shown) != {MISSING} else ""


def _listed(rows: Sequence[Row], section: Section) -> str:
    return _and([arm_name(row.label, section) for row in rows])


def _and(names: Sequence[str]) -> str:
    return named(names) if len(names) > 6 or len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"


def _alone(section: Section) -> Iterator[str]:
    """Say what a table of one arm, or without a baseline, has."""
    if not section.rows:
        return
    row, metric = section.rows[0], metrics[section.main]
    arm, title, estimate = arm_name(row.label, section), _title(section), row.metrics.get(section.main)
    if len(section.rows) > 1 or estimate is None:
        yield "No arm is compared: none of them has a baseline here."
    elif not estimate.n:
        yield f"{arm} has no {title}: none of its {count_of(row.num_runs, 'run')} has one; there is no other arm."
    else:
        (cell,) = estimate_cells([estimate], metric.scale, whole=metric.is_whole)
        figure = " ".join(filter(None, (cell.head, cell.interval, metric.unit)))
        yield f"The {title} of {arm} is {figure} in {count_of(estimate.n, 'seed')}; there is no other arm."


def _learned(section: Section) -> Iterator[str]:
    """Say which arms learn in how many seeds, where an arm and its baseline differ in that."""
    bases = {row.label: row for row in section.rows if row.is_baseline}
    rows = [
        row
        for row in compared_rows(section)
        if (base := bases.get(row.against)) and _share(row) is not None and _share(base) is not None
        and _share(row) != _share(base)
    ]  # fmt: skip
    against = {row.against: bases[row.against] for row in rows}
    if not rows:
        return
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.learned, row.p_learned), []).append(row)
    rate = section.settings.get("optim.lr")
    where = "" if rate is None else f" at lr {text_of(rate)}"
    tested = sum(row.p_learned is not None for row in compared_rows(section))
    corrected = f", corrected for {tested} arms" if tested > 1 else ""
    parts: list[str] = []
    for each in groups.values():
        p = "" if each[0].p_learned is None else f" (exact p = {each[0].p_learned:.2g}{corrected if not parts else ''})"
        verb = f" {'learns' if len(each) == 1 else 'learn'}{where}" if not parts else ""
        parts.append(f"{_listed(each, section)}{verb} in {_counted(each[0], not parts)}{p}")
    parts += [f"{arm_name(base.label, section)} in {_counted(base, False)}" for base in list(against.values())[:6]]
    is_open = all(row.p_learned is not None and row.p_learned > section.level for row in rows)
    is_open &= all(_verdict(row, section) == "undecided" for row in rows)  # or the main metric tells them apart
    yield f"{', '.join(parts)}{': too few seeds to be sure by counts alone' if is_open else ''}."


def _share(row: Row) -> float | None:
    return row.learned[0] / row.learned[1] if row.learned[1] else None


def _counted(row: Row, with_unit: bool) -> str:
    return f"{row.learned[0]} of {row.learned[1]}{' seeds' if with_unit else ''}"


def _main(section: Section) -> Iterator[str]:
    """Say what is decided of the main metric, and of which arms it is not."""
    rows, metric, title = compared_rows(section), metrics[section.main], _title(section)
    bases = [row for row in section.rows if row.is_baseline]
    against = arm_name(bases[0].label, section) if len(bases) == 1 else baseline_name(section)
    if not any(e.n for row in bases if (e := row.metrics.get(section.main))):
        states = states_of(bases)
        ended = ", ".join(f"{count} of {states.total()} runs {state}" for state, count in states.items())
        yield f"{against} has no {title} ({ended}), so no arm has a difference from it."
        return
    by_verdict: dict[Verdict, list[Row]] = {}
    for row in rows:
        by_verdict.setdefault(_verdict(row, section), []).append(row)
    undecided = by_verdict.pop("undecided", [])
    if by_verdict:
        parts: list[str] = []
        for verdict in (verdict for verdict in WORDS if verdict in by_verdict):
            each = by_verdict[verdict]
            about = ("it", "") if parts else (against, f" in {title}")
            what = WORDS[verdict][len(each) > 1].format(*about)
            figures = ", ".join(filter(None, [_differences(section, each), _maybe_less(each, section)]))
            parts.append(f"{_listed(each, section)} {what} ({figures})")
        if undecided:
            is_ = "is" if len(undecided) == 1 else "are"
            parts.append(f"{_listed(undecided, section)} {is_} undecided{_would_decide(undecided, section)}")
        yield f"{'; '.join(parts)}."
        return
    if not any(row.vs_baseline.get(section.main) for row in rows):
        why = f"no seed of both has a result, it takes {FEWEST_PAIRS[section.test]}"
        yield f"{_listed(rows, section)} cannot be compared with {against} in {title}: {why}."
        return
    if section.margin is not None or section.is_planned:
        unit = unit_of(metric)
        at = "" if section.margin is None else f" at a margin of {section.margin:g} {unit}".rstrip()
        seen = [_differences(section, [row]).removesuffix(unit if at else "").rstrip() or MISSING for row in rows]
        arms = [f"{arm_name(row.label, section)} ({what})" for row, what in zip(rows, seen, strict=True)]
        why = _held_up(rows, section) or _would_decide(rows, section)
        yield f"Undecided against {against} in {title}{at}: {named(arms)}{why}."
        return
    subject = "No arm is" if len(rows) > 1 else f"{arm_name(rows[0].label, section)} is not"
    known = [d for row in rows if (d := row.vs_baseline.get(section.main))]
    if all(d.sd == 0 and d.value == 0 and d.n >= FEWEST_PAIRS[section.test] for d in known):
        seeds = count_of(max(d.n for d in known), "seed")
        equal = "No arm differs" if len(rows) > 1 else f"{arm_name(rows[0].label, section)} does not differ"
        yield f"{equal} from {against} in {title}: equal in {seeds}."
        return
    shown = can_show([d for d in known if d.p is not None], metric, section.level)
    power = f": {shown[0]} seeds can show {shown[1]}{', by arm' if ' to ' in shown[1] else ' or more'}" if shown else ""
    yield f"{subject} shown to differ from {against} in {title}{power}{_held_up(rows, section)}."


def _held_up(rows: Sequence[Row], section: Section) -> str:
    """Return why no arm could be decided yet; nothing where one could."""
    known = [(row, d) for row in rows if (d := row.vs_baseline.get(section.main))]
    most, fewest = max((d.n for _, d in known), default=0), FEWEST_PAIRS[section.test]
    if most < fewest:
        decide = "decides" if most == 1 else "decide"
        return f"; {count_of(most, 'seed')} of both {decide} nothing, it takes {fewest}"
    lost = [row for row, d in known if d.num_lost and d.sd and d.p is None and d.n >= fewest]
    whose = "" if len(lost) == len(rows) else f" of {_listed(lost, section)}"
    return f"; the better side{whose} lost runs that could undo it" if lost else ""


def _would_decide(rows: Sequence[Row], section: Section) -> str:
    """Return with about how many seeds each arm is decided if its difference stays as it is."""
    margin, level = (section.margin or 0.0) / metrics[section.main].scale, section.next_level
    known = [(row, d) for row in rows if (d := row.vs_baseline.get(section.main))]
    needed = [(row, n) for row, d in known if (n := seeds_needed(d, level, margin, section.test)) is not None]
    all_of_them = len(needed) == len(rows)
    each = [f"{n:,}" if all_of_them else f"{n:,} ({_listed([row], section)})" for row, n in needed]
    return f"; about {_and(each)} seeds would decide" if each else ""


def _sooner(section: Section) -> Iterator[str]:
    """Say which arms reach the target sooner than their baseline, or else which later, where that is decided."""
    name = next((name for name in TIMES if any(name in row.metrics for row in section.rows)), None)
    bases = [row for row in section.rows if row.is_baseline]
    if name is None or name == section.main or section.target is None or len(bases) != 1:
        return
    metric = metrics[name]
    cells = estimate_cells([row.metrics.get(name) for row in section.rows], metric.scale, whole=metric.is_whole)
    times = {row.label: cell.head for row, cell in zip(section.rows, cells, strict=True)}
    for verdict, word in (("better", "fewer"), ("worse", "more")):
        rows = [row for row in compared_rows(section) if row.verdicts.get(name) == verdict]
        if rows:
            verb = "reaches" if len(rows) == 1 else "reach"
            total = f" of {section.steps:,}" if section.steps and metric.unit == "steps" else ""
            took = named([times[row.label] for row in rows])
            yield (
                f"{_listed(rows, section)} {verb} {100 * section.target:g} % in {word} {_unit(metric)} "
                f"({took} against {times[bases[0].label]}{total})."
            )
            return


def _unit(metric: Metric) -> str:
    return "seconds" if metric.unit == "s" else metric.unit


def _bench(section: Section) -> Iterator[str]:
    """Say how long a step takes beside that of the baseline."""
    ratios = [row.metrics.get("step_ratio") for row in section.rows]
    cells = estimate_cells(ratios, 1.0)
    told: list[str] = []
    alike: list[Row] = []
    for row, ratio, cell in zip(section.rows, ratios, cells, strict=True):
        if row.is_baseline or ratio is None or math.isnan(ratio.value):
            continue
        if ratio.excludes(1.0):
            figure = " ".join([cell.head, *cell.interval.split()])
            told.append(f"{figure} times as long with {arm_name(row.label, section)}")
        else:
            alike.append(row)
    against = baseline_name(section)
    if told:
        yield f"Beside {against}, a step takes {named(told)}."
    if alike:
        yield f"No difference in step time from {against} is seen for {_listed(alike, section)}."
