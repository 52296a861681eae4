"""MNIST and CIFAR-10 from their files: every byte in its place, and a file that is not whole refused by name."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from normwright.lab.image_files import Stored, cifar10, mnist

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR10_FILES = (*(f"data_batch_{number}.bin" for number in (1, 2, 3, 4, 5)), "test_batch.bin")
READERS = {"mnist": (mnist, MNIST_FILES), "cifar10": (cifar10, CIFAR10_FILES)}


def some(count: int, *shape: int, seed: int) -> Stored:
    """Random images of `shape`, and labels in which every class comes up in turn, the highest first."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    return Stored(images, 9 - np.arange(count) % 10)


def idx(values: np.ndarray) -> bytes:
    """An IDX file: 0, 0, 8 for unsigned bytes, how many axes, each axis in four bytes, high byte first."""
    axes = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return bytes([0, 0, 8, values.ndim]) + axes + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, train: int = 12, test: int = 3) -> tuple[Stored, Stored]:
    """The four files, and what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = some(train, 1, 28, 28, seed=1), some(test, 1, 28, 28, seed=2)
    for part, name in zip(parts, ("train", "t10k"), strict=True):
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(part.images[:, 0]))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(part.labels))
    return parts


def write_cifar10(folder: Path, each: int = 3) -> tuple[Stored, Stored]:
    """The six files with `each` records, and what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = some(5 * each, 3, 32, 32, seed=1), some(each, 3, 32, 32, seed=2)
    images, labels = np.concatenate([train.images, test.images]), np.concatenate([train.labels, test.labels])
    records = [bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)]
    for number, name in enumerate(CIFAR10_FILES):
        (folder / name).write_bytes(b"".join(records[number * each : (number + 1) * each]))
    return train, test


def assert_same(read: tuple[Stored, Stored], written: tuple[Stored, Stored]) -> None:
    for got, put in zip(read, written, strict=True):
        assert got.images.dtype == np.uint8
        assert got.labels.dtype == np.int64
        assert got.images.shape == put.images.shape
        assert np.array_equal(got.images, put.images)
        assert np.array_equal(got.labels, put.labels)


def refusal(folder: Path, data_set: str, kind: type[Exception] = ValueError) -> str:
    """What the reader of `data_set` says against `folder`."""
    reader, _ = READERS[data_set]
    with pytest.raises(kind) as error:
        reader(folder)
    assert type(error.value) is kind
    return str(error.value)


# --- what is read -----------------------------------------------------


def test_mnist_is_read_as_it_was_written(tmp_path):
    written = write_mnist(tmp_path)
    assert_same(mnist(tmp_path), written)


@pytest.mark.parametrize("gzipped", MNIST_FILES)
@pytest.mark.parametrize("dotted", [*MNIST_FILES, None])
def test_each_file_of_mnist_may_be_spelled_with_a_dot_and_each_may_be_gzipped(dotted, gzipped, tmp_path):
    written = write_mnist(tmp_path)
    for name in MNIST_FILES:
        path = tmp_path / name
        if name == gzipped:
            packed = gzip.compress(path.read_bytes())
            path.unlink()
            path = path.with_name(path.name + ".gz")
            path.write_bytes(packed)
        if name == dotted:
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert_same(mnist(tmp_path), written)


def test_a_folder_with_the_name_of_a_file_is_not_taken_for_it(tmp_path):
    # Some archives of MNIST hold train-images.idx3-ubyte beside a folder train-images-idx3-ubyte.
    written = write_mnist(tmp_path)
    for name in MNIST_FILES:
        (tmp_path / name).rename(tmp_path / name.replace("-idx", ".idx"))
        (tmp_path / name).mkdir()
    assert_same(mnist(tmp_path), written)


def test_an_image_of_mnist_is_stored_by_rows(tmp_path):
    write_mnist(tmp_path, test=1)
    pixels = bytes([1, 2]) + bytes(26) + bytes([3]) + bytes(755)
    header = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28])
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(header + pixels)
    _, test = mnist(tmp_path)
    assert test.images.shape == (1, 1, 28, 28)
    assert test.images[0, 0, :2, :2].tolist() == [[1, 2], [3, 0]]


def test_cifar10_is_read_as_it_was_written_from_batch_1_to_batch_5(tmp_path):
    written = write_cifar10(tmp_path)
    assert_same(cifar10(tmp_path), written)


def test_cifar10_is_found_in_the_folder_inside(tmp_path):
    written = write_cifar10(tmp_path / "cifar-10-batches-bin")
    assert_same(cifar10(tmp_path), written)


def test_files_in_the_folder_itself_come_before_those_inside(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-bin", each=2)
    written = write_cifar10(tmp_path, each=4)
    assert_same(cifar10(tmp_path), written)


def test_half_a_cifar10_is_not_replaced_by_the_one_inside(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_1.bin").unlink()
    assert f"data_batch_1.bin in {tmp_path}, got" in refusal(tmp_path, "cifar10", FileNotFoundError)


def test_a_record_of_cifar10_is_its_label_then_red_green_and_blue_by_rows(tmp_path):
    write_cifar10(tmp_path)
    red = bytes([1, 2]) + bytes(30) + bytes([3]) + bytes(991)
    record = bytes([7]) + red + bytes([4]) * 1024 + bytes([5]) * 1023 + bytes([6])
    (tmp_path / "test_batch.bin").write_bytes(record)
    _, test = cifar10(tmp_path)
    assert test.labels.tolist() == [7]
    assert test.images[0, 0, :2, :2].tolist() == [[1, 2], [3, 0]]
    assert (test.images[0, 1] == 4).all()
    assert (test.images[0, 2].ravel()[:-1] == 5).all()
    assert test.images[0, 2, 31, 31] == 6


# --- what is missing --------------------------------------------------


@pytest.mark.parametrize("data_set", READERS)
def test_a_missing_folder_is_named_and_the_files_it_needs(data_set, tmp_path):
    said = refusal(tmp_path / "none", data_set, FileNotFoundError)
    assert said.startswith(
        f"{data_set}: expected a folder {tmp_path / 'none'}, got nothing there. The folder"
    )
    assert READERS[data_set][1][-1] in said


@pytest.mark.parametrize("data_set", READERS)
def test_a_file_in_place_of_the_folder_is_said(data_set, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    said = refusal(tmp_path / "file", data_set, FileNotFoundError)
    assert said.startswith(
        f"{data_set}: expected a folder {tmp_path / 'file'}, got something else. The folder"
    )


@pytest.mark.parametrize("name", MNIST_FILES)
def test_each_missing_file_of_mnist_is_named_in_every_spelling(name, tmp_path):
    write_mnist(tmp_path)
    (tmp_path / name).unlink()
    dotted = name.replace("-idx", ".idx")
    spellings = f"{name} or {dotted} or {name}.gz or {dotted}.gz"
    said = refusal(tmp_path, "mnist", FileNotFoundError)
    assert said.startswith(
        f"mnist: expected {spellings} in {tmp_path}, got no such file. The folder needs train-"
    )
    assert all(needed in said for needed in MNIST_FILES)


@pytest.mark.parametrize("name", CIFAR10_FILES)
def test_each_missing_file_of_cifar10_is_named(name, tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / name).unlink()
    said = refusal(tmp_path, "cifar10", FileNotFoundError)
    assert said.startswith(
        f"cifar10: expected {name} in {tmp_path}, got no such file. The folder, or cifar-10-"
    )
    assert "data_batch_1.bin to data_batch_5.bin and test_batch.bin" in said


def test_the_version_of_cifar10_to_unpickle_is_not_read(tmp_path):
    write_cifar10(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_suffix(""))
    said = refusal(tmp_path, "cifar10", FileNotFoundError)
    assert said.endswith("the binary version of the data set.")


# --- what is broken ---------------------------------------------------

IMAGES, LABELS = MNIST_FILES[:2]
BROKEN_MNIST = {
    "empty": (IMAGES, lambda raw: b"", "to begin with a header of 16 bytes, got 0 bytes in all"),
    "header cut": (IMAGES, lambda raw: raw[:15], "to begin with a header of 16 bytes, got 15 bytes in all"),
    "label header cut": (
        LABELS,
        lambda raw: raw[:7],
        "to begin with a header of 8 bytes, got 7 bytes in all",
    ),
    "magic": (
        IMAGES,
        lambda raw: b"\0\0\x0d" + raw[3:],
        "to begin with the magic number 2051, got 3331",
    ),
    "labels for images": (
        IMAGES,
        lambda raw: idx(np.arange(10)),
        "to begin with the magic number 2051, got 2049",
    ),
    "images for labels": (
        LABELS,
        lambda raw: idx(np.zeros((12, 28, 28))),
        "to begin with the magic number 2049, got 2051",
    ),
    "size": (
        IMAGES,
        lambda raw: idx(np.zeros((12, 32, 28))),
        "to hold images of 28x28 pixels, got 32x28",
    ),
    "no images": (
        IMAGES,
        lambda raw: idx(np.zeros((0, 28, 28))),
        "to hold at least one entry, got a header that says 0",
    ),
    "no labels": (
        LABELS,
        lambda raw: idx(np.zeros(0)),
        "to hold at least one entry, got a header that says 0",
    ),
    "short": (IMAGES, lambda raw: raw[:-1], "to hold 9424 bytes, 12 entries by its header, got 9423"),
    "long": (IMAGES, lambda raw: raw + b"\0", "to hold 9424 bytes, 12 entries by its header, got 9425"),
    "short labels": (LABELS, lambda raw: raw[:-1], "to hold 20 bytes, 12 entries by its header, got 19"),
    "long labels": (LABELS, lambda raw: raw + b"\0", "to hold 20 bytes, 12 entries by its header, got 21"),
    "huge": (
        IMAGES,
        lambda raw: raw[:4] + b"\xff" * 4 + raw[8:],
        "to hold 3367254359296 bytes, 4294967295 entries by its header, got 9424",
    ),
}


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("fault", BROKEN_MNIST)
def test_a_broken_file_of_mnist_is_refused_by_name(fault, part, tmp_path):
    name, spoil, words = BROKEN_MNIST[fault]
    write_mnist(tmp_path, train=12, test=12)
    path = tmp_path / name.replace("train", part)
    path.write_bytes(spoil(path.read_bytes()))
    assert refusal(tmp_path, "mnist") == f"mnist: expected {path} {words}."


def test_a_gzipped_file_of_mnist_is_measured_unpacked(tmp_path):
    write_mnist(tmp_path)
    raw = (tmp_path / IMAGES).read_bytes()
    (tmp_path / IMAGES).unlink()
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(gzip.compress(raw[:-1]))
    assert refusal(tmp_path, "mnist").startswith(f"mnist: expected {path} to hold 9424 bytes")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed[:-9],  # cut in the data
        lambda packed: packed[:-1],  # cut in the length at the end
        lambda packed: packed[:5],  # cut in the header
        lambda packed: packed[:-8] + bytes(4) + packed[-4:],  # another checksum
        lambda packed: packed[:10] + b"\xff" * 20 + packed[30:],  # no deflate stream
        lambda packed: packed + b"more",
        lambda packed: b"no gzip at all",
    ],
)
def test_a_broken_gzip_file_is_refused_by_name(spoil, tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / f"{LABELS}.gz"
    path.write_bytes(spoil(gzip.compress((tmp_path / LABELS).read_bytes())))
    (tmp_path / LABELS).unlink()
    said = refusal(tmp_path, "mnist")
    assert re.fullmatch(
        f"mnist: expected {re.escape(str(path))} to be a whole gzip file, got a broken one \\(.+\\)\\.", said
    )


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("labels", [11, 13])
def test_images_and_labels_that_differ_in_number_are_refused(labels, part, tmp_path):
    write_mnist(tmp_path, train=12, test=12)
    path = tmp_path / f"{part}-labels-idx1-ubyte"
    path.write_bytes(idx(np.zeros(labels)))
    words = f"12 labels in {path}, as many as images in {part}-images-idx3-ubyte"
    assert refusal(tmp_path, "mnist") == f"mnist: expected {words}, got {labels}."


@pytest.mark.parametrize("label", [10, 255])
@pytest.mark.parametrize("name", [LABELS, "t10k-labels-idx1-ubyte"])
def test_a_label_of_mnist_beyond_9_is_refused(name, label, tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / name
    raw = bytearray(path.read_bytes())
    raw[8 + 2] = label
    path.write_bytes(raw)
    assert (
        refusal(tmp_path, "mnist")
        == f"mnist: expected labels from 0 to 9 in {path}, got {label} for image 2."
    )


@pytest.mark.parametrize("label", [10, 255])
@pytest.mark.parametrize("name", CIFAR10_FILES)
def test_a_label_of_cifar10_beyond_9_is_refused(name, label, tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / name
    raw = bytearray(path.read_bytes())
    raw[3073 * 2] = label
    path.write_bytes(raw)
    assert refusal(tmp_path, "cifar10") == (
        f"cifar10: expected labels from 0 to 9 in {path}, got {label} for image 2."
    )


@pytest.mark.parametrize("name", CIFAR10_FILES)
@pytest.mark.parametrize("length", [0, 1, 3072, 3074, 3 * 3073 - 1, 3 * 3073 + 1])
def test_a_file_of_cifar10_that_is_not_whole_records_is_refused_by_name(length, name, tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / name
    path.write_bytes((path.read_bytes() + b"\0")[:length])
    words = f"to hold whole records of 3073 bytes, at least one, got {length} bytes"
    assert refusal(tmp_path, "cifar10") == f"cifar10: expected {path} {words}."
