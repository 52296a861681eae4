"""Merging moments in any order, splitting a batch anywhere, and the laws of shift and scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import close
from normwright.core.checks import ShapeError
from normwright.core.moments import Moments
from normwright.kernels import reference

# Magnitudes up to 1e6 and many repeats: what a merge gets wrong, it gets wrong there.
values = st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, 1.0, 1e6, -1e6]))
batches = arrays(np.float64, st.tuples(st.integers(0, 12), st.just(2)), elements=values)


def of(x):
    return reference.moments(x, axis=1)


def assert_same(got, want, scale):
    """Equal within 32 roundings (a merge of a dozen parts has two or three each) of values up to `scale`.

    m2 is a sum of count squares of values below 2 * scale, and no more accurate than they are: where all the
    values are equal, its own size says nothing.
    """
    u, count = 2.0**-53, max(want.count, 1)
    assert got.count == want.count
    close.within("mean", got.mean, want.mean, 32 * u * scale)
    close.within("m2", got.m2, want.m2, 32 * u * (want.m2 + count * u * scale**2 + scale * np.sqrt(want.m2)))


def magnitude(*parts):
    return max([1e-300, *(np.abs(p).max() for p in parts if p.size)])


@given(batches, batches)
def test_merging_two_parts_gives_the_moments_of_the_whole(a, b):
    assert_same(of(a).merge(of(b)), of(np.concatenate([a, b])), magnitude(a, b))


@given(st.lists(batches, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_merging_changes_rounding_alone(parts, random):
    want = of(np.concatenate(parts))
    shuffled = random.sample(parts, len(parts))
    together = Moments.empty(2)
    for part in shuffled:
        together = together.merge(of(part))
    assert_same(together, want, magnitude(*parts))


@given(batches, batches, batches)
def test_grouping_of_merges_changes_rounding_alone(a, b, c):
    left, right = of(a).merge(of(b)).merge(of(c)), of(a).merge(of(b).merge(of(c)))
    assert_same(left, right, magnitude(a, b, c))


@given(batches)
def test_an_empty_side_leaves_the_other_side_as_it_is(x):
    whole, none = of(x), Moments.empty(2)
    assert (none.count, none.mean.tolist(), none.m2.tolist()) == (0, [0.0, 0.0], [0.0, 0.0])
    for merged in (whole.merge(none), none.merge(whole)):
        assert merged.count == whole.count
        close.same_bits("mean", merged.mean, whole.mean)
        close.same_bits("m2", merged.m2, whole.m2)


@pytest.mark.parametrize("value", [np.inf, np.nan], ids=["infinity", "NaN"])
def test_an_empty_side_adds_no_nan(value):
    whole, none = Moments(2, np.array([value, 1.0]), np.array([value, 2.0])), Moments.empty(2)
    for merged in (whole.merge(none), none.merge(whole)):
        close.same_bits("mean", merged.mean, whole.mean)
        close.same_bits("m2", merged.m2, whole.m2)


@given(batches.filter(len), values)
def test_a_shift_moves_the_mean_and_nothing_else(x, shift):
    moved, scale = of(x + shift), magnitude(x) + abs(shift)
    assert_same(moved, Moments(len(x), of(x).mean + shift, of(x).m2), scale)


@given(batches.filter(len), st.sampled_from([2.0, -0.5, 1024.0]))
def test_a_scale_scales_the_mean_and_squares_in_m2(x, scale):
    # powers of two: exact
    whole, scaled = of(x), of(x * scale)
    assert np.array_equal(scaled.mean, whole.mean * scale)
    assert np.array_equal(scaled.m2, whole.m2 * scale**2)


@given(st.integers(1, 40), st.integers(1, 40), values, values)
def test_merging_constants_gives_the_variance_between_them(na, nb, a, b):
    n = na + nb
    merged = Moments(na, np.array([a]), np.zeros(1)).merge(Moments(nb, np.array([b]), np.zeros(1)))
    # one division, three products and one sum, each rounded once
    close.within("mean", merged.mean, [(na * a + nb * b) / n], 8 * 2.0**-53 * max(abs(a), abs(b)))
    close.within("m2", merged.m2, [(b - a) ** 2 * na * nb / n], 8 * 2.0**-53 * merged.m2)


def test_counts_may_be_weights():
    # weights 0.5 and 1.5 at 1 and 5: mean (0.5 + 7.5)/2 = 4, m2 = 0.5 * 9 + 1.5 * 1 = 6
    a, b = Moments(0.5, np.array([1.0]), np.zeros(1)), Moments(1.5, np.array([5.0]), np.zeros(1))
    merged = a.merge(b)
    assert (merged.count, merged.mean.tolist(), merged.m2.tolist()) == (2.0, [4.0], [6.0])
    assert merged.var().tolist() == [3.0]


def test_ddof_decides_between_biased_and_unbiased():
    batch = Moments(4, np.array([0.0, 1.0]), np.array([12.0, 0.0]))
    assert batch.var().tolist() == [3.0, 0.0]
    assert batch.var(ddof=1).tolist() == [4.0, 0.0]


@pytest.mark.parametrize(
    ("count", "ddof"),
    [(0, 0), (1, 1), (0.5, 1)],
    ids=["no values", "one value, unbiased", "less than one value's weight, unbiased"],
)
def test_a_variance_with_nothing_to_divide_by_raises(count, ddof):
    batch = Moments(count, np.zeros(1), np.zeros(1))
    with pytest.raises(
        ShapeError, match=f"Moments.var: expected more than {ddof} values per channel .*got {count}"
    ):
        batch.var(ddof)


def test_moments_of_different_channels_do_not_merge():
    with pytest.raises(ShapeError, match=r"Moments\.merge: expected moments of 2 channels, got moments of 3"):
        Moments.empty(2).merge(Moments.empty(3))


def test_moments_cannot_be_changed():
    with pytest.raises(AttributeError):
        Moments.empty(2).count = 3
    assert Moments.empty(2).count == 0


def test_a_count_beyond_float32_still_counts():
    big = Moments(2**24, np.array([1.0]), np.zeros(1))
    one = Moments(1, np.array([1.0]), np.zeros(1))
    assert big.merge(one).count == 2**24 + 1
