"""`recalibrate`: the running statistics of a finished model, measured anew on data."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, get_args

from torch import nn

from normwright.core import checks
from normwright.torch.distributed.ranks import Group, Ranks
from normwright.torch.progress import Tell, Told
from normwright.torch.statistics.drift import Drift
from normwright.torch.statistics.feeding import Forward, check_batches, number_of
from normwright.torch.statistics.measuring import CALL, Measuring, Method, Order


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    method: Method = "pooled",
    order: Order = "joint",
    forward: Forward | None = None,
    prior: float | None = None,
    group: Group = None,
    progress: bool | Tell | None = None,
) -> Drift:
    """Measure the running statistics of every batch norm layer of `model` anew, on `batches`, and write them.

    pooled      mean, var of all values of all batches together, each counting once
    algorithm2  mean = E_B[mean_B],  var = E_B[m/(m-1) var_B]
    moving      running <- (1 - momentum) * running + momentum * batch, from the present statistics on
    prior = N   mean = N/(N+n) old + n/(N+n) new over n samples, and var alike

    Layers are all those of torch's class `_BatchNorm` that keep statistics: torch's (SyncBatchNorm too), ours, and
    their subclasses. All else of the model is as in evaluation: Dropout is off, and other classes (a
    FrozenBatchNorm) keep their statistics. A layer that is used several times in a pass is measured over all of its
    uses. Layers that no batch reaches, and those that `freeze` froze, stay as they are and are named in the result.
    A model inside DistributedDataParallel, DataParallel or torch.compile is run as itself, outside of them.
    Other modules' buffers (counters, observers of quantization) are given back what they held, whether the run
    succeeds or not; meanwhile they are copied. Only what a module makes or resizes as it runs, as a cache, stays.

    Args:
        model: any module; its modes do not matter and stay.
        batches: an iterable of batches. A tensor is the model's input; of a tuple or list the first element
            is, and the rest (the target) is dropped; a dict holds keywords. They go to the device of the model's
            first parameter. With order="sequential" it must begin again at every `iter`, as a DataLoader does.
        method: "pooled" is the statistics of the data set, whatever the sizes and order of the batches. In
            "algorithm2", as in the paper, batches count alike and the variance between them is left out. "moving"
            goes on as training would have. Default "pooled".
        order: "joint" measures all layers in one pass, each normalizing by its batch as in training (a single
            value per channel by all values so far; SyncBatchNorm by this process's batch). "sequential" measures
            each layer behind layers that have their final statistics: what inference will see. It takes as many
            passes as layers are behind one another; the first batch shows which are, and each pass but the last
            ends where its layers have been measured. Where a later batch shows more, there are more passes: for
            layers that it alone reaches, or all anew where it uses a layer twice that was measured once. What a
            model computes in threads of its own is not followed. Layers behind themselves (recurrent ones) are
            measured as in joint order. Every pass must give the same batches: a loader that shuffles and drops the
            last batch, or augments at random, has each layer measured on other data. Default "joint".
        forward: `forward(model, batch)` in place of the rules above; it gets each batch as it comes. Default None.
        prior: the old statistics count as so many samples, a sample being an entry of the batch axis of the
            layer's input, once for each use. For adaptation to another domain from few samples. Default None,
            which is 0.
        group: "world" or a ProcessGroup: statistics of all processes' batches together, the same bits in each.
            Their numbers of batches may differ, and be 0. `prior` counts the old statistics of rank 0. Where one
            process fails or is interrupted, all do, and no model has changed. Not with "moving", which has one
            order of batches. Default None: this process alone.
        progress: True, False or a function of (batches done, batches in all or None). Default None: a bar, where
            stderr is a terminal and it takes longer than 2 seconds.

    Returns:
        Drift: the old statistics against the new, layer by layer, with the number of passes.

    Raises:
        DtypeError, ShapeError: an argument, a batch, or the number of values is not what it must be: no layer
            with statistics, layers that share them in one tensor, a one-shot iterator in sequential order, one
            value per channel in all (unbiased variance), batches of one value (algorithm2, moving); or method,
            order, prior or the layers are not the same in all processes.
        NonfiniteError: a layer's input holds NaN or infinity, or its buffers' type cannot hold the result.
        RuntimeError: another process of the group failed.
        Whatever the model raises. After any of these, and after an interruption, buffers (but caches, as above),
        modes and hooks are what they were. Statistics are written once all are known.

    Numerics:
        Moments are gathered in float64, merged by count, and rounded once, to the buffers' type: nothing cancels
        at any mean, and no variance is negative. (A device without float64, mps, sums each batch in float32 about
        one of its values, to some 2^-22; its batches are merged in float64.) The recorded variance is the unbiased
        one, as torch's, or the biased one in layers that record that. num_batches_tracked becomes the number of
        uses (of batches, where each uses the layer once); with prior and "moving" it grows by it.

    Source:
        Ioffe & Szegedy 2015, Algorithm 2; Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 (precise
        statistics); Schneider et al. 2020, section 3 (prior); Li et al. 2016 (AdaBN).

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(1)).train()
        >>> drift = recalibrate(model, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0]])])
        >>> model[1].running_mean, model[1].running_var, model.training
        (tensor([2.]), tensor([4.]), True)
        >>> drift.layers[0].mean_shift  # in old deviations
        array([2.])
    """
    ranks = Ranks(CALL, group)

    def prepare() -> tuple[Told, int | None]:
        _check(model, batches, method, order, forward, prior, ranks)
        # one bar for all processes
        return Told(CALL, False if progress is None and ranks.rank else progress), number_of(batches)

    measuring = Measuring(
        ranks, model, method, order, 0.0 if prior is None else float(prior), forward, prepare
    )
    with measuring.open():
        if order == "joint":
            measuring.jointly(batches)
        else:
            measuring.in_sequence(batches)
    return measuring.write()


def _check(model: Any, batches: Any, method: Any, order: Any, forward: Any, prior: Any, ranks: Ranks) -> None:
    if not isinstance(model, nn.Module):
        raise checks.DtypeError(checks.message(CALL, "a torch.nn.Module", repr(model)))
    for name, value, known in (("method", method, get_args(Method)), ("order", order, get_args(Order))):
        if value not in known:
            raise checks.ShapeError(checks.message(CALL, f"{name} to be one of {known}", repr(value)))
    check_batches(CALL, batches, again=order == "sequential")
    if forward is not None and not callable(forward):
        expected = "forward to be a function of (model, batch)"
        raise checks.DtypeError(checks.message(CALL, expected, repr(forward)))
    if prior is not None:
        if isinstance(prior, bool) or not isinstance(prior, Real):
            raise checks.DtypeError(checks.message(CALL, "prior to be a number of samples", repr(prior)))
        if not 0 <= float(prior) < math.inf:
            raise checks.ShapeError(checks.message(CALL, "prior >= 0 and finite", repr(prior)))
        if method == "moving":
            remedy = "A moving average starts from the old statistics anyway."
            raise checks.ShapeError(
                checks.message(CALL, "no prior with method='moving'", repr(prior), remedy=remedy)
            )
    if method == "moving" and not ranks.alone:
        remedy = "It follows the order of the batches, and several processes have none: use method='pooled'."
        raise checks.ShapeError(checks.message(CALL, "no group with method='moving'", "one", remedy=remedy))
