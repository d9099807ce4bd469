"""Trains jobs: all of them are checked before the first, each leaves a record whatever happens.

A process stays warm from job to job: torch and the data sets it has read are kept. `runner/worker_main.py` runs this in
a process of its own, which `runner/supervisor.py` watches. Under torchrun it runs in each of torchrun's processes: all
of them run all jobs; the folder of every one but the first is a passing one (`runner/sweep.py`), its rows go nowhere.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnlab.data.batches import Batches, batch_sizes
from bnlab.data.bundle import DataBundle
from bnlab.distributed import ALONE, RankLost, Workers, shard
from bnlab.errors import BnlabError, ConfigError, IncompatibleError, RecordError
from bnlab.experiment.config import Config, check_workers, data_of, identity, is_recorded, parse_config
from bnlab.experiment.setup import (
    bundle_of,
    check_memory,
    device_batches,
    device_held,
    device_of,
    environment_of,
    model_of,
    to_device,
)
from bnlab.measure.refresh import Refresh, bnlab_layers
from bnlab.meters.panel import Panel
from bnlab.norms.ghost import ghost_sizes
from bnlab.record.plain_files import open_plain, read_plain
from bnlab.record.read import State
from bnlab.record.run_folder import FINAL, RunFolder, read_status, settle
from bnlab.record.tables import Cell
from bnlab.seeding import derived_seed
from bnlab.timing import Stopwatch
from bnlab.training import checkpoint
from bnlab.training.allocator import keep_freed_memory
from bnlab.training.callbacks import Callback
from bnlab.training.evaluation import Evaluator, check_eval
from bnlab.training.job import INTERRUPTED, Job, JobResult, Stop, Terminated
from bnlab.training.loop import Training
from bnlab.training.outcome import Outcome, Recorder, score_of
from bnlab.training.summary import summarize
from bnlab.training.trainer import loss_function, precision_of

DEFAULT_THREADS = torch.get_num_threads()
log = logging.getLogger("bnlab")


def preflight(trees: Sequence[Mapping[str, Any]], workers: Workers = ALONE) -> list[str]:
    """Check every job before the first is started: keys, device, data, and that the model can be built.

    Returns the identity of each. Errors: ConfigError or EnvironmentFault, naming the first job that cannot run.
    """
    seen: set[tuple[object, ...]] = set()
    identities, configs = [], list[Config]()
    for tree in trees:
        try:
            config = parse_config(tree)
            check_workers(config, workers)
            configs.append(config)
            device = device_of(config.trainer.device, workers)
            key = (
                config.norm,
                config.model,
                config.data,
                config.eval.stats,
                config.optim.only,
                device,
                is_recorded(tree),
            )
            if key not in seen:
                seen.add(key)
                _check_model(config, workers)
        except IncompatibleError:
            if not is_recorded(tree):
                raise
        identities.append(identity(tree, bundle_of(data_of(tree)).fingerprint, workers.size))
    _check_clocks(configs)
    return identities


def _check_clocks(configs: Sequence[Config]) -> None:
    """Refuse a `measure_every` where no job has a meter to read; arms without any beside others with some are meant."""
    every = next((config for config in configs if config.measure_every is not None), None)
    if every is not None and not any(config.meters for config in configs):
        raise ConfigError(
            f"measure_every={every.measure_every}: measure={','.join(every.measure)} names no meter to read\n"
            "name one, such as measure=landscape, or leave measure_every out"
        )


def _check_model(config: Config, workers: Workers) -> None:
    bundle = bundle_of(config.data)
    sizes = batch_sizes(len(bundle.train), config.data.batch_size, config.data.last_batch, workers.size)
    _check_passes(config, sizes[-1], workers)
    check_memory(config, bundle)
    config.data.augment.check(*bundle.image_shape[1:])
    model = model_of(config, bundle, workers)
    check_eval(model, config.eval)
    config.optim.groups(model)
    for layer in bnlab_layers(model):
        if workers.size > 1 and layer.gradient_through:
            raise IncompatibleError(
                f"norm={config.norm.name}: its gradient through the statistics is not averaged over workers\n"
                "train it in one process, or set norm.through=false"
            )
        if layer.refresh_samples is not None and layer.refresh_samples > len(bundle.train):
            raise IncompatibleError(
                f"norm.samples={layer.refresh_samples}: there are {len(bundle.train):,} training samples\n"
                "use at most that, or null for all"
            )


def _check_passes(config: Config, last_batch: int, workers: Workers) -> None:
    """Refuse a last batch that workers who normalize together would take in different numbers of parts."""
    size = config.micro_batch(workers.size)
    if size is None or not config.norm.facts.spans_workers:
        return
    shards = [shard(last_batch, rank, workers.size) for rank in range(workers.size)]
    if len({len(ghost_sizes(end - first, size)) for first, end in shards}) > 1:
        raise IncompatibleError(
            f"trainer.accumulate={config.trainer.accumulate}: the last batch, of {last_batch} samples, is not the same "
            f"number of parts on each of {workers.size} workers, and norm={config.norm.name} waits for all of them\n"
            "set data.last_batch=drop"
        )


def run(job: Job, callback: Callback, stop: Stop | None = None, workers: Workers = ALONE) -> JobResult:
    """Train the job that lies in a folder, from its checkpoint on if there is one; say what came of it.

    What the folder says is checked as a command line is. An exception costs this job only; so does `sys.exit`. Raises
    KeyboardInterrupt, with the state recorded, when `stop` or a signal ends it.
    """
    folder: RunFolder | None = None
    tree: Any = None
    device_lock, stop = ExitStack(), stop or Stop()  # its device is held until nothing of the job is left there
    try:
        tree = (read_status(job.folder) or {}).get("config")
        if not isinstance(tree, dict):
            raise RecordError(f"{job.folder}: no job lies here")
        config = parse_config(tree)
        check_workers(config, workers)
        if is_recorded(tree):
            _check_model(config, workers)  # which nobody has done before
        bundle = bundle_of(config.data)
        folder = RunFolder(job.folder, identity(tree, bundle.fingerprint, workers.size))
        if folder.earlier in FINAL:
            folder.release()
            folder = None  # nothing more is written there
            return _recorded(job.folder)
        with _logging_to(folder.path / "run.log"):
            device = device_lock.enter_context(device_held(config.trainer.device, workers, stop, job, callback))
            with workers.together(device, config.trainer.timeout):
                outcome = _train(config, job, bundle, folder, callback, stop, workers, device)
    except (KeyboardInterrupt, Terminated):
        _record(folder, "interrupted", INTERRUPTED)
        raise
    except (Exception, SystemExit) as error:
        reason = _reason(error, tree)
        if isinstance(error, IncompatibleError) and folder is None and is_recorded(tree):
            callback.job_started(job.index, job.label, 0)
            settle(job.folder, "refused", reason)
            return JobResult("refused", reason)
        _record(folder, "failed", reason)
        if isinstance(error, RankLost):
            raise Terminated(error.exit_code) from error
        return JobResult("failed", reason)
    finally:
        device_lock.close()
    if outcome.error is not None:
        return JobResult("diverged", outcome.error)
    return JobResult("done", score=score_of(outcome.curve))


def _train(
    config: Config,
    job: Job,
    bundle: DataBundle,
    folder: RunFolder,
    callback: Callback,
    stop: Stop,
    workers: Workers,
    device: torch.device,
) -> Outcome:
    wall = Stopwatch(device)
    wall.start()
    earlier = _checkpoint(job, folder, callback, workers)
    keep_freed_memory()
    torch.set_num_threads(config.trainer.threads or (earlier or {}).get("threads") or DEFAULT_THREADS)
    torch.manual_seed(derived_seed(config.seed, "dropout", workers.rank))
    model = to_device(model_of(config, bundle, workers), config, device)
    batches = device_batches(config, bundle, bundle.train, device, training=True, workers=workers)
    total = config.trainer.total_steps(batches.steps_per_epoch)
    callback.job_started(job.index, job.label, total)
    where = environment_of(device, bundle, workers.size)
    folder.write_environment(where)
    folder.begin(None if earlier is None else earlier["tables"], metered=config.meters != ())
    log.info("training %s: %d steps on %s", job.label or "one run", total, device)
    if earlier is not None:
        log.info("going on from step %d", earlier["step"])
    precision = precision_of(config.trainer, device)
    refresh = Refresh(model, batches, precision, device) if Refresh.needed_by(model) else None
    evaluator = _evaluator_of(config, bundle, batches, workers)
    optimizer = config.optim.make(model)
    panel = _panel_of(config, model, batches, optimizer, callback)
    training = Training(
        model=model,
        batches=batches,
        evaluator=evaluator,
        optimizer=optimizer,
        rate_of=config.schedule.rate_of(config.optim.lr, total),
        total_steps=total,
        config=config.trainer,
        eval_every=config.eval.every,
        device=device,
        recorder=_Recorder(folder) if workers.first else Recorder(),
        callback=callback,
        refresh=refresh,
        workers=workers,
        stop=stop,
        panel=panel,
        micro_batch=config.micro_batch(workers.size),
        lost_above=config.trainer.lost_above(bundle.num_classes),
    )
    outcome = training.run(earlier)
    wall.stop()
    log.info("%s after %d steps, %.1f s of training", outcome.state, outcome.steps, outcome.train_seconds)
    folder.finish(
        outcome.state,
        error=outcome.error,
        summary=summarize(
            outcome,
            model,
            config.model.strategies(config.norm),
            config.batch_of_statistics(workers.size),
            wall.seconds,
            where,
            config.eval.stats,
            panel.absent,
            config.trainer.accumulate,
        )
        | {"samples": evaluator.samples},
    )
    return outcome


def _evaluator_of(config: Config, bundle: DataBundle, batches: Batches, workers: Workers) -> Evaluator:
    return Evaluator(
        bundle,
        config.eval,
        config.batch_of_statistics(workers.size),
        batches,
        lambda split, training: device_batches(config, bundle, split, batches.device, training=training),
        precision_of(config.trainer, batches.device),
        in_full=config.in_full,
    )


def _panel_of(
    config: Config, model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer, callback: Callback
) -> Panel:
    """Return the meters of a run; those that cannot be read are named."""
    panel = Panel(
        config.meters,
        config.measure_every,
        config.model.strategies(config.norm),
        model,
        batches,
        config.batch_of_statistics(workers=1),
        optimizer,
        loss_function(config.trainer),
        precision_of(config.trainer, batches.device),
        config.micro_batch(workers=1),
    )
    for name, reason in panel.absent.items():
        callback.noted(f"measure={name}: cannot be read, {reason}")
    return panel


def _checkpoint(job: Job, folder: RunFolder, callback: Callback, workers: Workers) -> dict[str, Any] | None:
    """Return the checkpoint to go on from; None for a run that begins anew.

    Errors: RecordError when there are only damaged ones: what is there is not written over without being asked.
    """
    if job.from_scratch or not checkpoint.present(folder.path):
        checkpoint.discard(folder.path)
        return None
    if workers.size > 1:
        raise RecordError(
            f"{folder.path}: a training of several processes cannot be resumed\n"
            "the running statistics of all but the first are not in its checkpoint; start over with --from-scratch"
        )
    try:
        earlier = checkpoint.load(folder.path, callback.noted)
    except RecordError as error:
        raise RecordError(f"{error}; start over with --from-scratch") from error
    if (then := earlier.get("torch")) != torch.__version__:
        callback.noted(f"{folder.path}: begun with torch {then}, now {torch.__version__}: last digits may differ")
    return earlier


def _record(folder: RunFolder | None, state: State, reason: str) -> None:
    """Write down how a run ended early; on a full disk it cannot be, and the run counts as killed."""
    if folder is None:
        return
    try:
        folder.finish(state, error=reason)
    except BnlabError:
        folder.release()


def _recorded(folder: Path) -> JobResult:
    """Return what a finished run says of itself. Errors: RecordError."""
    try:
        summary = json.loads(read_plain(folder / "summary.json"))
        score = score_of(summary["curve"]) if summary["state"] == "done" else None
        return JobResult(summary["state"], score=score)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise RecordError(f"{folder / 'summary.json'}: cannot be read, though the run is over ({error})") from error


def _reason(error: BaseException, tree: Mapping[str, Any]) -> str:
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else error.code})"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"out of memory at data.batch_size={tree['data']['batch_size']}\ntry a smaller batch"
    if isinstance(error, torch.OutOfMemoryError):
        peak = torch.cuda.max_memory_allocated() / 2**30
        batch = tree["data"]["batch_size"]
        return f"out of memory at data.batch_size={batch}, peak {peak:.1f} GiB\ntry a smaller batch"
    if isinstance(error, BnlabError):
        return str(error)
    return f"{type(error).__name__}: {error}"


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Write bnlab's log and the traceback of a failure to `path`; nothing of it reaches the terminal."""
    os.close(open_plain(path, os.O_WRONLY | os.O_CREAT))  # or a link would be followed
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    before = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    except BaseException as error:
        log.exception("ended by %s", type(error).__name__)
        raise
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
        with contextlib.suppress(OSError):  # a full disk has a message of its own already
            handler.close()


class _Recorder(Recorder):
    """Brings a training's rows and checkpoints into its folder."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    @property
    def sizes(self) -> dict[str, int]:
        return self._folder.sizes

    def append(self, table: str, rows: Sequence[Sequence[Cell]]) -> None:
        self._folder.append(table, rows)

    def checkpoint(self, state: dict[str, Any]) -> None:
        about = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
        checkpoint.save(self._folder.path, state | about)


class InProcess:
    """Trains jobs in this very process, in place of a supervised one: for `--inline`, and for those of torchrun."""

    def __init__(self, workers: Workers = ALONE) -> None:
        self.callback = Callback()  # of the process with the terminal; the others look away
        self._workers = workers

    def agreed(self) -> AbstractContextManager[None]:
        return self._workers.agreed()

    def preflight(self, trees: Sequence[Mapping[str, Any]]) -> list[str]:
        return preflight(trees, self._workers)

    def run(self, job: Job) -> JobResult:
        return run(job, self.callback, workers=self._workers)
