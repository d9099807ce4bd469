"""Online normalization: statistics sample by sample, a controlled gradient, and layer scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnlab.norms.derivatives import refuse_second_derivative, refuse_transforms
from bnlab.norms.formula import deviation, widened
from bnlab.norms.recurrence import linear_recurrence
from bnlab.norms.running import RunningLayer
from bnlab.norms.share import eager_forward
from bnlab.norms.strategy import Facts, InitialShare, NormLayer, Strategy, share_left, strategies
from bnlab.schema import param

CONTROLLED = "its gradient is a controlled one, not the derivative of the output"


@strategies.register("online")
@dataclass(frozen=True, kw_only=True)
class Online(Strategy):
    """Normalize each sample by exponential statistics of the samples before it, and control the gradient in return.

    The samples of a batch count in order, t = 1, 2, ...; a batch of n is n batches of 1 under the same weights. With
    a = forward_decay, m_t and v_t the mean and biased variance of sample t over H, W per channel ((N, C): x_t and 0):

    y_t = (x_t - mu_{t-1}) / sigma_{t-1}, sigma = sqrt(var + eps)
    mu_t = a * mu_{t-1} + (1 - a) * m_t
    var_t = a * var_{t-1} + (1 - a) * v_t + a * (1 - a) * (m_t - mu_{t-1})^2
    u_t = gamma * y_t + beta
    z_t = u_t / sqrt(E[u_t^2] + eps), E over C, H, W of the sample: layer scaling, which bounds the output

    No gradient goes through mu and var. Instead, with b = backward_decay and y'_t the gradient for y_t, two control
    errors per channel keep the gradient for x orthogonal to y and to 1 in the long run (E over H, W of the sample):

    x~_t = y'_t - (1 - b) * e_y(t-1) * y_t,               e_y(t) = e_y(t-1) + E[x~_t * y_t]
    x'_t = x~_t / sigma_{t-1} - (1 - b) * e_1(t-1),       e_1(t) = e_1(t-1) + E[x'_t]

    Start: mu = 0, var = 1, e_y = e_1 = 0. All four are buffers; mu and var move in the forward pass of training, e_y
    and e_1 once in each backward pass. As x' is not the derivative of the output, a comparison with finite differences
    fails, and is meant to. Evaluation takes mu and var as they are, then gamma, beta and layer scaling. `eps_outside`
    holds for both roots.

    Chiley et al., "Online Normalization for Training Neural Networks", 2019, in the order of the authors' code
    (normalize, gamma and beta, layer scaling), whose later default clamps u_t to [-5, 5] instead of layer scaling.
    Defaults as published: forward_decay 0.999, backward_decay 0.99, eps 1e-5, affine.
    """

    forward_decay: float = param(
        0.999, "share of the old mean and variance kept with each sample", low=0.0, high=0.999999
    )
    backward_decay: float = param(0.99, "share of the old control errors kept with each sample", low=0.0, high=1.0)

    facts = Facts(reads_batch=True, keeps_stats=True, exact_gradient=False)

    def layer(self, channels: int) -> NormLayer:
        return OnlineLayer(channels, self)

    def initial_share(self, steps: int, batch_size: int) -> InitialShare | None:
        return share_left(1 - self.forward_decay, steps, updates_per_step=batch_size)


class OnlineLayer(RunningLayer):
    """Recurrences over (N, C) give the statistics that each sample sees; the samples are then done all at once."""

    error_y: Tensor
    error_1: Tensor
    forward = eager_forward

    def __init__(self, channels: int, strategy: Online) -> None:
        super().__init__(channels, strategy, 1 - strategy.forward_decay)
        self.forward_decay, self.backward_decay = strategy.forward_decay, strategy.backward_decay
        self.register_buffer("error_y", torch.zeros(channels))
        self.register_buffer("error_1", torch.zeros(channels))

    def values_read(self, x: Tensor) -> None:
        """It divides by statistics of the samples before."""

    def initial_left(self) -> None:
        """The initial mean is also in the variance, by its distance to the samples."""

    def normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return self._layer_scaled(self.with_running(x))
        refuse_transforms("online", CONTROLLED)
        y: Tensor = OnlineNorm.apply(x, self.gamma, self.beta, self)
        return y

    def affine_map(self) -> None:
        """Layer scaling depends on the sample: evaluation is no affine map per channel."""

    def advance(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Move the running statistics past samples of these moments; return mu and sigma as each sees them, (N, C)."""
        self.num_batches_tracked.add_(1)
        a = self.forward_decay
        mu = linear_recurrence(a, mean * (1 - a), self.running_mean)
        shift = mean - mu[:-1]
        variances = linear_recurrence(a, torch.addcmul(var, shift, shift, value=a) * (1 - a), self.running_var)
        self.running_mean.copy_(mu[-1])
        self.running_var.copy_(variances[-1])
        return mu[:-1], deviation(variances[:-1], self.eps, self.eps_outside)

    def _layer_scaled(self, u: Tensor) -> Tensor:
        wide = widened(u)
        square = wide.square().mean(tuple(range(1, u.dim())), keepdim=True)
        return (wide / deviation(square, self.eps, self.eps_outside)).to(u.dtype)


class OnlineNorm(torch.autograd.Function):
    """y, u and z of `Online` from the moments of each sample, and the controlled gradient.

    Whatever the formulas average over H, W or over a sample follows from per-sample figures of shape (N, C): forward
    from the moments of x, E[y] = (m - mu) / sigma and E[y^2] = E[y]^2 + v / sigma^2; backward from those and from E[g]
    and E[g * y] of the incoming gradient g. With rho the divisor of layer scaling,

    u' = (g - k * z) / rho,  k = E[g * z over the sample] (times rho / root with `eps_outside`, root = rho - eps)
    y' = gamma * u',  dgamma = sum y * u',  dbeta = sum u'

    e_y(t) = (1 - (1 - b) * E[y_t^2]) * e_y(t-1) + E[y'_t * y_t],  e_1(t) = b * e_1(t-1) + E[x~_t] / sigma_{t-1}
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, layer: OnlineLayer) -> Tensor:
        mean = pixel_mean(x)
        if x.dim() == 2:
            centred, var = None, torch.zeros_like(mean)
        else:  # in plain sums: on CPU torch.var_mean takes six times as long
            centred = x - over_pixels(mean, x)
            var = centred.square().mean((2, 3))
        mu, sigma = layer.advance(mean, var)
        gamma = torch.ones_like(layer.running_mean) if weight is None else weight
        beta = torch.zeros_like(layer.running_mean) if bias is None else bias
        y_mean = (mean - mu) / sigma
        within = var / sigma.square()
        u_mean = torch.addcmul(beta, gamma, y_mean)
        square = torch.addcmul(u_mean.square(), gamma.square(), within).mean(1, keepdim=True)
        rho = deviation(square, layer.eps, layer.eps_outside)
        ctx.save_for_backward(x, mu, sigma, y_mean, within, rho, gamma, beta)
        ctx.layer, ctx.affine = layer, weight is not None
        z_mean = u_mean / rho
        if centred is None:
            return z_mean.to(x.dtype)
        scale = over_pixels(gamma / (sigma * rho), x)
        return torch.addcmul(over_pixels(z_mean, x), centred, scale, out=centred).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("online", CONTROLLED)
        x, mu, sigma, y_mean, within, rho, gamma, beta = ctx.saved_tensors
        layer: OnlineLayer = ctx.layer
        centred = x - over_pixels(mu, x)
        y_square = y_mean.square() + within
        g_mean, gy_mean = pixel_mean(grad), pixel_mean(grad * centred) / sigma
        k = (gamma * gy_mean + beta * g_mean).mean(1, keepdim=True) / rho
        if layer.eps_outside:
            k = k * rho / (rho - layer.eps).clamp(min=torch.finfo(rho.dtype).tiny)
        u_mean = (g_mean - k / rho * (gamma * y_mean + beta)) / rho  # E[u'] and, next, E[u' * y]
        uy_mean = (gy_mean - k / rho * (gamma * y_square + beta * y_mean)) / rho

        rate = 1 - layer.backward_decay
        errors_y = linear_recurrence(1 - rate * y_square, gamma * uy_mean, layer.error_y)
        e_y = errors_y[:-1]
        controlled_mean = gamma * u_mean - rate * e_y * y_mean
        errors_1 = linear_recurrence(layer.backward_decay, controlled_mean / sigma, layer.error_1)
        layer.error_y.copy_(errors_y[-1])
        layer.error_1.copy_(errors_1[-1])

        # x' = gamma * (g - k / rho * (gamma * y + beta)) / (rho * sigma) - rate * e_y * y / sigma - rate * e_1
        of_grad = gamma / (rho * sigma)
        of_centred = -(gamma * of_grad * (k / rho) + rate * e_y / sigma) / sigma
        constant = -(beta * of_grad * (k / rho) + rate * errors_1[:-1])
        dx = torch.addcmul(over_pixels(constant, x), centred, over_pixels(of_centred, x), out=centred)
        dx = dx.addcmul_(grad.to(dx.dtype), over_pixels(of_grad, x)).to(x.dtype)
        pixels = x.numel() // mu.numel()
        dgamma, dbeta = (uy_mean.sum(0) * pixels, u_mean.sum(0) * pixels) if ctx.affine else (None, None)
        return dx, dgamma, dbeta, None


def over_pixels(values: Tensor, x: Tensor) -> Tensor:
    """View (N, C) or (N, 1) so that it broadcasts over `x`."""
    return values.view(*values.shape, *(1,) * (x.dim() - 2))


def pixel_mean(values: Tensor) -> Tensor:
    """Return the mean over H, W, (N, C), in at least float32."""
    wide = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype
    return values.to(wide) if values.dim() == 2 else values.mean((2, 3), dtype=wide)
