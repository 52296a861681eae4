"""What a call does with its batch's statistics: where they go, at which rate, and how those not finite stay out."""

import sys
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from normwright.core import checks

_INSIDE = tuple(str(Path(file).parent) for file in (__file__, torch.__file__))
HALF = (torch.float16, torch.bfloat16)  # too coarse for statistics
OnNonfinite = Literal["skip", "raise", "propagate"]
RecordedVar = Literal["unbiased", "biased"]


class SkippedUpdateWarning(RuntimeWarning):
    """A batch was left out of running statistics, because its mean or variance was not finite."""


class Guard:
    """Keeps statistics that are not finite out of a layer's running ones, and knows how often it had to.

    Attributes:
        layer: what to call the layer.
        raises: an error rather than a count.
        skipped: 0-d int64, on the layer's device: counting there needs no synchronization.
        told: how many of those the user has been told of.
    """

    def __init__(self, layer: str, device: torch.device | None) -> None:
        self.layer, self.raises, self.told = layer, False, 0
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)

    def to(self, device: torch.device) -> None:
        """Follow the layer. What was counted on the meta device is nothing."""
        if self.skipped.is_meta:
            self.skipped = torch.zeros_like(self.skipped, device=device)
        else:
            self.skipped = self.skipped.to(device)

    def refuse(self) -> None:
        """A batch was left out: say so, at once the first time, and count."""
        if self.raises:
            raise checks.NonfiniteError(
                checks.message(
                    self.layer,
                    "a finite mean and variance of every channel",
                    "NaN or infinity",
                    remedy="The running statistics have not moved. on_nonfinite='skip' goes on without this batch.",
                )
            )
        self.skipped.add_(1)
        if self.told == 0:
            self.tell()

    def tell(self) -> None:
        """Warn of all that was skipped, where that is more than was told; waits for the device."""
        if (
            type(self.skipped) is not Tensor
            or self.skipped.is_meta
            or torch._C._len_torch_dispatch_stack() > 0
        ):
            return  # a number that nobody knows, or nobody should ask for now
        skipped = int(self.skipped)
        if skipped > self.told:
            self.told = skipped
            batches = "1 batch" if skipped == 1 else f"{skipped} batches"
            _warn(
                f"{self.layer}: left {batches} out of the running statistics so far, a mean or variance being NaN "
                "or infinite. Look for its cause in the input; normwright.torch.skipped(model) counts further ones."
            )


def _warn(words: str) -> None:
    """Warn at the nearest line that is neither ours nor torch's. How often is decided above, not by the line."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    warnings.warn_explicit(words, SkippedUpdateWarning, frame.f_code.co_filename, frame.f_lineno)


class Running(NamedTuple):
    """The running statistics of one call.

    Attributes:
        mean, var: (C,), both or neither.
        counter: 0-d int64, the batches so far.
        momentum: weight of the NEW batch; None is 1/k at the k-th batch of the counter.
        moves: False for a pass that must not count: it normalizes by its batch and moves nothing.
        guard: keeps out what is not finite; None lets it in, as torch does.
        biased: var is m2/m over the m values of a channel; else m2/(m-1).
        debias: nothing of where mean and var began stays in them. Needs the counter.
    """

    mean: Tensor | None
    var: Tensor | None
    counter: Tensor | None = None
    momentum: float | None = 0.1
    moves: bool = True
    guard: Guard | None = None
    biased: bool = False
    debias: bool = False
