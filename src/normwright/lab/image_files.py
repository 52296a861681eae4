"""MNIST and CIFAR-10 as their authors publish them: folders of plain bytes, read and checked, never unpickled."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

CLASSES = 10

MNIST_SHAPE = (28, 28)
IDX_BYTES = 0x0800  # the magic number of a file of unsigned bytes, to which its number of axes is added
MNIST_NEEDS = (
    "The folder needs train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, each plain or gzipped (.gz), with a dash or a dot before idx."
)

CIFAR10_SHAPE = (3, 32, 32)  # red, green, blue; rows; columns
CIFAR10_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR10_TEST = "test_batch.bin"
CIFAR10_INSIDE = "cifar-10-batches-bin"  # the folder that the published archive unpacks into
CIFAR10_NEEDS = (
    "The folder, or cifar-10-batches-bin inside it, needs data_batch_1.bin to data_batch_5.bin and "
    "test_batch.bin, the binary version of the data set."
)


@dataclass(frozen=True)
class Stored:
    """Images ``(N, channels, h, w)``, uint8, and their labels ``(N,)``, int64, in the order of the files."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def mnist(folder: Path) -> tuple[Stored, Stored]:
    """The training and the test images of MNIST, or of a data set in its very format.

    Args:
        folder: where the four IDX files lie; ``train-images-idx3-ubyte`` may be spelled
            ``train-images.idx3-ubyte``, and each may be gzipped, with ``.gz`` at the end of its name.

    Raises:
        FileNotFoundError: the folder or one of the files is missing.
        ValueError: a file is not what its name says.

    Source:
        LeCun, Cortes & Burges, The MNIST database of handwritten digits, "File formats".
    """
    _check_folder("mnist", folder, MNIST_NEEDS)
    # All are looked for before the first is read: a missing one is told at once.
    train_images, train_labels, test_images, test_labels = (
        _find("mnist", folder, names, MNIST_NEEDS)
        for part in ("train", "t10k")
        for names in (_idx_names(f"{part}-images", axes=3), _idx_names(f"{part}-labels", axes=1))
    )
    return _mnist_part(train_images, train_labels), _mnist_part(test_images, test_labels)


def cifar10(folder: Path) -> tuple[Stored, Stored]:
    """The training and the test images of CIFAR-10, from its binary version.

    Args:
        folder: where the six files lie, or the folder around their ``cifar-10-batches-bin``.

    Raises:
        FileNotFoundError: the folder or one of the files is missing.
        ValueError: a file is not what its name says.

    Source:
        Krizhevsky, The CIFAR-10 dataset, "Binary version".
    """
    _check_folder("cifar10", folder, CIFAR10_NEEDS)
    inside = folder / CIFAR10_INSIDE
    if inside.is_dir() and not any((folder / name).is_file() for name in (*CIFAR10_TRAIN, CIFAR10_TEST)):
        folder = inside
    *train, test = (
        _find("cifar10", folder, [name], CIFAR10_NEEDS) for name in (*CIFAR10_TRAIN, CIFAR10_TEST)
    )
    return _cifar10_part(train), _cifar10_part([test])


# --- MNIST ------------------------------------------------------------


def _mnist_part(image_file: Path, label_file: Path) -> Stored:
    images = _idx(image_file, MNIST_SHAPE)
    labels = _idx(label_file, ())
    if len(images) != len(labels):
        expected = f"{len(images)} labels in {label_file}, as many as images in {image_file.name}"
        raise _wrong("mnist", expected, str(len(labels)))
    _check_labels("mnist", label_file, labels)
    return Stored(images[:, None], labels.astype(np.int64))


def _idx_names(stem: str, axes: int) -> list[str]:
    """The names under which a file is found in the wild, the published one first."""
    plain = [f"{stem}{mark}idx{axes}-ubyte" for mark in "-."]
    return plain + [f"{name}.gz" for name in plain]


def _idx(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The bytes of an IDX file, ``(N, *shape)``: magic number, length of each axis (big-endian), values."""
    raw = _read_gzipped("mnist", path) if path.suffix == ".gz" else path.read_bytes()
    axes = 1 + len(shape)
    header = 4 * (1 + axes)
    if len(raw) < header:
        raise _wrong("mnist", f"{path} to begin with a header of {header} bytes", f"{len(raw)} bytes in all")
    magic, count, *found = struct.unpack_from(f">{1 + axes}I", raw)
    if magic != IDX_BYTES + axes:
        raise _wrong("mnist", f"{path} to begin with the magic number {IDX_BYTES + axes}", str(magic))
    if tuple(found) != shape:
        raise _wrong("mnist", f"{path} to hold images of {_by(shape)} pixels", _by(found))
    if count == 0:
        raise _wrong("mnist", f"{path} to hold at least one entry", "a header that says 0")
    size = header + count * math.prod(shape)
    if len(raw) != size:
        raise _wrong("mnist", f"{path} to hold {size} bytes, {count} entries by its header", str(len(raw)))
    return np.frombuffer(raw, np.uint8, offset=header).reshape(count, *shape)


def _read_gzipped(call: str, path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise _wrong(call, f"{path} to be a whole gzip file", f"a broken one ({error})") from error


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


# --- CIFAR-10 ---------------------------------------------------------


def _cifar10_part(paths: Sequence[Path]) -> Stored:
    records = [_cifar10_records(path) for path in paths]
    images = np.concatenate([record[:, 1:] for record in records]).reshape(-1, *CIFAR10_SHAPE)
    return Stored(images, np.concatenate([record[:, 0] for record in records]).astype(np.int64))


def _cifar10_records(path: Path) -> npt.NDArray[np.uint8]:
    """One file, ``(N, 3073)``: a byte that is the label, then the red, the green and the blue plane by rows."""
    raw = path.read_bytes()
    size = 1 + math.prod(CIFAR10_SHAPE)
    if not raw or len(raw) % size:
        expected = f"{path} to hold whole records of {size} bytes, at least one"
        raise _wrong("cifar10", expected, f"{len(raw)} bytes")
    records = np.frombuffer(raw, np.uint8).reshape(-1, size)
    _check_labels("cifar10", path, records[:, 0])
    return records


# --- both -------------------------------------------------------------


def _wrong(call: str, expected: str, got: str) -> ValueError:
    return ValueError(f"{call}: expected {expected}, got {got}.")


def _check_folder(call: str, folder: Path, needs: str) -> None:
    if not folder.is_dir():
        got = "something else" if folder.exists() else "nothing there"
        raise FileNotFoundError(f"{call}: expected a folder {folder}, got {got}. {needs}")


def _find(call: str, folder: Path, names: Sequence[str], needs: str) -> Path:
    """The first of `names` that is a file in `folder`; some archives unpack into folders of these names."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{call}: expected {' or '.join(names)} in {folder}, got no such file. {needs}")


def _check_labels(call: str, path: Path, labels: npt.NDArray[np.uint8]) -> None:
    wrong = np.flatnonzero(labels >= CLASSES)
    if wrong.size:
        at = int(wrong[0])
        raise _wrong(call, f"labels from 0 to {CLASSES - 1} in {path}", f"{labels[at]} for image {at}")
