"""Gradients as tensor operations: differentiable again, and open to whatever follows operations.

m is the number of values of a channel, and x_hat = (x - mean) * rstd.
"""

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Channels:
    """Sums over channels of x, and per-channel numbers laid along them."""

    def __init__(self, x: Tensor, axis: int) -> None:
        self.dims = [d for d in range(x.dim()) if d != axis]
        self.shape = [-1 if d == axis else 1 for d in range(x.dim())]
        self.values = x.numel() // x.shape[axis]

    def along(self, numbers: Tensor) -> Tensor:
        """(C,) numbers in a shape that broadcasts with x."""
        return numbers.view(self.shape)

    def mean(self, t: Tensor) -> Tensor:
        return t.mean(self.dims, keepdim=True)

    def sum(self, t: Tensor) -> Tensor:
        return t.sum(self.dims)


def moments(x: Tensor, of: Channels) -> tuple[Tensor, Tensor, Tensor]:
    """mean, mean_tail and m2 of (C,), float64, zeros of no values. The second sums are of values near 0."""
    values = max(of.values, 1)
    near = of.sum(x) / values
    centred = x - of.along(near)
    left, near = of.sum(centred).double(), near.double()
    mean, m2 = near + left / values, of.sum(centred.square()).double() - left.square() / values
    tail = (near - mean) + left / values
    return mean, torch.where(torch.isfinite(tail), tail, 0.0), m2.clamp(min=0)


def normalized(x: Tensor, mean: Tensor, eps: float, of: Channels) -> tuple[Tensor, Tensor]:
    """x_hat and rstd as functions of x. `mean` is a constant near x's mean: taking it off first keeps digits."""
    centred = x - of.along(mean).to(x.dtype)
    centred = centred - of.mean(centred)
    rstd = (of.mean(centred.square()) + eps).rsqrt()
    return centred * rstd, rstd


def normalized_by(
    x: Tensor, mean: Tensor, rstd: Tensor, of: Channels, mean_tail: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """x_hat and rstd from float64 numbers, the mean as two of x's type."""
    hi = mean.to(x.dtype)
    lo = ((mean - hi) + mean_tail).to(x.dtype)
    rstd = of.along(rstd.to(x.dtype))
    return (x - of.along(hi) - of.along(lo)) * rstd, rstd


def train(
    dy: Tensor, x_hat: Tensor, rstd: Tensor, weight: Tensor | None, of: Channels
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in training.

    dx = weight * rstd * (dy - mean(dy) - x_hat * mean(dy * x_hat)), dweight = sum(dy * x_hat), dbias = sum(dy)
    """
    product = dy * x_hat
    scale = rstd if weight is None else rstd * of.along(weight)
    dx = scale * (dy - of.mean(dy) - x_hat * of.mean(product))
    return dx, of.sum(product), of.sum(dy)


def fixed(
    dy: Tensor, x_hat: Tensor, rstd: Tensor, weight: Tensor | None, of: Channels
) -> tuple[Tensor, Tensor, Tensor]:
    """dx = weight * rstd * dy, dweight = sum(dy * x_hat), dbias = sum(dy)."""
    scale = rstd if weight is None else rstd * of.along(weight)
    return scale * dy, of.sum(dy * x_hat), of.sum(dy)


def second_train(
    given: Gradients, dy: Tensor, x_hat: Tensor, rstd: Tensor, weight: Tensor | None, of: Channels
) -> Gradients:
    """Gradients to dy, x and weight of L = <u, dx> + <a, dweight> + <b, dbias>, where `given` is (u, a, b).

    With s = mean(u x_hat), t = mean(dy x_hat), P v = v - mean(v) - x_hat mean(v x_hat) and scale = weight * rstd:

    dL/ddy     = scale * P u + a * x_hat + b
    dL/dx      = rstd * ((a - scale * s) * P dy - scale * t * P u - x_hat * mean(u dx))
    dL/dweight = m * rstd * (mean(u dy) - mean(u) mean(dy) - s * t)
    """
    u, a, b = (None if g is None else of.along(g) if k else g for k, g in enumerate(given))
    scale = rstd if weight is None else rstd * of.along(weight)
    dy_mean, t = of.mean(dy), of.mean(dy * x_hat)
    to_dy, to_x, to_weight = b, None, None
    if u is not None:
        u_mean, s = of.mean(u), of.mean(u * x_hat)
        agreement = rstd * (of.mean(u * dy) - u_mean * dy_mean - s * t)
        projected = scale * (u - u_mean - x_hat * s)
        to_dy = projected if to_dy is None else projected + to_dy
        to_x = -rstd * t * projected - x_hat * (scale * agreement)
        to_weight = (of.values * agreement).reshape(-1)
        t_scale = -scale * s if a is None else a - scale * s
    elif a is not None:
        t_scale = a
    if u is not None or a is not None:
        from_dy = (rstd * t_scale) * (dy - dy_mean - x_hat * t)
        to_x = from_dy if to_x is None else to_x + from_dy
    if a is not None:
        to_dy = a * x_hat if to_dy is None else to_dy + a * x_hat
    return None if to_dy is None else to_dy.expand_as(dy), to_x, None if weight is None else to_weight
