"""Options that several commands take, and what their values must be.

A wrong value is a ConfigError in bnlab's words; arguments are described in a command's text, so they are hidden from
the table of its help, where Typer would show their Python type.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from bnlab.errors import ConfigError, did_you_mean, unknown
from bnlab.record.latest import complete_run, find_run
from bnlab.schema import quoted


def among(words: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a completion by those of `words` that begin so."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words() if word.startswith(incomplete)]

    return complete


def one_of(*names: str, choices: Sequence[str], help: str) -> Any:
    """Declare an option that is one of `choices`; without `names`, an argument."""

    def parse(word: str) -> str:
        if word not in choices:
            raise unknown(f"{names[0]} {word}" if names else word, word, choices)
        return word

    metavar, complete = "|".join(choices), among(lambda: choices)
    if not names:
        return typer.Argument(metavar=metavar, parser=parse, autocompletion=complete, help=help, hidden=True)
    return typer.Option(*names, metavar=metavar, parser=parse, autocompletion=complete, help=help)


def number_in(name: str, kind: type[int] | type[float], low: float, high: float = math.inf, *, help: str) -> Any:
    """Declare an option that is a number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise ConfigError(f"{name} {text}: must be a {'whole ' if kind is int else ''}number") from None
        if not low <= value <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ConfigError(f"{name} {text}: must be {bounds}")
        if value == math.inf:
            raise ConfigError(f"{name} {text}: must be finite")
        return value

    return typer.Option(name, metavar="N" if kind is int else "NUMBER", parser=parse, help=help)


def overrides() -> Any:
    """Declare Hydra overrides, of a command that takes options it does not know for such: OWN_WORDS."""
    return typer.Argument(metavar="KEY=VALUE", callback=_no_options, autocompletion=complete_override, hidden=True)


OWN_WORDS = {"ignore_unknown_options": True}  # context settings: an unknown option is answered by `_no_options`


def _no_options(context: typer.Context, words: Optional[list[str]]) -> Optional[list[str]]:
    for place, word in enumerate(words or ()):
        if not word.startswith("-"):
            continue
        from bnlab.config.messages import instead_of, meant_by

        name, _, value = word.partition("=")
        plain = name.strip("-").replace("-", "_")
        if way := instead_of(plain):
            raise ConfigError(f"{name}: no such option\n{way}")
        if meant := meant_by(plain):
            after = value or next((w for w in (words or ())[place + 1 :] if "=" not in w), "VALUE")
            raise ConfigError(f"{name}: no such option; settings are KEY=VALUE\nwrite {meant[0]}={after}")
        known = [option for each in context.command.params for option in each.opts if option.startswith("--")]
        near = did_you_mean(name, known)
        raise ConfigError(f"{name}: no such option{near}\n`{context.command_path} --help` lists them")
    return words and [quoted(word) for word in words]


def several(name: str, metavar: str, help: str, complete: Callable[[str], Iterable[str]] | None = None) -> Any:
    """Declare an option with several values, given one by one or with commas between them."""

    def split(words: Optional[list[str]]) -> Optional[list[str]]:
        return words and [part.strip() for each in words for part in each.split(",")]

    def last(incomplete: str) -> list[str]:
        before, comma, word = incomplete.rpartition(",")
        return [f"{before}{comma}{each}" for each in complete(word)] if complete else []

    return typer.Option(name, metavar=f"{metavar},...", callback=split, autocompletion=last, help=help)


def _metrics() -> Iterable[str]:
    from bnlab.metrics import metrics

    return metrics


def _keys() -> Iterable[str]:
    from bnlab.config.files import keys

    return keys()


complete_metric, complete_key = among(_metrics), among(_keys)


def complete_override(incomplete: str) -> list[str]:
    from bnlab.config.completion import overrides

    return overrides(incomplete)


Overrides = Annotated[Optional[list[str]], overrides()]
Format = Annotated[
    str, one_of("--format", "-f", choices=("table", "plain", "csv", "json", "md"), help="How to print the result.")
]

# ---------------------------------------------------------------- of train and resume


def _folder(value: Optional[Path]) -> Optional[Path]:
    if value is not None and not value.is_dir():
        raise ConfigError(f"--config-dir {value}: is not a folder")
    return value


ConfigDir = Annotated[
    Optional[Path],
    typer.Option("--config-dir", metavar="FOLDER", callback=_folder, help="A folder with more configurations."),
]
Timeout = Annotated[Optional[float], number_in("--timeout", float, 0.1, help="Stop a job after so many seconds.")]
Retries = Annotated[int, number_in("--retries", int, 0, help="How often to try a job again that failed or died.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Start no more jobs once one is not done.")]
Inline = Annotated[bool, typer.Option("--inline", help="Train in this process, so that breakpoint() stops there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and list the jobs, run nothing.")]


def refuse_beside(option: str, given: object, others: Mapping[str, object]) -> None:
    """Raise ConfigError for the first of `others` that is given beside `option`: none are None, False and []."""
    beside = next((name for name, value in others.items() if _is_given(value)), None)
    if _is_given(given) and beside is not None:
        raise ConfigError(f"{option}: cannot be combined with {beside}\nleave out one of the two")


def _is_given(value: object) -> bool:
    return value is not None and value is not False and value != []


# ---------------------------------------------------------------- of comparisons

Baseline = Annotated[
    Optional[str], typer.Option("--baseline", metavar="ARM", help="The arm to compare with, such as norm=none.")
]
Metrics = Annotated[
    Optional[list[str]],
    several("--metric", "NAME", "Metrics to show, the first is compared; see `bnlab list metrics`.", complete_metric),
]
BestOf = Annotated[
    Optional[list[str]],
    several("--best-of", "KEY", "Each arm at its best value of KEY, chosen on validation.", complete_key),
]
Margin = Annotated[
    Optional[float],
    number_in("--margin", float, 1e-9, help="The smallest difference that matters, such as 0.2 points."),
]
Test = Annotated[
    Optional[Literal["t", "signs"]],
    one_of("--test", choices=("t", "signs"), help="Student's t, or permuted signs (from 6 pairs on)."),
]

# ---------------------------------------------------------------- of commands that read runs


def run_argument(metavar: str) -> Any:
    """Declare an argument that names a run or a sweep: a path, or a name as `find_run` takes it."""
    return typer.Argument(metavar=metavar, parser=find_run, autocompletion=complete_run, hidden=True)


Runs = Annotated[Optional[list[Path]], run_argument("PATH")]
Where = Annotated[
    Optional[list[str]], typer.Option("--where", metavar="KEY=VALUE[,VALUE]", help="Only runs with such a value.")
]
Force = Annotated[bool, typer.Option("--force", help="Write over any file that is there.")]
Page = Annotated[
    Optional[Path], typer.Option("--out", metavar="FILE.html", help="Write the result as a page to send, too.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 if a run folder cannot be read.")]

# ---------------------------------------------------------------- of commands that examine a trained model


def _target(word: str) -> str:
    return quoted(word) if "=" in word else str(find_run(word))


def complete_target(incomplete: str) -> list[str]:
    return [*complete_run(incomplete), *complete_override(incomplete)]


Targets = Annotated[
    Optional[list[str]],
    typer.Argument(metavar="RUN|KEY=VALUE", parser=_target, autocompletion=complete_target, hidden=True),
]
Module = Annotated[
    Optional[str],
    typer.Option("--module", metavar="PACKAGE.MODULE:FACTORY", help="Your own model: factory() -> torch.nn.Module."),
]


def _file(value: Optional[Path]) -> Optional[Path]:
    if value is not None and value.is_dir():
        raise ConfigError(f"--checkpoint {value}: is a folder, not a file")
    return value


Weights = Annotated[
    Optional[Path],
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        callback=_file,
        help="A file of weights: of --module, or instead of the run's own.",
    ),
]
Key = Annotated[
    Optional[str],
    typer.Option("--key", metavar="NAME", help="Where in --checkpoint the weights stand, such as state_dict_ema."),
]
Output = Annotated[
    Optional[str],
    typer.Option("--output", metavar="NAME", help="Which of several tensors that --module returns are its logits."),
]
Data = Annotated[
    Optional[str],
    typer.Option("--data", metavar="NAME", help="Data set for --module: mnist, ... or folder with data.path=FOLDER."),
]


def command_on(
    name: str,
    targets: Sequence[str] | None,
    module: str | None,
    weights: Path | None,
    data: str | None,
    key: str | None = None,
    output: str | None = None,
) -> str:
    """Return the command line of `bnlab NAME` on the same model, as a shell takes it."""
    options = {"--module": module, "--data": data, "--key": key, "--output": output, "--checkpoint": weights}
    named = [str(word) for option, value in options.items() if value for word in (option, value)]
    return shlex.join(["bnlab", name, *(targets or []), *named])


# ---------------------------------------------------------------- of commands that look at data sets

Root = Annotated[Path, typer.Option("--root", metavar="FOLDER", help="The folder that holds the data sets.")]
