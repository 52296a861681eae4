"""The processes that measure: one for each state of the allocator, which it finds in its environment."""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import IO, Any, Self

from normwright.bench import cases, memory
from normwright.bench.job import Job
from normwright.bench.timer import WrongValues
from normwright.report.records import Record

# glibc reads these when a process starts. Warm: no block is mapped of its own, none is ever handed back, and all
# threads share one heap, so that an output finds the pages of one freed before, whoever freed it.
WARM = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_ARENA_MAX": "1"}
# Every block of 64 KB is mapped of its own and handed back when it is freed: what is resident is what is alive.
COUNTING = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_MMAP_MAX_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


class CannotMeasure(Exception):  # noqa: N818  # a state of things, and the words a user reads
    """There is nothing here that could be measured."""


def allocators() -> dict[str, dict[str, str]]:
    """The states of the allocator that can be measured here, and the variables that bring each about."""
    default: dict[str, dict[str, str]] = {cases.DEFAULT: {}}
    return {cases.WARM: WARM, **default} if platform.libc_ver()[0] == "glibc" else default


def can_count() -> bool:
    """Whether what a step needs can be counted here."""
    return platform.libc_ver()[0] == "glibc" and memory.can_count()


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these variables, and no others, for glibc's allocator."""
    theirs = {
        key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    # Compiling in the process itself leaves no others behind, which would take cores.
    return {**theirs, "TORCHINDUCTOR_COMPILE_THREADS": "1", **variables}


class Workers:
    """Processes for each state, started when first asked; none outlives this, however it is left.

    Args:
        states: names, and the variables of each.
        names: the contenders of all jobs.
    """

    def __init__(self, states: Mapping[str, Mapping[str, str]], names: Iterable[str]) -> None:
        self._states = states
        self._command = [sys.executable, "-m", "normwright.bench.worker", *names]
        self._running: dict[str, tuple[subprocess.Popen[str], IO[str]]] = {}
        self._left = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.close()

    def measure(self, job: Job, tell: Callable[[float], None] = lambda share: None) -> list[Record]:
        """The records of a job.

        Raises:
            WrongValues: a contender does not compute what it should.
            CannotMeasure: the process broke.
        """
        if job.allocator not in self._running:
            self._running[job.allocator] = self._start(
                {**self._states, cases.COUNTING: COUNTING}[job.allocator]
            )
        process, complaints = self._running[job.allocator]
        assert process.stdin is not None  # both are pipes
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # its last words say why
            process.stdin.write(json.dumps(job.told()) + "\n")
            process.stdin.flush()
        message: dict[str, Any] = {}
        for line in process.stdout:
            said = json.loads(line)
            if "ended" in said:
                if "refused" in message:
                    raise WrongValues(
                        f"{job.case.named(job.ops[0]).rpartition(' ')[0]}: {message['refused']}"
                    )
                if said["ended"] == 0 and "records" in message:
                    return [Record(**told) for told in message["records"]]
                break
            message = said
            tell(message.get("over", 1.0))
        else:
            said = {"ended": process.wait()}
        complaints.seek(0)
        last = (complaints.read().strip().splitlines() or ["it said nothing"])[-1]
        where = f"{job.case.named(' '.join(job.ops))}, {job.allocator}"
        raise CannotMeasure(f"{where}: ended with status {said['ended']}: {last}")

    def _start(self, variables: Mapping[str, str]) -> tuple[subprocess.Popen[str], IO[str]]:
        complaints: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by what is left to do
        self._left.callback(complaints.close)
        process = subprocess.Popen(
            self._command,
            env=environment(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,  # so that it and its forks can be ended together
        )
        self._left.callback(_end, process)
        return process, complaints


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with suppress(BrokenPipeError), process:  # closes the pipes, and waits
        pass
