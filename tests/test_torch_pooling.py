"""Processes that trained alone pool their running statistics: exactly, all alike, or not at all."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import close
import normwright.torch as nw
from beside_torch import UNIT, normal, same_bits, state, untouched

F64 = torch.float64
STATISTICS = ("running_mean", "running_var")


def batch(rank, rows, mean=1.0, channels=3):
    """What one rank sees: another mean and another spread on each."""
    return normal(rows, channels, dtype=F64, seed=rank, mean=0.0) * (1 + rank) + mean + rank


def measured(rank, rows, mean=1.0, **options):
    """A layer with the statistics of these rows, and a counter of `rank` + 1."""
    layer = nw.BatchNorm1d(3, **options).double()
    if rows:
        nw.recalibrate(layer, [batch(rank, rows, mean)])
        layer.num_batches_tracked.fill_(rank + 1)
    return layer


def holding(mean, var, counter=1, dtype=torch.float32, made=nn.BatchNorm1d):
    """A layer of one channel that holds these."""
    layer = made(1)
    layer.running_mean, layer.running_var = (torch.tensor([v], dtype=dtype) for v in (mean, var))
    layer.num_batches_tracked = None if counter is None else torch.tensor(counter)
    return layer


def held(layer):
    return layer.running_mean.item(), layer.running_var.item()


# --- the law --------------------------------------------------------------------------------------------------


def of_the_joined_data(rank, counts, mean, recorded):
    layer = measured(rank, counts[rank], mean, running_var=recorded)
    pooling = nw.pool_running_stats(layer, samples=counts[rank])
    return layer.running_mean, layer.running_var, pooling.layers[0]


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("counts", [(5, 9), (64, 1, 2), (3, 0, 31, 8)], ids=str)
def test_pooled_statistics_are_those_of_the_joined_data(counts, mean, processes):
    results = processes.run(of_the_joined_data, counts, mean, "biased", size=len(counts))
    joined = torch.cat([batch(rank, rows, mean) for rank, rows in enumerate(counts)]).numpy()
    # a few roundings of the ranks' means and of the sums; the variance takes the distances of those means
    bound = 8 * UNIT[F64] * np.abs(joined).max()
    for got_mean, got_var, _ in results:
        close.within("mean", got_mean.numpy(), joined.mean(axis=0), bound)
        close.within("var", got_var.numpy(), joined.var(axis=0), bound * (1 + np.ptp(joined)))
        same_bits("mean on all ranks", got_mean, results[0][0])
        same_bits("var on all ranks", got_var, results[0][1])
    shares = np.array(counts) / sum(counts)
    close.within("weights", results[0][2].weights, shares, 4 * UNIT[F64])


def test_unbiased_variances_are_pooled_as_they_are(processes):
    counts = (5, 9, 2)
    results = processes.run(of_the_joined_data, counts, 0.0, "unbiased", size=3)
    parts = [batch(rank, rows, 0.0).numpy() for rank, rows in enumerate(counts)]
    joined, own = np.concatenate(parts), sum(part.var(axis=0, ddof=1) for part in parts)
    exact = joined.var(axis=0, ddof=1)
    want = exact + (own - exact) / len(joined)  # as the docstring has it
    close.within("var", results[0][1].numpy(), want, 64 * UNIT[F64] * want)


def a_network(rank, images, together):
    torch.manual_seed(0)
    model = nn.Sequential(
        nw.BatchNorm2d(2, running_var="biased"), nn.Conv2d(2, 3, 2), nw.BatchNorm2d(3, running_var="biased")
    ).double()
    # one image at a time: the second layer then sees the same behind ranks with one image and with two
    batches = [normal(1, 2, 4, 4, dtype=F64, seed=10 * rank + k, mean=k) for k in range(images[rank])]
    nw.recalibrate(model, batches, group="world" if together else None)
    if not together:
        nw.pool_running_stats(model, samples=images[rank])
    return state(model)


def test_measuring_apart_and_pooling_is_measuring_together(processes):
    (got, *_), (want, *_) = (processes.run(a_network, (4, 1, 2), together, size=3) for together in (0, 1))
    for name, t in want.items():
        if name.endswith(STATISTICS):
            # sums of some hundred values near 1 in another order
            close.within(name, got[name].numpy(), t.numpy(), 1e-13)


def alike(rank, dtype):
    layer = nn.BatchNorm1d(64).to(dtype)
    values = normal(2, 64, seed=rank).to(dtype)
    layer.running_mean.copy_(values[0])
    layer.running_var.copy_(values[1].abs())
    layer.num_batches_tracked.fill_(3 + rank)
    pooling = nw.pool_running_stats(layer)
    after = state(layer)
    nw.pool_running_stats(layer)
    untouched(layer, after)  # what all agree on stays
    return after, pooling.layers[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64], ids=str)
def test_all_ranks_hold_the_same_bits_rounded_once(dtype, processes):
    results = processes.run(alike, dtype, size=3)
    want = results[0][1]
    for after, _ in results:
        for name, value in zip(STATISTICS, (want.new_mean, want.new_var), strict=True):
            assert after[name].dtype == dtype
            same_bits(name, after[name], results[0][0][name])
            # half of the distance between neighbours: what one rounding moves
            error = torch.finfo(dtype).eps / 2 * np.abs(value) + torch.finfo(dtype).tiny
            close.within(name, after[name].double().numpy(), value, error)


# --- how ranks are weighed --------------------------------------------------------------------------------------

# Each rank's (mean, var, counter, samples), and what all have afterwards: weights, mean, var, "weighed by".
WEIGHED = {
    "batches": ([(0.0, 1.0, 1, None), (4.0, 2.0, 3, None)], "batches", [0.25, 0.75], 3.0, 4.75),
    "a rank without batches": ([(0.0, 1.0, 0, None), (4.0, 2.0, 3, None)], "batches", [0, 1], 4.0, 2.0),
    "no rank has counted": ([(0.0, 1.0, 0, None), (4.0, 2.0, 0, None)], "equally", [0.5, 0.5], 2.0, 5.5),
    "a counter is missing": ([(0.0, 1.0, None, None), (4.0, 2.0, 9, None)], "equally", [0.5, 0.5], 2.0, 5.5),
    "one is missing and one has not counted": (
        [(0.0, 1.0, None, None), (8.0, 2.0, 0, None), (4.0, 2.0, 9, None)], "equally", [0.5, 0, 0.5], 2.0, 5.5,
    ),
    "samples": ([(0.0, 1.0, 9, 2), (4.0, 2.0, 1, 6.0)], "samples", [0.25, 0.75], 3.0, 4.75),
    "samples that are shares": ([(0.0, 1.0, 9, 0.25), (4.0, 2.0, 1, 0.75)], "samples", [0.25, 0.75], 3.0, 4.75),
    "samples in numbers whose sum is none": (
        [(0.0, 1.0, 1, 1.5e308), (4.0, 2.0, 1, 1.5e308)], "samples", [0.5, 0.5], 2.0, 5.5,
    ),
    "samples of 0": ([(0.0, 1.0, 9, 5), (4.0, 2.0, 1, 0)], "samples", [1, 0], 0.0, 1.0),
    "samples, and a layer that was not reached": (
        [(0.0, 1.0, 0, 5), (4.0, 2.0, 1, 5)], "samples", [0, 1], 4.0, 2.0,
    ),
    "samples, reached where they are 0": ([(0.0, 1.0, 0, 5), (4.0, 2.0, 1, 0)], "samples", [1, 0], 0.0, 1.0),
    "samples without counters": (
        [(0.0, 1.0, None, 2), (4.0, 2.0, None, 6)], "samples", [0.25, 0.75], 3.0, 4.75,
    ),
    "NaN where nothing was counted": (
        [(float("nan"), 1.0, 0, None), (4.0, 2.0, 3, None)], "batches", [0, 1], 4.0, 2.0,
    ),
    "infinity where samples are 0": ([(0.0, float("inf"), 9, 0), (4.0, 2.0, 1, 1)], "samples", [0, 1], 4.0, 2.0),
}  # fmt: skip


def weighing(rank):
    found = {}
    for case, (ranks, *_) in WEIGHED.items():
        if len(ranks) != dist.get_world_size():
            continue
        mean, var, counter, samples = ranks[rank]
        layer = holding(mean, var, counter, made=nw.BatchNorm1d if rank else nn.BatchNorm1d)
        pooling = nw.pool_running_stats(layer, samples=samples).layers[0]
        kept = None if layer.num_batches_tracked is None else layer.num_batches_tracked.item()
        found[case] = pooling.weighed_by, pooling.weights.tolist(), *held(layer), kept
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_weigh_what_they_have_seen(size, processes):
    results = processes.run(weighing, size=size)
    cases = [case for case, (ranks, *_) in WEIGHED.items() if len(ranks) == size]
    assert all(list(found) == cases for found in results)
    assert cases
    for case in cases:
        ranks, *want = WEIGHED[case]
        for rank, found in enumerate(results):
            # quarters of small whole numbers: every step is exact; counters stay
            assert found[case] == (*want, ranks[rank][2]), case


def over_epochs(rank, batches):
    """Cumulative means, pooled after each of three epochs; and the mean of all batches of all ranks so far."""
    layer, got = nn.BatchNorm1d(3, momentum=None).double(), []
    for epoch in range(3):
        for k in range(batches[rank]):
            layer(batch(rank, 4, mean=7.0 * epoch + k))
        nw.pool_running_stats(layer)
        got.append((layer.running_mean.clone(), layer.num_batches_tracked.item()))
    return got


@pytest.mark.parametrize("batches", [(2, 2), (3, 1), (2, 0), (1, 4, 2)], ids=str)
def test_pooling_after_every_epoch_counts_every_batch_once(batches, processes):
    results = processes.run(over_epochs, batches, size=len(batches))
    seen = []
    for epoch in range(3):
        for rank, number in enumerate(batches):
            seen += [batch(rank, 4, mean=7.0 * epoch + k).mean(0) for k in range(number)]
        want = torch.stack(seen).mean(0).numpy()
        for rank, got in enumerate(results):
            mean, counter = got[epoch]
            close.within(
                f"epoch {epoch}", mean.numpy(), want, 64 * UNIT[F64] * 20
            )  # sums of numbers up to 20
            assert counter == (epoch + 1) * batches[rank]


# --- models -----------------------------------------------------------------------------------------------------


def model_of(kind, *, made=nn.BatchNorm1d):
    model = nn.Sequential(nn.Linear(2, 3), made(3), nn.Sequential(made(3), nn.Identity()))
    if kind == "DistributedDataParallel":
        return nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False)
    if kind == "compiled, parallel":
        parallel = nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False)
        return torch.compile(parallel, backend="eager")  # which loads no compiler
    if kind == "AveragedModel":
        return torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    return model


MADE = (nn.BatchNorm1d, nw.BatchNorm1d, nn.SyncBatchNorm)
# DistributedDataParallel takes torch's SyncBatchNorm on GPUs alone
MODELS = [("plain", MADE), ("AveragedModel", MADE)]
MODELS += [(kind, MADE[:2]) for kind in ("DistributedDataParallel", "compiled, parallel")]


def in_models(rank):
    found = {}
    for kind, kinds in MODELS:
        for made in kinds:
            model = model_of(kind, made=made)
            norms = [m for m in model.modules() if isinstance(m, made)]
            for k, norm in enumerate(norms):
                norm.running_mean.fill_(float(rank + k))
            pooling = nw.pool_running_stats(model)
            means = [norm.running_mean.tolist() for norm in norms]
            names = [layer.name for layer in pooling.layers]
            found[kind, made] = means, names, pooling.overwritten, pooling.ranks
    return found


def test_layers_are_found_in_whatever_they_were_wrapped(processes):
    for found in processes.run(in_models, size=3):
        assert len(found) == 10
        for case, (means, names, overwritten, ranks) in found.items():
            assert means == [[1.0] * 3, [2.0] * 3], case
            assert (names, overwritten, ranks) == (["1", "2.0"], False, 3), case


def overwritten(rank):
    """Four local steps under DistributedDataParallel, which broadcasts rank 0's buffers or does not."""
    found = {}
    for broadcast in (True, False):
        layer = nn.BatchNorm1d(1, momentum=0.5)
        parallel = nn.parallel.DistributedDataParallel(layer, forward_sync_buffers=broadcast)
        for _ in range(4):
            parallel(torch.tensor([[16.0], [16.0]]) * rank)
        before = layer.running_mean.item()
        pooling = nw.pool_running_stats(parallel)
        found[broadcast] = before, layer.running_mean.item(), pooling.overwritten, str(pooling)
    return found


def test_where_rank_0_overwrote_the_others_the_result_says_so(processes):
    ranks = processes.run(overwritten)
    # rank 0 saw zeros alone; of rank 1's four batches of 16 the last one is left, with half of the weight
    assert [found[True][:3] for found in ranks] == [(0.0, 4.0, True), (8.0, 4.0, True)]
    assert [found[False][:3] for found in ranks] == [(0.0, 7.5, False), (15.0, 7.5, False)]
    for found in ranks:
        assert "forward_sync_buffers=False" in found[True][3]
        assert "forward_sync_buffers" not in found[False][3]


# --- what it returns --------------------------------------------------------------------------------------------


@pytest.fixture
def pooling():
    mean, var = np.array([[0.0, 1.0], [4.0, 1.0], [9.0, 9.0]]), np.array([[4.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    new = np.array([2.0, 1.0]), np.array([8.0, 0.5])
    first = nw.LayerPooling("a.bn", "batches", np.array([0.5, 0.5, 0.0]), mean, var, *new)
    second = nw.LayerPooling(
        "", "equally", np.full(3, 1 / 3), mean[:, 1:], var[:, 1:] * 0, new[0][1:], new[1][1:]
    )
    return nw.Pooling((first, second), ("b.bn",), 3)


def test_ranks_are_compared_with_the_pooled_statistics_in_their_own_deviations(pooling):
    first, second = pooling.layers
    assert first.mean_shift[:2].tolist() == [[1.0, 0.0], [2.0, 0.0]]
    assert first.var_ratio[:2].tolist() == [[2.0, 0.5], [8.0, np.inf]]
    assert first.usable.tolist() == [
        [True, True],
        [True, False],
        [False, False],
    ]  # a variance of 0; no weight
    assert (first.farthest, second.farthest) == (1, None)


def test_the_table_shows_every_layer_and_who_was_farthest(pooling):
    lines = [line.split() for line in str(pooling).splitlines()]
    assert " ".join(lines[0]) == "Running statistics of 2 layers, pooled over 3 ranks"
    assert ["a.bn", "batches", "0", "to", "0.5", "1", "2", "1", "0.5", "2", "8"] in lines
    row = next(line for line in lines if line[:2] == ["the", "model"])  # "itself" may be on the next
    assert [word for word in row[2:] if word != "itself"] == ["equally", "0.333", *"------"]
    words = " ".join(word for line in lines for word in line)
    assert "a.bn: 1 with an old variance of 0 or near it; the model itself: 3 with an old variance" in words
    assert "Left as they were, frozen: b.bn." in words
    assert "Ranks count equally where" in words


def test_records_hold_what_the_table_shows(pooling):
    records = pooling.records()
    assert len(records) == 10
    assert (records[1].what, records[1].value, records[1].where["channel"]) == (
        "shift of the mean",
        2.0,
        "largest",
    )
    assert (records[1].where["layer"], records[1].where["weighed_by"]) == ("a.bn", "batches")
    assert records[-1].value is None
    assert records[-1].where["left out"] == "3 with an old variance of 0 or near it"
