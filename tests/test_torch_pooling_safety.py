"""Where pooling fails nobody has written, and everybody knows why; and what it sends."""

import datetime
import os
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

import normwright.torch as nw
from beside_torch import normal, state, untouched
from normwright.core.checks import SyncError
from normwright.torch.distributed.ranks import Ranks

F64 = torch.float64


def refused(model, group="world", **options):
    """The kind of the error and its words; the model is as it was."""
    before = state(model)
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        nw.pool_running_stats(model, group, **options)
    untouched(model, before)
    return error.type.__name__, str(error.value)


def holding(value, dtype=torch.float32):
    """A layer of one channel with this mean."""
    layer = nn.BatchNorm1d(1).to(dtype)
    layer.running_mean.fill_(value)
    return layer


# --- what goes wrong ----------------------------------------------------------------------------------------------


def frozen(rank):
    model = nn.Sequential(nw.BatchNorm1d(2), nw.BatchNorm1d(2))
    for k, layer in enumerate(model):
        layer.running_mean.fill_(float(rank + 8 * k))
    nw.freeze(model[0])
    pooling = nw.pool_running_stats(model)
    means = [layer.running_mean.tolist() for layer in model]
    if rank:
        nw.unfreeze(model)
    return means, pooling.frozen, [layer.name for layer in pooling.layers], refused(model)


def test_frozen_layers_stay_and_must_be_frozen_everywhere(processes):
    for rank, (means, names, pooled, (kind, words)) in enumerate(processes.run(frozen)):
        assert means == [[float(rank)] * 2, [8.5, 8.5]]
        assert (names, pooled) == (("0",), ["1"])
        assert kind == "ShapeError"
        assert "same batch norm layers in every process, got others on rank 1 than on rank 0 ('0')" in words


def other_models(rank):
    """Rank 1 has something else: each time an error everywhere, and the next call goes through."""
    others = {
        "other channels": nn.Sequential(nn.BatchNorm1d(3 + rank)),
        "other names": nn.Sequential(*[nn.Identity()] * rank, nn.BatchNorm1d(3)),
        "more layers": nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(1 + rank))),
        "another type": nn.Sequential(nn.BatchNorm1d(3)).to(F64 if rank else torch.float32),
        "another variance": nn.Sequential(nw.BatchNorm1d(3, running_var=("unbiased", "biased")[rank])),
    }
    return {name: refused(model) for name, model in others.items()}


def test_models_that_differ_are_refused_everywhere(processes):
    names = {"other names": "'1', '0'", "more layers": "'1'"}
    for found in processes.run(other_models):
        for case, (kind, words) in found.items():
            assert kind == "ShapeError", case
            which = names.get(case, "'0'")
            assert (
                f"the same batch norm layers in every process, got others on rank 1 than on rank 0 ({which})."
                in words
            )


def mistakes(rank):
    """Rank 1 alone calls it wrongly."""
    layer = nn.BatchNorm1d(3)
    found = [refused(layer, samples=samples) for samples in ("many" if rank else 1, -1 if rank else 1)]
    found.append(refused(layer if rank == 0 else nn.Identity()))
    with pytest.raises((TypeError, RuntimeError)) as error:
        nw.pool_running_stats(layer if rank == 0 else 3)
    found.append((error.type.__name__, str(error.value)))
    return found


def test_a_mistake_in_one_process_is_told_to_the_other(processes):
    others, wrong = processes.run(mistakes)
    assert [kind for kind, _ in wrong] == ["DtypeError", "ShapeError", "ShapeError", "DtypeError"]
    parts = ("samples to be None or a number", "samples >= 0", "layers (torch's", "a torch.nn.Module, got 3")
    for (kind, words), (_, own), part in zip(others, wrong, parts, strict=True):
        assert kind == "RuntimeError"
        assert part in own
        assert "got on rank 1 " in words
        assert part in words


def other_samples(rank):
    layer = nn.BatchNorm1d(3)
    return refused(layer, samples=5 if rank else None), refused(layer, samples=0)


def test_samples_are_given_everywhere_and_not_0_everywhere(processes):
    for some, zeros in processes.run(other_samples):
        assert some[0] == zeros[0] == "ShapeError"
        assert (
            "the same use of samples in every process, got 'a number' on rank 1 and 'none' on rank 0"
            in some[1]
        )
        assert "samples > 0 on at least one rank, got 0 on all 2" in zeros[1]


def not_finite(rank, value, which):
    model = nn.Sequential(nn.BatchNorm1d(3), nw.BatchNorm1d(3))
    if rank == 1:
        getattr(model[1], which)[2] = value
    model[0].running_mean.fill_(float(rank))  # would have been pooled
    return refused(model), refused(model, samples=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["running_mean", "running_var"])
def test_statistics_that_are_not_finite_are_named_and_nobody_writes(value, which, processes):
    for errors in processes.run(not_finite, value, which, size=3):
        for kind, words in errors:
            assert kind == "NonfiniteError"
            assert (
                "finite statistics in 1 (normwright.torch.modules.BatchNorm1d), got NaN or infinity on rank 1."
                in words
            )


def too_large(rank):
    half = holding(60000.0 * rank, torch.float16)
    double = holding(1e200 * rank, F64)
    # the first of the two layers could have been written
    return [refused(nn.Sequential(holding(float(rank)), layer)) for layer in (half, double)]


def test_a_variance_that_the_buffers_cannot_hold_is_refused(processes):
    for half, double in processes.run(too_large):
        assert half[0] == double[0] == "NonfiniteError"
        assert "statistics that torch.float16 holds" in half[1]
        assert "a variance up to 9e+08" in half[1]
        assert "statistics that torch.float64 holds" in double[1]


def in_a_group(rank):
    """Ranks 0 and 2 pool; rank 1 is asked to, and may not."""
    group = dist.new_group([0, 2])
    layer = holding(float(rank))
    if rank == 1:
        return refused(layer, group)
    pooling = nw.pool_running_stats(layer, group)
    return (layer.running_mean.item(), layer.running_var.item()), pooling.ranks


def test_a_group_pools_its_own_processes_alone(processes):
    first, outside, last = processes.run(in_a_group, size=3)
    assert first == last == ((1.0, 2.0), 2)
    assert outside[0] == "ShapeError"
    assert "this process to be in group" in outside[1]


def late(rank):
    """Rank 1 does not come."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=0.5))
    return refused(nn.BatchNorm1d(2), group) if rank == 0 else None


def test_a_rank_that_does_not_come_is_an_error_that_says_what_was_waited_for(processes):
    (kind, words), _ = processes.run(late)
    assert kind == "SyncError"
    assert words.startswith(
        "normwright.torch.pool_running_stats: expected each of the 2 processes of the group"
    )


# --- what is sent -------------------------------------------------------------------------------------------------


def sent(rank):
    """The sizes of all messages, in bytes, and the number of collectives as the group counts them."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 5), nw.BatchNorm1d(5), nn.BatchNorm1d(7))
    sizes, real = [], dist.all_gather

    def counting(rows, row, group):
        sizes.append(row.nbytes)
        real(rows, row, group=group)

    group = dist.group.WORLD
    before = group._get_sequence_number_for_group()
    with mock.patch.object(dist, "all_gather", counting):
        nw.pool_running_stats(model)
    return sizes, group._get_sequence_number_for_group() - before


def test_a_whole_model_takes_8_bytes_and_one_message(processes):
    for sizes, collectives in processes.run(sent, size=4):
        assert sizes == [8, 8 * (1 + sum(1 + 2 * channels for channels in (3, 5, 7)))]
        assert collectives == 2


def places(rank):
    """From where groups of other backends would send."""
    ranks, first = Ranks("this", "world"), torch.device("cuda", 1)
    found = {}
    for backends in ("cpu:gloo,cuda:nccl", "cuda:nccl", "xpu:xccl"):
        with mock.patch.object(dist, "get_backend_config", return_value=backends):
            found[backends] = [str(ranks.place(near)) for near in (first, torch.device("cpu"))]
    return found


def test_a_group_sends_from_where_it_can(processes):
    for found in processes.run(places):
        assert found["cpu:gloo,cuda:nccl"] == ["cpu", "cpu"]
        assert found["cuda:nccl"] == ["cuda:1", "cuda"]
        assert found["xpu:xccl"] == ["xpu", "xpu"]


def alone_in_the_world(rank):
    layer = holding(1 / 3)
    before, versions = state(layer), [t._version for t in layer.buffers()]
    with mock.patch.object(dist, "all_gather", side_effect=AssertionError("something was sent")):
        pooling = nw.pool_running_stats(layer)
    untouched(layer, before)
    assert versions == [t._version for t in layer.buffers()]
    return pooling.ranks, pooling.layers[0].weights.tolist(), refused(nn.BatchNorm1d(1), samples=-1)[0]


def test_a_world_of_one_sends_nothing_and_writes_nothing(processes):
    assert processes.run(alone_in_the_world, size=1) == [(1, [1.0], "ShapeError")]


def dies(rank):
    """Rank 1 is killed between the two messages."""
    real = Ranks.gather_rows

    def killed(self, row):
        return os._exit(9) if rank == 1 and row.dtype == F64 else real(self, row)

    with mock.patch.object(Ranks, "gather_rows", killed):
        return refused(nn.BatchNorm1d(2))


def test_a_rank_that_is_killed_is_an_error(processes):
    (kind, words), _ = processes.run(dies, dying=(1,))
    assert (kind, issubclass(SyncError, RuntimeError)) == ("SyncError", True)
    assert "A process has ended" in words


# --- in one process -----------------------------------------------------------------------------------------------


def test_without_a_group_statistics_stay_to_the_bit():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, F64):
        layer = nn.BatchNorm1d(64).to(dtype)
        layer.running_mean.copy_(normal(64).to(dtype) / 3)
        before = state(layer)
        pooling = nw.pool_running_stats(layer, None)
        untouched(layer, before)
        assert (pooling.ranks, pooling.layers[0].weights.tolist(), pooling.overwritten) == (1, [1.0], False)


@pytest.mark.parametrize(
    ("group", "kind", "words"),
    [
        ("world", nw.ShapeError, "an initialized process group, got none"),
        (None, nw.ShapeError, "samples > 0 on at least one rank, got 0 on all 1"),
    ],
)
def test_what_one_process_cannot_do_is_said(group, kind, words):
    with pytest.raises(kind, match=words):
        nw.pool_running_stats(nn.BatchNorm1d(2), group, samples=0)


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        (True, nw.DtypeError),
        ("3", nw.DtypeError),
        (float("nan"), nw.ShapeError),
        (float("inf"), nw.ShapeError),
    ],
)
def test_samples_are_a_number(samples, kind):
    with pytest.raises(kind, match="samples"):
        nw.pool_running_stats(nn.BatchNorm1d(2), None, samples=samples)
