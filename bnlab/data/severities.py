"""The names, severities and statistics of `bnlab shift`: told without torch. What each shift does is in `shifts.py`."""

from __future__ import annotations

from collections.abc import Mapping

STATS = ("running", "mixed", "batch", "test")  # to evaluate with
SEVERITIES = (1, 2, 3, 4, 5)
SEVERITY_TABLES: Mapping[str, tuple[tuple[float, ...], str]] = {  # amounts and their unit
    "rotation": ((10, 20, 30, 45, 60), "degrees"),
    "translation": ((5, 10, 15, 20, 30), "% of the side"),
    "noise": ((8, 12, 18, 26, 38), "% of white as standard deviation"),
    "blur": ((2, 3, 4.5, 6, 9), "% of the side as standard deviation"),
    "contrast": ((40, 30, 20, 10, 5), "% of the contrast left"),
    "inversion": ((20, 40, 60, 80, 100), "% of the negative"),
    "imbalance": ((2, 5, 10, 50, 100), "times as many of the first class as of the last"),
    "label-sorted": ((20, 40, 60, 80, 100), "% of the order sorted by label"),
}
