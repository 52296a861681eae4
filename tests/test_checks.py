"""The words of every error, and the types by which code written for NumPy or for torch catches it."""

import re

import pytest

from normwright.core import checks
from normwright.core.checks import DtypeError, ShapeError


def raises(kind, words):
    return pytest.raises(kind, match="^" + re.escape(words) + "$")


@pytest.mark.parametrize("caught", [ValueError, RuntimeError], ids=["as NumPy raises", "as torch raises"])
def test_a_wrong_shape_is_caught_as_either_framework_would(caught):
    with raises(caught, "f: expected eps > 0, got 0. The usual value is 1e-5."):
        checks.check_eps("f", 0)


@pytest.mark.parametrize(
    "caught", [TypeError, NotImplementedError], ids=["as NumPy raises", "as torch raises"]
)
def test_a_wrong_dtype_is_caught_as_either_framework_would(caught):
    with raises(caught, "no"):
        raise DtypeError("no")


def test_a_message_has_all_its_parts_in_order():
    said = checks.message("call", "this", "that", "other is 3", "Do so.")
    assert said == "call: expected this, got that; other is 3. Do so."


def test_a_message_leaves_out_the_parts_that_are_not_given():
    assert checks.message("call", "this", "that") == "call: expected this, got that."
    assert (
        checks.message("call", "this", "that", "other is 3") == "call: expected this, got that; other is 3."
    )


def test_a_wrong_rank_names_those_allowed():
    checks.check_rank("f", (2, 3), (2, 3))
    checks.check_rank("f", (2, 3, 4), (2, 3))
    with raises(ShapeError, "f: expected x to be 2-D or 3-D, got 4-D x of shape (2, 3, 4, 5)."):
        checks.check_rank("f", (2, 3, 4, 5), (2, 3))
    with raises(ShapeError, "f: expected x to be 4-D, got 1-D x of shape (7,). Use BatchNorm1d."):
        checks.check_rank("f", [7], (4,), "Use BatchNorm1d.")


@pytest.mark.parametrize(
    ("axis", "from_zero"),
    [(0, 0), (1, 1), (2, 2), (-1, 2), (-3, 0)],
    ids=["first", "middle", "last", "last from behind", "first from behind"],
)
def test_an_axis_is_counted_from_zero(axis, from_zero):
    assert checks.check_axis("f", (2, 3, 4), axis) == from_zero


@pytest.mark.parametrize("axis", [3, -4], ids=["one too far", "one too far from behind"])
def test_an_axis_that_x_lacks_raises(axis):
    with raises(ShapeError, f"f: expected axis from -3 to 2, got {axis}; x is (2, 3, 4)."):
        checks.check_axis("f", (2, 3, 4), axis)


@pytest.mark.parametrize("axis", [1.0, "1", None], ids=["a float", "a string", "nothing"])
def test_an_axis_that_is_no_integer_raises(axis):
    with raises(DtypeError, f"f: expected axis to be an integer, got {axis!r}."):
        checks.check_axis("f", (2, 3, 4), axis)


@pytest.mark.parametrize("shape", [(), (5,)], ids=["a number", "a vector"])
def test_an_input_without_a_batch_raises(shape):
    said = f"f: expected x to have a batch axis and a channel axis, got {len(shape)}-D x of shape {shape}."
    with raises(ShapeError, said):
        checks.check_axis("f", shape, 0)


def test_a_parameter_of_other_channels_names_both_shapes():
    checks.check_per_channel("f", "weight", (64,), (8, 64, 14, 14), 1)
    said = "f: expected weight of shape (64,), got (32,); x is (8, 64, 14, 14) with channels on axis 1."
    with raises(ShapeError, said):
        checks.check_per_channel("f", "weight", (32,), (8, 64, 14, 14), 1)
    with raises(
        ShapeError, "f: expected beta of shape (3,), got (3, 1); x is (2, 3) with channels on axis 1."
    ):
        checks.check_per_channel("f", "beta", (3, 1), (2, 3), 1)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 5), 1), ((1, 5, 1, 1), 1), ((5, 1), 0), ((1, 1, 5), -1)],
    ids=["one sample", "one sample of 1x1", "channels first", "channels last"],
)
def test_one_value_per_channel_raises(shape, axis):
    said = (
        "f: expected more than one value per channel in training, got 1; "
        f"x is {shape} with channels on axis {axis}. Use a larger batch."
    )
    with raises(ShapeError, said):
        checks.check_more_than_one_value("f", shape, axis, "Use a larger batch.")


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 5), 1), ((1, 5, 1, 2), 1), ((0, 5), 1), ((1, 5, 0), 1)],
    ids=["two samples", "two positions", "no samples", "no positions"],
)
def test_two_values_or_none_pass(shape, axis):
    assert checks.check_more_than_one_value("f", shape, axis, "") is None


@pytest.mark.parametrize("eps", [0.0, -1e-5, float("nan")], ids=["zero", "negative", "NaN"])
def test_an_eps_that_is_not_positive_raises(eps):
    with raises(ShapeError, f"f: expected eps > 0, got {eps!r}. The usual value is 1e-5."):
        checks.check_eps("f", eps)
    assert checks.check_eps("f", 1e-5) is None


def test_one_running_statistic_without_the_other_raises():
    assert checks.check_both_or_neither("f", None, None) is None
    assert checks.check_both_or_neither("f", 0, 1) is None
    both = "f: expected running_mean and running_var, or neither, got"
    with raises(ShapeError, f"{both} running_mean without running_var."):
        checks.check_both_or_neither("f", 0, None)
    with raises(ShapeError, f"{both} running_var without running_mean."):
        checks.check_both_or_neither("f", None, 1)
