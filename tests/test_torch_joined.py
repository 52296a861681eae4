"""The batch that `verify_sync` shares out: which cases there are, what one process makes of it, what is far off."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from normwright.torch.distributed import joined
from normwright.torch.distributed.joined import (
    AFTER,
    SAMPLES,
    SHAPES,
    TYPES,
    Case,
    Line,
    farthest,
    lines,
    plan,
)
from normwright.torch.distributed.sync_report import Distance

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


def test_every_two_choices_meet_in_a_case():
    cases = [case[:4] for case in plan(2)]
    choices = list(SHAPES), list(SAMPLES), list(TYPES), list(AFTER)
    for i, j in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)):
        assert {(case[i], case[j]) for case in cases} == set(product(choices[i], choices[j]))
    assert {(case.dtype, case.mean) for case in plan(2)[24:]} == set(product((F64, F32), (1e3, 1e6)))


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_samples_are_shared_as_their_words_say(samples, ranks):
    counts = joined.counts(samples, ranks)
    assert len(counts) == ranks
    assert sum(counts) >= 2
    assert (min(counts) == 0) == ("none" in samples or samples == "all on one")
    assert (len(set(counts)) == 1) == (samples in ("even", "one each"))


def by_torch(whole, case):
    """torch's own batch norm, in float64."""
    x = whole.x.detach().double().requires_grad_()
    residual = None if whole.residual is None else whole.residual.double().requires_grad_()
    weight, bias = (t.double().requires_grad_() for t in (whole.weight, whole.bias))
    mean, var = torch.zeros_like(weight).detach(), torch.ones_like(weight).detach()
    y = torch.nn.functional.batch_norm(x, mean, var, weight, bias, True, 0.1, 1e-5)
    y = y if residual is None else y + residual
    y = torch.relu(y) if case.activation else y
    y.backward(whole.dy.double())
    found = {"y": y.detach(), "dx": x.grad, "dweight": weight.grad, "dbias": bias.grad}
    found |= {"running_mean": mean, "running_var": var}
    return found if residual is None else found | {"dresidual": residual.grad}


@pytest.mark.parametrize("case", [case for case in plan(2) if not case.mean], ids=str)
def test_the_truth_is_torchs_in_float64(case):
    whole = joined.joined(case, 2)
    truth, theirs = lines(case, whole, strict=True), by_torch(whole, case)
    assert truth.keys() == theirs.keys()
    for name, t in theirs.items():
        # values of order one, at most a few hundred of them: torch's plain sums keep twelve digits
        np.testing.assert_allclose(t.numpy(), truth[name].want.astype(float), rtol=1e-12, atol=1e-12)


def test_the_fifth_digit_of_float32_is_seen_and_the_tenth_of_float64():
    for dtype, digit in ((F32, 1e-5), (F64, 1e-10)):
        case = Case("NCHW", "even", dtype)
        for name, line in lines(case, joined.joined(case, 2), strict=True).items():
            assert farthest(line.want.astype(float), line).share <= 1, name
            assert farthest(line.want.astype(float) * (1 + digit), line).share > 1, name


def test_a_half_type_is_rounded_once_and_not_to_a_neighbour():
    want = torch.tensor([1.0, 1.5, 0.1, -3.3, 2.0**-130, 0.999], dtype=F64)
    once = want.to(BF16)
    line = Line(want.numpy(), np.full(6, 1e-9), BF16)
    assert farthest(once.double().numpy(), line).share == 0
    for side in (-math.inf, math.inf):
        for k in range(6):
            beside = once.clone()
            beside[k] = torch.nextafter(once[k], torch.tensor(side, dtype=BF16))
            found = farthest(beside.double().numpy(), line)
            if k != 4:  # among the smallest numbers a neighbour is nearer than 1e-9
                assert found.share > 1


def test_half_of_a_place_is_that_of_the_smaller_number():
    line = Line(np.array([1 - 2.0**-9]), np.array([0.0]), BF16)  # bfloat16 has 1 - 2^-8 and 1: a tie
    for got in (1 - 2.0**-8, 1.0):
        assert farthest(np.array([got]), line).off == 0
    assert farthest(np.array([1 + 2.0**-7]), line).share == math.inf


@pytest.mark.parametrize("got", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_within_its_bound(got):
    line = Line(np.array([0.0, 1.0]), np.array([1e300, 1e300]))
    found = farthest(np.array([0.0, got]), line)
    assert found.share == math.inf
    assert not Distance("y", 0, *found).ok


def test_a_result_of_another_shape_fails():
    assert farthest(np.zeros(3), Line(np.zeros(2), np.ones(2))).share == math.inf


def test_nothing_to_compare_on_an_empty_rank_is_no_failure():
    assert farthest(np.zeros((0, 2)), Line(np.zeros((4, 2)), np.ones((4, 2))), slice(0, 0)).share == 0
