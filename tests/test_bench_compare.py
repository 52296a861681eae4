"""Two runs side by side: what changed is told from what the machine did, in numbers made up beforehand."""

import pytest
from typer.testing import CliRunner

from made_up_bench import ABOUT, HALF, TIED, cell
from normwright.bench.telling import compare
from normwright.cli import app
from normwright.report import records


def one(op="bn", shape="32x8", **times):
    """A cell of which torch takes 4 ms, we 2 and the floor 1, or as given for (torch, ours, floor)."""
    return cell(shape, "(N, C)", 1024, op=op, warm=[times.get("warm", (4, 2, 1))] * 3)


def test_a_change_is_told_as_measured_and_by_what_did_not_change():
    # the second machine is twice as slow; ours got no slower beside the floor, and half as slow again beside torch.
    found = compare.changes(one(), one(warm=(16 / 3, 4, 2)))
    assert [c.what for c in found] == ["forward", "forward+backward", "inference"]
    for change in found:
        assert (change.time, change.floor, change.torch) == pytest.approx((2.0, 1.0, 1.5))


@pytest.mark.parametrize(
    ("times", "judged"),
    [
        ((4, 3, 1), 1.5),  # both say half as slow again
        ((8, 3, 1), 1.0),  # torch got slower too: one says slower, the other faster
        ((4, 3, 1.2), 1.25),  # the milder of the two
        ((4, 1, 1), 0.5),
        ((4, 1, 0.6), 1 / 1.2),
        ((4, 2, 1), 1.0),
    ],
)
def test_a_change_counts_as_much_as_both_measures_agree_on(times, judged):
    for change in compare.changes(one(), one(warm=times)):
        assert change.judged == pytest.approx(judged)


def test_without_torch_the_floor_judges_alone():
    def without(records):
        return [r for r in records if r.where["contender"] != "torch"]

    for change in compare.changes(without(one()), without(one(warm=(4, 3, 1)))):
        assert change.torch is None
        assert change.judged == pytest.approx(1.5)


def test_cells_are_matched_by_name_threads_state_and_pass():
    assert compare.changes(one(), one("bn+relu")) == []
    assert compare.changes(one(), cell("32x8", "(N, C)", 1024, threads=1, warm=[(1, 1, 1)] * 3)) == []
    assert compare.changes(one(), cell("32x8", "(N, C)", 1024, default=[(1, 1, 1)] * 3)) == []
    assert len(compare.changes([*one(), *TIED], [*HALF, *one()])) == 3


def document(b, about=ABOUT):
    (card,) = compare.document(([*one(), *one(shape="5x5")], ABOUT), (b, about)).cards
    return {table.title: table for table in card.tables}


def test_the_worst_and_the_best_are_listed_with_all_three_numbers():
    b = [*one(warm=(4, 3, 1)), *one(shape="5x5", warm=(4, 1, 1)), *one(shape="9x9")]
    tables = document(b)
    name = "32x8 (N, C) float32 bn, {}, warm"
    passes = ("forward", "forward+backward", "inference")
    slower = {(name.format(what), "2", "1.50", "1.50", "1.50") for what in passes}
    assert set(tables["Slower in NEW"].rows) == slower
    assert {row[2:] for row in tables["Faster in NEW"].rows} == {("0.50", "0.50", "0.50")}
    # (1.5 * 0.5) ** 0.5
    assert tables["In the mean, NEW over OLD"].rows[0] == (
        "float32", "BN", "forward", "2", "0.87", "0.87", "0.87"
    )  # fmt: skip
    assert "What else differs" not in tables


def test_the_headline_says_what_was_compared():
    told = compare.document((one(), ABOUT), ([*one(warm=(4, 3, 1)), *HALF], ABOUT))
    assert told.headline == (
        "NEW's times over OLD's, in the geometric mean: 1.50 as measured, 1.50 over the floor, 1.50 over torch. "
        "Above 1, NEW is slower."
    )
    assert told.about.startswith("1 cells of 1 in OLD and 2 in NEW.")


def test_other_machines_versions_and_instruction_sets_are_told():
    about = {
        **ABOUT,
        "stamp": {**ABOUT["stamp"], "processor": "Another CPU", "system": "Linux"},
        "kernels": {**ABOUT["kernels"], "instruction set": "avx512"},
        "contenders": {**ABOUT["contenders"], "jax": "0.11"},
    }
    assert document(one(), about)["What else differs"].rows == (
        ("processor", "Some CPU", "Another CPU"),
        ("kernels: instruction set", "avx2", "avx512"),
        ("jax's version", "0.10.2", "0.11"),
        ("system", "-", "Linux"),
    )


# --- the command ------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    records.write(a, one(), **{name: value for name, value in ABOUT.items() if name != "stamp"})
    records.write(b, one(warm=(4, 3, 1)), **{name: value for name, value in ABOUT.items() if name != "stamp"})
    return a, b


def test_the_command_prints_the_tables(files):
    told = CliRunner().invoke(app, ["bench", "compare", *map(str, files)], env={"COLUMNS": "200"})
    assert told.exit_code == 0
    assert "1.50 over the floor" in told.stdout
    assert "32x8 (N, C) float32 bn, forward, warm" in told.stdout


def test_files_that_cannot_be_compared_are_told_in_one_line(files, tmp_path):
    other, strange = tmp_path / "other.json", tmp_path / "strange.json"
    records.write(other, HALF, experiment="bench")
    strange.write_text("{}")
    absent = tmp_path / "absent.json"
    for pair, words in (
        ((files[0], other), "expected two records with cells in common, got none."),
        ((strange, files[0]), f"{strange}: expected records of schema 1, got None."),
        ((files[0], absent), f"{absent}: No such file or directory"),
    ):
        told = CliRunner().invoke(app, ["bench", "compare", *map(str, pair)])
        assert told.exit_code == 1
        assert told.stderr.startswith("normwright bench compare: ")
        assert words in told.stderr
        assert told.stderr.count("\n") == 1
