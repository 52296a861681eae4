"""Who computes something else is told so: each kind of wrong value must be refused, NaN included."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from normwright.bench.timer import WrongValues
from normwright.bench.truth import (
    RATE,
    UNITS,
    VALUES_COMPARED,
    Inputs,
    Results,
    Truth,
    promised,
    sample,
    summed_plainly,
)
from normwright.kernels import reference

EPS = 1e-5
CHANNELS, COUNT = 5, 300
TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float64": np.float64}
OPS = {"bn": (False, False), "bn+relu": (True, False), "bn+add+relu": (True, True)}


def inputs(op, dtype="float32"):
    """Values of the type, in which the reference is wide."""
    draw = np.random.default_rng(0)
    wide = np.longdouble if dtype == "float64" else np.float64
    x, dy, residual = (
        (draw.standard_normal((CHANNELS, COUNT)) + 0.5).astype(TYPES[dtype]).astype(wide) for _ in range(3)
    )
    gamma, var = (draw.uniform(0.5, 1.5, CHANNELS).astype(np.float32).astype(wide) for _ in range(2))
    beta, mean = (draw.standard_normal(CHANNELS).astype(np.float32).astype(wide) for _ in range(2))
    relu, adds = OPS[op]
    return Inputs(x, dy, gamma, beta, mean, var, EPS, residual if adds else None, relu)


def right(given, dtype="float32"):
    """The results of a training step, rounded once: parameters' to float32, or to float64 in float64."""

    def rounded(values, to):
        return None if values is None else values.astype(to).astype(given.x.dtype)

    relu = reference.Activation("relu") if given.relu else None
    y, saved = reference.forward_train(given.x, given.gamma, given.beta, EPS, 0, relu, given.residual)
    found = reference.backward_train(
        given.dy, given.x, given.gamma, given.beta, saved, 0, relu, given.residual
    )
    of_x, of_channels = TYPES[dtype], np.float64 if dtype == "float64" else np.float32
    running = RATE * saved.mean, 1 - RATE + RATE * saved.m2 / (given.x.shape[1] - 1)
    return Results(
        rounded(y, of_x),
        *(rounded(values, of_channels) for values in running),
        rounded(found.dx, of_x),
        rounded(found.dgamma, of_channels),
        rounded(found.dbeta, of_channels),
        rounded(found.dresidual, of_x),
    )


def bounds(dtype="float32"):
    return {"promised": promised(dtype), "loose": summed_plainly(COUNT, dtype)}


def nan(values):
    values = values.copy()
    values[(-1,) * values.ndim] = np.nan
    return values


def flipped(values):
    """The largest value with the other sign, and moved where it is near 0."""
    values = values.copy()
    at = np.unravel_index(np.abs(values).argmax(), values.shape)
    values[at] = -values[at]
    return values


@pytest.mark.parametrize("allowed", ["promised", "loose"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("op", OPS)
def test_rounded_once_is_right_and_what_was_not_computed_is_not_looked_at(op, dtype, allowed):
    given = inputs(op, dtype)
    truth, got, allowed = Truth(given), right(given, dtype), bounds(dtype)[allowed]
    truth.check("someone", got, allowed)
    truth.check("someone", replace(got, dx=None, dgamma=None, dbeta=None, dresidual=None), allowed)


@pytest.mark.parametrize("allowed", ["promised", "loose"])
@pytest.mark.parametrize(
    "change", [nan, flipped, lambda v: -v, lambda v: 1.01 * v], ids=["nan", "one", "-", "1 %"]
)
@pytest.mark.parametrize("what", ["y", "dx", "dgamma", "dbeta", "dresidual", "running_mean", "running_var"])
def test_one_wrong_value_of_any_result_is_refused_by_name(what, change, allowed):
    given = inputs("bn+add+relu")
    got = right(given)
    wrong = replace(got, **{what: change(getattr(got, what))})
    with pytest.raises(WrongValues, match=rf"^someone: \d+ of \d+ values of {what} are wrong .* not timed"):
        Truth(given).check("someone", wrong, bounds()[allowed])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("what", ["y", "dx"])
def test_a_half_rounded_twice_as_coarsely_breaks_the_promise(what, dtype):
    given = inputs("bn+relu", dtype)
    got = right(given, dtype)
    coarse = getattr(got, what) * (1 + 3 * UNITS[dtype])
    with pytest.raises(WrongValues, match=f"values of {what}"):
        Truth(given).check("someone", replace(got, **{what: coarse}), promised(dtype))


def test_the_promise_tells_the_unbiased_variance_and_another_eps_from_rounding():
    given = inputs("bn")
    truth, got = Truth(given), right(given)
    _, saved = reference.forward_train(given.x, given.gamma, given.beta, EPS, 0)
    for var, eps in ((saved.m2 / (COUNT - 1), EPS), (saved.m2 / COUNT, 2 * EPS)):
        y = reference.forward_fixed(given.x, given.gamma, given.beta, saved.mean, var, eps, 0)
        with pytest.raises(WrongValues, match="values of y"):
            truth.check("someone", replace(got, y=y.astype(np.float32)), promised("float32"))


@pytest.mark.parametrize("allowed", ["promised", "loose"])
@pytest.mark.parametrize("op", OPS)
def test_inference_is_held_to_the_given_statistics(op, allowed):
    given = inputs(op)
    relu = reference.Activation("relu") if given.relu else None
    fixed = given.gamma, given.beta, given.mean, given.var
    y = reference.forward_fixed(given.x, *fixed, EPS, 0, relu, given.residual).astype(np.float32)
    truth, allowed = Truth(given), bounds()[allowed]
    truth.check_inference("someone", y, allowed)
    for wrong in (nan(y), flipped(y), right(given).y):
        with pytest.raises(WrongValues, match=r"^someone: .* values of y are wrong"):
            truth.check_inference("someone", wrong, allowed)


def corner(beta):
    """A channel of two values, 0 and 1, whose z is 0 at the first, but for rounding: beta is |x_hat|."""
    one = np.ones(1)
    return Inputs(
        np.array([[0.0, 1.0]]), np.array([[3.0, 5.0]]), one, one * beta, 0 * one, one, EPS, relu=True
    )


@pytest.mark.parametrize("allowed", ["promised", "loose"])
def test_where_rounding_decides_whether_relu_lets_pass_either_is_right(allowed):
    given = corner(0.5 / np.sqrt(0.25 + EPS))
    for beta in (given.beta * (1 - 1e-12), given.beta * (1 + 1e-12)):
        decided = replace(given, beta=beta)
        passes = right(decided).dbeta
        assert passes == (8 if beta > given.beta else 5)
        for reference_ in (given, replace(given, beta=given.beta * (1 - 1e-12))):
            Truth(reference_).check("someone", right(decided), bounds()[allowed])


@pytest.mark.parametrize("allowed", ["promised", "loose"])
def test_where_nothing_is_near_the_corner_a_value_let_pass_is_wrong(allowed):
    given = corner(0.9)
    let_pass = replace(right(given), dbeta=right(corner(1.1)).dbeta)
    with pytest.raises(WrongValues, match="values of dbeta"):
        Truth(given).check("someone", let_pass, bounds()[allowed])


def test_of_large_tensors_a_sample_of_channels_is_compared_with_the_first_and_the_last():
    assert list(sample(5, 300)) == [0, 1, 2, 3, 4]
    some = sample(64, VALUES_COMPARED // 10)
    assert len(some) == 10
    assert (some[0], some[-1]) == (0, 63)
    assert list(sample(3, VALUES_COMPARED * 2)) == [0]
