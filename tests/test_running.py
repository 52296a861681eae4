"""The rule by which running statistics move: which side the rate weighs."""

import numpy as np
import pytest

import close
from normwright.core.running import update


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
