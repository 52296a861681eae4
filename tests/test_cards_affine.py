"""The verdicts about gamma and beta, on records made up for each."""

import pytest

import tiny_lab
from normwright.report.cards import affine
from normwright.report.cards.affine_shown import AFTER, NO_AFFINE, NO_BIAS, ONE_PAIR, WITH, WITHOUT
from normwright.report.records import Record

EN = tiny_lab.EN


def _seeds(what, values, network="MLP", labels="true", **where):
    common = {"network": network, "labels": labels, **where}
    return [Record(what, value, "fraction", {**common, "seed": seed}) for seed, value in enumerate(values)]


def _told(*groups):
    return tiny_lab.made_up("affine", [record for group in groups for record in group])


def _tests(**by_condition):
    """Test accuracies by condition, on one network."""
    names = {"full": WITH, "bare": NO_AFFINE, "after": AFTER, "no_bias": NO_BIAS, "pair": ONE_PAIR}
    return [
        r
        for key, values in by_condition.items()
        for r in _seeds("test accuracy", values, condition=names[key])
    ]


# --- capacity ---------------------------------------------------------


@pytest.mark.parametrize(
    ("full", "bare", "outcome"),
    [
        pytest.param([0.8, 0.9], [0.3, 0.4], "holds", id="the worst with is above the best without"),
        pytest.param([0.35, 0.9], [0.3, 0.4], "holds partly", id="in the median only"),
        pytest.param([0.3, 0.4], [0.3, 0.4], "does not hold here", id="no more is no more"),
        pytest.param([0.2, 0.3], [0.8, 0.9], "does not hold here", id="less"),
    ],
)
def test_capacity_is_what_is_learned_by_heart(full, bare, outcome):
    result = _told(
        _seeds("train accuracy", full, labels="random", condition=WITH),
        _seeds("train accuracy", bare, labels="random", condition=NO_AFFINE),
        _seeds("accuracy of a linear map", [0.26], labels="random", condition=WITH),
        # What is known of the true labels says nothing about capacity.
        _seeds("train accuracy", [0.0, 0.0], condition=WITH),
        _seeds("train accuracy", [1.0, 1.0], condition=NO_AFFINE),
    )
    verdict = affine.capacity(result, EN)
    assert verdict.outcome == outcome
    assert "a linear map alone: 26 %" in verdict.sentence


def _fits(condition, layers, labels="random"):
    return [
        record
        for layer, values in enumerate(layers, start=1)
        for record in _seeds(
            "fit of a straight line", values, labels=labels, condition=condition, layer=layer
        )
    ]


@pytest.mark.parametrize(
    ("bare", "full", "outcome"),
    [
        pytest.param(
            [[0.98, 0.98], [0.96, 0.96]], [[0.9, 0.8], [0.9, 0.9]], "holds", id="straight, then curved"
        ),
        pytest.param(
            [[0.98, 0.98], [0.6, 0.6]], [[0.5, 0.5], [0.5, 0.5]], "does not hold here", id="curved before"
        ),
        pytest.param([[0.98, 0.98]], [[0.9, 0.99]], "does not hold here", id="one seed gets straighter"),
        pytest.param(
            [[0.98, 0.98]], [[0.98, 0.9]], "does not hold here", id="as straight is not less straight"
        ),
        pytest.param([[None, None]], [[0.9, 0.9]], "holds", id="a constant is a straight line"),
    ],
)
def test_straight_without_and_curved_with(bare, full, outcome):
    assert affine.straight(_told(_fits(WITH, full), _fits(NO_AFFINE, bare)), EN).outcome == outcome


def test_straight_on_some_labels_is_partly():
    good = [_fits(NO_AFFINE, [[0.98]]), _fits(WITH, [[0.9]])]
    bad = [_fits(NO_AFFINE, [[0.5]], "true"), _fits(WITH, [[0.4]], "true")]
    verdict = affine.straight(_told(*good, *bad), EN)
    assert verdict.outcome == "holds partly"
    assert (
        "random labels 98.0 % without, 90.0 % with; true labels 50.0 % without, 40.0 % with"
        in verdict.sentence
    )


# --- accuracy and placement -------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "outcome"),
    [
        pytest.param([0.97, 0.98], [0.95, 0.96], "holds", id="clearly better"),
        pytest.param(
            [0.95, 0.98, 0.98], [0.94, 0.95, 0.96], "holds partly", id="by more than noise, in the median"
        ),
        pytest.param([0.965, 0.969], [0.96, 0.966], "does not hold here", id="by less than noise"),
        pytest.param([0.95, 0.95], [0.97, 0.97], "does not hold here", id="worse"),
    ],
)
def test_better_is_clear_or_more_than_noise(one, other, outcome):
    assert affine.accuracy(_told(_tests(full=one, bare=other)), EN).outcome == outcome
    assert affine.before(_told(_tests(full=one, after=other)), EN).outcome == outcome


def test_one_network_that_says_no_is_enough_against_all():
    more = _seeds("test accuracy", [0.9, 0.9], network="CNN", condition=WITH)
    more += _seeds("test accuracy", [0.9, 0.9], network="CNN", condition=AFTER)
    verdict = affine.before(_told(_tests(full=[0.97, 0.98], after=[0.95, 0.96]), more), EN)
    assert verdict.outcome == "holds partly"
    assert (
        verdict.sentence
        == "Before / after: MLP 97.5 % (97.0–98.0) / 95.5 % (95.0–96.0); CNN 90.0 % / 90.0 %."
    )


@pytest.mark.parametrize(
    ("after", "outcome"),
    [
        pytest.param([0.97, 0.97], "holds", id="as good"),
        pytest.param([0.962, 0.962], "holds", id="within noise"),
        pytest.param([0.99, 0.99], "holds", id="better"),
        pytest.param([0.95, 0.95], "does not hold here", id="worse"),
    ],
)
def test_after_the_activation_works_if_it_is_not_worse(after, outcome):
    assert affine.after(_told(_tests(full=[0.97, 0.97], after=after)), EN).outcome == outcome


def test_after_the_activation_works_partly_if_it_does_on_some_networks():
    more = _seeds("test accuracy", [0.97], network="CNN", condition=WITH)
    more += _seeds("test accuracy", [0.5], network="CNN", condition=AFTER)
    verdict = affine.after(_told(_tests(full=[0.97], after=[0.97]), more), EN)
    assert verdict.outcome == "holds partly"
    assert "worse by more than a point on 1 of 2 networks, better on 0" in verdict.sentence


# --- the bias ---------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "moved", "without", "outcome"),
    [
        pytest.param(3e-8, 1e-7, [0.97, 0.96], "holds", id="nothing"),
        pytest.param(3e-8, 1e-7, [0.97, 0.90], "holds partly", id="one seed's accuracy differs"),
        pytest.param(3e-8, 0.01, [0.97, 0.96], "holds partly", id="the logits move"),
        pytest.param(1e-3, 1e-7, [0.97, 0.96], "does not hold here", id="a gradient above rounding"),
    ],
)
def test_a_redundant_bias_has_no_gradient_and_no_effect(left, moved, without, outcome):
    result = _told(
        _seeds("bias gradient left", [1e-8, left], condition=WITH),
        _seeds("bias gradient left", [0.3], condition=WITHOUT),
        _seeds("logits moved by a bias", [moved], condition=WITH),
        _tests(full=[0.97, 0.96], no_bias=without),
    )
    assert affine.bias(result, EN).outcome == outcome


# --- channels ---------------------------------------------------------


def _moves(shares):
    return [
        record
        for (layer, of), values in shares.items()
        for what, seeds in (
            ("share of the channels' own", values),
            ("deviation across channels", [0.2] * len(values)),
        )
        for record in _seeds(what, seeds, condition=WITH, layer=layer, of=of)
    ]


@pytest.mark.parametrize(
    ("gamma", "beta", "outcome", "count"),
    [
        pytest.param([0.8, 0.9], [0.6, 0.7], "holds", 2, id="all go their own ways"),
        pytest.param([0.8, 0.9], [0.1, 0.2], "holds partly", 1, id="the betas move together"),
        pytest.param([0.5, 0.5], [0.1, 0.2], "does not hold here", 0, id="half is not more than half"),
        pytest.param([None, None], [None, None], "does not hold here", 0, id="nothing moved"),
    ],
)
def test_channels_are_on_their_own_where_they_move_apart_more_than_together(gamma, beta, outcome, count):
    result = _told(_moves({(1, "gamma"): gamma, (1, "beta"): beta}), _tests(full=[0.97]))
    verdict = affine.per_channel(result, EN)
    assert verdict.outcome == outcome
    assert f"In {count} of 2 gammas and betas" in verdict.sentence


@pytest.mark.parametrize(
    ("pair", "by_heart", "outcome"),
    [
        pytest.param([0.9, 0.9], [0.3, 0.3], "holds", id="worse everywhere"),
        pytest.param([0.97, 0.97], [0.3, 0.3], "holds partly", id="worse at random labels"),
        pytest.param([0.97, 0.97], [0.8, 0.8], "does not hold here", id="as good"),
    ],
)
def test_one_pair_would_not_do_if_it_does_worse(pair, by_heart, outcome):
    result = _told(
        _tests(full=[0.97, 0.97], pair=pair),
        _seeds("train accuracy", [0.8, 0.8], labels="random", condition=WITH),
        _seeds("train accuracy", by_heart, labels="random", condition=ONE_PAIR),
    )
    assert affine.pairs(result, EN).outcome == outcome


# --- features ---------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "error", "outcome"),
    [
        pytest.param([0.96, 0.97], 1e-6, "holds", id="nothing is lost"),
        pytest.param([0.99, 0.99], 1e-6, "holds", id="more is read after than before"),
        pytest.param([0.90, 0.90], 1e-6, "holds partly", id="less is read, though all is there"),
        pytest.param([0.96, 0.97], None, "holds partly", id="a gamma of zero"),
        pytest.param([0.90, 0.90], 0.1, "does not hold here", id="lost"),
    ],
)
def test_features_are_kept_if_they_can_be_read_and_had_back(probe, error, outcome):
    result = _told(
        _seeds("accuracy of a probe", [0.96, 0.97], place="before BN"),
        _seeds("accuracy of a probe", probe, place="after BN"),
        _seeds("accuracy of a probe", [0.0, 0.0], place="after the activation"),
        _seeds("input recovered to", [1e-7, error]),
        _seeds("smallest gamma", [0.5, 0.01]),
    )
    verdict = affine.features(result, EN)
    assert verdict.outcome == outcome
    assert "smallest gamma 0.01" in verdict.sentence
