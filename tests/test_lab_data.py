"""The digits: disjoint parts, and a resize that invents nothing."""

import numpy as np
import torch

from normwright.lab import data


def test_the_three_parts_share_no_image_and_leave_none_out():
    parts = data.indices(seed=3, count=1797)
    assert [len(part) for part in parts] == [900, 400, 497]
    assert sorted(np.concatenate(parts)) == list(range(1797))


def test_another_seed_cuts_another_way_and_the_same_seed_the_same_way():
    again, other = data.indices(3, 1797), data.indices(4, 1797)
    assert all(np.array_equal(a, b) for a, b in zip(data.indices(3, 1797), again, strict=True))
    assert not np.array_equal(again[2], other[2])


def test_images_of_the_networks_have_their_shapes_and_lie_between_0_and_1():
    for size, channels in ((28, 1), (32, 3)):
        splits = data.digits(0, size=size, channels=channels)
        assert splits.train.images.shape == (900, channels, size, size)
        assert splits.test.labels.shape == (497,)
        assert splits.train.images.dtype == torch.float32
        assert splits.train.images.min() == 0.0
        assert splits.train.images.max() == 1.0
        assert splits.train.labels.unique().tolist() == list(range(10))


def test_a_constant_image_stays_constant_when_resized():
    resized = data.resize(torch.full((2, 8, 8), 0.375), size=28, channels=3)
    assert resized.shape == (2, 3, 28, 28)
    assert (resized - 0.375).abs().max() < 1e-7  # weights of an interpolation sum to 1, up to rounding


def test_resizing_a_ramp_keeps_it_a_ramp_away_from_the_edges():
    # Twice the size: pixel centres of the source lie at 0.5, 1.5, ... and those of the result half as far apart.
    ramp = torch.arange(8.0).repeat(8, 1)[None]
    row = data.resize(ramp, size=16, channels=1)[0, 0, 5]
    expected = (torch.arange(16.0) + 0.5) / 2 - 0.5
    assert torch.allclose(row[1:-1], expected[1:-1], rtol=0, atol=1e-6)
    assert row[0] == 0.0  # beyond the outermost centre the image is continued by its border
    assert row[-1] == 7.0
