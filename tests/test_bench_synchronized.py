"""What synchronizing costs, measured: values first, all ranks in step, collectives counted, tables of all that."""

import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from typer.testing import CliRunner

import normwright.torch as nw
from normwright.bench.distributed import paper, synchronized
from normwright.bench.distributed import rank as each_rank
from normwright.bench.distributed.networks import (
    ALONE,
    BARE,
    COMPOSED,
    NETWORKS,
    OURS,
    SYNC,
    TORCH,
    WIDTHS,
    convnet,
    perceptron,
    resnet_20,
)
from normwright.bench.processes import CannotMeasure
from normwright.bench.timer import Budget, Contender, Timing, WrongValues
from normwright.cli import app

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo")
SMALL = "perceptron, 3 x 256"
ONE_ROUND = Budget(0, least=1, most=1)


# --- measured by the processes that the command starts ----------------


@pytest.fixture(scope="module")
def measured():
    done = []
    return synchronized.measure(2, [SMALL, "16"], 2, done.append), done


@pytest.mark.slow
def test_every_contender_is_timed_in_every_round(measured):
    found, done = measured
    assert done == [SMALL, "16"]
    assert {name: len(each.samples) for name, each in found.steps[SMALL].items()} == dict.fromkeys(
        (TORCH, OURS, SYNC, COMPOSED), 2
    )
    assert {name: len(each.samples) for name, each in found.layers[16].items()} == dict.fromkeys(
        (ALONE, SYNC, BARE), 2
    )
    everybody = (*found.steps[SMALL].values(), *found.layers[16].values())
    assert all(sample > 0 for timing in everybody for sample in timing.samples)


@pytest.mark.slow
def test_what_is_sent_is_what_the_paper_model_says(measured):
    found, _ = measured
    assert found.counted[SMALL] == {
        "forward": [("all_gather", paper.forward_bytes(256))] * 3,
        "backward": [("all_reduce", paper.backward_bytes(256))] * 3,
    }


def test_a_process_that_breaks_ends_the_others_and_its_last_words_are_told(monkeypatch):
    start = synchronized._start

    def broken(folder, rank, *rest):
        if rank == 0:
            return start(folder, rank, *rest)
        dead = [sys.executable, "-c", "raise SystemExit('out of order')"]
        return subprocess.Popen(dead, stdout=subprocess.DEVNULL, stderr=rest[-1], text=True)

    monkeypatch.setattr(synchronized, "_start", broken)
    began = time.monotonic()
    with pytest.raises(CannotMeasure, match=r"^2 processes: rank 0: .*; rank 1: out of order$"):
        synchronized.measure(2, [SMALL], 1)
    # long before the process group gives up waiting
    assert time.monotonic() - began < each_rank.TIMEOUT.total_seconds() / 2


# --- two ranks, one of which is wrong ---------------------------------


def one_is_wrong(rank):
    each_rank._agree("x", (torch.tensor([1.0 + rank]), torch.ones(1), 0.5))


def one_is_no_number(rank):
    each_rank._agree("x", (torch.tensor([float("nan") if rank else 1.0]), torch.ones(1), 0.5))


def all_are_right(rank):
    each_rank._agree(
        "x", (torch.tensor([1.0 + 0.4 * rank]), torch.ones(1), 0.5), (torch.zeros(2), torch.zeros(2), 0)
    )


def not_synchronized(rank):
    """Layers that take "world" and do not synchronize."""
    convert = nw.convert
    nw.convert = lambda model, sync=None: convert(model)
    try:
        each_rank.steps(NETWORKS[SMALL], ONE_ROUND)
    finally:
        nw.convert = convert


def gradients_apart(rank):
    """Sums of the backward pass that stay at home."""
    backward = each_rank._AllReduce.backward
    each_rank._AllReduce.backward = staticmethod(lambda ctx, gradient: (gradient, None))
    try:
        each_rank.steps(NETWORKS[SMALL], ONE_ROUND)
    finally:
        each_rank._AllReduce.backward = backward


def slow_on_one(rank):
    ran = []
    contenders = [
        Contender("a", lambda: (ran.append("a"), time.sleep(0.05 * rank)), all_are_right_here, dist.barrier),
        Contender("b", lambda: ran.append("b"), all_are_right_here, dist.barrier),
    ]
    found = each_rank._in_step(contenders, Budget(0, least=5, most=5))
    return found, ran


def all_are_right_here():
    """Nothing to compare."""


def told(rank, event):
    """What it raises, in words."""
    try:
        event(rank)
    except WrongValues as words:
        return str(words)
    return None


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (one_is_wrong, "x"),
        (one_is_no_number, "x"),
        (not_synchronized, SYNC),
        (gradients_apart, COMPOSED),
    ],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_where_one_rank_is_wrong_all_ranks_say_so_and_nothing_is_timed(event, name, processes):
    words = f"{name}: other values than one process on the same batch; it was not timed."
    assert processes.run(told, event) == [words, words]


def test_where_all_are_right_nobody_says_a_word(processes):
    assert processes.run(told, all_are_right) == [None, None]


def test_a_round_takes_as_long_as_its_slowest_rank_and_all_ranks_run_the_same_order(processes):
    (times, order), (others, other_order) = processes.run(slow_on_one)
    assert times == others
    assert order == other_order
    assert len(times["a"]) == len(times["b"]) == 5
    assert min(times["a"]) >= 0.05  # rank 1 sleeps, rank 0 does not
    assert set(order) == {"a", "b"}


# --- the networks -----------------------------------------------------


def test_the_measured_resnet_is_the_one_on_paper():
    channels = tuple(m.num_features for m in resnet_20().modules() if isinstance(m, nn.BatchNorm2d))
    assert sorted(channels) == sorted(paper.thin())


@pytest.mark.parametrize("build", [perceptron, convnet, resnet_20], ids=lambda each: each.__name__)
def test_a_network_is_the_same_every_time_and_its_samples_fit(build):
    network = next(each for each in NETWORKS.values() if each.build is build)
    before = torch.random.get_rng_state()
    one, two = network.make(), network.make()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one(torch.zeros(2, *network.shape)).shape == (2, 10)


# --- the tables -------------------------------------------------------


def timing(*milliseconds):
    return Timing(tuple(each / 1e3 for each in milliseconds))


def made_up(ranks):
    steps = {TORCH: timing(2, 4, 6), OURS: timing(2), SYNC: timing(5), COMPOSED: timing(8)}
    layers = {} if ranks == 1 else {64: {ALONE: timing(0.25), BARE: timing(0.5), SYNC: timing(1.5)}}
    sent = {"forward": [("all_gather", 1040)], "backward": [("all_reduce", 1024), ("all_reduce", 512)]}
    nothing = {"forward": [], "backward": []}
    return synchronized.Measured(ranks, {SMALL: steps}, layers, {SMALL: sent if ranks > 1 else nothing})


def test_the_tables_say_what_was_measured():
    steps, layers, sent = synchronized.tables([made_up(1), made_up(2)], 3)
    assert steps.rows == tuple(
        (SMALL, str(ranks), "4.0 (3.0 to 5.0)", "0.50x", "1.25x", "2.00x") for ranks in (1, 2)
    )
    assert "3 interleaved rounds" in steps.note
    assert "cores share" in steps.note
    whole = ("250 (250 to 250)", "500 (500 to 500)", "1,500 (1,500 to 1,500)")
    assert layers.rows == (("8 x 64 x 8 x 8", "2", *whole, "2.00x"),)
    assert sent.rows == (
        (SMALL, "1", "nothing", "nothing", "0", "0", "0"),
        (SMALL, "2", "1 all_gather", "2 all_reduce", "1,040", "2,080", "1,536"),
    )


def test_one_process_measures_no_layer_alone_and_more_measure_all():
    assert synchronized.parts(1) == list(NETWORKS)
    assert synchronized.parts(2) == [*NETWORKS, *map(str, WIDTHS)]


def test_the_command_puts_the_tables_between_the_markers(tmp_path, monkeypatch):
    monkeypatch.setattr(synchronized, "measure", lambda ranks, *rest: made_up(ranks))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- synchronized:begin -->\nold\n<!-- synchronized:end -->\nafter\n")
    told = CliRunner().invoke(app, ["synchronized", "--into", str(page)])
    assert told.exit_code == 0, told.output
    text = page.read_text()
    assert (text.startswith("before\n"), text.endswith("after\n"), "old" in text) == (True, True, False)
    for title in ("A training step", "One layer", "What is sent"):
        assert f"**{title}**" in text
    assert text.count(f"| {SMALL} | 4 |") == 2


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (CannotMeasure("2 processes: rank 1: gone"), "2 processes: rank 1: gone", 2),
        (WrongValues("2 processes: x: other values"), "2 processes: x: other values", 1),
        (KeyboardInterrupt(), "stopped; nothing was written", 130),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_cannot_be_measured_is_told_in_one_line(error, words, code, tmp_path, monkeypatch):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(synchronized, "measure", fails)
    page = tmp_path / "page.md"
    page.write_text("<!-- synchronized:begin -->\n<!-- synchronized:end -->")
    told = CliRunner().invoke(app, ["synchronized", "--into", str(page)])
    assert told.exit_code == code
    assert f"normwright synchronized: {words}" in told.stderr
    assert told.stderr.count("\n") == 1
    assert page.read_text() == "<!-- synchronized:begin -->\n<!-- synchronized:end -->"


def test_a_page_without_markers_is_told_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(synchronized, "measure", lambda *arguments: pytest.fail("it measured"))
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    for path, words in ((page, "expected one line"), (tmp_path / "none.md", "No such file")):
        told = CliRunner().invoke(app, ["synchronized", "--into", str(path)])
        assert (told.exit_code, told.stderr.count("\n")) == (1, 1)
        assert words in told.stderr
