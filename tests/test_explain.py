"""`bnlab explain`: the example of every key is typed as it stands, and shows something else than the default."""

from __future__ import annotations

import shlex
from functools import cache

import pytest

from bnlab.cli.explain import _told, explain
from bnlab.config import compose
from bnlab.config.files import keys
from bnlab.errors import ConfigError
from bnlab.experiment.config import parse_config
from bnlab.record.read import flatten


def example_of(word: str) -> list[str]:
    return shlex.split(dict(_told(word))[word]["example"])


@cache
def without_it(*lines: str) -> dict[str, object]:
    (tree,) = compose.jobs(lines, multirun=False)
    return flatten(tree)


@pytest.mark.parametrize("word", keys())
def test_the_example_of_a_key_works_and_is_not_the_default(word: str) -> None:
    command, _, words = " ".join(example_of(word)).partition(" train ")
    assert command in ("bnlab", "torchrun --nproc-per-node=2 -m bnlab")
    lines = words.split()
    assert lines[-1].lstrip("+").startswith(f"{word}=")
    (tree,) = compose.jobs(lines, multirun=False)
    parse_config(tree)
    assert flatten(tree) != without_it(*lines[:-1])


def test_the_example_of_a_metric_of_recalibrated_models_shows_them() -> None:
    assert example_of("samples_needed") == ["bnlab", "compare", "--metric", "samples_needed", "--evaluated"]
    assert example_of("acc_gap") == ["bnlab", "compare", "--metric", "acc_gap"]


def test_a_word_of_the_guides_leads_to_them() -> None:
    with pytest.raises(
        ConfigError, match=r"^data\.mean: no key, metric or option\nset model\.input_norm, .* own-model"
    ):
        explain(["data.mean"])
    with pytest.raises(ConfigError, match=r"^holm: no key, metric or option\n.*`bnlab guide compare`.* speak of it$"):
        explain(["holm"])
    with pytest.raises(ConfigError, match=r"did you mean norm.momentum\?\n`bnlab list` names all$"):
        explain(["momentun"])


def test_a_column_and_an_option_are_known_as_they_are_printed() -> None:
    for words, name in [("gap train-eval", "acc_gap"), ("flips %", "flip_rate"), ("steps to 95 %", "steps_to_target")]:
        assert list(dict(_told("_".join(words.split())))) == [name]


def test_an_override_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    explain(["norm=group"])
    assert capsys.readouterr().out.startswith("norm=group\n")
    explain(["norm.eps=1e-3"])
    assert capsys.readouterr().out.startswith("norm.eps\n")
