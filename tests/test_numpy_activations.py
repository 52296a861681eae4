"""The NumPy door with what follows normalization, and with half types: values, memory, and what stays as it was."""

import gc
import pickle
import weakref

import ml_dtypes
import numpy as np
import pytest

import close
from cases import AFTER, CASES, TRAINABLE
from normwright.kernels.activations import activated
from normwright.numpy import (
    Activation,
    BatchNorm,
    Gradients,
    Population,
    batchnorm_backward,
    batchnorm_backward_residual,
    batchnorm_predict,
    batchnorm_train,
    batchnorm_train_cached,
)

F32, F64, F16, BF16 = np.float32, np.float64, np.float16, ml_dtypes.bfloat16
EPS = 1e-5


def sample(*shape, dtype=F32, seed=11):
    return (np.random.default_rng(seed).standard_normal(shape) + 0.5).astype(dtype)


def options_of(case, dtype):
    return dict(zip(("activation", "residual"), case.after(dtype), strict=True))


FITTING = [(case, dtype) for dtype in (F32, F64, F16, BF16) for case in TRAINABLE if case.fits(dtype)]


@pytest.mark.parametrize(
    ("case", "dtype"), FITTING, ids=lambda value: getattr(value, "name", value.__class__.__name__)
)
def test_training_and_prediction_give_the_reference_values(case, dtype):
    x, dy, (gamma, beta), axis = case.make(dtype), case.make_dy(dtype), case.parameters(F32), case.axis
    options = options_of(case, dtype)
    y, _, cache = batchnorm_train_cached(x, gamma, beta, {}, axis=axis, **options)
    close.forward_train(y, x, gamma, beta, EPS, axis, **options)
    if options["residual"] is None:
        gradients = batchnorm_backward(dy, cache)
    else:
        gradients = batchnorm_backward_residual(dy, cache)
        for name, got, want in zip(
            gradients._fields, batchnorm_backward(dy, cache), gradients[:3], strict=False
        ):
            close.same_bits(name, got, want)
    close.backward_train(gradients, dy, x, gamma, EPS, axis, beta=beta, **options)
    mean, var = beta * 3.0 - 1, gamma.astype(F64) ** 2
    y = batchnorm_predict(x, gamma, beta, {"running_mean": mean, "running_var": var}, axis=axis, **options)
    close.forward_fixed(y, x, gamma, beta, mean, var, EPS, axis, **options)


def test_by_hand():
    # 1, 3, 5, 7: mean 4, variance 5; with eps 4 x_hat is -1, -1/3, 1/3, 1; z is 6 x_hat + the residual
    x, residual = np.array([[1.0], [3.0], [5.0], [7.0]]), np.array([[4.0], [3.0], [5.0], [-7.0]])
    given = (x, [6.0], None, {"eps": 4.0})
    y, _, cache = batchnorm_train_cached(*given, activation="relu6", residual=residual)
    assert y.ravel().tolist() == [0.0, 1.0, 6.0, 0.0]  # of -2, 1, 7, -1
    got = batchnorm_backward_residual(np.array([[1.0], [3.0], [1.0], [1.0]]), cache)
    assert isinstance(got, Gradients)
    assert got.dresidual.ravel().tolist() == [0.0, 3.0, 0.0, 0.0]
    assert (got.dgamma.round(14).tolist(), got.dbeta.tolist()) == ([-1.0], [3.0])


@pytest.mark.parametrize("activation", AFTER, ids=str)
def test_an_activation_in_the_call_is_the_activation_behind_it(activation):
    x = sample(6, 3, 4)
    z, bn_param = batchnorm_train(x, [2, -1, 0.5], [0, 1, 0.1], {})
    y, moved = batchnorm_train(x, [2, -1, 0.5], [0, 1, 0.1], {}, activation=activation)
    want = activated(z.astype(F64), activation)
    # z is the same float; a few roundings of the activation's own, of values below ten
    close.within("y", y, want, 16 * 2.0**-24 * (np.abs(want) + 0.1))
    close.same_bits("mean", moved["running_mean"], bn_param["running_mean"])


def test_names_and_activations_mean_the_same():
    x = sample(6, 3)
    for name, activation in [
        ("relu6", Activation("hardtanh", 0.0, 6.0)),
        ("leaky_relu", Activation("leaky_relu", 0.01)),
        ("swish", Activation("silu")),
    ]:
        want = batchnorm_train(x, None, None, {}, activation=activation)[0]
        close.same_bits(name, batchnorm_train(x, None, None, {}, activation=name)[0], want)
    for nothing in ("identity", None):
        close.same_bits(
            "y",
            batchnorm_train(x, None, None, {}, activation=nothing)[0],
            batchnorm_train(x, None, None, {})[0],
        )


def test_without_an_activation_the_residuals_gradient_is_dy():
    x, dy = sample(6, 3), sample(6, 3, seed=1)
    y, _, cache = batchnorm_train_cached(x, None, None, {}, residual=dy)
    close.forward_train(y, x, None, None, EPS, 1, residual=dy)
    got = batchnorm_backward_residual(dy, cache)
    assert got.dresidual is dy
    *_, plain = batchnorm_train_cached(x, None, None, {})
    for name, other, expected in zip(got._fields, got, batchnorm_backward(dy, plain), strict=False):
        close.same_bits(name, other, expected)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "relu6", None])
def test_a_cache_does_not_hold_a_residual_that_bits_can_tell_of(name):
    residual = sample(6, 3)
    gone = weakref.ref(residual)
    want = batchnorm_train_cached(sample(6, 3, seed=2), None, None, {}, activation=name, residual=residual)[2]
    from normwright.kernels import NATIVE

    del residual
    gc.collect()
    assert (gone() is None) == (NATIVE or name is None)
    assert batchnorm_backward_residual(sample(6, 3, seed=3), want).dresidual.shape == (6, 3)


def test_a_residual_may_be_x_and_lie_anyhow_in_memory():
    x, dy = sample(4, 3, 5, 6), sample(4, 3, 5, 6, seed=1)
    plain = sample(4, 3, 5, 6, seed=2)
    for residual in (plain, x):
        *_, cache = batchnorm_train_cached(x, None, None, {}, activation="gelu", residual=residual.copy())
        want = batchnorm_backward_residual(dy, cache)
        for arrange in (
            np.asfortranarray,
            lambda t: np.repeat(t, 2, axis=3)[..., ::2],
            lambda t: t[::-1][::-1],
        ):
            *_, cache = batchnorm_train_cached(
                x, None, None, {}, activation="gelu", residual=arrange(residual)
            )
            for name, got, expected in zip(
                want._fields, batchnorm_backward_residual(dy, cache), want, strict=True
            ):
                close.same_bits(name, got, expected)


# --- out -------------------------------------------------------


def predicted(x, **options):
    bn_param = {"running_mean": [0.1, 0.2, 0.3], "running_var": [1.0, 2.0, 3.0]}
    return batchnorm_predict(x, [1, 2, 3], [0, 0.5, 1], bn_param, activation="silu", **options)


PLACES = {
    "another array": lambda x, residual: np.zeros_like(x),
    "x itself": lambda x, residual: x,
    "the residual": lambda x, residual: residual,
    "other memory order": lambda x, residual: np.zeros_like(x, order="F"),
    "strided": lambda x, residual: np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2],
}


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16])
@pytest.mark.parametrize("place", PLACES)
def test_a_prediction_is_written_where_it_is_asked_for(place, dtype):
    x, residual = sample(4, 3, 5, dtype=dtype), sample(4, 3, 5, dtype=dtype, seed=1)
    want = predicted(x, residual=residual)
    out = PLACES[place](x, residual)
    before = x.copy(), residual.copy()
    assert predicted(x, residual=residual, out=out) is out
    close.same_bits("y", np.ascontiguousarray(out), want)
    for array, then in zip((x, residual), before, strict=True):
        if array is not out:
            close.same_bits("input", array, then)


@pytest.mark.parametrize("shift", [1, 3, -2])
def test_an_output_that_partly_lies_over_x_is_right(shift):
    room = sample(20, 3)
    x, out = room[4:14], room[4 + shift : 14 + shift]
    want = predicted(x.copy())
    assert predicted(x, out=out) is out
    close.same_bits("y", out, want)


def test_a_slice_of_channels_is_predicted_in_place():
    whole = sample(4, 8, 5)
    x = whole[:, 2:5]
    want, around = predicted(x), np.delete(whole, [2, 3, 4], axis=1)
    predicted(x, out=x)
    close.same_bits("y", np.ascontiguousarray(whole[:, 2:5]), want)
    close.same_bits("around", np.delete(whole, [2, 3, 4], axis=1), around)


# --- half types ------------------------------------------------


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_half_types_in_and_out_and_statistics_in_float64(dtype):
    x = sample(6, 3, 4, dtype=dtype)
    gamma, beta = np.array([1, 2, 3], dtype), np.array([0.5, 0.25, 0], dtype)
    y, bn_param, cache = batchnorm_train_cached(x, gamma, beta, {}, activation="relu", residual=x)
    got = batchnorm_backward_residual(x, cache)
    predicted = batchnorm_predict(x, gamma, beta, bn_param)
    assert [t.dtype for t in (y, got.dx, got.dresidual, predicted)] == [dtype] * 4
    per_channel = [got.dgamma, got.dbeta, bn_param["running_mean"], bn_param["running_var"]]
    assert [(t.dtype, t.shape) for t in per_channel] == [(F64, (3,))] * 4
    # a half type is computed in float32 and rounded once: to the bit, but for what float32 leaves open
    wide = batchnorm_train(x.astype(F32), gamma, beta, {}, activation="relu", residual=x.astype(F32))[0]
    close.same_bits("y", y, wide.astype(dtype))


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_a_population_takes_half_types(dtype):
    x = sample(600, 4, dtype=dtype)
    wide = Population().add(x.astype(F32))
    population = Population().add(x)
    close.same_bits("mean", population.mean, wide.mean)
    close.same_bits("var", population.var(), wide.var())
    close.same_bits("z", population.standardize(x), wide.standardize(x.astype(F32)).astype(dtype))


# --- the layer -------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "silu", None])
def test_a_layer_does_what_the_functions_do(activation):
    layer = BatchNorm(3, activation=activation)
    layer.gamma *= 1.5
    x, residual, dy = (sample(5, 3, 2, seed=n) for n in range(3))
    y, bn_param, cache = batchnorm_train_cached(
        x, layer.gamma, layer.beta, {}, activation=activation, residual=residual
    )
    want = batchnorm_backward_residual(dy, cache)
    close.same_bits("y", layer.train(x, residual), y)
    close.same_bits("dx", layer.backward(dy), want.dx)
    for name in ("dgamma", "dbeta", "dresidual"):
        close.same_bits(name, getattr(layer, name), getattr(want, name))
    predicted = batchnorm_predict(x, layer.gamma, None, bn_param, activation=activation, residual=residual)
    close.same_bits("predict", layer.predict(x, residual), predicted)
    place = x.copy()
    assert layer.predict(place, residual, out=place) is place
    close.same_bits("predict", place, predicted)
    layer.train(x)
    layer.backward(dy)
    assert layer.dresidual is None  # of the last training step


def test_a_layer_tells_its_activation_and_survives_pickling():
    layer, x = BatchNorm(3, activation="leaky_relu"), sample(5, 3)
    assert layer.activation == Activation("leaky_relu", 0.01)
    assert repr(layer) == "BatchNorm(3, eps=1e-05, momentum=0.9, axis=1, activation=leaky_relu)"
    layer.train(x, x)
    copy = pickle.loads(pickle.dumps(layer))
    close.same_bits("y", copy.predict(x, x), layer.predict(x, x))
    close.same_bits("dx", copy.backward(x), layer.backward(x))
    close.same_bits("dresidual", copy.dresidual, layer.dresidual)


@pytest.mark.parametrize("case", [c for c in CASES if c.count == 0], ids=lambda case: case.name)
def test_a_batch_of_none_has_an_empty_gradient_to_its_residual(case):
    x = case.make(F32)
    for name in ("relu", "silu", None):
        *_, cache = batchnorm_train_cached(x, None, None, {}, axis=case.axis, activation=name, residual=x)
        got = batchnorm_backward_residual(x, cache)
        assert (got.dx.shape, got.dresidual.shape) == (x.shape, x.shape)
        assert not got.dgamma.any()
