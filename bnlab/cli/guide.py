"""`bnlab guide`: the guides that ship with bnlab, read in the terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Optional

import typer

from bnlab.errors import ConfigError, EnvironmentFault, did_you_mean

GUIDES = Path(__file__).resolve().parents[1] / "guide"  # one file a topic, TOPIC.md


def complete_topic(incomplete: str) -> list[str]:
    return [topic for topic in _topics() if topic.startswith(incomplete)]


def guide(
    topic: Annotated[Optional[str], typer.Argument(metavar="TOPIC", autocompletion=complete_topic, hidden=True)] = None,
) -> None:
    """Read the guide about TOPIC in the terminal; without one, list the topics with one line each."""
    from bnlab.report.console import results
    from bnlab.report.guide_report import show_guide
    from bnlab.report.listing import show_options

    topics = _topics()
    if not topics:
        raise EnvironmentFault(f"{GUIDES}: the guides are missing\nreinstall bnlab")
    if topic is None:
        show_options({"guides": {name: first_sentence(_text(path)) for name, path in topics.items()}})
    elif topic in topics:
        show_guide(_text(topics[topic]), results())
    else:
        found = speaking_of(topic)[:3]
        said = f"\nof {topic} speak: {', '.join(found)}" if found else ""
        raise ConfigError(f"{topic}: no such guide{did_you_mean(topic, topics)}\nthere are: {', '.join(topics)}{said}")


def speaking_of(word: str) -> list[str]:
    """Return the topics whose guides have a word, those that have it most often first."""
    whole = re.compile(rf"\b{re.escape(word.strip())}", re.IGNORECASE)
    counts = {topic: len(whole.findall(_text(path))) for topic, path in _topics().items() if word.strip()}
    return sorted((topic for topic, count in counts.items() if count), key=lambda topic: -counts[topic])


def _topics() -> dict[str, Path]:
    return {path.stem: path for path in sorted(GUIDES.glob("*.md"))}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def first_sentence(markdown: str) -> str:
    """Return the first sentence below the title, without the signs of Markdown."""
    paragraph = next((part for part in re.split(r"\n\s*\n", markdown) if part.strip() and part[0] != "#"), "")
    sentence = re.split(r"(?<=[.!?]) (?=[A-Z`*])", " ".join(paragraph.split()), maxsplit=1)[0]
    return re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", sentence)
