"""`bnlab doctor`: what a run needs of this machine, looked at one by one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from bnlab.cli.options import Root
from bnlab.errors import BnlabError

LITTLE_SPACE = 2 * 2**30  # bytes


def doctor(root: Root = Path("data")) -> None:
    """Look at what runs need here: versions, device, threads, data, disk, a write test."""
    from bnlab.record.latest import runs_folder
    from bnlab.report.listing import show_findings

    findings = []
    for finding in examine(runs_folder(), root):
        show_findings([(finding.subject, finding.state, finding.text)])
        findings.append(finding)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Diagnosis:
    """One line of the report; `bad` means that a run would fail."""

    subject: str
    state: Literal["ok", "note", "bad"]
    text: str


def examine(runs: Path, data_root: Path) -> Iterator[Diagnosis]:
    """Yield what is found, one line a subject."""
    yield from _versions()
    yield from _devices()
    yield _configurations()
    yield _writing(runs)
    yield _space(runs)
    yield from _data(data_root)


def _versions() -> Iterator[Diagnosis]:
    from bnlab.record.environment import environment

    here = environment()
    yield Diagnosis("bnlab", "ok", f"{here['bnlab']}, Python {here['python']}, {here['os']}")
    for package in ("torch", "torchvision", "hydra-core"):
        version = here[package]
        yield Diagnosis(package, "bad" if version == "not installed" else "ok", version)
    yield Diagnosis("processor", "ok", f"{here['cpu']}, {here['cores']} cores")


def _devices() -> Iterator[Diagnosis]:
    try:
        import torch
        import torchvision
    except Exception as error:  # a broken build raises anything from ImportError to OSError and RuntimeError
        yield Diagnosis(
            "import", "bad", f"{type(error).__name__}: {error}; let pip resolve torch and torchvision together"
        )
        return
    from bnlab.experiment import gpu_lock
    from bnlab.experiment.setup import gpu_name
    from bnlab.training.allocator import keep_freed_memory

    yield Diagnosis("threads", "ok", f"{torch.get_num_threads()} for torch; trainer.threads sets it")
    count = torch.cuda.device_count()
    for index in range(count):
        about = torch.cuda.get_device_properties(index)
        gpu = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
        try:
            held = gpu_lock.held(gpu_name(index), gpu_lock.lock_folder())
            yield Diagnosis(f"cuda:{index}", "ok", f"{gpu}, {'a job holds it' if held else 'free'}")
        except BnlabError as error:
            yield Diagnosis(f"cuda:{index}", "bad", f"{gpu}; {str(error).replace(chr(10), '; ')}")
    if not count:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        yield Diagnosis("cuda", "note", f"no device; {built}; runs use the CPU")
    kept = keep_freed_memory()
    yield Diagnosis("allocator", "ok" if kept else "note", "keeps freed memory" if kept else "not glibc: left as it is")
    assert torchvision.__version__


def _configurations() -> Diagnosis:
    from bnlab.config.files import conf_dir, groups

    try:
        options = groups()
    except BnlabError as error:
        return Diagnosis("conf", "bad", str(error))
    return Diagnosis("conf", "ok", f"{conf_dir()}: {', '.join(f'{len(o)} {g}' for g, o in options.items())}")


def _writing(runs: Path) -> Diagnosis:
    from bnlab.record.plain_files import write_bytes

    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="doctor-", dir=runs) as trial:
            write_bytes(Path(trial) / "written", b"ok")
    except (BnlabError, OSError) as error:
        return Diagnosis("runs", "bad", str(error).partition("\n")[0])
    return Diagnosis("runs", "ok", f"{runs.resolve()} can be written")


def _space(runs: Path) -> Diagnosis:
    free = shutil.disk_usage(runs if runs.exists() else Path()).free
    return Diagnosis("disk", "ok" if free > LITTLE_SPACE else "note", f"{free / 2**30:.1f} GiB free")


def _data(root: Path) -> Iterator[Diagnosis]:
    from bnlab.data.dataset import datasets

    for name in datasets:
        there = datasets[name].source.status(root)
        if there.state == "damaged":
            path, fault = next(pair for pair in there.faults if pair[1] != "missing")
            yield Diagnosis(f"data {name}", "note", f"damaged: {root / path}: {fault}")
        elif there.state == "missing":
            yield Diagnosis(f"data {name}", "note", f"not in {root}; bnlab data fetch {name} --root {root}")
        elif there.state == "present":
            yield Diagnosis(f"data {name}", "ok", "there")
