"""A model's weights in the layouts that training scripts save: where in a file they stand, by which names.

Files hold them alone or below any key (`state_dict`, `ema`, `net`); their names may have what wrappers add at any place
(`module.`, `_orig_mod.`) and a name of their own in front of all (`model.`). What else a file holds is left aside.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnlab.errors import ConfigError, RecordError, did_you_mean

FIRST = ("model", "state_dict", "model_state_dict")  # where several keys hold weights that fit: taken first
DEPTH = 4  # of keys below keys
NAMED = 3  # names that a message names, then a count
WRAPPERS = ("module", "_orig_mod")  # of DataParallel and AveragedModel, of torch.compile


@dataclass(frozen=True)
class Place:
    """Where a file holds the weights of a model."""

    keys: tuple[str, ...] = ()  # one below the other; none: the file is the state dict
    names: Mapping[str, str] = field(default_factory=dict)  # of the model -> in the file
    others: tuple[str, ...] = ()  # other places whose weights fit as well
    left: tuple[str, ...] = ()  # names beside them that the model lacks
    problems: tuple[str, ...] = ()  # what does not fit

    @property
    def about(self) -> list[str]:
        """What a reader must know of it."""
        said = [f"weights: {'.'.join(self.keys)}, not {', '.join(self.others)} (--key)"] if self.others else []
        return said + ([f"left aside of the file: {_listed(self.left)}"] if self.left else [])

    def state_in(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the state dict in a file's content."""
        for key in self.keys:
            content = content[key]
        return content

    def replaced(self, content: Mapping[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        """Return a file's content with another state dict at this place."""
        if not self.keys:
            return state
        first, rest = self.keys[0], Place(self.keys[1:])
        return {**content, first: rest.replaced(content[first], state)}


def load_weights(model: nn.Module, content: Mapping[str, Any], source: str, key: str | None = None) -> Place:
    """Put the weights that a file's `content` holds, at `key` if it is given, into `model`; return where they stood.

    Errors: RecordError naming what does not fit; ConfigError where there is no such key.
    """
    known = model.state_dict()
    places = [_fitted(keys, state, known) for keys, state in _states(content, key)]
    if key is not None and not places:
        keys = [".".join(keys) for keys, _ in _states(content, None) if keys]
        there = f"there are: {', '.join(keys)}" if keys else "the file is one state dict; omit --key"
        raise ConfigError(f"--key {key}: {source} has no weights there{did_you_mean(key, keys)}\n{there}")
    fitting = sorted((place for place in places if not place.problems), key=_rank)
    if not fitting:
        best = max(places, key=lambda place: len(place.names), default=None)
        raise _misfit(source, ("holds no state dict",) if best is None else best.problems)
    found = fitting[0]
    state = found.state_in(content)
    weights = OrderedDict((name, state[inside]) for name, inside in found.names.items())
    if all(name == inside for name, inside in found.names.items()) and hasattr(state, "_metadata"):
        weights._metadata = state._metadata  # type: ignore[attr-defined]  # versions, which some modules load by
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:  # of a module that loads in a way of its own
        raise _misfit(source, [" ".join(line.strip() for line in str(error).splitlines()[:2])]) from error
    others = tuple(".".join(place.keys) or "the whole file" for place in fitting[1:])
    return Place(found.keys, found.names, others, found.left)


def _misfit(source: str, problems: Sequence[str]) -> RecordError:
    return RecordError(
        f"{source}: does not fit the model: {'; '.join(problems)}\n"
        "make the model as in training and save model.state_dict(), or let the factory load the file: omit --checkpoint"
    )


def _states(content: Mapping[str, Any], key: str | None) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield what may be a state dict, with its keys: below `key`, or anywhere."""

    def inside(keys: tuple[str, ...], held: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
        if any(isinstance(value, Tensor) for value in held.values()) and all(isinstance(name, str) for name in held):
            yield keys, held
        for name, value in held.items():
            if isinstance(value, Mapping) and isinstance(name, str) and len(keys) < DEPTH:
                yield from inside((*keys, name), value)

    for keys, state in inside((), content):
        if key is None or ".".join(keys) == key:
            yield keys, state


def _rank(place: Place) -> tuple[int, int]:
    """The weights themselves before averages of them; the outermost first."""
    last = place.keys[-1] if place.keys else FIRST[0]
    return (FIRST.index(last) if last in FIRST else len(FIRST), len(place.keys))


def _fitted(keys: tuple[str, ...], state: Mapping[str, Any], known: Mapping[str, Any]) -> Place:
    """Return where the names of a model stand in `state`, with what does not fit."""
    names = _matched(state, known)
    missing = [name for name in known if name not in names and not name.endswith("num_batches_tracked")]
    shapes = [
        f"{name} is {_shape(state[inside])} in the file, {_shape(known[name])} in the model"
        for name, inside in names.items()
        if not is_lazy(known[name]) and _shape(state[inside]) != _shape(known[name])
    ]
    shapes += [
        f"{name} is {str(held.dtype).removeprefix('torch.')} in the file"
        for name, inside in names.items()
        if known[name].is_floating_point() and isinstance(held := state[inside], Tensor)
        if not held.is_floating_point()
    ]
    used = set(names.values())
    left = tuple(name for name in state if name not in used)
    problems = [f"lacks {_listed(missing)}"] if missing else []
    if missing and all(name.endswith(("running_mean", "running_var")) for name in missing):
        problems = [f"holds no running statistics: {problems[0]}, buffers, which state_dict() has"]
    problems += [f"also has {_listed(left)}"] if missing and left else []
    return Place(keys, names, (), left, (*problems, *([_listed(shapes)] if shapes else [])))


def _matched(state: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """Return model name -> name in the file, under the one way of renaming that finds most of them."""
    direct = {name: name for name in known if name in state}
    bare, wanted = ({_bare(name): name for name in names} for names in (state, known))
    if len(direct) == len(known) or not known or len(bare) < len(state) or len(wanted) < len(known):
        return direct
    first = next(iter(wanted))
    prefixes = ["", *(name[: -len(first)] for name in bare if name.endswith(f".{first}"))]
    ways = [{wanted[name]: bare[prefix + name] for name in wanted if prefix + name in bare} for prefix in prefixes]
    return max([direct, *ways], key=len)


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:NAMED])}{f', … ({len(names):,} in all)' if len(names) > NAMED else ''}"
