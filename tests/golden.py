"""The golden record: what the trainings and the commands of a commit give, to be held against those of another.

python tests/golden.py DIR [--code CHECKOUT]    # writes the texts of DIR/record; then: diff -r DIR/record OTHER/record
python tests/golden.py --write                  # a new tests/golden.json, the part that the tests hold

Only the command line is used, so that any checkout can be asked. DIR/record/digests.txt has the SHA-256 of the tables
and weights of every run; beside it lies what each command printed. Clock readings and the machine's name are replaced
in the run folders before a command reads them, paths and times in what is printed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_suffix(".json")
TABLES = ("steps.csv", "evals.csv", "layers.csv")
SHORT = "trainer.steps=20 trainer.threads=1 trainer.device=cpu"

SMALL = {"strategies": "-m norm=glob(*) model=mlp,cnn seed=0"}
TRAININGS = {
    **SMALL,
    "resnet": "-m norm=glob(*) model=resnet model.depth=8",
    "seeds": "-m norm=none,batch,ghost,layer model=mlp optim.lr=0.02,0.1 seed=0,1,2 trainer.steps=60 eval.every=0.5",
    "statistics": "-m norm=batch model=cnn eval.stats=running,precise,population,batch,test,mixed,folded",
    "optimizers": "-m norm=batch model=mlp optim=glob(*) schedule=glob(*) optim.decay_norm=true,false",
    "full": "-m norm=batch,ghost model=mlp,cnn measure=full model.dropout=0,0.3 data.shift=0,1 data.flip=true",
    "placement": "-m norm=batch model=mlp,cnn model.placement=pre,post model.norm_every=2 model.norm_rest=none,frozen",
    "models": "-m norm=batch model=cnn model.activation=relu,elu,selu,sigmoid,tanh model.bias=auto,true",
    "inputs": "-m norm=none,batch model=mlp,cnn model.input_norm=none,standardize,batch",
    "data": "-m norm=batch model=cnn data.last_batch=keep,drop,merge data.storage=float32,uint8 data.crop=1",
    "trainer": "-m norm=batch,group model=cnn trainer.precision=float32,bfloat16 trainer.channels_last=true,false",
    "smoothing": "-m norm=layer model=mlp trainer.label_smoothing=0.1 data.train_size=300 data.batch_size=7,64",
    "formula": "-m norm=batch,group model=mlp norm.affine=true,false norm.eps_outside=true,false norm.eps=0.01",
    "momentum": "-m norm=batch,sync,ghost,renorm,streaming model=mlp norm.momentum=null,0.01",
    "ghosts": "-m norm=ghost model=cnn norm.size=5,16 norm.update=pooled,sequential",
    "sampled": "-m norm=batch model=cnn norm.stat_stride=1,2 norm.stat_samples=null,16",
    "axes": "-m norm=layer,rms model=cnn norm.over=sample,channel",
    "groups": "-m norm=group,weight_std model=cnn norm.groups=1,4",
    "population": "-m norm=population model=mlp norm.every=1,5 norm.samples=null,256",
    "through": "-m norm=population model=mlp,cnn norm.through=true norm.samples=256",
    "own": "-m norm=renorm model=cnn norm.r_max=1.5 norm.d_max=0.5 norm.warmup=0.2 norm.ramp=0,0.5",
    "decays": "-m norm=online model=cnn norm.forward_decay=0.9,0.999 norm.backward_decay=0.9,0.99",
    "single": "-m norm=batch model=cnn data.batch_size=1",
    "folder": "-m norm=batch,layer model=cnn data=folder data.path=photos data.size=16 data.valid_size=20",
    "diverged": "-m norm=none model=mlp optim.lr=0.1,1e30 seed=0,1",
    "distributed": "norm=sync model=cnn trainer.distributed=true",  # by torchrun, on two processes
    "parts": "norm=batch model=cnn trainer.distributed=true data.batch_size=50",
}

MODULE = "--module golden_net:make --data digits data.batch_size=64"
NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    net[1].running_mean.copy_(torch.randn(8) / 4)
    return net
"""
# commands by the name of their file; RUN is one run with running statistics
FORMATS = ("table", "plain", "csv", "json", "md")
RUN = "runs/strategies/1"
SMALL_COMMANDS = {
    "compare.csv": "compare runs/strategies --format csv",
    "compare.json": "compare runs/strategies --format json",
    "compare.txt": "compare runs/strategies --where model=cnn",
    "show.txt": f"show {RUN}",
    "probe.json": f"probe {RUN} --format json",
}


def commands() -> dict[str, str]:
    """Return the command lines of the full record by the name of their file; `80:` in front: in 80 columns."""
    lines = dict(SMALL_COMMANDS)
    for sweep in TRAININGS:
        lines[f"compare-{sweep}.json"] = f"compare runs/{sweep} --format json"
    for sweep in ("strategies", "seeds", "diverged", "statistics", "folder"):
        for kind in FORMATS:
            lines[f"compare-{sweep}-{kind}.txt"] = f"compare runs/{sweep} --format {kind}"
        lines[f"compare-{sweep}-80.txt"] = f"80:compare runs/{sweep}"
    seeds = {
        "by": "--by norm",
        "baseline": "--baseline norm=batch",
        "metrics": "--metric test_loss --metric acc_gap --metric kl --metric step_ms",
        "where": "--where norm=batch,ghost --where optim.lr=0.1",
        "sort": "--sort valid_loss --target 0.9",
        "best": "--best-of optim.lr",
        "best-json": "--best-of optim.lr --format json",
        "best-csv": "--best-of optim.lr --format csv",
        "best-pivot": "--best-of optim.lr --pivot 'norm x trainer.steps'",
        "typo": "--metric test_acuracy",
    }
    lines |= {f"seeds-{name}.txt": f"compare runs/seeds {options}" for name, options in seeds.items()}
    for kind in FORMATS:
        lines[f"pivot-{kind}.txt"] = f"compare runs/strategies --pivot 'norm x model' --format {kind}"
        lines[f"pivot-seeds-{kind}.txt"] = f"compare runs/seeds --pivot 'norm x optim.lr' --format {kind}"
        lines[f"probe-{kind}.txt"] = f"probe {RUN} --format {kind}"
        lines[f"probe-module-{kind}.txt"] = f"probe {MODULE} --format {kind}"
        lines[f"recalibrate-{kind}.txt"] = f"recalibrate {RUN} --out new-{kind}.pt --format {kind}"
        lines[f"shift-{kind}.txt"] = f"shift {RUN} --severity 1,5 --format {kind}"
        lines[f"check-{kind}.txt"] = f"check norm=ghost norm.size=8 --format {kind}"
        lines[f"check-module-{kind}.txt"] = f"check --module torch.nn:BatchNorm2d --format {kind}"
        lines[f"check-all-{kind}.txt"] = f"check --format {kind}"
    lines |= {
        "pivot-80.txt": "80:compare runs/strategies --pivot 'norm x model'",
        "compare-all.txt": "compare",
        "compare-all-80.txt": "80:compare",
        "show-80.txt": f"80:show {RUN}",
        "show-layer.txt": "show runs/strategies/10",
        "show-full.txt": "show runs/full/15",
        "show-diverged.txt": "show runs/diverged/2",
        "show-population.txt": "show runs/population/0",
        "show-sweep.txt": "show runs/seeds",
        "probe-80.txt": f"80:probe {RUN}",
        "probe-full.txt": "probe runs/full/15",
        "probe-layer.txt": "probe runs/strategies/10 --samples 200",
        "recalibrate-80.txt": f"80:recalibrate {RUN} --out new-80.pt",
        "recalibrate-precise.txt": f"recalibrate {RUN} --out new-precise.pt --stats precise --samples 500",
        "recalibrate-module.txt": f"recalibrate {MODULE} --out new-module.pt",
        "recalibrate-layer.txt": "recalibrate runs/strategies/10",
        "shift-80.txt": f"80:shift {RUN} --shift noise,rotation",
        "shift-batch.txt": f"shift {RUN} --shift contrast --stats running,batch --batch-size 16 --format csv",
        "shift-module.txt": f"shift {MODULE} --shift noise --severity 3",
        "check-80.txt": "80:check norm=batch",
        "check-all-80.txt": "80:check",
        "list.txt": "list",
        "list-80.txt": "80:list",
        "list-norms.txt": "list norms metrics",
        "data-list.txt": "data list",
        "doctor.txt": "doctor",
        "export-csv.txt": "export csv runs/seeds runs/strategies runs/diverged",
        "bench.csv": "bench norm=none,batch model=mlp bench.seconds=2 --format csv",
        "bench.json": "bench norm=none,batch model=mlp bench.seconds=2 --format json",
        "resume-nothing.txt": "resume runs/seeds",
        "resume-run.txt": "resume runs/strategies/1",
        "dry-run.txt": f"train -m norm=glob(*) model=mlp seed=0,1 --dry-run {SHORT}",
        "cfg.txt": "train norm=ghost --cfg job",
        "cfg-all.txt": "train norm=ghost --cfg job --package optim",
        "info.txt": "train --info defaults",
        "version.txt": "--version",
        "help.txt": "--help",
        "error-norm.txt": "train norm=bach",
        "error-key.txt": "train optim.learning_rate=0.1",
        "error-range.txt": "train norm.momentum=3",
        "error-type.txt": "train trainer.steps=many",
        "error-misfit.txt": "train norm=frn model=mlp",
        "error-groups.txt": "train norm=group norm.groups=7",
        "error-data.txt": "train data=mnist data.root=nowhere",
        "error-syntax.txt": "train norm=batch seed",
        "error-path.txt": "compare nowhere",
        "error-run.txt": "show nowhere",
        "error-list.txt": "list norm",
        "error-check.txt": "check norm=frm",
        "error-pivot.txt": "compare runs/seeds --pivot norm",
        "error-where.txt": "compare runs/seeds --where norm=frn",
        "error-shift.txt": f"shift {RUN} --severity 9",
        "error-module.txt": "probe --module nowhere:make --data digits",
    }
    for command in ("train", "resume", "compare", "show", "export", "probe", "recalibrate", "shift", "bench", "check"):
        lines[f"help-{command}.txt"] = f"{command} --help"
    return lines


# what differs by run in a printed line
PRINTED = (
    (r"\d{8}-\d{6}((?:-[a-z]+)?-(?:run|sweep|bench))-[0-9a-f]{6}", r"TIME\1-ID"),
    (r"(step_ms|train_seconds)=[\d.e+-]+", r"\1=TIME"),
    (r", [\d.,]+ s(, \d+:\d\d(:\d\d)? left in all)?$", ", TIME"),
)


def record(place: Path, code: Path, trainings: dict[str, str], lines: dict[str, str]) -> Path:
    """Train and run all commands in `place` with the package of `code`; return the folder of what they gave."""
    (place / "golden_net.py").write_text(NET)
    _draw_photos(place / "photos")
    out = place / "record"
    out.mkdir()
    digests: list[str] = []
    for name, overrides in trainings.items():
        text = _printed(place, code, f"train {overrides} {SHORT} name={name}")
        (out / f"train-{name}.txt").write_text(text)
        folder = next((place / "runs").glob(f"*-{name}-*"), None)
        if folder is None:
            raise SystemExit(f"nothing was trained:\n{text}")
        folder = folder.rename(place / "runs" / name)
        for run in sorted(_runs(folder), key=lambda run: (len(run.name), run.name)):
            digests += digests_of(run, f"{name}/{run.name}")
            replace_clocks(run, len(digests) * 10**12)  # nanoseconds: one after the other
    (out / "digests.txt").write_text("\n".join(digests) + "\n")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda item: (out / item[0]).write_text(_printed(place, code, item[1])), lines.items()))
    for path in (place / "export").rglob("*.csv"):
        path.rename(out / f"export-{path.name}")
    return out


def digests_of(run: Path, name: str) -> list[str]:
    """Return lines: what the run was, and the SHA-256 of its tables and of its weights, whose names count."""
    status = json.loads((run / "status.json").read_text())
    config = status["config"]
    lines = [f"{name} norm={config['norm']['name']} model={config['model']['name']} {status['state']}"]
    lines.append(f"  identity {status['identity']}")
    lines += [f"  {table} {sha256((run / table).read_bytes()).hexdigest()}" for table in TABLES]
    weights = sha256()
    if (run / "checkpoint.pt").exists():
        for key, value in torch.load(run / "checkpoint.pt", weights_only=True)["model"].items():
            weights.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            weights.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return [*lines, f"  weights {weights.hexdigest()}"]


def replace_clocks(run: Path, order: int) -> None:
    """Put chosen values in place of everything that a clock or the machine's name gave, the same for the same run."""
    status = json.loads((run / "status.json").read_text())
    pace = 1 + zlib.crc32(status["identity"].encode()) % 1000 / 1000  # ms a step
    for path in run.glob("*.json"):
        known = {"order": order, "pid": 1, "started": "2026-01-01T00:00:00+00:00"} if path.name == "status.json" else {}
        path.write_text(json.dumps(_without_clocks(json.loads(path.read_text()), pace) | known))
    with (run / "times.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (run / "times.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["step"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: pace if key.endswith("_ms") else value for key, value in row.items()} for row in rows)


def _without_clocks(tree: dict[str, Any], pace: float) -> dict[str, Any]:
    for key, value in tree.items():
        if key == "environment":
            tree[key] = {name: _of_no_machine(name, entry) for name, entry in value.items()}
        elif key == "curve":
            tree[key]["seconds"] = [step * pace / 1000 for step in value["step"]]
        elif key.endswith("_ms") and isinstance(value, dict):
            tree[key] = {name: pace * (1 + index / 10) for index, name in enumerate(value)}
        elif key.endswith(("_seconds", "_per_second", "discrepancy_share")) and value is not None:
            tree[key] = pace
    return tree


def _of_no_machine(name: str, value: object) -> object:
    if name == "git_dirty":  # of the checkout that is tried, which may be at work
        return False
    return f"some {name}" if isinstance(value, str) and name not in ("device", "data_fingerprint") else value


def _runs(folder: Path) -> list[Path]:
    return [path.parent for path in folder.rglob("status.json")]


def _printed(place: Path, code: Path, line: str) -> str:
    """Run one command line and return its exit code, stdout and stderr without what differs by run."""
    columns, line = line.split(":", 1) if line.startswith("80:") else ("120", line)
    python = [sys.executable]
    if "trainer.distributed=true" in line:
        python += ["-m", "torch.distributed.run", "--nproc-per-node=2"]
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING")}
    done = subprocess.run(
        [*python, "-m", "bnlab", *shlex.split(line)],
        cwd=place,
        env=kept | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "COLUMNS": columns},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    text = f"$ bnlab {line}\n{done.stdout}--- stderr\n{done.stderr}--- exit code {done.returncode}\n"
    text = text.replace(str(place), "PLACE").replace(str(code), "CODE")
    if line.startswith(("doctor", "bench")):
        text = re.sub(r"\b\d[\w.,-]*", "N", text)  # versions, sizes, figures
        text = re.sub(r"^bench: round.*\n", "", text, flags=re.MULTILINE)
    for pattern, put in PRINTED:
        text = re.sub(pattern, put, text, flags=re.MULTILINE)
    return text


def _draw_photos(folder: Path) -> None:
    """Write 150 small grey and coloured pictures of three classes."""
    generator = np.random.default_rng(0)
    for index in range(150):
        kind = index % 3
        path = folder / f"class{kind}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 128, (16, 16, 3), dtype=np.uint8)
        pixels[:, :, kind] += 100
        Image.fromarray(pixels).save(path)


def made_with() -> dict[str, str]:
    """Return what the digits of a training depend on besides the code."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "machine": platform.machine()}


def small_record() -> dict[str, Any]:
    """Return the part that the tests hold: digests of runs, and SHA-256 of what a few commands print."""
    with tempfile.TemporaryDirectory() as place:
        out = record(Path(place), ROOT, SMALL, SMALL_COMMANDS)
        outputs = {name: sha256((out / name).read_bytes()).hexdigest() for name in SMALL_COMMANDS}
        return {"made_with": made_with(), "outputs": outputs, "runs": (out / "digests.txt").read_text().splitlines()}


def main() -> None:
    """Write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", metavar="DIR", nargs="?", type=Path, help="an empty folder for the full record")
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout to ask; default: this one")
    parser.add_argument("--write", action="store_true", help="write tests/golden.json")
    options = parser.parse_args()
    if options.write:
        RECORD.write_text(json.dumps(small_record(), indent=1) + "\n")
    if options.place:
        options.place.mkdir(parents=True)
        record(options.place.resolve(), options.code.resolve(), TRAININGS, commands())


if __name__ == "__main__":
    main()
