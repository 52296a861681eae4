"""The card of the batch size: each verdict on records where its claim holds, holds partly, and is false."""

import math

import pytest

from normwright.report.cards import batch_size
from normwright.report.cards.batch_size import ONE, WITH, WITHOUT
from normwright.report.records import Record
from tiny_lab import EN, ZH, made_up

SIZES = (2, 8, 32, 128)
SETTINGS = {"statistics": {"batches": 400}}


def _errors(mean, deviation, network="MLP"):
    """Errors that fall with these powers of m, from a level of their own."""
    return [
        Record(what, 0.7 * m**power, "deviations", {"network": network, "seed": seed, "size": m})
        for what, power in (("error of the mean", mean), ("error of the deviation", deviation))
        for m in SIZES
        for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("mean", "deviation", "outcome"),
    [
        pytest.param(-0.5, -0.5, "holds", id="the law"),
        # Three standard errors of 2 x 400 draws at these sizes: 3 / sqrt(1600 * 9.6) = 0.024.
        pytest.param(-0.52, -0.53, "holds", id="the law within the error"),
        pytest.param(-0.55, -0.5, "holds partly", id="the deviation alone"),
        pytest.param(-0.5, -0.6, "holds partly", id="the mean alone"),
        pytest.param(-0.25, -0.25, "does not hold here", id="the fourth root"),
        pytest.param(-1.0, -1.0, "does not hold here", id="1/m"),
        pytest.param(0.0, 0.0, "does not hold here", id="no batch is large enough"),
    ],
)
def test_the_law_is_judged_by_the_slope(mean, deviation, outcome):
    verdict = batch_size.statistics(made_up("batch-size", _errors(mean, deviation), SETTINGS), EN)
    assert verdict.outcome == outcome
    assert f"MLP {mean:.3f} (mean), {deviation:.3f} (deviation)" in verdict.sentence


def test_one_network_against_the_law_is_enough():
    records = _errors(-0.5, -0.5) + _errors(-0.3, -0.3, "CNN")
    verdict = batch_size.statistics(made_up("batch-size", records, SETTINGS), ZH)
    assert verdict.outcome == "does not hold here"
    assert "CNN -0.300（均值）、-0.300（标准差）" in verdict.sentence


def test_fewer_draws_allow_more():
    records = _errors(-0.55, -0.5)
    few = made_up("batch-size", records, {"statistics": {"batches": 40}})
    assert batch_size.statistics(few, EN).outcome == "holds"


def test_small_batches_do_not_count_for_the_deviation_whose_bias_is_known():
    records = [
        Record(r.what, 2 * (r.value or 0), r.unit, r.where)
        if r.what == "error of the deviation" and r.where["size"] == 2
        else r
        for r in _errors(-0.5, -0.5)
    ]
    assert batch_size.statistics(made_up("batch-size", records, SETTINGS), EN).outcome == "holds"


def _accuracies(with_norm, without):
    """Test accuracies by batch size; validation accuracies, by which the best size is chosen, are the same."""
    return [
        Record(what, value, "fraction", {"condition": condition, "size": m, "seed": seed})
        for condition, sizes in ((WITH, with_norm), (WITHOUT, without))
        for m, values in sizes.items()
        for seed, value in enumerate(values)
        for what in ("test accuracy", "late validation accuracy")
    ]


LEVEL = {2: [0.96, 0.97, 0.97], 32: [0.96, 0.97, 0.98]}


@pytest.mark.parametrize(
    ("with_norm", "without", "outcome"),
    [
        pytest.param(
            {2: [0.90, 0.91, 0.92], 32: [0.96, 0.97, 0.98]}, LEVEL, "holds", id="the ranges stand apart"
        ),
        pytest.param(
            {2: [0.90, 0.91, 0.97], 32: [0.96, 0.97, 0.98]}, LEVEL, "holds partly", id="the ranges meet"
        ),
        pytest.param(
            {2: [0.90, 0.91, 0.92], 32: [0.96, 0.97, 0.98]},
            {2: [0.5, 0.6, 0.7], 32: [0.96, 0.97, 0.98]},
            "holds partly",
            id="more is lost without BN",
        ),
        pytest.param(LEVEL, LEVEL, "does not hold here", id="nothing is lost"),
        pytest.param(
            {2: [0.99, 0.99, 0.99], 32: [0.96, 0.97, 0.98]}, LEVEL, "does not hold here", id="two are best"
        ),
        pytest.param(
            {2: [0.955, 0.965, 0.97], 32: [0.96, 0.97, 0.98]},
            LEVEL,
            "does not hold here",
            id="less than a point",
        ),
    ],
)
def test_accuracy_is_judged_against_the_best_size_and_against_no_bn(with_norm, without, outcome):
    verdict = batch_size.accuracy(made_up("batch-size", _accuracies(with_norm, without)), EN)
    assert verdict.outcome == outcome
    assert f"with BN {100 * sorted(with_norm[2])[1]:.1f} %" in verdict.sentence


def test_the_best_size_is_chosen_on_the_validation_images():
    records = _accuracies({2: [0.9], 8: [0.95], 32: [0.99]}, LEVEL)
    swapped = [
        Record(r.what, {8: 0.98, 32: 0.5}.get(r.where["size"], r.value), r.unit, r.where)
        if r.what == "late validation accuracy" and r.where["condition"] == WITH
        else r
        for r in records
    ]
    verdict = batch_size.accuracy(made_up("batch-size", swapped), EN)
    assert "with BN 90.0 % at m = 2 and 95.0 % at m = 8" in verdict.sentence


def _gaps(own, one, losses, control=0.0):
    """Shares of predictions that differ and losses in the modes, at m = 2 and m = 512."""
    shares = {WITH: own, ONE: one, WITHOUT: ([control] * 2, [control] * 2)}
    records = [
        Record("predictions that differ", share, "fraction", {"condition": c, "size": m, "seed": seed})
        for c, ends in shares.items()
        for m, values in zip((2, 512), ends, strict=True)
        for seed, share in enumerate(values)
    ]
    for m, values in zip((2, 512), losses, strict=True):
        for seed, loss in enumerate(values):
            where = {"condition": WITH, "size": m, "seed": seed}
            records.append(Record("loss in training mode", 0.5, "nats", where))
            records.append(Record("loss in evaluation mode", loss, "nats", where))
    return made_up("batch-size", records)


WIDE, NARROW = ([0.4, 0.5], [0.01, 0.02]), ([0.02, 0.03], [0.01, 0.025])
APART, NEAR = ([2.5, 1.5], [0.6, 0.5]), ([0.5, 0.5], [0.5, 0.5])


@pytest.mark.parametrize(
    ("own", "one", "losses", "outcome"),
    [
        pytest.param(WIDE, WIDE, APART, "holds", id="predictions and losses come together"),
        pytest.param(WIDE, WIDE, NEAR, "holds partly", id="the losses do not"),
        pytest.param(WIDE, NARROW, APART, "holds partly", id="one network's do not, beyond its range"),
        pytest.param(NARROW, WIDE, APART, "holds partly", id="the ranges meet"),
        pytest.param(WIDE[::-1], WIDE, APART, "does not hold here", id="the gap grows"),
        pytest.param((WIDE[0], WIDE[0]), WIDE, APART, "does not hold here", id="the gap stays"),
    ],
)
def test_the_gap_is_judged_by_predictions_losses_and_one_network(own, one, losses, outcome):
    verdict = batch_size.gap(_gaps(own, one, losses), EN)
    assert verdict.outcome == outcome
    assert "Without BN: 0.0 %." in verdict.sentence


def test_a_gap_is_a_gap_whichever_loss_is_larger():
    result = _gaps(WIDE, WIDE, ([0.1, 0.2], [0.5, 0.51]))
    assert batch_size.loss_gaps(result, WITH, 2) == pytest.approx([0.4, 0.3])
    assert batch_size.gap(result, EN).outcome == "holds"


def test_a_loss_that_is_no_number_is_the_widest_gap():
    result = _gaps(WIDE, WIDE, ([0.1, None], [0.5, 0.51]))
    assert batch_size.loss_gaps(result, WITH, 2)[1] == math.inf
    assert batch_size.gap(result, EN).outcome == "holds"
    assert batch_size.gap(_gaps(WIDE, WIDE, ([0.1, 0.2], [0.5, None])), EN).outcome == "holds partly"


def test_the_control_is_told_where_it_is_not_zero():
    assert "无 BN：3.0 %" in batch_size.gap(_gaps(WIDE, WIDE, APART, control=0.03), ZH).sentence
