"""What is trained where synchronizing is measured: networks whose steps take milliseconds on one core."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TORCH, OURS, SYNC, COMPOSED = "torch", "normwright", "synchronized", "composed"  # who takes steps
ALONE, BARE = "alone", "bare"  # and who is beside a synchronized layer
WIDTHS = (16, 64, 256, 1024)  # channels of the layers that are measured alone
LAYER_SHAPE = (8, 8, 8)  # their inputs without the channels: (N, H, W)


class Network(NamedTuple):
    """A network and its batch.

    Attributes:
        build: makes it.
        shape: of a sample.
        batch: samples a rank.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int

    def make(self) -> nn.Module:
        """The network, with the same weights every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build()


def perceptron() -> nn.Module:
    """Three hidden layers of 256."""
    widths = (64, 256, 256, 256)
    hidden: list[nn.Module] = []
    for before, after in pairwise(widths):
        hidden += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(256, 10))


def convnet() -> nn.Module:
    """Two convolutions for images of 28 x 28."""
    first, second = nn.Conv2d(1, 16, 5, padding=2, bias=False), nn.Conv2d(16, 32, 5, padding=2, bias=False)
    return nn.Sequential(
        *(first, nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(second, nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 10)),
    )


class _Block(nn.Module):
    """Two convolutions and a shortcut, which skips pixels and adds channels of zeros where it must."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.more = after // before, after - before
        self.one = nn.Conv2d(before, after, 3, self.stride, padding=1, bias=False)
        self.two = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm_one, self.norm_two = nn.BatchNorm2d(after), nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_two(self.two(F.relu(self.norm_one(self.one(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(y + shortcut)


def resnet_20() -> nn.Module:
    """The ResNet of 20 layers for images of 32 x 32, as in `scaling.thin`."""
    widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
    blocks = (_Block(*pair) for pair in pairwise(widths))
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


NETWORKS = {
    "perceptron, 3 x 256": Network(perceptron, (64,), 32),
    "convnet, 28 x 28": Network(convnet, (1, 28, 28), 16),
    "ResNet-20, 32 x 32": Network(resnet_20, (3, 32, 32), 8),
}
