"""A finished run evaluated again under other settings of evaluation, from its checkpoint; kept beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnlab.errors import RecordError
from bnlab.experiment.config import Config, identity, parse_config
from bnlab.experiment.setup import device_batches
from bnlab.experiment.trained_model import TrainedModel, num_workers, of_run
from bnlab.record.evaluations import FILE, SETTINGS, Evaluations, read_evaluations, weights_of, with_settings
from bnlab.record.plain_files import write_json
from bnlab.record.read import SCHEMA, read_documents
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
            found = {key: _evaluated(trained, config) for key, config in missing.items()}
        with held(folder):
            entries: Evaluations = read_evaluations(folder) | found
            content = {"schema": SCHEMA, "weights": weights_of(folder), "evaluations": entries}
            write_json(folder / FILE, content, durable=False)
    return len(missing)


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
