"""`layout_of` against brute force: what it says is seen through strides and compared with the values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from cases import CASES
from normwright.core.layout import Layout, layout_of


def layout(x, axis):
    return layout_of(x.shape, [s // x.itemsize for s in x.strides], axis)


def seen_through(at, x):
    """x's memory as (outer, channels, inner), by the layout alone."""
    s = x.itemsize
    return as_strided(x, (at.outer, at.channels, at.inner), (at.stride * s, at.inner * s, s), writeable=False)


def values_by_channel(x, axis):
    return [sorted(channel.ravel().tolist()) for channel in np.moveaxis(x, axis, 0)]


@st.composite
def numbered_views(draw):
    """An array of distinct numbers, permuted and sliced in any way, and an axis of it."""
    rank = draw(st.integers(1, 5))
    sizes = [draw(st.integers(1, 4)) for _ in range(rank)]
    x = np.arange(np.prod(sizes)).reshape(sizes).transpose(draw(st.permutations(range(rank))))
    for d in range(rank):
        start, stop = sorted(draw(st.tuples(st.integers(0, x.shape[d]), st.integers(0, x.shape[d]))))
        step = draw(st.sampled_from([1, 1, 1, 2, -1]))
        if draw(st.booleans()):
            x = x[(slice(None),) * d + (slice(start, stop) if step > 0 else slice(None, None, step),)]
            x = x[(slice(None),) * d + (slice(None, None, abs(step)),)]
    return x, draw(st.integers(0, rank - 1))


@given(numbered_views())
def test_a_layout_shows_each_channel_its_own_values(view):
    x, axis = view
    at = layout(x, axis)
    if at is None:
        return  # a copy will be made; when that must not be is the next tests' matter
    assert at.channels == x.shape[axis]
    assert at.values * at.channels == x.size
    if x.size:
        assert values_by_channel(seen_through(at, x), 1) == values_by_channel(x, axis)


@given(
    st.integers(1, 5).flatmap(lambda rank: st.tuples(st.permutations(range(rank)), st.integers(0, rank - 1)))
)
def test_dense_memory_with_whole_axes_on_either_side_needs_no_copy(order_and_axis):
    # whatever the order of axes in memory: those outside the channels are dense, and so are those inside
    order, axis = order_and_axis
    x = np.arange(np.prod(range(2, 2 + len(order)))).reshape(range(2, 2 + len(order))).transpose(order)
    at = layout(x, axis)
    assert at is not None
    strides = [s // x.itemsize for s in x.strides]
    assert at.inner == strides[axis]
    assert values_by_channel(seen_through(at, x), 1) == values_by_channel(x, axis)


@pytest.mark.parametrize(
    ("x", "axis", "want"),
    [
        (np.empty((8, 64, 14, 14)), 1, Layout(8, 64, 196, 12544)),
        (np.empty((8, 14, 14, 64)), 3, Layout(1568, 64, 1, 64)),
        (np.empty((8, 14, 14, 64)).transpose(0, 3, 1, 2), 1, Layout(1568, 64, 1, 64)),
        (np.empty((32, 10)), 1, Layout(32, 10, 1, 10)),
        (np.empty((9, 70)), 0, Layout(1, 9, 70, 630)),
        (np.empty((6, 10, 4, 4))[:, 3:8], 1, Layout(6, 5, 16, 160)),
        (np.empty((40, 30))[:, 5:22], 1, Layout(40, 17, 1, 30)),
        (np.empty((10, 4, 5))[::2], 1, Layout(5, 4, 5, 40)),
        (np.empty((1, 5, 6, 6)), 1, Layout(1, 5, 36, 180)),
        (np.empty((7, 1, 3, 3)), 1, Layout(1, 1, 63, 63)),
    ],
    ids=[
        "nchw",
        "nhwc",
        "channels-last memory",
        "dense layer",
        "channels first",
        "a slice of channels",
        "a slice of features",
        "every other sample",
        "one sample",
        "one channel is one run",
    ],
)
def test_the_usual_arrays_are_seen_without_a_copy(x, axis, want):
    assert layout(x, axis) == want


@pytest.mark.parametrize(
    ("x", "axis"),
    [
        (np.empty((6, 10, 4, 4))[:, ::2], 1),
        (np.empty((40, 12))[:, 1::2], 1),
        (np.empty((3, 4, 10, 12))[:, :, 2:9, 3:10], 1),
        (np.empty((4, 5, 6))[:, ::-1], 1),
        (np.empty((4, 5, 6))[:, :, ::-1], 1),
        (np.broadcast_to(np.empty((1, 5, 6)), (4, 5, 6)), 1),
        (sliding_window_view(np.empty(40), 9), 1),
        (np.broadcast_to(np.empty((4, 1, 6)), (4, 5, 6)), 1),
    ],
    ids=[
        "every other channel",
        "every other feature",
        "cropped",
        "channels backwards",
        "positions backwards",
        "one sample repeated",
        "rows that share memory",
        "one channel repeated",
    ],
)
def test_what_three_axes_cannot_show_is_refused(x, axis):
    assert layout(x, axis) is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_seen_rightly_or_not_at_all(case):
    x = case.make(np.float64)
    at = None if any(s % x.itemsize for s in x.strides) else layout(x, case.axis)
    if at is not None and x.size:
        seen = np.sort(np.moveaxis(seen_through(at, x), 1, 0).reshape(at.channels, -1))
        want = np.sort(np.moveaxis(x, case.axis, 0).reshape(at.channels, -1))
        assert np.array_equal(seen, want, equal_nan=True)
    if x.size:
        copy = layout(np.array(x, order="C"), case.axis)  # what a kernel falls back to
        assert copy is not None
        assert copy.values == case.count


def test_an_array_and_its_copy_of_another_order_hold_as_many_values():
    x = np.empty((4, 5, 6, 7))
    assert layout(np.asfortranarray(x), 1).values == layout(x, 1).values == 168
