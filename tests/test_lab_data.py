"""The data sets: disjoint parts, an official test set that stays whole, and a resize that invents nothing."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from normwright.lab import data
from normwright.lab.data import Source, Splits, load, luma, resize
from test_lab_image_files import write_cifar10, write_mnist


def numbered(count: int, *, train: int, validation: int, official_test: bool) -> Source:
    """Images of one grey pixel, of which each label says its place in the data set."""
    images = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    return Source("numbered", images, torch.arange(count), 255, train, validation, official_test)


def parts(splits: Splits) -> list[list[int]]:
    """The labels of training, validation and test set."""
    return [part.labels.tolist() for part in (splits.train, splits.validation, splits.test)]


def stored(images: list[object], brightest: int = 255) -> Source:
    """A data set of these images ``(N, channels, h, w)``, all of which are the test set."""
    pixels = torch.tensor(images, dtype=torch.uint8)
    return Source("stored", pixels, torch.zeros(len(pixels), dtype=torch.int64), brightest, 0, 0, True)


# --- the digits -------------------------------------------------------


def test_the_three_parts_of_the_digits_share_no_image_and_leave_none_out():
    found = load("digits").indices(3)
    assert [len(part) for part in found] == [900, 400, 497]
    assert sorted(torch.cat(found).tolist()) == list(range(1797))


def test_the_digits_are_cut_from_one_permutation_by_seed():
    order = np.random.default_rng(3).permutation(1797)
    train, validation, test = load().indices(3)
    assert np.array_equal(train, order[:900])
    assert np.array_equal(validation, order[900:1300])
    assert np.array_equal(test, order[1300:])


def test_another_seed_cuts_another_way_and_the_same_seed_the_same_way():
    source = load()
    again, other = source.indices(3), source.indices(4)
    assert all(torch.equal(a, b) for a, b in zip(source.indices(3), again, strict=True))
    assert not torch.equal(again[2], other[2])


def test_images_of_the_networks_have_their_shapes_and_lie_between_0_and_1():
    for size, channels in ((28, 1), (32, 3)):
        splits = load().splits(0, size=size, channels=channels)
        assert splits.train.images.shape == (900, channels, size, size)
        assert splits.test.labels.shape == (497,)
        assert splits.train.images.dtype == torch.float32
        assert splits.train.labels.dtype == torch.int64
        assert splits.train.images.min() == 0.0
        assert splits.train.images.max() == 1.0
        assert splits.train.labels.unique().tolist() == list(range(10))


def test_the_digits_are_handed_out_in_sixteenths():
    source = load()
    test = source.splits(0, size=8, channels=1).test
    index = source.indices(0)[2]
    assert torch.equal(test.images * 16, source.images[index].float())
    assert torch.equal(test.labels, source.labels[index])


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
def test_the_digits_enlarged_are_to_the_last_bit_all_of_them_interpolated_at_once(size, channels):
    # What was measured on these images stands in documents.
    images = torch.from_numpy(load_digits().images / 16).float()[:, None]
    grown = torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    source = load()
    splits = source.splits(5, size=size, channels=channels)
    for part, index in zip((splits.train, splits.validation, splits.test), source.indices(5), strict=True):
        assert torch.equal(part.images, grown[index].expand(-1, channels, -1, -1))


def test_the_digits_are_the_default_and_say_what_they_are():
    source = load()
    assert (source.name, source.pixels, source.channels) == ("digits", 8, 1)


# --- the parts --------------------------------------------------------


def test_without_an_official_test_set_each_part_is_drawn_from_all_images():
    source = numbered(100, train=50, validation=20, official_test=False)
    first, second = (parts(source.splits(seed, size=1, channels=1)) for seed in (0, 1))
    assert [len(part) for part in first] == [50, 20, 30]
    assert sorted(first[0] + first[1] + first[2]) == list(range(100))
    assert all(sorted(a) != sorted(b) for a, b in zip(first, second, strict=True))


def test_an_official_test_set_is_the_end_of_the_data_in_its_order_whatever_the_seed():
    source = numbered(100, train=50, validation=20, official_test=True)
    first, second = (parts(source.splits(seed, size=1, channels=1)) for seed in (0, 1))
    assert first[2] == second[2] == list(range(70, 100))
    assert [len(part) for part in first] == [50, 20, 30]
    assert sorted(first[0] + first[1]) == list(range(70))
    assert sorted(first[1]) != sorted(second[1])
    assert first == parts(source.splits(0, size=1, channels=1))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_test_file_is_the_test_set_and_the_training_file_is_cut_in_two(name, tmp_path):
    write = {"mnist": lambda: write_mnist(tmp_path, 15, 3), "cifar10": lambda: write_cifar10(tmp_path, 3)}[
        name
    ]
    train, test = write()
    source = load(f"{name}={tmp_path}")
    shape = train.images.shape[1:]
    assert (source.name, source.channels, source.pixels) == (name, shape[0], shape[1])
    for seed in (0, 1):
        splits = source.splits(seed, size=shape[1], channels=shape[0])
        assert np.array_equal(splits.test.images, test.images.astype(np.float32) / np.float32(255))
        assert splits.test.labels.tolist() == test.labels.tolist()
        assert (len(splits.train), len(splits.validation)) == (12, 3)  # a quarter of 15, rounded down
        for part, index in zip((splits.train, splits.validation), source.indices(seed), strict=False):
            assert np.array_equal(part.images, train.images[index].astype(np.float32) / np.float32(255))
            assert part.labels.tolist() == train.labels[index].tolist()


@pytest.mark.parametrize(("count", "validation"), [(4, 1), (7999, 1999), (8000, 2000), (9000, 2000)])
def test_2000_images_are_chosen_on_or_a_quarter_where_that_is_less(count, validation, tmp_path):
    write_mnist(tmp_path, train=count, test=1)
    source = load(f"mnist={tmp_path}")
    assert (source.train, source.validation, len(source.labels)) == (
        count - validation,
        validation,
        count + 1,
    )


def test_a_training_file_too_short_to_choose_on_is_refused(tmp_path):
    write_mnist(tmp_path, train=3)
    with pytest.raises(ValueError, match=r"^load: expected at least 4 images of mnist to learn .*, got 3\.$"):
        load(f"mnist={tmp_path}")


# --- what load takes --------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    ["", "cifar100", "mnist", "mnist=", "cifar10", "cifar10=", "digits=", "digits=here", "Digits", "=x"],
)
def test_an_unknown_data_set_is_refused_with_those_known(spec):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        load(spec)
    assert str(error.value) == f"load: expected digits, mnist=DIR or cifar10=DIR, got {spec!r}."


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_an_empty_folder_is_refused_by_name(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load(f"{name}={tmp_path}")
    assert f" in {tmp_path}, got no such file. The folder" in str(error.value)


def test_a_folder_may_have_an_equals_sign_or_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_mnist(tmp_path / "a=b")
    assert len(load(f"mnist={tmp_path}/a=b").labels) == 15
    assert len(load("mnist=~/a=b").labels) == 15


# --- channels ---------------------------------------------------------


def test_a_grey_channel_is_repeated():
    images = stored([[[[0, 51], [102, 255]]]]).splits(0, size=2, channels=3).test.images
    levels = torch.tensor([[0, 0.2], [0.4, 1]])
    assert torch.equal(images, levels.expand(1, 3, 2, 2))


def test_three_colours_become_their_luma():
    source = stored([[[[255, 0, 0, 10]] * 4, [[0, 255, 0, 20]] * 4, [[0, 0, 255, 30]] * 4]])
    images = source.splits(0, size=4, channels=1).test.images
    # 0.299 * 10 + 0.587 * 20 + 0.114 * 30 = 18.15
    assert torch.equal(images, torch.tensor([0.299, 0.587, 0.114, 18.15 / 255]).expand(1, 1, 4, 4))


def test_a_grey_in_three_colours_has_the_luma_it_had():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(luma(levels.expand(1, 3, 16, 16), 255), levels.float() / 255)


def test_three_colours_stay_three():
    images = stored([[[[255]], [[51]], [[0]]]]).splits(0, size=1, channels=3).test.images
    assert torch.equal(images.flatten(), torch.tensor([1, 0.2, 0]))


def test_three_colours_cannot_become_two():
    with pytest.raises(ValueError, match=r"^Source.splits: expected channels 1 or 3 of stored, got 2\.$"):
        stored([[[[255]], [[51]], [[0]]]]).splits(0, size=1, channels=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_several_channels_are_channels_last_in_memory(channels):
    order = torch.channels_last if channels > 1 else torch.contiguous_format
    for part in vars(load().splits(0, size=9, channels=channels)).values():
        assert part.images.is_contiguous(memory_format=order)


# --- size -------------------------------------------------------------


def test_what_has_the_size_is_not_interpolated():
    images = torch.rand(2, 3, 7, 7)
    assert resize(images, 7) is images


def test_a_constant_image_stays_constant_when_resized():
    for size in (28, 5):
        resized = resize(torch.full((2, 3, 8, 8), 0.375), size)
        assert resized.shape == (2, 3, size, size)
        assert (resized - 0.375).abs().max() < 1e-7  # weights of an interpolation sum to 1, up to rounding


def test_resizing_a_ramp_keeps_it_a_ramp_away_from_the_edges():
    # Twice the size: pixel centres of the source lie at 0.5, 1.5, ... and those of the result half as far apart.
    ramp = torch.arange(8.0).repeat(8, 1)[None, None]
    row = resize(ramp, 16)[0, 0, 5]
    expected = (torch.arange(16.0) + 0.5) / 2 - 0.5
    assert torch.allclose(row[1:-1], expected[1:-1], rtol=0, atol=1e-6)
    assert row[0] == 0.0  # beyond the outermost centre the image is continued by its border
    assert row[-1] == 7.0


def test_shrinking_passes_over_no_pixel():
    # To a quarter, plain interpolation would read two columns of every four. A triangle four times as wide reads
    # eight: the second result, whose centre lies at 6, those whose centres are 0.5, 1.5, 2.5 and 3.5 away.
    columns = torch.eye(16)[:, None, None, :].expand(-1, 1, 16, -1)
    read = resize(columns, 4)[:, 0, 0, 1] * 32
    expected = [0.0, 0.0, 1.0, 3.0, 5.0, 7.0, 7.0, 5.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert read.tolist() == pytest.approx(expected, abs=1e-5)


def test_white_stays_white_and_nothing_is_above_it():
    white = stored([[[[255] * 32] * 32] * 3])
    for size in (7, 14, 28, 31, 32, 33, 64):
        for channels in (1, 3):
            images = white.splits(0, size=size, channels=channels).test.images
            assert images.max() <= 1
            assert images.min() > 1 - 1e-6


def test_no_value_depends_on_how_many_images_are_converted_at_a_time(monkeypatch):
    source = load()
    whole = source.splits(0, size=28, channels=3).test.images
    monkeypatch.setattr(data, "CHUNK", 37)
    assert torch.equal(source.splits(0, size=28, channels=3).test.images, whole)
