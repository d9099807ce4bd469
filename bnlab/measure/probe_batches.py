"""Fixed probe samples in batches, again and again with other batch-mates, and their logits under each.

A sample keeps its place in its batch and every batch its size, so that two evaluations differ by the batch-mates alone
and never by the order in which a kernel adds up: what does not depend on them comes out equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.measure.discrepancy import over_rms
from bnlab.seeding import generator


@dataclass(frozen=True)
class Probe:
    """Fixed samples of one split, whole batches of the size that training takes its statistics from."""

    split: str
    plain: Batches  # as in evaluation
    augmented: Batches | None  # the same samples as training sees them; None: it does not augment
    batch_size: int
    labels: Tensor  # int64 of shape (N,), on the device

    def __len__(self) -> int:
        return len(self.labels)


def probe_indices(available: int, wanted: int, batch_size: int) -> Tensor:
    """Return fixed sample numbers, the same for every seed; whole batches only, unless there is less than one."""
    count = min(available, wanted)
    count -= count % batch_size if count > batch_size else 0
    return torch.randperm(available, generator=generator(0, "probes"))[:count]


def batching(samples: int, batch_size: int, draw: int) -> Tensor:
    """Return an order of `samples` whose batches have other batch-mates for each `draw`; draw 0 is 0, 1, 2, ...

    Whole batches: samples at the same place of their batches change places, place by place. In draw 1 those at place j
    move on by j batches, so that no two neighbours stay together, however few the batches; the other draws are random.
    Samples beyond the whole batches stay.
    """
    order = torch.arange(samples)
    whole = samples // batch_size
    if draw and whole > 1:
        table = order[: whole * batch_size].view(whole, batch_size)
        if draw == 1:
            moved = (torch.arange(whole)[:, None] + torch.arange(batch_size)) % whole
        else:
            moved = torch.rand(whole, batch_size, generator=generator(0, "probes", draw)).argsort(0)
        order[: whole * batch_size] = table.gather(0, moved).flatten()
    return order


@torch.no_grad()
def logits_in_batches(
    model: nn.Module,
    batches: Batches,
    batch_size: int,
    draw: int = 0,
    before: Callable[[], None] | None = None,
    with_gradient: bool = False,
) -> Tensor:
    """Return the logits (N, classes), float32 in sample order, of one draw of batches; `before` is called before each.

    Augmented batches are augmented anew for every draw. `with_gradient`: the model runs with gradients on.
    """
    order = batching(len(batches), batch_size, draw)
    in_order: Tensor | None = None
    done = 0
    for images, _ in batches.in_order(order, batch_size, draw):
        if before is not None:
            before()
        with torch.set_grad_enabled(with_gradient):
            logits = model(images).detach().float()
        if in_order is None:
            in_order = logits.new_empty(len(batches), *logits.shape[1:])
        in_order[order[done : done + len(logits)].to(in_order.device)] = logits
        done += len(logits)
    assert in_order is not None
    return in_order


def mate_noise(drawn: Tensor, reference: Tensor) -> float:
    """Return how much a sample's logits vary with its batch-mates, over the RMS of the `reference` logits.

    The mean over samples of the standard deviation over draws of `drawn`, (K, N, classes); 0 for a single draw.
    """
    if len(drawn) < 2:
        return 0.0
    off = drawn.double() - drawn[:1].double()  # from the first draw, so that equal logits have noise 0
    return over_rms(off.var(0).mean(-1).sqrt().mean(), reference)
