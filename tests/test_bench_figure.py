"""The picture of a benchmark: a point for every time that was measured, where its numbers say."""

from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("matplotlib")

from made_up_bench import ABOUT, HALF, RECORDS, WON, cell
from normwright.bench.telling import figure
from normwright.cli import app
from normwright.report import records, style
from normwright.report.words import Say

SVG = "{http://www.w3.org/2000/svg}"


def points(axes):
    """The points of a panel by their colour."""
    return {line.get_color(): np.column_stack(line.get_data()).tolist() for line in axes.lines[1:]}


def panels(records, say=None):
    drawn = figure.draw(records, say or Say())
    return {axes.get_title(loc="left"): axes for axes in drawn.axes}


def test_each_time_over_the_floor_is_a_point_at_the_size_of_its_tensor():
    axes = panels(RECORDS)["float32, BN, forward+backward"]
    assert points(axes) == {
        style.WITH: [
            [25.7, pytest.approx(1.25)],
            [67.108864, pytest.approx(3)],
            [0.001024, pytest.approx(8)],
        ],
        style.WITHOUT: [
            [25.7, pytest.approx(3.75)],
            [67.108864, pytest.approx(2.25)],
            [0.001024, pytest.approx(9)],
        ],
        style.THIRD: [[25.7, pytest.approx(2.5)]],
        style.FOURTH: [[25.7, pytest.approx(5)]],
    }
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_there_is_a_panel_for_each_type_operation_and_pass_over_the_same_axes():
    found = panels(RECORDS)
    passes = ("forward", "forward+backward", "inference")
    assert set(found) == {
        f"{dtype}, {op}, {what}"
        for dtype in ("float32", "bfloat16")
        for op in ("BN", "BN+add+ReLU")
        for what in passes
    }
    assert len({axes.get_ylim() for axes in found.values()}) == 1


def test_of_several_numbers_of_threads_the_most_is_drawn():
    alone = cell("1x1", "(N, C)", 4, threads=1, warm=[(1, 1, 1)] * 3)
    axes = panels([*WON, *alone])["float32, BN, forward"]
    assert len(points(axes)[style.WITH]) == 1


def test_names_are_told_by_sign_too_and_in_chinese(tmp_path):
    figure.save(RECORDS, tmp_path / "speed.svg", Say("zh"))
    told = ElementTree.parse(tmp_path / "speed.svg")
    words = {text.text for text in told.iter(f"{SVG}text")}
    assert {"JAX", "torch.compile", "torch", "normwright", "耗时 / 下限", "张量大小（MB）"} <= words
    signs = {line.get_marker() for line in panels(RECORDS)["float32, BN, forward"].lines[1:]}
    assert len(signs) == 4


def test_the_table_command_draws_what_bench_wrote(tmp_path):
    results, picture = tmp_path / "r.json", tmp_path / "speed.svg"
    records.write(results, HALF, **{name: value for name, value in ABOUT.items() if name != "stamp"})
    told = CliRunner().invoke(app, ["table", str(results), "--figure", str(picture)])
    assert (told.exit_code, told.stdout) == (0, "")
    assert ElementTree.parse(picture).getroot().tag == f"{SVG}svg"


def test_what_cannot_be_drawn_is_told_in_one_line(tmp_path):
    empty, other = tmp_path / "empty.json", tmp_path / "other.json"
    records.write(empty, [], experiment="bench")
    records.write(other, HALF, experiment="lab")
    for results, words in ((empty, "got none"), (other, "expected records of bench for --figure, got lab")):
        told = CliRunner().invoke(app, ["table", str(results), "--figure", str(tmp_path / "x.svg")])
        assert told.exit_code == 1
        assert words in told.stderr
        assert told.stderr.count("\n") == 1
