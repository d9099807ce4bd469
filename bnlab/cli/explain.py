"""`bnlab explain`: what a key, a metric or an option is, from where it is declared."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnlab.cli.guide import speaking_of
from bnlab.cli.options import among
from bnlab.errors import ConfigError, did_you_mean
from bnlab.registry import Registry

if TYPE_CHECKING:
    from bnlab.config.files import Key

# Of keys whose default does not tell what else they may be, or that go with another.
EXAMPLES = {
    "name": "bnlab train name=first",
    "measure": "bnlab train measure=landscape",
    "measure_every": "bnlab train measure=landscape measure_every=10",
    "data.root": "bnlab train data.root=/data",
    "data.path": "bnlab train data=folder data.path=pictures",
    "data.train_size": "bnlab train data.train_size=1000",
    "eval.shifted": "bnlab train eval.shifted=blur-5",
    "model.dropout_place": "bnlab train model.dropout=0.2 model.dropout_place=after",
    "model.input_scale": "bnlab train model.input_norm=none model.input_scale=255",
    "model.norm_rest": "bnlab train model.norm_every=2 model.norm_rest=frozen",
    "model.widths": "bnlab train model.widths=[16,32]",
    "norm.samples": "bnlab train norm=population norm.samples=1000",
    "norm.scale": "bnlab train norm=noisy norm.scale=1.5",
    "norm.stat_samples": "bnlab train norm.stat_samples=16",
    "schedule.milestones": "bnlab train schedule=step schedule.milestones=[0.3,0.6]",
    "trainer.device": "bnlab train trainer.device=cpu",
    "trainer.distributed": "torchrun --nproc-per-node=2 -m bnlab train trainer.distributed=true",
    "trainer.steps": "bnlab train trainer.steps=500",
    "trainer.threads": "bnlab train trainer.threads=1",
}


def explain(
    words: Annotated[list[str], typer.Argument(metavar="WORD", autocompletion=among(lambda: _known()), hidden=True)],
) -> None:
    """Explain a key, a metric or an option: what it is, range, default, where it is used, an example.

    WORD is one such as norm.momentum, acc_gap or ghost, or the title of a column; `bnlab list` names them all.
    """
    from bnlab.config.messages import instead_of, meant_by
    from bnlab.report.listing import show_options

    told: dict[str, Mapping[str, str]] = {}
    for word in words:
        key, _, option = word.partition("=")  # as a command line has it
        found = {name: facts for name, facts in _told(option) if name == word} or dict(_told("_".join(key.split())))
        for other in () if found else meant_by(word):
            found |= dict(_told(other))
        if not found:
            if way_out := instead_of(word):
                raise ConfigError(f"{word}: no key, metric or option\n{way_out}")
            if guides := speaking_of(word)[:3]:
                said = " and ".join(f"`bnlab guide {topic}`" for topic in guides)
                raise ConfigError(f"{word}: no key, metric or option\n{said} speak{'s' * (len(guides) == 1)} of it")
            raise ConfigError(f"{word}: no key, metric or option{did_you_mean(word, _known())}\n`bnlab list` names all")
        told |= found
    show_options(told)


def _known() -> list[str]:
    from bnlab.config.files import groups, keys, meter_lines
    from bnlab.metrics import metrics

    options = [option for known in (*groups().values(), meter_lines()) for option in known]
    return list(dict.fromkeys([*keys(), *options, *metrics]))


def _told(word: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what a word names, and what there is to say of it, line by line."""
    from bnlab.config.files import Key, added, groups, keys, meter_lines
    from bnlab.metrics import metrics

    known = groups()
    if word in known:
        (key,) = keys()[word] or [Key("none", "presets, which come on top")]
        option = next(each for each in known[word] if each != key.default)
        facts = {"what": key.meaning, "default": key.default, "one of": ", ".join(known[word])}
        yield word, facts | {"example": f"bnlab train {added(word)}={option}"}
    elif word in keys():
        yield word, _key(word)
    for group, options in (*known.items(), ("measure", meter_lines())):
        if word in options:
            yield f"{group}={word}", _option(group, word, options[word])
    column = re.sub(r" [\d.]+ %$", " target", word.replace("_", " ")).removesuffix(" %")  # as a table has it
    for metric in metrics.values():
        if word != metric.name and column.lower() != metric.title.lower():
            continue
        better = {"higher": ", more is better", "lower": ", less is better", None: ""}[metric.better]
        facts = {"what": metric.meaning, "unit": (metric.unit or "count") + better}
        evaluated = " --evaluated" if "recalibrate" in metric.by else ""  # which is a run beside the run
        yield metric.name, facts | {"example": f"bnlab compare --metric {metric.name}{evaluated}"}


def _key(word: str) -> dict[str, str]:
    """Return what a key means, by the options that have it where they do not agree."""
    from bnlab.config.files import keys

    entries = keys()[word]
    group, first = word.partition(".")[0], entries[0]
    facts = {"what": " / ".join(dict.fromkeys(entry.meaning for entry in entries))}
    defaults = {entry.default: [e.option for e in entries if e.default == entry.default] for entry in entries}
    facts["default"] = "; ".join(
        default if len(defaults) == 1 else f"{default} of {', '.join(options)}" for default, options in defaults.items()
    )
    if first.option:
        facts["a key of"] = ", ".join(f"{group}={entry.option}" for entry in entries)
    usual = next((entry for entry in entries if not entry.option or entry.option == keys()[group][0].default), None)
    chosen = [] if usual else [f"{group}={first.option}"]
    return facts | {
        "example": EXAMPLES.get(word) or " ".join(["bnlab train", *chosen, f"{word}={_other(usual or first)}"])
    }


def _other(key: Key) -> str:
    """Return a value that is not the default: another word, twice a whole number, half of another number."""
    if key.words:
        return next(word for word in key.words if word != key.default)
    number = float(key.default)
    if key.default.isdecimal():
        return f"{2 * number or 1:g}"
    return f"{number / 2 or 0.1:g}"


def _option(group: str, word: str, description: str) -> dict[str, str]:
    """Return what an option does, from the text of its class, and its keys."""
    from bnlab.config.files import GLOBAL, added, keys

    facts = {"what": description}
    if group in GLOBAL:
        return facts | {"example": f"bnlab train {added(group)}={word}"}
    from bnlab.data.dataset import datasets
    from bnlab.meters.meter import meters
    from bnlab.models.model import models
    from bnlab.norms.strategy import strategies
    from bnlab.training.optim import optimizers
    from bnlab.training.schedule import schedules

    registries: tuple[Registry[Any], ...] = (datasets, models, strategies, optimizers, schedules, meters)
    text = inspect.getdoc(next(each for each in registries if each.kind == group)[word]) or ""
    for number, paragraph in enumerate(text.split("\n\n")[1:]):
        if figures := re.findall(r"^(\w+)  +(.*(?:\n  .*)*)", paragraph, re.M):  # a table of what it reads
            facts |= {figure: " ".join(meaning.split()) for figure, meaning in figures}
        else:
            facts["how" if not number else " " * number] = " ".join(paragraph.split())
    for key, entries in keys().items():
        for entry in entries if key.startswith(f"{group}.") else ():
            if entry.option == word:
                facts[key] = f"{entry.meaning} [{entry.default}]"
    return facts | {"example": f"bnlab train {group}={word}"}
