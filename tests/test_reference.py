"""The definition against exact fractions, finite differences, and numbers done by hand."""

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest

import close
from cases import AFTER, CASES
from normwright.core.checks import ShapeError
from normwright.kernels import reference

# Both types the reference computes in. A result may be off by the roundings of a dozen values: 16 units.
WIDE = pytest.mark.parametrize("dtype", [np.float64, np.longdouble])
UNITS = 16


def unit(dtype):
    return float(np.finfo(dtype).eps) / 2


def samples(dtype, *shape, mean=0.0):
    """Multiples of 1/64, so that both types hold exactly the same numbers."""
    rng = np.random.default_rng(7)
    return (np.round(rng.standard_normal(shape) * 64) / 64 + mean).astype(dtype)


def exact(array):
    return [Fraction(*value.as_integer_ratio()) for value in np.ravel(array)]


def as_float(fractions, dtype):
    """The nearest floats: the integer part and the rest are rounded apart, enough for long double."""
    whole = [round(f * 2**60) for f in fractions]
    return np.array([np.longdouble(w) / 2**60 for w in whole]).astype(dtype)


def exact_rstd(var, eps):
    """1/sqrt(var + eps) to forty digits."""
    squared = (var + Fraction(eps)) * 10**80
    return Fraction(10**40, isqrt(squared.numerator // squared.denominator))


def exact_moments(values):
    mean = sum(values) / len(values)
    return mean, sum((v - mean) ** 2 for v in values)


def exact_forward(values, gamma, beta, eps):
    mean, m2 = exact_moments(values)
    rstd = exact_rstd(m2 / len(values), eps)
    return [gamma * (v - mean) * rstd + beta for v in values]


def exact_backward(dy, values, gamma, eps):
    """The six lines of the chain rule in section 3 of the paper, none of them collected."""
    m = len(values)
    mean, m2 = exact_moments(values)
    rstd = exact_rstd(m2 / m, eps)
    d_x_hat = [g * gamma for g in dy]
    d_var = sum(g * (v - mean) for g, v in zip(d_x_hat, values, strict=True)) * Fraction(-1, 2) * rstd**3
    d_mean = sum(-g * rstd for g in d_x_hat) + d_var * sum(-2 * (v - mean) for v in values) / m
    dx = [g * rstd + d_var * 2 * (v - mean) / m + d_mean / m for g, v in zip(d_x_hat, values, strict=True)]
    dgamma = sum(g * (v - mean) * rstd for g, v in zip(dy, values, strict=True))
    return dx, dgamma, sum(dy)


@WIDE
@pytest.mark.parametrize("mean", [0.0, 1e6])  # about zero, and where E[x^2] - E[x]^2 has lost 12 digits
def test_moments_are_the_exact_ones(dtype, mean):
    x = samples(dtype, 23, 3, mean=mean)
    got = reference.moments(x, axis=1)
    assert got.count == 23
    assert got.mean.dtype == dtype
    for c in range(3):
        want_mean, want_m2 = as_float(exact_moments(exact(x[:, c])), dtype)
        close.within("mean", got.mean[c], want_mean, UNITS * unit(dtype) * (abs(want_mean) + 1))
        # relative alone: a sum of squares, of deviations that are exact to their own last digit
        close.within("m2", got.m2[c], want_m2, UNITS * unit(dtype) * want_m2)


@WIDE
@pytest.mark.parametrize("mean", [0.0, 1e6])  # as above
def test_forward_is_the_exact_one(dtype, mean):
    x, gamma, beta, eps = samples(dtype, 19, 2, mean=mean), [1.5, -0.25], [0.5, 3.0], 1e-5
    y, saved = reference.forward_train(x, np.array(gamma), np.array(beta), eps, axis=1)
    assert y.dtype == dtype
    assert saved.count == 19
    for c in range(2):
        want = as_float(exact_forward(exact(x[:, c]), Fraction(gamma[c]), Fraction(beta[c]), eps), dtype)
        # two roundings of values up to |gamma * x_hat| + |beta|, and a mean known to its tail
        bound = UNITS * unit(dtype) * (np.abs(want) + 2 * abs(beta[c]) + abs(gamma[c]))
        close.within("y", y[:, c], want, bound)


@WIDE
def test_backward_is_the_papers_six_lines_done_exactly(dtype):
    x, dy, eps = samples(dtype, 17, 2, mean=3.0), samples(dtype, 2, 17).T, 1e-3
    gamma = np.array([1.5, -0.25])
    _, saved = reference.forward_train(x, gamma, None, eps, axis=1)
    dx, dgamma, dbeta, _ = reference.backward_train(dy, x, gamma, None, saved, axis=1)
    for c in range(2):
        want_dx, want_dgamma, want_dbeta = exact_backward(
            exact(dy[:, c]), exact(x[:, c]), Fraction(gamma[c]), eps
        )
        # all terms are of order one and there are 17 of them in a sum
        bound = 3 * UNITS * unit(dtype)
        close.within("dx", dx[:, c], as_float(want_dx, dtype), bound)
        close.within("dgamma", dgamma[c], as_float([want_dgamma], dtype)[0], bound * 17)
        close.within("dbeta", dbeta[c], as_float([want_dbeta], dtype)[0], bound * 17)


def test_merging_two_batches_gives_the_exact_moments_of_both():
    a, b = samples(np.float64, 5, 1, mean=2.0), samples(np.float64, 11, 1, mean=-3.0)
    got = reference.moments(a, 1).merge(reference.moments(b, 1))
    mean, m2 = as_float(exact_moments(exact(a) + exact(b)), np.float64)
    assert got.count == 16
    close.within("mean", got.mean[0], mean, UNITS * unit(np.float64) * 3)
    close.within("m2", got.m2[0], m2, UNITS * unit(np.float64) * m2)


def differences(function, at, h):
    """Central differences of a scalar function, one per element of `at`."""
    slopes = np.zeros_like(at)
    for i in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[i] = h
        slopes[i] = (function(at + step) - function(at - step)) / (2 * h)
    return slopes


@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", AFTER, ids=str)
@pytest.mark.parametrize("fixed", [False, True], ids=["batch statistics", "fixed statistics"])
def test_every_gradient_is_the_slope_that_finite_differences_measure(fixed, activation, with_residual):
    # long double, h = 1e-5: h^2 of curvature (1e-10) and 1e-19/h of rounding (1e-14); 1e-8 leaves room for
    # third derivatives of up to a hundred
    x, dy = samples(np.longdouble, 3, 2, 2, 2, mean=0.5), samples(np.longdouble, 2, 2, 3, 2).swapaxes(0, 2)
    gamma, beta = np.array([1.5, -0.75], np.longdouble), np.array([0.5, 2.0], np.longdouble)
    residual = samples(np.longdouble, 2, 3, 2, 2).swapaxes(0, 1) * 2 if with_residual else None
    mean, var, eps = np.array([0.25, 0.75]), np.array([0.5, 2.0]), 1e-2

    def y(x, gamma, beta, residual, activation=activation):
        if fixed:
            return reference.forward_fixed(x, gamma, beta, mean, var, eps, 1, activation, residual)
        return reference.forward_train(x, gamma, beta, eps, 1, activation, residual)[0]

    z = y(x, gamma, beta, residual, None)
    for corner in (0, -3, 3, -1, 1, 6, -0.3, 1.1):
        assert (np.abs(z - corner) > 1e-3).all()  # no difference is taken across one
    given, h = [x, gamma, beta, residual], np.longdouble(1e-5)
    if fixed:
        got = reference.backward_fixed(dy, x, gamma, beta, mean, var, eps, 1, activation, residual)
    else:
        _, saved = reference.forward_train(x, gamma, beta, eps, 1, activation, residual)
        got = reference.backward_train(dy, x, gamma, beta, saved, 1, activation, residual)
    assert (got.dresidual is None) == (residual is None)
    for i, (name, gradient) in enumerate(got._asdict().items()):
        if given[i] is not None:
            slopes = differences(lambda t, i=i: (dy * y(*given[:i], t, *given[i + 1 :])).sum(), given[i], h)
            close.within(name, gradient, slopes, 1e-8)


def test_forward_train_is_algorithm_1_as_printed():
    x = samples(np.float64, 4, 3, 5, mean=1.0)
    gamma, beta = np.array([2.0, -1.0, 0.5]), np.array([0.0, 1.0, -1.0])
    y, _ = reference.forward_train(x, gamma, beta, 1e-5, 1)
    # values of order one, and the printed form rounds its mean
    close.within("y", y, reference.algorithm_1(x, gamma, beta, 1e-5, 1), UNITS * unit(np.float64) * 4)


def test_algorithm_1_by_hand():
    # 1, 3, 5, 7: mean 4, variance (9+1+1+9)/4 = 5; with eps 4 the deviation is 3
    x = np.array([[1.0], [3.0], [5.0], [7.0]])
    y = reference.algorithm_1(x, np.array([6.0]), np.array([10.0]), 4.0, 1)
    assert y.ravel().tolist() == [4.0, 8.0, 12.0, 16.0]
    assert reference.forward_train(x, np.array([6.0]), np.array([10.0]), 4.0, 1)[0].tolist() == y.tolist()


def test_algorithm_2_by_hand():
    # batch 1: mean 2, m/(m-1) var 2; batch 2: mean 7, m/(m-1) var 16
    batches = [np.array([[1.0], [3.0]]), np.array([[3.0], [7.0], [11.0]])]
    mean, var, scale, shift = reference.algorithm_2(batches, np.array([6.0]), np.array([1.0]), 7.0, 1)
    assert mean.tolist() == [4.5]  # (2 + 7) / 2: batches count alike, not their values
    assert var.tolist() == [9.0]  # (2 + 16) / 2
    assert scale.tolist() == [1.5]  # 6 / sqrt(9 + 7)
    assert shift.tolist() == [-5.75]  # 1 - 1.5 * 4.5


def test_algorithm_2_leaves_out_the_variance_between_batches_and_merging_does_not():
    batches = [np.array([[0.0], [2.0]]), np.array([[10.0], [12.0]])]
    assert reference.algorithm_2(batches, None, None, 1e-5, 1).var.tolist() == [2.0]
    merged = reference.moments(batches[0], 1).merge(reference.moments(batches[1], 1))
    # 0, 2, 10, 12 about 6: 36 + 16 + 16 + 36 = 104, over 3
    close.within("var", merged.var(ddof=1), [104 / 3], UNITS * unit(np.float64) * 35)


def test_algorithm_2_refuses_batches_of_one_value():
    with pytest.raises(ShapeError, match="expected more than 1 values per channel with ddof=1, got 1"):
        reference.algorithm_2([np.array([[1.0]])], None, None, 1e-5, 1)


def test_algorithm_2_as_scale_and_shift_equals_the_fixed_transform():
    batches = [samples(np.float64, 6, 2, mean=1.0), samples(np.float64, 8, 2, mean=1.5)]
    gamma, beta, x = np.array([2.0, -3.0]), np.array([0.25, 1.0]), samples(np.float64, 4, 2)
    mean, var, scale, shift = reference.algorithm_2(batches, gamma, beta, 1e-5, 1)
    fixed = reference.forward_fixed(x, gamma, beta, mean, var, 1e-5, 1)
    # collected terms cancel where gamma * x_hat meets the shift: both of order ten
    close.within("y", x * scale + shift, fixed, UNITS * unit(np.float64) * 10)


def test_gamma_as_deviation_and_beta_as_mean_restore_the_input():
    x, eps = samples(np.float64, 5, 3, 4, mean=10.0), 1e-3
    batch = reference.moments(x, 1)
    y, _ = reference.forward_train(x, np.sqrt(batch.var() + eps), batch.mean, eps, 1)
    close.within("y", y, x, UNITS * unit(np.float64) * 13)  # |x| is below 13


@pytest.mark.parametrize("fixed", [False, True], ids=["batch statistics", "fixed statistics"])
def test_output_has_mean_beta_and_variance_gamma_squared(fixed):
    x, eps = samples(np.float64, 50, 2, mean=-4.0) * np.array([1.0, 0.01]), 1e-4
    gamma, beta = np.array([3.0, -0.5]), np.array([7.0, -1.0])
    batch = reference.moments(x, 1)
    if fixed:
        y = reference.forward_fixed(x, gamma, beta, batch.mean, batch.var(), eps, 1)
    else:
        y, _ = reference.forward_train(x, gamma, beta, eps, 1)
    got = reference.moments(y, 1)
    want = gamma**2 * batch.var() / (batch.var() + eps)
    # fixed: the mean of channel 1 is rounded at 400 deviations, so y is off by up to 400 units in all
    close.within("mean", got.mean, beta, UNITS * unit(np.float64) * 400)
    close.within("var", got.var(), want, UNITS * unit(np.float64) * 10)


def test_scaling_the_weights_changes_no_output_and_no_gradient_to_the_input():
    # BN(aWu) = BN(Wu) holds to the bit when a is a power of two and eps is scaled by a^2
    u, W, dy, a, eps = (
        samples(np.float64, 9, 4),
        samples(np.float64, 4, 3),
        samples(np.float64, 9, 3),
        8.0,
        1e-3,
    )

    def layer(W, eps):
        z = u @ W
        y, saved = reference.forward_train(z, None, None, eps, 1)
        dz, *_ = reference.backward_train(dy, z, None, None, saved, 1)
        return y, dz @ W.T, u.T @ dz

    y, du, dW = layer(W, eps)
    y_scaled, du_scaled, dW_scaled = layer(a * W, a**2 * eps)
    close.same_bits("y", y_scaled, y)
    close.same_bits("du", du_scaled, du)
    close.same_bits("dW", dW_scaled, dW / a)


def test_shifting_the_input_changes_nothing():
    x = samples(np.float64, 6, 2, 3)
    y, _ = reference.forward_train(x, None, None, 1e-5, 1)
    shifted, _ = reference.forward_train(x + 1024.0, None, None, 1e-5, 1)  # exact: multiples of 1/64
    # the mean, 1024 and a fraction, is rounded; its tail makes up for it
    close.within("y", shifted, y, UNITS * unit(np.float64) * 2)


def test_gradients_to_x_carry_no_shift_and_no_scale():
    # a shift of x, and with eps -> 0 a scaling of it, cannot change y: dx is orthogonal to 1 and to x_hat
    x, dy = samples(np.float64, 40, 2, mean=5.0), samples(np.float64, 2, 40).T
    y, saved = reference.forward_train(x, None, None, 1e-12, 1)
    dx, *_ = reference.backward_train(dy, x, None, None, saved, 1)
    # forty terms of order one; eps = 1e-12 leaves 1e-12 * dgamma of the scale
    close.within("sum dx", dx.sum(axis=0), np.zeros(2), 40 * UNITS * unit(np.float64))
    close.within("sum dx * x_hat", (dx * y).sum(axis=0), np.zeros(2), 40 * 2e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_memory_layout_and_axis_change_no_bit(case):
    x, dy = case.make(np.float32), case.make_dy(np.float32)
    gamma, beta = case.parameters(np.float32)
    plain, plain_dy = (np.ascontiguousarray(np.moveaxis(t, case.axis, 1)) for t in (x, dy))
    with np.errstate(invalid="ignore"):  # inf - inf
        y, saved = reference.forward_train(x, gamma, beta, 1e-5, case.axis - x.ndim)
        want_y, want_saved = reference.forward_train(plain, gamma, beta, 1e-5, 1)
        dx, *sums, _ = reference.backward_train(dy, x, gamma, beta, saved, case.axis)
        want_dx, *want_sums, _ = reference.backward_train(plain_dy, plain, gamma, beta, want_saved, 1)
    assert (y.shape, dx.shape) == (x.shape, x.shape)
    assert (y.dtype, dx.dtype) == (np.float64, np.float64)
    close.same_bits("y", np.moveaxis(y, case.axis, 1), want_y)
    close.same_bits("dx", np.moveaxis(dx, case.axis, 1), want_dx)
    for name, got, want in zip(["dgamma", "dbeta"], sums, want_sums, strict=True):
        close.same_bits(name, got, want)
    assert np.isfinite(want_y).all() == case.finite


def test_a_value_that_is_not_finite_stays_in_its_channel():
    for case in (c for c in CASES if not c.finite):
        with np.errstate(invalid="ignore"):  # inf - inf
            y, _ = reference.forward_train(case.make(np.float64), None, None, 1e-5, case.axis)
        by_channel = np.isfinite(np.moveaxis(y, case.axis, 0).reshape(y.shape[case.axis], -1)).all(axis=1)
        assert np.flatnonzero(~by_channel).tolist() == [case.bad_channel], case.name


def test_a_batch_of_none_has_empty_moments_and_no_gradients():
    x = np.zeros((0, 3, 4))
    assert reference.moments(x, 1).count == 0
    y, saved = reference.forward_train(x, None, None, 1e-5, 1)
    dx, dgamma, dbeta, _ = reference.backward_train(x, x, None, None, saved, 1)
    assert (y.shape, dx.shape) == (x.shape, x.shape)
    assert (saved.mean.tolist(), dgamma.tolist(), dbeta.tolist()) == ([0.0] * 3,) * 3
