"""scikit-learn's handwritten digits: real data that ships inside a package, split and resized."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits

SOURCE_PIXELS = 8
BRIGHTEST = 16
TRAIN, VALIDATION = 900, 400  # of 1797 images; the other 497 are the test set, on which nothing is chosen


@dataclass(frozen=True)
class Split:
    """Images ``(N, channels, size, size)``, float32 in [0, 1], and their labels ``(N,)``, int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """One data set in three disjoint parts: learned from, chosen on, reported on."""

    train: Split
    validation: Split
    test: Split


def indices(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of `count` images each part holds: one permutation of them all, cut in three."""
    order = np.random.default_rng(seed).permutation(count)
    train, validation, test = np.split(order, [TRAIN, TRAIN + VALIDATION])
    return train, validation, test


def resize(images: torch.Tensor, size: int, channels: int) -> torch.Tensor:
    """Bilinear ``(N, h, w)`` to ``(N, channels, size, size)``, the one grey channel repeated."""
    grown = torch.nn.functional.interpolate(images[:, None], size=size, mode="bilinear", align_corners=False)
    return grown.repeat(1, channels, 1, 1)


def digits(seed: int, *, size: int, channels: int) -> Splits:
    """The 1797 digits of 8 x 8 pixels, split by `seed` and resized; pixels divided by 16 and nothing else."""
    source = load_digits()
    grey = torch.from_numpy(source.images / BRIGHTEST).float()
    images = resize(grey, size, channels)
    if channels > 1:
        # torch's convolution and pooling are faster on this memory order; the values are the same.
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(source.target).long()
    train, validation, test = (
        Split(images[torch.from_numpy(i)], labels[torch.from_numpy(i)]) for i in indices(seed, len(labels))
    )
    return Splits(train, validation, test)
