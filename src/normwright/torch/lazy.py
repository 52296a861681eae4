"""Lazy layers: they learn C from their first batch, and are then one of those in `modules`."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from normwright.core import checks
from normwright.torch.activations import ActivationLike
from normwright.torch.distributed.sync import SyncLike
from normwright.torch.modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    _Layer,
)
from normwright.torch.options import OnDegenerate
from normwright.torch.running import OnNonfinite, RecordedVar


class _LazyLayer(_Layer):
    """A layer that learns C from its first batch, and is then one of those above."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: ActivationLike = None,
        channel_dim: int = 1,
        on_nonfinite: OnNonfinite = "skip",
        on_degenerate: OnDegenerate = "raise",
        running_var: RecordedVar = "unbiased",
        debias: bool = False,
        sync: SyncLike = None,
    ) -> None:
        super(_Layer, self).__init__(eps, momentum, affine, track_running_stats, device, dtype, bias=bias)  # type: ignore[arg-type]
        self._take_options(activation, channel_dim, on_nonfinite, on_degenerate, running_var, debias, sync)
        self.settle()

    def initialize_parameters(self, input: Tensor, residual: Tensor | None = None) -> None:
        """Give parameters and buffers the shape (C,) that `input` has. It gets what forward gets."""
        axis = checks.check_axis(self._name, input.shape, self.channel_dim, "channel_dim")
        super().initialize_parameters(input.movedim(axis, 1))  # type: ignore[misc]
        self._hold_float32()
        if self._guard is not None:
            become: str = cast(Any, self).cls_to_become._name
            named = self._guard.layer.replace(self._name, become)
            self._guard.layer = named.replace("(0)", f"({self.num_features})")


class LazyBatchNorm1d(_LazyLayer, nn.LazyBatchNorm1d):
    """`BatchNorm1d` without num_features: C is that of the first batch, with which it becomes a `BatchNorm1d`.

    All other arguments are those of `BatchNorm1d`.

    Example:
        >>> layer = LazyBatchNorm1d(eps=1e-3)
        >>> y = layer(torch.randn(4, 3))
        >>> layer
        BatchNorm1d(3, eps=0.001, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """

    _ranks = BatchNorm1d._ranks
    _name = "normwright.torch.LazyBatchNorm1d"
    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_LazyLayer, nn.LazyBatchNorm2d):
    """`BatchNorm2d` without num_features, as `LazyBatchNorm1d`."""

    _ranks = BatchNorm2d._ranks
    _name = "normwright.torch.LazyBatchNorm2d"
    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_LazyLayer, nn.LazyBatchNorm3d):
    """`BatchNorm3d` without num_features, as `LazyBatchNorm1d`."""

    _ranks = BatchNorm3d._ranks
    _name = "normwright.torch.LazyBatchNorm3d"
    cls_to_become = BatchNorm3d
