"""A guide's Markdown in a terminal; elsewhere the text as it is."""

from __future__ import annotations

import re

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Heading, Markdown
from rich.theme import Theme

from bnlab.report.console import Terminal

WIDEST = 100  # columns; longer lines are hard to read


def show_guide(text: str, out: Terminal) -> None:
    """Print a guide; in a terminal a link to another guide becomes the command that shows it."""
    if not out.is_terminal:
        out.emit(text)
        return
    commands = re.sub(r"\[([^]]*)\]\(([\w-]+)\.md\)", r"\1 (`bnlab guide \2`)", text)
    with out.use_theme(Theme({"markdown.code": "cyan"})):
        out.print(_Guide(commands, code_theme="ansi_dark", hyperlinks=False), width=min(out.width, WIDEST))


class _Heading(Heading):
    """A heading on the left, of any level."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heading = self.text.copy()
        heading.justify = "left"
        heading.stylize("bold")
        yield heading


class _Guide(Markdown):
    elements = Markdown.elements | {"heading_open": _Heading}
