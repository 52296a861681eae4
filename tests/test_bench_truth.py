"""Who computes something else is told so: each kind of wrong value must be refused, NaN included."""

from dataclasses import replace

import numpy as np
import pytest

from normwright.bench.timer import WrongValues
from normwright.bench.truth import PROMISED, RATE, Results, Truth, summed_in_float32
from normwright.kernels import reference

EPS = 1e-5
CHANNELS, COUNT = 5, 300
DRAW = np.random.default_rng(0)
X, DY = (DRAW.standard_normal((CHANNELS, COUNT)).astype(np.float32) + np.float32(0.5) for _ in range(2))
GAMMA, BETA = (DRAW.uniform(0.5, 1.5, CHANNELS).astype(np.float32) for _ in range(2))
TRUTH = Truth(X, DY, GAMMA, BETA, EPS)
LOOSE = summed_in_float32(COUNT)


def right():
    """The reference's results, rounded once."""
    y, saved = reference.forward_train(X, GAMMA, BETA, EPS, 0)
    gradients = reference.backward_train(DY, X, GAMMA, saved, 0)
    var = saved.m2 / (COUNT - 1)
    values = (y, RATE * saved.mean, 1 - RATE + RATE * var, *gradients)
    return Results(*(value.astype(np.float32) for value in values))


def nan(values):
    values = values.copy()
    values[(-1,) * values.ndim] = np.nan
    return values


def zero(values):
    values = values.copy()
    values[(-1,) * values.ndim] = 0
    return values


@pytest.mark.parametrize("allowed", [PROMISED, LOOSE], ids=["promised", "loose"])
def test_rounded_once_is_right_and_what_was_not_computed_is_not_looked_at(allowed):
    TRUTH.check("someone", right(), allowed)
    TRUTH.check("someone", replace(right(), dx=None, dgamma=None, dbeta=None), allowed)


@pytest.mark.parametrize("allowed", [PROMISED, LOOSE], ids=["promised", "loose"])
@pytest.mark.parametrize(
    "change", [nan, zero, lambda v: -v, lambda v: 1.01 * v], ids=["nan", "0", "-", "1 %"]
)
@pytest.mark.parametrize("what", ["y", "dx", "dgamma", "dbeta", "running_mean", "running_var"])
def test_one_wrong_value_of_any_result_is_refused_by_name(what, change, allowed):
    got = right()
    wrong = replace(got, **{what: change(getattr(got, what))})
    with pytest.raises(WrongValues, match=rf"^someone: \d+ of \d+ values of {what} are wrong .* not timed"):
        TRUTH.check("someone", wrong, allowed)


def test_the_promise_tells_the_unbiased_variance_and_another_eps_from_rounding():
    _, saved = reference.forward_train(X, GAMMA, BETA, EPS, 0)
    for var, eps in ((saved.m2 / (COUNT - 1), EPS), (saved.m2 / COUNT, 2 * EPS)):
        y = reference.forward_fixed(X, GAMMA, BETA, saved.mean, var, eps, 0).astype(np.float32)
        with pytest.raises(WrongValues, match="values of y"):
            TRUTH.check("someone", replace(right(), y=y), PROMISED)


def test_more_channels_than_are_looked_at_together_are_all_looked_at(monkeypatch):
    monkeypatch.setattr("normwright.bench.truth.VALUES_AT_ONCE", 2 * COUNT)
    truth = Truth(X, DY, GAMMA, BETA, EPS)
    truth.check("someone", right(), PROMISED)
    for channel in range(CHANNELS):
        wrong = right()
        wrong.dx[channel, 7] += 1
        with pytest.raises(WrongValues, match="values of dx"):
            truth.check("someone", wrong, PROMISED)
