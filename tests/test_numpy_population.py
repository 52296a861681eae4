"""The population of the NumPy door: exact however it is cut, and what it standardizes."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import close
from normwright.kernels import reference
from normwright.numpy import (
    Population,
    batchnorm_predict,
)

F32, F64 = np.float32, np.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, F64])
U = 2.0**-53
EPS = 1e-5


def sample(*shape, dtype=F32, mean=2.0):
    return (np.random.default_rng(11).standard_normal(shape) + mean).astype(dtype)


def assert_population_is(population, whole, axis, tolerance=1e-12):
    """Against NumPy on all values at once, in long double.

    1e-12 is some thousand roundings, as many as values. Where |mean| is many deviations, a batch's mean
    is known to 2^-53 * |mean| only, and the difference of two means enters m2 with that error.
    """
    rest = close.others(whole, axis)
    wide = whole.astype(np.longdouble)
    mean, var, n = wide.mean(axis=rest), wide.var(axis=rest), whole.size // whole.shape[axis]
    assert population.count == n
    close.within("mean", population.mean, mean, tolerance * (np.abs(mean) + np.sqrt(var)))
    bound = tolerance * var + 8 * U * np.abs(mean) * np.sqrt(var)
    close.within("var", population.var(), var, bound)
    close.within("unbiased var", population.var(ddof=1), var * n / (n - 1), 2 * bound)
    close.within("std", population.std(), np.sqrt(var), bound / np.sqrt(var))


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])  # in deviations
@given(cuts=st.lists(st.integers(0, 500), max_size=8))
def test_a_population_is_exact_however_it_is_cut(mean, cuts):
    whole = sample(500, 3, 2, dtype=F64, mean=mean)
    population = Population()
    for batch in np.split(whole, sorted(cuts)):  # batches of none among them
        population.add(batch)
    assert_population_is(population, whole, 1)


def test_a_float32_population_is_accurate_to_float32():
    whole = sample(600, 4, dtype=F32, mean=1e3)
    population = Population()
    for batch in np.split(whole, 6):
        population.add(batch)
    assert_population_is(population, whole, 1, tolerance=16 * 2.0**-24)


def test_populations_of_several_workers_merge_to_the_whole():
    whole = sample(90, 7, dtype=F64, mean=1e4)
    parts = [Population().add(part) for part in np.split(whole, [10, 11, 60])]
    first, others = parts[0], parts[1:]
    for other in [*others, Population()]:
        assert first.merge(other) is first
    assert_population_is(first, whole, 1)
    assert [other.count for other in others] == [1, 49, 30]
    merged = Population().merge(first)
    close.same_bits("mean", merged.mean, first.mean)
    merged.add(whole)
    assert (merged.count, first.count) == (180, 90)


def test_a_population_sees_any_axis_and_batches_of_one_value():
    whole = sample(30, 4, 5, dtype=F64)
    by_last = Population(axis=-1)
    for i in range(30):
        by_last.add(whole[i])
    assert_population_is(by_last, whole, 2)
    one_by_one = Population()
    for row in whole[:, :, 0]:
        one_by_one.add(row[None])
    assert_population_is(one_by_one, whole[:, :, 0], 1)


@DTYPES
def test_standardized_features_have_mean_0_and_variance_1(dtype):
    # age in years, price in cents: the scales of a real table
    x = (sample(400, 2, dtype=F64, mean=0) * [15, 2e6] + [40, 3e7]).astype(dtype)
    population = Population()
    for batch in np.split(x, 8):
        population.add(batch)
    z = population.standardize(x)
    close.forward_fixed(z, x, None, None, population.mean, population.var(), 0.0, 1)
    assert z.dtype == dtype
    # each of 400 values is rounded at about 3 deviations; the mean of roundings is no larger
    unit = np.finfo(dtype).eps
    close.within("mean", z.astype(F64).mean(axis=0), np.zeros(2), 8 * unit * 20)
    close.within("var", z.astype(F64).var(axis=0), np.ones(2), 8 * unit * 2)


@DTYPES
def test_a_constant_feature_is_centred_and_not_divided(dtype):
    x = sample(50, 3, dtype=dtype)
    x[:, 1] = 0.1  # no binary fraction: sums of it are rounded
    x[:, 2] = 0
    population = Population()
    for batch in np.split(x, [7, 20]):
        population.add(batch)
    z = population.standardize(x)
    close.within("constant", z[:, 1:], np.zeros((50, 2)), 8 * U)
    other = np.array([[0.0, 0.6, -2.0]], dtype)
    # 0.6 and 0.1 are rounded in x's type
    close.within("other", population.standardize(other)[0, 1:], [0.5, -2.0], 2 * np.finfo(dtype).eps)


def test_a_deviation_below_the_rounding_of_the_mean_counts_as_constant():
    x = np.array([[0.1, 0.0], [np.nextafter(0.1, 1), 1e-100]])
    z = Population().add(x).standardize(x)
    close.within("one ulp", z[:, 0], [0, 0], 2 * U)  # and not -1 and 1
    close.within("small", z[:, 1], [-1, 1], 8 * U)  # small, but not beside its own mean


def test_a_population_survives_pickling():
    population = Population(axis=-1).add(sample(5, 3))
    copy = pickle.loads(pickle.dumps(population))
    assert (copy.count, copy.axis, copy.mean.tolist()) == (5, -1, population.mean.tolist())
    assert repr(copy) == "<Population of 5 values in 3 channels on axis -1>"
    assert repr(Population()) == "<Population of 0 values in 0 channels on axis 1>"


def test_the_mean_handed_out_is_a_copy():
    population = Population().add(sample(5, 3))
    before = population.mean
    population.mean[:] = 7
    close.same_bits("mean", population.mean, before)


def test_a_population_predicts_what_algorithm_2_means():
    # exact statistics of the whole set in place of a moving average
    whole = sample(64, 3, dtype=F64)
    population = Population()
    for batch in np.split(whole, 4):
        population.add(batch)
    bn_param = {"running_mean": population.mean, "running_var": population.var(ddof=1)}
    y = batchnorm_predict(whole, None, None, bn_param)
    want = reference.forward_fixed(whole, None, None, whole.mean(0), whole.var(0, ddof=1), EPS, 1)
    close.within("y", y, want, 32 * U * 5)  # values up to five, NumPy's sums of 64 values
