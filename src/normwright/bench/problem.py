"""The tensors of a case: what a layer meets, in values and in memory, and what it must make of them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from normwright.bench.cases import Case, Op
from normwright.bench.truth import Array, Inputs, Truth, sample

EPS = 1e-5


@dataclass(frozen=True)
class Problem:
    """A case's tensors; `wide` is the type that the reference computes in.

    Attributes:
        case: what they are made for.
        x, dy, residual: as the case says; a slice's dy and residual are dense, as a layer before it makes them.
        gamma, beta, mean, var: (C,); mean and var for inference.
        channels: those whose values are compared with the reference.
    """

    case: Case
    x: Tensor
    dy: Tensor
    residual: Tensor
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor
    channels: Array

    @property
    def wide(self) -> type[np.floating]:
        """float64, or wider where that is the type of the case itself."""
        return np.longdouble if self.case.dtype == "float64" else np.float64

    def truth(self, op: Op) -> Truth:
        """What a layer and what follows it must give."""
        per_channel = (self.gamma, self.beta, self.mean, self.var)
        gamma, beta, mean, var = (t[self.channels].numpy().astype(self.wide) for t in per_channel)
        residual = self._residual if op == "bn+add+relu" else None
        relu = op != "bn"
        return Truth(Inputs(self._x, self._dy, gamma, beta, mean, var, EPS, residual, relu))

    @cached_property
    def _x(self) -> Array:
        return self.rows(self.x)

    @cached_property
    def _dy(self) -> Array:
        return self.rows(self.dy)

    @cached_property
    def _residual(self) -> Array:
        return self.rows(self.residual)

    def rows(self, t: Tensor) -> Array:
        """The channels compared of a tensor (N, C, ...), as rows (c, m)."""
        some = t.detach().movedim(1, 0)[self.channels]
        return some.reshape(len(self.channels), -1).double().numpy().astype(self.wide, copy=False)


def problem(case: Case) -> Problem:
    """Normal values, an offset and a scale of its own for each channel; the same in every run."""
    draw = torch.Generator().manual_seed(0)
    channels, dtype = case.shape[1], getattr(torch, case.dtype)
    parameters = torch.float64 if case.dtype == "float64" else torch.float32
    along = [1, channels] + [1] * (len(case.shape) - 2)
    scale, offset = torch.rand(along, generator=draw) + 0.5, torch.rand(along, generator=draw) - 0.5
    x, dy, residual = (torch.randn(case.shape, generator=draw) for _ in range(3))
    x.mul_(scale).add_(offset)
    gamma, var = (torch.rand(channels, generator=draw).add_(0.5).to(parameters) for _ in range(2))
    beta, mean = (torch.randn(channels, generator=draw).to(parameters) for _ in range(2))
    return Problem(
        case,
        _laid_out(x.to(dtype), case).requires_grad_(),
        _dense(dy.to(dtype), case),
        _dense(residual.to(dtype), case).requires_grad_(),
        gamma,
        beta,
        mean,
        var,
        sample(channels, case.values // channels),
    )


def _laid_out(t: Tensor, case: Case) -> Tensor:
    """`t` as the case's layout has it; of a slice the other half of the channels is there too."""
    if case.layout != "NCHW slice":
        return _dense(t, case)
    return torch.cat([t, t], dim=1)[:, : t.shape[1]]


def _dense(t: Tensor, case: Case) -> Tensor:
    if case.layout != "channels-last":
        return t
    return t.contiguous(memory_format=torch.channels_last if len(case.shape) == 4 else torch.channels_last_3d)


def lies_as(y: Tensor, x: Tensor) -> bool:
    """Whether y lies in memory as x, or as a dense copy of x would; strides of axes of one value mean nothing."""
    wanted = torch.empty_like(x).stride()
    return all(size == 1 or a == b for size, a, b in zip(x.shape, y.stride(), wanted, strict=True))
