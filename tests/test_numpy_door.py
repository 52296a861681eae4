"""The promises of the NumPy door, each with its values."""

import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import close
from cases import CASES, FINITE, TRAINABLE
from normwright.core.checks import DtypeError, ShapeError
from normwright.kernels import reference
from normwright.numpy import (
    BatchNorm,
    Cache,
    Population,
    batchnorm_backward,
    batchnorm_predict,
    batchnorm_train,
    batchnorm_train_cached,
)

F32, F64 = np.float32, np.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, F64])
U = 2.0**-53
EPS = 1e-5


def sample(*shape, dtype=F32, mean=2.0):
    return (np.random.default_rng(11).standard_normal(shape) + mean).astype(dtype)


def raises(kind, words):
    return pytest.raises(kind, match="^" + re.escape(words) + "$")


# --- values, on every nasty input -------------------------------


@DTYPES
@pytest.mark.parametrize("case", TRAINABLE, ids=lambda case: case.name)
def test_training_gives_the_reference_values(case, dtype):
    x, dy, (gamma, beta) = case.make(dtype), case.make_dy(dtype), case.parameters(dtype)
    y, bn_param, cache = batchnorm_train_cached(x, gamma, beta, {"momentum": 0}, axis=case.axis)
    close.forward_train(y, x, gamma, beta, EPS, case.axis)
    close.saved(cache.saved, x, EPS, case.axis)
    close.backward_train(batchnorm_backward(dy, cache), dy, x, gamma, EPS, case.axis)
    if x.size:  # momentum 0: the running statistics are the batch's
        assert bn_param["running_mean"].tolist() == cache.saved.mean.tolist()
        assert bn_param["running_var"].tolist() == (cache.saved.m2 / case.count).tolist()
    close.same_bits("y", batchnorm_train(x, gamma, beta, {}, axis=case.axis - x.ndim)[0], y)


@DTYPES
@pytest.mark.parametrize("case", FINITE, ids=lambda case: case.name)
def test_prediction_gives_the_reference_values(case, dtype):
    x, (gamma, beta) = case.make(dtype), case.parameters(dtype)
    mean, var = beta * 3 - 1, gamma.astype(F64) ** 2
    y = batchnorm_predict(x, gamma, beta, {"running_mean": mean, "running_var": var}, axis=case.axis)
    close.forward_fixed(y, x, gamma, beta, mean, var, EPS, case.axis)


@pytest.mark.parametrize("case", [c for c in CASES if not c.finite], ids=lambda case: case.name)
def test_a_value_that_is_not_finite_stays_in_its_channel(case):
    x, dy, (gamma, beta) = case.make(F32), case.make_dy(F32), case.parameters(F32)
    with np.errstate(invalid="ignore"):  # inf - inf, where the NumPy kernels run
        y, bn_param, cache = batchnorm_train_cached(x, gamma, beta, {}, axis=case.axis)
        gradients = batchnorm_backward(dy, cache)
    close.forward_train(y, x, gamma, beta, EPS, case.axis, match_nan=True)
    close.backward_train(gradients, dy, x, gamma, EPS, case.axis, match_nan=True)
    for name in ("running_mean", "running_var"):
        assert np.flatnonzero(~np.isfinite(bn_param[name])).tolist() == [case.bad_channel]


def test_the_functions_by_hand():
    # 1, 3, 5, 7: mean 4, variance 5; with eps 4 the deviation is 3
    x = np.array([[1.0], [3.0], [5.0], [7.0]])
    bn_param = {"eps": 4.0, "momentum": 0.75, "running_mean": [0.0], "running_var": [1.0]}
    y, moved, cache = batchnorm_train_cached(x, [6.0], [10.0], bn_param)
    assert y.ravel().tolist() == [4.0, 8.0, 12.0, 16.0]
    assert moved["running_mean"].tolist() == [1.0]  # 0.75 * 0 + 0.25 * 4: momentum weighs the OLD value
    assert moved["running_var"].tolist() == [2.0]  # 0.75 * 1 + 0.25 * 5: biased, 5 and not 20/3
    dx, dgamma, dbeta = batchnorm_backward(np.array([[3.0], [0.0], [0.0], [0.0]]), cache)
    # x_hat = -1, -1/3, 1/3, 1: dbeta 3, dgamma -3, dx = 6/3 * (dy - 3/4 + x_hat * 3/4)
    assert (dgamma.tolist(), dbeta.tolist()) == ([-3.0], [3.0])
    close.within("dx", dx.ravel(), [3.0, -2.0, -1.0, 0.0], 8 * U * 6)  # 1/3 is rounded; terms up to 6
    predicted = batchnorm_predict(np.array([[7.0]]), [6.0], [10.0], {**moved, "running_var": [5.0]})
    assert predicted.tolist() == [[22.0]]  # (7 - 1)/3 * 6 + 10


# --- types, layouts, and what is left alone ---------------------


@DTYPES
def test_results_have_the_dtype_of_x_and_statistics_are_float64(dtype):
    x = sample(6, 3, 4, dtype=dtype)
    gamma, beta = np.array([1, 2, 3], np.int8), np.array([0.5, 0.25, 0], np.float16)
    y, bn_param, cache = batchnorm_train_cached(x, gamma, beta, {})
    dx, *sums = batchnorm_backward(np.ones_like(x), cache)
    predicted = batchnorm_predict(x, gamma, beta, bn_param)
    assert [t.dtype for t in (y, dx, predicted)] == [dtype] * 3
    assert [t.shape for t in (y, dx, predicted)] == [x.shape] * 3
    per_channel = [*sums, bn_param["running_mean"], bn_param["running_var"]]
    assert [(t.dtype, t.shape) for t in per_channel] == [(F64, (3,))] * 4
    close.forward_train(y, x, gamma, beta, EPS, 1)


def test_lists_none_and_any_real_parameters_mean_the_same():
    x = sample(6, 3)
    y, _ = batchnorm_train(x, None, None, {})
    close.forward_train(y, x, None, None, EPS, 1)
    for one, zero in [([1, 1, 1], [0, 0, 0]), (np.ones(3, F32), np.zeros(3, np.uint8))]:
        close.same_bits("y", batchnorm_train(x, one, zero, {})[0], y)


@pytest.mark.parametrize("case", TRAINABLE, ids=lambda case: case.name)
def test_inputs_are_never_modified(case):
    x, dy, (gamma, beta) = case.make(F32), case.make_dy(F32), case.parameters(F32)
    mean, var = np.zeros_like(beta), np.ones_like(gamma)
    bn_param = {"eps": 1e-3, "running_mean": mean, "running_var": var, "mode": "train"}
    before = [t.copy() for t in (x, dy, gamma, beta, mean, var)]
    _, moved, cache = batchnorm_train_cached(x, gamma, beta, bn_param, axis=case.axis)
    batchnorm_backward(dy, cache)
    batchnorm_predict(x, gamma, beta, moved, axis=case.axis)
    Population(case.axis).add(x).standardize(x) if x.size else None
    for name, now, then in zip(
        ["x", "dy", "gamma", "beta", "mean", "var"], (x, dy, gamma, beta, mean, var), before, strict=True
    ):
        close.same_bits(name, now, then)
    assert list(bn_param) == ["eps", "running_mean", "running_var", "mode"]
    assert bn_param["running_mean"] is mean


def test_bn_param_comes_back_new_with_every_key():
    given_mean = np.array([1.0, 2.0])
    bn_param = {"running_mean": given_mean, "running_var": np.ones(2), "mode": "train", "mine": 3}
    _, moved = batchnorm_train(sample(5, 2), None, None, bn_param)
    assert set(moved) == {"eps", "momentum", "running_mean", "running_var", "mode", "mine"}
    assert (moved["eps"], moved["momentum"], moved["mode"], moved["mine"]) == (1e-5, 0.9, "train", 3)
    assert moved["running_mean"] is not given_mean
    assert given_mean.tolist() == [1.0, 2.0]
    assert set(bn_param) == {"running_mean", "running_var", "mode", "mine"}


def test_updating_gamma_in_place_does_not_reach_a_cache():
    x, dy, gamma = sample(6, 2, dtype=F64), sample(6, 2, dtype=F64, mean=0), np.array([2.0, 3.0])
    *_, cache = batchnorm_train_cached(x, gamma, None, {})
    want = batchnorm_backward(dy, cache)
    gamma *= 100
    for name, got, expected in zip(
        ["dx", "dgamma", "dbeta"], batchnorm_backward(dy, cache), want, strict=True
    ):
        close.same_bits(name, got, expected)


def test_a_plain_view_is_made_of_array_subclasses():
    class Labelled(np.ndarray):
        pass

    x = sample(6, 3)
    y, _ = batchnorm_train(x.view(Labelled), None, None, {})
    assert type(y) is np.ndarray
    close.same_bits("y", y, batchnorm_train(x, None, None, {})[0])


# --- running statistics -----------------------------------------


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999, 1, 0])  # usual ones, and both ends
def test_momentum_weighs_the_old_value(momentum):
    batches = [sample(7, 3, 2, dtype=F64, mean=m) for m in (0.0, 5.0, -3.0)]
    bn_param = {"momentum": momentum}
    mean, var = np.zeros(3), np.ones(3)
    for x in batches:
        _, bn_param = batchnorm_train(x, None, None, bn_param)
        mean = momentum * mean + (1 - momentum) * x.mean(axis=(0, 2))
        var = momentum * var + (1 - momentum) * x.var(axis=(0, 2))
    # three updates of values up to ten, each rounded thrice; NumPy's own sums of fourteen values beside them
    close.within("running_mean", bn_param["running_mean"], mean, 32 * U * 10)
    close.within("running_var", bn_param["running_var"], var, 32 * U * 10)


def test_without_running_statistics_an_untrained_layer_predicts_its_input():
    _, bn_param = batchnorm_train(np.zeros((0, 2), F64), None, None, {"eps": 1e-12})
    assert (bn_param["running_mean"].tolist(), bn_param["running_var"].tolist()) == ([0.0] * 2, [1.0] * 2)
    x = sample(3, 2, dtype=F64)
    close.within("y", batchnorm_predict(x, None, None, bn_param), x, 1e-12 * np.abs(x))  # eps/2, and rounding


@pytest.mark.parametrize("case", [c for c in CASES if c.count == 0], ids=lambda case: case.name)
def test_a_batch_of_none_leaves_the_running_statistics_unmoved(case):
    x, channels = case.make(F32), case.shape[case.axis]
    bn_param = {
        "running_mean": np.arange(channels),
        "running_var": np.arange(channels) + 0.5,
        "momentum": 0.5,
    }
    y, moved, cache = batchnorm_train_cached(x, None, None, bn_param, axis=case.axis)
    assert (y.shape, y.dtype) == (x.shape, F32)
    assert moved["running_mean"].tolist() == list(range(channels))
    assert moved["running_var"].tolist() == [c + 0.5 for c in range(channels)]
    dx, dgamma, dbeta = batchnorm_backward(x, cache)
    assert (dx.shape, dgamma.tolist(), dbeta.tolist()) == (x.shape, [0.0] * channels, [0.0] * channels)
    assert batchnorm_predict(x, None, None, moved, axis=case.axis).shape == x.shape


@DTYPES
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((37, 19), 1), ((9, 5, 7, 7), 1), ((9, 3, 3, 21), -1)],
    ids=["dense", "channels in the middle", "channels last"],
)
def test_a_single_sample_predicts_the_same_bits_alone_and_in_a_batch(shape, axis, dtype):
    x = sample(*shape, dtype=dtype, mean=100.0)
    channels = shape[axis]
    gamma, beta = np.linspace(0.5, 2, channels), np.linspace(-1, 1, channels)
    _, bn_param = batchnorm_train(x, gamma, beta, {}, axis=axis)
    together = batchnorm_predict(x, gamma, beta, bn_param, axis=axis)
    for i in range(len(x)):
        alone = batchnorm_predict(x[i : i + 1], gamma, beta, bn_param, axis=axis)
        close.same_bits("y", alone, together[i : i + 1])


# --- the layer --------------------------------------------------


def test_a_layer_does_what_the_functions_do():
    layer, bn_param = BatchNorm(5, eps=1e-3, momentum=0.5, axis=-1), {"eps": 1e-3, "momentum": 0.5}
    layer.gamma *= 1.5
    layer.beta = np.linspace(-1, 1, 5)
    for x in (sample(4, 6, 5), sample(3, 2, 5, mean=-1.0)):
        dy = np.cos(x)
        y, bn_param, cache = batchnorm_train_cached(x, layer.gamma, layer.beta, bn_param, axis=2)
        dx, dgamma, dbeta = batchnorm_backward(dy, cache)
        close.same_bits("y", layer.train(x), y)
        close.same_bits("dx", layer.backward(dy), dx)
        close.same_bits("dgamma", layer.dgamma, dgamma)
        close.same_bits("dbeta", layer.dbeta, dbeta)
        close.same_bits("mean", layer.running_mean, bn_param["running_mean"])
        close.same_bits("var", layer.running_var, bn_param["running_var"])
        predicted = batchnorm_predict(x, layer.gamma, layer.beta, bn_param, axis=2)
        close.same_bits("predict", layer.predict(x), predicted)


def test_a_new_layer_is_the_identity_but_for_the_normalization():
    layer = BatchNorm(3)
    start = [layer.gamma, layer.beta, layer.running_mean, layer.running_var, layer.dgamma, layer.dbeta]
    assert [t.tolist() for t in start] == [[v] * 3 for v in (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)]
    assert repr(layer) == "BatchNorm(3, eps=1e-05, momentum=0.9, axis=1)"


def test_prediction_moves_nothing():
    layer = BatchNorm(3)
    layer.train(sample(5, 3))
    mean, var = layer.running_mean.copy(), layer.running_var.copy()
    layer.predict(sample(5, 3, mean=50.0))
    close.same_bits("mean", layer.running_mean, mean)
    close.same_bits("var", layer.running_var, var)


def test_an_error_moves_nothing():
    layer = BatchNorm(3)
    layer.train(sample(5, 3))
    mean, var = layer.running_mean.copy(), layer.running_var.copy()
    for bad in (sample(1, 3), sample(5, 4), sample(5, 3).astype(int)):
        with pytest.raises((ValueError, TypeError)):
            layer.train(bad)
    close.same_bits("mean", layer.running_mean, mean)
    close.same_bits("var", layer.running_var, var)
    assert layer.backward(np.ones((5, 3), F32)).shape == (5, 3)  # of the last batch that was right


def test_a_layer_survives_pickling():
    layer, x = BatchNorm(3, momentum=0.5), sample(5, 3)
    layer.train(x)
    copy = pickle.loads(pickle.dumps(layer))
    close.same_bits("y", copy.predict(x), layer.predict(x))
    close.same_bits("dx", copy.backward(x), layer.backward(x))


def test_gradient_descent_on_gamma_and_beta_reaches_the_target():
    # y is to become 3 * x_hat + 7: a quadratic loss, so steps of a half end there at once but for eps
    layer, x = BatchNorm(2, eps=1e-12), sample(40, 2, dtype=F64)
    target = 3 * BatchNorm(2, eps=1e-12).train(x) + 7
    for _ in range(60):
        dy = layer.train(x) - target
        layer.backward(dy)
        layer.gamma -= 0.5 / len(x) * layer.dgamma
        layer.beta -= 0.5 / len(x) * layer.dbeta
    # the error halves at every step, from 7 by 2^-60; what is left is rounding of sums of forty values
    close.within("gamma", layer.gamma, [3.0, 3.0], 40 * U * 7)
    close.within("beta", layer.beta, [7.0, 7.0], 40 * U * 7)


# --- the population ---------------------------------------------


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


# --- bad input --------------------------------------------------


CALLS = {
    "batchnorm_train": lambda x: batchnorm_train(x, None, None, {}),
    "batchnorm_train_cached": lambda x: batchnorm_train_cached(x, None, None, {}),
    "batchnorm_predict": lambda x: batchnorm_predict(
        x, None, None, {"running_mean": [0] * 3, "running_var": [1] * 3}
    ),
    "BatchNorm.train": lambda x: BatchNorm(3).train(x),
    "BatchNorm.predict": lambda x: BatchNorm(3).predict(x),
    "Population.standardize": lambda x: Population().add(np.eye(3)).standardize(x),
}
EVERY_CALL = pytest.mark.parametrize("name", CALLS)


@EVERY_CALL
@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.ones((4, 3), int), "x of dtype float32 or float64, got int64. Use x.astype(np.float32)."),
        (
            np.ones((4, 3), np.float16),
            "x of dtype float32 or float64, got float16. Use x.astype(np.float32).",
        ),
        (np.ones((4, 3), bool), "x of dtype float32 or float64, got bool. Use x.astype(np.float32)."),
        (np.ones((4, 3), ">f4"), "x of dtype float32 or float64, got >f4. Use x.astype(np.float32)."),
        (
            np.ones((4, 3), complex),
            "x of dtype float32 or float64, got complex128. Normalize x.real and x.imag, each for itself.",
        ),
        (np.ones((4, 3), object), "x of dtype float32 or float64, got object. Use x.astype(np.float32)."),
        ([[1.0, 2.0, 3.0]] * 4, "x to be a NumPy array, got list. Use np.asarray(x, dtype=np.float32)."),
        (None, "x to be a NumPy array, got NoneType. Use np.asarray(x, dtype=np.float32)."),
        (
            np.ma.masked_less(np.ones((4, 3)), 0),
            "x to be a plain array, got a masked array. Fill in or leave out the masked values first.",
        ),
    ],
    ids=["int", "half", "bool", "byte order", "complex", "object", "list", "nothing", "masked"],
)
def test_other_types_say_what_to_do(name, x, said):
    for caught in (TypeError, DtypeError):
        with raises(caught, f"normwright.numpy.{name}: expected {said}"):
            CALLS[name](x)


@EVERY_CALL
def test_a_vector_or_a_number_is_no_batch(name):
    said = f"normwright.numpy.{name}: expected x to have a batch axis and a channel axis, got"
    with raises(ValueError, f"{said} 1-D x of shape (3,)."):
        CALLS[name](np.ones(3))
    with raises(ShapeError, f"{said} 0-D x of shape ()."):
        CALLS[name](np.ones(()))


def test_an_axis_that_x_lacks_raises():
    said = "normwright.numpy.batchnorm_train: expected axis"
    with raises(ShapeError, f"{said} from -2 to 1, got 2; x is (4, 3)."):
        batchnorm_train(sample(4, 3), None, None, {}, axis=2)
    with raises(TypeError, f"{said} to be an integer, got 1.0."):
        batchnorm_train(sample(4, 3), None, None, {}, axis=1.0)


@pytest.mark.parametrize("argument", ["gamma", "beta", "running_mean", "running_var"])
@pytest.mark.parametrize("call", [batchnorm_train, batchnorm_predict], ids=["train", "predict"])
def test_parameters_must_fit_the_channels(call, argument):
    given_values = dict.fromkeys(["gamma", "beta", "running_mean", "running_var"], np.ones(3))
    name = f"normwright.numpy.{call.__name__}"

    def run(values):
        p = {**given_values, argument: values}
        bn_param = {k: p[k] for k in ("running_mean", "running_var")}
        return call(sample(4, 3, 5), p["gamma"], p["beta"], bn_param)

    where = "x is (4, 3, 5) with channels on axis 1"
    for wrong in [(5,), (), (3, 1), (1,)]:
        with raises(ShapeError, f"{name}: expected {argument} of shape (3,), got {wrong}; {where}."):
            run(np.ones(wrong))
    with raises(TypeError, f"{name}: expected {argument} of real numbers, got dtype complex128."):
        run(np.ones(3, complex))
    with raises(TypeError, f"{name}: expected {argument} of real numbers, got dtype <U1."):
        run(["1", "2", "3"])


def test_objects_refuse_other_channels():
    x = sample(4, 2, 5)
    said = "expected x with 3 channels on axis 1, got 2; x is (4, 2, 5)."
    for call in ("train", "predict"):
        with raises(ShapeError, f"normwright.numpy.BatchNorm.{call}: {said}"):
            getattr(BatchNorm(3), call)(x)
    population = Population().add(np.eye(3))
    with raises(ShapeError, f"normwright.numpy.Population.standardize: {said}"):
        population.standardize(x)
    with raises(ShapeError, f"normwright.numpy.Population.add: {said.replace('x ', 'batch ')}"):
        population.add(x)
    with raises(
        ShapeError, "normwright.numpy.Population.merge: expected a population of 3 channels, got one of 2."
    ):
        population.merge(Population().add(x))
    assert population.count == 3


def test_one_value_per_channel_cannot_train():
    said = (
        "expected more than one value per channel in training, got 1; x is (1, 3) with channels on axis 1. "
        "Use a larger batch, or predict by running statistics."
    )
    with raises(ShapeError, f"normwright.numpy.batchnorm_train: {said}"):
        batchnorm_train(sample(1, 3), None, None, {})
    with raises(ShapeError, f"normwright.numpy.BatchNorm.train: {said}"):
        BatchNorm(3).train(sample(1, 3))


@pytest.mark.parametrize("eps", [0, -1e-5, float("nan")], ids=["zero", "negative", "NaN"])
def test_eps_must_be_positive(eps):
    said = f"expected eps > 0, got {eps!r}. The usual value is 1e-5."
    with raises(ShapeError, f"normwright.numpy.batchnorm_train: {said}"):
        batchnorm_train(sample(4, 3), None, None, {"eps": eps})
    with raises(ShapeError, f"normwright.numpy.BatchNorm: {said}"):
        BatchNorm(3, eps=eps)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")], ids=["negative", "above 1", "NaN"])
def test_momentum_must_be_a_weight(momentum):
    said = f"expected momentum from 0 to 1, got {momentum!r}. It weighs the OLD value; 0.9 is usual."
    with raises(ShapeError, f"normwright.numpy.batchnorm_train: {said}"):
        batchnorm_train(sample(4, 3), None, None, {"momentum": momentum})
    with raises(ShapeError, f"normwright.numpy.BatchNorm: {said}"):
        BatchNorm(3, momentum=momentum)


def test_running_statistics_come_in_pairs_and_are_needed_to_predict():
    x, call = sample(4, 3), "normwright.numpy.batchnorm_predict"
    both = f"{call}: expected running_mean and running_var, or neither, got"
    with raises(ShapeError, f"{both} running_mean without running_var."):
        batchnorm_predict(x, None, None, {"running_mean": [0] * 3})
    with raises(ShapeError, f"{both} running_var without running_mean."):
        batchnorm_predict(x, None, None, {"running_var": [1] * 3})
    said = (
        f"{call}: expected bn_param with running_mean and running_var, got the keys ['eps']. "
        "They are in the bn_param that batchnorm_train returns."
    )
    with raises(ShapeError, said):
        batchnorm_predict(x, None, None, {"eps": 1e-3})
    with raises(ShapeError, f"{call}: expected running_var >= 0, got -1.0."):
        batchnorm_predict(x, None, None, {"running_mean": [0] * 3, "running_var": [1, -1, 1]})
    with raises(TypeError, f"{call}: expected bn_param to be a dictionary, got NoneType."):
        batchnorm_predict(x, None, None, None)


def test_a_gradient_must_be_like_x():
    x, call = sample(4, 3), "normwright.numpy.batchnorm_backward"
    *_, cache = batchnorm_train_cached(x, None, None, {})
    assert isinstance(cache, Cache)
    with raises(ShapeError, f"{call}: expected dy of shape (4, 3), as x, got (3, 4)."):
        batchnorm_backward(x.T, cache)
    said = f"{call}: expected dy of dtype float32, as x, got float64. Use dy.astype(np.float32)."
    with raises(DtypeError, said):
        batchnorm_backward(x.astype(F64), cache)
    said = f"{call}: expected dy to be a NumPy array, got list. Use np.asarray(dy, dtype=np.float32)."
    with raises(DtypeError, said):
        batchnorm_backward([[1.0]], cache)
    with raises(DtypeError, f"{call}: expected cache from batchnorm_train_cached, got dict."):
        batchnorm_backward(x, {})


def test_calls_out_of_order_say_so():
    with raises(
        ShapeError, "normwright.numpy.BatchNorm.backward: expected a call of train before it, got none."
    ):
        BatchNorm(3).backward(sample(4, 3))
    none = "expected at least one value per channel, got none. Call add first."
    for population in (Population(), Population().add(np.ones((0, 3)))):
        assert population.count == 0
        for name in ("var", "std"):
            with raises(ShapeError, f"normwright.numpy.Population.{name}: {none}"):
                getattr(population, name)()
        with raises(ShapeError, f"normwright.numpy.Population.mean: {none}"):
            _ = population.mean
        with raises(ShapeError, f"normwright.numpy.Population.standardize: {none}"):
            population.standardize(sample(4, 3))
    with raises(ShapeError, "Moments.var: expected more than 1 values per channel with ddof=1, got 1."):
        Population().add(sample(1, 3)).var(ddof=1)
    with raises(
        DtypeError, "normwright.numpy.Population.merge: expected other to be a Population, got list."
    ):
        Population().merge([])


@pytest.mark.parametrize("count", [0, -2], ids=["none", "negative"])
def test_a_layer_needs_features(count):
    with raises(ShapeError, f"normwright.numpy.BatchNorm: expected num_features >= 1, got {count}."):
        BatchNorm(count)
    with pytest.raises(TypeError, match="integer"):
        BatchNorm(3.0)
