"""What `recalibrate` returns: numbers, table, records, file and picture."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import close
import normwright.torch as nw
from beside_torch import normal
from normwright.report import records


@pytest.fixture
def drift():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    model.add_module("spare", nn.BatchNorm1d(4))
    with torch.no_grad():
        model[0].running_mean.copy_(torch.tensor([1.0, -1.0]))
        model[0].running_var.copy_(torch.tensor([4.0, 0.25]))
    data = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], dtype=torch.float64)  # means 2 and 3, var 4
    return nw.recalibrate(model, [data], forward=lambda m, x: m[:3](x))


def test_shift_is_in_old_deviations_and_the_variance_a_ratio(drift):
    first = drift.layers[0]
    close.within("shift", first.mean_shift, np.array([0.5, 8.0]), 1e-15)
    close.within("ratio", first.var_ratio, np.array([1.0, 16.0]), 1e-14)
    assert (first.name, first.count) == ("0", 3)
    assert {t.dtype for t in (first.old_mean, first.old_var, first.new_mean, first.new_var)} == {
        np.dtype(np.float64)
    }


def test_no_change_is_no_change_even_from_a_variance_of_zero():
    zero, one = np.zeros(1), np.ones(1)
    still = nw.LayerDrift("", 2, one, zero, one, zero)
    assert (still.mean_shift.tolist(), still.var_ratio.tolist()) == ([0.0], [1.0])
    moved = nw.LayerDrift("", 2, zero, zero, one, one)
    assert (moved.mean_shift.tolist(), moved.var_ratio.tolist()) == ([math.inf], [math.inf])


def test_the_table_shows_every_layer_and_names_what_stayed(drift):
    lines = str(drift).splitlines()
    assert lines[0] == "Running statistics of 2 layers from 1 batch, 1 pass"
    assert lines[5].split() == ["0", "3", "4.25", "8", "1", "8.5", "16"]
    assert lines[6].split()[:2] == ["2", "3"]
    assert "Left as they were, reached by no batch: spare." in " ".join(" ".join(lines).split())


def test_a_model_that_is_a_layer_has_a_name():
    assert "the model itself" in str(nw.recalibrate(nn.BatchNorm1d(3), [normal(8, 3)]))


def test_records_and_file_hold_the_same(drift, tmp_path):
    path = tmp_path / "drift.json"
    drift.save(str(path))
    read, about = records.read(path)
    assert read == drift.records()
    assert (about["passes"], about["batches"], about["unreached"], about["frozen"]) == (1, 1, ["spare"], [])
    values = {(r.where["layer"], r.what, r.where["channel"]): r.value for r in read}
    close.within("largest shift", np.array(values["0", "shift of the mean", "largest"]), np.array(8.0), 1e-14)
    close.within("smallest ratio", np.array(values["0", "variance", "smallest"]), np.array(1.0), 1e-14)
    assert len(read) == 10


def test_a_layer_without_old_deviations_has_no_value_and_a_reason(tmp_path):
    layer = nn.BatchNorm1d(2)
    layer.running_var.zero_()
    drift = nw.recalibrate(layer, [normal(8, 2)])
    drift.save(tmp_path / "drift.json")  # JSON has no infinity
    for record in drift.records():
        assert record.value is None
        assert record.where["left out"] == "2 with an old variance of 0 or near it"
    drift.figure(tmp_path / "drift.svg")


@pytest.mark.parametrize(
    ("old", "why"),
    [
        (0.0, "an old variance of 0 or near it"),
        (1e-30, "an old variance of 0 or near it"),
        (-1.0, "a negative old variance"),
        (math.nan, "old statistics that are not finite"),
        (math.inf, "old statistics that are not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in sqrt:RuntimeWarning")
def test_one_channel_without_an_old_deviation_hides_no_other(old, why, tmp_path):
    layer, alone = nn.BatchNorm1d(3), nn.BatchNorm1d(2)
    layer.running_var[1] = old
    x = normal(8, 3)
    drift, want = nw.recalibrate(layer, [x]), nw.recalibrate(alone, [x[:, [0, 2]]])
    assert [r.value for r in drift.records()] == [r.value for r in want.records()]
    assert None not in [r.value for r in drift.records()]
    assert {r.where["left out"] for r in drift.records()} == {f"1 with {why}"}
    assert f"the model itself: 1 with {why}." in " ".join(str(drift).split())
    assert "left out" not in str(want)
    drift.save(tmp_path / "drift.json")
    drift.figure(tmp_path / "drift.svg")


@pytest.mark.parametrize("layers", [1, 2, 30])
def test_the_picture_names_its_lines(layers, tmp_path):
    model = nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(layers)))
    path = tmp_path / "drift.svg"
    nw.recalibrate(model, [normal(8, 3)]).figure(path)
    picture = path.read_text()
    assert picture.startswith("<svg")
    for words in (
        "mean: old deviations; variance: new / old",
        "batch norm layer, in order of execution",
        "variance",
    ):
        assert words in picture
