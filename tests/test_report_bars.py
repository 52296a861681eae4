"""The bars while something is measured: what they say before the first step, and what fits beside them."""

from io import StringIO

from rich.console import Console

from normwright.report.terminal import Bars


def shown(work):
    """What a terminal of 80 columns was written, while `work` was done with bars for one experiment."""
    console = Console(file=StringIO(), force_terminal=True, width=80, color_system=None)
    with Bars(console) as bars:
        bars.add("race", work=4.0)
        work(bars)
        bars._progress.refresh()
        return console.file.getvalue()


def last(text, name):
    """The last line of that bar."""
    return [line for line in text.replace("\r", "\n").splitlines() if name in line][-1]


def test_before_the_first_step_it_is_said_that_it_starts():
    assert "all: starting" in last(shown(lambda bars: None), "all")


def test_from_the_first_step_on_it_is_not_said_any_more():
    assert "starting" not in last(shown(lambda bars: bars.begin("race", "MLP")), "all")


def test_words_of_usual_length_are_whole_at_80_columns():
    words = "deep CNN with BN, rate 0.1, try 3"
    assert f"race: {words} " in last(shown(lambda bars: bars.begin("race", words)), "race")


def test_what_is_done_is_words_and_no_markup():
    assert "race: [/x] :a: " in last(shown(lambda bars: bars.begin("race", "[/x] :a:")), "race")
