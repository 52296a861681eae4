"""The layers: subclasses of torch's own, with the same constructor, state and results."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from normwright.core import checks
from normwright.torch.activations import ActivationLike
from normwright.torch.arguments import check_input
from normwright.torch.distributed.sync import SyncLike
from normwright.torch.functional import normalize
from normwright.torch.options import OnDegenerate, _Options
from normwright.torch.recompute import is_recompute
from normwright.torch.replaced import check_replaced
from normwright.torch.running import HALF, OnNonfinite, RecordedVar, Running
from normwright.torch.scopes import is_quiet


class _Layer(_Options):
    """What the layers share: a forward that checks first and takes the native kernels, and what freezing knows."""

    _ranks: ClassVar[tuple[int, ...]]
    asks_whether_quiet = True

    _half: torch.dtype | None = None  # that statistics had when the layer became ours

    def __init__(
        self,
        num_features: int,
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
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self._take_options(activation, channel_dim, on_nonfinite, on_degenerate, running_var, debias, sync)
        self.settle()

    def settle(self) -> None:
        """What a layer of this class has beside torch's state: a guard, and float32 statistics."""
        self._hold_float32(in_place=True)
        self._post_guard()

    def be_called(self, path: str) -> None:
        """Its path in its model, by which messages name it."""
        if path:
            self._path = path
            if self._guard is not None:
                self._guard.layer = self._label

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize, add `residual`, activate; in training, move the statistics. Nothing moves on an error."""
        given: object = input
        if not isinstance(given, Tensor):
            return self._forward_other(given, residual)  # type: ignore[no-any-return]
        axis = self.channel_dim
        self._check_input_dim(input)
        if axis != 1:
            axis = checks.check_axis(self._name, input.shape, axis, "channel_dim")
        try:  # from the dictionaries: an attribute of a module takes ten times as long
            weight, bias = self._parameters["weight"], self._parameters["bias"]
            mean, var = self._buffers["running_mean"], self._buffers["running_var"]
            counter = self._buffers["num_batches_tracked"]
        except KeyError:  # parametrized, pruned or replaced by the user
            weight, bias = self.weight, self.bias
            mean, var, counter = self.running_mean, self.running_var, self.num_batches_tracked
        training = self.training
        by_running = not training or self.statistics_frozen
        peers = None
        if self._sync is not None and training and not (by_running and mean is not None):
            peers = self._peers()
        if (mean is not None or var is not None) and (
            by_running
            or (peers is None and self._on_degenerate == "running" and input.numel() == input.shape[axis])
        ):
            running = Running(mean, var)
            return normalize(
                self._name, input, axis, running, weight, bias, False, self.eps, self._activation, residual
            )
        if training and self.track_running_stats:
            momentum = self.momentum
            if momentum is None and counter is None:
                momentum = 0.0  # as torch's
            debias = self._debias
            if debias and mean is not None:
                self._check_can_debias(counter)
            counts = not is_quiet(self) and (self.strict_torch or not is_recompute())
            biased = self._recorded_var == "biased"
            running = Running(mean, var, counter, momentum, counts, self._guard, biased, debias)
        else:
            running = Running(None, None)
        return normalize(
            self._name,
            input,
            axis,
            running,
            weight,
            bias,
            True,
            self.eps,
            self._activation,
            residual,
            None,
            peers,
        )

    def _forward_other(self, input: Any, residual: Any) -> Any:
        """torch's own layers are leaves of a symbolic trace, and so are ours. Anything else is an error."""
        if isinstance(input, fx.Proxy):
            path = input.tracer.path_of_module(self)  # type: ignore[attr-defined]
            arguments = (input,) if residual is None else (input, residual)
            return input.tracer.create_proxy("call_module", path, arguments, {})
        return check_input(self._name, input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in self._ranks:
            checks.check_rank(self._name, input.shape, self._ranks)

    def train(self, mode: bool = True) -> Self:
        """As torch's; going to evaluation tells of updates that were skipped."""
        if not mode and self._guard is not None:
            self._guard.tell()
        return super().train(mode)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """As torch's. Its convert_sync_batchnorm asks here, about to put a bare layer in the place of this one."""
        if not torch.compiler.is_compiling():
            check_replaced(self, sys._getframe(1))
        return super().named_children()

    def reset_running_stats(self) -> None:
        """As torch's; frozen statistics stay. `swa_utils.update_bn` resets those that its passes will refill."""
        if not self.statistics_frozen:
            super().reset_running_stats()

    def reset_parameters(self) -> None:
        """As torch's. Everything, for this is how a layer is made: frozen statistics too."""
        super().reset_parameters()
        if self.statistics_frozen and self.running_mean is not None and not is_lazy(self.running_mean):
            super().reset_running_stats()

    def extra_repr(self) -> str:
        """torch's words, every option that is not torch's or not the default, and what is frozen."""
        frozen = ["statistics"] * self.statistics_frozen + ["affine"] * bool(self.affine_frozen)
        return super().extra_repr() + (f", frozen={'+'.join(frozen)}" if frozen else "")

    # ---- half types: the statistics stay float32 ----------------------------------------------------------

    def _hold_float32(
        self, before: dict[str, Tensor | None] | None = None, *, in_place: bool = False
    ) -> None:
        """Statistics of a half type become float32: from what they were `before`, where that is known.

        In place where others may hold them; else others' tensors, which were assigned, stay what they are.
        """
        if self.strict_torch:
            return
        for name in ("running_mean", "running_var"):
            t = self._buffers.get(name)
            if t is not None and t.dtype in HALF and not is_lazy(t):
                source = (before or {}).get(name)
                source = t if source is None or source.is_meta else source
                wide = source.to(t.device, torch.float32)
                if in_place:
                    self._half = t.dtype
                    t.data = wide
                else:
                    self._buffers[name] = wide

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        self.__dict__.pop("_half", None)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._hold_float32(before)
        self._guard_follows()
        return self

    def _guard_follows(self) -> None:
        if self._guard is not None and self.running_mean is not None:
            self._guard.to(self.running_mean.device)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._hold_float32()  # assign=True brings tensors of any type, from any device
        self._guard_follows()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self._guard is not None:
            self._guard.tell()
        super()._save_to_state_dict(*args, **kwargs)


class BatchNorm1d(_Layer, nn.BatchNorm1d):
    """Batch normalization of (N, C) or (N, C, L): `torch.nn.BatchNorm1d`, computed by normwright's kernels.

    layer(x, residual=None) = activation(weight * (x - mean) / sqrt(var + eps) + bias + residual)

    Args:
        num_features: C.
        eps: added to the variance, 1e-5 (torch's).
        momentum: weight of the NEW batch in the running statistics, 0.1 (torch's); None for the plain mean
            of all batches.
        affine: learn weight and bias, (C,). Default True (torch's).
        track_running_stats: keep running_mean and running_var, (C,). Default True (torch's).
        device, dtype: of parameters and buffers; beside half parameters the statistics are float32.
        bias: False leaves bias out of affine. Default True (torch's).
        activation: what follows, as in `batch_norm`: a name, or a module of torch.nn, whose numbers are read now.
            Default None; may be set later.
        channel_dim: the axis of x that holds the channels. Default 1 (torch's); -1 takes (N, L, C).
        on_nonfinite: what becomes of a batch whose mean or variance is NaN or infinite (y and gradients
            stay what they are). "skip", the default, leaves it out of the running statistics and the counter,
            with a warning; "raise" raises NonfiniteError (and waits for a GPU); "propagate" lets it in, for good
            (torch's).
        on_degenerate: what a single value per channel does in training. "raise", the default (torch's), raises
            ShapeError; "running" normalizes by the running statistics, which stay.
        running_var: which variance of m values running_var records: "unbiased", m2/(m-1), the default (torch's);
            "biased", m2/m, by which the batch itself is normalized (Keras's, Flax's). The attribute is
            `recorded_var`, for `running_var` is the buffer.
        debias: running statistics hold their batches alone, and nothing of the 0 and 1 that they begin with: the
            k-th batch has the rate momentum / (1 - (1 - momentum)^k), by num_batches_tracked. Default False
            (torch's). momentum=None has nothing to correct, and momentum=0 still moves nothing.
        sync: "world", or a torch.distributed.ProcessGroup: in training the batch is that of all its processes
            together, of any sizes, 0 among them; statistics are the same bits on all of them. Each forward pass
            and each backward pass then waits for one message of the others. "world" is all processes, whoever they
            are at the first forward pass in training. Default None: this process alone.

    Raises:
        ShapeError, DtypeError: as `batch_norm`; with debias in training also where num_batches_tracked is None, or
            momentum not from 0 to 1. Then neither a statistic nor the counter has moved. With sync="world" in
            training, also where nothing is initialized.
        SyncError: another process did not take part, or was at another layer.

    Numerics: as `batch_norm`. With sync, moments and sums travel in float64, whatever x's type.

    Source:
        Ioffe & Szegedy 2015, Algorithms 1 and 2; with sync, Chan, Golub & LeVeque 1979.

    Example:
        >>> import torch
        >>> layer = BatchNorm1d(2)
        >>> y = layer(torch.tensor([[0.0, 10.0], [2.0, 10.0]]))
        >>> layer.running_mean
        tensor([0.1000, 1.0000])
        >>> BatchNorm1d(2, activation=torch.nn.LeakyReLU(0.2)).activation
        Activation(kind='leaky_relu', a=0.2, b=0.0)
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


class SyncBatchNorm(_Layer, nn.modules.batchnorm._BatchNorm):
    """Batch normalization of (N, C, ...) over the batches of several processes: `torch.nn.SyncBatchNorm`, anywhere.

    It takes a CPU too, communicates in training alone, and is no subclass of torch's, which
    DistributedDataParallel refuses on a CPU.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as `BatchNorm1d`.
        process_group: a torch.distributed.ProcessGroup; None, the default (torch's), is all processes. The
            attribute is `sync`: "world" then.
        bias and all further ones: as `BatchNorm1d`.

    Raises:
        ShapeError, DtypeError, SyncError: as `BatchNorm1d`; ShapeError in training also where nothing is
            initialized, where torch's normalizes alone.

    Numerics, Source: as `BatchNorm1d`.

    Example:
        >>> SyncBatchNorm(8)
        SyncBatchNorm(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, sync='world')
    """

    _ranks = ()  # any
    _name = "normwright.torch.SyncBatchNorm"
    _synchronizes = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        if "sync" in options:
            raise checks.DtypeError(checks.message(self._name, "process_group, as torch's has", "sync"))
        sync = "world" if process_group is None else process_group
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, sync=sync, **options
        )

    def _check_input_dim(self, input: Tensor) -> None:
        check_input(self._name, input)


def layers_of(call: str, model: nn.Module) -> dict[str, _Layer]:
    """Our layers of a model by their names. Raise DtypeError where a batch norm of torch's is among them."""
    if not isinstance(model, nn.Module):
        raise checks.DtypeError(checks.message(call, "a torch.nn.Module", repr(model)))
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _Layer):
            found[name] = module
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            got = f"{type(module).__module__}.{type(module).__name__} at {name!r}"
            remedy = "Call normwright.torch.convert(model) first; what convert leaves as it is, leave out."
            raise checks.DtypeError(checks.message(call, "layers of normwright.torch", got, remedy=remedy))
    return found


def skipped(model: nn.Module) -> dict[str, int]:
    """How many batches each layer has left out of its running statistics, their mean or variance not being finite.

    Args:
        model: any module whose batch norms are ours (see `convert`).

    Returns:
        Counts by the layers' names, layers without any left out. Waits for the devices that have counted.

    Raises:
        DtypeError: a batch norm of torch's is in the model: it keeps no count, and leaves nothing out.

    Example:
        >>> import warnings
        >>> layer = BatchNorm1d(1)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     y = layer(torch.tensor([[1.0], [float("nan")]]))
        >>> skipped(layer), layer.running_mean
        ({'': 1}, tensor([0.]))
    """
    counts = {}
    for name, layer in layers_of("normwright.torch.skipped", model).items():
        if layer._guard is not None and not layer._guard.skipped.is_meta:
            counts[name] = layer._guard.told = int(layer._guard.skipped)
    return {name: count for name, count in counts.items() if count}
