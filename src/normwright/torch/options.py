"""What a layer of ours may be told beyond torch's: the choices, and which of them cannot be."""

from operator import index
from typing import Any, ClassVar, Literal, SupportsIndex, get_args

from torch import Tensor, nn
from torch.compiler import is_compiling

from normwright.core import checks
from normwright.core.activation import Activation
from normwright.torch import activations
from normwright.torch.activations import ActivationLike
from normwright.torch.arguments import check_choice, check_flag
from normwright.torch.distributed.peers import Peers
from normwright.torch.distributed.sync import Sync, SyncLike, parse, peers_of
from normwright.torch.running import Guard, OnNonfinite, RecordedVar
from normwright.torch.watched import being_traced

OnDegenerate = Literal["raise", "running"]


class _Options(nn.modules.batchnorm._BatchNorm):
    """The options of a layer, each of which may be set at any time.

    Their defaults stand in the class, so that a layer of torch's becomes one of ours by its class alone.
    """

    _name: ClassVar[str]

    channel_dim: int = 1
    strict_torch: bool = False
    _activation: Activation | None = None
    _on_degenerate: OnDegenerate = "raise"
    _on_nonfinite: OnNonfinite = "skip"
    _recorded_var: RecordedVar = "unbiased"
    _debias: bool = False
    _guard: Guard | None = None
    _sync: Sync | None = None
    _path: str = ""  # in its model, where that is known
    _synchronizes: ClassVar[bool] = False  # for that it was made
    statistics_frozen: bool = False
    affine_frozen: tuple[str, ...] = ()

    def _take_options(
        self,
        activation: ActivationLike,
        channel_dim: int,
        on_nonfinite: OnNonfinite,
        on_degenerate: OnDegenerate,
        running_var: RecordedVar,
        debias: bool,
        sync: SyncLike,
    ) -> None:
        if not isinstance(channel_dim, SupportsIndex):
            raise checks.DtypeError(
                checks.message(self._name, "channel_dim to be an integer", repr(channel_dim))
            )
        self.channel_dim = index(channel_dim)
        self.on_nonfinite, self.on_degenerate = on_nonfinite, on_degenerate
        check_choice(self._name, "running_var", running_var, get_args(RecordedVar))
        self.recorded_var, self.debias = running_var, debias
        self.activation = activation
        self.sync = sync

    @property
    def activation(self) -> Activation | None:
        """What follows batch norm and the addition; may be set by a name or a module too."""
        return self._activation

    @activation.setter
    def activation(self, value: ActivationLike) -> None:
        self._activation = activations.parse(self._name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("activation", "sync"):  # a module that is set becomes a child, but for this
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def on_degenerate(self) -> OnDegenerate:
        """What a single value per channel does in training."""
        return self._on_degenerate

    @on_degenerate.setter
    def on_degenerate(self, value: OnDegenerate) -> None:
        check_choice(self._name, "on_degenerate", value, get_args(OnDegenerate))
        if value == "running":
            self._check_tracks("on_degenerate='running'")
        self._on_degenerate = value

    @property
    def on_nonfinite(self) -> OnNonfinite:
        """What becomes of a batch whose mean or variance is not finite."""
        return self._on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, value: OnNonfinite) -> None:
        check_choice(self._name, "on_nonfinite", value, get_args(OnNonfinite))
        self._on_nonfinite = value
        self._post_guard()

    def _post_guard(self) -> None:
        if not self.track_running_stats or self._on_nonfinite == "propagate":
            self._guard = None
        else:
            if self._guard is None:
                device = None if self.running_mean is None else self.running_mean.device
                self._guard = Guard(self._label, device)
            self._guard.raises = self._on_nonfinite == "raise"

    @property
    def recorded_var(self) -> RecordedVar:
        """Which variance of a batch moves `running_var`, the buffer, whose name the constructor's argument has."""
        return self._recorded_var

    @recorded_var.setter
    def recorded_var(self, value: RecordedVar) -> None:
        check_choice(self._name, "recorded_var", value, get_args(RecordedVar))
        self._recorded_var = value

    @property
    def debias(self) -> bool:
        """Whether running statistics hold nothing of the 0 and 1 that they began with."""
        return self._debias

    @debias.setter
    def debias(self, value: bool) -> None:
        check_flag(self._name, "debias", value)
        if value:
            self._check_tracks("debias=True")
        self._debias = value

    @property
    def sync(self) -> SyncLike:
        """With whom it shares its batch in training: None, "world" or a ProcessGroup."""
        return None if self._sync is None else self._sync.told

    @sync.setter
    def sync(self, value: SyncLike) -> None:
        self._sync = parse(self._name, value)

    def _peers(self) -> Peers | None:
        """Who shares the batch of this forward pass in training; None where that is this process alone."""
        sync = self._sync
        if sync is None or (not is_compiling() and sync.is_alone()):
            return None
        # a program that knew the path would be compiled again for each layer
        label = self._name if being_traced() else self._label
        return peers_of(sync, self._name, label, self._on_degenerate)

    @property
    def _label(self) -> str:
        """What messages call this layer."""
        return f"{self._name} {self._path!r}" if self._path else f"{self._name}({self.num_features})"

    def _check_tracks(self, option: str) -> None:
        if not self.track_running_stats:
            raise checks.ShapeError(
                checks.message(self._name, f"track_running_stats=True with {option}", "False")
            )

    def _check_can_debias(self, counter: Tensor | None) -> None:
        """Raise where there is no telling how much of a running statistic is still its beginning."""
        if counter is None:
            remedy = "Set it to torch.tensor(k) after k batches, or debias=False."
            raise checks.ShapeError(
                checks.message(self._name, "num_batches_tracked with debias=True", "None", remedy=remedy)
            )
        if self.momentum is not None and not 0 <= self.momentum <= 1:
            expected = "momentum from 0 to 1 with debias=True"
            raise checks.ShapeError(checks.message(self._name, expected, repr(self.momentum)))

    def check_can_be_torchs(self, call: str, where: str, remedy: str = "") -> None:
        """Raise ShapeError where an option is not torch's. `where` is the layer's place, for errors."""
        stay = "the statistics stay, and move on as torch's."
        for option, theirs, further in (
            ("channel_dim", 1, ""),
            ("recorded_var", "unbiased", f"Set recorded_var = 'unbiased' first: {stay}"),
            ("debias", False, f"Set debias = False first: {stay}"),
        ):
            value = getattr(self, option)
            if value != theirs:
                expected, got = f"layers with {option}={theirs!r}, as torch's", f"{option}={value!r} {where}"
                raise checks.ShapeError(checks.message(call, expected, got, remedy=remedy or further))
        if self._activation is not None:
            expected, further = "layers without an activation, as torch's", "Put it behind the layer first."
            got = f"{self._activation} {where}"
            raise checks.ShapeError(checks.message(call, expected, got, remedy=remedy or further))
        if self.statistics_frozen or self.affine_frozen:
            further = "Call normwright.torch.unfreeze(model) first."
            raise checks.ShapeError(
                checks.message(call, "no frozen layer", f"one {where}", remedy=remedy or further)
            )

    def extra_repr(self) -> str:
        """torch's words, and every option that is not torch's or not the default."""
        words = str(super().extra_repr())  # type: ignore[no-untyped-call]
        words += "" if self._activation is None else f", activation={self._activation}"
        for option in ("channel_dim", "_on_nonfinite", "_on_degenerate", "_debias", "strict_torch"):
            if getattr(self, option) != getattr(_Options, option):
                words += f", {option.removeprefix('_')}={getattr(self, option)!r}"
        if self._sync is not None:
            words += ", sync='world'" if self._sync.group is None else ", sync=ProcessGroup"
        return words + ("" if self._recorded_var == "unbiased" else f", running_var={self._recorded_var!r}")
