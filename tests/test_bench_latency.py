"""The latency table: its contenders agree, a wrong one is not timed, and its ratios are the right way round."""

import pytest
import torch

import normwright.torch as nw
from normwright.bench.side_by_side import latency
from normwright.bench.timer import Budget, Timing, WrongValues

ONE_ROUND = Budget(0, least=1, most=1)


def test_every_line_times_every_contender():
    lines = list(latency.measure(ONE_ROUND))
    assert [set(line.timings) for line in lines] == [
        *[{latency.OURS, latency.TORCHS}] * 2,
        *[{latency.OURS, latency.TORCHS, latency.COMPOSED}] * 3,
    ]
    assert all(timing.median > 0 for line in lines for timing in line.timings.values())
    assert [line.calls for line in lines] == [latency.STEPS, latency.STEPS, 1, 1, 1]


def test_a_contender_with_other_values_is_not_timed(monkeypatch):
    right = nw.batch_norm
    monkeypatch.setattr(nw, "batch_norm", lambda *args: right(*args) * 1.01)
    with pytest.raises(WrongValues, match=r"^normwright: other values"):
        list(latency.measure(ONE_ROUND))


def test_a_layer_that_forgets_its_statistics_is_not_timed(monkeypatch):
    monkeypatch.setattr(nw.BatchNorm1d, "statistics_frozen", True)
    with pytest.raises(WrongValues):
        list(latency.measure(ONE_ROUND))


def test_nothing_passes_as_equal_that_is_not_a_number():
    nan = torch.tensor([float("nan")])
    for got, want in ((nan, nan), (nan, torch.ones(1)), (torch.ones(1), nan)):
        with pytest.raises(WrongValues):
            latency._agree("x", [got], [want])


def test_the_table_says_how_many_times_ours_the_others_take():
    timings = {
        latency.OURS: Timing((2e-6, 4e-6, 90e-6)),
        latency.TORCHS: Timing((6e-6,)),
        latency.COMPOSED: Timing((2e-6,)),
    }
    lines = [
        latency.Measured("three contenders", timings),
        latency.Measured("two, a pair of calls", {k: timings[k] for k in (latency.OURS, latency.TORCHS)}, 2),
    ]
    table = latency.table(lines)
    assert table.columns == ("float32", "normwright", "torch", "composed operations")
    assert table.rows == (
        ("three contenders", "4 µs", "1.50x", "0.50x"),
        ("two, a pair of calls", "2 µs", "1.50x", "-"),
    )
    assert f"{torch.get_num_threads()} threads" in table.note
