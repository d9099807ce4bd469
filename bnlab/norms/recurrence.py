"""Linear recurrences over the samples of a batch, all of them at once."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_recurrence(factors: float | Tensor, terms: Tensor, initial: Tensor) -> Tensor:
    """Return h_0, ..., h_N of h_t = factors_t * h_{t-1} + terms_t from h_0 = `initial`, shape (N + 1, C).

    `terms` and `factors` are (N, C), `initial` is (C,); one number for `factors` holds for all. The steps are composed
    in pairs, then pairs of pairs: log2(N) passes over the batch and no division, so that factors near 0 do no harm.
    """
    h = torch.cat([initial[None], terms])
    reach = 1  # h[t] is already composed of the last `reach` steps, `factors` belongs to h[reach:]
    while reach < len(h):
        if isinstance(factors, Tensor):
            composed = torch.addcmul(h[reach:], factors, h[:-reach])
            factors = factors[reach:] * factors[:-reach]
        else:
            composed = torch.add(h[reach:], h[:-reach], alpha=factors)
            factors = factors * factors
        h = torch.cat([h[:reach], composed])
        reach *= 2
    return h
