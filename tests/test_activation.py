"""Activations by name, and their definitions: against exact digits, at corners, far out, and for NaN."""

import re

import numpy as np
import pytest

import close
from cases import AFTER
from normwright.core.activation import KINDS, NAMES, Activation, parse
from normwright.core.checks import DtypeError, ShapeError
from normwright.kernels.activations import activated, gradient, slope

WIDE = pytest.mark.parametrize("dtype", [np.float64, np.longdouble])


def raises(kind, words):
    return pytest.raises(kind, match="^" + re.escape(words))


# --- names -----------------------------------------------------


def test_every_name_means_an_activation_of_a_known_kind():
    for name, activation in NAMES.items():
        assert KINDS[activation.number] == activation.kind
        assert parse("f", name) == (None if name == "identity" else activation)
        assert parse("f", activation) == parse("f", name)
    assert {activation.kind for activation in NAMES.values()} == set(KINDS)
    assert parse("f", None) is None
    assert parse("f", "relu6") == Activation("hardtanh", 0.0, 6.0)


@pytest.mark.parametrize(
    ("activation", "said"),
    [
        (Activation("relu"), "relu"),
        (Activation("leaky_relu", 0.01), "leaky_relu"),
        (Activation("leaky_relu", 0.3), "leaky_relu(0.3)"),
        (Activation("hardtanh", 0.0, 6.0), "hardtanh(0, 6)"),
        (Activation("elu", 2.0), "elu(2)"),
    ],
)
def test_an_activation_says_its_numbers_where_they_are_not_the_usual_ones(activation, said):
    assert str(activation) == said


def test_bits_tell_of_those_whose_derivative_has_two_values():
    z = np.linspace(-8, 8, 4001)
    for activation in AFTER[1:]:
        two_values = len(np.unique(slope(z, activation))) == 2
        assert activation.is_told_by_a_bit == two_values, activation


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (
            "rleu",
            ShapeError,
            "f: expected activation to be one of elu, gelu, gelu_pytorch_tanh, gelu_tanh, hard",
        ),
        (1, DtypeError, "f: expected activation to be a name or None, got 1."),
        (np.tanh, DtypeError, "f: expected activation to be a name or None, got <ufunc 'tanh'>."),
        (Activation("softplus"), ShapeError, "f: expected activation of a kind among identity, relu, "),
        (
            Activation("hardtanh", 1.0, 1.0),
            ShapeError,
            "f: expected hardtanh from a to a larger b, got 1 and 1.",
        ),
        (Activation("leaky_relu", -0.1), ShapeError, "f: expected leaky_relu with a slope >= 0, got -0.1."),
        (
            Activation("leaky_relu", float("nan")),
            ShapeError,
            "f: expected leaky_relu with a slope >= 0, got nan.",
        ),
        (Activation("elu", float("inf")), ShapeError, "f: expected elu with alpha >= 0, got inf."),
    ],
)
def test_what_is_no_activation_says_so(given, kind, words):
    with raises(kind, words):
        parse("f", given)


# --- values ----------------------------------------------------

# Value and derivative, computed to forty digits with mpmath.
DIGITS = [
    ("silu", -20, "-4.122307236380407162862e-8", "-3.916191866064678329162e-8"),
    ("silu", -2.75, "-0.1652382879785209605542", "-0.09522302259939602050228"),
    ("silu", -0.125, "-0.05859882832828046784437", "0.4376623797495415585083"),
    ("silu", 3.25, "3.128687616131579254357", "1.079457282838186956228"),
    ("gelu", -20, "-5.507248237212467390151e-88", "-1.101436048313346404221e-86"),
    ("gelu", -2.75, "-0.008194348896400031074309", "-0.02202753364432083836336"),
    ("gelu", -0.125, "-0.05628272189623588837759", "0.4007820643017934215044"),
    ("gelu", 3.25, "3.248124668612230007111", "1.00601738114383347826"),
    ("gelu_tanh", -20, "-3.375450956311061949636e-261", "-2.942432872494585212726e-259"),
    ("gelu_tanh", -2.75, "-0.007723144073617969081939", "-0.02194892159349821490213"),
    ("gelu_tanh", -0.125, "-0.05628280137577661217266", "0.4007845938372085616557"),
    ("gelu_tanh", 3.25, "3.24843137285525253105", "1.005564345644144168584"),
    ("sigmoid", -20, "2.061153618190203581431e-9", "2.061153613941849343652e-9"),
    ("sigmoid", -2.75, "0.06008665017400762201972", "0.05647624464487405182618"),
    ("sigmoid", -0.125, "0.4687906266262437427549", "0.2490259750136174739734"),
    ("sigmoid", 3.25, "0.9626731126558705398023", "0.03593359082532812813095"),
    ("tanh", -20, "-0.9999999999999999915033", "1.699341702116635583693e-17"),
    ("tanh", -2.75, "-0.9918597245682077453497", "0.01621428677947906872277"),
    ("tanh", -0.125, "-0.1243530017715962080546", "0.984536330950393390341"),
    ("tanh", 3.25, "0.9969976354865260169323", "0.005995714834276198268394"),
    ("elu", -20, "-0.9999999979388463775614", "2.061153622438557827966e-9"),
    ("elu", -2.75, "-0.9360721387932924272976", "0.06392786120670757270243"),
    ("elu", -0.125, "-0.1175030974154045971351", "0.8824969025845954028649"),
    ("elu", -1e-9, "-9.999999995000000001667e-10", "0.9999999990000000005"),
]


@WIDE
@pytest.mark.parametrize(("name", "z", "value", "derivative"), DIGITS)
def test_values_and_derivatives_have_the_exact_digits(name, z, value, derivative, dtype):
    at, want, want_slope = (np.array([t], dtype) for t in (z, value, derivative))
    # A dozen roundings; those of an exponential's argument enter as often as z itself does.
    units = 12 * float(np.finfo(dtype).eps) / 2 * (1 + np.abs(at * want_slope / want))
    if name == "elu" and z == -1e-9:
        at = np.array([-1e-9], np.float64).astype(
            dtype
        )  # the float next to it, of which nothing is left in e^z - 1
        units = units + 2.0**-53
    close.within("value", activated(at, NAMES[name]), want, units * np.abs(want))
    # of a difference whose terms are below 1
    close.within(
        "slope", slope(at, NAMES[name]), want_slope, units * np.maximum(np.abs(want_slope), 0.1 * (z > -3))
    )


@pytest.mark.parametrize("activation", AFTER[1:], ids=str)
def test_a_derivative_is_the_slope_of_its_activation(activation):
    z = np.linspace(-9, 9, 1800, dtype=np.longdouble) + np.longdouble(1) / 500  # no corner within h
    h = np.longdouble(1e-5)
    slopes = (activated(z + h, activation) - activated(z - h, activation)) / (2 * h)
    # h^2 of third derivatives of at most 2, and 1e-19/h of rounding, of values up to ten
    close.within("slope", slope(z, activation), slopes, 2e-10)


CORNERS = {
    Activation("relu"): ([-1e-300, -0.0, 0.0, 1e-300], [0, 0, 0, 1]),
    Activation("leaky_relu", 0.25): ([-1e-300, -0.0, 0.0, 1e-300], [0.25, 0.25, 0.25, 1]),
    Activation("hardtanh", -1.0, 2.0): (
        [-1.5, -1, np.nextafter(-1, 0), np.nextafter(2, 0), 2, 3],
        [0, 0, 1, 1, 0, 0],
    ),
    Activation("hardswish"): ([-4, -3, 0, 3, 4], [0, 0, 0.5, 1, 1]),
    Activation("elu", 2.0): ([-0.0, 0.0, 1e-300], [2, 2, 1]),
}


@WIDE
@pytest.mark.parametrize("activation", CORNERS, ids=str)
def test_at_a_corner_the_derivative_is_that_of_torch(activation, dtype):
    at, want = CORNERS[activation]
    got = slope(np.array(at, dtype), activation)
    assert (got.dtype, got.tolist()) == (dtype, want)


def test_beyond_a_corner_nothing_of_an_infinite_gradient_arrives():
    dy = np.array([np.inf, np.nan, 2.0, 2.0])
    assert gradient(dy, np.array([-1.0, -1.0, -1.0, 1.0]), NAMES["relu"]).tolist() == [0, 0, 0, 2]
    assert gradient(dy, np.full(4, 7.0), NAMES["relu6"]).tolist() == [0] * 4
    assert gradient(dy, np.full(4, -4.0), NAMES["hardswish"]).tolist() == [0] * 4
    assert gradient(dy, dy, None) is dy


@WIDE
@pytest.mark.parametrize("activation", AFTER[1:], ids=str)
def test_far_out_all_is_finite_and_at_its_limit(activation, dtype):
    z = np.array([2e4, 1e6, 1e30, 1e200], dtype)  # e^-20000 is 0 in long double, too
    ends = {"hardtanh": activation.b, "sigmoid": 1, "tanh": 1}
    right = ends.get(activation.kind, z)
    left = {"leaky_relu": -activation.a * z, "hardtanh": activation.a, "tanh": -1, "elu": -activation.a}
    for at, want in [(z, right), (-z, left.get(activation.kind, 0))]:
        got = activated(at, activation)
        close.within("value", got, np.broadcast_to(want, z.shape), 4e-16 * np.abs(want))
    rises = 0 if activation.kind in ends else 1
    falls = activation.a if activation.kind == "leaky_relu" else 0
    assert slope(z, activation).tolist() == [rises] * 4
    assert slope(-z, activation).tolist() == [dtype(falls)] * 4


@WIDE
@pytest.mark.parametrize("activation", AFTER[1:], ids=str)
def test_nan_stays_nan(activation, dtype):
    assert np.isnan(activated(np.array([np.nan], dtype), activation)).all()


@pytest.mark.parametrize("activation", AFTER[1:], ids=str)
def test_nothing_is_as_good_as_any_array(activation):
    for f in (activated, slope):
        got = f(np.zeros((2, 0)), activation)
        assert (got.shape, got.dtype) == ((2, 0), np.float64)
