"""Pictures: names that can be read, gaps that are gaps, and files that are sound on light and on dark paper."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Annotation

from normwright.report import figures, style
from normwright.report.figures import LABELS_APART, Axis, Dots, Line, dots, lines, save, svg

X, Y = Axis("step"), Axis("accuracy")
ROUNDING = 1e-9
SVG = "{http://www.w3.org/2000/svg}"


def line(*heights, label="with BN", colour=style.WITH, **more):
    return Line(label, range(len(heights)), heights, colour, **more)


def words(element: str) -> list[str]:
    return [text.text for text in ElementTree.fromstring(element).iter(f"{SVG}text") if text.text]


# --- names at the ends of lines --------------------------------------


@pytest.mark.parametrize(
    "heights",
    [
        pytest.param([0.9, 0.5, 0.1], id="far apart"),
        pytest.param([0.5] * 5, id="five at one place"),
        pytest.param([0.0] * 5, id="all at the bottom"),
        pytest.param([1.0] * 5, id="all at the top"),
        pytest.param([1.0, 0.99, 0.03, 0.02, 0.0], id="at both ends"),
        pytest.param([0.3, 0.08, 0.07, 0.02], id="pushed up from the bottom"),
        pytest.param([0.4], id="one"),
        pytest.param([], id="none"),
    ],
)
def test_names_are_apart_in_their_order_and_inside(heights):
    placed = figures._apart(heights)
    assert len(placed) == len(heights)
    gaps = [upper - lower for upper, lower in pairwise(placed)]
    assert all(gap >= LABELS_APART - ROUNDING for gap in gaps)
    assert all(-ROUNDING <= height <= 1 + ROUNDING for height in placed)


def test_names_that_are_apart_already_stay_where_they_are():
    assert figures._apart([0.9, 0.5, 0.1]) == [0.9, 0.5, 0.1]


def test_names_stand_at_the_ends_of_their_lines_highest_first():
    drawn = [line(0.5, 0.1, label="low"), line(0.5, 0.9, label="high"), line(0.5, 0.5, label="")]
    figure = lines(drawn, X, Axis("accuracy", low=0.0, high=1.0))
    heights = {text.get_text(): text.xy[1] for text in figure.axes[0].texts if isinstance(text, Annotation)}
    assert heights == {"high": pytest.approx(0.9), "low": pytest.approx(0.1)}


def test_the_end_of_a_line_on_a_logarithmic_axis_is_measured_in_powers():
    figure = lines([line(1.0, 10.0)], X, Axis("distance", log=True, low=1.0, high=100.0))
    (name,) = figure.axes[0].texts
    assert name.xy[1] == pytest.approx(0.5)


def test_a_line_that_leaves_the_picture_has_its_name_at_the_edge():
    figure = lines(
        [line(0.5, 9.0, label="up"), line(0.5, -9.0, label="down")], X, Axis("y", low=0.0, high=1.0)
    )
    assert {text.get_text(): text.xy[1] for text in figure.axes[0].texts} == {"up": 1.0, "down": 0.0}


# --- lines ------------------------------------------------------------


def test_a_line_is_the_median_and_its_band_the_range():
    drawn = Line("", [0, 1], [[1.0, 4.0], [2.0, 6.0], [9.0, 5.0]], style.WITH)
    assert drawn.middle.tolist() == [2.0, 5.0]
    axes = lines([drawn], X, Y).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [2.0, 5.0]
    edges = axes.collections[0].get_paths()[0].vertices
    assert {(x, y) for x, y in edges.tolist()} == {(0, 1), (0, 9), (1, 4), (1, 6)}


@pytest.mark.parametrize(
    "heights",
    [
        pytest.param([1.0, None, 3.0], id="one repetition"),
        pytest.param([[1.0, None, 3.0], [2.0, 2.0, None]], id="several"),
        pytest.param([[1.0, 2.0, None], [1.0, 2.0, None]], id="at the end"),
        pytest.param([None, None, None], id="nothing at all"),
    ],
)
@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_gaps_are_gaps(heights, log):
    drawn = Line("with BN", [1, 2, 3], heights, style.WITH)
    axis = Axis("y", log=log, low=0.5, high=4.0)
    assert "with BN" in words(svg(lines([drawn], Axis("x", log=log), axis), "gaps"))
    missing = np.array([None in column for column in zip(*np.atleast_2d(heights), strict=True)])
    assert np.isnan(drawn.middle).tolist() == missing.tolist()


def test_a_logarithmic_axis_takes_zero_and_names_powers_of_ten():
    drawn = Line("BN", [1, 10, 100], [0.0, 1e-6, 1.0], style.WITH)
    told = words(svg(lines([drawn], Axis("x", log=True), Axis("y", log=True)), "log"))
    assert {"1", "10", "100"} <= set(told)
    assert "1e-6" in told


@pytest.mark.parametrize(
    ("value", "axis", "tick"),
    [
        (0.975, Axis("", percent=True), "97.5 %"),
        (1.0, Axis("", percent=True), "100 %"),
        (0.30000000000000004, Axis(""), "0.3"),
        (-2.5, Axis(""), "−2.5"),
        (1e-3, Axis("", log=True), "0.001"),
        (1e-7, Axis("", log=True), "1e-7"),
        (1e5, Axis("", log=True), "1e5"),
        (1e5, Axis(""), "100000"),
    ],
)
def test_ticks_are_short(value, axis, tick):
    assert figures._tick(value, axis) == tick


def test_an_axis_is_cut_where_it_says():
    axes = lines([line(0.2, 0.9)], Axis("x", low=0.25, high=0.75), Axis("y", low=0.5, high=1.0)).axes[0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0.25, 0.75), (0.5, 1.0))


def test_a_mark_stands_at_its_point_with_its_words_and_in_its_colour():
    figure = lines([line(0.2, 0.9, marks=((1, 0.9, "40 steps"),))], X, Y)
    dot = figure.axes[0].lines[-1]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (1, 0.9)
    assert to_hex(dot.get_color()) == style.WITH
    assert "40 steps" in words(svg(figure, "mark"))


# --- dots -------------------------------------------------------------


def test_every_measurement_is_a_dot_and_the_median_a_bar():
    rows = [Dots("with", [0.1, 0.4, 0.2], style.WITH), Dots("without", [0.3], style.WITHOUT)]
    figure = dots(rows, Axis("accuracy", percent=True, low=0.0, high=1.0), level=0.5)
    seen = [(list(map(float, each.get_xdata())), list(each.get_ydata())) for each in figure.axes[0].lines]
    assert ([0.1, 0.4, 0.2], [0, 0, 0]) in seen
    assert ([0.2], [0]) in seen
    assert ([0.3], [1]) in seen
    assert figure.axes[0].get_xlim() == (0.0, 1.0)
    assert {"with", "without", "accuracy", "40 %"} <= set(words(svg(figure, "dots")))


def test_the_first_row_of_dots_is_on_top():
    low, high = dots([Dots("a", [1.0], style.WITH), Dots("b", [2.0], style.WITH)], X).axes[0].get_ylim()
    assert low > high


# --- Chinese ----------------------------------------------------------


def assert_chinese(element: str, *expected: str) -> None:
    """The words are there as they were, and no sign that stood for another while widths were measured."""
    told = words(element)
    assert [each for each in expected if each not in told] == []
    assert not re.search(r"[\u4dc0-\u4dff]", element)


def test_chinese_words_come_back_in_a_picture_of_lines():
    drawn = [line(0.1, 0.9, label="有 BN", marks=((1, 0.9, "40 步"),)), line(0.1, 0.2, label="无 BN")]
    element = svg(lines(drawn, Axis("训练步数"), Axis("验证准确率（%）")), "zh")
    assert_chinese(element, "有 BN", "无 BN", "40 步", "训练步数", "验证准确率（%）")


def test_chinese_words_come_back_in_a_picture_of_dots():
    rows = [Dots("有 BN", [1.0, 2.0], style.WITH), Dots("无 BN", [3.0], style.WITHOUT)]
    assert_chinese(svg(dots(rows, Axis("步数")), "zh"), "有 BN", "无 BN", "步数")


def test_more_different_signs_than_stand_ins_are_refused():
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 65)))
    with pytest.raises(ValueError, match="at most 64 Chinese signs in a picture, got 65"):
        svg(lines([line(1, 2, label=many)], X, Y), "many")


# --- files ------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    tones = [style.LIGHT[tone] for tone in style.DRAWN if tone not in ("ink", "faint")]
    some = [line(0.1 * n, 0.9, 0.1 * n, label=f"line {n}", colour=tone) for n, tone in enumerate(tones)]
    return lambda: lines(some, X, Y, level=0.5)


def test_colours_become_the_pages_variables(drawn):
    element = svg(drawn(), "race")
    assert set(re.findall(r"var\(--(\w+)\)", element)) == set(style.DRAWN)
    assert re.findall(r"#[0-9a-fA-F]{6}\b", element) == []


def test_ids_begin_with_the_pictures_name_and_every_reference_has_its_target(drawn):
    element = svg(drawn(), "race-mlp")
    ids = re.findall(r'\bid="([^"]*)"', element)
    assert ids
    assert all(each.startswith("race-mlp-") for each in ids)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#([^")]*)', element)
    assert used
    assert set(used) <= set(ids)


def test_the_same_picture_is_the_same_file(drawn):
    assert svg(drawn(), "race") == svg(drawn(), "race")


def test_a_saved_picture_stands_alone_on_light_and_on_dark_paper(drawn, tmp_path):
    path = tmp_path / "race-mlp.svg"
    save(drawn(), path)
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    look = root.find(f"{SVG}style").text
    light, _, rest = look.partition("@media (prefers-color-scheme: dark)")
    for tone in style.DRAWN:
        assert f"--{tone}: {style.LIGHT[tone]};" in light
        assert f"--{tone}: {style.DARK[tone]};" in rest
    assert re.findall(r"https?://[^\s\"'<]*", re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)) == []
    assert "race-mlp-figure_1" in text


# --- readable colours -------------------------------------------------


def luminance(tone: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(tone[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """From 1, the same, to 21, black on white."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_measured_as_wcag_does():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


WRITTEN = [tone for tone in style.LIGHT if tone not in ("paper", "card", "line", "faint")]


@pytest.mark.parametrize("paper", ["card", "paper"])
@pytest.mark.parametrize("tones", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_every_tone_that_words_are_written_in_can_be_read(tones, paper):
    assert {
        tone: contrast(tones[tone], tones[paper])
        for tone in WRITTEN
        if contrast(tones[tone], tones[paper]) < 4.5
    } == {}


@pytest.mark.parametrize("tones", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_faint_lines_can_be_seen(tones):
    assert contrast(tones["faint"], tones["card"]) >= 3  # WCAG 2.2, 1.4.11: graphics; words are never faint


def test_light_and_dark_have_the_same_tones():
    assert list(style.LIGHT) == list(style.DARK) == list(style.PRINT)
