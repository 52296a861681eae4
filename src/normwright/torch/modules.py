"""The layers: subclasses of torch's own, with the same constructor, state and results."""

from typing import ClassVar

from torch import Tensor, fx, nn

from normwright.core import checks
from normwright.torch import kernels
from normwright.torch.functional import normalize


class _Layer(nn.modules.batchnorm._BatchNorm):
    """What the three layers share: a forward that checks first, then counts, and takes the native kernels."""

    _ranks: ClassVar[tuple[int, ...]]
    _name: ClassVar[str]

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input`; in training, move the running statistics. Nothing moves on an error."""
        traced: object = input
        if isinstance(traced, fx.Proxy):  # torch's own layers are leaves of a symbolic trace, and so are ours
            path = traced.tracer.path_of_module(self)  # type: ignore[attr-defined]
            return traced.tracer.create_proxy("call_module", path, (traced,), {})  # type: ignore[return-value]
        if kernels.being_traced():
            return super().forward(input)
        checks.check_rank(self._name, input.shape, self._ranks)
        training = self.training
        if training and not self.track_running_stats:
            running_mean, running_var = None, None
        else:
            running_mean, running_var = self.running_mean, self.running_var
        by_batch = training or (running_mean is None and running_var is None)
        rate: float = 0.0 if self.momentum is None else self.momentum
        counter = self.num_batches_tracked if training and self.track_running_stats else None
        if counter is not None and self.momentum is None:
            rate = 1.0 / float(counter + 1)
        weight, bias = self.weight, self.bias
        return normalize(
            self._name, input, running_mean, running_var, weight, bias, by_batch, rate, self.eps, counter
        )

    def _check_input_dim(self, input: Tensor) -> None:
        checks.check_rank(self._name, input.shape, self._ranks)


class BatchNorm1d(_Layer, nn.BatchNorm1d):
    """Batch normalization of (N, C) or (N, C, L): `torch.nn.BatchNorm1d`, computed by normwright's kernels.

    y = weight * (x - mean) / sqrt(var + eps) + bias

    Args:
        num_features: C.
        eps: added to the variance, 1e-5 (torch's).
        momentum: weight of the NEW batch in the running statistics, 0.1 (torch's); None for the plain mean
            of all batches.
        affine: learn weight and bias, (C,). Default True (torch's).
        track_running_stats: keep running_mean and running_var (unbiased), (C,). Default True (torch's).
        device, dtype: of parameters and buffers.
        bias: False leaves bias out of affine. Default True (torch's).

    Raises:
        ShapeError, DtypeError: as `batch_norm`; then neither a statistic nor the counter has moved.

    Numerics: as `batch_norm`.

    Source:
        Ioffe & Szegedy 2015, Algorithms 1 and 2.

    Example:
        >>> import torch
        >>> layer = BatchNorm1d(2)
        >>> y = layer(torch.tensor([[0.0, 10.0], [2.0, 10.0]]))
        >>> layer.running_mean
        tensor([0.1000, 1.0000])
    """

    _ranks = (2, 3)
    _name = "normwright.torch.BatchNorm1d"


class BatchNorm2d(_Layer, nn.BatchNorm2d):
    """Batch normalization of (N, C, H, W), contiguous or channels-last: `torch.nn.BatchNorm2d`.

    Everything but the rank is as for `BatchNorm1d`; a channel's statistics are over N, H and W (section
    3.2).

    Example:
        >>> import torch
        >>> layer = BatchNorm2d(3).eval()
        >>> layer(torch.ones(1, 3, 2, 2)).shape
        torch.Size([1, 3, 2, 2])
    """

    _ranks = (4,)
    _name = "normwright.torch.BatchNorm2d"


class BatchNorm3d(_Layer, nn.BatchNorm3d):
    """Batch normalization of (N, C, D, H, W), contiguous or channels-last: `torch.nn.BatchNorm3d`.

    Everything but the rank is as for `BatchNorm1d`; the statistics of a channel are over N, D, H and W.

    Example:
        >>> import torch
        >>> BatchNorm3d(4)(torch.randn(2, 4, 3, 5, 5)).shape
        torch.Size([2, 4, 3, 5, 5])
    """

    _ranks = (5,)
    _name = "normwright.torch.BatchNorm3d"
