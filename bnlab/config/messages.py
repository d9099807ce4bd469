"""What Hydra and OmegaConf complain of, in the words of bnlab's users."""

from __future__ import annotations

import re

from bnlab.config.files import added, groups, keys
from bnlab.errors import did_you_mean
from bnlab.record.latest import PLACE
from bnlab.schema import EVERY_KEY

HELP = "See https://hydra.cc"  # how Hydra ends many a message
NOT_SUPPORTED = ("ray_aws",)  # comes with Hydra's plugin for Ray, and bnlab does not drive it

# What keys are called elsewhere. A word that ends one of bnlab's own keys, as `lr` and `epochs` do, is not needed here.
ELSEWHERE = {
    "optim.lr": "learning_rate base_lr init_lr max_lr",
    "optim.weight_decay": "wd l2",
    "optim": "optimizer opt",
    "schedule": "scheduler lr_scheduler lr_schedule",
    "schedule.warmup": "warmup_epochs warmup_steps warmup_ratio",
    "data": "dataset task",
    "data.batch_size": "batch_size batchsize bs batch train_batch_size",
    "data.root": "data_dir data_root datadir",
    "data.size": "img_size image_size resolution",
    "data.train_size": "limit num_train num_samples subset",
    "data.valid_size": "val_size val_split valid_split validation_split",
    "eval.batch_size": "test_batch_size val_batch_size",
    "eval.every": "eval_interval eval_freq val_every val_interval check_val_every_n_epoch",
    "model": "arch architecture net network backbone",
    "model.widths": "width channels hidden hidden_sizes hidden_dim",
    "model.depth": "layers num_layers n_layers",
    "model.dropout": "drop dropout_rate drop_rate",
    "norm": "normalization norm_layer norm_type strategy",
    "norm.affine": "bn_affine elementwise_affine",
    "norm.eps": "epsilon bn_eps",
    "norm.groups": "num_groups",
    "norm.momentum": "bn_momentum",
    "norm.per": "over",
    "norm.size": "ghost_size ghost_batch_size virtual_batch_size",
    "seed": "random_seed manual_seed rng_seed",
    "trainer.accumulate": "accumulate_grad_batches accumulation_steps gradient_accumulation_steps grad_accum",
    "trainer.epochs": "num_epochs n_epochs max_epochs nb_epochs",
    "trainer.steps": "num_steps max_steps iterations iters",
    "trainer.device": "gpu gpus cuda",
    "trainer.label_smoothing": "smoothing",
    "trainer.threads": "num_threads",
    "trainer.precision": "amp bf16 dtype fp16 mixed_precision",
    "name": "run_name exp_name experiment_name tag",
}
# What is no key here, or takes other values, and how it is said.
INSTEAD = {
    f"set {PLACE}=FOLDER, which every command heeds": "runs_dir runs bnlab_runs out_dir outdir output_dir log_dir "
    " logdir logs save_dir savedir save_path result_dir results_dir work_dir workdir exp_dir default_root_dir",
    f"set {PLACE}=FOLDER for where runs go; `bnlab report --out FILE` writes a page": "out output",
    "set trainer.device=cuda:0, or cuda for one that is free": "gpu gpus cuda",
    "set trainer.precision=bfloat16": "amp bf16 fp16 half mixed_precision use_amp",
    "set data.flip=true, data.crop=4 or data.shift=2": "aug augment augmentation augmentations transform transforms",
    "set model.input_norm, to standardize, none or batch; a mean and deviation of your own stand in your own model, as "
    "`bnlab guide own-model` shows": "mean std means stds normalize img_mean img_std",
    "images lie in memory and nothing loads them; trainer.threads=2 sets torch's threads": "num_workers workers "
    "pin_memory prefetch_factor persistent_workers",
    "add a preset as +experiment=card; `bnlab list experiments` names them": "exp preset config cfg config_name",
    "`bnlab resume RUN` goes on with a run": "resume resume_from checkpoint checkpoint_path ckpt ckpt_path",
    "a run is as long as trainer.epochs or trainer.steps say": "patience early_stop early_stopping",
    "what decides looks at every seed, and a choice of settings would count it again: train the whole grid, then "
    "`bnlab compare SWEEP --best-of optim.lr`": "best_of",
    "`bnlab export mlflow` or `tensorboard` writes runs for other programs": "wandb mlflow tensorboard use_wandb "
    "logger project entity",
    "add --traceback to see where an error comes from, --inline for a debugger": "debug verbose",
}
CHOSEN = {"launcher": "joblib", "sweeper": "optuna"}  # of Hydra's plugins, for an example
SEEDS = ("seeds", "num_seeds", "n_seeds")


def meant_by(word: str) -> list[str]:
    """Return the keys that a word that is none may stand for: what it is called elsewhere, or where it stands here."""
    last = word.rpartition(".")[2].lower()
    if last in SEEDS:
        return ["seed"]
    known = [key for key, others in ELSEWHERE.items() if last in others.split()]
    return known or [key for key in keys() if key.rpartition(".")[2] == last and key != word]


def instead_of(word: str) -> str | None:
    """Return how it is said here what `word`, which is no key, stands for elsewhere; None: by a key, or not at all."""
    last = word.rpartition(".")[2].lower()
    return next((way for way, words in INSTEAD.items() if last in words.split()), None)


def readable(error: Exception, blamed: str = "an override") -> str:
    """Return what an error of Hydra or OmegaConf says of what is `blamed`, with what the user could have meant."""
    from hydra.errors import OverrideParseException

    text = str(error)
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text}\n{error.__cause__}"
    if no_option := re.search(r"Could not find '([^']+)/([^'/]*)'", text):
        group, option = no_option.groups()
        known = _options_in(text)
        there = f"\nthere are: {', '.join(known)}" if known else ""
        return f"{group}={option}: no such option{did_you_mean(option, known)}{there}"
    if to_add := re.search(r"To append to your default list use (\S+)", text):
        return f"{to_add.group(1).lstrip('+')}: comes on top of what is chosen\nuse {to_add.group(1)}"
    if no_key := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = no_key.group(1) or no_key.group(2)
        if having := [each.option for each in keys().get(key, ()) if each.option]:
            group = key.partition(".")[0]
            known = [other for other in meant_by(key) if other.startswith(f"{group}.")]
            meant = f"; did you mean {known[0]}?" if known else ""
            return f"{key}: the chosen {group} has no such key{meant}\nit is a key of: {', '.join(having)}"
        if key in SEEDS:
            return f"{key}: no such key; did you mean seed=0,1,2 or seed=range(5)?\nadd -m to train each seed"
        if key.startswith(("hydra.launcher.", "hydra.sweeper.")):
            group = key.split(".")[1]
            return f"{key}: the chosen {group} has no such key\nchoose another, as hydra/{group}={CHOSEN[group]}"
        if way := instead_of(key):
            return f"{key}: no such key\n{way}"
        value = blamed.partition("=")[2] if blamed.startswith(f"{key}=") else ""
        meant = " or ".join(f"{each}={value}" if value else each for each in meant_by(key))
        return f"{key}: no such key{f'; did you mean {meant}?' if meant else did_you_mean(key, keys())}\n{EVERY_KEY}"
    if twice := re.search(r"^(\S+) appears more than once in the final defaults list", text):
        return f"{twice.group(1)}: is chosen already\nwrite {twice.group(1)}=VALUE, without +"
    if interpolated := re.search(r"^(?:\w+ raised while resolving interpolation: )?(.*)\n\s*full_key: (\S+)", text):
        reason, key = interpolated.groups()
        return f"{key}: {reason}\nwrite the value itself, or ${{oc.env:NAME}} of a variable that is set"
    if swept := re.search(r"Ambiguous value for argument '(.*)'|Sweep parameters '(.*)' requires --multirun", text):
        argument = swept.group(1) or swept.group(2)
        return f"{argument}: several values\nadd -m to run one job for each, or write a list as [a,b]"
    if upward := re.search(r"In (\S+): Parent traversal .*\('([^']+)'\)", text):  # Hydra 1.4 looks at paths itself
        return f"{upward.group(1)}: {upward.group(2)} leads out of its folder\nname a file inside of it"
    if isinstance(error, OverrideParseException):
        return _unparsed(text, blamed)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(HELP)]
    return "\n".join(lines[:3])


def _options_in(text: str) -> list[str]:
    """Return the options of a group that Hydra's message lists, a user's own among them."""
    _, _, listed = text.partition("Available options in ")
    listed, _, _ = listed.partition("Config search path")
    return [word for line in listed.splitlines()[1:] if (word := line.strip()) and word not in NOT_SUPPORTED]


def _unparsed(text: str, blamed: str) -> str:
    """Return what is wrong with an argument that Hydra's grammar does not take."""
    quoted = re.search(r"Error parsing override '(.*)'\n|LexerNoViableAltException: (.*)\n", text)
    argument = (quoted.group(1) or quoted.group(2)) if quoted else ""
    if "missing EQUAL" in text:
        return _without_value(argument)
    if evaluated := re.search(r"while evaluating '.*': (.*(?:\n\S.*)?)", text):
        reason = evaluated.group(1).partition(f"\n{HELP}")[0]
        return f"{argument}: {reason[:1].lower()}{reason[1:]}"
    where = re.search(r"input '(.*?)'(?: expecting|\n)", text)
    if where is None:
        where = re.search(r"[^\x00-\x7f]", argument or blamed)
    found = where and where.group(where.lastindex or 0)
    at = "" if found is None else " where it ends" if found == "<EOF>" else f" at {found}"
    key, _, value = (argument or blamed).partition("=")
    if (squeezed := "".join(key.split())) != key and value:
        return f"{argument or blamed}: cannot be read{at}\nwrite {squeezed}={value}, without spaces"
    plain = bool(value) and re.fullmatch(r"[^\[{('\"\\\\$`][^'\"\\\\$`]*", value) is not None
    example = f"{key}='{value}'" if plain else "KEY='a=b'"
    return (
        f'{argument or blamed}: cannot be read{at}\nwrite KEY=VALUE, text with other signs in both quotes: "{example}"'
    )


def _without_value(word: str) -> str:
    of = [added(group) for group, options in groups().items() if word in options]
    if of:
        return f"{word}: is no KEY=VALUE\nwrite {' or '.join(f'{group}={word}' for group in of)}"
    if word in keys():
        return f"{word}: is no KEY=VALUE\nwrite {word}=VALUE, without spaces"
    options = [option for known in groups().values() for option in known]
    return f"{word}: is no KEY=VALUE{did_you_mean(word, [*options, *keys()])}\nwrite one such as norm=ghost"
