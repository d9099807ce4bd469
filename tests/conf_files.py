"""The files of conf/ that repeat what a class declares: `make conf` writes them, a test holds them equal.

They are there to be read, copied and overridden, and Hydra composes them without importing torch. By hand are written
conf/config.yaml, but for its nodes `trainer` and `eval`, and conf/recipe, of which a data set gets a first one here.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from pathlib import Path
from typing import Any

import yaml

from bnlab.config.files import METERS
from bnlab.data.dataset import datasets
from bnlab.meters.meter import ALWAYS, meters
from bnlab.models.model import models
from bnlab.norms.strategy import strategies
from bnlab.schema import range_of
from bnlab.training.evaluation import EvalConfig
from bnlab.training.optim import optimizers
from bnlab.training.schedule import schedules
from bnlab.training.trainer import TrainerConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
REGISTRIES: dict[str, Any] = {
    "norm": strategies,
    "model": models,
    "data": datasets,
    "optim": optimizers,
    "schedule": schedules,
}
RECIPE = """# @package _global_
# {}: 10 epochs, 10 evaluations.
trainer:
  epochs: 10.0
eval:
  every: 1.0
"""


def contents() -> dict[Path, str]:
    """Return the text of every such file."""
    texts = {
        CONF / group / f"{name}.yaml": option(registry[name], common_first=group == "data")
        for group, registry in REGISTRIES.items()
        for name in registry
    }
    recipes = {CONF / "recipe" / f"{name}.yaml": RECIPE.format(name) for name in datasets}
    texts |= {path: text for path, text in recipes.items() if not path.exists()}
    main = (CONF / "config.yaml").read_text(encoding="utf-8")
    for key, cls in (("trainer", TrainerConfig), ("eval", EvalConfig)):
        node = "".join(f"  {line}\n" for line in declared(cls))
        main = re.sub(rf"(?<=^{key}:\n)(?:  .*\n)+", lambda _, node=node: node, main, flags=re.M)
    lines = "".join(f"# {name}: {_first_line(meters[name])}\n" for name in meters)
    main = re.sub(rf"(?<={METERS}\n)(?:# .*\n)*", lambda _: lines, main)
    main = re.sub(r"(?<=one of cheap, full, )gap, probe.*", ", ".join([*ALWAYS, *meters]), main)
    return texts | {CONF / "config.yaml": main}


def _first_line(cls: Any) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def option(cls: Any, *, common_first: bool) -> str:
    """Return the file of one option: the first line of its class, its name, its keys."""
    return "\n".join([f"# {_first_line(cls)}", f"name: {cls.name}", *declared(cls, common_first=common_first)]) + "\n"


def declared(cls: Any, *, common_first: bool = True) -> list[str]:
    """Return one line for each key: its default, and what it means."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    own = [] if common_first else [key for key in cls.__annotations__ if key in fields]
    ordered = dict.fromkeys([*own, *fields])
    hints = typing.get_type_hints(cls)
    return [f"{key}: {_value(fields[key].default)} # {_meaning(fields[key], hints[key])}" for key in ordered]


def _meaning(field: dataclasses.Field[Any], kind: Any) -> str:
    """Return what a key means, the words that it may be, and its range."""
    meaning = field.metadata["meaning"]
    choices = (
        f"one of {', '.join(map(str, typing.get_args(kind)))}" if typing.get_origin(kind) is typing.Literal else ""
    )
    return "; ".join(filter(None, [meaning, choices, range_of(field)]))


def _value(default: Any) -> str:
    if default in ("true", "false"):  # words among others, which YAML and older records have as truth values
        return str(default)
    plain = list(default) if isinstance(default, tuple) else default
    return yaml.safe_dump([plain], default_flow_style=True).strip()[1:-1]


if __name__ == "__main__":
    for path, text in contents().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(CONF.parent)}")
