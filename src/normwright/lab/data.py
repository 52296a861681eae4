"""The data sets of the laboratory: digits inside a package, MNIST and CIFAR-10 in folders; split and resized."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from normwright.lab import image_files
from normwright.lab.image_files import Stored

DIGITS_BRIGHTEST = 16
DIGITS_TRAIN, DIGITS_VALIDATION = 900, 400  # of 1797 images; the other 497 are the test set
FILES_BRIGHTEST = 255
FILES_VALIDATION = 2000  # drawn from the training file, or a quarter of it where that is less
KNOWN = "digits, mnist=DIR or cifar10=DIR"
LUMA = (299, 587, 114)  # thousandths of red, green and blue in a grey value: ITU-R BT.601
CHUNK = (
    1000  # images converted at a time: what stands beside the result stays small, and no value depends on it
)


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


@dataclass(frozen=True)
class Source:
    """A data set, whole: every image as it is stored, and how many of them each part gets.

    Attributes:
        name: ``"digits"``, ``"mnist"`` or ``"cifar10"``.
        images: ``(N, channels, h, w)``, uint8 from 0 to `brightest`.
        labels: ``(N,)``, int64.
        brightest: the stored value that is handed out as 1.
        train: how many images are learned from.
        validation: how many are chosen on; the rest is the test set, on which nothing is chosen.
        official_test: that rest is the end of the data set, whatever the seed; else it is drawn like the others.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    brightest: int
    train: int
    validation: int
    official_test: bool

    @property
    def pixels(self) -> int:
        """Height and width of the stored images."""
        return self.images.shape[-1]

    @property
    def channels(self) -> int:
        """Channels of the stored images: 1 is grey, 3 are red, green and blue."""
        return self.images.shape[1]

    def indices(self, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Which images training, validation and test set hold: one permutation by `seed`, cut."""
        count = len(self.labels)
        drawn = self.train + self.validation if self.official_test else count
        order = np.concatenate([np.random.default_rng(seed).permutation(drawn), np.arange(drawn, count)])
        train, validation, test = np.split(order, [self.train, self.train + self.validation])
        return torch.from_numpy(train), torch.from_numpy(validation), torch.from_numpy(test)

    def splits(self, seed: int, *, size: int, channels: int) -> Splits:
        """The three parts, as a network takes its images.

        Args:
            seed: draws the parts; an official test set is the same for every seed.
            size: height and width; images of another size are resized bilinearly.
            channels: one grey channel is repeated to any number; three colours stay or become their luma.

        Raises:
            ValueError: three colours in another number of channels than 3 or 1.
        """
        if self.channels != 1 and channels not in (1, self.channels):
            expected = f"channels 1 or {self.channels} of {self.name}"
            raise ValueError(f"Source.splits: expected {expected}, got {channels}.")
        train, validation, test = (
            Split(self._handed_out(part, size, channels), self.labels[part]) for part in self.indices(seed)
        )
        return Splits(train, validation, test)

    def _handed_out(self, part: torch.Tensor, size: int, channels: int) -> torch.Tensor:
        # torch's convolution and pooling are faster on channels-last; the values are the same.
        order = torch.channels_last if channels > 1 else torch.contiguous_format
        images = torch.empty(len(part), channels, size, size, dtype=torch.float32, memory_format=order)
        for start in range(0, len(part), CHUNK):
            stored = self.images[part[start : start + CHUNK]]
            grey = channels < self.channels
            levels = luma(stored, self.brightest) if grey else stored.float() / self.brightest
            # Weights of an interpolation sum to 1 up to rounding: white may come out above it.
            images[start : start + CHUNK] = resize(levels, size).clamp_(0, 1)  # one channel fills them all
        return images


def load(spec: str = "digits") -> Source:
    """The data set that `spec` names.

    Args:
        spec: ``"digits"``, scikit-learn's handwritten digits; ``"mnist=DIR"``, the folder of the four IDX
            files; ``"cifar10=DIR"``, the folder of the binary version.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: `spec` names no data set, or a file is not what its name says.
    """
    name, _, folder = spec.partition("=")
    if spec == "digits":
        return _digits()
    if name not in ("mnist", "cifar10") or not folder:
        raise ValueError(f"load: expected {KNOWN}, got {spec!r}.")
    read = image_files.mnist if name == "mnist" else image_files.cifar10
    return _from_files(name, *read(Path(os.path.expanduser(folder))))  # in `mnist=~/data` no shell does it


def luma(images: torch.Tensor, brightest: int) -> torch.Tensor:
    """Red, green and blue ``(N, 3, h, w)``, uint8, to grey ``(N, 1, h, w)``, float32 in [0, 1].

    Summed in integers and rounded once: grey stays the grey it was, and white stays 1.
    """
    thousandths = (images * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    return thousandths.float() / (sum(LUMA) * brightest)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear ``(N, channels, h, w)`` to ``(N, channels, size, size)``; what has that size is left alone."""
    before = images.shape[-1]
    if before == size:
        return images
    # Shrinking without antialiasing would pass over pixels.
    return torch.nn.functional.interpolate(
        images, size=size, mode="bilinear", align_corners=False, antialias=size < before
    )


def _digits() -> Source:
    """The 1797 digits of 8 x 8 pixels with values from 0 to 16."""
    package = load_digits()
    images = torch.from_numpy(package.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(package.target.astype(np.int64))
    return Source("digits", images, labels, DIGITS_BRIGHTEST, DIGITS_TRAIN, DIGITS_VALIDATION, False)


def _from_files(name: str, train: Stored, test: Stored) -> Source:
    """A data set that comes in two parts; the images to choose on are taken from the first."""
    count = len(train.labels)
    validation = min(FILES_VALIDATION, count // 4)
    if validation == 0:
        raise ValueError(
            f"load: expected at least 4 images of {name} to learn from and choose on, got {count}."
        )
    images = torch.from_numpy(np.concatenate([train.images, test.images]))
    labels = torch.from_numpy(np.concatenate([train.labels, test.labels]))
    return Source(name, images, labels, FILES_BRIGHTEST, count - validation, validation, True)
