"""Must all examples wait for the slowest? Worker processes train together, one of them late by a known delay.

torchrun starts the workers (`straggler_worker.py`) and they end with this process, whatever ends it: their stdin is a
pipe that only it holds open.
"""

from __future__ import annotations

import contextlib
import json
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

from bnlab.bench.arms import BenchSection, read
from bnlab.bench.engine import BenchConfig
from bnlab.bench.straggler_result import StragglerStep, StragglerTime
from bnlab.data.batches import batch_sizes
from bnlab.distributed import Workers
from bnlab.errors import ConfigError, EnvironmentFault, IncompatibleError
from bnlab.experiment.config import Config, check_part
from bnlab.experiment.setup import bundle_of, device_of, model_of
from bnlab.measure.refresh import bnlab_layers

DEFAULT_NORMS = "norm=sync,batch,group"
WORKERS, LATE_MS = 2, 20.0  # of bench.mode=workers
WORKER = "bnlab.bench.straggler_worker"
STOP_SECONDS = 45.0  # torchrun gives a worker 30 s to end by itself


def read_sections(
    overrides: Sequence[str], workers: int, delays: Sequence[float]
) -> tuple[BenchConfig, list[BenchSection], list[str]]:
    """Return when to stop, the sections, and a line for each arm that was left out, and where there are too few cores.

    Errors: ConfigError, IncompatibleError for what so many workers cannot train; EnvironmentFault without devices.
    """
    own = [] if any(line.startswith("norm=") for line in overrides) else [DEFAULT_NORMS]
    limits, sections, notes = read([*overrides, *own])
    for section in sections:
        for arm in section.arms:
            check(arm.config, workers, max(delays))
    threads = threads_of(sections)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads * workers > cores and device_of(sections[0].arms[0].config.trainer.device).type == "cpu":
        slow = "they wait for each other's cores"
        notes.append(f"warning: {workers} workers of {threads} thread(s) on {cores} core(s): {slow}")
    return limits, sections, notes


def threads_of(sections: Sequence[BenchSection]) -> int:
    """Return the threads of a worker."""
    return max(arm.config.trainer.threads or 1 for section in sections for arm in section.arms)


def check(config: Config, size: int, longest_ms: float) -> None:
    """Refuse what `size` workers cannot train. Errors: as of `read_sections`."""
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
    if config.trainer.accumulate > 1:
        raise ConfigError(f"trainer.accumulate={config.trainer.accumulate}: cannot be timed with --workers\nomit it")
    check_part(config, size)
    if any(layer.gradient_through for layer in bnlab_layers(model_of(config, bundle, workers))):
        raise IncompatibleError(
            f"norm={config.norm.name}: its gradient through the statistics is not averaged over workers\n"
            "set norm.through=false, or leave it out"
        )


def plan_of(sections: Sequence[BenchSection], delays: Sequence[float], limits: BenchConfig) -> dict[str, Any]:
    """Return what the workers are told."""
    arms = [{"title": section.title, "arms": {arm.label: arm.tree for arm in section.arms}} for section in sections]
    return {"limits": asdict(limits), "delays": list(delays), "sections": arms}


def run_workers(
    plan: Mapping[str, Any], size: int, threads: int, watch: Callable[[str, int, float], None]
) -> list[StragglerTime]:
    """Return what `size` workers find, a section each; afterwards none of them is left, whatever happened.

    `watch` is told title, round and seconds left. Errors: EnvironmentFault.
    """
    times: list[StragglerTime] = []
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
                    steps = tuple(map(StragglerStep.of_plain, message["found"].pop("steps")))
                    setting = tuple(message["found"].pop("setting"))
                    times.append(StragglerTime(steps=steps, setting=setting, **message["found"]))
                if len(times) == len(plan["sections"]):
                    return times
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


def figures(time: StragglerTime) -> list[dict[str, Any]]:
    """Return the steps of a section as plain values."""
    ends = {"workers": time.workers, "rounds": time.rounds, "stopped_by": time.stopped_by}
    return [{"contest": time.title, **step.figures(), **ends} for step in time.steps]
