"""`pool_running_stats`: the running statistics that each process has moved alone become those of all their data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normwright.core import checks
from normwright.core.moments import FloatArray, Moments
from normwright.core.population import Statistics
from normwright.torch.distributed.ranks import Facts, Group, Ranks
from normwright.torch.statistics.drift import Change, left_as_they_were
from normwright.torch.statistics.measured import Layer, find
from normwright.torch.statistics.wrapped import inside
from normwright.torch.statistics.writing import Writes, write_all

if TYPE_CHECKING:
    from normwright.report.document import Table
    from normwright.report.records import Record

WeighedBy = Literal["samples", "batches", "equally"]
_CALL = "normwright.torch.pool_running_stats"


@dataclass(frozen=True, eq=False)
class LayerPooling(Change):
    """One layer's statistics on every rank, and the pooled ones.

    Attributes:
        name: of the layer in the model; empty for the model itself.
        weighed_by: "samples", "batches" (num_batches_tracked) or "equally".
        weights: (ranks,) float64, the share of each; their sum is 1.
        old_mean, old_var: (ranks, C) float64, what each rank had.
        new_mean, new_var: (C,) float64, what all have now, before it was rounded to the buffers' type.
        eps: of the layer.

    `mean_shift` and `var_ratio`, (ranks, C), say how far each rank was from the pooled statistics: the mean in the
    rank's own deviations, the variance pooled / own.

    Example:
        >>> mean, var = np.array([[0.0], [4.0]]), np.array([[1.0], [1.0]])
        >>> layer = LayerPooling("bn", "equally", np.array([0.5, 0.5]), mean, var, np.array([2.0]), np.array([5.0]))
        >>> layer.mean_shift.tolist(), layer.var_ratio.tolist()
        ([[2.0], [2.0]], [[5.0], [5.0]])
    """

    name: str
    weighed_by: WeighedBy
    weights: FloatArray
    old_mean: FloatArray
    old_var: FloatArray
    new_mean: FloatArray
    new_var: FloatArray
    eps: float = 1e-5

    @property
    def measures(self) -> NDArray[np.bool_]:
        """(ranks, C): ranks of no weight are not compared."""
        return np.broadcast_to(self.weights[:, None] > 0, self.old_mean.shape)

    @property
    def farthest(self) -> int | None:
        """The rank whose mean is farthest from the pooled one, in its deviations; None where none is usable."""
        if not self.usable.any():
            return None
        return int(np.where(self.usable, self.mean_shift, -1.0).max(axis=1).argmax())


@dataclass(frozen=True, eq=False)
class Pooling:
    """What `pool_running_stats` returns; `print` shows it as a table.

    Attributes:
        layers: that have pooled statistics, in the order of their registration.
        frozen: names of layers that were frozen, whose statistics stayed.
        ranks: how many processes pooled.
        overwritten: a DistributedDataParallel in the model gives every rank the buffers of rank 0 before each
            forward, so that little else was there to pool.
    """

    layers: tuple[LayerPooling, ...]
    frozen: tuple[str, ...]
    ranks: int
    overwritten: bool = False

    def table(self) -> "Table":
        """A row for each layer: by what it was weighed, and how far its ranks were from the pooled statistics."""
        from normwright.report.document import Table

        columns = (
            "layer",
            "weighed by",
            "weights",
            "mean shift, median",
            "mean shift, largest",
            "farthest rank",
            "var ratio, smallest",
            "var ratio, median",
            "var ratio, largest",
        )
        rows = []
        for layer in self.layers:
            median, largest, *ratios = layer.cells()
            rank = "-" if layer.farthest is None else str(layer.farthest)
            by, weights = layer.weighed_by, _from_to(layer.weights)
            rows.append((layer.title, by, weights, median, largest, rank, *ratios))
        layers = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks"
        return Table(
            f"Running statistics of {layers}, pooled over {ranks}", columns, tuple(rows), self._note()
        )

    def _note(self) -> str:
        words = [
            "Shift of the mean in the rank's own deviations; variance pooled / own; over ranks and channels."
        ]
        if any(layer.weighed_by == "equally" for layer in self.layers):
            words.append("Ranks count equally where not all of them have a counter, or none has counted.")
        if self.overwritten:
            words.append(
                "DistributedDataParallel gave every rank the statistics of rank 0 before each forward: what was "
                "pooled is rank 0's but for the last batch. Pass it forward_sync_buffers=False."
            )
        return " ".join((*words, *left_as_they_were(self.layers, {"frozen": self.frozen})))

    def __str__(self) -> str:
        from normwright.report.terminal import table_as_text

        return table_as_text(self.table())

    def records(self) -> "list[Record]":
        """The table as records, for `report.records.write`."""
        return [
            record
            for at, layer in enumerate(self.layers)
            for record in layer.records(
                layer=layer.name, position=at, ranks=self.ranks, weighed_by=layer.weighed_by
            )
        ]


def _from_to(weights: FloatArray) -> str:
    least, most = f"{weights.min():.3g}", f"{weights.max():.3g}"
    return least if least == most else f"{least} to {most}"


def pool_running_stats(model: nn.Module, group: Group = "world", *, samples: float | None = None) -> Pooling:
    """Give every process the running statistics of all processes' data together, after each has moved its own.

    mean = sum_r w_r mean_r
    var  = sum_r w_r var_r + sum_r w_r (mean_r - mean)^2

    For training without synchronized batch norm, once an epoch or before a checkpoint: each rank normalizes by its
    own batches, and without this rank 0's running statistics alone are saved. It needs ranks that keep their own:
    `DistributedDataParallel(model, forward_sync_buffers=False)`. By default DistributedDataParallel overwrites them
    by rank 0's before each forward; then little but rank 0's data is in what is pooled, and the result says so.

    The layers are all those of torch's class `_BatchNorm` that keep statistics: torch's (SyncBatchNorm too), ours,
    and their subclasses; inside of DistributedDataParallel, DataParallel, AveragedModel, torch.compile's wrapper.
    Layers that `freeze` froze stay.

    Args:
        model: with the same batch norm layers in every process.
        group: "world", a ProcessGroup, or None, this process alone. Default "world". Every process of it must call.
        samples: how much data this process' statistics stand for, in any unit that is the same for all (images,
            values, a share), and may differ from rank to rank; 0 leaves this rank out. Default None: each layer's
            num_batches_tracked, where every rank has one and any has counted; else all ranks count alike. Either
            way a rank whose counter is 0 does not count, where another's is not: its statistics are the initial
            ones. Which it was, the result says layer by layer.

    Returns:
        Pooling: old and new statistics, the weight of each rank, and how far the ranks were apart.

    Raises:
        DtypeError, ShapeError: an argument is not what it must be; samples are given on some ranks alone, or are 0
            on all; the layers (names, channels, types, what is frozen) differ between ranks.
        NonfiniteError: statistics of a rank that counts hold NaN or infinity, or the buffers' type cannot hold
            the pooled ones; names layer and rank.
        SyncError: a process did not take part. RuntimeError: an argument was wrong in another process.
        After any of these no statistic has changed, in no process.

    Numerics:
        Merged in float64, in the order of the ranks, by every rank from the same numbers, and rounded once to the
        buffers' type: the same bits on all ranks. A channel that is the same on all ranks that count stays, to the
        bit; so does everything in a group of one process. Nothing cancels, and no variance becomes negative.

        The weights are shares: only their ratios count, and the formula is exact for the mixture of the ranks'
        distributions. With counts n_r of values per channel, and biased variances of those values, the result is
        the biased variance of the joined values. torch's layers record unbiased variances; each is an estimate of
        its distribution's variance, and is pooled as that. Beside the unbiased variance v of N joined values,
        the result is then larger by (sum_r var_r - v) / N, about (ranks - 1) / N of it: no number that is one for
        all layers could take this out, as N has a factor (height * width) that differs from layer to layer.

        Counters stay. A counter says how many batches of its own this rank's statistics hold, and with
        momentum=None how much the next one counts: so means pooled after every epoch are again those of all
        batches of all ranks. Summed counters would count every batch once for each rank, and grow with each call.

        It sends 8 bytes, by which the ranks see that their models agree, and then all statistics at once: of each
        rank 8 * (1 + sum over layers of (1 + 2C)) bytes to every other.

    Source:
        Chan, Golub & LeVeque 1979 (see core.moments.Moments.merge), for weights in place of counts.

    Example:
        >>> layer = nn.BatchNorm1d(1)
        >>> y = layer(torch.tensor([[0.0], [20.0]]))
        >>> pooling = pool_running_stats(layer, group=None)  # "world" in a job of several processes
        >>> pooling.layers[0].weights, pooling.layers[0].weighed_by, layer.running_mean
        (array([1.]), 'batches', tensor([1.]))
    """
    ranks = Ranks(_CALL, group)
    near = _device_of(model)
    layers: list[Layer] = []
    rows: list[Tensor] = []

    def look() -> Facts:
        amount = _amount(samples)
        if not isinstance(model, nn.Module):
            raise checks.DtypeError(checks.message(_CALL, "a torch.nn.Module", repr(model)))
        layers.extend(find(_CALL, inside(model)))
        rows.append(_row(layers, amount, ranks.place(near)))
        use = "none" if samples is None else "a number"
        return {"use of samples": use, "layers": [layer.facts for layer in layers]}

    ranks.agree(look, near)
    told = ranks.gather_rows(rows[0]).numpy()
    pooled = _pool(layers, told, weighed=samples is not None)
    writes: Writes = []
    for layer, new in pooled:
        mean, var = layer.held(_CALL, Statistics(new.new_mean, new.new_var))
        writes += [(layer.mean, mean), (layer.var, var)]
    if ranks.size > 1:
        write_all(writes)
    return Pooling(
        tuple(new for _, new in pooled),
        tuple(layer.name for layer in layers if layer.frozen),
        ranks.size,
        ranks.size > 1 and any(map(_broadcasts, model.modules())),
    )


def _amount(samples: Any) -> float:
    if samples is None:
        return 1.0
    if isinstance(samples, bool) or not isinstance(samples, Real):
        raise checks.DtypeError(checks.message(_CALL, "samples to be None or a number", repr(samples)))
    if not 0 <= float(samples) < math.inf:
        raise checks.ShapeError(checks.message(_CALL, "samples >= 0 and finite", repr(samples)))
    return float(samples)


def _device_of(model: Any) -> torch.device:
    """Where its statistics are. Fails on nothing: the other ranks are to learn of what is wrong with a model."""
    if isinstance(model, nn.Module):
        for module in model.modules():
            t = getattr(module, "running_mean", None) if isinstance(module, _BatchNorm) else None
            if isinstance(t, Tensor) and not t.is_meta:
                return t.device
    return torch.device("cpu")


def _broadcasts(module: nn.Module) -> bool:
    return isinstance(module, nn.parallel.DistributedDataParallel) and bool(module.forward_sync_buffers)


def _row(layers: Sequence[Layer], amount: float, place: torch.device) -> Tensor:
    """What this rank tells: its amount, and counter (NaN where there is none), mean and variance of each layer."""
    none = torch.tensor(math.nan)
    parts = [torch.tensor(amount, dtype=torch.float64)]
    for layer in layers:
        if not layer.frozen:
            parts += [none if layer.counter is None else layer.counter, layer.mean, layer.var]
    # to the place first: not every device has float64
    return torch.cat([part.detach().to(place).double().flatten() for part in parts])


def _pool(layers: Sequence[Layer], told: FloatArray, weighed: bool) -> list[tuple[Layer, LayerPooling]]:
    """The layers that are not frozen, and what becomes of them, from what all ranks told."""
    amounts, at = told[:, 0], 1
    if not amounts.any():
        expected = "samples > 0 on at least one rank"
        raise checks.ShapeError(checks.message(_CALL, expected, f"0 on all {len(amounts)}"))
    pooled = []
    for layer in layers:
        if layer.frozen:
            continue
        end = at + 1 + 2 * layer.mean.numel()
        counters, (mean, var) = told[:, at], np.split(told[:, at + 1 : end], 2, axis=1)
        by, weights = _weights(amounts if weighed else None, counters)
        for rank in np.flatnonzero(weights):
            if not (np.isfinite(mean[rank]).all() and np.isfinite(var[rank]).all()):
                expected, got = f"finite statistics in {layer}", f"NaN or infinity on rank {rank}"
                remedy = "With samples, 0 on that rank leaves it out."
                raise checks.NonfiniteError(checks.message(_CALL, expected, got, remedy=remedy))
        new = _merged(weights, mean, var)
        pooled.append(
            (layer, LayerPooling(layer.name, by, weights, mean, var, *new, eps=float(layer.module.eps)))
        )
        at = end
    return pooled


def _weights(samples: FloatArray | None, counters: FloatArray) -> tuple[WeighedBy, FloatArray]:
    """By what the ranks are weighed, and the share of each; a counter that is NaN is not there."""
    by: WeighedBy
    if samples is not None:
        by, amounts = "samples", samples
    elif (counters > 0).any() and not np.isnan(counters).any():
        by, amounts = "batches", counters
    else:
        by, amounts = "equally", np.ones(len(counters))
    seen = np.where(counters <= 0, 0.0, amounts)
    shares = seen if seen.any() else amounts
    shares = shares / shares.max()  # whose sum is finite
    return by, shares / shares.sum()


def _merged(weights: FloatArray, mean: FloatArray, var: FloatArray) -> Statistics:
    """The moments of the mixture; what all ranks that count agree on stays, to the bit."""
    which = np.flatnonzero(weights)
    moments = Moments.empty(mean.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):  # is looked at before it is written
        for rank in which:
            moments = moments.merge(Moments(float(weights[rank]), mean[rank], weights[rank] * var[rank]))
    first = which[0]
    same = (mean[which] == mean[first]).all(axis=0) & (var[which] == var[first]).all(axis=0)
    return Statistics(np.where(same, mean[first], moments.mean), np.where(same, var[first], moments.var()))
