"""What is measured: the shapes that were asked for are there, once each, and cells have names to be found by."""

import re

import pytest

from normwright.bench import grid
from normwright.bench.cases import DTYPES, LAYOUTS, OPS, Case, bytes_moved
from normwright.bench.models import counted

FULL = grid.full()
PLACES = {entry.place for entry in FULL.entries}


def test_every_place_is_there_once_and_has_a_reason():
    assert len(PLACES) == len(FULL.entries) >= 24
    assert all(entry.reason for entry in FULL.entries)


@pytest.mark.parametrize(
    ("shape", "layouts"),
    [
        ((32, 64, 112, 112), ["NCHW", "channels-last"]),
        ((16, 3, 224, 224), ["NCHW", "channels-last"]),
        ((1, 64, 512, 512), ["NCHW", "channels-last"]),
        ((2, 16, 64, 64, 64), ["NCHW", "channels-last"]),
        ((32, 512, 7, 7), ["NCHW", "channels-last"]),
        ((32, 256, 14, 14), ["NCHW", "channels-last"]),
        ((32, 64, 56, 56), ["NCHW", "channels-last", "NCHW slice"]),
        ((64, 256, 1, 1), ["NCHW"]),
        ((64, 8192), ["(N, C)"]),
        ((1_000_000, 32), ["(N, C)"]),
        ((32, 8), ["(N, C)"]),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_the_extremes_are_among_them(shape, layouts):
    assert {layout for at, layout in PLACES if at == shape} == set(layouts)


def test_few_channels_and_odd_ones_are_among_them():
    assert {1, 2, 3, 8, 17, 63, 129} <= {shape[1] for shape, _ in PLACES}


def test_a_resnet_50_has_53_batch_norms_in_both_layouts():
    weights = FULL.weights[grid.RESNET_GRID]
    assert sum(weights.values()) == 2 * 53
    assert set(weights) <= PLACES
    assert weights[(8, 256, 14, 14), "channels-last"] == 11


def test_vision_models_weigh_as_often_as_their_shapes_occur():
    weights = FULL.weights[grid.MODELS_GRID]
    assert {shape: w for (shape, layout), w in weights.items() if layout == "NCHW"} == {
        each.shape: each.occurs for each in counted.grid(grid.MODELS)
    }
    assert set(weights) <= PLACES


def test_float32_and_bfloat16_are_everywhere_the_others_where_an_entry_says_so():
    cases = FULL.cases(DTYPES)
    of = {dtype: [entry for entry, case in cases if case.dtype == dtype] for dtype in DTYPES}
    assert of["float32"] == of["bfloat16"] == list(FULL.entries)
    assert of["float16"] == of["float64"] == [entry for entry in FULL.entries if entry.types] != []


def test_the_quick_grid_and_the_subset_hold_every_kind_of_layout():
    assert {entry.layout for entry in grid.quick().entries} == set(LAYOUTS) - {"NCHW slice"}
    assert {e.layout for e in FULL.entries if e.subset} == set(LAYOUTS) - {"NCHW slice"}


def test_a_pattern_chooses_cells_by_their_names():
    case = Case((32, 8), "(N, C)", "bfloat16")
    assert grid.chosen(case, None) == OPS
    assert grid.chosen(case, re.compile("bn$")) == ("bn",)
    assert grid.chosen(case, re.compile(r"^32x8 \(N, C\) bfloat16 bn\+")) == ("bn+relu", "bn+add+relu")
    assert grid.chosen(case, re.compile("float32")) == ()


@pytest.mark.parametrize(
    ("op", "what", "arrays", "bits"),
    [
        ("bn", "forward", 2, 0),
        ("bn+relu", "inference", 2, 0),
        ("bn+relu", "forward+backward", 5, 0),
        ("bn+add+relu", "forward", 3, 1),
        ("bn+add+relu", "inference", 3, 0),
        ("bn+add+relu", "forward+backward", 7, 2),
    ],
)
def test_the_least_that_must_be_moved_is_counted_in_arrays_and_bits(op, what, arrays, bits):
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        case = Case((16, 4), "(N, C)", dtype)
        assert case.bytes == 64 * width
        assert bytes_moved(case, op, what) == arrays * 64 * width + bits * 64 / 8
