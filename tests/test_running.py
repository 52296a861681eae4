"""The rule by which running statistics move: the rate weighs the new, and may forget the beginning."""

from fractions import Fraction

import numpy as np
import pytest

import close
from normwright.core.running import debiased, update


@pytest.mark.parametrize(
    ("rate", "want"),
    [(0.0, 4.0), (1.0, 8.0), (0.25, 5.0)],
    ids=["a rate of 0 keeps the old", "a rate of 1 takes the new", "rate weighs the new"],
)
def test_rate_is_the_weight_of_the_new_batch(rate, want):
    assert update(4.0, 8.0, rate) == want
    running = np.array([4.0])
    assert update(running, np.array([8.0]), rate).tolist() == [want]
    assert running.tolist() == [4.0]


def test_a_rate_of_one_over_k_gives_the_mean_of_all_batches():
    batches = [3.0, 9.0, 27.0, 1.0]
    running = 0.0
    for k, batch in enumerate(batches, start=1):
        running = update(running, batch, 1 / k)
    close.within("running", running, 10.0, 8 * 2**-53 * 10)  # eight roundings of values up to ten


RATES = [0.1, 0.5, 0.3, 1e-3, 1e-9, 0.999]


@pytest.mark.parametrize("rate", RATES)
def test_a_debiased_rate_is_right_to_rounding(rate):
    exact, kept = Fraction(rate), 1 - Fraction(rate)
    for k in (1, 2, 3, 10, 1000):
        want = float(exact / (1 - kept**k))
        # log1p, expm1, a product, a quotient, a sum of two positive terms, 1 over it
        close.within("rate", debiased(rate, k), want, 8 * 2**-53 * want)
        in_float32 = debiased(rate, np.float32(k), np.expm1)
        assert type(in_float32) is np.float32
        close.within("in float32", in_float32, want, 8 * 2**-24 * want)


@pytest.mark.parametrize("rate", [*RATES, 1.0])
def test_the_first_debiased_rate_is_one_and_the_last_the_rate_itself(rate):
    assert debiased(rate, 1) == debiased(rate, np.float32(1), np.expm1) == 1
    close.within("rate", debiased(rate, 10**15), rate, 4 * 2**-53 * rate)


def test_a_debiased_average_forgets_where_it_began_and_weighs_as_the_other():
    batches, began = [3.0, 9.0, 27.0, 1.0], 1e6
    debiased_one, plain = began, began
    for k, batch in enumerate(batches, start=1):
        debiased_one, plain = update(debiased_one, batch, debiased(0.2, k)), update(plain, batch, 0.2)
    want = (plain - 0.8**4 * began) / (1 - 0.8**4)
    close.within("running", debiased_one, want, 64 * 2**-53 * began)  # `want` cancels what began


def test_a_rate_of_0_moves_nothing_debiased_or_not():
    assert [debiased(0.0, k) for k in (1, 2, 10)] == [0.0, 0.0, 0.0]
