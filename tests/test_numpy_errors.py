"""What the NumPy door says of bad input, and that it leaves everything as it was."""

import re

import numpy as np
import pytest

from normwright.core.checks import DtypeError, ShapeError
from normwright.numpy import (
    Activation,
    BatchNorm,
    Cache,
    Population,
    batchnorm_backward,
    batchnorm_backward_residual,
    batchnorm_predict,
    batchnorm_train,
    batchnorm_train_cached,
)

F32, F64 = np.float32, np.float64


def sample(*shape, dtype=F32, mean=2.0):
    return (np.random.default_rng(11).standard_normal(shape) + mean).astype(dtype)


def raises(kind, words):
    return pytest.raises(kind, match="^" + re.escape(words) + "$")


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
        (
            np.ones((4, 3), int),
            "x of dtype float32, float64, float16 or bfloat16, got int64. Use x.astype(np.float32).",
        ),
        (
            np.ones((4, 3), np.longdouble),
            "x of dtype float32, float64, float16 or bfloat16, got "
            f"{np.dtype(np.longdouble)}. Use x.astype(np.float32).",
        ),
        (
            np.ones((4, 3), bool),
            "x of dtype float32, float64, float16 or bfloat16, got bool. Use x.astype(np.float32).",
        ),
        (
            np.ones((4, 3), ">f4"),
            "x of dtype float32, float64, float16 or bfloat16, got >f4. Use x.astype(np.float32).",
        ),
        (
            np.ones((4, 3), complex),
            "x of dtype float32, float64, float16 or bfloat16, got complex128. "
            "Normalize x.real and x.imag, each for itself.",
        ),
        (
            np.ones((4, 3), object),
            "x of dtype float32, float64, float16 or bfloat16, got object. Use x.astype(np.float32).",
        ),
        ([[1.0, 2.0, 3.0]] * 4, "x to be a NumPy array, got list. Use np.asarray(x, dtype=np.float32)."),
        (None, "x to be a NumPy array, got NoneType. Use np.asarray(x, dtype=np.float32)."),
        (
            np.ma.masked_less(np.ones((4, 3)), 0),
            "x to be a plain array, got a masked array. Fill in or leave out the masked values first.",
        ),
    ],
    ids=["int", "long double", "bool", "byte order", "complex", "object", "list", "nothing", "masked"],
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
    said = f"{call}: expected dy of dtype float32, as x, got float64. Use dy.astype(x.dtype)."
    with raises(DtypeError, said):
        batchnorm_backward(x.astype(F64), cache)
    said = f"{call}: expected dy to be a NumPy array, got list. Use np.asarray(dy, dtype=np.float32)."
    with raises(DtypeError, said):
        batchnorm_backward([[1.0]], cache)
    with raises(DtypeError, f"{call}: expected cache from batchnorm_train_cached, got dict."):
        batchnorm_backward(x, {})


WITH_WHAT_FOLLOWS = {
    "batchnorm_train": lambda x, **options: batchnorm_train(x, None, None, {}, **options),
    "batchnorm_train_cached": lambda x, **options: batchnorm_train_cached(x, None, None, {}, **options),
    "batchnorm_predict": lambda x, **options: batchnorm_predict(
        x, None, None, {"running_mean": [0] * 3, "running_var": [1] * 3}, **options
    ),
    "BatchNorm.train": lambda x, activation=None, **options: BatchNorm(3, activation=activation).train(
        x, **options
    ),
    "BatchNorm.predict": lambda x, activation=None, **options: BatchNorm(3, activation=activation).predict(
        x, **options
    ),
}


@pytest.mark.parametrize("name", WITH_WHAT_FOLLOWS)
def test_a_residual_must_be_like_x(name):
    x, call = sample(4, 3), f"normwright.numpy.{name}: expected"
    run = WITH_WHAT_FOLLOWS[name]
    with raises(ShapeError, f"{call} residual of shape (4, 3), as x, got (3,)."):
        run(x, residual=np.ones(3, F32))
    with raises(
        DtypeError, f"{call} residual of dtype float32, as x, got float64. Use residual.astype(x.dtype)."
    ):
        run(x, residual=x.astype(F64))
    said = "residual to be a NumPy array, got float. Use np.asarray(residual, dtype=np.float32)."
    with raises(DtypeError, f"{call} {said}"):
        run(x, residual=1.0)


@pytest.mark.parametrize("name", WITH_WHAT_FOLLOWS)
def test_an_unknown_activation_says_which_are_known(name):
    call = f"normwright.numpy.{name}".replace("BatchNorm.train", "BatchNorm").replace(
        "BatchNorm.predict", "BatchNorm"
    )
    run = WITH_WHAT_FOLLOWS[name]
    with pytest.raises(ValueError, match=f"^{call}: expected activation to be one of elu, .*, got 'rleu'"):
        run(sample(4, 3), activation="rleu")
    with raises(TypeError, f"{call}: expected activation to be a name or None, got 1."):
        run(sample(4, 3), activation=1)
    with raises(ValueError, f"{call}: expected leaky_relu with a slope >= 0, got -1."):
        run(sample(4, 3), activation=Activation("leaky_relu", -1.0))


@pytest.mark.parametrize("name", ["batchnorm_predict", "BatchNorm.predict"])
def test_a_place_for_the_result_must_be_like_x_and_writable(name):
    x, call = sample(4, 3), f"normwright.numpy.{name}: expected"
    run = WITH_WHAT_FOLLOWS[name]
    with raises(ShapeError, f"{call} out of shape (4, 3), as x, got (3, 4)."):
        run(x, out=np.zeros((3, 4), F32))
    with raises(DtypeError, f"{call} out of dtype float32, as x, got float64. Use out.astype(x.dtype)."):
        run(x, out=np.zeros((4, 3)))
    place = np.zeros((4, 3), F32)
    place.flags.writeable = False
    with raises(ShapeError, f"{call} out that can be written, got a read-only array."):
        run(x, out=place)


def test_a_gradient_to_a_residual_needs_one():
    x, call = sample(4, 3), "normwright.numpy.batchnorm_backward_residual"
    *_, cache = batchnorm_train_cached(x, None, None, {}, activation="relu")
    with raises(ShapeError, f"{call}: expected cache of a forward pass with a residual, got one without."):
        batchnorm_backward_residual(x, cache)
    with raises(DtypeError, f"{call}: expected cache from batchnorm_train_cached, got dict."):
        batchnorm_backward_residual(x, {})


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
