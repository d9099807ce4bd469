"""What Hydra and OmegaConf complain of, in the words of bnlab's users."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from bnlab.config_files import CONFIG_NAME, conf_dir, groups
from bnlab.errors import did_you_mean


def readable(error: Exception) -> str:
    """Return what an error of Hydra or OmegaConf says, with what the user could have meant."""
    text = str(error)
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text}\n{error.__cause__}"
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = found.groups()
        known = groups().get(group, {})
        there = f"\nthere are: {', '.join(known)}" if known else ""
        return f"{group}={option}: no such option{did_you_mean(option, known)}{there}"
    if found := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = found.group(1) or found.group(2)
        if having := _known_keys().get(key):
            group = key.partition(".")[0]
            return f"{key}: the chosen {group} has no such key\nit is a key of: {', '.join(having)}"
        return f"{key}: no such key{did_you_mean(key, _known_keys())}\n`bnlab train --cfg job` prints every key"
    if "Ambiguous value for argument" in text:
        argument = text.partition("'")[2].partition("'")[0]
        return f"{argument}: several values\nadd -m to run one job for each, or write a list as [a,b]"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:3])


@cache
def _known_keys() -> dict[str, list[str]]:
    """Every dotted key, with the options of its group that have it."""
    from omegaconf import OmegaConf

    def walk(node: Any, path: str) -> Iterator[str]:
        for key, value in node.items():
            yield f"{path}{key}"
            if isinstance(value, Mapping):
                yield from walk(value, f"{path}{key}.")

    root = conf_dir()
    top = OmegaConf.to_container(OmegaConf.load(root / f"{CONFIG_NAME}.yaml"))
    assert isinstance(top, dict)
    known: dict[str, list[str]] = {key: [] for key in walk(top, "") if not key.startswith(("hydra", "defaults"))}
    for group, options in groups().items():
        known[group] = []
        for option in options:
            for key in walk(OmegaConf.to_container(OmegaConf.load(root / group / f"{option}.yaml")), f"{group}."):
                known.setdefault(key, []).append(option)
    return known
