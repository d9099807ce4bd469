"""What a conformance card says, as plain data: properties, what was found of each, and whether that was declared.

A property is a statement that holds or does not. Of a strategy, its declared facts say which; what is found against
them is a contradiction. Of a user's own module nothing is declared, so nothing can contradict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Property:
    """A statement about a normalization; `line` says it in a sentence."""

    key: str  # in files: mates_train
    group: str  # what it belongs to: independent of
    short: str  # what tables call it, up to two words: mates train
    line: str


@dataclass(frozen=True)
class Finding:
    """What was found of one property."""

    about: Property
    expected: bool | None  # what the declared facts and the definition say; None: nothing is said
    found: bool | None  # None: undefined for this normalization
    error: float | None  # the measured deviation, relative to the RMS of the output; None: nothing to measure
    note: str = ""
    failed: bool = False  # it raised an error, which the note holds

    @property
    def contradicts(self) -> bool:
        """Whether it is against what is declared; an error always is, where anything is declared."""
        return self.expected is not None and (self.failed or self.found is not self.expected)


@dataclass(frozen=True)
class Card:
    """All findings of one normalization."""

    subject: str  # ghost size=8
    declared: bool  # it declares facts
    channels: int
    batch: int  # samples
    images_only: bool  # it is undefined for an input (N, C)
    findings: Sequence[Finding]
    axes: int = 2  # of its inputs behind (N, C): 1 sequences, 2 images, 3 volumes; 0: it takes (N, C) alone

    @property
    def contradictions(self) -> list[Finding]:
        """The findings that are against what is declared."""
        return [finding for finding in self.findings if finding.contradicts]
