"""Must all examples wait for the slowest? Worker processes train together, one of them late by a known delay.

torchrun starts the workers (`parallel_worker.py`) and they end with this process, whatever ends it: their stdin is a
pipe that only it holds open.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from bnlab.bench.arms import Section, read
from bnlab.bench.engine import BenchConfig
from bnlab.bench.straggler_result import LateStep, ParallelTime
from bnlab.data.batches import batch_sizes
from bnlab.distributed import Workers
from bnlab.errors import ConfigError, EnvironmentFault, IncompatibleError
from bnlab.experiment.config import Config
from bnlab.experiment.setup import bundle_of, device_of, model_of
from bnlab.measure.refresh import bnlab_layers
from bnlab.record.plain_files import write_bytes
from bnlab.record.run_folder import fresh_folder
from bnlab.report.console import messages, results
from bnlab.report.rows import TIDY_FORMATS, as_csv
from bnlab.report.straggler_report import parallel_table, progress

DEFAULT_NORMS = "norm=sync,batch,group"
DEFAULT_DELAYS = "0,5,20"
LONGEST_DELAY = 10_000.0  # ms
WORKER = "bnlab.bench.straggler_worker"
STOP_SECONDS = 45.0  # torchrun gives a worker 30 s to end by itself


def parallel(overrides: Sequence[str], workers: int, delay: str, form: str) -> None:
    """Print and record how a late worker delays the others; `form` is `table` or one of TIDY_FORMATS.

    Errors: ConfigError and IncompatibleError before anything is started; EnvironmentFault when a worker fails, dies or
    hangs.
    """
    delays = delays_of(delay)
    own = [] if any(line.startswith("norm=") for line in overrides) else [DEFAULT_NORMS]
    limits, sections, left_out = read([*overrides, *own])
    err = messages()
    for line in left_out:
        err.say(line)
    configs = [arm.config for section in sections for arm in section.arms]
    for config in configs:
        check(config, workers, max(delays))
    threads = max(config.trainer.threads or 1 for config in configs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads * workers > cores and device_of(configs[0].trainer.device).type == "cpu":
        err.say(
            f"warning: {workers} workers of {threads} thread(s) on {cores} core(s): they wait for each other's cores"
        )
    with progress(err, workers) as watch:
        found = run_workers(plan_of(sections, delays, limits), workers, threads, watch)
    rows = [row for part in found for row in figures(part)]
    folder = fresh_folder(Path("runs"), "bench")
    write_bytes(folder / "bench.csv", as_csv({}, rows).encode())
    out = results()
    if form != "table":
        out.emit(TIDY_FORMATS[form]({"record": str(folder)}, rows))
    for number, part in enumerate(found if form == "table" else ()):
        if number:
            out.say("")
        out.print(parallel_table(part, out))
    err.say(f"recorded in {folder}")


def delays_of(text: str) -> list[float]:
    """Return the delays of `0,5,20` in ms, ascending and 0 among them. Errors: ConfigError."""
    try:
        delays = {float(part) for part in text.split(",")}
    except ValueError:
        raise ConfigError(f"--delay={text}: must be milliseconds such as {DEFAULT_DELAYS}") from None
    if not all(math.isfinite(delay) and 0 <= delay <= LONGEST_DELAY for delay in delays):
        raise ConfigError(f"--delay={text}: each must be from 0 to {LONGEST_DELAY:g} ms")
    if not delays - {0.0}:
        raise ConfigError(f"--delay={text}: name one above 0, such as {DEFAULT_DELAYS}")
    return sorted(delays | {0.0})


def check(config: Config, size: int, longest_ms: float) -> None:
    """Refuse what `size` workers cannot train.

    Errors: ConfigError, IncompatibleError; EnvironmentFault without devices.
    """
    workers = Workers(0, size, 0, size)
    if ":" in config.trainer.device:
        raise ConfigError(
            f"trainer.device={config.trainer.device}: {size} workers cannot share it\n"
            "set trainer.device=cuda, then each takes one"
        )
    if longest_ms >= config.trainer.timeout * 1e3:
        raise ConfigError(
            f"trainer.timeout={config.trainer.timeout:g}: a worker that is {longest_ms:g} ms late would be given up\n"
            "set a larger trainer.timeout or a smaller --delay"
        )
    device_of(config.trainer.device, workers)
    bundle = bundle_of(config.data)
    batch_sizes(len(bundle.train), config.data.batch_size, config.data.last_batch, size)
    try:
        config.norm.check_batch(config.batch_of_statistics(size))
    except IncompatibleError as error:
        reason, _, advice = str(error).partition("\n")
        raise IncompatibleError(f"{reason}, the part of one of {size} workers\n{advice}") from error
    if any(layer.gradient_through for layer in bnlab_layers(model_of(config, bundle, workers))):
        raise IncompatibleError(
            f"norm={config.norm.name}: its gradient through the statistics is not averaged over workers\n"
            "set norm.through=false, or leave it out"
        )


def figures(found: ParallelTime) -> list[dict[str, Any]]:
    """Return the steps of a section as plain values."""
    ends = {"workers": found.workers, "rounds": found.rounds, "stopped_by": found.stopped_by}
    return [{"contest": found.title, **asdict(step), **ends} for step in found.steps]


# ---------------------------------------------------------------- the workers, from outside


def plan_of(sections: Sequence[Section], delays: Sequence[float], limits: BenchConfig) -> dict[str, Any]:
    """Return what the workers are told."""
    arms = [{"title": section.title, "arms": {arm.label: arm.tree for arm in section.arms}} for section in sections]
    return {"limits": asdict(limits), "delays": list(delays), "sections": arms}


def run_workers(
    plan: Mapping[str, Any], size: int, threads: int, watch: Callable[[str, int, float], None]
) -> list[ParallelTime]:
    """Return what `size` workers find, a section each; afterwards none of them is left, whatever happened.

    `watch` is told title, round and seconds left. Errors: EnvironmentFault.
    """
    found: list[ParallelTime] = []
    with tempfile.TemporaryDirectory(prefix="bnlab-") as folder, open(Path(folder, "stderr"), "w+") as errors:
        path = Path(folder, "plan.json")
        path.write_text(json.dumps(plan))
        with _torchrun([str(path)], size, threads, errors) as said:
            for message in said:
                if "failed" in message:
                    raise EnvironmentFault(f"worker {message['worker']} of {size}: {message['failed']}")
                if "round" in message:
                    watch(message["title"], message["round"], message["left"])
                if "found" in message:
                    steps = tuple(LateStep(**step) for step in message["found"].pop("steps"))
                    setting = tuple(message["found"].pop("setting"))
                    found.append(ParallelTime(steps=steps, setting=setting, **message["found"]))
                if len(found) == len(plan["sections"]):
                    return found
        errors.seek(0)
        raise EnvironmentFault(_end_of(errors.read(), size))


@contextmanager
def _torchrun(arguments: Sequence[str], size: int, threads: int, errors: IO[str]) -> Iterator[Iterator[Any]]:
    """Hold the workers; give what they say until all of them have ended."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    process = subprocess.Popen(
        [*launcher, "-m", WORKER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        start_new_session=True,  # Ctrl-C is for this process, which then ends them
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield (json.loads(line) for line in process.stdout if line.startswith("{"))
    finally:
        process.terminate()  # torchrun ends its workers
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # so do they themselves
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _end_of(errors: str, size: int) -> str:
    """Return what torchrun's last words say of the worker that ended first."""
    root = re.search(r"Root Cause.*?rank\s*: (\d+).*?exitcode\s*: (-?\d+)", errors, re.DOTALL)
    if root is None:
        lines = [line for line in errors.splitlines() if line.strip()]
        return f"the workers ended without a result: {lines[-1] if lines else 'no reason given'}"
    rank, code = root[1], int(root[2])
    if code > 0:  # before it could say why
        raised = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Fault)\b.*", errors, re.MULTILINE)
        return f"worker {rank} of {size} ended with exit code {code}: {raised[0] if raised else 'no reason given'}"
    return (
        f"worker {rank} of {size} was ended by {signal.Signals(-code).name}\n"
        "look for what did that: a person, or the system for want of memory"
    )
