"""Population statistics by three tools: what the tables say of each, and the page that shows them."""

import io
import re
import sys
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from normwright.bench.side_by_side import populations
from normwright.bench.side_by_side.populations import CASES, TOOLS, Off
from normwright.cli import app

PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
TEXT = PAGE.read_text(encoding="utf-8")
PEER = pytest.mark.skipif(
    find_spec("fvcore") is None, reason="fvcore is not installed: pip install normwright[peers]"
)
FLOAT32, FLOAT64 = 2.0**-24, 2.0**-53
BY = {case.title: case for case in CASES}
cli = CliRunner()


# --- ours -------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_ours_is_numpys_of_the_whole_data_set_to_1e_12(case):
    found = populations.try_out(populations.by_us, case, torch.float64)
    x = np.concatenate(case.batches(np.random.default_rng(0)))
    # 1e-12 of the mean itself, which the deviations are counted beside
    assert found.mean <= 1e-12 * (1 + np.abs(x).max() / x.std(axis=0).min())
    assert found.var <= 1e-12
    assert (found.negative, found.failed) == (False, "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_ours_in_float32_is_the_exact_result_rounded_once(case):
    ours, nearest = (
        populations.try_out(populations.by_us, case, torch.float32),
        populations.nearest(case, torch.float32),
    )
    # float64's own errors decide between two float32 neighbours at most
    assert ours.mean <= nearest.mean * (1 + 1e-3)
    assert ours.var <= nearest.var + 1e-12
    assert nearest.var <= FLOAT32


def test_numpy_is_what_exact_fractions_say():
    x = [np.array([[1e3 + 0.03], [1e3]]), np.array([[1e3 - 0.03]])]
    mean, var = populations.truth(x)
    values = np.concatenate(x)[:, 0]
    fractions = [Fraction(value) for value in values.tolist()]
    exact = sum(fractions) / 3
    exact_var = float(sum((value - exact) ** 2 for value in fractions) / 2)
    assert abs(mean[0] - float(exact)) <= 2 * FLOAT64 * 1e3
    assert abs(var[0] / exact_var - 1) < 1e-10  # 3 values, each off by 6e-14 of 0.03


# --- the others -------------------------------------------------------


def by(tool, title, dtype=torch.float32):
    return populations.try_out(TOOLS[tool], BY[title], dtype)


@pytest.mark.parametrize("tool", ["update_bn", pytest.param("fvcore", marks=PEER)])
def test_dropout_that_stays_on_doubles_the_variance_and_more(tool):
    # of (1, 1): E[x^2] of 2x or 0 is 4/2 * 2, its variance 4 - 1 = 3: off by 2, the sample by sqrt(2/3200) of it
    assert abs(by(tool, "Dropout before the layer").var - 2) < 0.3


@PEER
def test_fvcore_is_right_where_its_caller_set_the_modes():
    found = by("fvcore", "The same; only the layer is in training")
    assert found.mean < 1e-6
    assert abs(found.var - 1 / 3200) < 1e-6  # the biased variance


def test_torch_puts_dropout_into_training_whatever_the_caller_set():
    assert by("update_bn", "The same; only the layer is in training").var > 1.7


def test_a_batch_of_2_counts_in_torchs_as_one_of_1000():
    found = by("update_bn", "Batches of 1000 and 2")
    assert found.mean > 0.3
    assert found.var > 0.3


@PEER
def test_fvcore_weighs_batches_by_their_size():
    assert by("fvcore", "Batches of 1000 and 2").mean < 1e-5


@pytest.mark.parametrize("tool", ["update_bn", pytest.param("fvcore", marks=PEER)])
def test_neither_takes_a_batch_of_one(tool):
    assert by(tool, "Batches of 64, 64 and 1").failed == "ValueError"


@PEER
def test_far_from_zero_fvcores_variance_is_lost_in_float32_and_not_in_float64():
    # a mean of squares of 1e6 is known to 6e-8 * 1e6 = 0.06: 66 times the variance of 9e-4
    assert by("fvcore", "Mean 1000, deviation 0.03").var > 1
    assert by("fvcore", "Mean 1000, deviation 0.03", torch.float64).var < 1e-3


def test_torch_leaves_the_variance_between_batches_out():
    drift = by("update_bn", "Drifting data: the mean goes from 0 to 10").var
    assert abs(drift - (1 - 1 / (1 + 100 / 12))) < 0.02  # 1 of 1 + 10^2/12 is within the batches
    assert by("update_bn", "Correlated batches: each of one class, classes 2 deviations apart").var > 0.5


@PEER
def test_fvcore_refuses_a_layer_that_is_used_twice():
    assert by("fvcore", "The layer is used twice in a pass").failed == "AssertionError"


# --- measuring --------------------------------------------------------


def test_an_error_is_the_worst_channels():
    true = np.array([0.0, 0.0]), np.array([4.0, 1.0])
    assert populations.off((np.array([1.0, 0.25]), np.array([4.0, 0.5])), true) == Off(0.5, 0.5)
    assert populations.off((np.array([0.0, 0.0]), np.array([4.0, -1.0])), true) == Off(
        0.0, 2.0, negative=True
    )


def test_every_tool_is_handed_the_same_batches_and_its_numbers_are_taken():
    seen = []

    def tool(model, batches):
        seen.append(batches)
        model[0].running_mean.fill_(3.0)

    for _ in range(2):
        found = populations.try_out(tool, BY["Batches of 1000 and 2"], torch.float32)
    assert 1.8 < found.mean < 2.3  # of data around 1, with a deviation of about 1
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert [len(x) for x in seen[0]] == [1000, 2]


def test_a_tool_that_fails_otherwise_is_no_row_of_a_table():
    def tool(model, batches):
        raise RuntimeError("not this")

    with pytest.raises(RuntimeError, match="not this"):
        populations.try_out(tool, CASES[0], torch.float32)


def test_the_process_stays_as_it_is():
    state = torch.get_rng_state()
    populations.try_out(populations.by_torch, BY["Dropout before the layer"], torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


def test_only_the_layer_is_in_training_where_the_row_says_so():
    case = BY["The same; only the layer is in training"]
    model = case.build()
    case.prepare(model)
    assert [type(m) for m in model.modules() if m.training] == [nn.BatchNorm1d]


# --- the page and the command -----------------------------------------


def cells(text):
    """The rows of both tables of a page, by type and case."""
    between = text.partition("<!-- populations:begin -->")[2].partition("<!-- populations:end -->")[0]
    found = {}
    for block in between.split("**float")[1:]:
        rows = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("| ")]
        found["float" + block[:2]] = {row[0]: row[1:] for row in rows[2:]}
    return found


def test_the_page_shows_every_case_in_both_types():
    found = cells(TEXT)
    assert list(found) == ["float32", "float64"]
    for rows in found.values():
        assert list(rows) == [case.title for case in CASES]
    assert re.search(
        r"^Made by `normwright populations`: normwright .*, torch .*, fvcore \d.*\.$", TEXT, re.M
    )


def test_what_the_page_says_of_ours_is_what_ours_does_now():
    for dtype, limit in ((torch.float32, FLOAT32), (torch.float64, 1e-12)):
        told = cells(TEXT)[str(dtype).removeprefix("torch.")]
        for case in CASES:
            _, var = map(float, told[case.title][2].split(", "))
            assert var <= limit * 1.1, case.title  # one digit is told: 5e-08 of 6e-08, or 6e-08 of 5.96e-08


def test_what_the_page_says_of_torch_is_what_torch_does_now():
    told = cells(TEXT)["float32"]
    for title in (
        "Dropout before the layer",
        "Batches of 1000 and 2",
        "Drifting data: the mean goes from 0 to 10",
    ):
        found = by("update_bn", title)
        assert told[title][0].partition(" ")[0] == f"{populations._number(found.mean)},"
        assert float(told[title][0].partition(", ")[2]) == pytest.approx(found.var, rel=0.05)  # two digits


def made_up(monkeypatch):
    rows = [
        [
            Off(0.5, 1e-8),
            Off(2.0, 44.0, negative=True),
            Off(0.0, 0.0),
            Off(np.nan, np.nan, failed="ValueError"),
        ]
    ]
    monkeypatch.setattr(populations, "measure", lambda dtype: rows * len(CASES))
    monkeypatch.setattr(populations, "_version_of_fvcore", lambda: "9")


def test_the_tables_stand_between_the_markers_and_in_the_terminal(tmp_path, monkeypatch):
    made_up(monkeypatch)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- populations:begin --><!-- populations:end -->\nz", encoding="utf-8")
    console = Console(file=io.StringIO(), width=300)
    populations.run(into=page, console=console)
    text = page.read_text(encoding="utf-8")
    row = ["0.5, 1e-08", "2, 44 (negative)", "0, 0", "ValueError"]
    assert all(each == row for rows in cells(text).values() for each in rows.values())
    assert text.startswith("a\n")
    assert text.endswith("\nz")
    printed = console.file.getvalue()
    assert printed.count("2, 44 (negative)") == 2 * len(CASES)
    assert f"The tables: {page}" in printed


@PEER
def test_a_file_without_the_markers_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(populations, "measure", lambda dtype: pytest.fail("something was done"))
    (tmp_path / "page.md").write_text("nothing here")
    told = cli.invoke(app, ["populations", "--into", str(tmp_path / "page.md")])
    assert told.exit_code == 1
    assert told.stderr.startswith(f"normwright populations: into {tmp_path / 'page.md'}: ")
    assert "populations:begin" in told.stderr
    told = cli.invoke(app, ["populations", "--into", str(tmp_path / "none.md")])
    assert told.exit_code == 1
    assert told.stderr == f"normwright populations: {tmp_path / 'none.md'}: No such file or directory\n"


def test_without_fvcore_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fvcore", None)
    told = cli.invoke(app, ["populations"])
    assert told.exit_code == 2
    words = "normwright: not installed: fvcore. Install with: pip install 'normwright[peers]'\n"
    assert told.stderr == words


@PEER
def test_an_interrupted_command_ends_without_a_traceback(monkeypatch):
    def interrupted(dtype):
        raise KeyboardInterrupt

    monkeypatch.setattr(populations, "measure", interrupted)
    told = cli.invoke(app, ["populations"])
    assert told.exit_code == 130
    assert told.stderr == "normwright populations: stopped; nothing was written.\n"
