"""What synchronizing costs on paper: latency and bandwidth, from one rank to thousands.

A message of n bytes takes `latency + n / bandwidth` from one rank to the next. All else follows: how many messages
come one after the other, and how many bytes a rank receives. What the model leaves out makes it optimistic: ranks
that come late, other traffic on the same wires (the gradients' own all-reduce), and work on what was received.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

FLOAT64 = 8
RANKS = tuple(2**k for k in range(13))
GROUP = 8  # ranks that share their statistics where groups do; a node of the clusters below, where nodes have more
SHARES = (0.1, 0.25, 1.0)  # of a step: a price, a high one, and more than the step itself


# ---- what is sent -------------------------------------------------------------------------------------------


def forward_bytes(channels: int) -> int:
    """What a layer's forward sends: a row (tag, count, mean in two parts, m2) of float64.

    Example:
        >>> forward_bytes(64)
        1552
    """
    return FLOAT64 * (3 * channels + 2)


def backward_bytes(channels: int) -> int:
    """What a layer's backward sums up over the ranks: (tag, one, sum dz, sum dz * x_hat) in float64.

    Example:
        >>> backward_bytes(64)
        1040
    """
    return FLOAT64 * (2 * channels + 2)


# ---- where it is sent ---------------------------------------------------------------------------------------


class Link(NamedTuple):
    """A wire: seconds until a message arrives, and bytes a second for each rank that uses it."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Cluster:
    """Nodes of some ranks each, filled one after the other.

    Attributes:
        name: as tables have it.
        per_node: ranks in a node.
        inside: from rank to rank within a node.
        between: from node to node; its bandwidth is each rank's share of the node's.
        start: seconds before the first byte of a collective leaves: queues, launches, threads that wake up.
        trees: the library sums small messages up along trees where that is quicker, as NCCL does; gloo's ring else.
    """

    name: str
    per_node: int
    inside: Link
    between: Link
    start: float
    trees: bool

    def nodes(self, ranks: int) -> int:
        """How many nodes so many ranks fill."""
        return -(-ranks // self.per_node)

    def bandwidth(self, ranks: int) -> float:
        """Bytes a second that each rank receives when all receive the same.

        What one rank of a node has received, the others have from it: all wires of the node carry for all.
        """
        if self.nodes(ranks) == 1:
            return self.inside.bandwidth
        return min(self.inside.bandwidth, self.per_node * self.between.bandwidth)

    def around(self, ranks: int) -> float:
        """Seconds of latency from a rank around a ring to the one behind it."""
        nodes = self.nodes(ranks)
        between = min(nodes, ranks - 1) if nodes > 1 else 0
        return between * self.between.latency + (ranks - 1 - between) * self.inside.latency

    def doublings(self, ranks: int) -> float:
        """Seconds of latency until all know of all, where those who know double at every step."""
        inside = _steps(min(ranks, self.per_node)) * self.inside.latency
        return inside + _steps(self.nodes(ranks)) * self.between.latency


def _steps(ranks: int) -> int:
    return math.ceil(math.log2(ranks))


Collective = Callable[[Cluster, int, float], float]


def ring_all_gather(cluster: Cluster, ranks: int, size: float) -> float:
    """Every rank's `size` bytes go around a ring.

    start + (p - 1) latency + (p - 1) size / bandwidth

    Args:
        cluster: where.
        ranks: p.
        size: bytes that one rank sends.

    Returns:
        Seconds; 0 for one rank, which calls nothing.

    Example:
        >>> toy = Cluster("toy", 1, Link(0, 1), Link(10, 2), 100, trees=False)
        >>> [ring_all_gather(toy, p, 4) for p in (1, 2, 4)]  # at one byte a second, within nodes and between them
        [0.0, 114.0, 142.0]
    """
    return _unless_alone(cluster, ranks, cluster.around, (ranks - 1) * size)


def doubling_all_gather(cluster: Cluster, ranks: int, size: float) -> float:
    """In every step a rank exchanges all that it knows with another: log2(p) latencies, the same bytes."""
    return _unless_alone(cluster, ranks, cluster.doublings, (ranks - 1) * size)


def ring_all_reduce(cluster: Cluster, ranks: int, size: float) -> float:
    """Pieces of `size` bytes go around a ring twice: to be summed up, and to be told."""
    return _unless_alone(cluster, ranks, lambda p: 2 * cluster.around(p), 2 * (ranks - 1) / ranks * size)


def tree_all_reduce(cluster: Cluster, ranks: int, size: float) -> float:
    """Along a chain within each node and a tree between nodes, up and down again."""

    def latency(p: int) -> float:
        chain = (min(p, cluster.per_node) - 1) * cluster.inside.latency
        return 2 * (chain + _steps(cluster.nodes(p)) * cluster.between.latency)

    return _unless_alone(cluster, ranks, latency, 2 * size)


def doubling_all_reduce(cluster: Cluster, ranks: int, size: float) -> float:
    """In every step two ranks exchange and add their sums: log2(p) latencies, and as many times the bytes."""
    steps = _steps(min(ranks, cluster.per_node)) + _steps(cluster.nodes(ranks))
    return _unless_alone(cluster, ranks, cluster.doublings, steps * size)


def library_all_reduce(cluster: Cluster, ranks: int, size: float) -> float:
    """As the cluster's library does it: along a ring, or a tree where it has trees and they are quicker."""
    ring = ring_all_reduce(cluster, ranks, size)
    return min(ring, tree_all_reduce(cluster, ranks, size)) if cluster.trees else ring


def _unless_alone(cluster: Cluster, ranks: int, latency: Callable[[int], float], received: float) -> float:
    if ranks == 1:
        return 0.0
    return cluster.start + latency(ranks) + received / cluster.bandwidth(ranks)


class Ways(NamedTuple):
    """By which algorithms the two collectives go."""

    gather: Collective
    reduce: Collective


#: What NCCL (with several ranks a node) and gloo do: their all-gather knows rings alone.
TODAY = Ways(ring_all_gather, library_all_reduce)
#: What no library can beat by much: as few steps as there can be.
BEST = Ways(doubling_all_gather, doubling_all_reduce)


# ---- what is trained ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
        name: as tables have it.
        channels: of each of its batch norms.
        batch: samples a rank and step.
    """

    name: str
    channels: tuple[int, ...]
    batch: int

    def received(self, ranks: int) -> int:
        """Bytes that a rank's forward receives from the others in a step: what grows with the ranks."""
        return (ranks - 1) * self.row

    @property
    def row(self) -> int:
        """Bytes that a rank sends in all forwards of a step."""
        return sum(map(forward_bytes, self.channels))

    @property
    def pooled(self) -> int:
        """Bytes that a rank sends to pool: its weight, and counter, mean and variance of each layer in float64."""
        return FLOAT64 * (1 + sum(2 * channels + 1 for channels in self.channels))


def bottlenecks(blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64) -> tuple[int, ...]:
    """The channels of a bottleneck ResNet's batch norms in the order of their use: ResNet-50 by default.

    Source: He et al., Deep Residual Learning for Image Recognition (2016), table 1.

    Example:
        >>> len(bottlenecks()), sum(bottlenecks())
        (53, 26560)
    """
    found = [width]
    for stage, count in enumerate(blocks):
        narrow = width * 2**stage
        for block in range(count):
            found += [narrow, narrow, 4 * narrow] + ([4 * narrow] if block == 0 else [])  # and its shortcut's
    return tuple(found)


def thin(depth: int = 20) -> tuple[int, ...]:
    """The channels of the same paper's ResNets for CIFAR-10, whose shortcuts have none: section 4.2.

    Example:
        >>> len(thin()), sum(thin())
        (19, 688)
    """
    convolutions = (depth - 2) // 3
    return (16, *(16,) * convolutions, *(32,) * convolutions, *(64,) * convolutions)


RESNET_50 = Network("ResNet-50", bottlenecks(), batch=32)
RESNET_20 = Network("ResNet-20", thin(), batch=128)


# ---- what that costs ----------------------------------------------------------------------------------------


def step_seconds(cluster: Cluster, network: Network, ranks: int, ways: Ways = TODAY) -> float:
    """What synchronizing every layer adds to a step: an all-gather and an all-reduce a layer, none of them hidden.

    Example:
        >>> step_seconds(NVLINK, RESNET_20, 1)
        0.0
    """
    return math.fsum(
        ways.gather(cluster, ranks, forward_bytes(c)) + ways.reduce(cluster, ranks, backward_bytes(c))
        for c in network.channels
    )


def pooled_seconds(cluster: Cluster, network: Network, ranks: int) -> float:
    """What pooling the statistics costs each time, once an epoch say: one all-gather for the whole model.

    The few small messages before it, by which ranks agree on the layers, are left out.
    """
    return TODAY.gather(cluster, ranks, network.pooled)


def grouped_seconds(cluster: Cluster, network: Network, ranks: int) -> float:
    """What synchronizing every layer in groups of 8 adds to a step."""
    return step_seconds(cluster, network, min(ranks, GROUP))


def dear_from(cost: Callable[[int], float], step: float, share: float) -> int | None:
    """The smallest number of ranks, of those in the tables, whose cost is more than a share of the step.

    Args:
        cost: seconds, of a number of ranks.
        step: seconds without it.
        share: of the step.

    Example:
        >>> [dear_from(lambda ranks: 0.01 * (ranks - 1), 1.0, share) for share in (0.1, 0.25, 50)]
        [16, 32, None]
    """
    return next((ranks for ranks in RANKS if cost(ranks) > share * step), None)


# ---- assumptions --------------------------------------------------------------------------------------------

# Latencies between GPUs are of the size of those by which NCCL 2.30 chooses its algorithms (src/graph/tuning.cc:
# 0.6 us a hop over NVLink, 2.7 to 5 us over a network, about 1 us of overhead a hop once there is one, 7 us to
# begin); a collective that torch starts waits for another 10 us or so of streams and launches. Bandwidths are half
# to four fifths of what links are sold as: NVLink 4 450 GB/s each way, InfiniBand NDR 50 GB/s.
NVLINK = Cluster(
    "8 GPUs a node: NVLink, InfiniBand",
    per_node=8,
    inside=Link(1e-6, 200e9),
    between=Link(5e-6, 40e9),
    start=20e-6,
    trees=True,
)
# One card of 100 Gbit/s for all eight, through the kernel's TCP.
CLOUD = Cluster(
    "8 GPUs a node: NVLink, 100 Gbit Ethernet",
    per_node=8,
    inside=Link(1e-6, 200e9),
    between=Link(25e-6, 10e9 / 8),
    start=20e-6,
    trees=True,
)
ETHERNET = Cluster(
    "CPUs, one rank a node: 10 Gbit Ethernet, gloo",
    per_node=1,
    inside=Link(5e-6, 5e9),
    between=Link(50e-6, 1e9),
    start=50e-6,
    trees=False,
)
#: Seconds of a step without synchronizing: a recent GPU in mixed precision; 32 or so cores of a CPU.
STEPS = {
    (NVLINK.name, RESNET_50.name): 15e-3,
    (NVLINK.name, RESNET_20.name): 6e-3,
    (CLOUD.name, RESNET_50.name): 15e-3,
    (CLOUD.name, RESNET_20.name): 6e-3,
    (ETHERNET.name, RESNET_50.name): 500e-3,
    (ETHERNET.name, RESNET_20.name): 100e-3,
}
CLUSTERS = (NVLINK, CLOUD, ETHERNET)
NETWORKS = (RESNET_50, RESNET_20)
