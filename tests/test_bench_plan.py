"""What is measured of whom, and the words of a command line that ask for it."""

import importlib.util

import pytest
from typer.testing import CliRunner

from normwright.bench import run
from normwright.bench.grid import Entry, Grid
from normwright.bench.processes import CannotMeasure
from normwright.bench.run import Order
from normwright.bench.timer import Budget
from normwright.cli import app
from normwright.kernels import NATIVE

TINY = Entry((4, 3, 5, 5), "channels-last", "small", subset=True, types=True)
OTHER = Entry((600, 1000), "(N, C)", "over a megabyte")
GRID = Grid((TINY, OTHER), {"listed": {TINY.place: 1.0, OTHER.place: 1.0}})
BUDGET = Budget(seconds=0, least=2, most=2)
EVERYONE = ["torch", "torch.compile", "jax", "normwright"]
measures = pytest.mark.skipif(
    not NATIVE or importlib.util.find_spec("torch") is None, reason="takes torch and native kernels"
)


def planned(order, names=EVERYONE):
    """Input, type, state and rivals of each job."""
    jobs = run.plan(order, GRID, names, ["warm", "default"], BUDGET)
    return [(j.case.size, j.case.dtype, j.allocator, ",".join(j.names)) for j in jobs]


@pytest.fixture(autouse=True)
def counting(monkeypatch):
    monkeypatch.setattr(run, "can_count", lambda: True)


def test_rivals_that_take_long_and_the_other_state_are_measured_on_the_subset():
    everyone, quick_ones = ",".join(EVERYONE), "torch,normwright"
    assert planned(Order()) == [
        ("4x3x5x5", "float32", "warm", everyone),
        ("4x3x5x5", "float32", "default", quick_ones),
        ("4x3x5x5", "bfloat16", "warm", everyone),
        ("4x3x5x5", "bfloat16", "default", quick_ones),
        ("4x3x5x5", "float16", "warm", quick_ones),
        ("4x3x5x5", "float64", "warm", quick_ones),
        ("600x1000", "float32", "warm", quick_ones),
        ("600x1000", "float32", "counting", quick_ones),
        ("600x1000", "bfloat16", "warm", quick_ones),
        ("600x1000", "bfloat16", "counting", quick_ones),
    ]


def test_cells_chosen_by_name_are_measured_wholly():
    jobs = run.plan(Order(only=r"600.* float32 bn\+relu"), GRID, EVERYONE, ["warm", "default"], BUDGET)
    assert [(j.ops, j.allocator, len(j.names)) for j in jobs] == [
        (("bn+relu",), "warm", 4),
        (("bn+relu",), "default", 2),
        (("bn+relu",), "counting", 4),
    ]


def test_quickly_two_types_in_one_state_and_rivals_that_take_long_only_by_name():
    assert {told[1:] for told in planned(Order(quick=True)) if told[2] == "warm"} == {
        ("float32", "warm", "torch,normwright"),
        ("bfloat16", "warm", "torch,normwright"),
    }
    named = planned(Order(quick=True, names=("jax",)), names=["jax", "normwright"])
    assert {names for *_, names in named} == {"jax,normwright"}


def test_every_number_of_threads_is_a_run_of_its_own():
    jobs = run.plan(Order(threads=(1, 2)), GRID, EVERYONE, ["warm"], BUDGET)
    assert [j.threads for j in jobs] == [1] * (len(jobs) // 2) + [2] * (len(jobs) // 2)


def test_where_memory_cannot_be_counted_nothing_is_planned_for_it(monkeypatch):
    monkeypatch.setattr(run, "can_count", lambda: False)
    assert "counting" not in {state for _, _, state, _ in planned(Order())}


@pytest.mark.parametrize(
    ("words", "order", "command"),
    [
        ({}, Order(), "normwright bench"),
        ({"quick": True}, Order(quick=True), "normwright bench --quick"),
        ({"threads": ["1,2", "2"]}, Order(threads=(1, 2)), "normwright bench --threads 1,2"),
        ({"threads": ["all"]}, Order(threads=(3,)), "normwright bench --threads 3"),
        ({"only": "a b"}, Order(only="a b"), "normwright bench --only 'a b'"),
        (
            {"contenders": "torch,jax"},
            Order(names=("torch", "jax")),
            "normwright bench --contenders torch,jax",
        ),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value,
)
def test_words_of_the_command_line_become_an_order_and_back(monkeypatch, words, order, command):
    monkeypatch.setattr(run, "_cores", lambda: 3)
    assert Order.of(**words) == order
    assert order.command == command


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--threads", "0"], "expected --threads from 1, or all, got 0."),
        (["--threads", "1,many"], "expected --threads from 1, or all, got many."),
        (["--only", "("], "expected --only to be a regular expression, got '(': "),
        (["--only", "no such cell"], "expected --only to be found in a cell's name, got 'no such cell'."),
        (
            ["--contenders", "torch,tensorflow"],
            "expected --contenders among torch, torch.compile, jax, normwright, got tensorflow.",
        ),
        (["--json", "a", "--save", "b"], "expected --json or --save, got both."),
    ],
    ids=str,
)
@measures
def test_what_cannot_be_is_answered_in_one_line(line, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["bench", *line])
    assert told.exit_code == 2
    assert told.stderr.startswith(f"normwright bench: {words}")
    assert told.stderr.count("\n") == 1


@measures
def test_a_contender_that_is_not_here_is_asked_for_in_vain(monkeypatch):
    monkeypatch.setattr("normwright.bench.peers.missing", lambda: {"jax": "it is not installed"})
    with pytest.raises(CannotMeasure, match="that are here, got jax: it is not installed"):
        run._contenders(Order(names=("jax",)))
    names, missing = run._contenders(Order())
    assert names == ["torch", "torch.compile", "normwright"]
    assert missing == {"jax": "it is not installed"}
    assert run._contenders(Order(names=("torch",))) == (["torch", "normwright"], {})
