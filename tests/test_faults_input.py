"""Input that is wrong or means harm, as the command line meets it: files, names, data, downloads, devices.

The rows of /FAULTS that these tests show stand in test_faults.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers_cli import QUICK, Done, bnlab, environment, in_turn
from helpers_download import HTML, Handler, Server
from helpers_images import bomb
from helpers_runs import make_run
from PIL import Image


def refused(done: Done, message: str, code: int = 2) -> None:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr


# ---------------------------------------------------------------- values, names and images: all in one process

VALUES = {
    "optim.lr=nan": "optim.lr=nan: must be above 0 and finite",
    "optim.lr=1e400": "optim.lr=inf: must be above 0 and finite",
    "+norm=batch": "norm: is chosen already\nwrite norm=VALUE, without +",
    "seed=${oc.env:NO_SUCH}": "seed: \"Environment variable 'NO_SUCH' not found\"\nwrite the value itself",
    "seed=${seed}": "seed: Recursive interpolation detected",
    "name=${nosuch:1}": "name: Unsupported interpolation type nosuch",
    "hydra.launcher.n_jobs=2": "the chosen launcher has no such key\nchoose another, as hydra/launcher=joblib",
    "optim.lr=-1": "optim.lr=-1: must be above 0",
    "trainer.epochs=0": "trainer.epochs=0: must be above 0 and at most 1e+06",
    "trainer.epochs=1e20": "trainer.epochs=1e+20: must be above 0 and at most 1e+06",
}
NAMES = [
    *([f"name={name}"] for name in ("../x", "/abs", "a" * 300, "-rf", "'a\u202eb'", "''")),
    ["recipe=nul", "--config-dir", "more"],
]
IMAGES = ("bad", "hollow", "single")
UNUSUAL = ["data=folder", "data.path=unusual", "data.size=8", "data.valid_size=4", "data.batch_size=8"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of damaged data and odd images."""
    place = tmp_path_factory.mktemp("home")
    (place / "more" / "recipe").mkdir(parents=True)
    (place / "more" / "recipe" / "nul.yaml").write_text('# @package _global_\nname: "a\\0b"\n')
    raw = place / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"ab")
    pictures(place / "bad", 3)
    for name in ("a.jpg", os.fsdecode(b"\xff\x1b.jpg")):
        (place / "bad" / "cat" / name).write_text("no image")
    bomb(place / "bad" / "dog" / "bomb.png", 60_000, 60_000)
    pictures(place / "hollow", 1)
    (place / "hollow" / "empty").mkdir()
    (place / "single" / "cat").mkdir(parents=True)
    pictures(place / "unusual", 20)
    cats = place / "unusual" / "cat"
    Image.new("RGB", (1, 1), (9, 9, 9)).save(cats / "dot.png")
    Image.new("CMYK", (8, 8), (9, 99, 9, 0)).save(cats / "print.jpg")
    Image.new("I;16", (8, 8), 51_400).save(cats / "deep.png")
    Image.new("RGB", (8, 8)).save(cats / os.fsdecode(b"\xff\x1b.png"))
    return place


def pictures(folder: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def answers(home: Path) -> dict[str, Done]:
    """What `train` says to each; of those that are refused nothing is left."""
    before = {path.name for path in home.iterdir()}
    refused_ones = [[key] for key in VALUES] + NAMES
    refused_ones += [["data=folder", f"data.path={name}"] for name in IMAGES]
    refused_ones += [["data=mnist", "data.root=mnist"], ["data=folder", "data.path='~no_such_user/x'"]]
    training = [*UNUSUAL, *(key for key in QUICK if not key.startswith("data."))]
    found = in_turn([["train", *arguments] for arguments in [*refused_ones, training]], home)
    assert {path.name for path in home.iterdir()} - before == {"runs", "data"}, "the last one's"
    assert len(list(home.glob("runs/2*"))) == 1
    return {" ".join(done.args[1:]): done for done in found}


def test_values_out_of_range_name_key_value_and_range(answers: dict[str, Done]) -> None:
    for key, message in VALUES.items():
        refused(answers[key], message)


def test_names_that_would_lead_elsewhere(answers: dict[str, Done]) -> None:
    for arguments in NAMES:
        done = answers[" ".join(arguments)]
        refused(done, "must be up to 80 letters, digits and ._+=,-")
        assert "\u202e" not in done.stderr
        assert "\0" not in done.stderr


def test_a_truncated_file_of_mnist(answers: dict[str, Done]) -> None:
    done = answers["data=mnist data.root=mnist"]
    refused(done, "train-images-idx3-ubyte: 2 bytes, expected 47,040,016", code=1)


def test_the_home_of_nobody_is_no_folder(answers: dict[str, Done]) -> None:
    refused(answers["data=folder data.path='~no_such_user/x'"], "~no_such_user/x: no such folder")


def test_a_current_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import os; os.rmdir(os.getcwd()); from bnlab.cli import main; main()", "doctor"]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    refused(Done(words, done.returncode, done.stdout, done.stderr), "the current folder has been removed\ncd to", 1)


def test_images_that_cannot_be_used_are_all_named_at_the_start(answers: dict[str, Done]) -> None:
    bad, hollow, single = (answers[f"data=folder data.path={name}"] for name in IMAGES)
    named = sorted(line.partition(": ")[0] for line in bad.stderr.splitlines()[1:])
    assert named == ["cat/\\xff\\x1b.jpg", "cat/a.jpg", "dog/bomb.png"]
    refused(hollow, "empty: no images in this class", code=1)
    refused(single, "1 class folders", code=1)
    assert "at least 2 are needed" in single.stderr
    assert (bad.returncode, bad.stdout, "Traceback" in bad.stderr) == (1, "", False)


def test_unusual_images_are_converted_and_trained_on(answers: dict[str, Done]) -> None:
    done = next(answer for keys, answer in answers.items() if "unusual" in keys)
    assert (done.returncode, done.stdout.split()[1]) == (0, "done"), done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.slow
def test_options_of_commands_are_checked_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong = {
        ("train", "--timeout", "-1"): "--timeout -1: must be at least 0.1\n",
        ("train", "--timeout", "nan"): "--timeout nan: must be at least 0.1\n",
        ("train", "--timeout", "inf"): "--timeout inf: must be finite\n",
        ("data", "fetch", "mnist", "--timeout", "inf"): "--timeout inf: must be from 0.1 to 86400\n",
        ("data", "fetch", "mnist", "--timeout", "1e300"): "--timeout 1e300: must be from 0.1 to 86400\n",
        ("train", "--timeout", "soon"): "--timeout soon: must be a number\n",
        ("train", "--retries", "-1"): "--retries -1: must be at least 0\n",
        ("train", "--retries", "1.5"): "--retries 1.5: must be a whole number\n",
        ("train", "--cfg", "jobs"): "--cfg jobs: no such choice; did you mean job?\nthere are: job, hydra, all\n",
        ("train", "-rf"): "-r",
        ("train", "--config-dir", "nowhere"): "--config-dir nowhere: is not a folder\n",
        ("train", "x" * 300 + "=1"): f"{'x' * 300}: no such key; it has 300 letters\n",
        ("train", "norm=" + "x" * 5000): " … ",
        ("train", "--dry-run", "model=mlp", f"model.widths={[2**16] * 64}"): "by model.widths",
        ("train", "--dry-run", "model=mlp", "model.widths=[99999999999]"): "at most 65536 (units of each hidden layer)",
        ("train", "--dry-run", "data.shift=1000000000000"): "data.shift=1000000000000: must be below 8, ",
        ("resume",): "FOLDER",
        ("resume", "nowhere"): "nowhere: is not a folder",
        ("resume", "empty"): "empty: holds neither a run nor a sweep",
        ("export",): "csv|parquet|tensorboard|mlflow",
        ("export", "xml"): "xml: no such choice\nthere are: csv, parquet, tensorboard, mlflow\n",
        ("export", "csv", "nowhere"): "nowhere: does not exist",
        ("compare", "--target", "2"): "--target 2: must be from 0 to 1\n",
        ("compare", "-f", "jsn"): "--format jsn: no such choice; did you mean json?\nthere are: table, plain, csv",
        ("shift", "--severity", "6"): "--severity 6: no such choice",
    }
    for done, message in zip(in_turn(list(wrong), tmp_path), wrong.values(), strict=True):
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert message in done.stderr
        if message.endswith("\n"):
            assert done.stderr == message
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


# ---------------------------------------------------------------- configurations from a folder

BOMB = "name: batch\na: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "object": ("x: !!python/object/apply:os.system ['touch made']\n", "the tag tag:yaml.org,2002:python/object/apply"),
    "module": ("x: !!python/module:antigravity\n", "the tag tag:yaml.org,2002:python/module"),
    "bomb": (BOMB, "stands for more than 10,000 values"),
    "itself": ("a: &a [*a]\n", "the alias *a stands inside of what it names"),
    "deep": ("a: " + "[" * 100_000, "is nested more than 20 levels deep"),
    "large": ("name: batch\nx: " + "y" * 50_000_000, "cannot be read: File too large"),
    "outside": ("defaults:\n  - ../../etc/secret\nname: batch\n", "leads out of"),
    "elsewhere": ("defaults:\n  - /../etc/secret\nname: batch\n", "leads out of"),
    "link": ("", "leads out of"),
    "device": ("", "norm=device: no such option"),
    "fifo": ("", "norm=fifo: no such option"),
    "list": ("- 1\n", "is no mapping of keys to values"),
    "torn": ("name: [", "is no YAML"),
    "bytes": ("name: \x00\n", "is no YAML"),
    "twice": ("name: a\nname: b\n", "norm/twice.yaml: "),
    "target": ("name: batch\n_target_: os.system\n", "may not name Python objects"),
    "callback": (
        "# @package _global_\nhydra:\n  callbacks:\n    x: {_target_: pathlib.Path.touch, self: made}\n",
        "hydra.callbacks.x._target_=pathlib.Path.touch: a configuration may not name Python objects",
    ),
    "logging": (
        "# @package _global_\nhydra:\n  job_logging:\n    handlers:\n      x: {'()': os.system, command: touch made}\n",
        "hydra.job_logging.handlers.x.()=os.system: a configuration may not name Python objects",
    ),
}


@pytest.mark.slow
def test_a_folder_of_configurations_that_mean_harm(tmp_path: Path) -> None:
    norms = tmp_path / "conf" / "norm"
    norms.mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "secret.yaml").write_text("secret: 42\n")
    for name, (text, _) in HOSTILE.items():
        if text:
            (norms / f"{name}.yaml").write_text(text)
    (norms / "link.yaml").symlink_to(tmp_path / "etc" / "secret.yaml")
    (norms / "device.yaml").symlink_to("/dev/zero")
    os.mkfifo(norms / "fifo.yaml")
    commands = [["train", "--config-dir", "conf", f"norm={name}", "--cfg", "job"] for name in HOSTILE]
    commands += [["train", "--config-dir", "conf", "norm=logging"]]  # where something could be executed, it would be
    commands += [["train", "norm=../../../../../../../../../../../../.." + str(norms / "list")]]
    wanted = [message for _, message in HOSTILE.values()]
    wanted += ["may not name Python objects", "leads out of"]
    for done, message in zip(in_turn(commands, tmp_path), wanted, strict=True):
        refused(done, message)
        assert "42" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"conf", "etc"}


# ---------------------------------------------------------------- downloads and tables


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        name = "train-images-idx3-ubyte.gz"
        made.files, made.asked, made.script, made.done = {name: b"x" * 4000}, [], ["serve"], threading.Event()
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.done.set()
        made.shutdown()
        thread.join()


def fetched(url: str, cwd: Path) -> Done:
    """Fetch; without the line of the progress."""
    done = bnlab("data", "fetch", "mnist", "--mirror", url, "--timeout", "0.5", cwd=cwd, no_proxy="*")
    done.stderr = "".join(line for line in done.stderr.splitlines(keepends=True) if " of 11.6 MB" not in line)
    return done


@pytest.mark.slow
def test_downloads_that_come_to_nothing(server: Server, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    part = tmp_path / "data" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz.part"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        offline = f"http://127.0.0.1:{unused.getsockname()[1]}"
        cases = {"offline": "no connection (Connection refused)", "gone": "HTTP status 404"}
        cases |= {"html": f"checksum differs: {len(HTML)} bytes of HTML", "garbage": "checksum differs: 4,000 bytes"}
        cases |= {"silent": "no answer in 0.5 s", "stall": "stalled: nothing came for 0.5 s"}
        for word, reason in cases.items():
            server.script = [word]
            place = offline if word == "offline" else url
            done = fetched(place, tmp_path)
            refused(done, reason, code=1)
            for there in (f"{place}/train-images-idx3-ubyte.gz", "9,912,422 bytes", "data=digits", str(part)[:-5]):
                assert there.removeprefix(f"{tmp_path}/") in done.stderr
            left = [path.name for path in part.parent.iterdir()]
            assert left == ([part.name] if word == "stall" else [])
    assert part.stat().st_size == 2000
    server.script = ["gone"]
    fetched(url, tmp_path)
    assert server.asked[-1] == ("/train-images-idx3-ubyte.gz", "bytes=2000-"), "goes on from what came"
    assert part.stat().st_size == 2000


def test_the_tables_of_others_are_never_guessed_at(tmp_path: Path) -> None:
    """No command imports a CSV file of another program; `export` reads tables that lie in run folders."""
    header = b"step,epoch,loss,lr,finite\n"
    bad = {
        "ragged": b"1,0,2.5,0.1,1\n2,0,2.5\n3,0,2.5,0.1,1\n",
        "wide": b"1,0,2.5,0.1,1\n2,0,2.5,0.1,1,7\n",
        "empty": b"1,0,2.5,0.1,1\n2,0,,0.1,1\n",
        "binary": b"1,0,2.5,0.1,1\n2,0,\x00\xff\xfe,0.1,1\n",
        "huge": b"1,0,2.5,0.1,1\n2,0," + b"9" * 5_000_000 + b"\n",
        "quoted": b'1,0,2.5,0.1,1\n2,0,"2.5,0.1,1\n',
    }
    for seed, (name, rows) in enumerate(bad.items()):
        (make_run(tmp_path / "runs" / name, seed=seed) / "steps.csv").write_bytes(header + rows)
    done = bnlab("export", "csv", "--strict", cwd=tmp_path)
    assert done.returncode == 1
    told = dict(line.split(": unreadable ", 1) for line in done.stderr.splitlines() if ": unreadable " in line)
    named = {name: told[f"runs/{name}"] for name in bad}
    assert all("line 3" in reason for reason in named.values()), named
    assert "Traceback" not in done.stderr
    assert max(map(len, done.stderr.splitlines())) < 300
    assert not list(tmp_path.glob("export/**/*.csv"))


def test_what_is_named_and_is_not_there_is_a_mistake_and_what_is_damaged_is_none(tmp_path: Path) -> None:
    """Exit code 2 whatever the command and the thing; 1 for what is damaged, or is not on this machine yet."""
    run = str(make_run(tmp_path / "run").relative_to(tmp_path))
    (tmp_path / "damaged.pt").write_bytes(b"no weights")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (make_run(tmp_path / "torn") / "status.json").write_text("{")
    (make_run(tmp_path / "sweep") / "sweep.json").write_text("{")
    own, three = ["--module", "torch.nn:Flatten", "--data", "digits"], ("probe", "recalibrate", "shift")
    mistaken = [
        (["train", "data=folder", "data.path=nowhere"], "data.path=nowhere: no such folder"),
        (["train", "--cfg", "job", "-p", "nothing"], "--package nothing: no such part"),
        (["bench", "data=folder", "data.path=nowhere"], "data.path=nowhere: no such folder"),
        *(([command, "nowhere"], "nowhere") for command in (*three, "compare", "resume")),
        (["shift", *own, "--checkpoint", "nowhere.pt"], "nowhere.pt: cannot be read"),
        (["probe", run, "--out", f"{'x' * 300}.html"], "File name too long"),
        (["data", "fetch", "mnist", "--root", "file"], "mnist: cannot write file: File exists"),
    ]
    damaged = [
        (["train", "-m", "data=mnist", "seed=0,1"], "mnist: not in data"),
        (["search", "optim.lr", "data=mnist"], "mnist: not in data"),
        *(([command, run], "its checkpoint was removed") for command in three),
        (["probe", run, "--checkpoint", "damaged.pt"], "damaged.pt: refused"),
        (["recalibrate", run, "--out", "file/new.pt"], "file is no folder"),
        (["show", "torn"], "status.json"),
        (["resume", "sweep"], "sweep.json: cannot be read"),
        *(
            ([command, "empty"], "no runs in empty")
            for command in ("probe", "recalibrate", "shift", "compare", "report")
        ),
        (["export", "csv", "empty"], "no runs to export in empty"),
        (["plot", "differences", "empty", "--out", "a.svg"], "no runs in empty"),
        (["export", "csv", run, "--out", "file/x"], "file is no folder"),
    ]
    ended = in_turn([command for command, _ in mistaken + damaged], tmp_path)
    for number, ((command, message), done) in enumerate(zip(mistaken + damaged, ended, strict=True)):
        assert (done.returncode, done.stdout) == (1 + (number < len(mistaken)), ""), (command, done.stderr)
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_mistake_that_torch_is_not_needed_for_is_answered_without_it(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (make_run(tmp_path / "sweep" / "0") / "checkpoint.pt").write_bytes(b"")
    wrong = [["check", "norm=nothing"], ["check", "norm=batch", "--module", "a:b"], ["check", "--out", "a.pdf"]]
    wrong += [["shift", "run", option, "0"] for option in ("--shift", "--severity", "--stats", "--batch-size")]
    wrong += [["shift", "sweep", "--out", "a.html"], ["probe", "sweep", "eval.stats=batch", "optim.lr=1"]]
    wrong += [["recalibrate", "run", "--out", "nowhere/a.pt"], ["recalibrate", "sweep", "optim.lr=1"]]
    wrong += [["search", "nothing"], ["search", "optim.lr", "--factor", "0"], ["search", "optim.lr=3"]]
    for command in ("probe", "shift", "recalibrate"):
        wrong += [[command], [command, "nowhere"], [command, "run", "optim.lr=1"], [command, "run", "more"]]
        wrong += [[command, "run", *more] for more in (["--key", "a"], ["--output", "a"], ["--data", "digits"])]
        wrong += [[command, "run", "--checkpoint", "nowhere.pt"], [command, "sweep", "--checkpoint", "sweep"]]
        wrong += [[command, "--module", "a:b", "--data", "nothing"], [command, "--module", "a:b", "optim.lr=1"]]
    code = (
        "import json, sys\nfrom bnlab.cli import main\n"
        "for words in json.loads(sys.argv.pop()):\n"
        "    sys.argv[1:] = words\n"
        "    try:\n        main()\n    except SystemExit as end:\n"
        "        print(words, end.code) if end.code != 2 or 'torch' in sys.modules else None\n"
    )
    whole = [sys.executable, "-c", code, json.dumps(wrong)]
    done = subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert len(done.stderr) > 40 * len(wrong)
