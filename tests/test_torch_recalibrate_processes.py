"""Two processes recalibrate one model over both processes' batches, and fail together."""

import datetime
import time
import traceback
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

import normwright.torch as nw
from beside_torch import agree, normal, same_bits
from normwright.torch import measuring

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo")
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
    f"{share}, {order}, {name}, {kind}": (together, share, order, options, kind)
    for share in SHARES
    for order in ("joint", "sequential")
    for name, options in OPTIONS.items()
    for kind in ("plain", "parallel", "sync")
    if kind == "plain" or (share, name) == ("uneven", "pooled")
}
EVENTS = {
    "failing, joint": (failing, "joint"),
    "failing, sequential": (failing, "sequential"),
    "other layers": (other_layers,),
    "moving": (moving,),
    "wrong here": (wrong_here,),
    "one alone": (one_alone,),
    **{f"interrupted, {order}": (interrupted, order) for order in ("joint", "sequential")},
    **{f"progress, {order}": (progress_fails, order) for order in ("joint", "sequential")},
    **{f"other {name}": (other_options, name) for name in ("order", "method", "prior")},
    "other types": (other_types,),
    **{f"fails to {step}": (fails_at_the_end, step) for step in ("settle", "write")},
}


def process(rank, folder):
    torch.set_num_threads(1)
    # Where one process waits for a call that the other does not make, both fail after this.
    timeout = datetime.timedelta(seconds=10)
    dist.init_process_group("gloo", f"file://{folder}/meet", timeout, world_size=2, rank=rank)
    results = {}
    for case, (run, *arguments) in {**CASES, **EVENTS}.items():
        try:
            results[case] = run(rank, *arguments)
        except Exception:
            results[case] = traceback.format_exc()
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The results of both processes, which are ended after a while whatever they do."""
    folder = str(tmp_path_factory.mktemp("recalibrated"))
    context = torch.multiprocessing.spawn(process, (folder,), nprocs=2, join=False)
    end = time.monotonic() + 50
    try:
        while not context.join(timeout=max(0, end - time.monotonic())):
            if time.monotonic() > end:
                pytest.fail("two processes were not done after 50 seconds")
    finally:
        for child in context.processes:
            child.kill()
    return [torch.load(Path(folder, f"{rank}.pt")) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_both_processes_have_the_statistics_of_all_batches(case, both):
    _, share, order, options, _ = CASES[case]
    (got, *facts), (other, *others) = (results[case] for results in both)
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
def test_where_one_process_fails_the_other_does_not_wait(order, both):
    other, failed = (results[f"failing, {order}"] for results in both)
    assert failed == ("ZeroDivisionError", "of this rank", True)
    assert other[0] == "RuntimeError"
    assert "got on rank 1 ZeroDivisionError: of this rank." in other[1]
    assert other[2]


def test_models_that_differ_are_refused_everywhere(both):
    for results in both:
        kind, words = results["other layers"]
        assert kind == "ShapeError"
        assert "the same batch norm layers in every process, got others on rank 1 than on rank 0" in words


def test_a_mistake_in_one_process_is_told_to_the_other(both):
    other, wrong = (results["wrong here"] for results in both)
    assert wrong[0] == "DtypeError"
    assert other[0] == "RuntimeError"
    assert "on rank 1 DtypeError: normwright.torch.recalibrate: expected batches" in other[1]


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ("interrupted, joint", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("interrupted, sequential", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("progress, joint", "ZeroDivisionError", "ZeroDivisionError: division by zero"),
        ("progress, sequential", "ZeroDivisionError", "ZeroDivisionError: division by zero"),
        ("fails to settle", "MemoryError", "MemoryError: settle"),
        ("fails to write", "MemoryError", "MemoryError: write"),
    ],
)
def test_wherever_one_process_fails_the_other_learns_of_it_and_neither_writes(case, error, words, both):
    other, failed = (results[case] for results in both)
    assert (failed[0], failed[2]) == (error, True)
    assert (other[0], other[2]) == ("RuntimeError", True)
    assert f"got on rank 1 {words}." in other[1]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("other order", "the same order in every process, got 'sequential' on rank 1 and 'joint' on rank 0."),
        ("other method", "same method in every process, got 'algorithm2' on rank 1 and 'pooled' on rank 0."),
        ("other prior", "the same prior in every process, got 2.0 on rank 1 and 1.0 on rank 0."),
        (
            "other types",
            "the same batch norm layers in every process, got others on rank 1 than on rank 0 ('').",
        ),
    ],
)
def test_processes_that_are_to_do_different_things_are_refused_everywhere(case, words, both):
    for results in both:
        kind, told, same = results[case]
        assert (kind, same) == ("ShapeError", True)
        assert words in told


def test_a_moving_average_of_several_processes_is_refused(both):
    for results in both:
        kind, words = results["moving"]
        assert (kind, "no group with method='moving'" in words) == ("ShapeError", True)


def test_a_group_counts_its_own_processes_alone(both):
    inside, outside = (results["one alone"] for results in both)
    assert inside[2] == 2
    assert outside[0] == "ShapeError"
    assert "this process to be in group" in outside[1]
