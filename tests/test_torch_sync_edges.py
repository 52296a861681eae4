"""Synchronization at its edges, each by its name: options, empty batches, lone values, groups, NaN."""

import warnings

import pytest
import torch
import torch.distributed as dist

import normwright.torch as nw
from beside_torch import normal, same_bits, state, untouched
from sync_cases import (
    BF16,
    F16,
    F32,
    F64,
    KERNELS,
    OPERATIONS,
    WAYS,
    Case,
    beside_one,
    overheard,
    same,
    step,
    watched,
)

# --- options ------------------------------------------------------------------

OPTIONS = {
    "cumulative": {"momentum": None},
    "momentum 1": {"momentum": 1.0},
    "not tracking": {"track_running_stats": False},
    "biased": {"running_var": "biased"},
    "debias": {"debias": True},
    "debias, biased, not affine": {"debias": True, "running_var": "biased", "affine": False},
    "not affine": {"affine": False},
    "without bias": {"bias": False},
    "running where degenerate": {"on_degenerate": "running"},
    "propagate": {"on_nonfinite": "propagate"},
    "raise": {"on_nonfinite": "raise"},
    "eps": {"eps": 0.5},
}


@pytest.mark.parametrize(
    "ways", [(KERNELS,) * 3, (OPERATIONS, KERNELS, OPERATIONS)], ids=["kernels", "mixed"]
)
def test_every_option_is_that_of_one_process(ways, processes):
    cases = [
        Case((3, 0, 4), "NCHW", F64, 4, 0.0, "relu", True, ways, options) for options in OPTIONS.values()
    ]
    processes.run(beside_one, cases, size=3)


# --- nothing, or one value ----------------------------------------------------


def all_empty(rank):
    for dtype in (F64, F32, BF16, F16):
        for options in ({}, {"momentum": None}, {"debias": True}, {"on_nonfinite": "propagate"}):
            case = Case((0, 0), "NCHW", dtype, options=options)
            layer, one = case.layer("world"), case.layer(None)
            got, want = (step(each, *case.part(rank)) for each in (layer, one))
            assert got["y"].shape == (0, 3, 3, 2)
            assert got["dx"].shape == (0, 3, 3, 2)
            for name in ("dweight", "dbias"):
                assert got[name].tolist() == [0, 0, 0]
            for name, t in one.named_buffers():
                same_bits(f"{name} with {options}", getattr(layer, name), t)
                if name != "num_batches_tracked":
                    same_bits(name, t, getattr(case.layer(None), name))
            assert want["merges"] == 0
            assert (got["merges"], got["totals"]) == (1, 1)


def test_nothing_in_all_ranks_moves_no_statistic_and_counts_as_in_one_process(processes):
    processes.run(all_empty)


def lone_value_raises(rank):
    for way in WAYS:
        case = Case((0, 1), "(N, C)", F64)
        layer = case.layer("world")
        before = state(layer)
        words = (
            r"BatchNorm1d\(3\): expected more than one value per channel in training, got 1 in all 2 ranks"
        )
        with pytest.raises(nw.ShapeError, match=words):
            step(layer, *case.part(rank), way=way)
        untouched(layer, before)
    beside_one(rank, [Case((1, 1), "(N, C)", F64)])  # and those that follow get through


def test_one_value_in_all_ranks_is_an_error_on_all_of_them(processes):
    processes.run(lone_value_raises)


# --- who is in it -------------------------------------------------------------


def in_groups(rank):
    """0 and 2, 1 and 3, each in a group; then each in a group of its own."""
    groups = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])]
    alone = [dist.new_group([one]) for one in range(4)]
    case = Case((2, 5), "channels-last", F64, seed=rank % 2)
    layer, one = case.layer(groups[rank % 2]), case.layer(None)
    got, want = step(layer, *case.part(rank // 2)), step(one, *case.whole)
    assert (got["merges"], got["totals"]) == (1, 1)
    same("y", got["y"], case.share(want["y"], rank // 2))
    same("dx", got["dx"], case.share(want["dx"], rank // 2))
    same("running_var", layer.running_var, one.running_var)

    converted = nw.convert(torch.nn.Sequential(case.layer(None)), sync=groups[rank % 2])[0]
    same_bits("converted", step(converted, *case.part(rank // 2))["y"], got["y"])

    lone, one = case.layer(alone[rank]), case.layer(None)
    got, want = step(lone, *case.whole), step(one, *case.whole)
    assert (got["merges"], got["totals"]) == (0, 0)
    for name, t in want.items():
        if t is not None:
            same_bits(name, got[name], t)
    with pytest.raises(nw.ShapeError, match="this process to be in sync, got a group without it"):
        case.layer(groups[1 - rank % 2])
    for group in (groups[rank % 2], alone[rank]):
        dist.destroy_process_group(group)


def test_groups_keep_to_themselves(processes):
    processes.run(in_groups, size=4)


def alone_in_the_world(rank):
    for dtype in (F64, F32, BF16, F16):
        for activation, residual in ((None, False), ("relu", True)):
            case = Case((5,), "NCHW", dtype, activation=activation, has_residual=residual)
            got, want = (step(case.layer(sync), *case.whole) for sync in ("world", None))
            assert (got["merges"], got["totals"]) == (0, 0)
            for name, t in want.items():
                if t is not None:
                    same_bits(name, got[name], t)
    with pytest.raises(nw.ShapeError, match="more than one value per channel"):
        Case((1,), "(N, C)").layer("world")(normal(1, 3))
    assert len(dist.distributed_c10d._world.pg_map) == 1  # nor was a group made


def test_one_process_alone_has_the_bits_of_no_synchronization_and_no_messages(processes):
    processes.run(alone_in_the_world, size=1)


def test_a_world_that_is_not_there_is_an_error_in_training_alone():
    layer = nw.convert(torch.nn.Sequential(nw.BatchNorm1d(3)), sync="world")[0]
    before = state(layer)
    x = normal(4, 3)
    words = (
        r"expected an initialized process group, got none\. Call torch\.distributed\.init_process_group first"
    )
    with pytest.raises(nw.ShapeError, match=words):
        layer(x)
    with pytest.raises(nw.ShapeError, match=words):
        nw.batch_norm(x, training=True, sync="world")
    untouched(layer, before)
    plain = nw.BatchNorm1d(3).eval()
    same_bits("y", layer.eval()(x), plain(x))
    nw.freeze(layer.train())
    same_bits("y", layer(x), plain(x))
    args = (plain.running_mean, plain.running_var)
    same_bits("y", nw.batch_norm(x, *args, sync="world"), plain(x))


def another_world(rank, path):
    case = Case((2, 3), "NCHW", F64)
    layer = case.layer("world")
    first = step(layer, *case.part(rank))
    dist.destroy_process_group()
    with pytest.raises(nw.ShapeError, match="an initialized process group, got none"):
        layer(case.part(rank)[0])
    dist.init_process_group("gloo", f"file://{path}", rank=rank, world_size=2)
    again = step(layer, *case.part(rank))
    same_bits("y", again["y"], first["y"])
    assert layer.num_batches_tracked.item() == 2


def test_the_world_is_whoever_is_there_now(processes, tmp_path):
    processes.run(another_world, str(tmp_path / "meet"))


# --- what is told, and when ---------------------------------------------------


def silent(rank):
    """Rank 0 alone runs all this: whoever sent a message would wait for the other, and fail."""
    case = Case((3, 4), "NCHW", F64)
    layer, one = case.layer("world"), case.layer(None)
    case.layer("world")(case.part(rank)[0])  # the one message so far: it makes the world's group
    if rank == 0:
        x, dy, _ = case.part(0)
        with overheard() as said:
            same("y", step(layer.eval(), x, dy)["y"], step(one.eval(), x, dy)["y"])
            with torch.no_grad():
                layer(x)
            nw.freeze(torch.nn.Sequential(layer.train()))
            nw.freeze(torch.nn.Sequential(one.train()))
            same("y", step(layer, x, dy)["y"], step(one, x, dy)["y"])
            without = {"track_running_stats": False}  # by the batch in evaluation too, as torch's: this one's
            each = (Case((3, 4), dtype=F64, options=without).layer(sync).eval() for sync in ("world", None))
            same("y", *(step(layer, x, dy)["y"] for layer in each))
        assert (said.moments, said.sums) == ([], [])
    dist.monitored_barrier()


def test_evaluation_and_frozen_statistics_send_nothing(processes):
    processes.run(silent, timeout=3)


def quiet(rank):
    case = Case((3, 4), "NCHW", F64)
    layer, one = case.layer("world"), case.layer(None)
    before = state(layer)
    for way in WAYS:
        with nw.no_stat_update(torch.nn.ModuleList([layer])):
            got = step(layer, *case.part(rank), way=way)
        untouched(layer, before)
        assert (got["merges"], got["totals"]) == (1, 1)
        same("y", got["y"], case.share(one(case.whole[0]), rank))


def test_no_stat_update_shares_the_batch_and_moves_nothing(processes):
    processes.run(quiet)


def no_gradient_here(rank):
    """Rank 0 starts from data, rank 1 from something that learns; both have weights that do."""
    for way in WAYS:
        for activation in (None, "relu"):
            case = Case((3, 4), "NCHW", F64, activation=activation)
            layer, one = case.layer("world"), case.layer(None)
            x, dy, _ = case.part(rank)
            x.requires_grad_(rank == 1)
            with watched(way == OPERATIONS):
                y = layer(x)
            with overheard() as said, watched(way != KERNELS):
                y.backward(dy)
            assert len(said.sums) == 1
            want = step(one, *case.whole)
            same("y", y.detach(), case.share(want["y"], rank))
            if rank == 1:
                same("dx", x.grad, case.share(want["dx"], rank))
            else:
                assert x.grad is None
            total = layer.weight.grad.clone()
            dist.all_reduce(total)
            same("dweight", total, want["dweight"])


def test_a_rank_whose_input_wants_no_gradient_takes_part_in_backward(processes):
    processes.run(no_gradient_here)


def gradient_of_the_residual_alone(rank):
    """Rank 0 needs none of the sums; rank 1 waits for its share of them."""
    for way in WAYS:
        case = Case((3, 4), "NCHW", F64, has_residual=True, options={"affine": False})
        x, dy, residual = case.part(rank)
        x.requires_grad_(rank == 1)
        with watched(way == OPERATIONS):
            y = case.layer("world")(x, residual.requires_grad_())
        with overheard() as said, watched(way != KERNELS):
            y.backward(dy)
        assert len(said.sums) == 1
        same("dresidual", residual.grad, dy)
        if rank == 1:
            same("dx", x.grad, case.share(step(case.layer(None), *case.whole)["dx"], rank))


def test_a_rank_that_wants_the_residuals_gradient_alone_takes_part_in_backward(processes):
    processes.run(gradient_of_the_residual_alone)


def gradient_of_the_bias_alone(rank):
    """Rank 0 is empty, and has no kernels' way to go: it says as much as the other."""
    case = Case((0, 7), "NCHW", F64)
    layer, one = case.layer("world"), case.layer(None)
    layer.weight.requires_grad_(False)
    x, dy, _ = case.part(rank)
    y = layer(x)
    with overheard() as said:
        y.backward(dy)
    assert len(said.sums) == 1
    dist.all_reduce(layer.bias.grad)
    same("dbias", layer.bias.grad, step(one, *case.whole)["dbias"])


def test_a_rank_that_wants_the_bias_gradient_alone_takes_part_in_backward(processes):
    processes.run(gradient_of_the_bias_alone)


def function(rank):
    case = Case((3, 0, 4), "NHWC", F64, activation="relu", has_residual=True)
    x, dy, residual = case.part(rank)
    layer = case.layer("world")
    held = case.layer(None)
    given = {"channel_dim": -1, "activation": "relu", "residual": residual, "training": True, "sync": "world"}
    want = step(layer, x, dy, residual)
    weight = held.weight.detach().requires_grad_()
    numbers = (held.running_mean, held.running_var, weight, held.bias)
    y = nw.batch_norm(x, *numbers, **given)
    y.backward(dy)
    same_bits("y", y.detach(), want["y"])
    same_bits("dweight", weight.grad, want["dweight"])
    for name in ("running_mean", "running_var"):
        same_bits(name, getattr(held, name), getattr(layer, name))


def test_the_function_is_the_layer(processes):
    processes.run(function, size=3)


# --- what is not finite -------------------------------------------------------


def not_finite(rank, on_nonfinite, value, way):
    case = Case((3, 4), "NCHW", F64, options={"on_nonfinite": on_nonfinite})
    layer, model = case.layer("world"), None
    model = torch.nn.Sequential(layer)
    x, dy, _ = case.part(rank)
    before = state(layer)
    bad = x.clone()
    if rank == 1:
        bad[1, 2, 0, 0] = value
    if on_nonfinite == "raise":
        with pytest.raises(nw.NonfiniteError, match=r"BatchNorm2d\(3\): expected a finite mean and variance"):
            step(layer, bad, dy, way=way)
        untouched(layer, before)
    else:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", nw.SkippedUpdateWarning)
            y = step(layer, bad, dy, way=way)["y"]
            layer.eval().train()  # where it was not told at once
            skipped = nw.skipped(model)
        finite = torch.isfinite(y).all(3).all(2).all(0)
        assert finite.tolist() == [True, True, False]
        if on_nonfinite == "skip":
            untouched(layer, before)
            assert skipped == {"0": 1}
            assert [each.category for each in told] == [nw.SkippedUpdateWarning]
        else:
            assert told == []
            assert layer.num_batches_tracked.item() == 1
            assert torch.isfinite(layer.running_mean).tolist() == [True, True, False]
    layer.load_state_dict(before)
    one = case.layer(None)
    step(layer, x, dy, way=way)  # the next batch is as ever
    step(one, *case.whole)
    same("running_var", layer.running_var, one.running_var)
    return dict(layer.named_buffers())


@pytest.mark.parametrize("on_nonfinite", ["skip", "raise", "propagate"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("way", WAYS)
def test_all_ranks_agree_on_what_is_not_finite_in_one(on_nonfinite, value, way, processes):
    first, second = processes.run(not_finite, on_nonfinite, value, way)
    for name, t in first.items():
        same_bits(name, t, second[name])
