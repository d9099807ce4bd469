"""Which arm each arm is compared with: the one that the baseline's keys name and that shares everything else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from bnlab.compare.arms import Arm, find_key, is_value, text_of
from bnlab.errors import ConfigError, did_you_mean

NATURAL = {"norm.name": "none", "eval.stats": "running"}  # what a comparison of these is against, unless one says


def baselines(arms: Sequence[Arm], changed: Sequence[str], spec: str | None) -> list[int | None] | None:
    """Return for each arm the index of its baseline, itself for a baseline and None where there is none.

    `spec` may be an arm's label or a part of one (`none`, `norm=none`, `norm=none lr=0.1`): an arm's baseline is the
    arm that has these values and shares its other keys, so with two models each has its own. Without `spec` it is what
    NATURAL says where that is an arm, else the first arm's value of the first key. None when `spec` names no arm here.

    Errors: ConfigError when an arm would have more than one baseline.
    """
    fixed = _wanted(arms, changed, spec) if spec is not None else _default(arms, changed)
    named = [i for i, arm in enumerate(arms) if _has(arm, fixed)]
    if not named or (spec is not None and not fixed):
        return None
    indices: list[int | None] = []
    for i, arm in enumerate(arms):
        bases = [i] if i in named else [j for j in named if _share(arm, arms[j], changed, fixed)]
        if len(bases) > 1 and spec is not None:
            labels = ", ".join(arms[j].label for j in bases)
            raise ConfigError(f"--baseline {spec}: {arm.label} would have {len(bases)}: {labels}\nname one of them")
        indices.append(bases[0] if bases else None)
    return indices


def unknown_baseline(spec: str, arms: Iterable[Arm]) -> ConfigError:
    """Return the error of a `spec` that names none of `arms`."""
    labels = [arm.label for arm in arms]
    near = did_you_mean(spec, labels)
    return ConfigError(f"--baseline {spec}: no such arm{near}\nthere are: {', '.join(labels[:12])}")


def _default(arms: Sequence[Arm], changed: Sequence[str]) -> dict[str, str]:
    for key, value in NATURAL.items():
        if any(arm.values.get(key) == value for arm in arms):
            return {key: value}
    first = next((k for k in changed if k in arms[0].values), None)
    return {} if first is None else {first: text_of(arms[0].values[first])}


def _wanted(arms: Sequence[Arm], changed: Sequence[str], spec: str) -> dict[str, str]:
    """Return the keys and values that `spec` names; empty when a word of it fits no arm."""
    for arm in arms:
        if arm.label == spec:
            return {key: text_of(value) for key, value in arm.values.items()}
    fixed: dict[str, str] = {}
    for word in re.split(r"[ ,]+(?![^\[\]]*\])", spec.strip()):
        name, equals, value = word.partition("=")
        try:
            keys = [find_key(name, changed)] if equals else list(changed)
        except ConfigError:
            return {}
        text = value if equals else word
        fitting = [k for k in keys if any(_has(arm, {k: text}) for arm in arms)]
        if not fitting:
            return {}
        fixed[fitting[0]] = text
    return fixed


def _has(arm: Arm, fixed: Mapping[str, str]) -> bool:
    return all(key in arm.values and is_value(arm.values[key], text) for key, text in fixed.items())


def _share(arm: Arm, other: Arm, changed: Sequence[str], fixed: Mapping[str, str]) -> bool:
    """Return whether two arms agree on the keys outside `fixed` that both have."""
    rest = (k for k in changed if k not in fixed and k in arm.values and k in other.values)
    return all(arm.values[k] == other.values[k] for k in rest)
