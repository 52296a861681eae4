"""Uses of synchronized layers that cross: in one pass, in one process, in threads, in groups that overlap."""

import threading

import pytest
import torch
import torch.distributed as dist
from torch import nn

import normwright.torch as nw
from beside_torch import normal
from sync_cases import F64, same

# Everything here is float64 of the order of 1 to 10, in sums of tens of terms: `same` allows hundreds of roundings.


def part(t, rank, size=2):
    return t.chunk(size)[rank]


def network(sync, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    return nw.convert(model.to(F64), sync=sync)


def as_one(models, ones):
    """Gradients added up over the ranks, and statistics, are those of one process."""
    for model, one in zip(models, ones, strict=True):
        for (name, p), want in zip(model.named_parameters(), one.parameters(), strict=True):
            total = p.grad.clone()
            dist.all_reduce(total)
            same(f"d{name}", total, want.grad)
        for (name, t), want in zip(model.named_buffers(), one.buffers(), strict=True):
            same(name, t, want)


# --- one layer, several times; several models, in turn ------------------------


def behind_itself(model, x):
    return model(model(x))


def beside_itself(model, x):
    return (model(x) - model(x.flip(1).sin())).square()


def several_times(rank, use):
    layer, one = (nw.BatchNorm1d(3, sync=sync, dtype=F64, activation="silu") for sync in ("world", None))
    whole, weights = normal(8, 3, dtype=F64).requires_grad_(), normal(8, 3, dtype=F64, seed=1)
    x = part(whole.detach(), rank).clone().requires_grad_()
    (use(layer, x) * part(weights, rank)).sum().backward()
    (use(one, whole) * weights).sum().backward()
    same("dx", x.grad, part(whole.grad, rank))
    as_one([layer], [one])
    assert layer.num_batches_tracked.item() == 2


@pytest.mark.parametrize("use", [behind_itself, beside_itself])
def test_a_layer_that_is_used_twice_in_a_pass_is_that_of_one_process(use, processes):
    processes.run(several_times, use)


def in_turn(rank):
    """Both forward, then both backward in the other order, as where two networks play against each other."""
    models, ones = ([network(sync, seed) for seed in (1, 2)] for sync in ("world", None))
    weights = normal(8, 3, dtype=F64, seed=1)
    for k in range(3):
        x = normal(8, 3, dtype=F64, seed=k)
        losses = [(model(part(x, rank)) * part(weights, rank)).sum() for model in models]
        wanted = [(one(x) * weights).sum() for one in ones]
        for i in (1, 0):
            losses[i].backward()
            wanted[i].backward()
    as_one(models, ones)


def test_two_models_that_take_turns_are_those_of_one_process(processes):
    processes.run(in_turn)


# --- modes ---------------------------------------------------------------------


def without_a_graph(rank):
    """Rank 0 in inference mode, where rank 1 has a graph; then the other way round; then both train on."""
    layer, one = (nw.BatchNorm1d(3, sync=sync, dtype=F64) for sync in ("world", None))
    for k in range(2):
        x = normal(8, 3, dtype=F64, seed=k)
        with torch.inference_mode(rank == k):
            y = layer(part(x, rank))
        assert y.is_inference() is (rank == k)
        same("y", y, part(one(x), rank))
    whole, weights = normal(8, 3, dtype=F64, seed=2).requires_grad_(), normal(8, 3, dtype=F64, seed=3)
    x = part(whole.detach(), rank).clone().requires_grad_()
    (layer(x) * part(weights, rank)).sum().backward()
    (one(whole) * weights).sum().backward()
    same("dx", x.grad, part(whole.grad, rank))
    as_one([layer], [one])


def test_a_rank_in_inference_mode_takes_part_where_it_is_in_training(processes):
    processes.run(without_a_graph)


def evaluates(rank):
    """Rank 1 forgot `.train()` after its evaluation."""
    model = network("world", 1).train(rank == 0)
    x = normal(4, 3, dtype=F64)
    nw.BatchNorm1d(3, sync="world", dtype=F64)(x)  # the group is there
    if rank == 0:
        words = "BatchNorm1d '1': .*does not train this layer as often as the others"
        with pytest.raises(nw.SyncError, match=words):
            model(x)
    else:
        model(x)


def test_a_rank_that_evaluates_where_others_train_is_an_error_after_the_timeout(processes):
    processes.run(evaluates, timeout=2.0)


# --- threads and groups ----------------------------------------------------------


def in_threads(rank):
    groups = [dist.new_group([0, 1]) for _ in range(2)]
    done = []

    def work(k):
        layer, one = (nw.BatchNorm1d(3, sync=sync, dtype=F64) for sync in (groups[k], None))
        for step in range(50):
            whole = normal(8, 3, dtype=F64, seed=100 * k + step).requires_grad_()
            x = part(whole.detach(), rank).clone().requires_grad_()
            weights = normal(8, 3, dtype=F64, seed=k)
            y, want = layer(x), one(whole)
            y.backward(part(weights, rank))
            want.backward(weights)
            same("y", y, part(want, rank))
            same("dx", x.grad, part(whole.grad, rank))
        same("running_var", layer.running_var, one.running_var)
        done.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1]
    for group in groups:
        dist.destroy_process_group(group)


def test_threads_train_at_the_same_time_in_a_group_each(processes):
    processes.run(in_threads)


def overlapping(rank):
    """A network whose layers each share their batch with others; forward through all, then backward."""
    members = [(0, 1), (1, 2), (2, 3), (0, 1, 2, 3), (0, 3)]
    groups = [dist.new_group(list(ranks)) for ranks in members]
    mine = []
    for k, ranks in enumerate(members):
        if rank in ranks:
            layer, one = (nw.BatchNorm1d(3, sync=sync, dtype=F64) for sync in (groups[k], None))
            whole = normal(4 * len(ranks), 3, dtype=F64, seed=k).requires_grad_()
            x = part(whole.detach(), ranks.index(rank), len(ranks)).clone().requires_grad_()
            mine.append((ranks, k, x, layer(x), whole, one(whole)))
    for ranks, k, x, y, whole, want in reversed(mine):
        at, weights = (ranks.index(rank), len(ranks)), normal(*whole.shape, dtype=F64, seed=10 + k)
        y.backward(part(weights, *at))
        want.backward(weights)
        same(f"y of {ranks}", y, part(want, *at))
        same(f"dx of {ranks}", x.grad, part(whole.grad, *at))
    assert len(mine) == 3
    for k, ranks in enumerate(members):
        if rank in ranks:
            dist.destroy_process_group(groups[k])


def test_groups_that_overlap_keep_to_themselves(processes):
    processes.run(overlapping, size=4)
