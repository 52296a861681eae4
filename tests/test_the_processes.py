"""The processes that tests run in: what fails there fails here, and nothing is left behind."""

import datetime
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _world

from processes import GROUPS, METHOD, Processes, RanksError


def facts(rank, x):
    """The sum of all x + rank, and where it was computed."""
    total = x + rank
    dist.all_reduce(total)
    return rank, total, dist.get_world_size(), os.getpid(), torch.get_num_threads()


def pids(pool, size=2):
    return [found[3] for found in pool.run(facts, torch.zeros(()), size=size)]


def is_alive(pid):
    try:
        os.kill(pid, 0)
        if sys.platform != "linux":
            return True
        # one that has ended may wait for its parent to ask
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def ends(pid):
    """A process ends within seconds."""
    end = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not is_alive(pid)


@pytest.mark.parametrize("size", [2, 3, 4, 1])
def test_each_size_has_a_group_of_its_own_in_the_same_processes(size, processes):
    x = torch.tensor([1.5, torch.nan], dtype=torch.bfloat16)
    first = pids(processes, 4)
    for rank, found in enumerate(processes.run(facts, x, size=size)):
        assert (found[0], found[2], found[3], found[4]) == (rank, size, first[rank], 1)
        assert found[1].dtype == x.dtype
        assert found[1].tolist()[0] == 1.5 * size + sum(range(size))  # few bits: bfloat16 holds them
        assert torch.isnan(found[1][1])


def test_a_tensor_is_copied(processes):
    x = torch.zeros(3)
    processes.run(torch_add, x)
    assert x.tolist() == [0, 0, 0]


def torch_add(rank, x):
    x += 1


def raises_and_waits(rank):
    """Rank 1 fails, and the others would wait for it."""
    if rank == 1:
        raise ZeroDivisionError("of the second")
    dist.all_reduce(torch.ones(()))


def test_an_error_of_one_rank_comes_first_and_the_others_do_not_wait_for_it(processes):
    pids(processes, 3)
    began = time.monotonic()
    with pytest.raises(RanksError) as caught:
        processes.run(raises_and_waits, size=3, timeout=40)
    assert time.monotonic() - began < 20  # and not the 40 of the collective; it is some hundredths
    told = re.findall(r"^rank (\d) of 3 raised:$", str(caught.value), re.MULTILINE)
    assert told[0] == "1"
    assert sorted(told) == ["0", "1", "2"]
    words = str(caught.value).split("rank ")[1]
    assert "in raises_and_waits" in words
    assert "ZeroDivisionError: of the second" in words
    assert processes.run(facts, torch.ones(()), size=3)[2][1] == 6


def warns(rank):
    if rank:
        warnings.warn("not so", UserWarning, stacklevel=1)
    return rank


def test_a_warning_is_an_error(processes):
    with pytest.raises(RanksError, match=r"^rank 1 of 2 raised:(.|\n)*UserWarning: not so\n$"):
        processes.run(warns)


def unpicklable(rank):
    return lambda: rank


def test_a_result_that_cannot_travel_is_told(processes):
    with pytest.raises(RanksError, match=r"rank 0 of 1 raised:(.|\n)*pickle"):
        processes.run(unpicklable, size=1)


def hangs(rank, seconds):
    if rank == 1:
        time.sleep(seconds)
    return rank


def test_a_task_without_end_is_ended_and_says_where_it_was(processes):
    before = pids(processes)
    with pytest.raises(RanksError, match=r"^rank 1 of 2 was not done after 1 seconds") as caught:
        processes.run(hangs, 100, timeout=60, limit=1)
    assert re.search(r"test_the_processes.py\", line \d+ in hangs", str(caught.value))
    assert not any(map(is_alive, before))
    assert set(pids(processes)).isdisjoint(before)


def killed(rank, which):
    """One is killed; the others learn that by the collective, at once or when it times out."""
    if rank == which:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError):
        dist.all_reduce(torch.ones(()))
    return rank


@pytest.mark.parametrize("which", [0, 2])
def test_a_rank_may_be_killed_where_that_is_the_test(which, processes):
    want = [None if rank == which else rank for rank in range(3)]
    assert processes.run(killed, which, size=3, timeout=0.5, dying=[which]) == want
    assert processes.run(facts, torch.ones(()), size=3)[0][2] == 3


def test_a_rank_that_ends_unasked_is_an_error(processes):
    with pytest.raises(RanksError, match=r"rank 1 of 2 ended, with exit code -9"):
        processes.run(killed, 1)


def test_a_rank_that_does_not_end_as_asked_is_an_error(processes):
    with pytest.raises(RanksError, match=r"rank 1 of 2 was to end, and did not"):
        processes.run(hangs, 0, dying=[1])


# --- the group ------------------------------------------------------------------------------------------------

seen = []


def see(rank):
    """Whether the group was there in the last such task."""
    known = bool(seen) and seen[-1] is dist.group.WORLD
    seen[:] = [dist.group.WORLD]
    return known


def test_the_group_is_kept_for_tasks_of_the_same_size_and_timeout(processes):
    processes.run(see)
    assert processes.run(see) == [True, True]
    assert processes.run(see, timeout=9) == [False, False]
    assert processes.run(see, timeout=9) == [True, True]
    assert processes.run(see, size=3)[:2] == [False, False]


def leaves(rank, what):
    """A task that succeeds, and leaves the group in a state that is nobody's."""
    if what == "one waited in vain" and rank == 0:
        with pytest.raises(RuntimeError, match=r"[Tt]imed out"):
            dist.all_reduce(torch.ones(()))
    if what == "one sent too much" and rank == 0:
        seen.append(dist.all_reduce(torch.ones(()), async_op=True))
    if what == "no group":
        dist.destroy_process_group()
    if what == "a broken subgroup":
        group = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=0.5))
        if rank == 0:
            with pytest.raises(RuntimeError, match=r"[Tt]imed out"):
                dist.all_reduce(torch.ones(()), group=group)
    if what == "many subgroups":
        for _ in range(GROUPS):
            dist.new_group([0])
    return len(_world.pg_map)


@pytest.mark.parametrize(
    "what",
    ["one waited in vain", "one sent too much", "no group", "a broken subgroup", "many subgroups"],
)
def test_the_next_task_gets_a_sound_group(what, processes):
    processes.run(leaves, what, timeout=0.5)
    assert processes.run(facts, torch.ones(()), timeout=0.5)[0][1] == 3
    assert processes.run(leaves, "nothing", timeout=0.5) == [1, 1]


# --- the end --------------------------------------------------------------------------------------------------


def test_no_worker_is_left_when_the_pool_is_closed(processes):
    with Processes() as pool:
        found = pids(pool)
        folder = Path(pool._folder.name)
        assert all(map(is_alive, found))
        assert folder.exists()
    assert not any(map(is_alive, found))
    assert not folder.exists()
    assert set(found).isdisjoint(pids(processes))


def hangs_here(rank, folder):
    Path(folder, str(rank)).touch()
    time.sleep(100)


def use_a_pool(pipe, folders):
    """The test session of a user who presses Ctrl-C, and later kills it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Processes() as pool:
        pipe.send(pids(pool))
        try:
            pool.run(hangs_here, folders[0])
        except KeyboardInterrupt:
            pipe.send("interrupted")
        pipe.send(pids(pool))
        pool.run(hangs_here, folders[1])


def wait_for_both(folder):
    end = time.monotonic() + 20
    while len(list(folder.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_no_worker_is_left_when_the_tests_are_interrupted_or_killed(processes, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    context = multiprocessing.get_context(METHOD)
    ours, theirs = context.Pipe()
    user = context.Process(target=use_a_pool, args=(theirs, folders))
    user.start()
    theirs.close()  # its end is the end of the pipe
    try:
        first = ours.recv()
        wait_for_both(folders[0])
        for pid in first:  # Ctrl-C is a signal to all of them; these are not to answer it
            os.kill(pid, signal.SIGINT)
        time.sleep(0.1)
        os.kill(user.pid, signal.SIGINT)
        assert ours.recv() == "interrupted"
        assert not any(map(is_alive, first))
        second = ours.recv()
        assert set(first).isdisjoint(second)
        wait_for_both(folders[1])
    finally:
        user.kill()
        user.join()
    assert all(map(ends, second))
