"""A finished run evaluated again under other settings of evaluation, from its checkpoint; kept beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnlab.errors import RecordError
from bnlab.experiment.config import Config, identity, parse_config
from bnlab.experiment.recalibrated import new_file, recalibrated, save
from bnlab.experiment.setup import device_batches
from bnlab.experiment.trained_model import TrainedModel, num_workers, of_run
from bnlab.measure.recalibration import Stats
from bnlab.record.evaluations import (
    FILE,
    RECALIBRATED,
    SETTINGS,
    Evaluations,
    read_evaluations,
    weights_of,
    with_settings,
)
from bnlab.record.plain_files import write_json
from bnlab.record.read import SCHEMA, Run, evaluated, read_documents
from bnlab.record.run_folder import held
from bnlab.training.evaluation import Evaluator, check_eval
from bnlab.training.summary import finite, layers_by_name
from bnlab.training.trainer import precision_of


def evaluate_again(folder: Path, changes: Sequence[Mapping[str, Any]], overrides: Sequence[str] = ()) -> int:
    """Evaluate a finished run under each of `changes` of SETTINGS that was not evaluated yet; return how many were not.

    `overrides` say where its data are now, and on which device. Errors: those of `of_run`; RecordError where the data
    are others by now; IncompatibleError for statistics that its model cannot have.
    """
    status, summary = read_documents(folder)
    tree, environment = summary.get("config"), summary.get("environment")
    if not isinstance(tree, Mapping) or not isinstance(environment, Mapping):
        raise RecordError(f"{folder}: is no finished run\n`bnlab resume` finishes it")
    mark = str(environment.get("data_fingerprint"))
    trees = [with_settings(tree, change) for change in changes]
    wanted = {identity(changed, mark, num_workers(summary)): parse_config(changed) for changed in trees}
    known = read_evaluations(folder)
    missing = {key: config for key, config in wanted.items() if key not in known and key != status.get("identity")}
    if missing:
        trained = of_run(folder, None, overrides)
        if trained.bundle.fingerprint != mark:
            raise RecordError(
                f"{folder}: its data are others by now\nsay by data.root=… where those of its training are"
            )
        with trained.examined():
            _keep(folder, {key: _evaluated(trained, config) for key, config in missing.items()})
    return len(missing)


def recalibrate_again(
    folder: Path, stats: Stats, samples: int | None, *, plain: bool, overrides: Sequence[str] = ()
) -> int:
    """Write a finished run's recalibrated checkpoint and keep what that evaluates to; return 0 where both are there.

    A file that lies there already is evaluated, and never written over. Errors: as of `evaluate_again`, and
    IncompatibleError where there is nothing to recalibrate.
    """
    evaluate_again(folder, [{"eval.stats": "running"}], overrides)  # to be compared with
    trained = of_run(folder, None, overrides)
    file, _ = new_file(trained, None, stats, samples, plain=plain)
    if file.exists() and file.stem in read_evaluations(folder):
        return 0
    new = recalibrated(trained, stats, samples, plain=plain)
    if not file.exists():
        save(file, trained, None, new)
    after = of_run(folder, file, overrides)
    config = replace(after.config, eval=replace(after.config.eval, stats="running"))
    with after.examined():
        entry = _evaluated(after, config)
    entry["config"][RECALIBRATED] = _how(stats, samples, plain)
    entry["curve"]["train.samples_needed"] = float(new.enough)
    _keep(folder, {file.stem: entry})
    return 1


def before_and_after(run: Run, stats: Stats, samples: int | None, *, plain: bool) -> list[Run]:
    """Return a run and what its recalibrated checkpoint was evaluated to be, told apart by the key `recalibrated`.

    Both with its running statistics, and all else as it was evaluated; nothing where there is no such checkpoint.
    """
    usual = {key: run.config.get(key, value) for key, value in SETTINGS.items() if key != "measure"}
    wanted, how = usual | {"eval.stats": "running"}, _how(stats, samples, plain)
    found = {
        word: replace(each, config={RECALIBRATED: word} | each.config)
        for each in (run, *evaluated(run))
        if all(each.config.get(key, SETTINGS[key]) == value for key, value in wanted.items())
        and (word := each.config.get(RECALIBRATED, "before")) in ("before", how)
    }
    return list(found.values()) if how in found else []


def _how(stats: Stats, samples: int | None, plain: bool) -> str:
    return " ".join([stats, *([] if samples is None else [str(samples)]), *(["plain"] if plain else [])])


def _keep(folder: Path, found: Evaluations) -> None:
    """Put evaluations beside those that a run has."""
    with held(folder):
        content = {"weights": weights_of(folder), "evaluations": read_evaluations(folder) | found}
        write_json(folder / FILE, {"schema": SCHEMA, **content}, durable=False)


def _evaluated(trained: TrainedModel, config: Config) -> dict[str, Any]:
    """Return the entry of one evaluation, made as the last one of a training is."""
    check_eval(trained.model, config.eval)
    evaluator = Evaluator(
        trained.bundle,
        config.eval,
        trained.batch_size,
        trained.train,
        lambda split, training: device_batches(config, trained.bundle, split, trained.device, training=training),
        precision_of(config.trainer, trained.device),
        in_full=config.in_full,
    )
    found = evaluator.evaluate(trained.model)
    names = [f"{figure.split}.{figure.metric}" for figure in found.figures]
    return {
        "config": {"measure": "full" if config.in_full else "cheap"}
        | {f"eval.{k}": v for k, v in vars(config.eval).items() if f"eval.{k}" in SETTINGS},
        "curve": dict(zip(names, finite([figure.value for figure in found.figures]), strict=True)),
        "layers": layers_by_name([found.layers["probe"]]),
        "samples": evaluator.samples,
    }
