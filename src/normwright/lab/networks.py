"""The networks of the experiments, in every style, from the same first weights."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

import normwright.torch as nw

Norm = Callable[[int, int], nn.Module]


def batch_norm(channels: int, dims: int, *, affine: bool = True) -> nn.Module:
    """Batch normalization of ``(N, C)`` where `dims` is 0, of ``(N, C, H, W)`` where it is 2.

    As the paper has it: what is not finite enters the statistics, for runs that diverge are to be seen diverging.
    """
    layer = nw.BatchNorm2d if dims == 2 else nw.BatchNorm1d
    return layer(channels, affine=affine, on_nonfinite="propagate")


@dataclass(frozen=True)
class Style:
    """How the hidden layers of a network are made.

    Attributes:
        norm: makes a normalization layer from channels and spatial dimensions (0 or 2); None leaves it out.
        activation: makes the nonlinearity; None takes the network's own.
        after: normalization stands after the activation instead of before it (the paper: before).
        bias: the affine maps before a normalization keep their bias, which it makes redundant.
        wrap: what is done to each hidden affine map, such as weight normalization.
    """

    norm: Norm | None = None
    activation: Callable[[], nn.Module] | None = None
    after: bool = False
    bias: bool = True
    wrap: Callable[[nn.Module], nn.Module] | None = None


PLAIN = Style()
BN = Style(norm=batch_norm)


@dataclass(frozen=True)
class Network:
    """A network that the experiments share: what it is made of and which images it takes.

    Attributes:
        name: as tables and pictures call it.
        layers: its layers in a few words.
        make: builds it in a style, with random weights.
        size, channels: of the images.
        cost: of one training step without batch normalization, in steps of the MLP. It sets the pace of
            progress bars and nothing else.
    """

    name: str
    layers: str
    make: Callable[[Style], nn.Sequential]
    size: int
    channels: int
    cost: float


class FlattenChannelsLast(nn.Module):
    """``(N, C, H, W)`` to ``(N, H*W*C)``: as `torch.nn.Flatten`, the values in another order.

    The order in which channels-last memory holds them: nothing is copied, which halves the time of a step.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A view of `x`."""
        return x.permute(0, 2, 3, 1).flatten(1)


def hidden(
    number: int, affine: nn.Module, channels: int, dims: int, style: Style, own: Callable[[], nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """One hidden layer by its parts: ``map1``, ``norm1`` where there is one, ``act1``.

    The names, and the random numbers drawn, are the same in every style.
    """
    if not style.bias:
        affine.register_parameter("bias", None)  # drawn and dropped, so that later weights stay the same
    yield f"map{number}", style.wrap(affine) if style.wrap else affine
    parts = [(f"act{number}", (style.activation or own)())]
    if style.norm is not None:
        parts.insert(int(style.after), (f"norm{number}", style.norm(channels, dims)))
    yield from parts


def dense(style: Style, widths: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Fully connected: ``widths[0]`` inputs, hidden layers, ``widths[-1]`` classes."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flat=nn.Flatten())
    for number, (fan_in, width) in enumerate(pairwise(widths[:-1]), start=1):
        layers.update(hidden(number, nn.Linear(fan_in, width), width, 0, style, activation))
    layers["out"] = nn.Linear(widths[-2], widths[-1])
    return nn.Sequential(layers)


def convolutional(
    style: Style, channels: int, size: int, groups: Sequence[Sequence[int]], *, he: bool = False
) -> nn.Sequential:
    """3x3 convolutions (padding 1) with ReLU, a 2x2 max pool after each group of widths, a linear map to 10.

    `he` draws the convolutions' weights as He et al. 2015: variance 2 / fan-in, bias 0.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = 0
    for widths in groups:
        for width in widths:
            number += 1
            conv = nn.Conv2d(channels, width, 3, padding=1)
            if he:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)
            layers.update(hidden(number, conv, width, 2, style, nn.ReLU))
            channels = width
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        size //= 2
    layers.update(flat=FlattenChannelsLast(), out=nn.Linear(channels * size * size, 10))
    network = nn.Sequential(layers)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return network


MLP = Network("MLP", "784-256-10", lambda style: dense(style, (784, 256, 10), nn.ReLU), 28, 1, 1.0)
SIGMOID = Network(
    "sigmoid MLP",
    "784-100-100-100-10",
    lambda style: dense(style, (784, 100, 100, 100, 10), nn.Sigmoid),
    28,
    1,
    1.0,
)
CNN = Network(
    "CNN", "conv 3-16, pool, linear 4096-10", lambda style: convolutional(style, 3, 32, [(16,)]), 32, 3, 4.0
)
DEEP_CNN = Network(
    "deep CNN",
    "9 convs (8 8 8, pool, 16 16 16, pool, 32 32 32, pool), linear 128-10",
    # From torch's own first weights, whose signal shrinks by sqrt(6) in each layer, nine layers without batch
    # normalization do not learn at all; from He's they do, and the race is one.
    lambda style: convolutional(style, 3, 16, [(8, 8, 8), (16, 16, 16), (32, 32, 32)], he=True),
    16,
    3,
    8.0,
)
NETWORKS = {network.name: network for network in (MLP, SIGMOID, CNN, DEEP_CNN)}


def build(network: Network, seed: int, style: Style = PLAIN) -> nn.Sequential:
    """The network in a style, its first weights fixed by `seed` and the same in every style.

    torch's own first weights, which are what its users start from, but for the deep CNN (He et al. 2015).
    torch's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.make(style)


def parts(network: nn.Sequential, kind: str) -> list[nn.Module]:
    """The layers of one kind in order of depth: ``"map"``, ``"norm"`` or ``"act"``."""
    return [layer for name, layer in network.named_children() if name.rstrip("0123456789") == kind]
