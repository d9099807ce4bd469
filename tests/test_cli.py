"""The command line as its user meets it: real processes, their output, exit codes, and what they leave on the disk."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cases import for_each
from helpers_cli import QUICK, ROOT, SHORT, bnlab, environment, in_turn, start
from helpers_runs import make_run

from bnlab import __version__
from bnlab.norms.strategy import strategies


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep of three strategies, two seeds and a learning rate too many, in a folder of its own."""
    place = tmp_path_factory.mktemp("sweep")
    done = bnlab(
        "train", "-m", "norm=none,batch,layer", "seed=0,1", "optim.lr=0.05,1e12", "name=trial", *SHORT, cwd=place
    )
    return place, done


# ---------------------------------------------------------------- training


def test_one_run_prints_one_line_and_leaves_a_whole_folder(tmp_path: Path) -> None:
    done = bnlab("train", "norm=ghost", "norm.size=16", *SHORT, cwd=tmp_path, BNLAB_RUNS="mine/runs")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert done.stdout.startswith("mine/runs/2")
    folder, state, *rest = done.stdout.split()
    assert state == "done"
    assert "norm=ghost" in rest
    found = {path.name for path in (tmp_path / folder).iterdir()}
    assert found >= {"config.yaml", "environment.json", "steps.csv", "evals.csv", "times.csv", "summary.json"}
    assert found >= {"status.json", "checkpoint.pt", "checkpoint.sha256", "run.log"}
    assert not [name for name in found if name.endswith(".tmp")]
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stderr
    name = folder.partition("-run-")[2]
    assert re.search(r"% test accuracy, a gap of \S+ points to the statistics of training, \S+ ms a step", done.stderr)
    assert done.stderr.endswith(f"bnlab show run-{name}; the gap by its causes: bnlab probe run-{name}\n")


def test_a_diverging_job_does_not_stop_the_sweep(sweep: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, done = sweep
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert len(lines) == 12
    assert "  done  norm=none  lr=0.05  seed=0  test_accuracy=" in lines[0]
    assert sum("  done  " in line for line in lines) >= 6
    diverged = [line for line in lines if "  diverged  " in line]
    assert diverged
    for line in diverged:
        assert "test_accuracy" not in line
        assert f"{line.split()[0]} diverged: loss not finite at step" in done.stderr
    assert f"{12 - len(diverged)} of 12 jobs done" in done.stderr
    assert len(list(place.glob("runs/*-trial-sweep-*/*/status.json"))) == 12


def test_a_killed_run_is_told_apart(tmp_path: Path) -> None:
    with start("train", "trainer.steps=1000000", "eval.every=1000", cwd=tmp_path, supervised=True):
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("runs/*/steps.csv")) and time.monotonic() < deadline:
            time.sleep(0.05)
    while "1/1 running" in (shown := bnlab("compare", cwd=tmp_path)).stdout and time.monotonic() < deadline:
        time.sleep(0.05)  # its worker notices a moment later
    assert (shown.returncode, "1/1 killed" in shown.stdout) == (0, True), shown.stdout


# ---------------------------------------------------------------- bad input: one message, exit code, no folder

MISTAKES = [
    (["nrom=batch"], 2, "nrom: no such key; did you mean norm?"),
    (["lr=0.1"], 2, "lr: no such key; did you mean optim.lr=0.1?\n"),
    (["batch_size=8"], 2, "batch_size: no such key; did you mean data.batch_size=8?\n"),
    (["epochs=3"], 2, "epochs: no such key; did you mean trainer.epochs=3?\n"),
    (["optimizer.lr=3"], 2, "optimizer.lr: no such key; did you mean optim.lr=3?\n"),
    (["momentum=0.5"], 2, "momentum: no such key; did you mean norm.momentum=0.5 or optim.momentum=0.5?\n"),
    (["dataset=mnist"], 2, "dataset: no such key; did you mean data=mnist?\n"),
    (["norm.name=ghost"], 2, "norm.name=ghost: chooses no option\nwrite norm=ghost\n"),
    (["-m", "norm.name=ghost,batch"], 2, "norm.name=ghost,batch: chooses no option\nwrite norm=ghost,batch\n"),
    (["experiment=card"], 2, "experiment=card: comes on top of what is chosen\nuse +experiment=card\n"),
    (["seeds=5"], 2, "seeds: no such key; did you mean seed=0,1,2 or seed=range(5)?\nadd -m to train each seed\n"),
    (["--epochs", "3"], 2, "--epochs: no such option; settings are KEY=VALUE\nwrite trainer.epochs=3\n"),
    (
        ["norm=ghost", "--batch-size=8"],
        2,
        "--batch-size: no such option; settings are KEY=VALUE\nwrite data.batch_size=8\n",
    ),
    (["--mulitrun"], 2, "--mulitrun: no such option; did you mean --multirun?\n`bnlab train --help` lists them\n"),
    (["norm=bach"], 2, "norm=bach: no such option; did you mean batch?"),
    (["trainer.epoch=1"], 2, "trainer.epoch: no such key; did you mean trainer.epochs?"),
    (["optim.lr=fast"], 2, "optim.lr=fast: must be a number"),
    (["optim.lr=nan"], 2, "optim.lr=nan: must be above 0"),
    (["+x=1"], 2, "x: no such key\n`bnlab train --cfg job` prints every key"),
    (["++norm.x=1"], 2, "norm.x: no such key\n`bnlab train --cfg job` prints every key"),
    (["card"], 2, "card: is no KEY=VALUE\nwrite +experiment=card\n"),
    (["ghost"], 2, "ghost: is no KEY=VALUE\nwrite norm=ghost\n"),
    (["norm", "=", "ghost"], 2, "norm: is no KEY=VALUE\nwrite norm=VALUE, without spaces\n"),
    (["ghots"], 2, "ghots: is no KEY=VALUE; did you mean ghost?\n"),
    (["norm=glob(*)"], 2, "norm=glob(*): several values\nadd -m to run one job for each"),
    (["norm="], 2, "norm=: no such option\nthere are: batch, dyt, "),
    (["-m", "seed=1,", "2"], 2, "seed=1,: cannot be read where it ends\n"),
    (["data.path=my photos (2019)"], 2, "in both quotes: \"data.path='my photos (2019)'\""),
    (["name=a&b"], 2, "name=a&b: cannot be read\n"),
    (["data=folder", "data.path=Bilder é/ß"], 2, "data.path=Bilder é/ß: no such folder"),
    (["data.path=é (1)"], 2, "data.path=é (1): cannot be read at é\n"),
    (["seed=0..3"], 2, "\nwrite seed=range(0,4) with -m\n"),
    (["seed=foo(1)"], 2, "seed=foo(1): "),
    (["-m", "hydra/launcher=foo"], 2, "hydra/launcher=foo: no such option\nthere are: basic, "),
    (["hydra/sweeper=foo"], 2, "hydra/sweeper=foo: no such option\nthere are: basic"),
    (["+norm._target_=os.system"], 2, "may not name Python objects"),
    (["+hydra.callbacks.x._target_=pathlib.Path.touch"], 2, "may not name Python objects"),
    (["name=../x"], 2, "name='../x': must be"),
    (["name=20261201"], 2, "\nwrite \"name='20261201'\", as text"),
    (["=1"], 2, "=1: has no key\nwrite KEY=VALUE"),
    (["optim. lr =0.1"], 2, "optim. lr =0.1: cannot be read\nwrite optim.lr=0.1, without spaces\n"),
    (["norm=instance", "model=mlp"], 2, "norm=instance"),
    (["-m", "norm=batch,instance", "model=cnn,mlp"], 2, "norm=instance"),
    (["norm=ghost", "norm.size=100"], 2, "norm.size=100: must be at most data.batch_size=64"),
    (["model=mlp", "data.batch_size=1"], 2, "data.batch_size=1: norm=batch has one value a channel"),
    (["model=mlp", "norm.stat_samples=1"], 2, "data.batch_size=64: norm=batch has one value a channel"),
    (["model.widths=[8,8,8,8]"], 2, "model.widths=[8, 8, 8, 8]"),
    (["norm=group", "norm.groups=3"], 2, "norm.groups=3: must divide the channels of every layer"),
    (["norm=group", "eval.stats=folded"], 2, "eval.stats=folded: layer 1 (GroupLayer) is no affine map"),
    (["norm=population", "norm.samples=5000"], 2, "norm.samples=5000: there are 1,237 training samples"),
    (["norm=frn", "model.activation=elu"], 2, "norm=frn: brings its own activation"),
    (["model=resnet", "model.depth=21"], 2, "model.depth=21: must be 6n + 2"),
    (["seed=0,1"], 2, "add -m"),
    (["norm"], 2, "norm"),
    (["-m", "seed=range(1000000000)"], 2, "the sweep comes to 1,000,000,000 jobs"),
    (["-m", "seed=range(200)", "optim.lr=range(0.1,10,0.1)"], 2, "the sweep comes to 19,800 jobs"),
    (["-m", "optim.lr=interval(0.1,1)"], 2, "optim.lr=interval(0.1,1): an interval is for a search"),
    (["-m", "seed=range(5,0)"], 2, "the sweep comes to 0 jobs"),
    (["-m", "seed=range(0,inf)"], 2, "seed=range(0,inf): a range needs numbers"),
    (["-m", "seed=range(0,5,0)"], 2, "seed=range(0,5,0): a range needs numbers, and a step other than 0"),
    (["data=mnist"], 1, "mnist: not in data"),
    (["data=folder"], 2, "data.path"),
    (["trainer.device=cuda:99"], 1, "trainer.device=cuda:99"),
    (["--resolve"], 2, "--cfg"),
]


@pytest.mark.slow
@for_each(("arguments", "code", "message"), MISTAKES)
def test_mistakes_end_in_one_message(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    done = bnlab("train", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "hydra.cc" not in done.stderr
    assert "ray_aws" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["norm=instance", "model=mlp"],
        *(pytest.param(x, marks=pytest.mark.slow) for x in (["data=mnist"], ["optim.lr=nan"], ["nrom=batch"])),
    ],
    ids=" ".join,
)
def test_mistakes_found_by_a_worker_are_told_alike(tmp_path: Path, arguments: list[str]) -> None:
    """The shell's own way: errors of every kind cross the pipe from the worker process, with their exit code."""
    done, other = bnlab("train", *arguments, cwd=tmp_path, fresh=True), bnlab("train", *arguments, cwd=tmp_path)
    told = done.stderr.removeprefix("loading torch and checking 1 job\n")  # said where that takes long
    assert (done.returncode, done.stdout, told) == (other.returncode, other.stdout, other.stderr)
    assert list(tmp_path.iterdir()) == []


def test_jobs_that_repeat_another_are_counted(tmp_path: Path) -> None:
    done = bnlab("train", "-m", "seed=1,1,2", "eval.stats=running,batch", "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "2 of 6 jobs repeat another, seed included: no further seed\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    done = bnlab("train", "trainer.device=cuda", cwd=tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert done.stderr == "trainer.device=cuda: no CUDA device here\ntry trainer.device=cpu\n"


def test_traceback_is_there_for_the_asking(tmp_path: Path) -> None:
    done = bnlab("train", "optim.lr=nan", "--traceback", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


def test_a_traceback_leaves_the_exit_code_as_it_is(tmp_path: Path) -> None:
    commands = [["compare", "nowhere"], ["train", "norm=gost"], ["train", "data=mnist"]]
    found = in_turn([[*command, *more] for command in commands for more in ([], ["--traceback"])], tmp_path)
    assert [done.returncode for done in found] == [2, 2, 2, 2, 1, 1]
    for plain, traced in zip(found[::2], found[1::2], strict=True):
        assert traced.stderr.startswith("Traceback")
        assert traced.stderr.endswith(plain.stderr)


def test_runs_that_cannot_be_written_are_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    done = bnlab("train", *SHORT, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("cannot write runs")


# ---------------------------------------------------------------- looking at runs


def test_compare_in_every_format(sweep: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, _ = sweep
    where = ["--where", "lr=0.05"]
    for width in ("80", "120"):
        shown = bnlab("compare", *where, cwd=place, COLUMNS=width)
        assert shown.returncode == 0, shown.stderr
        assert all(len(line) <= int(width) for line in shown.stdout.splitlines())
        assert all(name in shown.stdout for name in ("none", "batch", "layer", "digits"))
        assert "\x1b" not in shown.stdout
    made = json.loads(bnlab("compare", *where, "-f", "json", cwd=place).stdout)
    assert (made["schema"], made["baseline"]) == (2, "none")
    assert [row["arm"]["norm.name"] for row in made["rows"]] == ["none", "batch", "layer"]
    assert {row["n"] for row in made["rows"]} == {2}
    table = bnlab("compare", *where, "-f", "csv", cwd=place).stdout
    assert {row["metric"] for row in csv.DictReader(io.StringIO(table))} >= {"test_accuracy", "step_ms"}
    assert bnlab("compare", *where, "-f", "md", cwd=place).stdout.count("|") > 20
    assert "test_accuracy" in bnlab("compare", *where, "-f", "plain", cwd=place).stdout


def test_compare_counts_what_diverged(sweep: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, _ = sweep
    shown = bnlab("compare", "--where", "norm=none", cwd=place)
    assert "2/2 diverged" in shown.stdout, shown.stdout


def test_compare_names_broken_folders_and_shows_the_rest(tmp_path: Path) -> None:
    bnlab("train", *SHORT, cwd=tmp_path)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "status.json").write_text("{")
    shown = bnlab("compare", "--all", cwd=tmp_path)
    assert shown.returncode == 0
    assert "digits" in shown.stdout
    assert "broken" in shown.stderr
    assert bnlab("compare", "--all", "--strict", cwd=tmp_path).returncode == 1


@for_each(
    ("arguments", "code", "message"),
    [
        (["--metric", "test_acuracy"], 2, "did you mean test_accuracy?"),
        (["--where", "nrom=batch"], 2, "did you mean norm?"),
        (["--where", "lr=0.05", "--baseline", "bach"], 2, "did you mean batch?"),
        (["nowhere"], 2, "nowhere: does not exist"),
        (["--format", "xml"], 2, "xml"),
    ],
)
def test_compare_mistakes(
    sweep: tuple[Path, subprocess.CompletedProcess[str]], arguments: list[str], code: int, message: str
) -> None:
    done = bnlab("compare", *arguments, cwd=sweep[0])
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_glob_trains_every_strategy_that_fits_and_names_the_others(tmp_path: Path) -> None:
    short = [key for key in SHORT if "widths" not in key]
    keys = ["norm=glob(*)", "model=mlp", "model.widths=[16]", "data.batch_size=16", "data.train_size=200", *short]
    done = bnlab("train", "-m", *keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    left_out = [name for name in strategies if name == "ghost" or strategies[name]().facts.needs_space]
    assert [line.split()[0] for line in done.stderr.splitlines() if "left out" in line] == [
        f"norm={name}" for name in left_out
    ]
    assert "norm=ghost is left out: norm.size=32: must be at most data.batch_size=16" in done.stderr
    assert "% of the initial statistics (mean 0, variance 1) are left" in done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[2] for line in lines] == [f"norm={name}" for name in strategies if name not in left_out]
    assert all(line.split()[1] == "done" for line in lines)


def test_glob_of_what_does_not_fit_starts_nothing(tmp_path: Path) -> None:
    done = bnlab("train", "-m", "norm=glob(i*)", "model=mlp", *SHORT, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("norm=glob(i*): none of these strategies fits")
    assert not (tmp_path / "runs").exists()


def test_a_layer_with_other_layers_frozen(tmp_path: Path) -> None:
    keys = ["norm=batch", "model.norm_every=2", "model.norm_rest=frozen", "eval.stats=population"]
    done = bnlab("train", *keys, *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_compare_without_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    done = bnlab("compare", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no runs in runs" in done.stderr


def test_a_reader_that_leaves_early_is_no_error(sweep: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    command = f"{sys.executable} -m bnlab list metrics | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=sweep[0], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode in (0, 141)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_on_a_full_disk_is_one_message(sweep: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    with open("/dev/full", "w") as full:
        for arguments in (["compare"], ["list"], ["compare", "-f", "csv"]):
            with start(*arguments, cwd=sweep[0], stdout=full) as command:
                _, err = command.communicate()
            assert command.returncode == 1
            assert err == "cannot read or write the output: No space left on device\n"


def test_ascii_terminals_and_no_color(sweep: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    shown = bnlab("compare", cwd=sweep[0], PYTHONIOENCODING="ascii", LC_ALL="C")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.isascii()
    coloured = bnlab("compare", cwd=sweep[0], FORCE_COLOR="1")
    plain = bnlab("compare", cwd=sweep[0], FORCE_COLOR="1", NO_COLOR="1")
    assert "\x1b[" in coloured.stdout
    assert "\x1b[3" not in plain.stdout


@pytest.mark.slow
def test_show(sweep: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, done = sweep
    for line in done.stdout.splitlines():
        folder, state = line.split()[:2]
        shown = bnlab("show", folder, cwd=place, COLUMNS="80")
        assert shown.returncode == 0, shown.stderr
        assert state in shown.stdout
        assert all(len(row) <= 80 for row in shown.stdout.splitlines())
    missing = bnlab("show", "runs", cwd=place)
    assert (missing.returncode, "no run here; it holds " in missing.stderr) == (2, True)


# ---------------------------------------------------------------- the rest of the command line


def test_help_is_quick_because_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys\nsys.argv = ['bnlab', *sys.argv[1:]]\nfrom bnlab.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'pandas', 'numpy', 'scipy', 'matplotlib', 'jinja2'}\n"
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    for arguments in (["--help"], ["train", "--help"], ["--version"], ["list"], ["data", "list"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment(), check=False
        )
        assert done.stderr.strip() == "", (arguments, done.stderr)
        assert done.stdout
    assert bnlab("--version", cwd=ROOT).stdout == f"bnlab {__version__}\n"


def test_compare_loads_no_torch(sweep: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    code = (
        "import sys\nsys.argv = ['bnlab', 'compare']\nfrom bnlab.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'hydra', 'pandas', 'matplotlib', 'jinja2'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=sweep[0], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr


def test_cfg_and_info_run_nothing(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    done = bnlab("train", "norm=ghost", "norm.size=8", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config: Any = OmegaConf.create(done.stdout)
    assert (config.norm.size, config.trainer.epochs) == (8, 20.0)
    part = bnlab("train", "data=mnist", "--cfg", "job", "--package", "trainer", cwd=tmp_path)
    assert "epochs: 3.0" in part.stdout
    info = bnlab("train", "--info", "defaults", cwd=tmp_path)
    assert (info.returncode, "norm/batch" in info.stdout) == (0, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "words", "cword", "expected"),
    [
        ("norm=gh", ["norm=gh"], 2, "norm=ghost"),
        ("gh", ["norm", "=", "gh"], 4, "ghost"),
        ("trainer.ep", ["trainer.ep"], 2, "trainer.epochs="),
    ],
)
def test_completion_of_overrides(
    typed: str, words: list[str], cword: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnlab.config.completion import overrides

    monkeypatch.setenv("COMP_WORDS", " ".join(["bnlab", "train", *words]))
    monkeypatch.setenv("COMP_CWORD", str(cword))
    assert expected in overrides(typed)


def test_completion_sees_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnlab.config.completion import overrides

    lines: dict[tuple[str, ...], list[str]] = {
        ("-m", "norm", "=", "batch,gho"): ["batch,ghost"],
        ("-m", "norm", "=", "batch,none,b"): [],
        ("trainer.precision", "=", "b"): ["bfloat16"],
        ("-m", "optim.nesterov", "=", "true,"): ["true,false"],
        ("+experiment", "=", "ca"): ["card"],
        ("norm", "=", "ghost", "norm.s"): ["norm.size=", "norm.size=32"],  # of one alone a shell adds a space
        ("-m", "norm", "=", "batch,ghost", "norm.s"): [],
        ("data", "=", "folder", "data.pat"): ["data.path=", "data.path=..."],
        ("model.wid",): ["model.widths=", *(f"model.widths={w}" for w in ("[64,256,256]", "[32,64]", "[256,256]"))],
        ("model.widths", "=", "[3"): ["[32,64]"],
        ("data.pat",): [],
        ("norm", "=", "ghost", "norm.size", "=", "4", "norm.s"): ["norm.size=", "norm.size=4"],
        ("norm", "=", "gohst", "norm.s"): [],
        ("norm", "="): ["batch", "dyt", "frn", "frozen", "ghost", "group", "instance", "layer", "noisy", "none",
                        "online", "population", "renorm", "rms", "streaming", "sync", "weight_std"],
        ("data.root", "=", "a b", "trainer.ep"): ["trainer.epochs=", "trainer.epochs=20.0"],
        ("trainer.device", "=", "cuda", ":"): [],
    }  # fmt: skip
    for words, expected in lines.items():
        monkeypatch.setenv("COMP_WORDS", "\n".join(["bnlab", "train", *words]))
        monkeypatch.setenv("COMP_CWORD", str(1 + len(words)))
        assert overrides(words[-1]) == expected, words
    monkeypatch.delenv("COMP_WORDS")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "bnlab train norm=ghost norm.s")  # of zsh and fish
    assert overrides("norm.s") == ["norm.size=", "norm.size=32"]


def test_the_shells_completion_script_and_its_call(tmp_path: Path) -> None:
    shell = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # read where the options are made: a fresh process
    script = bnlab("--show-completion", "bash", cwd=tmp_path, fresh=True, **shell)
    assert "_BNLAB_COMPLETE" in script.stdout
    typed = {"train norm=gh": "norm=ghost", "compare --metric test_accuracy,test_l": "test_accuracy,test_loss"}
    typed |= {"train -m norm=ghost,fro": "norm=ghost,frozen", "explain norm.stat_sa": "norm.stat_samples"}
    typed |= {"list nor": "norms", "export t": "tensorboard", "guide ev": "eval"}
    for words, completed in {**typed, "compare --format js": "json"}.items():
        at = {"COMP_WORDS": f"bnlab {words}", "COMP_CWORD": str(len(words.split()))}
        assert bnlab(cwd=tmp_path, _BNLAB_COMPLETE="complete_bash", **at).stdout.split() == [completed]


COMMANDS = (
    *("train", "resume", "search", "compare", "show", "report", "plot", "export", "probe", "recalibrate", "shift"),
    *("bench", "check", "list", "explain", "guide", "doctor", "runs", "claim", "data"),
)


@pytest.mark.slow
def test_help_lists_every_command_and_none_speaks_of_python_types(tmp_path: Path) -> None:
    first, *others = in_turn([["--help"], *([command, "-h"] for command in COMMANDS)], tmp_path, COLUMNS="80")
    assert [line.split()[0] for line in first.stdout.partition("Commands:\n")[2].splitlines()] == list(COMMANDS)
    for done in (first, *others):
        assert done.returncode == 0
        assert not re.search(r"list\[|<\w+|range>", done.stdout), done.stdout
        assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_explain_takes_what_it_says_from_where_it_is_declared(tmp_path: Path) -> None:
    for word, said in {
        "norm.momentum": (
            "weight of the new batch",
            "above 0 and at most 1",
            "0.1",
            "norm=ghost",
            "norm.momentum=0.05",
        ),
        "data.last_batch": ("one of keep, drop, merge", "bnlab train data.last_batch=drop"),
        "seed": ("fixes weights", "bnlab train seed=1"),
        "trainer.accumulate": ("gradients added up", "bnlab train trainer.accumulate=2"),
        "lr": ("optim.lr", "0.003 of adamw; 0.1 of sgd"),
        "acc_gap": ("points", "bnlab compare --metric acc_gap"),
        "norm.size": ("bnlab train norm=ghost norm.size=64",),
        "ghost": ("norm=ghost", "E[x]", "Hoffer", "norm.size", "[32]", "bnlab train norm=ghost"),
        "card": ("bnlab train +experiment=card",),
        "experiment": ("ioffe-mnist", "bnlab train +experiment=airbench"),
    }.items():
        done = bnlab("explain", word, cwd=tmp_path, COLUMNS="200")
        assert all(part in done.stdout for part in said), done.stdout + done.stderr
    unknown = bnlab("explain", "norm.momentun", cwd=tmp_path)
    assert (unknown.returncode, "did you mean norm.momentum?" in unknown.stderr) == (2, True)


def test_list_data_and_doctor(tmp_path: Path) -> None:
    listed = bnlab("list", "norms,models", cwd=tmp_path)
    keys = bnlab("list", "keys", cwd=tmp_path).stdout
    assert all(re.search(rf"^  {key} ", keys, re.MULTILINE) for key in ("norm.momentum", "trainer.epochs", "optim.lr"))
    assert "norm.momentum" not in bnlab("list", cwd=tmp_path).stdout
    assert all(word in listed.stdout for word in ("ghost", "instance", "resnet"))
    assert "did you mean norms?" in bnlab("list", "norm", cwd=tmp_path).stderr
    data = bnlab("data", "list", cwd=tmp_path)
    assert all(word in data.stdout for word in ("digits", "cifar100", "missing", "present"))
    doctor = bnlab("doctor", cwd=tmp_path)
    assert doctor.returncode == 0, doctor.stdout
    assert torch.__version__.partition("+")[0] in doctor.stdout
    assert list((tmp_path / "runs").iterdir()) == []


def test_data_fetch_offline_says_what_to_do(tmp_path: Path) -> None:
    done = bnlab("data", "fetch", "mnist", "--mirror", "http://127.0.0.1:9/", "--timeout", "5", cwd=tmp_path)
    assert done.returncode == 1
    assert "train-images-idx3-ubyte.gz" in done.stderr
    assert "9,912,422" in done.stderr
    assert "data=digits" in done.stderr


def test_a_run_at_chance_is_not_done_without_a_word(tmp_path: Path) -> None:
    lost = bnlab("train", *QUICK, "optim.lr=1e-9", cwd=tmp_path).stderr
    assert " % (not learned: under 50 % in training), " in lost
    assert lost.splitlines()[-2].endswith(" s of training, not learned: under 50 % in training")
    assert "not learned" not in bnlab("train", *QUICK, "optim.lr=0.5", "trainer.steps=200", cwd=tmp_path).stderr


@for_each(
    "command, said",
    [
        (("compare", "--by", ""), "'': no run has such a key"),
        (("compare", "--metric", ""), "metric '': no such metric"),
        (("compare", "--format", ""), "--format '': no such choice"),
        (("compare", "--pivot", ""), "--pivot '': must be ROWxCOL"),
        (("explain", ""), "'': no key, metric or option"),
    ],
)
def test_an_empty_word_is_seen_in_its_message(command: tuple[str, ...], said: str, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "0")
    done = bnlab(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)
