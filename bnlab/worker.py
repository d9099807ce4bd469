"""Runs jobs: checks all of them before the first, trains each, and leaves a record whatever happens.

A process stays warm from job to job: torch and the data sets it has read are kept. Of several workers each runs all
jobs; the folder of every worker but the first is a passing one (`sweep.py`), and its rows and checkpoints go nowhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bnlab import hydra_app
from bnlab.clock import Stopwatch, utc_now
from bnlab.config import Config, check_workers, identity, parse_config
from bnlab.data import DataBundle
from bnlab.data.batches import batch_sizes
from bnlab.errors import BnlabError, MisfitError
from bnlab.measure.calibration import Calibration, bnlab_layers
from bnlab.prepare import bundle_of, device_of, model_of, placed, resident, surroundings
from bnlab.record.folder import RunFolder
from bnlab.record.tables import Cell
from bnlab.seeding import derived_seed
from bnlab.training import checkpoint
from bnlab.training.allocator import keep_freed_memory
from bnlab.training.evaluation import Evaluator, check_eval
from bnlab.training.loop import Outcome, Training
from bnlab.training.summary import summarize
from bnlab.training.trainer import precision_of
from bnlab.watcher import Watcher
from bnlab.workers import ALONE, WorkerLost

if TYPE_CHECKING:
    from omegaconf import DictConfig

DEFAULT_THREADS = torch.get_num_threads()
log = logging.getLogger("bnlab")


watcher = Watcher()  # of this process; only the one with the terminal has another than this, which looks away
shared_overrides: frozenset[str] = frozenset()  # of all jobs of the sweep; a job's label leaves them out
workers = ALONE  # of which this process is one


def preflight(trees: Sequence[Mapping[str, Any]]) -> None:
    """Check every job before the first is started: keys, device, data, and that the model can be built.

    Errors: ConfigError or EnvironmentFault, naming the first job that cannot run.
    """
    seen = set()
    for tree in trees:
        config = parse_config(tree)
        check_workers(config, workers)
        device = device_of(config.trainer.device, workers)
        if (key := (config.norm, config.model, config.data, config.eval.stats, device)) not in seen:
            seen.add(key)
            _check_model(config)


def _check_model(config: Config) -> None:
    bundle = bundle_of(config.data)
    batch_sizes(len(bundle.train), config.data.batch_size, config.data.last_batch, workers.size)
    model = model_of(config, bundle, workers)
    check_eval(model, config.eval)
    for layer in bnlab_layers(model):
        if workers.size > 1 and layer.gradient_through:
            raise MisfitError(
                f"norm={config.norm.name}: its gradient through the statistics is not averaged over workers\n"
                "train it in one process, or set norm.through=false"
            )
        if layer.refresh_samples is not None and layer.refresh_samples > len(bundle.train):
            raise MisfitError(
                f"norm.samples={layer.refresh_samples}: there are {len(bundle.train):,} training samples\n"
                "use at most that, or null for all"
            )


def job(cfg: DictConfig) -> float | str:
    """Hydra's task function: train one run in its folder; return the validation accuracy, or why there is none.

    An exception costs this job only. An interruption is recorded and goes on to the caller.
    """
    current = hydra_app.current_job()
    label = " ".join(o for o in current.overrides if o not in shared_overrides)
    index = current.number or 0
    tree = hydra_app.plain(cfg)
    folder: RunFolder | None = None
    try:
        config = parse_config(tree)
        check_workers(config, workers)
        bundle = bundle_of(config.data)
        known = identity(tree, bundle.fingerprint, workers.size)
        folder = RunFolder(current.folder, tree, hydra_app.as_yaml(tree), known, utc_now())
        device = device_of(config.trainer.device, workers)
        with _logging_to(folder.path / "run.log"), workers.together(device, config.trainer.timeout):
            outcome = _train(config, tree, bundle, folder, index, label)
    except (KeyboardInterrupt, SystemExit):
        if folder is not None:
            folder.finish("interrupted", error="stopped by a signal before its end")
        watcher.job_ended(index, "interrupted", "")
        raise
    except Exception as error:
        reason = _reason(error, tree)
        if folder is not None:
            folder.finish("failed", error=reason)
        watcher.job_ended(index, "failed", reason.partition("\n")[0])
        if isinstance(error, WorkerLost):
            raise SystemExit(error.exit_code) from error
        return reason
    watcher.job_ended(index, outcome.state, _headline(outcome))
    if outcome.state == "diverged":
        return f"diverged at step {outcome.diverged_at}"
    return outcome.curve.get("valid.accuracy", outcome.curve["train.accuracy"])[-1]


def _train(
    config: Config, tree: Mapping[str, Any], bundle: DataBundle, folder: RunFolder, index: int, label: str
) -> Outcome:
    device = device_of(config.trainer.device, workers)
    wall = Stopwatch(device)
    wall.start()
    keep_freed_memory()
    torch.set_num_threads(config.trainer.threads or DEFAULT_THREADS)
    torch.manual_seed(derived_seed(config.seed, "dropout", workers.rank))
    model = placed(model_of(config, bundle, workers), config, device)
    batches = resident(config, bundle, bundle.train, device, training=True, workers=workers)
    total = config.trainer.total_steps(batches.steps_per_epoch)
    watcher.job_started(index, label, total)
    where = surroundings(device, bundle, workers.size)
    folder.write_environment(where)
    log.info("training %s: %d steps on %s", label or "one run", total, device)
    precision = precision_of(config.trainer, device)
    calibration = Calibration(model, batches, precision, device) if Calibration.needed_by(model) else None
    training = Training(
        model=model,
        batches=batches,
        evaluator=Evaluator(
            bundle,
            config.eval,
            config.batch_of_statistics(workers.size),
            batches,
            lambda split, training: resident(config, bundle, split, device, training=training),
            precision,
            config.measure,
        ),
        optimizer=config.optim.make(model),
        rate_of=config.schedule.rate_of(config.optim.lr, total),
        total_steps=total,
        config=config.trainer,
        eval_every=config.eval.every,
        device=device,
        recorder=_Recorder(folder) if workers.first else _Unrecorded(),
        watcher=watcher,
        calibration=calibration,
        workers=workers,
    )
    outcome = training.run()
    wall.stop()
    log.info("%s after %d steps, %.1f s of training", outcome.state, outcome.steps, outcome.train_seconds)
    folder.finish(
        outcome.state,
        error=None if outcome.diverged_at is None else f"loss not finite at step {outcome.diverged_at}",
        summary=summarize(
            outcome, model, config.model.strategies(config.norm), config.batch_of_statistics(workers.size), wall.seconds
        )
        | {"environment": where},
    )
    return outcome


def _headline(outcome: Outcome) -> str:
    if outcome.diverged_at is not None:
        return f"loss not finite at step {outcome.diverged_at:,}"
    return f"test {100 * outcome.curve['test.accuracy'][-1]:.2f} %, {outcome.train_seconds:.1f} s"


def _reason(error: Exception, tree: Mapping[str, Any]) -> str:
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
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    except BaseException as error:
        log.exception("ended by %s", type(error).__name__)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


class _Recorder:
    """Brings a training's rows and checkpoints into its folder."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def steps(self, rows: list[tuple[Cell, ...]]) -> None:
        self._folder.steps.append(rows)

    def times(self, rows: list[tuple[Cell, ...]]) -> None:
        self._folder.times.append(rows)

    def evals(self, rows: list[tuple[Cell, ...]]) -> None:
        self._folder.evals.append(rows)

    def layers(self, rows: list[tuple[Cell, ...]]) -> None:
        self._folder.layers.append(rows)

    def checkpoint(self, state: dict[str, Any]) -> None:
        checkpoint.save(self._folder.path, state)


class _Unrecorded:
    """Looks away: the recorder of every worker but the first."""

    def steps(self, rows: list[tuple[Cell, ...]]) -> None: ...
    def times(self, rows: list[tuple[Cell, ...]]) -> None: ...
    def evals(self, rows: list[tuple[Cell, ...]]) -> None: ...
    def layers(self, rows: list[tuple[Cell, ...]]) -> None: ...
    def checkpoint(self, state: dict[str, Any]) -> None: ...
