"""What a training step moves and holds: bytes that its operations read and write, and the most that lives at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FREE = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "detach", "alias"}
_FREE |= {"_unsafe_view"}  # a view that its schema does not call one
# What the first argument holds is not read.
_OVERWRITING = {"copy_", "fill_", "zero_", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}


@dataclass(frozen=True)
class Traffic:
    """Bytes of one step.

    moved: each operation reads its inputs once and writes its outputs once, views are free: what must go through memory
    where every operation is a kernel of its own and nothing stays in a cache. peak: alive at once, beyond what was
    there before the step, such as weights.
    """

    moved: int
    peak: int


def traffic_of(step: Callable[[], object]) -> Traffic:
    """Run `step` once and count."""
    with _TrafficCounter() as counter:
        step()
    return Traffic(counter.moved, counter.peak)


class _TrafficCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = self.peak = self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        if any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
            return result  # a view
        given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | dict(kwargs or {})
        before = {tensor.untyped_storage()._cdata for tensor in _tensors(given)}
        born = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in before]
        if (name := schema.name.removeprefix("aten::")) not in _FREE:
            changed = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
            unread = {a.name for a in schema.arguments if a.is_out}
            if name in _OVERWRITING:
                unread.add(schema.arguments[0].name)
            read = [value for key, value in given.items() if key not in unread]
            written = [value for key, value in given.items() if key in changed]
            self.moved += sum(map(_bytes, _tensors([read, written, born])))
        for tensor in born:
            self._born(tensor.untyped_storage())
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())
