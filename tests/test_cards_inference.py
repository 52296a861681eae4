"""The verdicts on prediction: decided by the records, whichever way they point."""

import pytest

from normwright.report.cards import inference
from normwright.report.document import Verdict
from normwright.report.records import Record
from normwright.report.result import Result
from normwright.report.words import Say
from tiny_lab import EN, ZH, made_up

DECAYS = (0.9, 0.99, 0.999)
TWO_RUNS = ((0, "MLP"), (1, "MLP"))


def _errors(estimator: str, *pairs: tuple[float, float], images: int = 900) -> list[Record]:
    """The errors of mean and deviation, a pair for each seed."""
    records = []
    for seed, (mean, deviation) in enumerate(pairs):
        where = {"network": "MLP", "seed": seed, "estimator": estimator, "images": images}
        records.append(Record("error of the mean", mean, "standard deviations", where))
        records.append(Record("error of the deviation", deviation, "fraction", where))
    return records


def _kept(estimator: str, *held: tuple[int, float], network: str = "MLP") -> list[Record]:
    return [
        Record("bytes kept", size, "bytes", {"network": network, "estimator": estimator, "batches": batches})
        for batches, size in held
    ]


# --- exact ------------------------------------------------------------


def _exact(error: float, after_all: float) -> Verdict:
    records = [
        *_errors("pooled", (1e-15, 1e-9), (error, 1e-9)),
        *_kept("pooled", (1, 4096), (15, after_all)),
        *_kept("Algorithm 2", (1, 4096), (15, 61440)),
    ]
    return inference.exact(made_up("inference", records), EN)


@pytest.mark.parametrize(
    ("error", "after_all", "expected"),
    [
        (2e-15, 4096, "holds"),
        (5.9e-8, 4096, "holds"),
        (6.1e-8, 4096, "does not hold here"),  # float32 would show it
        (2e-15, 4104, "holds partly"),  # exact, but it grows
        (1e-3, 4104, "does not hold here"),
    ],
)
def test_pooled_is_exact_below_the_rounding_of_float32_and_must_not_grow(error, after_all, expected):
    assert _exact(error, after_all).outcome == expected


def test_the_worst_error_and_the_bytes_are_told():
    sentence = _exact(2e-15, 4096).sentence
    assert "2e-15 standard deviations" in sentence
    assert "1e-09 of itself" in sentence
    assert "4.1 kB and 4.1 kB" in sentence
    assert "4.1 kB and 61.4 kB (15 batches)" in sentence


def test_one_network_whose_bytes_grow_is_enough():
    records = [
        *_errors("pooled", (0.0, 0.0)),
        *(_errors("pooled", (0.0, 0.0))),
        *_kept("pooled", (1, 4096), (15, 4096)),
        *_kept("Algorithm 2", (1, 4096), (15, 61440)),
        *_kept("pooled", (1, 256), (15, 512), network="CNN"),
        *_kept("Algorithm 2", (1, 256), (15, 3840), network="CNN"),
        Record("error of the mean", 0.0, "standard deviations", {"network": "CNN", "estimator": "pooled"}),
    ]
    assert inference.exact(made_up("inference", records), EN).outcome == "holds partly"


# --- Algorithm 2 ------------------------------------------------------


def _algorithm_2(*pairs: tuple[float, float], images: int = 900) -> Verdict:
    records = [
        *_errors("Algorithm 2", *pairs, images=images),
        *_errors("Algorithm 2 by class", (0.0, 0.43), images=images),
        Record("variance between batches", 0.035, "fraction", {"estimator": "Algorithm 2"}),
        Record("variance between batches", 0.68, "fraction", {"estimator": "Algorithm 2 by class"}),
    ]
    return inference.algorithm_2(made_up("inference", records), EN)


@pytest.mark.parametrize(
    ("pairs", "images", "expected"),
    [
        (((0, 0.01), (0, 0.02), (0, 0.023)), 900, "holds"),
        (((0, 0.01), (0, 0.02), (0, 0.025)), 900, "holds partly"),  # of 900 images: 1/sqrt(1800) = 0.0236
        (((0, 0.01), (0, 0.024), (0, 0.03)), 900, "does not hold here"),
        (((0.034, 0.01), (0, 0.01), (0, 0.01)), 900, "holds partly"),  # 1/sqrt(900) = 0.0333
        (((0.034, 0.01), (0.034, 0.01), (0, 0.01)), 900, "does not hold here"),
        (((0, 0.01), (0, 0.02), (0, 0.023)), 10_000, "does not hold here"),  # more images, less chance: 0.007
    ],
)
def test_algorithm_2_is_measured_by_the_chance_in_so_many_images(pairs, images, expected):
    assert _algorithm_2(*pairs, images=images).outcome == expected


def test_how_far_algorithm_2_is_off_is_told_shuffled_and_by_class():
    sentence = _algorithm_2((0, 0.01), (0, 0.02)).sentence
    assert "off by 2.0 %" in sentence
    assert "900 images makes 2.4 %" in sentence
    assert "up to 3.5 % of a channel's" in sentence
    assert "that is 68 %, and it is off by 43 %" in sentence


# --- slower and steadier ----------------------------------------------


def _averages(lags: dict[int, tuple[float, ...]], noises: dict[int, tuple[float, ...]]) -> Verdict:
    """For each seed, the distance at both steps of each average, and its noise."""
    records = [Record("error of the mean", 0.0, "standard deviations", {"network": "MLP"})]
    for seed in lags:
        for a, lag, noise in zip(DECAYS, lags[seed], noises[seed], strict=True):
            where = {"network": "MLP", "seed": seed, "a": a}
            for step, value in ((1, lag + 0.1), (100, lag - 0.1)):
                records.append(Record("distance of the average", value, "sd", {**where, "step": step}))
            records.append(Record("noise at rest", noise, "sd", where))
    return inference.slower_and_steadier(made_up("inference", records), EN)


UP, DOWN = (0.3, 0.5, 0.8), (0.02, 0.002, 0.0002)


@pytest.mark.parametrize(
    ("lags", "noises", "expected"),
    [
        ({0: UP, 1: UP, 2: UP}, {0: DOWN, 1: DOWN, 2: DOWN}, "holds"),
        ({0: UP, 1: UP, 2: (0.5, 0.4, 0.8)}, {0: DOWN, 1: DOWN, 2: DOWN}, "holds partly"),  # one run is not
        ({0: UP, 1: UP, 2: UP}, {0: DOWN, 1: DOWN, 2: UP}, "holds partly"),
        ({0: UP[::-1], 1: UP[::-1]}, {0: DOWN, 1: DOWN}, "holds partly"),  # steadier, not slower
        ({0: UP, 1: UP}, {0: UP, 1: UP}, "holds partly"),  # slower, not steadier
        ({0: UP[::-1], 1: UP[::-1]}, {0: UP, 1: UP}, "does not hold here"),
        ({0: (0.5, 0.5, 0.5)}, {0: (0.1, 0.1, 0.1)}, "does not hold here"),  # all alike
    ],
)
def test_slower_and_steadier_are_two_claims(lags, noises, expected):
    assert _averages(lags, noises).outcome == expected


def test_the_mean_over_the_steps_is_told():
    assert (
        "off by 0.3 → 0.5 → 0.8 on the way, by 0.02 → 0.002 → 0.0002 at rest"
        in _averages({0: UP}, {0: DOWN}).sentence
    )


# --- predicts ---------------------------------------------------------


def _changes(*averages: int, of: int = 500, say: Say = EN) -> Verdict:
    """Changed predictions of the averages in each of two runs; 1 while weights moved, 0 after."""
    counts = dict(zip((f"average {a:g}" for a in DECAYS), averages, strict=True))
    counts |= {"last epoch": 1, "Algorithm 2": 0, "exact": 0}
    records = [Record("error of the mean", 0.0, "standard deviations", {"network": "MLP"})]
    for seed, network in TWO_RUNS:
        for estimator, changed in counts.items():
            where = {"network": network, "seed": seed, "estimator": estimator, "of": of}
            records.append(Record("changed predictions", changed, "images", where))
        for a in DECAYS:
            where = {"network": network, "seed": seed, "a": a, "step": 300}
            records.append(Record("distance of the average", 0.1, "standard deviations", where))
    return inference.predicts(made_up("inference", records), say)


@pytest.mark.parametrize(
    ("averages", "expected"),
    [
        ((0, 0, 0), "holds"),
        ((5, 5, 5), "holds"),  # a percent of 500
        ((5, 5, 6), "holds partly"),
        ((6, 0, 200), "holds partly"),
        ((6, 6, 6), "does not hold here"),
        ((250, 300, 400), "does not hold here"),
    ],
)
def test_an_average_may_change_a_percent_of_the_predictions(averages, expected):
    assert _changes(*averages).outcome == expected


@pytest.mark.parametrize("say", [EN, ZH])
def test_the_changes_are_told_moving_and_recomputed(say):
    sentence = _changes(1, 2, 100, say=say).sentence
    assert "1000" in sentence
    for count in ("2 (a = 0.9)", "4 (a = 0.99)", "200 (a = 0.999)", "MLP 300"):
        assert count.replace(" (", "（").replace(")", "）") in sentence or count in sentence
    assert "changes 2; recomputed after training by Algorithm 2, 0" in sentence or "改变了 2 次" in sentence


# --- alone ------------------------------------------------------------


def _alone(*layer: float) -> Verdict:
    others = {"network with BN": 5e-6, "network without BN": 3e-6, "layer in training mode": 0.7}
    records = []
    for seed, difference in enumerate(layer):
        for of, value in {"layer": difference, **others}.items():
            records.append(
                Record("difference alone to in a batch", value, "absolute", {"of": of, "seed": seed})
            )
    return inference.alone(made_up("inference", records), EN)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((0.0, 0.0), "holds"),
        ((0.0, 1e-7), "holds partly"),
        ((0.0, 1e-5), "holds partly"),
        ((0.0, 2e-5), "does not hold here"),
        ((0.3, 0.0), "does not hold here"),
    ],
)
def test_alone_is_exact_or_rounding_or_wrong(differences, expected):
    assert _alone(*differences).outcome == expected


def test_alone_tells_the_controls():
    sentence = _alone(0.0).sentence
    assert "differ by exactly 0" in sentence
    assert "in training mode, where the batch counts, by 0.7" in sentence
    assert "5.0e-06 with BN and by 3.0e-06 with it taken out" in sentence


# --- eps --------------------------------------------------------------


def _eps(scale: float, after: float) -> Verdict:
    where = {"var": 1e-6, "eps": 1e-5}
    records = [
        Record("scale of y with eps twice", scale, "ratio", where),
        Record("scale of y with eps twice", 1.0, "ratio", {**where, "var": 1.0}),
        Record("difference after conversion", after, "absolute", where),
        Record("difference after conversion", 0.0, "absolute", {**where, "var": 1.0}),
        Record("scale of y in a trained network", 0.9964, "ratio", {"network": "CNN"}),
    ]
    return inference.eps_once(made_up("inference", records), EN)


@pytest.mark.parametrize(
    ("scale", "after", "expected"),
    [
        (0.7237, 0.0, "holds"),
        (0.7237, 1e-15, "holds"),
        (0.7237, 1e-9, "holds partly"),  # the conversion is not exact
        (0.8165, 0.0, "holds partly"),  # it matters, by another number
        (1.0, 0.0, "does not hold here"),
    ],
)
def test_eps_twice_must_be_the_sources_number_and_the_conversion_exact(scale, after, expected):
    verdict = _eps(scale, after)
    assert verdict.outcome == expected
    assert f"{scale:.3f} (sources: 0.72)" in verdict.sentence
    assert "0.9964" in verdict.sentence


# --- words ------------------------------------------------------------


def test_every_estimator_has_a_name_in_both_languages():
    names = ("average 0.9", "last epoch", "Algorithm 2", "Algorithm 2 by class", "pooled", "exact")
    told = {say.language: [inference.estimator_name(name, say) for name in names] for say in (EN, ZH)}
    assert told["en"][0] == told["zh"][0] == "a = 0.9"
    assert all(en != zh for en, zh in zip(told["en"][1:], told["zh"][1:], strict=True))


def test_nothing_measured_is_an_error_and_no_verdict():
    with pytest.raises(ValueError, match="expected a value in each record"):
        inference.alone(Result("inference", [], {}, ""), EN)
