"""What a training step moves and holds: bytes that its operations read and write, and the most that lives at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_NOTHING_MOVED = ("empty", "empty_like", "empty_strided", "new_empty", "detach", "alias")


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
    with _Counter() as counter:
        step()
    return Traffic(counter.moved, counter.peak)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = self.peak = self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if not is_view and schema.name.removeprefix("aten::") not in _NOTHING_MOVED:
            self.moved += sum(map(_bytes, _tensors([args, kwargs]))) + sum(map(_bytes, _tensors(result)))
        if not is_view:
            for tensor in _tensors(result):
                self._born(tensor)
        return result

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
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
