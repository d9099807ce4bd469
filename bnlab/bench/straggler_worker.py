"""One worker of `bnlab bench --workers`: trains every strategy on its part of the batch, the last worker late.

torchrun starts it with a file that says what to do. It writes a line of JSON for each thing that there is to tell to
stdout, and ends when its stdin closes: the process that asked for it is gone.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnlab.bench.engine import BenchConfig
from bnlab.bench.pairing import Figures, Turns, in_turn, median_of
from bnlab.bench.stepper import BATCHES, Mark, setting_of, trainee, where
from bnlab.bench.straggler_result import MODES, Mode, StragglerStep, StragglerTime
from bnlab.data.batches import Batches
from bnlab.data.bundle import DataBundle
from bnlab.distributed import Workers, from_environment
from bnlab.errors import BnlabError
from bnlab.experiment.config import Config, parse_config
from bnlab.experiment.setup import bundle_of, device_batches, device_of
from bnlab.interval import Interval
from bnlab.timing import Stopwatch
from bnlab.training.allocator import keep_freed_memory
from bnlab.training.loop import train_step

Key = tuple[str, Mode, float]  # strategy, what becomes of the gradients, delay in ms
TELL_EVERY = 5  # rounds
FEWEST_ROUNDS = 6  # below there is no 95% interval of a median, not even from the smallest to the largest value
BLOCKS = 6  # of rounds
STEPS_BEFORE_COUNTING = 2  # in its second, DistributedDataParallel agrees on the order of the gradients


@dataclass(frozen=True)
class Collectives:
    """What one worker takes part in during one step: collectives forward and backward, bytes that it hands to them."""

    forward: int
    backward: int
    bytes: int


class Contender:
    """One strategy in training: with gradients that are averaged over the workers, or each worker's own."""

    def __init__(
        self,
        config: Config,
        bundle: DataBundle,
        training_set: Batches,
        device: torch.device,
        workers: Workers,
        mode: Mode,
    ) -> None:
        self._one = trainee(config, bundle, training_set, device, workers, averaged=mode == "averaged")
        self._per_label = workers.size / training_set.sizes[0]  # weighs a part of the batch as training does
        first = itertools.islice(zip(training_set.epoch(0), training_set.sizes, strict=False), BATCHES)
        self._batches = itertools.cycle([batch for batch, size in first if size == training_set.sizes[0]])
        self._is_late = workers.rank == workers.size - 1
        self._count = itertools.count()

    def turn(self, delay_ms: float) -> Figures:
        """Take a step, the last worker `delay_ms` late; return ms of the step, its forward, backward and optimizer."""
        dist.barrier()
        return self._one.timed(partial(self._step, delay_ms))

    def collectives(self) -> Collectives:
        """Return what one step sends; takes more than that one."""
        for _ in range(STEPS_BEFORE_COUNTING):
            self._step(0.0, lambda: None)
        with _CollectiveCounter() as counter:
            self._step(0.0, counter.next_phase)
        forward, backward, _ = counter.calls
        return Collectives(forward, backward, counter.bytes)

    def _step(self, delay_ms: float, mark: Mark) -> None:
        one = self._one

        def forward(images: Tensor) -> Tensor:
            if delay_ms and self._is_late:
                time.sleep(delay_ms / 1e3)
            return one.forward(images)

        images, labels = next(self._batches)
        train_step(forward, one.optimizer, self._loss_of, images, labels, next(self._count), one.refresh, mark)

    def _loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self._one.mean_loss(logits, labels) * (len(labels) * self._per_label)


class _CollectiveCounter(TorchDispatchMode):
    """Counts collectives by phase (forward, backward, optimizer), and the bytes that this worker hands to them.

    It sees every operation of a process group, those of DistributedDataParallel's reducer among them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = [0, 0, 0]
        self.bytes = 0
        self._phase = 0

    def next_phase(self) -> None:
        self._phase += 1

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
            self.calls[self._phase] += 1
            handed = [given[name] for name in given if name.startswith(("input_tensor", "tensors"))]
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves(handed) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def measure(
    title: str,
    configs: Mapping[str, Config],
    delays: Sequence[float],
    limits: BenchConfig,
    seconds: float,
    workers: Workers,
    watch: Callable[[int, float], None],
) -> StragglerTime:
    """Take steps in turn, on all workers alike, until every growth is known, or `seconds` are over.

    Known: half its interval is within `limits.precision` of the step without delay. There are `limits.rounds` at least.
    The result is the first worker's.
    """
    config = next(iter(configs.values()))
    torch.set_num_threads(config.trainer.threads or 1)
    device = device_of(config.trainer.device, workers)
    clock = Stopwatch(device)
    clock.start()
    bundle = bundle_of(config.data)
    training_set = device_batches(config, bundle, bundle.train, device, training=True, workers=workers)
    contenders = {
        (norm, mode): Contender(configs[norm], bundle, training_set, device, workers, mode)
        for norm, mode in itertools.product(configs, MODES)
    }
    sent = {key: contender.collectives() for key, contender in contenders.items()}
    turns_of: dict[Key, Callable[[], Figures]] = {
        (*key, delay): partial(contender.turn, delay) for key, contender in contenders.items() for delay in delays
    }
    known, look_at = False, max(limits.rounds, FEWEST_ROUNDS)
    for turns in in_turn(turns_of, next(iter(turns_of))):
        left = seconds - clock.seconds
        enough = False
        if workers.first:
            watch(turns.rounds, left)
            if turns.rounds >= look_at:  # at ever longer distances, as a look takes as long as some steps
                known, look_at = _known(turns, limits.precision), math.ceil(1.1 * turns.rounds)
            enough = known or (left <= 0 and turns.rounds >= max(limits.rounds, FEWEST_ROUNDS))
        if workers.mean_number(float(enough)):  # as the first says
            break
    place = f"{where(device)} each" if device.type == "cpu" else device.type
    return StragglerTime(
        title=title,
        setting=setting_of(config, config.data.name, config.data.batch_size, place),
        workers=workers.size,
        steps=tuple(_steps(turns, sent)),
        rounds=turns.rounds,
        stopped_by="precision" if known else "budget",
        seconds=clock.seconds,
    )


def _growths(turns: Turns[Key], key: Key, figure: int) -> list[float]:
    """Return by how many ms a figure of `key` exceeds its own without delay, round by round."""
    pairs = zip(turns.figures[key], turns.figures[*key[:2], 0.0], strict=True)
    return [late[figure] - punctual[figure] for late, punctual in pairs]


def _growth(turns: Turns[Key], key: Key, figure: int) -> Interval:
    return median_of(_growths(turns, key, figure))


def _by_block(growths: Sequence[float]) -> tuple[float, ...]:
    """Return the median of each of some blocks of rounds in a row, which what a machine does meanwhile falls into."""
    size = len(growths) / BLOCKS
    parts = (growths[round(size * i) : round(size * (i + 1))] for i in range(BLOCKS))
    return tuple(statistics.median(part) for part in parts if part)


def _known(turns: Turns[Key], precision: float) -> bool:
    return all(_growth(turns, key, 0).half <= precision * turns.medians((*key[:2], 0.0))[0] for key in turns.figures)


def _steps(turns: Turns[Key], sent: Mapping[tuple[str, Mode], Collectives]) -> Iterator[StragglerStep]:
    for key in turns.figures:
        norm, mode, delay = key
        step, forward, backward, optimizer, _ = turns.medians(key)
        collectives = sent[norm, mode]
        yield StragglerStep(
            norm=norm,
            gradients=mode,
            delay_ms=delay,
            step_ms=step,
            step_growth=_growth(turns, key, 0),
            forward_ms=forward,
            forward_growth=_growth(turns, key, 1),
            backward_ms=backward,
            optimizer_ms=optimizer,
            forward_collectives=collectives.forward,
            backward_collectives=collectives.backward,
            sent_bytes=collectives.bytes,
            gradient_bytes=collectives.bytes - sent[norm, "local"].bytes,
            growth_by_block=_by_block(_growths(turns, key, 0)),
        )


# ---------------------------------------------------------------- the process


def main() -> int:
    """Do what the file named on the command line says; return the exit code."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    workers = from_environment()
    assert workers is not None
    try:
        workers.connect()
        _work_off(json.loads(Path(sys.argv[1]).read_text()), workers)
    except Exception as error:
        traceback.print_exc()
        text = str(error) if isinstance(error, BnlabError) else f"{type(error).__name__}: {error}"
        _tell(failed=text, worker=workers.rank)
        return 1
    workers.outlast()
    return 0


def _work_off(plan: Mapping[str, Any], workers: Workers) -> None:
    keep_freed_memory()
    limits, sections = BenchConfig(**plan["limits"]), plan["sections"]
    left = limits.seconds
    for number, section in enumerate(sections):
        configs = {label: parse_config(tree) for label, tree in section["arms"].items()}
        trainer = next(iter(configs.values())).trainer
        share = left / (len(sections) - number)

        def watch(rounds: int, left: float, title: str = section["title"]) -> None:
            if rounds % TELL_EVERY == 0:
                _tell(title=title, round=rounds, left=left)

        with workers.together(device_of(trainer.device, workers), trainer.timeout):
            result = measure(section["title"], configs, plan["delays"], limits, share, workers, watch)
        left = max(left - result.seconds, 0.0)
        if workers.first:
            _tell(found=asdict(result))


def _tell(**said: Any) -> None:
    print(json.dumps(said) + "\n", end="", flush=True)  # in one piece, beside what others write


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
