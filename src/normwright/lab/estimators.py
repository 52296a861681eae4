"""Estimators of the statistics by which a trained network predicts: averaged, stored and averaged, or pooled."""

import pickle
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import normwright.torch as nw
from normwright.lab.train import CHUNK, chunks
from normwright.numpy import Population

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Mean and unbiased variance of each channel, ``(C,)`` float64."""

    mean: Float64
    var: Float64


@dataclass
class MovingAverage:
    """``moving <- a * moving + (1 - a) * batch``, from mean 0 and variance 1, as torch starts."""

    a: float
    now: Statistics
    seconds: float = 0.0

    def update(self, batch: Statistics) -> None:
        """Move by one batch; the time of it is added to `seconds`."""
        began = time.process_time()
        a, before = self.a, self.now
        self.now = Statistics(a * before.mean + (1 - a) * batch.mean, a * before.var + (1 - a) * batch.var)
        self.seconds += time.process_time() - began


def pooled(batches: Iterator[torch.Tensor]) -> Population:
    """All batches in one pass; each is dropped once its moments are merged."""
    total = Population(axis=1)
    for x in batches:
        total.add(x.numpy())
    return total


def of_batch(x: torch.Tensor) -> Statistics:
    """One batch's statistics in float64."""
    return of_population(pooled(iter([x])))


def of_population(total: Population) -> Statistics:
    """What a population says, its variance unbiased."""
    return Statistics(total.mean, total.var(ddof=1))


def algorithm_2(batches: Sequence[Statistics]) -> Statistics:
    """The paper's Algorithm 2, line 10: the plain mean over the batches of their means and unbiased variances.

    ``E[x] = E[mu_B]``, ``Var[x] = m/(m-1) * E[var_B]``; the factor stands in each batch's variance already.
    """
    return Statistics(np.mean([b.mean for b in batches], axis=0), np.mean([b.var for b in batches], axis=0))


def recalibrated(model: nn.Sequential, images: torch.Tensor, size: int) -> tuple[Statistics, float]:
    """What `nw.recalibrate` measures of a network's one normalization layer, and its seconds; a copy is changed."""
    copy = deepcopy(model)
    began = time.process_time()
    drift = nw.recalibrate(copy, chunks(images, size), progress=False)
    seconds = time.process_time() - began
    (layer,) = drift.layers
    return Statistics(layer.new_mean.astype(np.float64), layer.new_var.astype(np.float64)), seconds


def two_passes(before: nn.Module, images: torch.Tensor) -> Statistics:
    """The truth: float64 sums of the values themselves, then of their squared distances from the mean."""

    def rows() -> Iterator[torch.Tensor]:
        for x in entering(before, images):
            yield x.double().transpose(0, 1).flatten(1)

    count = 0
    total: torch.Tensor | float = 0.0
    for row in rows():
        count += row.shape[1]
        total = total + row.sum(1)
    mean = torch.as_tensor(total) / count
    squares = sum(((row - mean[:, None]) ** 2).sum(1) for row in rows())
    return Statistics(mean.numpy(), (torch.as_tensor(squares) / (count - 1)).numpy())


def entering(before: nn.Module, images: torch.Tensor, size: int = CHUNK) -> Iterator[torch.Tensor]:
    """What enters the normalization layer, `size` images at a time."""
    with torch.inference_mode():
        for chunk in chunks(images, size):
            yield before(chunk)


def before_norm(model: nn.Sequential) -> nn.Sequential:
    """The layers of `model` before its normalization; they are shared with it, not copied."""
    names = [name for name, _ in model.named_children()]
    return nn.Sequential(*list(model)[: names.index("norm1")])


def bytes_kept(estimator: object) -> int:
    """Bytes of all arrays that an object holds, wherever in it; counted by letting pickle find them."""
    found: list[pickle.PickleBuffer] = []
    pickle.dumps(estimator, protocol=5, buffer_callback=found.append)
    return sum(buffer.raw().nbytes for buffer in found)


def distance(mean: Float64, exact: Statistics, eps: float) -> float:
    """Root mean square over the channels of how far `mean` is off, in standard deviations."""
    return float(np.sqrt(np.mean((mean - exact.mean) ** 2 / (exact.var + eps))))
