"""Moments of tensors, natively and composed, beside NumPy's on the same values in float64."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import close
from beside_torch import LAYOUTS, layouts, normal
from normwright.torch.statistics import moments as file

moments, composed = file.moments, file.composed


def check(x, axis, got, bound=1e-12):
    """Float64 sums of some hundred values: a thousand roundings."""
    rows = x.double().movedim(axis, 0).flatten(1).numpy()
    assert got.count == rows.shape[1]
    close.within("mean", got.mean, rows.mean(1), bound * np.abs(rows).max())
    close.within("m2", got.m2, rows.var(1) * rows.shape[1], bound * (rows.var(1) * rows.shape[1]).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_type_is_read_as_it_lies(layout, dtype):
    x = layouts(dtype)[layout]
    check(x, 1, moments(x, 1))
    check(x, 1, composed(x, 1, torch.float64))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_channels_may_be_on_any_axis(axis):
    x = normal(3, 4, 5, 6)
    check(x, axis, moments(x, axis))
    check(x, axis, composed(x, axis, torch.float64))


@pytest.mark.parametrize("path", ["native", "composed"])
def test_nothing_cancels_far_from_zero(path):
    x = normal(1000, 4, mean=0.0) * 0.03 + 1e3
    got = moments(x, 1) if path == "native" else composed(x, 1, torch.float64)
    check(x, 1, got)


def test_without_float64_the_variance_is_still_exact_to_float32():
    x = normal(1000, 4, mean=0.0) * 0.03 + 1e3
    got = composed(x, 1, torch.float32)
    rows = x.double().numpy()
    # a sum of 1000 squares in float32, in torch's pairwise way: some ten roundings
    close.within("m2", got.m2, rows.var(0) * 1000, 16 * 2.0**-24 * rows.var(0) * 1000)
    # the mean's distance from the pivot, which is some deviations, is exact to as much
    close.within("mean", got.mean, rows.mean(0), 64 * 2.0**-24 * 0.03)


def test_large_inputs_are_widened_in_parts(monkeypatch):
    monkeypatch.setattr(file, "_AT_ONCE", {"cpu": 50})
    monkeypatch.setattr(file, "NATIVE", False)
    sizes = []
    whole = file.composed
    monkeypatch.setattr(file, "composed", lambda x, *more: sizes.append(x.numel()) or whole(x, *more))
    x = normal(9, 4, 5)
    check(x, 1, moments(x, 1))
    assert sizes == [40, 40, 40, 40, 20]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("path", ["native", "composed"])
@pytest.mark.parametrize("at", [0, 5])
def test_what_is_not_finite_shows_in_its_channel_alone(bad, path, at):
    x = normal(8, 3)
    x[at, 1] = bad
    with np.errstate(invalid="ignore"):
        got = moments(x, 1) if path == "native" else composed(x, 1, torch.float64)
    finite = np.isfinite(got.mean) & np.isfinite(got.m2)
    assert finite.tolist() == [True, False, True]


def test_no_values_are_no_moments():
    got = moments(torch.empty(0, 3), 1)
    assert (got.count, got.mean.tolist(), got.m2.tolist()) == (0, [0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize("shape", [(1, 4, 30, 5), (2, 4, 1, 90), (1, 1, 1, 200)])
@pytest.mark.parametrize("path", ["native", "composed"])
def test_a_large_sample_is_cut_within_itself(shape, path, monkeypatch):
    monkeypatch.setattr(file, "_AT_ONCE", {"cpu": 50})
    monkeypatch.setattr(file, "NATIVE", file.NATIVE and path == "native")
    x = normal(*shape)
    assert max(part.numel() for part in file._parts(x, 1)) <= 50
    assert sum(part.numel() for part in file._parts(x, 1)) == x.numel()
    check(x, 1, moments(x, 1))


def test_one_row_is_read_without_a_copy_of_the_rest():
    largest = []

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.clone.default:  # what reshape does where a view is not possible
                largest.append(out.numel())
            return out

    x = normal(4, 3, 50, 50)
    with Largest():
        composed(x, 1, torch.float64)
    assert max(largest, default=0) <= 3
