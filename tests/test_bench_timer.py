"""The one timer, with a clock that only contenders move."""

import gc
from statistics import median

import pytest

from normwright.bench.timer import WARM_UP_ROUNDS, Budget, Contender, Timing, WrongValues, race

ROUNDS = 8
BUDGET = Budget(seconds=0, least=ROUNDS, most=ROUNDS)


class Track:
    """A clock, and a log of what happened."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def clock(self):
        return self.now

    def contender(self, name, seconds, **others):
        """Its n-th run takes the n-th of `seconds`; the last over and over."""
        runs = []

        def run():
            runs.append(name)
            self.log.append(name)
            self.now += seconds[min(len(runs), len(seconds)) - 1]

        return Contender(name, run, **{"check": lambda: self.log.append(f"check {name}"), **others})


def test_everyone_is_checked_then_warmed_up_then_timed_once_a_round():
    track = Track()
    contenders = [track.contender(name, [1.0]) for name in "abc"]
    race(contenders, BUDGET, clock=track.clock)
    assert track.log[:3] == ["check a", "check b", "check c"]
    runs = track.log[3:]
    rounds = [runs[n : n + 3] for n in range(0, len(runs), 3)]
    assert [sorted(each) for each in rounds] == [["a", "b", "c"]] * (WARM_UP_ROUNDS + ROUNDS)


def test_the_order_changes_between_rounds_and_is_the_same_in_every_run():
    logs = []
    for _ in range(2):
        track = Track()
        race([track.contender(name, [1.0]) for name in "abc"], BUDGET, clock=track.clock)
        logs.append(track.log)
    assert logs[0] == logs[1]
    timed = logs[0][3 + 3 * WARM_UP_ROUNDS :]
    assert len({tuple(timed[n : n + 3]) for n in range(0, len(timed), 3)}) > 2


def test_medians_and_quartiles_are_those_of_the_timed_rounds_alone():
    track = Track()
    slow_start = [100.0] * WARM_UP_ROUNDS
    told = race(
        [
            track.contender("a", [*slow_start, 5.0, 1.0, 4.0, 2.0, 3.0]),
            track.contender("b", [*slow_start, 7.0]),
        ],
        Budget(0, 5, 5),
        clock=track.clock,
    )
    assert told["a"].quartiles == (2.0, 3.0, 4.0)
    assert told["a"].median == median([1, 2, 3, 4, 5])
    assert told["b"].samples == (7.0,) * 5


def test_letting_a_result_go_and_resetting_are_nobodys_time():
    track = Track()

    class Memory:
        def __del__(self):
            track.now += 50

    def reset():
        track.now += 20

    contender = track.contender("a", [1.0], reset=reset)
    returning = Contender("b", lambda: (contender.run(), Memory()), lambda: None, reset)
    told = race([contender, returning], BUDGET, clock=track.clock)
    assert told["a"].samples == told["b"].samples == (1.0,) * ROUNDS


def test_a_wrong_contender_is_refused_before_anyone_is_timed():
    track = Track()

    def check():
        raise WrongValues("b: NaN")

    with pytest.raises(WrongValues, match="b: NaN"):
        race(
            [track.contender("a", [1.0]), track.contender("b", [1.0], check=check)],
            BUDGET,
            clock=track.clock,
        )
    assert track.log == ["check a"]


def test_who_is_refused_is_left_out_of_a_race_that_can_do_without():
    track = Track()

    def check():
        raise WrongValues("b: NaN")

    refused = {}
    told = race(
        [track.contender("a", [1.0]), track.contender("b", [1.0], check=check)],
        BUDGET,
        clock=track.clock,
        refused=refused,
    )
    assert refused == {"b": "b: NaN"}
    assert list(told) == ["a"]
    assert "b" not in track.log


def test_a_contender_sits_out_after_its_rounds():
    track = Track()
    told = race(
        [track.contender("a", [1.0]), track.contender("b", [1.0], rounds=3)], BUDGET, clock=track.clock
    )
    assert {name: len(timing.samples) for name, timing in told.items()} == {"a": ROUNDS, "b": 3}


def test_garbage_is_not_collected_meanwhile_and_again_afterwards():
    seen = []
    contender = Contender("a", lambda: seen.append(gc.isenabled()), lambda: None)
    race([contender], BUDGET)
    assert set(seen) == {False}
    assert gc.isenabled()

    def breaks():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race([Contender("a", breaks, lambda: None)], BUDGET)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("budget", "rounds"),
    [
        (Budget(seconds=10, least=2, most=100), 10),  # until the seconds are over
        (Budget(seconds=1, least=4, most=100), 4),  # slow contenders still get their least
        (Budget(seconds=1e9, least=2, most=7), 7),  # fast ones do not go on for ever
    ],
)
def test_a_race_ends_when_its_budget_says(budget, rounds):
    track, told = Track(), []
    timing = race([track.contender("a", [1.0])], budget, clock=track.clock, tell=told.append)["a"]
    assert len(timing.samples) == rounds
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(told) == rounds


def test_one_after_the_other_adds_up_round_by_round():
    assert Timing((1.0, 2.0, 9.0)).then(Timing((10.0, 30.0, 20.0))).samples == (11.0, 32.0, 29.0)
