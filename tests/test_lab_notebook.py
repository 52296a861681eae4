"""The notebook: what was measured stays measured, whatever cuts the run off."""

import json
import math

import pytest

from normwright.lab.notebook import Notebook
from normwright.report.records import Record
from tiny_lab import Counted

ONE = [
    Record("accuracy", 0.5, "fraction", {"seed": 0}, 13),
    Record("failed at", None, "steps", {"seed": 0}, 16),
]
TWO = [Record("accuracy", 1 / 3, "fraction", {"seed": 1, "name": "深 – 网络"}, 13)]


class Trials:
    """Trials by name, and how often each was measured."""

    def __init__(self, **records: list[Record]) -> None:
        self.records = records
        self.measured: list[str] = []

    def ask(self, notebook: Notebook, name: str, work: float = 10.0) -> list[Record]:
        def measure() -> list[Record]:
            self.measured.append(name)
            return self.records[name]

        return notebook.once(name, work, measure)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trials.jsonl"


def test_a_trial_is_measured_once_however_often_it_is_asked_for():
    trials, notebook = Trials(one=ONE, two=TWO), Notebook(Counted())
    assert [trials.ask(notebook, name) for name in ("one", "two", "one")] == [ONE, TWO, ONE]
    assert trials.measured == ["one", "two"]


def test_trials_are_taken_up_from_the_file_as_they_were(path):
    before = Trials(one=ONE, two=TWO)
    first = Notebook(Counted(), path)
    for name in ("one", "two"):
        before.ask(first, name)
    after, second = Trials(three=TWO), Notebook(Counted(), path)
    assert second.resumed == 2
    assert [after.ask(second, name) for name in ("two", "one", "three")] == [TWO, ONE, TWO]
    assert after.measured == ["three"]
    assert first.resumed == 0


def test_a_trial_stands_in_the_file_as_soon_as_it_is_complete(path):
    notebook = Notebook(Counted(), path)
    Trials(one=ONE).ask(notebook, "one")
    assert [json.loads(line)["trial"] for line in path.read_text().splitlines()] == ["one"]


@pytest.mark.parametrize(
    "keep", [1, 30, -2, -1], ids=["its first byte", "a few", "all but two", "no newline"]
)
def test_a_line_that_was_cut_off_is_measured_again_and_the_file_is_whole_after(path, keep):
    trials, notebook = Trials(one=ONE, two=TWO), Notebook(Counted(), path)
    for name in ("one", "two"):
        trials.ask(notebook, name)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[:first] + whole[first:][:keep])
    again, resumed = Trials(one=ONE, two=TWO), Notebook(Counted(), path)
    assert [again.ask(resumed, name) for name in ("one", "two")] == [ONE, TWO]
    # A line that lacks its newline alone says all it has to say.
    assert again.measured == ([] if keep == -1 else ["two"])
    assert path.read_bytes() == whole


def test_a_trial_that_raises_is_not_written_and_is_measured_again(path):
    notebook = Notebook(Counted(), path)

    def breaks() -> list[Record]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        notebook.once("one", 10, breaks)
    trials = Trials(one=ONE)
    assert trials.ask(notebook, "one") == ONE
    assert Notebook(Counted(), path).resumed == 1


def test_the_watch_hears_of_trials_that_begin_and_not_of_those_known(path):
    watch = Counted()
    trials, notebook = Trials(one=ONE, two=TWO), Notebook(watch, path)
    for name in ("one", "two", "one"):
        trials.ask(notebook, name)
    assert watch.trials == ["one", "two"]
    later = Counted()
    trials.ask(Notebook(later, path), "one")
    assert later.trials == []


# --- the work that the watch hears of --------------------------------


def test_fresh_work_is_told_once():
    watch = Counted()
    trials, notebook = Trials(one=ONE, two=TWO), Notebook(watch)
    trials.ask(notebook, "one", 10)
    trials.ask(notebook, "two", 5)
    assert watch.work == 15


def test_resumed_work_is_told_once(path):
    trials = Trials(one=ONE, two=TWO)
    trials.ask(Notebook(Counted(), path), "one", 10)
    watch = Counted()
    resumed = Notebook(watch, path)
    for name in ("one", "one", "two"):
        trials.ask(resumed, name, 10)
    assert watch.work == 20


def test_a_trial_asked_for_again_is_no_more_work():
    watch = Counted()
    trials, notebook = Trials(one=ONE), Notebook(watch)
    for _ in range(3):
        trials.ask(notebook, "one", 10)
    assert watch.work == 10


@pytest.mark.parametrize("steps", [0, 4, 10], ids=["at its end", "partly as it goes", "all as it goes"])
def test_work_told_by_the_trial_itself_is_not_told_twice(steps):
    watch, heard = Counted(), []
    notebook = Notebook(watch)

    def measure() -> list[Record]:
        for _ in range(steps):
            notebook.advance(1.0)
            heard.append(watch.work)
        return ONE

    notebook.once("one", 10, measure)
    assert heard == list(range(1, steps + 1))
    assert watch.work == 10


def test_work_of_a_trial_that_broke_off_does_not_count_for_the_next():
    watch = Counted()
    notebook = Notebook(watch)

    def breaks() -> list[Record]:
        notebook.advance(7)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        notebook.once("one", 10, breaks)
    Trials(two=TWO).ask(notebook, "two", 10)
    assert watch.work == 17


# --- numbers that are none -------------------------------------------


@pytest.mark.parametrize("kept", [True, False], ids=["in a file", "in memory"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused_where_it_arises(path, kept, value):
    notebook = Notebook(Counted(), path if kept else None)
    with pytest.raises(ValueError, match="JSON"):
        notebook.once("broken", 1, lambda: [Record("accuracy", value, "fraction")])
    trials = Trials(broken=ONE)
    assert trials.ask(notebook, "broken") == ONE  # not taken for known
    if kept:
        assert Notebook(Counted(), path).resumed == 1
