"""The promises of the NumPy door, each with its values."""

import pickle

import numpy as np
import pytest

import close
from cases import CASES, FINITE, TRAINABLE
from normwright.numpy import (
    BatchNorm,
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
