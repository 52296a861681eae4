"""The networks of the experiments, each without and with batch normalization, from the same first weights."""

from collections import OrderedDict
from typing import Protocol

import torch
from torch import nn

import normwright.torch as nw


class Maker(Protocol):
    """Builds a network with random weights; its layer ``norm`` exists only with batch normalization."""

    def __call__(self, *, batch_norm: bool) -> nn.Sequential: ...


class FlattenChannelsLast(nn.Module):
    """``(N, C, H, W)`` to ``(N, H*W*C)``: as `torch.nn.Flatten`, the values in another order.

    The order in which channels-last memory holds them: nothing is copied, which halves the time of a step.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A view of `x`."""
        return x.permute(0, 2, 3, 1).flatten(1)


def mlp(*, batch_norm: bool) -> nn.Sequential:
    """784-256-10 with ReLU; batch normalization after the first linear map, before ReLU, as in the paper."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flat=nn.Flatten(), hidden=nn.Linear(28 * 28, 256))
    if batch_norm:
        layers["norm"] = nw.BatchNorm1d(256)
    layers.update(relu=nn.ReLU(), out=nn.Linear(256, 10))
    return nn.Sequential(layers)


def cnn(*, batch_norm: bool) -> nn.Sequential:
    """3x32x32: convolution 3 to 16 (3x3, padding 1), ReLU, 2x2 max pool, linear 16*16*16 to 10."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(3, 16, 3, padding=1))
    if batch_norm:
        layers["norm"] = nw.BatchNorm2d(16)
    layers.update(relu=nn.ReLU(inplace=True), pool=nn.MaxPool2d(2), flat=FlattenChannelsLast())
    layers.update(out=nn.Linear(16 * 16 * 16, 10))
    network = nn.Sequential(layers)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return network


def build(make: Maker, seed: int, *, batch_norm: bool) -> nn.Sequential:
    """The network whose random weights follow from `seed` alone.

    Batch normalization draws no random number (gamma is 1, beta is 0), so the layers that both forms share
    get the same weights. The global random state of torch is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(batch_norm=batch_norm)


def norm_layer(network: nn.Sequential) -> nn.Module:
    """The one batch normalization layer of a network built with it."""
    return network.get_submodule("norm")
