"""Functions run in several gloo processes at once, which are started when first needed and stay for the session.

results = processes.run(function, *arguments, size=3)  # [function(rank, *arguments) of rank 0, 1 and 2]
"""

import contextlib
import datetime
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _world  # the one list of the groups that there are

MOST = 4  # processes
GROUPS = 16  # that tasks may leave behind; each keeps sockets
LATE = datetime.timedelta(seconds=30)  # until all have imported what a task needs
PROBED = 3.0  # seconds that a group without fault needs by no means to say so
# A worker is forked in milliseconds from a process that has imported all this once. Elsewhere fork is not safe.
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
IMPORTS = ["torch.distributed.fsdp", "pytest", "hypothesis"]  # not ours: an error there would be nobody's


class RanksError(AssertionError):
    """What went wrong in the processes, in words."""


@dataclass
class Task:
    """`work` is a pickled function and its arguments; `store` a file in which the processes of its group meet."""

    work: bytes
    size: int
    timeout: float
    store: str


@dataclass
class Reply:
    """A pickled result, or the words of an error."""

    when: float
    result: bytes = b""
    words: str = ""


class Processes:
    """Up to four workers, and the process group that the last task used."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context(METHOD)
        self._workers: list[tuple[Any, Connection]] = []
        self._folder = tempfile.TemporaryDirectory()
        self._groups = 0
        # size and timeout of the group that the next task may use
        self._kept: tuple[int, float] | None = None

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._folder.cleanup()

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        size: int = 2,
        timeout: float = 10.0,
        limit: float = 50.0,
        dying: Collection[int] = (),
    ) -> list[Any]:
        """`function(rank, *arguments)` of each rank; a function of a module, by name; the rest is copied.

        The default group is gloo's, of `size` processes, whose collectives wait `timeout` seconds. Warnings are
        errors; torch's seed is 0. A rank in `dying` has to end its process, and its result is None. Whatever else
        goes wrong raises `RanksError` with the traceback of each rank; after `limit` seconds all are killed.
        """
        __tracebackhide__ = True
        assert 1 <= size <= MOST, f"1 to {MOST} processes, not {size}"
        work = pickle.dumps((function, arguments))
        if self._kept != (size, timeout):
            self._groups += 1
        self._kept = None  # until all has gone well
        try:
            self._start(size)
            store = str(Path(self._folder.name, f"group {self._groups}"))
            replies = self._ask(Task(work, size, timeout, store), limit, dying)
            failed = sorted((reply.when, reply.words) for reply in replies.values() if reply.words)
            if not failed and not dying and self._is_sound(size):
                self._kept = size, timeout
        except BaseException:  # an interruption too
            self.close()
            raise
        if failed:
            raise RanksError("\n".join(words for _, words in failed))
        return [pickle.loads(replies[rank].result) if rank in replies else None for rank in range(size)]

    def close(self) -> None:
        """End all workers; the next task starts others."""
        for process, pipe in self._workers:
            process.kill()
            pipe.close()
        for process, _ in self._workers:
            process.join()
        self._workers, self._kept = [], None

    def _start(self, size: int) -> None:
        if not all(process.is_alive() for process, _ in self._workers):
            self.close()
        if METHOD == "forkserver":
            self._context.set_forkserver_preload(IMPORTS)
        for rank in range(len(self._workers), size):
            ours, theirs = self._context.Pipe()
            # daemon: ended with this process, even where nobody calls `close`
            process = self._context.Process(target=serve, args=(rank, theirs, self._trace(rank)), daemon=True)
            process.start()
            theirs.close()  # so that the end of the worker is the end of the pipe
            self._workers.append((process, ours))

    def _trace(self, rank: int) -> str:
        return str(Path(self._folder.name, f"where rank {rank} is"))

    def _ask(self, task: Task, limit: float, dying: Collection[int]) -> dict[int, Reply]:
        """The replies by rank, but of those who died as they were to."""
        end = time.monotonic() + limit
        open_: dict[Any, int] = {}
        for rank, (_, pipe) in enumerate(self._workers[: task.size]):
            pipe.send(task)
            open_[pipe] = rank
        replies, died = {}, set()
        while open_ and (ready := connection.wait(list(open_), max(0, end - time.monotonic()))):
            for pipe in ready:
                rank = open_.pop(pipe)
                try:
                    replies[rank] = pipe.recv()
                except (EOFError, ConnectionError):
                    died.add(rank)
        for rank in sorted(open_.values()):
            words = f"rank {rank} of {task.size} was not done after {limit:g} seconds. It was here:\n"
            replies[rank] = Reply(time.monotonic(), words=words + self._where(rank))
        for rank in sorted(died.symmetric_difference(dying) - set(open_.values())):
            words = f"rank {rank} of {task.size} was to end, and did not"
            if rank in died:
                process = self._workers[rank][0]
                process.join()
                words = f"rank {rank} of {task.size} ended, with exit code {process.exitcode}"
            replies[rank] = Reply(time.monotonic(), words=words)
        if open_ or died:
            self.close()
        return replies

    def _is_sound(self, size: int) -> bool:
        """Whether the next task may have this one's group. Asked once all are done: it takes collectives."""
        pipes = [pipe for _, pipe in self._workers[:size]]
        for pipe in pipes:
            pipe.send(None)
        if not all(pipe.poll(PROBED) for pipe in pipes):
            self.close()  # a group may be told to wait for half an hour
            return False
        sound = [pipe.recv() for pipe in pipes]
        return all(sound)

    def _where(self, rank: int) -> str:
        """The stack of a worker that does not answer."""
        if not hasattr(signal, "SIGUSR1"):
            return "(this system does not tell)"
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._workers[rank][0].pid, signal.SIGUSR1)
        for _ in range(20):
            time.sleep(0.05)
            if text := Path(self._trace(rank)).read_text():
                break
        return text


# --- in a worker ---------------------------------------------------------------------------------------------


def serve(rank: int, pipe: Connection, trace: str) -> None:
    """Do one task after the other, until nobody is left to give any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end this process
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    member = Member(rank)
    with open(trace, "w") as file:
        if hasattr(signal, "SIGUSR1"):
            faulthandler.register(signal.SIGUSR1, file, all_threads=False)
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                task = pipe.recv()
                pipe.send(member.is_sound() if task is None else member.reply(task))


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # whatever the task does


class Member:
    """One rank of the tasks' process groups."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._store = ""
        self._group: Any = None

    def reply(self, task: Task) -> Reply:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                function, arguments = pickle.loads(task.work)  # imports the module of the function
                self._meet(task)
                torch.manual_seed(0)
                result = pickle.dumps(function(self._rank, *arguments))
        except BaseException:
            words = f"rank {self._rank} of {task.size} raised:\n{traceback.format_exc()}"
            reply = Reply(time.monotonic(), words=words)
            self._part()  # so that whoever waits for this rank learns of it at once
            return reply
        return Reply(time.monotonic(), result)

    def _meet(self, task: Task) -> None:
        """All processes of the task have its group, and none goes ahead before all are here."""
        if task.store == self._store:
            dist.monitored_barrier(timeout=LATE)
            return
        self._part()
        store = dist.FileStore(task.store, task.size)
        self._all_say("here", store, task.size)
        timeout = datetime.timedelta(seconds=task.timeout)
        options: dict[str, Any] = {"store": store, "rank": self._rank, "world_size": task.size}
        dist.init_process_group("gloo", timeout=timeout, **options)
        # Whoever is connected first may end at once, which must not meet another that is still connecting.
        self._all_say("connected", store, task.size)
        self._store, self._group = task.store, dist.group.WORLD

    def _all_say(self, word: str, store: dist.Store, size: int) -> None:
        store.set(f"{word} {self._rank}", "")
        store.wait([f"{word} {rank}" for rank in range(size)], LATE)

    def _part(self) -> None:
        self._store, self._group = "", None
        if dist.is_initialized():
            dist.destroy_process_group()

    def is_sound(self) -> bool:
        """Whether every group works as a new one would: a task may have broken one, or left a call half done."""
        if not dist.is_initialized() or dist.group.WORLD is not self._group or len(_world.pg_map) > GROUPS:
            return False
        works = []
        try:
            for group in _world.pg_map:
                total = torch.ones(())
                works.append((dist.all_reduce(total, group=group, async_op=True), total, group.size()))
            return all(work.wait() and total == size for work, total, size in works)
        except Exception:
            self._part()  # the others need not wait
            return False
