"""The paper model: its formulas by hand, what grows with what, and the tables that are made of it."""

import io
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from normwright.bench.distributed import paper, scaling
from normwright.bench.distributed.paper import (
    BEST,
    CLUSTERS,
    ETHERNET,
    NETWORKS,
    NVLINK,
    RANKS,
    RESNET_20,
    RESNET_50,
    STEPS,
    TODAY,
    Cluster,
    Link,
    Network,
)
from normwright.cli import app
from normwright.report import markdown
from terminals import assert_every_word_is_whole

# Two ranks a node: a hop inside takes 1 s, one between nodes 10 s, starting 100 s. Bytes take no time in the first.
HOPS = Cluster("hops", 2, Link(1, math.inf), Link(10, math.inf), 100, trees=True)
# Only bytes take time: 8 a second inside, 3 for each rank between, so 6 for a node of two.
WIRES = Cluster("wires", 2, Link(0, 8), Link(0, 3), 0, trees=False)
COLLECTIVES = (
    paper.ring_all_gather,
    paper.doubling_all_gather,
    paper.ring_all_reduce,
    paper.tree_all_reduce,
    paper.doubling_all_reduce,
    paper.library_all_reduce,
)
name = lambda each: each.__name__  # noqa: E731  # pytest's ids


# --- by hand ----------------------------------------------------------


@pytest.mark.parametrize(
    ("collective", "seconds"),
    # 8 ranks in 4 nodes. A ring's 7 hops: 4 between nodes, 3 inside. Doublings: one inside, two between.
    # A tree: one hop inside and two between, up and down.
    [
        (paper.ring_all_gather, 100 + 4 * 10 + 3 * 1),
        (paper.ring_all_reduce, 100 + 2 * (4 * 10 + 3 * 1)),
        (paper.doubling_all_gather, 100 + 1 + 2 * 10),
        (paper.doubling_all_reduce, 100 + 1 + 2 * 10),
        (paper.tree_all_reduce, 100 + 2 * (1 + 2 * 10)),
        (paper.library_all_reduce, 100 + 2 * (1 + 2 * 10)),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_latencies_are_those_counted_by_hand(collective, seconds):
    assert collective(HOPS, 8, 1e9) == seconds


@pytest.mark.parametrize(
    ("collective", "within", "beyond"),
    # 24 bytes. Within a node of 2 at 8 a second, in 2 nodes of 2 at 6 a second.
    [
        (paper.ring_all_gather, 24 / 8, 3 * 24 / 6),
        (paper.doubling_all_gather, 24 / 8, 3 * 24 / 6),
        (paper.ring_all_reduce, 2 * 12 / 8, 2 * 18 / 6),
        (paper.doubling_all_reduce, 24 / 8, 2 * 24 / 6),
        (paper.tree_all_reduce, 2 * 24 / 8, 2 * 24 / 6),
        (paper.library_all_reduce, 2 * 12 / 8, 2 * 18 / 6),  # it has no trees
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_times_of_bytes_are_those_counted_by_hand(collective, within, beyond):
    assert collective(WIRES, 2, 24) == within
    assert collective(WIRES, 4, 24) == beyond


def test_a_library_with_trees_takes_a_ring_where_that_is_quicker():
    # one node of two ranks, 100 bytes at 1 byte a second: a ring moves 100, a tree 200, both in two hops
    node = Cluster("node", 2, Link(1, 1), Link(10, 1), 0, trees=True)
    assert paper.library_all_reduce(node, 2, 100) == paper.ring_all_reduce(node, 2, 100) == 102


def test_a_rows_bytes_are_those_of_the_protocol():
    # a tag, a count, C means in two parts and C m2; a tag, a one, and C sums twice: all float64
    row = torch.zeros(2 + 3 * 64, dtype=torch.float64)
    assert paper.forward_bytes(64) == row.numel() * row.element_size()
    assert paper.backward_bytes(64) == torch.zeros(2 + 2 * 64, dtype=torch.float64).nbytes


def test_a_step_is_the_sum_over_its_layers():
    # 2 ranks in a node; rows of 40 and 64 bytes, sums of 32 and 48, and of those a ring moves each byte once
    both = Network("two layers", (1, 2), batch=1)
    assert paper.step_seconds(WIRES, both, 2) == (40 + 64 + 32 + 48) / 8
    assert (both.row, both.received(4)) == (104, 312)


def test_pooling_is_one_message_for_the_whole_model():
    both = Network("two layers", (1, 2), batch=1)
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(2))
    statistics = sum(t.numel() for t in model.buffers())  # a counter, means and variances of each
    assert both.pooled == 8 * (1 + statistics) == 72
    assert paper.pooled_seconds(WIRES, both, 2) == 72 / 8


# --- what grows with what ---------------------------------------------


@pytest.mark.parametrize("collective", COLLECTIVES, ids=name)
@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda each: each.name)
def test_one_rank_costs_nothing_and_more_ranks_never_less(collective, cluster):
    costs = [collective(cluster, ranks, 8192) for ranks in RANKS]
    assert costs[0] == 0
    assert costs[1] > cluster.start
    assert costs == sorted(costs)


@pytest.mark.parametrize("collective", COLLECTIVES, ids=name)
@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda each: each.name)
def test_more_bytes_cost_more(collective, cluster):
    costs = [collective(cluster, 64, size) for size in (0, 1e3, 1e6)]
    assert costs == sorted(set(costs))


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda each: each.name)
def test_fewer_steps_are_never_slower_than_rings(cluster):
    for ranks in RANKS[1:]:
        ring = paper.ring_all_gather(cluster, ranks, 8192)
        assert paper.doubling_all_gather(cluster, ranks, 8192) <= ring


def test_of_many_ranks_a_ring_takes_twice_as_long_for_twice_as_many():
    # what does not grow, and the one node more or less, is below a percent of 4096 hops
    ratio = paper.ring_all_gather(ETHERNET, 4096, 1040) / paper.ring_all_gather(ETHERNET, 2048, 1040)
    assert abs(ratio - 2) < 0.01


def test_groups_of_eight_cost_the_same_however_many_there_are():
    for cluster in CLUSTERS:
        few, many = (paper.grouped_seconds(cluster, RESNET_50, ranks) for ranks in (8, 4096))
        assert few == many == paper.step_seconds(cluster, RESNET_50, 8)
        assert paper.grouped_seconds(cluster, RESNET_50, 2) == paper.step_seconds(cluster, RESNET_50, 2)


def test_synchronizing_becomes_dear_at_the_first_number_of_ranks_above_the_share():
    costs = dict(zip(RANKS, range(len(RANKS)), strict=True))  # 0 for one rank, 12 for 4096
    assert paper.dear_from(costs.__getitem__, 10.0, 0.5) == 64  # 5 is not above, 6 is
    assert paper.dear_from(costs.__getitem__, 10.0, 1.2) is None


def test_the_networks_are_those_that_they_are_named_for():
    # 53,120 weights and biases of batch norms are ResNet-50's, 1,376 ResNet-20's: known from many implementations
    assert (len(RESNET_50.channels), 2 * sum(RESNET_50.channels)) == (53, 53120)
    assert (len(RESNET_20.channels), 2 * sum(RESNET_20.channels)) == (19, 1376)
    assert max(RESNET_50.channels) == 2048


def test_every_cluster_and_network_has_a_step():
    assert set(STEPS) == {(cluster.name, network.name) for cluster in CLUSTERS for network in NETWORKS}


# --- the tables and the picture ---------------------------------------


def test_the_tables_say_what_the_model_says():
    sent, *costs, dear, assumed = scaling.tables()
    assert sent.rows[0][:5] == ("ResNet-50", "53", "106", "638,288", "425,808")
    assert sent.rows[0][-1] == f"{4095 * 638_288 / 1e6:,.1f} MB"
    for cluster, table in zip(CLUSTERS, costs, strict=True):
        assert [int(row[0]) for row in table.rows] == list(RANKS)
        assert set(table.rows[0][1:]) == {"0"}
        for row in table.rows[1:]:
            seconds = paper.step_seconds(cluster, RESNET_50, int(row[0]), TODAY)
            told, share = row[1].rstrip(")").split(" ms (")
            # two figures, or whole milliseconds
            assert float(told.replace(",", "")) == pytest.approx(seconds * 1e3, rel=0.05, abs=0.05)
            step = STEPS[cluster.name, RESNET_50.name]
            part = float(share[:-1]) * (1 if share.endswith("x") else 0.01)
            assert part == pytest.approx(seconds / step, rel=0.05)
    assert len(dear.rows) == len(CLUSTERS) * len(NETWORKS)
    assert len(assumed.rows) == len(CLUSTERS)


def test_where_it_becomes_dear_is_read_off_the_model():
    row = next(row for row in scaling.dear().rows if row[0] == f"{NVLINK.name}; {RESNET_50.name}")
    step = STEPS[NVLINK.name, RESNET_50.name]
    for cell, share in zip(row[1:-1], paper.SHARES, strict=True):
        for told, ways in zip(cell.rstrip(")").split(" ("), (TODAY, BEST), strict=True):
            first = RANKS.index(int(told))
            assert paper.step_seconds(NVLINK, RESNET_50, RANKS[first], ways) > share * step
            assert paper.step_seconds(NVLINK, RESNET_50, RANKS[first - 1], ways) <= share * step


def test_the_command_puts_the_tables_between_the_markers_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "page.md", tmp_path / "scaling.svg"
    page.write_text("before\n<!-- scaling:begin -->\nold\n<!-- scaling:end -->\nafter\n")
    told = CliRunner().invoke(app, ["scaling", "--into", str(page), "--figure", str(picture)])
    assert told.exit_code == 0, told.output
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("| 4096 |") == len(CLUSTERS)
    words = {each.text for each in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")}
    assert {"every layer", "groups of 8", "pooled, each time", "ranks"} <= words


def test_the_page_shows_what_the_model_says_today():
    page = Path(__file__).parent.parent / "docs" / "distributed.md"
    text = page.read_text(encoding="utf-8")
    assert markdown.put_into(text, scaling.MARKERS, scaling.block()) == text


def test_a_page_without_markers_is_left_alone_and_told_in_one_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    for path, words in ((page, "expected one line"), (tmp_path / "none.md", "none.md")):
        told = CliRunner().invoke(app, ["scaling", "--into", str(path)])
        assert told.exit_code == 1
        assert words in told.stderr
        assert told.stderr.count("\n") == 1
    assert page.read_text() == "nothing here"


def test_no_cell_is_cut_in_a_terminal_of_80_columns():
    for table in scaling.tables():
        assert_every_word_is_whole(table, 80)
    printed = io.StringIO()
    scaling.run(console=Console(file=printed, width=80))
    assert max(map(len, printed.getvalue().splitlines())) <= 80
    assert "…" not in printed.getvalue()
    for cell in scaling.costs(CLUSTERS[-1]).rows[
        -1
    ]:  # the largest numbers, and their shares in the same line
        assert cell in printed.getvalue()


def test_the_terminal_shows_the_same_tables():
    printed = io.StringIO()
    scaling.run(console=Console(file=printed, width=250))
    text = " ".join(printed.getvalue().split())  # long titles go over two lines
    for table in scaling.tables():
        assert table.title in text
