"""`verify_sync` says yes to processes that equal one, and no, and what and where, to everything else."""

import functools
import json
import math
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

import normwright.torch as nw
from normwright.report import records
from normwright.torch.distributed import peers, verify
from normwright.torch.distributed.joined import SAMPLES, Case, plan
from normwright.torch.distributed.sync_report import Distance, SyncCase, SyncReport
from terminals import assert_every_word_is_whole, assert_rows_have_names

F64, F32 = torch.float64, torch.float32


# --- in the processes --------------------------------------------------------------------------------------------


def verified(rank, **options):
    report = nw.verify_sync(**options)
    return report, str(report)


def as_told(change):
    """Every rank's moments as they were told, and then changed: rows of (count, mean, mean_tail, m2)."""

    def gather(self, *moments):
        rows = GATHER(self, *moments).clone()
        counts, (means, tails, m2s) = rows[:, :1], rows[:, 1:].chunk(3, dim=1)
        change(counts, means, tails, m2s)
        return rows

    return gather


def without_counts(counts, means, tails, m2s):
    """An all-reduce of means, as it is often written."""
    counts.copy_(counts.mean().expand_as(counts))


def no_variance_between(counts, means, tails, m2s):
    means.copy_(((counts * means).sum(0) / counts.sum()).expand_as(means))


def without_tails(counts, means, tails, m2s):
    """Means as doubles: half of the last place of 1e6 deviations is 1e-10 of a deviation."""
    tails.zero_()


def by_one_bit(counts, means, tails, m2s):
    if dist.get_rank():
        m2s.mul_(1 + 2.0**-52)


def not_shared(self, sums):
    before = sums.clone()
    TOTAL(self, sums)
    return before


def in_place(self, sums):
    """The parameters' gradients are then summed, too, and DistributedDataParallel sums them again."""
    return sums.copy_(TOTAL(self, sums))


def counted_twice(*arguments):
    layer, got = STEP(*arguments)
    layer.num_batches_tracked.add_(dist.get_rank())
    return layer, got


GATHER, TOTAL, STEP = peers.Peers.gather, peers.Peers.total, verify._step
BROKEN = {
    "mean of means": (peers.Peers, "gather", as_told(without_counts)),
    "no variance between": (peers.Peers, "gather", as_told(no_variance_between)),
    "tails dropped": (peers.Peers, "gather", as_told(without_tails)),
    "by one bit": (peers.Peers, "gather", as_told(by_one_bit)),
    "sums not shared": (peers.Peers, "total", not_shared),
    "sums in place": (peers.Peers, "total", in_place),
    "counted twice": (verify, "_step", counted_twice),
}


def broken(rank, how):
    with mock.patch.object(*BROKEN[how]):
        return nw.verify_sync()


def in_a_subgroup(rank):
    group = dist.new_group([0, 2])
    if rank == 1:
        with pytest.raises(nw.ShapeError, match="this process to be in group"):
            nw.verify_sync(group)
        return None
    return nw.verify_sync(group)


def compiled(rank):
    """By a backend that takes a tenth of the default's time, and leaves it the same work."""
    # torch's compiler, about itself
    warnings.filterwarnings("ignore", ".*Function'> should not be instantiated", DeprecationWarning)
    quick = functools.partial(torch.compile, backend="aot_eager")
    few = mock.patch.object(verify, "plan", lambda size, few: plan(size, few=few)[1:3])
    with mock.patch.object(torch, "compile", quick), few:
        return nw.verify_sync(compiled=True)


def told(rank):
    """How far rank 0 was told that it is; other ranks have no bar."""
    steps = []
    nw.verify_sync(progress=lambda done, total: steps.append((done, total)))
    return steps


def differently(rank, options):
    try:
        nw.verify_sync(**options[rank])
    except (nw.ShapeError, nw.DtypeError, nw.SyncError, RuntimeError) as error:
        return type(error).__name__, str(error)
    return None


def alone_of_two(rank):
    return differently(rank, [{}]) if rank == 0 else None


# --- yes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_equal_one_process_and_all_of_them_say_so(size, processes):
    found = processes.run(verified, size=size)
    report, words = found[0]
    assert [each == (report, words) for each in found] == [True] * size
    assert report.ok
    assert report.failing == ()
    assert [each.case for each in report.cases] == plan(size)
    assert words.startswith(
        f"{size} ranks (cpu, gloo) equal one process on the joined batch: 28 of 28 cases hold.\n"
    )
    assert "FAILS" not in words
    assert max(map(len, words.splitlines())) <= 116
    assert_every_word_is_whole(report.table(), 80)
    assert_rows_have_names(report.table())


def test_every_quantity_is_compared_and_used_a_part_of_what_is_allowed(processes):
    report = processes.run(verified)[0][0]
    used = {}
    for each in report.cases:
        names = {distance.quantity for distance in each.distances}
        assert names == {
            "y",
            "dx",
            "dweight",
            "dbias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        } | ({"dresidual"} if "add" in each.case.after else set())
        for distance in each.distances:
            used[distance.quantity] = max(used.get(distance.quantity, 0), distance.share)
    exact = {"dresidual", "num_batches_tracked"}  # a choice, and a number
    assert {name for name, share in used.items() if share == 0} == exact
    # roundings were seen; and there is room, so that chance makes nothing fail
    assert all(0.01 < share < 0.7 for name, share in used.items() if name not in exact), used


def test_a_subgroup_is_verified_for_itself(processes):
    first, none, last = processes.run(in_a_subgroup, size=3)
    assert none is None
    assert first == last
    assert (first.ok, first.ranks) == (True, 2)


@pytest.mark.slow
def test_compiled_layers_are_verified(processes):
    report = processes.run(compiled)[0]
    assert report.ok, str(report)
    assert [each.case for each in report.cases] == plan(2, few=True)[1:3]
    assert (
        report.headline
        == "2 ranks (cpu, gloo, compiled) equal one process on the joined batch: 2 of 2 cases hold."
    )


def test_one_rank_says_that_nothing_was_synchronized(processes):
    ((report, words),) = processes.run(verified, size=1)
    assert (report.ok, report.ranks, report.backend) == (True, 1, "gloo")
    assert words.startswith(
        "1 rank (cpu, gloo): nothing was synchronized. It has the results of the definition: 8 of"
    )
    alone = nw.verify_sync(None)
    assert (alone.ok, alone.backend, alone.cases) == (True, "", report.cases)


def test_only_rank_0_is_told_how_far_it_is(processes):
    first, second = processes.run(told)
    assert first == [(done, 28) for done in range(29)]
    assert second == []


def test_what_is_switched_on_around_it_changes_nothing():
    want = nw.verify_sync(None)
    state, others = torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.no_grad(), torch.autocast("cpu"):
        assert nw.verify_sync(None) == want
    with torch.inference_mode(), torch.device("meta"):
        assert nw.verify_sync(None) == want
    torch.set_default_dtype(F64)
    try:
        assert nw.verify_sync(None) == want
    finally:
        torch.set_default_dtype(F32)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == others).all()


# --- no -----------------------------------------------------------------------------------------------------


def failing(report):
    """The quantities that fail, and in which samples."""
    quantities = {each.quantity for case in report.failing for each in case.distances if not each.ok}
    return quantities, {case.case.samples for case in report.failing}


MERGE = {"y", "dx", "dweight", "running_var"}
EMPTY = {"first none", "last none", "all on one"}


@pytest.mark.parametrize(
    ("how", "quantities", "spared", "samples"),
    [
        # right where all ranks have as many, and wrong elsewhere
        ("mean of means", MERGE | {"running_mean"}, {"even", "one each"}, {"uneven"} | EMPTY),
        # of two ranks with one empty, nothing lies between
        ("no variance between", MERGE, EMPTY, set(SAMPLES) - EMPTY),
        ("sums not shared", {"dx"}, EMPTY, set(SAMPLES) - EMPTY),
        ("sums in place", {"dweight", "dbias"}, EMPTY, set(SAMPLES) - EMPTY),
        ("counted twice", {"num_batches_tracked"}, set(), set(SAMPLES)),
    ],
)  # fmt: skip
def test_a_wrong_merge_or_sum_is_found_and_named(how, quantities, spared, samples, processes):
    first, second = processes.run(broken, how)
    assert first == second
    assert not first.ok
    found, where = failing(first)
    # behind relu other gradients come through
    assert quantities <= found <= quantities | ({"dresidual", "dbias"} if "y" in quantities else set())
    assert (where, where & spared) == (samples, set())
    words = str(first)
    assert words.startswith("2 ranks (cpu, gloo) do NOT equal one process on the joined batch: ")
    for name in quantities:
        assert f": {name} " in words.partition("FAILS")[2]


def test_means_that_travel_as_one_double_are_found_where_they_are_large(processes):
    first, second = processes.run(broken, "tails dropped")
    assert first == second
    assert not first.ok
    assert {(case.case.dtype, case.case.mean) for case in first.failing} == {(F64, 1e6)}
    assert failing(first)[0] == MERGE


def test_statistics_that_differ_by_one_bit_are_found(processes):
    first, second = processes.run(broken, "by one bit")
    assert first == second
    assert not first.ok
    assert failing(first)[0] == set()  # within what is allowed; and yet not the same
    assert {case.differing for case in first.failing} == {(1,)}
    assert "running statistics of rank 1 are not the bits of rank 0's." in str(first)
    row = next(row for row in first.table().rows if row[-1] == "NO")
    assert row[0] == "float64"


def test_the_rank_and_the_distance_are_named(processes):
    report = processes.run(broken, "counted twice")[0]
    assert report.failing[0].failures[0] == "num_batches_tracked on rank 1 is off by 1, and must be exact"


# --- records, and errors ------------------------------------------------------------------------------------


def test_records_hold_every_distance_and_what_has_no_number(tmp_path):
    case = Case("NC", "uneven", F32)
    distances = (
        Distance("y", 1, 1e-7, 2e-7),
        Distance("dx", 0, math.nan, 1e-7),
        Distance("dbias", None, 3.0, 0.0),
    )
    report = SyncReport(2, "cpu", "gloo", False, (SyncCase(case, distances, (1,)),))
    report.save(tmp_path / "found.json")
    read, about = records.read(tmp_path / "found.json")
    assert [(r.what, r.value) for r in read] == [
        ("y", 0.5),
        ("dx", None),
        ("dbias", None),
        ("ranks with other statistics", 1),
    ]
    assert read[0].where == {
        "type": "float32",
        "layout": "NC",
        "samples": "uneven",
        "with": "-",
        "rank": 1,
        "allowed": 2e-7,
        "off": 1e-7,
    }
    assert read[1].where["why"] == "not finite"
    assert (about["experiment"], about["ok"], about["ranks"]) == ("verify-sync", False, 2)
    json.loads((tmp_path / "found.json").read_text())


def test_it_asks_for_a_process_group():
    with pytest.raises(nw.ShapeError, match=r"verify_sync: expected an initialized process group, got none"):
        nw.verify_sync()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"compiled": "yes"}, nw.DtypeError, "compiled to be True or False, got 'yes'"),
        ({"device": 3}, nw.DtypeError, "device to be a torch.device or its name, got 3"),
        ({"device": "nothing"}, nw.ShapeError, "device to be one of torch's, got 'nothing'"),
        ({"progress": 3}, nw.DtypeError, "progress to be None, True, False or a function"),
        ({"group": "all"}, nw.DtypeError, "group to be None, 'world' or a torch.distributed.ProcessGroup"),
    ],
)
def test_arguments_are_checked(options, error, words, processes):
    if options.get("group"):
        (found,) = processes.run(differently, [options], size=1)
        assert found[0] == "DtypeError"
        assert words in found[1]
    else:
        with pytest.raises(error, match=words):
            nw.verify_sync(**{"group": None, **options})


def test_ranks_that_ask_for_different_things_are_told_before_they_wait(processes):
    found = processes.run(differently, [{}, {"compiled": True}])
    expected = "normwright.torch.verify_sync: expected the same compiled in every process, got True on rank 1"
    assert [(name, expected in words) for name, words in found] == [("ShapeError", True)] * 2
    first, second = processes.run(differently, [{}, {"device": "meta"}])
    assert first[0] == "RuntimeError"
    assert "device to be one of the group's" in first[1]
    assert second[0] == "ShapeError"


def test_a_rank_that_does_not_call_ends_in_an_error(processes):
    (name, words), none = processes.run(alone_of_two, timeout=1.0)
    assert none is None
    assert name == "SyncError"
    assert words.startswith("normwright.torch.verify_sync: expected each of the 2 processes of the group")


def test_without_cases_nothing_is_proved():
    assert not SyncReport(2, "cpu", "gloo", False, ()).ok
