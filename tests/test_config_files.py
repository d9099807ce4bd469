"""What `check_file` decides of a configuration file, and what files of a user's own may say beside a command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers_cases import for_each

from bnlab.config import compose
from bnlab.config.files import DEEPEST, check_file
from bnlab.errors import ConfigError

DEEP = {
    "list": "a: " + "[" * 100_000,
    "not ascii": "é: " + "[" * 100_000,
    "closed": "a: " + "[" * 1500 + "]" * 1500,
    "mapping": "a: " + "{a: " * 10_000,
    "by dashes": "a:\n" + "- " * 10_000,
    "by question marks": "? " * 10_000,
    "by indentation": "".join(" " * i + "a:\n" for i in range(1000)),
    "one too many": "a: " + "[" * DEEPEST,
}
FINE = {"just": "a: " + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1), "quoted": f"a: '{'[' * 5000}'", "empty": ""}


def refusal(folder: Path, text: str) -> str:
    path = folder / "x.yaml"
    path.write_text(text)
    try:
        check_file(str(path), str(folder))
    except ConfigError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


@pytest.mark.parametrize("name", DEEP)
def test_depth_is_refused_in_the_same_words_by_every_parser(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path, DEEP[name]) == "is nested more than 20 levels deep"


def test_what_is_no_deeper_passes(tmp_path: Path) -> None:
    assert {name: refusal(tmp_path, text) for name, text in FINE.items()} == dict.fromkeys(FINE, "")


def test_a_parser_that_gives_up_by_itself_changes_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recurses(*_: object, **__: object) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(yaml, "parse", recurses)
    assert refusal(tmp_path, "a: [[1]]") == "is nested more than 20 levels deep"
    monkeypatch.undo()
    assert refusal(tmp_path, "a: [").startswith("is no YAML: ")


# ---------------------------------------------------------------- files beside a command line

FILES = {
    "experiment/seeds": "hydra: {sweeper: {params: {seed: '0,1', norm.size: '8,16'}}}",
    "experiment/other": "hydra: {sweeper: {params: {seed: '4,5'}}}",
    "experiment/plain": "defaults: [override /norm: ghost]\nnorm: {size: 8}\nseed: 3",
    "experiment/multi": "hydra: {mode: MULTIRUN, sweeper: {params: {seed: range(3)}}}",
    "experiment/single": "hydra: {mode: RUN}",
    "experiment/elsewhere": "hydra: {run: {dir: /tmp/x}}",
    "experiment/cluster": "hydra: {job: {env_set: {A: b}}}",
}
HEX = "0x" + "f" * 5000


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm/digits.yaml").write_text(f"name: batch\ny: {HEX}\n")
    return tmp_path


def seeds_and_sizes(mine: Path, *overrides: str) -> list[tuple[int, int]]:
    trees = compose.jobs(["norm=ghost", *overrides], multirun=True, extra_dir=mine)
    return [(tree["seed"], tree["norm"]["size"]) for tree in trees]


def test_a_command_line_counts_more_than_a_file(mine: Path) -> None:
    seeds = "+experiment=seeds"
    assert seeds_and_sizes(mine, seeds) == [(0, 8), (0, 16), (1, 8), (1, 16)]
    for given in ("seed=7", "++seed=7"):
        assert seeds_and_sizes(mine, seeds, given) == [(7, 8), (7, 16)]
    assert seeds_and_sizes(mine, seeds, "seed=7,8", "norm.size=4") == [(7, 4), (8, 4)]
    (tree,) = compose.jobs(["+experiment=plain", "seed=1", "norm=layer", "~norm.size"], False, mine)
    assert (tree["seed"], tree["norm"]["name"]) == (1, "layer")


def test_a_file_may_ask_for_a_sweep(mine: Path) -> None:
    assert compose.is_multirun(["+experiment=multi"], False, mine)
    assert not compose.is_multirun(["+experiment=plain", "seed=0,1"], False, mine)
    with pytest.raises(ConfigError, match="is against -m"):
        compose.is_multirun(["+experiment=single"], True, mine)


@for_each(
    ("overrides", "multirun", "message"),
    [
        (["+experiment=seeds"], False, "hydra.sweeper.params.seed=0,1: is for a sweep\nadd -m"),
        (["hydra/launcher=joblib"], False, "hydra/launcher=joblib: is for a sweep"),
        (["+experiment=seeds,other"], True, "hydra.sweeper.params.seed=0,1: comes with +experiment=seeds"),
        (["+experiment=plain,cluster"], True, "hydra.job.env_set.A=b: comes with +experiment=cluster"),
        (["+experiment=elsewhere"], False, "hydra.run.dir=/tmp/x: has no effect in bnlab"),
        (["+experiment=elsewhere"], True, "hydra.run.dir=/tmp/x: has no effect in bnlab"),
        (["+experiment=cluster"], True, "hydra.job.env_set.A=b: has no effect in bnlab"),
        (["hydra.sweep.dir=x"], True, "hydra.sweep.dir=x: has no effect in bnlab\nset BNLAB_RUNS=FOLDER"),
        (["hydra.verbose=true"], False, "hydra.verbose=True: has no effect in bnlab"),
        (["hydra/job_logging=disabled"], False, "hydra/job_logging=disabled: has no effect in bnlab"),
        (["hydra.sweeper.max_batch_size=2"], True, "hydra.sweeper.max_batch_size=2: has no effect in bnlab"),
        (["experiment=plain"], False, "experiment=plain: comes on top of what is chosen\nuse +experiment=plain"),
        (["hydra.sweeper.params={seed: '0,1'}"], True, "hydra.sweeper.params={seed: '0,1'}: cannot be put there"),
        (["hydra.sweeper.params.seed=1"], True, "hydra.sweeper.params.seed=1: cannot be put there"),
        (["norm=digits"], False, "norm.y: is too large a number\nwhole numbers are below 2^63"),
        (["seed=1", "data.valid_size=" + "9" * 5000], True, "data.valid_size: is too large a number"),
        (["seed=0,1", "data.valid_size=" + "9" * 4000], True, "data.valid_size: is too large a number"),
        (["x" * 300 + "=1"], False, "x: no such key; it has 300 letters"),
        (["x" * 300 + "=1,2"], True, "x: no such key; it has 300 letters"),
    ],
)
def test_what_hydra_would_not_heed_or_not_take_is_named(
    mine: Path, overrides: list[str], multirun: bool, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        compose.jobs(overrides, multirun, mine)
    assert message in str(refused.value)


@for_each("value", ["[1.5]", "[[]]", "[batch,ghost]", "[[batch]]", "[null]", "[true]", "[{a:1}]", "null", "3", "{a:1}"])
@for_each("group", ["norm", "recipe"])
def test_an_option_of_a_group_is_one_word(group: str, value: str) -> None:
    for multirun in (False, True):
        with pytest.raises(ConfigError, match=rf"^{group}=.*: is no option of {group}\nthere are: "):
            compose.jobs([f"{group}={value}", "seed=1"], multirun)


def test_a_group_of_ones_own_may_be_given_a_list(mine: Path) -> None:
    (tree,) = compose.jobs(["+experiment=[plain,single]"], False, mine)
    assert (tree["seed"], tree["norm"]["size"]) == (3, 8)
