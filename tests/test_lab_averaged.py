"""Averaged weights: each of the statistics is what its column says, and the table is made of what was measured."""

import io
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from normwright.cli import app
from normwright.lab import averaged
from normwright.lab.averaged import STATISTICS, Average, Plan
from normwright.lab.networks import MLP
from normwright.lab.train import Budget
from normwright.report.records import Record

TEXT = (Path(__file__).parent.parent / "docs" / "statistics.md").read_text(encoding="utf-8")
SWA, EMA = Average("mean", None, begins=0.5, every=10), Average("slow", 0.99)
TINY = Plan(MLP, 1.0, Budget(40, 60, 40), 1, (SWA, EMA))
cli = CliRunner()


@pytest.fixture(scope="module")
def told():
    """The models whose statistics are compared, by average and column, with the records."""
    seen = {}

    def keep(average, seed, found, data, batches):
        seen[average] = {name: deepcopy(model) for name, model in found.items()}
        seen["batches"] = batches
        return real(average, seed, found, data, batches)

    real = averaged._told
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(averaged, "_told", keep)
        records = list(averaged.measure(TINY))
    return seen, records


def layer(model):
    (found,) = (module for module in model.modules() if isinstance(module, nn.BatchNorm1d))
    return found


def test_every_column_has_the_same_weights(told):
    for average in TINY.averages:
        columns = told[0][average.name]
        assert tuple(columns) == STATISTICS
        for model in columns.values():
            for one, other in zip(model.parameters(), columns["copied"].parameters(), strict=True):
                assert torch.equal(one, other)
    trained = told[0]["none: the trained network"]
    assert tuple(trained) == ("copied", "recalibrate")


def test_each_of_the_statistics_is_what_its_column_says(told):
    seen, _ = told
    trained = layer(seen["none: the trained network"]["copied"])
    for average in TINY.averages:
        fresh, copied, both, own = (layer(seen[average.name][name]) for name in STATISTICS)
        assert (fresh.running_mean == 0).all()
        assert (fresh.running_var == 1).all()
        assert torch.equal(copied.running_mean, trained.running_mean)
        assert not torch.equal(both.running_mean, trained.running_mean)
        front = seen[average.name]["recalibrate"][:2].double()
        exact = front(torch.cat(seen["batches"]).double())
        # the network computes in float32: 784 products of rounded weights, each mean relative to its deviation
        off = (own.running_mean - exact.mean(0)).abs() / exact.std(0)
        assert off.max() < 1e-4


def test_an_average_begins_when_it_is_told_and_takes_in_what_it_is_told(monkeypatch):
    taken = []
    real = averaged.AveragedModel.update_parameters

    def count(self, model):
        taken.append(self)
        real(self, model)

    monkeypatch.setattr(averaged.AveragedModel, "update_parameters", count)
    list(averaged.measure(Plan(MLP, 1.0, Budget(40, 60, 40), 1, (SWA,))))
    assert len(taken) == 2 * 2  # after steps 30 and 40, of 20 to 40; with buffers and without
    assert {average.use_buffers for average in taken} == {True, False}


def test_the_trained_network_is_near_its_own_statistics_and_the_fresh_ones_are_far(told):
    def far(average, statistics):
        (found,) = (
            record.value
            for record in told[1]
            if record.what == "error of the mean"
            and record.where["average"] == average
            and record.where["statistics"] == statistics
        )
        return found

    # one layer: joint and sequential are the same, but for float32
    assert far(EMA.name, "recalibrate") < 1e-6
    assert far(EMA.name, "of the copy's making") > 1
    assert far(EMA.name, "recalibrate") < far(EMA.name, "copied") < far(EMA.name, "of the copy's making")


def test_the_table_has_the_mean_accuracy_and_the_largest_error():
    def made(what, values):
        where = {"average": "slow", "statistics": "copied"}
        return [Record(what, value, "", where) for value in values]

    table = averaged.table(made("test accuracy", [0.5, 0.75]) + made("error of the mean", [0.1, 0.02]), TINY)
    assert table.columns == ("average of the weights", *STATISTICS)
    assert table.rows == (("slow", "", "62.5 %, 0.1", "", ""),)
    assert "1 trainings" in table.note
    broken = averaged.table(made("test accuracy", [0.5]) + made("error of the mean", [0.1, np.nan]), TINY)
    assert broken.rows[0][2] == "50.0 %, nan"


def test_every_step_of_every_training_is_told():
    steps = []
    for record in averaged.measure(Plan(MLP, 1.0, Budget(20, 60, 20), 2, (SWA,)), lambda: steps.append(1)):
        assert len(steps) == 20 * (1 + record.where["seed"])
    assert len(steps) == 40


# --- the page and the command -----------------------------------------


def rows(text):
    between = text.partition("<!-- averages:begin -->")[2].partition("<!-- averages:end -->")[0]
    return [line.strip("| ").split(" | ") for line in between.splitlines() if line.startswith("| ")]


def test_the_page_shows_every_average_and_supports_the_choice_it_makes():
    head, _, trained, *found = rows(TEXT)
    assert head[1:] == list(STATISTICS)
    assert trained[0] == "none: the trained network"
    assert [row[0] for row in found] == [average.name for average in averaged.FULL.averages]
    for row in found:
        right = [float(re.match(r"([\d.]+) %", cell)[1]) for cell in row[1:]]
        far = [float(cell.partition(", ")[2]) for cell in row[1:]]
        # of 497 images 5 times, one is 0.04 %: what is within 0.2 is alike
        assert right[3] >= max(right) - 0.2, row
        assert far[3] == min(far), row


def test_the_table_stands_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- averages:begin --><!-- averages:end -->\nz", encoding="utf-8")
    averaged.run(into=page, console=Console(file=io.StringIO(), width=200), plan=TINY)
    text = page.read_text(encoding="utf-8")
    assert [row[0] for row in rows(text)[2:]] == ["none: the trained network", "mean", "slow"]
    assert text.startswith("a\n")
    assert text.endswith("\nz")


def test_what_goes_wrong_ends_in_one_line(tmp_path, monkeypatch):
    def interrupted(plan, after_step):
        raise KeyboardInterrupt

    page = tmp_path / "page.md"
    page.write_text("nothing here", encoding="utf-8")
    monkeypatch.setattr(averaged, "measure", interrupted)
    told = cli.invoke(app, ["averages", "--into", str(page)])
    assert told.exit_code == 1
    assert told.stderr.startswith(f"normwright averages: into {page}: ")
    told = cli.invoke(app, ["averages", "--into", str(tmp_path / "none.md")])
    assert told.exit_code == 1
    assert told.stderr == f"normwright averages: {tmp_path / 'none.md'}: No such file or directory\n"
    told = cli.invoke(app, ["averages"])
    assert told.exit_code == 130
    assert told.stderr == "normwright averages: stopped; nothing was written.\n"
