"""The tables, from made-up records: every number in them is one of the records', and defeats are seen."""

import re

import pytest

from normwright.bench import table
from normwright.report.records import Record
from normwright.report.words import Say

EN, ZH = Say("en"), Say("zh")

ABOUT = {
    "experiment": "bench",
    "command": "normwright bench",
    "allocators": {"warm": {"MALLOC_MMAP_MAX_": "0"}, "default": {}},
    "kernels": {"native": True, "instruction set": "avx2", "last-level cache bytes": 32 << 20},
    "stamp": {
        "processor": "Some CPU",
        "cores": 2,
        "L2 cache bytes": 1 << 20,
        "L3 cache bytes": 32 << 20,
        "python": "3.12.0",
        "normwright": "0.1.0",
        "torch": "2.13.0",
    },
}


def cell(shape, layout, size, *, warm, default):
    """Records of one shape: (torch, normwright, floor) in milliseconds, forward and forward+backward."""
    found = []
    for allocator, both in (("warm", warm), ("default", default)):
        for what, times in zip(("forward", "forward+backward"), both, strict=True):
            moved = size * (2 if what == "forward" else 5)
            where = {"shape": shape, "layout": layout, "allocator": allocator, "threads": 2, "rounds": 9,
                     "bytes": size, "bytes_moved": moved}  # fmt: skip
            for who, ms in zip(("torch", "normwright", "memory"), times, strict=True):
                name = f"floor {what}" if who == "memory" else what
                found.append(Record(name, ms / 1e3, "seconds", {**where, "contender": who}))
    return found


WON = cell(
    "32x64x56x56", "NCHW", 25_700_000, warm=[(6, 2, 1), (12, 4, 3.2)], default=[(8, 4, 1), (15, 10, 4)]
)
TIED = cell("1x64x512x512", "NCHW", 64 << 20, warm=[(3, 3, 1), (9, 12, 4)], default=[(3, 3, 1), (9, 6, 4)])
LOST = cell("32x8", "(N, C)", 1024, warm=[(5, 10, 1), (9, 8, 1)], default=[(9, 8, 1), (9, 8, 1)])
RECORDS = [*WON, *TIED, *LOST]


def rows(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [[field.strip() for field in line.strip("|").split("|")] for line in lines]


def words(markdown):
    return "\n".join(line for line in markdown.splitlines() if not line.startswith("| "))


NUMBER = r"\d+(?:\.\d+)*"


def test_the_readme_table_holds_each_ratio_and_lists_defeats_first():
    assert rows(table.markdown(RECORDS, ABOUT, EN)) == [
        ["shape", "layout", "MB", "fwd x torch, warm", "fwd+bwd x torch, warm", "fwd+bwd x torch, default",
         "fwd+bwd over floor, warm"],
        [":---", ":---", "---:", "---:", "---:", "---:", "---:"],
        ["1x64x512x512", "NCHW", "67.1", "1.00", "**0.75**", "1.50", "3.00"],
        ["32x8", "(N, C)", "0.001", "**0.50**", "1.12", "1.12", "8.00"],
        ["32x64x56x56", "NCHW", "25.7", "3.00", "3.00", "1.50", "1.25"],
        ["mean > 8 MB", "NCHW", "-", "1.73", "1.50", "1.50", "1.94"],
    ]  # fmt: skip


@pytest.mark.parametrize("measured", [RECORDS, WON, LOST])
def test_the_chinese_table_has_the_same_numbers_in_the_same_cells(measured):
    (_, *english), (titles, *chinese) = (rows(table.markdown(measured, ABOUT, say)) for say in (EN, ZH))
    assert [row[1:] for row in chinese] == [row[1:] for row in english]
    assert [row[0].replace("平均，", "mean ") for row in chinese] == [row[0] for row in english]
    assert titles == ["形状", "布局", "MB", "前向速度 / torch，热", "前向+反向速度 / torch，热",
                      "前向+反向速度 / torch，默认", "前向+反向耗时 / 下限，热"]  # fmt: skip


@pytest.mark.parametrize("measured", [RECORDS, WON, LOST])
@pytest.mark.parametrize("stamp", [ABOUT["stamp"], {**ABOUT["stamp"], "L3 cache bytes": None}])
def test_the_chinese_words_hold_the_same_numbers_and_no_english_sentence(measured, stamp):
    english, chinese = (words(table.markdown(measured, {**ABOUT, "stamp": stamp}, say)) for say in (EN, ZH))
    assert sorted(re.findall(NUMBER, chinese)) == sorted(re.findall(NUMBER, english))
    names = ("Some CPU", "normwright", "torch", "Python", "float32", "avx2", "channels-last", "copy", "triad",
             "MALLOC_MMAP_MAX_", "bench", "NCHW", "(N, C)", "MB", "L2", "L3")  # fmt: skip
    left = re.sub("|".join(map(re.escape, names)) + r"|\d+x[\dx]+", " ", chinese)
    assert re.findall("[A-Za-z]+", left) == []


def test_defeats_are_said_in_chinese_with_their_numbers():
    assert table.markdown(RECORDS, ABOUT, ZH).startswith(
        "从不慢于 torch：部分成立。12 项测量中有 2 项更慢："
        "1x64x512x512 NCHW：前向+反向（热）0.75；32x8 (N, C)：前向（热）0.50。\n"
    )
    assert table.markdown(WON, ABOUT, ZH).startswith("从不慢于 torch：成立。4 项测量中有 0 项更慢。\n")


def test_defeats_are_said_in_words_with_their_numbers():
    assert table.markdown(RECORDS, ABOUT, EN).startswith(
        "Never slower than torch: holds partly. Slower in 2 of 12 measurements: "
        "1x64x512x512 NCHW (0.75 forward+backward warm); 32x8 (N, C) (0.50 forward warm).\n"
    )
    assert "Never slower than torch: holds. Slower in 0 of 4 measurements.\n" in table.markdown(
        WON, ABOUT, EN
    )
    beaten = cell("2x2", "(N, C)", 16, warm=[(1, 2, 1)] * 2, default=[(1, 2, 1)] * 2)
    assert "does not hold here. Slower in 4 of 4" in table.markdown(beaten, ABOUT, EN)


def test_machine_caches_versions_allocator_and_threads_stand_beside_the_table():
    told = table.markdown(RECORDS, ABOUT, EN)
    for fact in (
        "9 to 9 interleaved rounds, 2 threads: Some CPU, 2 cores (L2 1 MB, L3 32 MB), avx2 kernels",
        "normwright 0.1.0, torch 2.13.0, Python 3.12.0",
        "`MALLOC_MMAP_MAX_=0`",
        "Measured by `normwright bench`.",
    ):
        assert fact in told


def test_a_floor_that_is_a_caches_is_called_so():
    assert "a cache's" not in table.markdown(TIED, ABOUT, EN)
    assert "No tensor here is twice the last-level cache (32 MB)" in table.markdown(WON, ABOUT, EN)


def test_the_terminal_gets_the_same_rows_and_the_bytes_a_second():
    document = table.document(RECORDS, ABOUT)
    assert (
        document.headline == "Forward and backward over 8 MB, warm memory: 1.50 times torch's speed in NCHW."
    )
    (shown,) = document.cards[0].tables
    assert shown.columns == ("shape", "layout", "fwd", "both", "default", "floor", "GB/s")
    assert shown.rows[0] == ("1x64x512x512", "NCHW", "1.00", "0.75<", "1.50", "3.00", "28")
    assert shown.rows[2][-1] == "32.1"  # 5 * 25.7 MB in 4 ms


def test_where_one_state_of_the_allocator_was_measured_its_columns_are_all_there_is():
    about = {**ABOUT, "allocators": {"default": {}}}
    only = [r for r in WON if r.where["allocator"] == "default"]
    titles, _, row, _ = rows(table.markdown(only, about, EN))
    assert titles[3:] == ["fwd x torch, default", "fwd+bwd x torch, default", "fwd+bwd over floor, default"]
    assert row[3:] == ["2.00", "1.50", "2.50"]
    assert "Warm" not in table.markdown(only, about, EN)


def test_what_was_not_measured_is_a_dash():
    without = [r for r in WON if r.where["contender"] != "torch"]
    row = rows(table.markdown(without, ABOUT, EN))[2]
    assert row == ["32x64x56x56", "NCHW", "25.7", "-", "-", "-", "1.25"]
