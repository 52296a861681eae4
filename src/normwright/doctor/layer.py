"""What is known of one layer without running it: its statistics, its weights, and perhaps its settings."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

TORCHS_EPS = 1e-5
MEAN, VAR = "running_mean", "running_var"
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Settings:
    """What a layer was made with, and no file of tensors records.

    Attributes:
        eps: added to the variance.
        momentum: weight of the NEW batch in the statistics (torch's meaning); None for the plain mean of all
            batches.
        frozen: its statistics do not move in training.
    """

    eps: float
    momentum: float | None
    frozen: bool = False


@dataclass(frozen=True, eq=False)
class LayerState:
    """One batch norm layer as it was found.

    Attributes:
        name: where it is in the model or the file; empty where it is the whole of it.
        mean, var: (C,) float64, the running statistics, exactly as recorded.
        dtype: the type they were recorded in, such as ``"float32"``.
        weight, bias: (C,) float64, gamma and beta; None where the layer has none.
        weight_dtype: the type of weight and bias; None where the layer has neither.
        updates: batches that the layer has counted; None where it keeps no counter.
        settings: None where they are not known.
        part: which of several networks of one file it belongs to; empty where there is one.

    Example:
        >>> layer = LayerState("bn1", np.zeros(8), np.ones(8), "float32")
        >>> layer.channels, layer.eps
        (8, 1e-05)
    """

    name: str
    mean: FloatArray
    var: FloatArray
    dtype: str
    weight: FloatArray | None = None
    bias: FloatArray | None = None
    weight_dtype: str | None = None
    updates: int | None = None
    settings: Settings | None = None
    part: str = ""

    @property
    def channels(self) -> int:
        """C."""
        return int(self.mean.size)

    @property
    def eps(self) -> float:
        """The layer's; torch's default where it is not known."""
        return TORCHS_EPS if self.settings is None else self.settings.eps

    @property
    def frozen(self) -> bool:
        """Whether it is known that its statistics do not move in training."""
        return self.settings is not None and self.settings.frozen

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(C,), where mean and variance are numbers that can be normalized by."""
        return np.isfinite(self.mean) & np.isfinite(self.var) & (self.var >= 0)


def prefixes(keys: Iterable[str]) -> list[str]:
    """Of each layer among the keys of a file: what stands before ``running_mean`` and ``running_var``, in order.

    Example:
        >>> prefixes(["conv.weight", "bn.weight", "bn.running_mean", "bn.running_var", "x.running_mean"])
        ['bn.']
    """
    known = dict.fromkeys(keys)
    before = (key.removesuffix(MEAN) for key in known if key.rpartition(".")[2] == MEAN)
    return [prefix for prefix in before if prefix + VAR in known]
