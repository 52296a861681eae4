"""Whitening by the covariance of a batch (ZCA): what batch normalization leaves out because it costs too much."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class ZCA(nn.Module):
    """Whiten the channels of ``(N, C)`` or ``(N, C, H, W)``, then scale by gamma and shift by beta.

    Over the vectors of C channels in a batch, ``y = gamma * (Cov + eps I)^(-1/2) (x - mean) + beta``: every
    channel then has mean beta and variance gamma^2 (but for eps), as after batch normalization, and no two are
    correlated. Of all maps that do so, the symmetric root changes x least (ZCA). Gradients flow through mean and
    covariance.

    For evaluation a running mean and a running covariance (unbiased) stand in, weighed as torch's batch
    normalization weighs its own: `momentum` is the share of the new batch.
    """

    running_mean: torch.Tensor
    running_cov: torch.Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_cov", torch.eye(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The whitened batch, in the shape and the memory order of channels-last."""
        last = x.movedim(
            1, -1
        )  # for channels-last memory the vectors lie one after another: nothing is copied
        vectors = last.reshape(-1, x.shape[1])
        if self.training:
            centred, cov = self._moments(vectors)
        else:
            centred, cov = vectors - self.running_mean, self.running_cov
        root = inverse_root(cov + self.eps * torch.eye(len(cov), dtype=cov.dtype))
        y = torch.addmm(self.bias, centred, root * self.weight)
        return y.reshape(last.shape).movedim(-1, 1)

    def _moments(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch less its mean, and its biased covariance; the running moments take their share."""
        count = len(vectors)
        if count < 2:
            raise ValueError(f"ZCA: expected at least 2 vectors to whiten by, got {count}.")
        mean = vectors.mean(0)
        centred = vectors - mean
        cov = centred.T @ centred / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_cov.lerp_(cov * (count / (count - 1)), self.momentum)
        return centred, cov


def inverse_root(matrix: torch.Tensor) -> torch.Tensor:
    """``A^(-1/2)`` of a symmetric positive definite ``(C, C)``; equal eigenvalues do not break its gradient.

    A matrix that is not finite has a root of nan, so that a training that diverges is seen in its loss.
    """
    root: torch.Tensor = _InverseRoot.apply(matrix)  # type: ignore[no-untyped-call]
    return root


class _InverseRoot(torch.autograd.Function):
    """Through the eigenvalues, in float64.

    The gradient of f(A) in the basis of A's eigenvectors is the given one times the divided differences
    ``(f(l_i) - f(l_j)) / (l_i - l_j)`` (Daleckii and Krein). For ``f = l^(-1/2)`` and ``s = sqrt(l)`` they are
    ``-1 / (s_i s_j (s_i + s_j))``: no difference is left to divide by, unlike in the gradient of `eigh` itself.
    """

    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor) -> torch.Tensor:
        if not bool(matrix.isfinite().all()):
            ctx.save_for_backward(matrix.double(), matrix.double()[0])
            return torch.full_like(matrix, torch.nan)
        values, vectors = torch.linalg.eigh(matrix.double())
        # Rounding can make less than nothing of an eigenvalue that is small beside the largest.
        roots = values.clamp_min(float(torch.finfo(matrix.dtype).eps * values[-1])).sqrt()
        ctx.save_for_backward(vectors, roots)
        return torch.as_tensor((vectors / roots) @ vectors.T, dtype=matrix.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        vectors, roots = ctx.saved_tensors
        divided = -1 / (roots[:, None] * roots * (roots[:, None] + roots))
        inner = vectors.T @ grad.double() @ vectors
        return torch.as_tensor(vectors @ (divided * (inner + inner.T) / 2) @ vectors.T, dtype=grad.dtype)
