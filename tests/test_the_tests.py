"""The comparisons themselves: each is handed kernels that are wrong in a known way, and must say so."""

import numpy as np
import pytest

import cases
import close
from close import across, others
from normwright.core.moments import Moments
from normwright.kernels import reference

EPS = 1e-5
F32 = np.float32
BY_NAME = {case.name: case for case in cases.CASES}


def right_forward(x, gamma, beta, axis):
    return reference.forward_train(x, gamma, beta, EPS, axis)[0].astype(x.dtype)


def cancelling_variance(x, gamma, beta, axis):
    mean = x.mean(axis=others(x, axis))
    var = np.abs((x * x).mean(axis=others(x, axis)) - mean * mean)
    return (x - across(mean, x, axis)) * across(gamma / np.sqrt(var + F32(EPS)), x, axis) + across(
        beta, x, axis
    )


def by_exact_moments(x, gamma, beta, axis, apply):
    batch = reference.moments(x, axis)
    a = (gamma / np.sqrt(batch.var() + EPS)).astype(x.dtype)
    return apply(x, *(across(v, x, axis) for v in (batch.mean, a, beta)))


def forgotten_lo(x, gamma, beta, axis):
    return by_exact_moments(x, gamma, beta, axis, lambda x, mean, a, b: (x - mean.astype(x.dtype)) * a + b)


def mean_in_the_shift(x, gamma, beta, axis):
    return by_exact_moments(
        x, gamma, beta, axis, lambda x, mean, a, b: x * a + (b - mean * a).astype(x.dtype)
    )


def unbiased(x, gamma, beta, axis):
    batch = reference.moments(x, axis)
    return reference.forward_fixed(x, gamma, beta, batch.mean, batch.var(ddof=1), EPS, axis).astype(x.dtype)


def eps_beside_the_root(x, gamma, beta, axis):
    batch = reference.moments(x, axis)
    var = (np.sqrt(batch.var()) + EPS) ** 2
    return reference.forward_fixed(x, gamma, beta, batch.mean, var, 0, axis).astype(x.dtype)


def next_channels_beta(x, gamma, beta, axis):
    return right_forward(x, gamma, np.roll(beta, 1), axis)


def half_precision(x, gamma, beta, axis):
    return right_forward(x, gamma, beta, axis).astype(np.float16).astype(x.dtype)


def last_value_not_written(x, gamma, beta, axis):
    y = right_forward(x, gamma, beta, axis)
    y[(-1,) * y.ndim] = 0
    return y


def one_nan(x, gamma, beta, axis):
    y = right_forward(x, gamma, beta, axis)
    y[(0,) * y.ndim] = np.nan
    return y


def all_nan(x, gamma, beta, axis):
    return np.full_like(x, np.nan)


def infinite(x, gamma, beta, axis):
    return np.full_like(x, np.inf)


def padding_lanes_counted(x, gamma, beta, axis):
    rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    batch = reference.moments(np.pad(rows, ((0, 0), (0, 1))), 0)
    return reference.forward_fixed(x, gamma, beta, batch.mean, batch.var(), EPS, axis).astype(x.dtype)


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (cancelling_variance, "offset-1e3"),
        (forgotten_lo, "offset-1e6"),
        (mean_in_the_shift, "offset-1e3"),
        (unbiased, "inner-blocks"),  # the most values in a channel: the two variances differ least
        (eps_beside_the_root, "variance-1e-10"),
        (next_channels_beta, "7x7"),
        (half_precision, "7x7"),
        (last_value_not_written, "7x7"),
        (one_nan, "7x7"),
        (all_nan, "7x7"),
        (infinite, "7x7"),
        (padding_lanes_counted, "inner-block+1"),
    ],
)
def test_a_wrong_forward_is_caught(kernel, name):
    case = BY_NAME[name]
    x, (gamma, beta) = case.make(F32), case.parameters(F32)
    assert (
        close.forward_train(right_forward(x, gamma, beta, case.axis), x, gamma, beta, EPS, case.axis) <= 1.01
    )
    y = kernel(x, gamma, beta, case.axis)
    for match_nan in (False, True):
        with pytest.raises(AssertionError, match=r"^y\[.* times the bound"):
            close.forward_train(y, x, gamma, beta, EPS, case.axis, match_nan=match_nan)


def right_backward(dy, x, gamma, axis):
    _, saved = reference.forward_train(x, gamma, None, EPS, axis)
    dx, dgamma, dbeta, _ = reference.backward_train(dy, x, gamma, None, saved, axis)
    return dx.astype(x.dtype), dgamma, dbeta


def as_if_fixed(dy, x, gamma, axis):
    batch = reference.moments(x, axis)
    fixed = (batch.mean, batch.var(), EPS, axis)
    dx, dgamma, dbeta, _ = reference.backward_fixed(dy, x, gamma, None, *fixed)
    return dx.astype(x.dtype), dgamma, dbeta


def backward_with(change):
    """The reference on a changed Saved: what a kernel does that loses or miscounts a part of it."""

    def kernel(dy, x, gamma, axis):
        _, saved = reference.forward_train(x, gamma, None, EPS, axis)
        changed = saved._replace(**change(saved))
        dx, dgamma, dbeta, _ = reference.backward_train(dy, x, gamma, None, changed, axis)
        return dx.astype(x.dtype), dgamma, dbeta

    return kernel


def dx_after(change):
    def kernel(dy, x, gamma, axis):
        dx, dgamma, dbeta = right_backward(dy, x, gamma, axis)
        return change(dx), dgamma, dbeta

    return kernel


def put_nan(values):
    values[(-1,) * values.ndim] = np.nan
    return values


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (as_if_fixed, "inner-blocks"),
        (backward_with(lambda s: {"count": s.count - 1}), "inner-blocks"),
        (backward_with(lambda s: {"mean": s.mean.astype(F32), "mean_tail": 0 * s.mean}), "offset-1e6"),
        (backward_with(lambda s: {"rstd": s.rstd * np.sqrt(1 - 1 / s.count)}), "inner-blocks"),
        (dx_after(lambda dx: -dx), "7x7"),
        (dx_after(lambda dx: dx.astype(np.float16).astype(F32)), "7x7"),
        (dx_after(put_nan), "7x7"),
        (lambda *a: (right_backward(*a)[0], *right_backward(*a)[:0:-1]), "7x7"),
        (lambda *a: (*right_backward(*a)[:2], right_backward(*a)[2] / 196), "7x7"),
        (lambda *a: (*right_backward(*a)[:2], put_nan(right_backward(*a)[2])), "7x7"),
        (lambda *a: (right_backward(*a)[0], put_nan(right_backward(*a)[1]), right_backward(*a)[2]), "7x7"),
    ],
    ids=[
        "statistics taken as constants",
        "wrong count",
        "forgotten lo",
        "unbiased rstd",
        "wrong sign",
        "half precision",
        "NaN in dx",
        "dgamma and dbeta exchanged",
        "mean for sum",
        "NaN in dbeta",
        "NaN in dgamma",
    ],
)
def test_a_wrong_backward_is_caught(kernel, name):
    case = BY_NAME[name]
    x, dy, (gamma, _) = case.make(F32), case.make_dy(F32), case.parameters(F32)
    good = close.backward_train(right_backward(dy, x, gamma, case.axis), dy, x, gamma, EPS, case.axis)
    assert max(good.values()) <= 1.01
    for match_nan in (False, True):
        with pytest.raises(AssertionError, match=r"^(dx|dgamma|dbeta)\[.* times the bound"):
            close.backward_train(
                kernel(dy, x, gamma, case.axis), dy, x, gamma, EPS, case.axis, match_nan=match_nan
            )


@pytest.mark.parametrize("which", [0, 1, 2], ids=["dx", "dgamma", "dbeta"])
def test_a_wrong_gradient_with_fixed_statistics_is_caught(which):
    case = BY_NAME["7x7"]
    x, dy, (gamma, beta) = case.make(F32), case.make_dy(F32), case.parameters(F32)
    fixed = (gamma, beta.astype(float), gamma.astype(float) ** 2, EPS, case.axis)
    dx, dgamma, dbeta, _ = reference.backward_fixed(dy, x, fixed[0], None, *fixed[1:])
    got = [dx.astype(F32), dgamma, dbeta]
    assert max(close.backward_fixed(tuple(got), dy, x, *fixed).values()) <= 1.01
    got[which] = got[which] * F32(1 + 3e-6)  # fifty units of 2^-24
    with pytest.raises(AssertionError, match="times the bound"):
        close.backward_fixed(tuple(got), dy, x, *fixed)


def test_a_wrong_inference_is_caught():
    case = BY_NAME["offset-1e6"]
    x, (gamma, beta) = case.make(F32), case.parameters(F32)
    batch = reference.moments(x, case.axis)
    fixed = (gamma, beta, batch.mean, batch.var(), EPS, case.axis)
    assert close.forward_fixed(reference.forward_fixed(x, *fixed).astype(F32), x, *fixed) <= 1.01
    rounded = (gamma, beta, batch.mean.astype(F32), batch.var(), EPS, case.axis)
    with pytest.raises(AssertionError, match="times the bound"):
        close.forward_fixed(reference.forward_fixed(x, *rounded).astype(F32), x, *fixed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: Moments(m.count + 1, m.mean, m.m2), "count 197, expected 196"),
        (lambda m: Moments(m.count, m.mean * (1 + 1e-5), m.m2), "mean"),
        (lambda m: Moments(m.count, m.mean, m.m2 * (1 + 1e-5)), "m2"),
        (lambda m: Moments(m.count, m.mean, m.m2 / m.count), "m2"),
        (lambda m: Moments(m.count, m.mean, put_nan(m.m2)), "m2"),
    ],
    ids=["count", "mean", "m2", "variance for m2", "NaN"],
)
def test_wrong_moments_are_caught(change, words):
    case = BY_NAME["7x7"]
    x = case.make(F32) + F32(1)
    batch = reference.moments(x, case.axis)
    assert close.moments(batch, x, case.axis) <= 1.01
    with pytest.raises(AssertionError, match=words):
        close.moments(change(batch), x, case.axis)


def test_a_wrong_rstd_and_a_lost_mean_tail_are_caught():
    case = BY_NAME["offset-1e6"]
    x = case.make(F32)
    _, saved = reference.forward_train(x, None, None, EPS, case.axis)
    assert close.saved(saved, x, EPS, case.axis) <= 1.01
    with pytest.raises(AssertionError, match=r"^rstd"):
        close.saved(saved._replace(rstd=saved.rstd * (1 + 1e-6)), x, EPS, case.axis)
    with pytest.raises(AssertionError, match=r"^mean"):
        close.saved(saved._replace(mean=saved.mean.astype(F32)), x, EPS, case.axis)


def test_nan_passes_nowhere_unless_it_is_asked_for_and_expected():
    nan, inf = np.nan, np.inf
    assert close.within("x", [nan, inf, -inf, 1.0], [nan, inf, -inf, 1.0], 0, match_nan=True) == 0
    for got, want in [(nan, nan), (inf, inf), (nan, 1.0), (1.0, nan), (inf, 1.0), (1.0, inf)]:
        with pytest.raises(AssertionError, match="times the bound"):
            close.within("x", [0.0, got], [0.0, want], 1e300)
    for got, want in [(nan, 1.0), (1.0, nan), (inf, 1.0), (1.0, inf), (nan, inf), (inf, nan), (inf, -inf)]:
        with pytest.raises(AssertionError, match="times the bound"):
            close.within("x", [0.0, got], [0.0, want], 1e300, match_nan=True)
    with pytest.raises(AssertionError, match="times the bound"):
        close.within("x", [1.5], [1.0], nan)  # a bound that is NaN allows nothing
    assert close.within("x", [1.5], [1.0], 1.0) == 0.5


def test_a_sum_that_is_not_finite_may_be_so_in_any_way_but_nowhere_else():
    nan, inf = np.nan, np.inf
    assert close.within("x", [nan, inf, -inf, 1.0], [inf, nan, inf, 1.0], 0, match_any=True) == 0
    for got, want in [(nan, 1.0), (1.0, nan), (inf, 1.0), (1.0, -inf)]:
        with pytest.raises(AssertionError, match="times the bound"):
            close.within("x", [0.0, got], [0.0, want], 1e300, match_any=True)


def test_good_channels_beside_a_nan_are_still_compared():
    case = BY_NAME["nan-last"]
    x, (gamma, beta) = case.make(F32), case.parameters(F32)
    y = right_forward(x, gamma, beta, case.axis)
    assert close.forward_train(y, x, gamma, beta, EPS, case.axis, match_nan=True) <= 1.01
    with pytest.raises(AssertionError, match="times the bound"):
        close.forward_train(y, x, gamma, beta, EPS, case.axis)
    for change in (np.nan, 0.0):
        wrong = y.copy()
        wrong[0, 16] = change  # next to the bad channel, 17
        with pytest.raises(AssertionError, match=r"y\[0, 16\]"):
            close.forward_train(wrong, x, gamma, beta, EPS, case.axis, match_nan=True)
    cleaned = np.where(np.isnan(y), F32(0), y)
    with pytest.raises(AssertionError, match="17\\]"):
        close.forward_train(cleaned, x, gamma, beta, EPS, case.axis, match_nan=True)


def test_shape_dtype_and_exactness_are_part_of_a_comparison():
    with pytest.raises(AssertionError, match="shape"):
        close.within("x", np.zeros((2, 1)), np.zeros(2), 1)
    with pytest.raises(AssertionError, match="times the bound"):
        close.within("x", [1e-300], [0.0], 0)
    x = np.ones((4, 2), F32)
    with pytest.raises(AssertionError, match="y: float64, expected float32"):
        close.forward_train(np.zeros((4, 2)), x, None, None, EPS, 1)
    with pytest.raises(AssertionError, match="dx: float64, expected float32"):
        close.backward_train((np.zeros((4, 2)), np.zeros(2), np.zeros(2)), 0 * x, x, None, EPS, 1)
    assert close.forward_train(np.zeros((4, 2), F32), x, None, None, EPS, 1) == 0


def test_one_different_bit_is_seen():
    a = np.array([1.0, np.nan], F32)
    close.same_bits("a", a, a.copy())
    for b in (
        np.array([1.0, 0.0], F32),
        np.array([np.nextafter(F32(1), F32(2)), np.nan], F32),
        a.astype(float),
    ):
        with pytest.raises(AssertionError, match=r"^a: "):
            close.same_bits("a", b, a)
    with pytest.raises(AssertionError, match=r"^z: "):
        close.same_bits("z", np.array([-0.0]), np.array([0.0]))


def test_every_case_is_told_apart_and_small():
    assert len(BY_NAME) == len(cases.CASES)
    for case in cases.CASES:
        x, again = case.make(F32), case.make(F32)
        close.same_bits(case.name, np.ascontiguousarray(again), np.ascontiguousarray(x))
        assert x.size <= 300_000
        assert np.isfinite(x).all() == case.finite
        assert (case.make_dy(F32).shape, case.reason != "") == (x.shape, True)
