"""Several processes recalibrate one model over all their batches, and fail together."""

import os
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import normwright.torch as nw
from beside_torch import agree, normal, same_bits
from normwright.torch.distributed.ranks import Ranks
from normwright.torch.statistics import measuring

F64 = torch.float64
TWO = [normal(7, 3, dtype=F64), normal(2, 3, dtype=F64, seed=1)]
# The batches of rank 0 and of rank 1.
SHARES = {
    "uneven": (TWO, [normal(5, 3, dtype=F64, seed=2, mean=9.0)]),
    "one has none": (TWO, []),
    "the first has none": ([], TWO),
}


class Net(nn.Module):
    """Large batches and small ones go different ways."""

    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.never = norm(3), norm(3), norm(3), norm(3)
        self.linear = nn.Linear(3, 3)
        self.double()

    def forward(self, x):
        x = self.linear(self.a(x))
        return self.b(x) if len(x) > 6 else self.c(x)


def summary(model, drift):
    state = {name: t.clone() for name, t in model.state_dict().items()}
    return state, drift.passes, drift.batches, drift.unreached, [layer.name for layer in drift.layers]


def together(rank, share, order, options, kind):
    model = Net(nn.SyncBatchNorm if kind == "sync" else nn.BatchNorm1d)
    if rank:  # whoever knows only rank 0's old statistics ends with the same
        model.a.running_mean.fill_(5.0)
    batches = SHARES[share][rank]
    ran = nn.parallel.DistributedDataParallel(model) if kind == "parallel" else model
    if kind == "parallel":
        model.a.running_mean.fill_(5.0 if rank else 0.0)
    return summary(model, nw.recalibrate(ran, batches, order=order, group="world", **options))


def alone(share, order, options):
    """The same in one process, with all batches."""
    model = Net()
    batches = [batch for part in SHARES[share] for batch in part]
    return summary(model, nw.recalibrate(model, batches, order=order, **options))


class Fails(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError("of this rank")


def failing(rank, order):
    """Rank 1 fails; rank 0 learns of it, and both models stay as they were."""
    model = Net()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    forward = (lambda m, x: Fails()(m(x))) if rank else None
    try:
        nw.recalibrate(model, SHARES["uneven"][rank], order=order, group="world", forward=forward)
    except Exception as error:
        same = all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        return type(error).__name__, str(error), same
    return None


def other_layers(rank):
    model = Net()
    if rank:
        model.never = nn.Identity()
    try:
        nw.recalibrate(model, SHARES["uneven"][rank], group=dist.group.WORLD)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def wrong_here(rank):
    """Rank 1 alone has made a mistake."""
    try:
        nw.recalibrate(Net(), SHARES["uneven"][0] if rank == 0 else 3, group="world")
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def caught(rank, model, batches, **options):
    """What it raises, an interruption too, and whether the model is as it was; "ok" where it raises nothing."""
    before = {name: t.clone() for name, t in model.state_dict().items()}
    try:
        nw.recalibrate(model, batches, group="world", **options)
    except BaseException as error:
        same = all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        return type(error).__name__, str(error), same
    return "ok"


def interrupted(rank, order):
    """Ctrl-C on rank 1."""

    def forward(model, x):
        raise KeyboardInterrupt

    batches = SHARES["uneven"][rank]
    return caught(rank, Net(), batches, order=order, forward=forward if rank else None)


def progress_fails(rank, order):
    """A function of the user's on rank 1, at its first call, before any batch."""
    progress = (lambda done, total: 1 / 0) if rank else False
    return caught(rank, Net(), SHARES["uneven"][rank], order=order, progress=progress)


def beside_one_that_ends(rank, when, fails):
    """Rank 1 ends in its batch, or before it comes; rank 0 may have an error of its own."""

    def ends(*_):
        os._exit(1)

    def goes_wrong(*_):
        if fails:
            raise ZeroDivisionError("of this rank")

    try:
        if when == "in a batch":
            forward = ends if rank else lambda model, x: (goes_wrong(), model(x))
            nw.recalibrate(Net(), SHARES["uneven"][rank], group="world", forward=forward)
        else:
            Ranks("call", "world").agree(ends if rank else lambda: goes_wrong() or {}, torch.device("cpu"))
    except Exception as error:
        return type(error).__name__, str(error), type(error.__cause__).__name__


def other_options(rank, name):
    """Each process asks for something else."""
    option = {"order": ("joint", "sequential"), "method": ("pooled", "algorithm2"), "prior": (1, 2)}[name]
    return caught(rank, Net(), SHARES["uneven"][rank], **{name: option[rank]})


def other_types(rank):
    """A variance that rank 1 cannot hold: nobody writes."""
    model, x = nn.BatchNorm1d(3), normal(8, 3) * 3e3
    return caught(rank, model.half() if rank else model, [x.half() if rank else x])


def fails_at_the_end(rank, step):
    """Rank 1 cannot settle a layer, or write what was found."""
    method = measuring.Measuring._settle if step == "settle" else measuring.copy

    def fails(*arguments):
        method(*arguments)
        raise MemoryError(step)

    with mock.patch.object(*((measuring.Measuring, "_settle") if step == "settle" else (measuring, "copy")),
                           fails if rank else method):  # fmt: skip
        return caught(rank, Net(), SHARES["uneven"][rank])


def moving(rank):
    try:
        nw.recalibrate(Net(), SHARES["uneven"][rank], group="world", method="moving")
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def one_alone(rank):
    """A group of one process, in which the other is not."""
    group = dist.new_group([0])
    try:
        model = Net()
        return summary(model, nw.recalibrate(model, SHARES["uneven"][0], group=group))
    except Exception as error:
        return type(error).__name__, str(error)


OPTIONS = {"pooled": {}, "algorithm2": {"method": "algorithm2"}, "a prior": {"prior": 4}}
CASES = {
    f"{share}, {order}, {name}, {kind}": (share, order, options, kind)
    for share in SHARES
    for order in ("joint", "sequential")
    for name, options in OPTIONS.items()
    for kind in ("plain", "parallel", "sync")
    if kind == "plain" or (share, name) == ("uneven", "pooled")
}


@pytest.mark.parametrize("case", CASES)
def test_both_processes_have_the_statistics_of_all_batches(case, processes):
    share, order, options, _ = CASES[case]
    (got, *facts), (other, *others) = processes.run(together, *CASES[case])
    want, *wanted = alone(share, order, options)
    assert facts == others
    if share == "uneven" and order == "sequential":
        # alone, the first batch does not reach c, and a pass more is for it; together, rank 1's first batch does
        assert (facts[0], wanted[0]) == (2, 3)
        facts, wanted = facts[1:], wanted[1:]
    assert facts == wanted
    for name, t in want.items():
        # sums of some ten values in another order, in float64
        agree(name, got[name].double(), t.double(), 1e-13 * max(1, t.abs().max().item()))
        if "never" not in name:
            same_bits(name, got[name], other[name])


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_where_one_process_fails_the_other_does_not_wait(order, processes):
    other, failed = processes.run(failing, order)
    assert failed == ("ZeroDivisionError", "of this rank", True)
    assert other[0] == "RuntimeError"
    assert "got on rank 1 ZeroDivisionError: of this rank." in other[1]
    assert other[2]


@pytest.mark.parametrize("when", ["in a batch", "before"])
def test_an_error_of_ones_own_is_told_before_that_another_process_is_gone(when, processes):
    own, _ = processes.run(beside_one_that_ends, when, True, dying=[1])
    assert own == ("ZeroDivisionError", "of this rank", "SyncError")
    (name, words, _), _ = processes.run(beside_one_that_ends, when, False, dying=[1])
    assert name == "SyncError"
    assert "expected each of the 2 processes of the group to make this call, got on rank 0: " in words


def test_models_that_differ_are_refused_everywhere(processes):
    for kind, words in processes.run(other_layers):
        assert kind == "ShapeError"
        assert "the same batch norm layers in every process, got others on rank 1 than on rank 0" in words


def test_a_mistake_in_one_process_is_told_to_the_other(processes):
    other, wrong = processes.run(wrong_here)
    assert wrong[0] == "DtypeError"
    assert other[0] == "RuntimeError"
    assert "on rank 1 DtypeError: normwright.torch.recalibrate: expected batches" in other[1]


@pytest.mark.parametrize(
    ("event", "argument", "error", "words"),
    [
        (interrupted, "joint", "KeyboardInterrupt", "KeyboardInterrupt"),
        (interrupted, "sequential", "KeyboardInterrupt", "KeyboardInterrupt"),
        (progress_fails, "joint", "ZeroDivisionError", "ZeroDivisionError: division by zero"),
        (progress_fails, "sequential", "ZeroDivisionError", "ZeroDivisionError: division by zero"),
        (fails_at_the_end, "settle", "MemoryError", "MemoryError: settle"),
        (fails_at_the_end, "write", "MemoryError", "MemoryError: write"),
    ],
)
def test_wherever_one_process_fails_the_other_learns_of_it_and_neither_writes(
    event, argument, error, words, processes
):
    other, failed = processes.run(event, argument)
    assert (failed[0], failed[2]) == (error, True)
    assert (other[0], other[2]) == ("RuntimeError", True)
    assert f"got on rank 1 {words}." in other[1]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            (other_options, "order"),
            "the same order in every process, got 'sequential' on rank 1 and 'joint' on rank 0.",
        ),
        (
            (other_options, "method"),
            "same method in every process, got 'algorithm2' on rank 1 and 'pooled' on rank 0.",
        ),
        ((other_options, "prior"), "the same prior in every process, got 2.0 on rank 1 and 1.0 on rank 0."),
        (
            (other_types,),
            "the same batch norm layers in every process, got others on rank 1 than on rank 0 ('').",
        ),
    ],
)
def test_processes_that_are_to_do_different_things_are_refused_everywhere(event, words, processes):
    for kind, told, same in processes.run(*event):
        assert (kind, same) == ("ShapeError", True)
        assert words in told


def test_a_moving_average_of_several_processes_is_refused(processes):
    for kind, words in processes.run(moving):
        assert (kind, "no group with method='moving'" in words) == ("ShapeError", True)


def test_a_group_counts_its_own_processes_alone(processes):
    inside, outside = processes.run(one_alone)
    assert inside[2] == 2
    assert outside[0] == "ShapeError"
    assert "this process to be in group" in outside[1]


# --- any number of processes ----------------------------------------------------------------------------------


def batch(seed, size):
    """Like no other: of another mean as well."""
    return normal(size, 3, dtype=F64, seed=seed, mean=seed % 5 - 2.0)


def in_groups(rank, shares, groups, order, options):
    """Each process recalibrates with its group, on its own share of the batches."""
    made = [dist.new_group(ranks) for ranks in groups]
    within = [group for group, ranks in zip(made, groups, strict=True) if rank in ranks]
    model, batches = Net(), [batch(*each) for each in shares[rank]]
    return summary(model, nw.recalibrate(model, batches, order=order, group=[*within, "world"][0], **options))


def check_groups(processes, shares, groups, order, options):
    """Each group has the statistics of one process with all its batches, and the same bits in each member."""
    members = groups or [range(len(shares))]
    results = processes.run(in_groups, shares, groups, order, options, size=len(shares))
    for ranks in members:
        model, batches = Net(), [batch(*each) for rank in ranks for each in shares[rank]]
        want, _, count, unreached, names = summary(
            model, nw.recalibrate(model, batches, order=order, **options)
        )
        first = results[ranks[0]]
        for rank in ranks:
            got, *facts = results[rank]
            assert facts == list(first[1:])
            assert (facts[1], sorted(facts[2]), sorted(facts[3])) == (count, sorted(unreached), sorted(names))
            for name, t in want.items():
                # float64 sums of at most some hundred values in another order, and five layers' worth of them
                agree(name, got[name].double(), t.double(), 1e-12 * max(1, t.abs().max().item()))
                same_bits(name, got[name], first[0][name])


@st.composite
def shared(draw, size):
    """The batches of `size` processes, each a (seed, number of samples); some may have none, but not all."""
    samples = st.lists(st.integers(2, 9), max_size=3)
    shares = draw(st.lists(samples, min_size=size, max_size=size).filter(any))
    return [[(10 * rank + k, n) for k, n in enumerate(share)] for rank, share in enumerate(shares)]


@pytest.mark.parametrize("size", [2, 3, 4])
@settings(max_examples=15)
@given(data=st.data())
def test_any_shares_give_what_one_process_finds_in_all_batches(size, data, processes):
    shares, order = data.draw(shared(size)), data.draw(st.sampled_from(["joint", "sequential"]))
    check_groups(processes, shares, [], order, OPTIONS[data.draw(st.sampled_from(list(OPTIONS)))])


FOUR = [[(1, 7), (2, 3)], [(3, 9)], [], [(4, 2), (5, 8), (6, 4)]]


@pytest.mark.parametrize("order", ["joint", "sequential"])
@pytest.mark.parametrize("groups", [[], [[0, 2], [1, 3]], [[0, 1, 2], [3]], [[2, 3, 0], [1]]], ids=str)
def test_groups_at_the_same_time_count_their_own_batches_alone(groups, order, processes):
    check_groups(processes, FOUR, groups, order, {})
