"""When a sweep is decided, written into its folder before its first run."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from bnlab.errors import RecordError
from bnlab.record.plain_files import read_plain, write_json
from bnlab.record.sweep_record import LARGEST, MOST_SEEDS, SweepRecord

FILE = "plan.json"
SCHEMA = 1
LOOKS = (3, 5, 8, 12, 20)
MOST_LOOKS = 50


@dataclass(frozen=True)
class DecisionPlan:
    """What decides a sweep, and at which numbers of seeds it is looked at."""

    metric: str
    baseline: str | None  # as `--baseline` has it
    looks: tuple[int, ...]  # rising
    margin: float | None = None  # in the metric's unit
    test: Literal["t", "signs"] = "t"
    alpha: float = 0.05

    @property
    def sha256(self) -> str:
        """The hash of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def options(self) -> list[str]:
        """Return the options of `bnlab train -m` that make this plan."""
        said = {"metric": self.metric, "baseline": self.baseline, "looks": ",".join(map(str, self.looks))}
        said |= {"margin": None if self.margin is None else f"{self.margin:g}", "test": self.test}
        return ["--until-decided", *(word for key, value in said.items() if value for word in (f"--{key}", value))]

    def write(self, folder: Path) -> None:
        """Put it into the sweep's folder with its hash. Errors: EnvironmentFault."""
        write_json(folder / FILE, {"schema": SCHEMA, "sha256": self.sha256, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> DecisionPlan | None:
        """Return what lies in a folder; None where nothing does. Errors: RecordError if it is no plan."""
        try:
            found = json.loads(read_plain(folder / FILE, LARGEST))
            return None if found is None else cls(**_checked(found))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise RecordError(
                f"{folder / FILE}: is not the plan of a sweep that this version of bnlab can read"
            ) from error

    def looks_with(self, record: SweepRecord) -> tuple[int, ...]:
        """Return the looks, with one for each time that seeds were added after the last of them."""
        return (*self.looks, *(n for n in record.seeds if n > self.looks[-1]))


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the fields. Errors: ValueError, TypeError or KeyError for what is no plan."""
    looks, margin, alpha = found["looks"], found["margin"], found["alpha"]
    numbers = all(type(n) is int and 0 < n <= MOST_SEEDS for n in looks)
    known = {
        found["schema"] == SCHEMA,
        isinstance(found["metric"], str),
        found["baseline"] is None or isinstance(found["baseline"], str),
        numbers and 0 < len(looks) <= MOST_LOOKS and sorted(set(looks)) == looks,
        margin is None or (isinstance(margin, (int, float)) and 0 < margin < math.inf),
        found["test"] in ("t", "signs"),
        isinstance(alpha, float) and 0 < alpha < 1,
    }
    if known != {True}:
        raise ValueError
    return {each.name: found[each.name] for each in fields(DecisionPlan)} | {"looks": tuple(looks)}
