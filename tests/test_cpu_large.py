"""Tensors of more than 2^31 bytes: what comes last is as right as what comes first."""

import numpy as np
import pytest

import close
from every_kernel import EPS
from normwright.core.moments import Moments
from normwright.kernels import NATIVE

if not NATIVE:
    pytest.skip("this package was built without native kernels", allow_module_level=True)

from normwright.core.activation import Activation
from normwright.kernels import cpu

RELU = Activation("relu")
BEYOND = 2**31 // 4 + 2**20  # values of float32: more than 2^31 bytes
SHAPES = {  # a reason each
    "rows": (BEYOND // 63, 63),  # an offset is rows times channels
    "maps": (3, 2, BEYOND // 6),  # one run is longer than 2^28 values
}


@pytest.fixture(params=SHAPES)
def large(request):
    """Values that repeat, so that they are made fast; the last ones are others."""
    shape = SHAPES[request.param]
    x = np.resize(np.random.default_rng(0).standard_normal(2**20 - 3).astype(np.float32), shape)
    x[-1] += 1
    return x


@pytest.mark.slow
def test_beyond_two_gigabytes_every_value_has_its_place(large):
    assert large.nbytes > 2**31
    half = len(large) // 2
    parts = [cpu.moments(part, 1) for part in (large[:half], large[half:])]
    whole = parts[0].merge(parts[1])
    y, saved = cpu.forward_train(large, None, None, EPS, 1, RELU)
    assert saved.count == whole.count == large.size // large.shape[1]
    # merging in another order rounds otherwise, in double
    close.within("mean", saved.mean, whole.mean, 1e-13)
    close.within(
        "m2", saved.m2, whole.m2, 2.0**-23 * whole.m2
    )  # squares are rounded in float32, eight at a time
    del y
    # by fixed statistics a value does not depend on where it stands
    mean, var = whole.mean, Moments(whole.count, whole.mean, whole.m2).var()
    y = cpu.forward_fixed(large, None, None, mean, var, EPS, 1, RELU)
    for some in (slice(0, 1), slice(-1, None)):
        close.same_bits("y", y[some], cpu.forward_fixed(large[some], None, None, mean, var, EPS, 1, RELU))
    dx = cpu.backward_fixed(y, large, None, None, mean, var, EPS, 1, RELU).dx
    for some in (slice(0, 1), slice(-1, None)):
        alone = cpu.backward_fixed(y[some], large[some], None, None, mean, var, EPS, 1, RELU).dx
        close.same_bits("dx", dx[some], alone)
