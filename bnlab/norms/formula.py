"""The formula written out, and what shapes and layouts say of a tensor.

The layers call torch's fused kernels. `moments` and `normalize` are the same formula written out; they serve what no
kernel has, such as `eps_outside`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def count_per_channel(x: Tensor) -> int:
    """Return N * H * W, from the shape alone."""
    return x.numel() // x.shape[1]


def batch_axes(x: Tensor) -> tuple[int, ...]:
    """Return every axis but the channel's."""
    return (0, *range(2, x.dim()))


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """View (C,) so that it broadcasts over `x`."""
    return values.view(1, -1, *(1,) * (x.dim() - 2))


def widened(x: Tensor) -> Tensor:
    """Return `x` in at least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def moments(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over `dims`, which stay as ones, in at least float32."""
    var, mean = torch.var_mean(widened(x), tuple(dims), correction=0, keepdim=True)
    return mean, var


def deviation(var: Tensor, eps: float, eps_outside: bool) -> Tensor:
    """Return sqrt(var + eps), or with `eps_outside` sqrt(var) + eps.

    The variance is then kept above the smallest positive number, so that one of 0 has gradient 0 and not 0 * inf.
    """
    return var.clamp(min=torch.finfo(var.dtype).tiny).sqrt() + eps if eps_outside else torch.sqrt(var + eps)


def normalize(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_outside: bool
) -> Tensor:
    """Return `(x - mean) * gamma / sqrt(var + eps) + beta` in the dtype of `x`.

    With `eps_outside` the divisor is `sqrt(var) + eps`. Subtracting first keeps a large offset from cancelling.
    """
    scale = deviation(var, eps, eps_outside).reciprocal()
    if weight is not None:
        scale = scale * per_channel(weight, x)
    centred = (x - mean) * scale
    return (centred if bias is None else centred + per_channel(bias, x)).to(x.dtype)


def kernel_input(x: Tensor, weight: Tensor | None) -> Tensor:
    """Widen a bfloat16 or float16 input on CUDA, whose layer and group norm do not mix it with float32 parameters."""
    return widened(x) if x.is_cuda and weight is not None else x


def is_channels_last(x: Tensor) -> bool:
    """Tell whether the channel is the fastest axis; an input that is also contiguous counts as contiguous."""
    return x.dim() == 4 and not x.is_contiguous() and x.permute(0, 2, 3, 1).is_contiguous()  # which vmap can tell
