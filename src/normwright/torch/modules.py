"""The layers: subclasses of torch's own, with the same constructor, state and results."""

from collections.abc import Callable
from operator import index
from typing import Any, ClassVar, Literal, Self, SupportsIndex, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from normwright.core import checks
from normwright.core.activation import Activation
from normwright.torch import activations
from normwright.torch.activations import ActivationLike
from normwright.torch.arguments import check_input
from normwright.torch.functional import normalize
from normwright.torch.recompute import is_recompute
from normwright.torch.running import HALF, Guard, OnNonfinite, Running
from normwright.torch.scopes import is_quiet

OnDegenerate = Literal["raise", "running"]


class _Layer(nn.modules.batchnorm._BatchNorm):
    """What the layers share: a forward that checks first and takes the native kernels, and options beyond torch's.

    The options' defaults stand in the class, so that a layer of torch's becomes one of these by its class alone.
    """

    _ranks: ClassVar[tuple[int, ...]]
    _name: ClassVar[str]
    asks_whether_quiet = True

    channel_dim: int = 1
    strict_torch: bool = False
    _activation: Activation | None = None
    _on_degenerate: OnDegenerate = "raise"
    _on_nonfinite: OnNonfinite = "skip"
    statistics_frozen: bool = False
    affine_frozen: tuple[str, ...] = ()
    _guard: Guard | None = None
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
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self._take_options(activation, channel_dim, on_nonfinite, on_degenerate)

    def _take_options(
        self,
        activation: ActivationLike,
        channel_dim: int,
        on_nonfinite: OnNonfinite,
        on_degenerate: OnDegenerate,
    ) -> None:
        if not isinstance(channel_dim, SupportsIndex):
            raise checks.DtypeError(
                checks.message(self._name, "channel_dim to be an integer", repr(channel_dim))
            )
        self.channel_dim = index(channel_dim)
        self.on_nonfinite, self.on_degenerate = on_nonfinite, on_degenerate
        self.activation = activation
        self.settle("")

    def _check_choice(self, option: str, value: object, known: tuple[str, ...]) -> None:
        if value not in known:
            raise checks.ShapeError(checks.message(self._name, f"{option} to be one of {known}", repr(value)))

    @property
    def activation(self) -> Activation | None:
        """What follows batch norm and the addition; may be set at any time, by a name or a module too."""
        return self._activation

    @activation.setter
    def activation(self, value: ActivationLike) -> None:
        self._activation = activations.parse(self._name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "activation":  # a module that is set becomes a child, but for this
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def on_degenerate(self) -> OnDegenerate:
        """What a single value per channel does in training; may be set at any time."""
        return self._on_degenerate

    @on_degenerate.setter
    def on_degenerate(self, value: OnDegenerate) -> None:
        self._check_choice("on_degenerate", value, get_args(OnDegenerate))
        if value == "running" and not self.track_running_stats:
            expected = "track_running_stats=True with on_degenerate='running'"
            raise checks.ShapeError(checks.message(self._name, expected, "False"))
        self._on_degenerate = value

    @property
    def on_nonfinite(self) -> OnNonfinite:
        """What becomes of a batch whose mean or variance is not finite; may be set at any time."""
        return self._on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, value: OnNonfinite) -> None:
        self._check_choice("on_nonfinite", value, get_args(OnNonfinite))
        self._on_nonfinite = value
        self._post_guard()

    def settle(self, path: str) -> None:
        """What a layer of this class has beside torch's state: a guard, and float32 statistics. `path` names it."""
        self._hold_float32(in_place=True)
        self._post_guard()
        if self._guard is not None and path:
            self._guard.layer = f"{self._name} {path!r}"

    def _post_guard(self) -> None:
        if not self.track_running_stats or self._on_nonfinite == "propagate":
            self._guard = None
        else:
            if self._guard is None:
                device = None if self.running_mean is None else self.running_mean.device
                self._guard = Guard(f"{self._name}({self.num_features})", device)
            self._guard.raises = self._on_nonfinite == "raise"

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
        if (mean is not None or var is not None) and (
            not training
            or self.statistics_frozen
            or (self._on_degenerate == "running" and input.numel() == input.shape[axis])
        ):
            running = Running(mean, var)
            return normalize(
                self._name, input, axis, running, weight, bias, False, self.eps, self._activation, residual
            )
        if training and self.track_running_stats:
            momentum = self.momentum
            if momentum is None and counter is None:
                momentum = 0.0  # as torch's
            counts = not is_quiet(self) and (self.strict_torch or not is_recompute())
            running = Running(mean, var, counter, momentum, counts, self._guard)
        else:
            running = Running(None, None)
        return normalize(
            self._name, input, axis, running, weight, bias, True, self.eps, self._activation, residual
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
        """torch's words, and every option that is not torch's or not the default."""
        words = str(super().extra_repr())  # type: ignore[no-untyped-call]
        words += "" if self._activation is None else f", activation={self._activation}"
        for option in ("channel_dim", "_on_nonfinite", "_on_degenerate", "strict_torch"):
            if getattr(self, option) != getattr(_Layer, option):
                words += f", {option.removeprefix('_')}={getattr(self, option)!r}"
        frozen = ["statistics"] * self.statistics_frozen + ["affine"] * bool(self.affine_frozen)
        return words + (f", frozen={'+'.join(frozen)}" if frozen else "")

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
        track_running_stats: keep running_mean and running_var (unbiased), (C,). Default True (torch's).
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
