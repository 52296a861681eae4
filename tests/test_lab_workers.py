"""Experiments side by side: the same numbers as one after the other, and an error that is heard."""

from collections import Counter, defaultdict
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch

from normwright.lab import workers
from normwright.lab.notebook import Notebook
from normwright.lab.registry import EXPERIMENTS
from normwright.lab.workers import Task
from tiny_lab import Counted


class Told:
    """Bars that remember what was told of which experiment."""

    def __init__(self) -> None:
        self.trials: dict[str, list[str]] = defaultdict(list)
        self.work: Counter[str] = Counter()

    def begin(self, experiment: str, what: str) -> None:
        self.trials[experiment].append(what)

    def advance(self, experiment: str, work: float) -> None:
        self.work[experiment] += work


def tiny(name: str, **changes) -> Task:
    return Task(**{"name": name, "size": "tiny", "data": "digits", "seed": 3, "trials": None, **changes})


def work(name: str) -> float:
    return EXPERIMENTS[name].work(EXPERIMENTS[name].plans["tiny"])


def cheapest(count: int) -> list[str]:
    return sorted(EXPERIMENTS, key=lambda name: EXPERIMENTS[name].work(EXPERIMENTS[name].plans["tiny"]))[
        :count
    ]


def untimed(measured):
    return {name: [r for r in records if r.unit != "seconds"] for name, (records, _) in measured.items()}


def test_two_processes_measure_what_one_does_and_tell_as_much_work(tmp_path):
    names = cheapest(2)
    alone, beside = Told(), Told()
    one = workers.measure([tiny(name) for name in names], alone, jobs=1)
    two = workers.measure([tiny(name, trials=tmp_path / name) for name in names], beside, jobs=2)
    assert set(one) == set(two) == set(names)
    assert all(records for records in untimed(one).values())
    assert untimed(two) == untimed(one)
    assert dict(beside.trials) == dict(alone.trials)
    assert beside.work == pytest.approx(alone.work)
    assert all(seconds > 0 for _, seconds in two.values())
    for name in names:  # and what they measured is kept, were they cut off now
        assert Notebook(Counted(), tmp_path / name).resumed == len(alone.trials[name])


@pytest.mark.slow
def test_an_error_in_a_worker_reaches_the_caller():
    tasks = [tiny(name, data="mnist=/nowhere") for name in cheapest(2)]
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        workers.measure(tasks, Told(), jobs=2)


def test_an_error_is_heard_while_others_still_work():
    class Silent:
        asked = 0

        def empty(self) -> bool:
            self.asked += 1
            assert self.asked < 20, "nobody heard it"
            return True

    broken, busy = Future(), Future()
    broken.set_exception(FileNotFoundError("/nowhere"))
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        workers._follow({broken: "first", busy: "second"}, Silent(), Told())


def test_an_error_here_reaches_the_caller_too():
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        workers.measure([tiny("race", data="mnist=/nowhere")], Told(), jobs=2)


def test_the_longest_begins_first():
    begun = [work(task.name) for task in workers._longest_first([tiny(name) for name in EXPERIMENTS])]
    assert begun == sorted(begun, reverse=True)
    assert len(begun) == len(EXPERIMENTS)


def test_an_experiment_computes_in_one_thread(monkeypatch):
    seen = []

    def measure(desk, plan):
        seen.append(torch.get_num_threads())
        return iter(())

    monkeypatch.setitem(EXPERIMENTS, "race", replace(EXPERIMENTS["race"], measure=measure))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        workers.measure([tiny("race")], Told(), jobs=1)
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_a_worker_tells_small_amounts_of_work_together(monkeypatch):
    told = []

    class Messages:
        def put(self, message: object) -> None:
            told.append(message)

    monkeypatch.setattr(workers, "_messages", Messages())
    messenger = workers._Messenger()
    messenger.begin("race", "a trial")
    for _ in range(1000):
        messenger.advance("race", 1.0)
    messenger.flush("race")
    assert told[0] == ("race", "a trial", 0.0)
    assert sum(work for _, _, work in told) == 1000
    # A thousand additions take far less than the 0.1 seconds between two messages; ten would be a whole second.
    assert len(told) < 12


def test_the_cores_are_those_that_this_process_may_run_on():
    assert workers.cores() >= 1
