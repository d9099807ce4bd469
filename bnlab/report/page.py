"""Pages to send: no script, nothing loaded, text as text in pictures, readable offline, on a phone and on paper.

`render` fills a template that extends `page.html`; whatever a run or a claim holds is data, and all of it is escaped.
`comparison_page` is that of runs, sweeps and benches, `comparison_markdown` the same without pictures, `sheet_page` in
the same layout that of a probe, a shift or a card.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bnlab import __version__
from bnlab.compare.result import Comparison, Section
from bnlab.errors import BnlabError, ConfigError
from bnlab.record.decision_plan import DecisionPlan
from bnlab.record.plain_files import cannot_write, read_plain, write_bytes
from bnlab.record.read import read_documents
from bnlab.record.sweep_record import SweepRecord
from bnlab.report.compare_formats import as_markdown, html_grid
from bnlab.report.compare_report import skipped_lines, stars
from bnlab.report.console import clean
from bnlab.report.figures import MISSING
from bnlab.report.heading import heading, interval_words
from bnlab.report.pictures import KINDS, not_drawn, pictures_of, unread
from bnlab.report.rows import escaped
from bnlab.report.run_report import machine_of, run_facts
from bnlab.report.sheet import Plate, Sheet, grid
from bnlab.report.verdicts import answers, question

MADE = "made with bnlab"  # in every file that may be written over


def render(template: str, **values: Any) -> str:
    """Return a page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, made=MADE, **values)


def comparison_page(comparison: Comparison, command: str) -> str:
    """Return the page of a comparison; `command` makes it again."""
    pictures = {key: pictures_of(key, comparison.sections) for key in KINDS}
    sections = []
    for number, (section, sentences) in enumerate(zip(comparison.sections, answers(comparison), strict=True)):
        its = ((key, each[number]) for key, each in pictures.items())
        plates = [(key, Plate(KINDS[key].title, picture)) for key, picture in its if picture]
        sections.append(_section(section, sentences, list(_drawn(plates, f"s{number}"))))
    return render(
        "comparison_page.html",
        title=sections[0]["question"] if sections else "no runs",
        sections=sections,
        commands=[*_commands(comparison), clean(command)],
        left_out=left_out(comparison),
    )


def left_out(comparison: Comparison) -> list[str]:
    """Return a line for each run that a page is without, or its pictures are."""
    trained = [section for section in comparison.sections if not section.is_bench]
    return [*skipped_lines(comparison), *map(clean, unread("layers", comparison.sections)), *not_drawn(KINDS, trained)]


def sheet_page(sheet: Sheet, environment: Mapping[str, Any], command: str) -> str:
    """Return the page of one result, in the layout of a comparison; `command` makes it again, in `environment`."""
    titles, rows = grid(sheet.columns)
    plates = [(str(number), plate) for number, plate in enumerate(sheet.plates)]
    section = {
        "question": clean(sheet.question),
        "answer": list(map(clean, sheet.answer)),
        "heading": clean(" · ".join(sheet.heading)),
        "titles": titles,
        "rows": rows,
        "legend": clean("; ".join(sheet.legend)),
        "pictures": list(_drawn(plates, "p")),
        "facts": [],
        "notes": list(map(clean, sheet.notes)),
        "machines": [_machine(environment)],
    }
    page = {"sections": [section], "commands": [clean(command)], "left_out": []}
    return render("comparison_page.html", title=section["question"], **page)


def comparison_markdown(comparison: Comparison, command: str) -> str:
    """Return the comparison as Markdown, its questions above, and what ran where and the commands below."""
    lines = [f"<!-- {MADE} {__version__} -->", *(f"# {escaped(question(each))}" for each in comparison.sections)]
    machines = dict.fromkeys(line for section in comparison.sections for line in _machines(section))
    below = [*map(escaped, machines), *(f"`{line}`" for line in (*_commands(comparison), clean(command)))]
    lines += [as_markdown(comparison).rstrip(), "## What ran where, and how", "\n".join(f"- {line}" for line in below)]
    return "\n\n".join(lines) + "\n"


def write_own(path: Path, content: bytes, force: bool) -> None:
    """Write a file that says that it was MADE here. Errors: as of `refuse_others`; EnvironmentFault."""
    refuse_others(path, force)
    write_bytes(path, content)


def refuse_others(path: Path, force: bool) -> None:
    """Refuse a folder that is missing and, but by `force`, a file that does not say MADE. Errors: ConfigError."""
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist\nmake it, or give another --out")
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:  # a name that is too long
        raise cannot_write(path, error) from error
    if not force:
        try:
            is_ours = MADE.encode() in read_plain(path)
        except OSError:
            is_ours = False
        if not is_ours:
            raise ConfigError(f"{path}: is there already, and was not written by bnlab\ngive another --out, or --force")


def _section(section: Section, sentences: Sequence[str], pictures: list[dict[str, Any]]) -> dict[str, Any]:
    titles, rows = html_grid(section)
    says = [i for i, cells in enumerate(zip(*rows, strict=True)) if set(cells) != {MISSING}]
    runs = [run for row in section.rows for run in row.runs]
    return {
        "question": clean(question(section)),
        "answer": [clean(sentence) for sentence in sentences],
        "heading": clean(" · ".join(heading(section))),
        "titles": [titles[i] for i in says],
        "rows": [[row[i] for i in says] for row in rows],
        "legend": clean("; ".join([f"± and brackets: {interval_words(section)}", *stars(section)])),
        "pictures": pictures,
        "facts": list(_facts(runs[0].folder)) if len(runs) == 1 else [],
        "notes": [clean(note) for note in section.notes],
        "machines": list(_machines(section)),
    }


def _drawn(plates: Iterable[tuple[str, Plate]], name: str) -> Iterator[dict[str, Any]]:
    """Yield by key the pictures that there are; what is inside of an SVG was escaped by matplotlib."""
    from markupsafe import Markup

    from bnlab.report.drawing import PAGE, figure_of, inline_svg

    for key, plate in plates:
        panels = [panel for row in plate.picture.rows for panel in row]
        box, inside = inline_svg(figure_of([plate.picture], PAGE), f"{name}-{key}")
        yield {
            "title": clean(plate.title),
            "remark": plate.picture.remark,
            "described": ". ".join(panel.described() for panel in panels),
            "box": box,
            "inside": Markup(inside),
            "tables": plate.tables(),
        }


def _facts(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield what there is to say of a run, but where it ran."""
    status, summary = read_documents(folder)
    for name, text in run_facts(summary, status, folder):
        if name != "machine":
            yield clean(name), clean(text)


def _machines(section: Section) -> Iterator[str]:
    yield from map(_machine, section.environments)


def _machine(environment: Mapping[str, Any]) -> str:
    marks = [f"{key} {environment[key]}" for key in ("torchvision", "numpy", "hydra-core") if environment.get(key)]
    mark = environment.get("data_fingerprint")
    return clean(", ".join([*machine_of(environment), *marks, *([f"data {str(mark)[:12]}"] if mark else [])]))


def _commands(comparison: Comparison) -> Iterator[str]:
    """Yield the command line of each sweep that kept its own."""
    runs = [run for section in comparison.sections for row in section.rows for run in row.runs]
    for folder in dict.fromkeys(run.folder.parent for run in runs):
        try:
            record, plan = SweepRecord.read(folder), DecisionPlan.read(folder)
        except BnlabError:
            continue
        if record is not None:
            options = plan.options() if plan else []
            yield clean(shlex.join(["bnlab", "train", "-m", *record.overrides, *options]))
