"""The tables, from made-up records: every number in them is one of the records', and defeats are seen."""

import io
import re

import pytest
from rich.console import Console

from made_up_bench import ABOUT, HALF, LOST, RECORDS, TIED, WON, cell, rows
from normwright.bench.telling import table
from normwright.bench.telling.cells import cells, geometric_mean, is_defeat
from normwright.report import terminal
from normwright.report.fitting import fit
from normwright.report.records import Record
from normwright.report.words import Say
from terminals import assert_every_word_is_whole, assert_rows_have_names

EN, ZH = Say("en"), Say("zh")
NUMBER = r"\d+(?:\.\d+)*"
PARTS = {"summary": table.summary, "cells": table.per_cell}


def words(markdown):
    return "\n".join(line for line in markdown.splitlines() if not line.startswith("| "))


def titled(markdown, title):
    """The rows of the table with this title."""
    _, _, rest = markdown.partition(f"**{title}**\n\n")
    return rows(rest.partition("\n\n")[0])


# --- in sum -----------------------------------------------------------


def test_the_means_are_geometric_over_cells_beside_each_rival_and_the_floor():
    titles, _, *found = titled(table.summary(RECORDS, ABOUT, EN), "In the mean")
    assert titles == [
        "type", "operation", "pass", "x torch", "least", "x torch.compile", "x JAX", "over floor"
    ]  # fmt: skip
    assert found[:3] == [
        # (3 * 1 * 0.5) ** (1 / 3); the floor is 2, 3 and 10 times as fast; compile and JAX on one cell alone
        ["float32", "BN", "forward", "1.14", "**0.50**", "4.00", "2.00", "3.91"],
        ["float32", "BN", "forward+backward", "1.36", "**0.75**", "2.00", "4.00", "3.11"],
        ["float32", "BN", "inference", "2.29", "2.00", "4.00", "**0.50**", "1.59"],
    ]
    assert found[3] == ["bfloat16", "BN+add+ReLU", "forward", "4.00", "4.00", "-", "-", "2.00"]


def test_a_summary_leaves_the_types_of_the_small_grid_to_the_long_page():
    more = cell("32x8", "(N, C)", 2048, dtype="float64", warm=[(1, 1, 1)] * 3)
    for told, listed in ((table.summary, False), (table.per_cell, True)):
        found = titled(told([*RECORDS, *more], ABOUT, EN), "In the mean")
        assert any(row[0] == "float64" for row in found) == listed


def test_numbers_of_threads_stand_in_a_column_where_there_are_several():
    alone = cell("32x8", "(N, C)", 1024, threads=1, warm=[(2, 1, 1)] * 3)
    titles, _, first, *_ = titled(table.summary([*RECORDS, *alone], ABOUT, EN), "In the mean")
    assert titles[0] == "threads"
    assert first[:5] == ["1", "float32", "BN", "forward", "2.00"]
    assert "**float32, BN, 1 threads**" in table.per_cell([*RECORDS, *alone], ABOUT, EN)


def test_shapes_of_networks_weigh_as_often_as_they_occur():
    found = titled(table.summary(RECORDS, ABOUT, EN), "By where the shapes come from")
    assert found[0] == [
        "shapes", "layout", "type", "forward x torch", "forward+backward x torch", "inference x torch",
        "forward+backward over floor",
    ]  # fmt: skip
    listed = [row for row in found if row[:3] == ["listed", "NCHW", "float32"]]
    models = [row for row in found if row[:3] == ["vision models", "NCHW", "float32"]]
    assert listed == [["listed", "NCHW", "float32", "1.73", "1.50", "2.45", "1.94"]]
    # 3 ** (3 / 4); (3 ** 3 * 0.75) ** (1 / 4); (3 ** 3 * 2) ** (1 / 4); (1.25 ** 3 * 3) ** (1 / 4)
    assert models == [["vision models", "NCHW", "float32", "2.28", "2.12", "2.71", "1.56"]]


def test_defeats_are_listed_the_slowest_first_with_rival_pass_and_state():
    found = titled(table.summary(RECORDS, ABOUT, EN), "Where it is slower")
    assert found[2:] == [
        ["32x64x56x56", "NCHW", "float32", "BN", "JAX: inference 0.50"],
        ["32x8", "(N, C)", "float32", "BN", "torch: forward 0.50"],
        ["1x64x512x512", "NCHW", "float32", "BN", "torch: forward+backward 0.75"],
    ]
    in_default = cell("2x2", "(N, C)", 16, warm=[(1, 1, 1)] * 3, default=[(1, 2, 1), (1, 4, 1), (1, 1, 1)])
    found = titled(table.summary([*RECORDS, *in_default], ABOUT, EN), "Where it is slower")
    assert found[2][-1] == "torch, default memory: forward 0.50, forward+backward 0.25"


def test_of_many_defeats_the_worst_are_listed_and_the_others_counted():
    many = [r for n in range(1, 31) for r in cell(f"{n}x1", "(N, C)", 4, warm=[(1, 1 + n, 1)] * 3)]
    told = table.summary(many, ABOUT, EN)
    found = titled(told, "Where it is slower")
    assert [row[0] for row in found[2:]] == [f"{n}x1" for n in range(30, 10, -1)]
    assert "And 10 more cells." in told


def test_nothing_is_listed_where_nothing_was_lost():
    assert "Where it is slower" not in table.summary(HALF, ABOUT, EN)


def test_verdicts_count_defeats_for_each_rival():
    assert words(table.summary(RECORDS, ABOUT, EN)).startswith(
        "- Never slower than torch: holds partly. Slower in 2 of 15 measurements.\n"
        "- Never slower than torch.compile: holds. Slower in 0 of 3 measurements.\n"
        "- Never slower than JAX: holds partly. Slower in 1 of 3 measurements.\n"
    )
    beaten = cell("2x2", "(N, C)", 16, warm=[(1, 2, 1)] * 3)
    assert "torch: does not hold here. Slower in 3 of 3" in table.summary(beaten, ABOUT, EN)


def test_who_computed_something_else_is_named():
    where = {**WON[0].where, "contender": "jax", "refused": "jax forward: wrong; it was not timed."}
    wrong = [r for r in WON if (r.what, r.where["contender"]) != ("forward", "jax")]
    wrong += [Record("forward", None, "seconds", where)]
    told = table.summary(wrong, ABOUT, EN)
    assert "- Every contender computes what float64 does: does not hold here. jax forward: wrong;" in told
    assert titled(told, "In the mean")[2][6] == "-"
    assert "Every contender" not in table.summary(WON, ABOUT, EN)


# --- cell by cell -----------------------------------------------------


def test_each_cell_has_a_row_and_defeats_come_first():
    told = table.per_cell(RECORDS, ABOUT, EN)
    titles, _, *found = titled(told, "float32, BN")
    assert titles == [
        "shape", "layout", "MB", "forward x torch", "forward+backward x torch", "inference x torch",
        "forward over floor", "forward+backward over floor", "inference over floor", "GB/s", "peak MB",
        "torch's",
    ]  # fmt: skip
    assert found == [
        ["1x64x512x512", "NCHW", "67.1", "1.00", "**0.75**", "2.00", "3.00", "3.00", "2.00", "28", "134", "134"],
        ["32x8", "(N, C)", "0.001", "**0.50**", "1.12", "2.00", "10.00", "8.00", "2.00", "0.0006", "-", "-"],
        ["32x64x56x56", "NCHW", "25.7", "3.00", "3.00", "3.00", "2.00", "1.25", "1.00", "32.1", "51.4", "77.1"],
        ["mean > 8 MB", "NCHW", "-", "1.73", "1.50", "2.45", "2.45", "1.94", "1.41", "30", "-", "-"],
    ]  # fmt: skip
    assert titled(told, "bfloat16, BN+add+ReLU")[2][:4] == ["32x64x56x56", "NCHW", "12.8", "4.00"]


def test_means_are_told_by_layout_too():
    found = titled(table.per_cell(RECORDS, ABOUT, EN), "By layout")
    assert [row[:4] for row in found[2:]] == [
        ["float32", "NCHW", "BN", "2"],
        ["float32", "(N, C)", "BN", "1"],
        ["bfloat16", "NCHW", "BN+add+ReLU", "1"],
    ]
    assert found[2][4:] == ["1.73", "1.50", "2.45", "2.45", "1.94", "1.41"]


def test_those_who_compile_stand_beside_us_where_they_were_measured_with_what_they_need():
    (titles, _, *found) = titled(table.per_cell(RECORDS, ABOUT, EN), "float32 beside those who compile")
    assert titles[3:] == [
        *(f"{what} x {who}" for who in ("torch.compile", "JAX")
          for what in ("forward", "forward+backward", "inference")),
        "torch.compile's peak MB", "JAX's peak MB",
    ]  # fmt: skip
    assert found == [
        ["32x64x56x56", "NCHW", "BN", "4.00", "2.00", "4.00", "2.00", "4.00", "**0.50**", "103", "128"]
    ]  # fmt: skip


def test_the_allocator_as_users_have_it_has_a_table_with_page_faults():
    found = titled(table.per_cell(RECORDS, ABOUT, EN), "float32 in default memory")
    assert found[2:] == [["32x64x56x56", "NCHW", "BN", "2.00", "1.50", "3.00", "7", "7"]]
    about = {**ABOUT, "allocators": {"warm": {}}}
    assert "default memory" not in table.per_cell(RECORDS, about, EN)


def test_a_peak_below_what_the_system_can_tell_is_a_dash():
    small = cell("32x8", "(N, C)", 1024, warm=[(1, 1, 1)] * 3, peaks={"torch": 3, "normwright": 2})
    assert titled(table.per_cell(small, ABOUT, EN), "float32, BN")[2][-2:] == ["-", "-"]


def test_records_of_before_there_were_operations_are_read_as_batch_norm_alone():
    old = [
        Record(r.what, r.value, r.unit, {k: v for k, v in r.where.items() if k not in ("op", "dtype")})
        for r in TIED
        if r.unit == "seconds"
    ]
    assert [c.name for c in cells(old)] == ["1x64x512x512 NCHW float32 bn"]
    assert cells(old)[0].speed_up("forward+backward", "warm") == pytest.approx(0.75)


# --- two languages ----------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("measured", [RECORDS, WON, LOST], ids=["all", "won", "lost"])
def test_the_chinese_tables_have_the_same_numbers_in_the_same_places(part, measured):
    english, chinese = (rows(PARTS[part](measured, ABOUT, say)) for say in (EN, ZH))
    assert len(english) == len(chinese) > 0
    for ours, theirs in zip(english, chinese, strict=True):
        assert [re.findall(NUMBER, field) for field in ours] == [
            re.findall(NUMBER, field) for field in theirs
        ]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("stamp", [ABOUT["stamp"], {**ABOUT["stamp"], "L3 cache bytes": None}])
def test_the_chinese_words_hold_the_same_numbers_and_no_english_sentence(part, stamp):
    english, chinese = (PARTS[part](RECORDS, {**ABOUT, "stamp": stamp}, say) for say in (EN, ZH))
    assert sorted(re.findall(NUMBER, chinese)) == sorted(re.findall(NUMBER, english))
    names = ("Some CPU", "normwright", "torch.compile", "torch", "JAX", "Python", "float32", "bfloat16", "avx2",
             "channels-last", "copy", "triad", "MALLOC_MMAP_MAX_", "bench", "NCHW", "(N, C)", "MB", "GB/s", "L2",
             "L3", "nn.BatchNorm", "nn.ReLU(inplace=True)", "fullgraph", "jit", "VmHWM", "/proc/self/clear_refs",
             "BN+add+ReLU", "BN")  # fmt: skip
    left = re.sub("|".join(map(re.escape, names)) + r"|\d+x[\dx]+", " ", chinese)
    assert set(re.findall("[A-Za-z]+", left)) == {"x"}  # times as fast as


# --- what stands beside -----------------------------------------------


def test_machine_caches_versions_allocator_and_threads_stand_beside_the_tables():
    for tell in PARTS.values():
        told = tell(RECORDS, ABOUT, EN)
        for fact in (
            "9 to 9 interleaved rounds, 2 threads: Some CPU, 2 cores (L2 1 MB, L3 32 MB), avx2 kernels",
            "normwright 0.1.0, torch 2.13.0, Python 3.12.0",
            "torch.compile (fullgraph) and JAX 0.10.2 (jit), compiled before the clock runs: on 1 of 3 shapes",
            "`MALLOC_MMAP_MAX_=0`",
            "Peak: what a training step adds to the resident set",
            "Measured by `normwright bench`.",
        ):
            assert fact in told


def test_nothing_is_said_of_what_was_not_measured():
    about = {**ABOUT, "allocators": {"warm": {}}, "contenders": {"torch": "2", "normwright": "0"}}
    told = table.summary(LOST, about, EN)
    assert [word for word in ("JAX", "torch.compile", "Peak", "Default:") if word in told] == []


def test_a_machine_that_was_busy_is_called_so():
    assert "busy when it began (load 3.1)" in table.summary(WON, {**ABOUT, "load": 3.14}, EN)
    assert "busy" not in table.summary(WON, {**ABOUT, "load": 0.4}, EN)


def test_a_floor_that_is_a_caches_is_called_so():
    assert "a cache's" not in table.summary(TIED, ABOUT, EN)
    assert "No tensor here is twice the last-level cache (32 MB)" in table.summary(WON, ABOUT, EN)


def test_the_terminal_gets_the_means_and_of_few_cells_each():
    document = table.document(RECORDS, ABOUT)
    assert document.headline == (
        "In the geometric mean, warm memory: 1.53 times torch's speed in float32, 4.00 times torch's speed in "
        "bfloat16."
    )
    titles = [shown.title for shown in document.cards[0].tables]
    assert titles == [
        "In the mean", "By where the shapes come from", "Where it is slower", "float32, BN",
        "bfloat16, BN+add+ReLU",
    ]  # fmt: skip
    assert document.cards[0].tables[3].rows[0] == (
        "1x64x512x512", "NCHW", "1.00", "0.75<", "2.00", "134", "3.00", "3.00", "2.00", "28"
    )  # fmt: skip
    many = [r for n in range(50) for r in cell(f"{n}x1", "(N, C)", 4, warm=[(1, 1, 1)] * 3)]
    assert [shown.title for shown in table.document(many, ABOUT).cards[0].tables] == ["In the mean"]


def test_no_cell_is_cut_in_a_terminal_of_80_columns():
    networks = [r for layout in ("NCHW", "channels-last") for r in cell(
        "32x64x112x112", layout, 103_000_000, dtype="bfloat16", op="bn+add+relu",
        warm=[(1234.5, 2, 1, 8, 4), (12, 24, 3.2, 8, 16), (3, 6, 1, 4, 0.5)],
        default=[(8, 9, 1), (15, 20, 4), (3, 4, 1)], peaks={"torch": 3, "normwright": 2},
    )]  # fmt: skip
    for measured in (RECORDS, WON, networks):
        document = table.document(measured, ABOUT)
        for shown in document.cards[0].tables:
            assert_every_word_is_whole(shown, 80)
            assert_rows_have_names(shown)
        printed = io.StringIO()
        terminal.show(document, Console(file=printed, width=80), EN)
        assert max(map(len, printed.getvalue().splitlines())) <= 80
        assert "…" not in printed.getvalue()


def test_a_wide_terminal_shows_the_same_cells_in_whole_tables():
    for shown in table.document(RECORDS, ABOUT).cards[0].tables:
        assert len(fit(shown, 120)) == 1


def test_short_words_for_passes_are_explained_and_kept_from_pages():
    means, *_ = table.document(RECORDS, ABOUT).cards[0].tables
    assert [row[2] for row in means.rows[:3]] == ["fwd", "both", "inf"]
    assert "fwd, both, inf: forward, forward+backward, inference." in means.note
    for tell in PARTS.values():
        cells_of_pages = " ".join(field for row in rows(tell(RECORDS, ABOUT, EN)) for field in row)
        assert not re.search(r"\b(fwd|both|inf)\b", cells_of_pages)


def test_means_are_over_what_there_is():
    assert geometric_mean([None, 2.0, 8.0]) == 4
    assert geometric_mean([None]) is None
    assert geometric_mean([2.0, 32.0], [3.0, 1.0]) == 4
    assert (is_defeat(0.994), is_defeat(0.996), is_defeat(None)) == (True, False, False)
