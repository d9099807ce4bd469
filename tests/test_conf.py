"""conf/ says what the classes declare, and what a command line comes to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from conf_files import CONF, REGISTRIES, contents
from helpers_cases import for_each

from bnlab.config import compose
from bnlab.config.files import GLOBAL, groups, keys
from bnlab.config.messages import ELSEWHERE, INSTEAD, instead_of
from bnlab.errors import ConfigError
from bnlab.experiment.config import identity, parse_config
from bnlab.norms.strategy import strategies
from bnlab.training.evaluation import EvalConfig
from bnlab.training.trainer import TrainerConfig

OPTIONS = [(group, name) for group, registry in REGISTRIES.items() for name in registry]


def composed(*overrides: str) -> dict[str, Any]:
    (tree,) = compose.jobs(list(overrides), multirun=False)
    return tree


def test_the_files_are_what_the_classes_declare() -> None:
    texts = contents()
    for path, text in texts.items():
        assert path.is_file(), f"{path} is missing: run `make conf`"
        assert path.read_text(encoding="utf-8") == text, f"{path} differs from its class: run `make conf`"
    others = {path for group in REGISTRIES for path in (CONF / group).iterdir()} - set(texts)
    assert not others, "no class has these names"
    assert {group: list(options) for group, options in groups().items() if group not in GLOBAL} == {
        group: list(registry) for group, registry in sorted(REGISTRIES.items())
    }


@pytest.mark.slow
@for_each(("group", "name"), OPTIONS)
def test_an_option_is_composed_to_its_class_with_the_defaults(group: str, name: str) -> None:
    config = parse_config(composed(f"{group}={name}"))
    assert getattr(config, group) == REGISTRIES[group][name]()
    assert getattr(config, group).name == name


def test_the_other_nodes_have_the_defaults_of_their_class_but_for_the_recipe() -> None:
    config = parse_config(composed())
    assert dataclasses.replace(config.trainer, epochs=10.0) == TrainerConfig()
    assert dataclasses.replace(config.eval, every=1.0) == EvalConfig()


@for_each("name", list(groups()["experiment"]))
def test_every_preset_is_composed_with_the_arms_that_its_line_names(name: str) -> None:
    arms = next(word for word in groups()["experiment"][name].rstrip(".").split() if word.startswith("norm="))
    configs = [parse_config(tree) for tree in compose.jobs([f"+experiment={name}", arms], multirun=True)]
    assert ",".join(config.norm.name for config in configs) == arms.removeprefix("norm=")
    assert (configs[0].data.name, configs[0].data.batch_size, configs[0].model.name) == {
        "ioffe-mnist": ("mnist", 60, "mlp"),
        "card": ("mnist", 64, "cnn"),
        "large-batch": ("mnist", 2048, "cnn"),
        "santurkar": ("mnist", 128, "cnn"),
        "batch-of-two": ("digits", 2, "cnn"),
        "keras": ("digits", 64, "cnn"),
        "airbench": ("cifar10", 1024, "airbench"),
    }[name]


def test_every_key_is_listed_with_its_meaning() -> None:
    listed = keys()
    for group, name in OPTIONS:
        assert {f"{group}.{field.name}" for field in dataclasses.fields(REGISTRIES[group][name])} <= set(listed)
    whole = {f"{group}.{key}" for group, node in composed().items() if isinstance(node, dict) for key in node}
    assert {key for key in whole if not key.endswith(".name")} <= set(listed)
    assert all(entry.meaning for entries in listed.values() for entry in entries)
    assert listed["norm.momentum"][0].default == "0.1"
    assert listed["trainer.precision"][0].words == ["float32", "bfloat16"]
    assert listed["norm.affine"][0].words == ["true", "false", "gamma", "beta", "layer"]


def test_a_sweep_is_taken_apart_into_its_jobs() -> None:
    trees = compose.jobs(["norm=none,ghost", "seed=range(0,3)", "model.widths=[8],[8,16]"], multirun=True)
    assert [(t["norm"]["name"], t["seed"], t["model"]["widths"]) for t in trees] == [
        (norm, seed, widths) for norm in ("none", "ghost") for seed in (0, 1, 2) for widths in ([8], [8, 16])
    ]


def test_the_command_line_counts_more_than_what_a_sweepers_file_sweeps(tmp_path: Path) -> None:
    file = tmp_path / "hydra/sweeper/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("defaults: [basic]\nparams: {seed: '0,1', norm: 'none,batch'}\n")
    trees = compose.jobs(["hydra/sweeper=mine", "seed=5,6"], multirun=True, extra_dir=tmp_path)
    assert [(t["seed"], t["norm"]["name"]) for t in trees] == [(5, "none"), (5, "batch"), (6, "none"), (6, "batch")]


def test_glob_takes_every_strategy() -> None:
    trees = compose.jobs(["norm=glob(*)"], multirun=True)
    assert [t["norm"]["name"] for t in trees] == list(strategies)


@for_each(
    ("override", "message"),
    [
        ("norm=batchh", "norm=batchh: no such option; did you mean batch?"),
        ("trainer.epoch=3", "trainer.epoch: no such key; did you mean trainer.epochs?"),
        ("nrom=batch", "nrom: no such key; did you mean norm?"),
        ("norm.over=activation", "norm.over: the chosen norm has no such key; did you mean norm.per?"),
        ("+x=1", "x: no such key"),
        ("+norm.momentumm=0.1", "norm.momentumm: no such key; did you mean momentum?"),
        ("optim.lr=nan", "optim.lr=nan: must be above 0"),
        ("optim.lr=-1", "optim.lr=-1: must be above 0"),
        ("optim.lr=fast", "optim.lr=fast: must be a number"),
        ("optim=null", "optim"),
        ("trainer.epochs=0", "trainer.epochs=0: must be above 0"),
        ("trainer.epochs=1e20", "trainer.epochs=1e+20: must be above 0 and at most 1e+06"),
        ("trainer.device=tpu", "trainer.device=tpu: must be auto, cpu, cuda or cuda:N"),
        ("measure=ful", "measure=ful: must be cheap, full, or a list of gap, probe, "),
        ("measure=ful", "did you mean full?"),
        ("measure=null", "measure=None: must be cheap, full, or a list of gap, probe, "),
        ("measure=[]", "measure=[]: must be cheap, full, or a list of gap, probe, "),
        ("measure=[gap,landscap]", "did you mean landscape?"),
        ("measure=[[gap]]", "measure=['gap']: must be cheap, full, or a list of gap, probe, "),
        ("measure_every=0", "measure_every=0: must be a whole number of steps"),
        ("measure_every=1.5", "measure_every=1.5: must be a whole number of steps"),
        ("measur=full", "measur: no such key; did you mean measure?"),
        ("seed=-1", "seed=-1: must be a whole number"),
        ("seed=0.5", "seed=0.5: must be a whole number"),
        ("seed=0,1", "add -m to run one job for each"),
        ("name=../x", "name='../x': must be"),
        ("name=/abs", "name='/abs': must be"),
        ("name=-rf", "name='-rf': must be"),
        ("name=" + "a" * 300, "must be up to 80 letters"),
        ("optim.momentum=0", "Nesterov needs momentum"),
        ("+norm._target_=os.system", "norm._target_=os.system: a configuration may not name Python objects"),
        ("+hydra.callbacks.x._target_=pathlib.Path.touch", "a configuration may not name Python objects"),
        ("optim.lr=${oops}", "oops"),
        ("runs_dir=/tmp/x", "runs_dir: no such key\nset BNLAB_RUNS=FOLDER, which every command heeds"),
        ("hydra.run.dir=/tmp/x", "hydra.run.dir=/tmp/x: has no effect in bnlab\nset BNLAB_RUNS=FOLDER"),
        ("hydra.sweep.dir=/tmp/x", "hydra.sweep.dir=/tmp/x: has no effect in bnlab\nset BNLAB_RUNS=FOLDER"),
        ("hydra.runtime.output_dir=x", "hydra.runtime.output_dir=x: has no effect in bnlab\nset BNLAB_RUNS=FOLDER"),
        ("layers=3", "layers: no such key; did you mean model.depth=3?"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(composed(override))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


@for_each("way", list(INSTEAD))
def test_what_other_programs_say_is_answered_by_the_way_here(way: str) -> None:
    words = INSTEAD[way].split()
    assert not set(words) & {key.rpartition(".")[2] for key in keys()}
    assert [instead_of(word) for word in words] == [way] * len(words)
    with pytest.raises(ConfigError) as error:
        composed(f"{words[0]}=1")
    assert str(error.value) == f"{words[0]}: no such key\n{way}"


def test_each_word_of_elsewhere_means_a_key_and_is_none() -> None:
    assert set(ELSEWHERE) <= set(keys()) | set(groups())
    words = [word for each in ELSEWHERE.values() for word in each.split()]
    assert len(set(words)) == len(words)
    assert not set(words) & set(keys())


def test_what_is_measured() -> None:
    assert parse_config(composed()).measure == ("gap",)
    for override in ("measure=full", "measure=probe", "measure=[gap,probe]", "measure=[probe]"):
        assert parse_config(composed(override)).in_full
    listed = parse_config(composed("measure=[landscape,gap,landscape]", "measure_every=5"))
    assert (listed.measure, listed.meters, listed.in_full) == (("gap", "landscape"), ("landscape",), False)
    older = composed()
    del older["measure"], older["measure_every"]
    assert parse_config(older).measure == ("gap",)


def test_one_way_to_measure_is_one_identity() -> None:
    known = identity(composed("measure=full"), "data")
    assert identity(composed("measure=[probe,gap]"), "data") == identity(composed("measure=probe"), "data") == known
    assert len({known, *(identity(composed(o), "data") for o in ("seed=0", "measure=landscape"))}) == 3
    older = composed()
    del older["measure"], older["measure_every"]
    assert identity(older, "data") == identity(composed(), "data")


def test_a_ghost_larger_than_the_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"norm\.size=128: .*data\.batch_size=64"):
        parse_config(composed("norm=ghost", "norm.size=128"))


def test_identity_depends_on_results_only() -> None:
    one = identity(composed(), "abc")
    assert one == identity(composed("name=other", "data.root=elsewhere"), "abc")
    assert (
        len(
            {
                one,
                identity(composed("seed=1"), "abc"),
                identity(composed(), "abd"),
                identity(composed("norm=none"), "abc"),
            }
        )
        == 4
    )


def test_configurations_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text("name: ghost\nsize: 8\nupdate: pooled\nmomentum: 0.5\n")
    (tree,) = compose.jobs(["norm=mine"], multirun=False, extra_dir=tmp_path)
    assert tree["norm"]["size"] == 8


@pytest.mark.parametrize(
    "lines",
    [
        ["seed=0,1", "norm=batch,ghost", "optim.lr=0.1,1e-3,null"],
        ["name='a b','1e3',null", "model.widths=[16],[32,8]"],
        ["trainer.steps=${seed},5", "seed=1,2", "+x=1"],
        ["trainer={steps:3},{steps:4}", "~norm.eps"],
        ["data.root=yes,0x10,1_000,'1_000'", "norm=none"],
        *(
            pytest.param(lines, marks=pytest.mark.slow)
            for lines in (
                ["data=digits", "data.crop=0,1", "model=cnn,mlp", "model.widths=[8,16],[16]"],
                ["optim=adamw,sgd", "optim.lr=1e-3,0.1", "schedule=cosine", "++trainer.steps=3,4"],
                ["data=digits,mnist", "seed=range(0,2)", "trainer.threads=null,1", "name=abc"],
            )
        ),
    ],
)
def test_jobs_of_a_sweep_are_what_hydra_composes_for_each(lines: list[str]) -> None:
    """Most values are put in without Hydra, which takes twenty milliseconds a job."""
    jobs = compose.planned(lines, multirun=True)
    assert len(jobs) > 1
    for part, tree in jobs:
        assert tree == compose.plain(compose.compose(part, multirun=True)) == composed(*part)
