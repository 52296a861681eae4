"""What synchronizing costs on this machine: training steps and layers on a few gloo processes, beside torch's."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from threading import Thread
from typing import IO, Any

from rich.console import Console

from normwright.bench.distributed.networks import (
    ALONE,
    BARE,
    COMPOSED,
    LAYER_SHAPE,
    NETWORKS,
    OURS,
    SYNC,
    TORCH,
    WIDTHS,
)
from normwright.bench.processes import CannotMeasure, allocators, environment
from normwright.bench.timer import Timing, WrongValues
from normwright.report import markdown, terminal
from normwright.report.document import Table
from normwright.report.records import stamp

COMMAND, MARKERS = "normwright synchronized", "synchronized"
RANKS = (1, 2, 4)
ROUNDS = 40
# As columns have them.
SHOWN = {
    TORCH: "torch, not synchronized",
    OURS: "normwright, not synchronized",
    SYNC: 'normwright, sync="world"',
    COMPOSED: "torch operations, synchronized by hand",
}


@dataclass
class Measured:
    """What so many processes measured.

    Attributes:
        ranks: how many they were.
        steps: by network and contender.
        layers: by channels and contender.
        counted: by network and pass, the collectives of a synchronized step: name, and bytes that a rank put in.
    """

    ranks: int
    steps: Mapping[str, Mapping[str, Timing]] = field(default_factory=dict)
    layers: Mapping[int, Mapping[str, Timing]] = field(default_factory=dict)
    counted: Mapping[str, Mapping[str, Sequence[tuple[str, int]]]] = field(default_factory=dict)


def run(*, into: Path | None = None, rounds: int = ROUNDS, console: Console | None = None) -> None:
    """Measure, print the tables, and put them between a file's markers where asked.

    Args:
        into: a Markdown file.
        rounds: of every race.
        console: where to print.

    Raises:
        CannotMeasure: a process broke.
        OSError: `into` cannot be read or written.
        ValueError: `into` has no markers; nothing was done then.
        WrongValues: a contender computes something else; it was not timed.
    """
    console = console or Console()
    if into is not None:
        markdown.put_into(into.read_text(encoding="utf-8"), MARKERS, "")
    found = []
    with terminal.Bars(console) as bars:
        for ranks in RANKS:
            bars.add(_called(ranks), work=len(parts(ranks)))
        for ranks in RANKS:
            bars.begin(_called(ranks), "begins")

            def tell(part: str, name: str = _called(ranks)) -> None:
                bars.begin(name, part)
                bars.advance(name, 1)

            found.append(measure(ranks, parts(ranks), rounds, tell))
    shown = tables(found, rounds)
    if into is not None:
        blocks = (f"**{each.title}**\n\n{markdown.table(each)}" for each in shown)
        markdown.write_into(into, MARKERS, "\n\n".join(blocks))
    for each in shown:
        terminal.put(each, console)


def _called(ranks: int) -> str:
    return f"{ranks} process" + ("es" if ranks > 1 else "")


def parts(ranks: int) -> list[str]:
    """What is measured with so many processes, by name: networks, and layers where there is something to send."""
    return [*NETWORKS, *(map(str, WIDTHS) if ranks > 1 else ())]


# ---- measuring -----------------------------------------------------------------------------------------------


def measure(
    ranks: int, wanted: Iterable[str], rounds: int, tell: Callable[[str], None] = lambda part: None
) -> Measured:
    """Start so many processes, which measure together and end.

    Args:
        ranks: how many.
        wanted: of `parts`.
        rounds: of every race.
        tell: called with each part when it is done.

    Raises:
        CannotMeasure: a process broke.
        WrongValues: a contender computes something else; nothing more was timed.
    """
    with ExitStack() as left:
        folder = left.enter_context(TemporaryDirectory())
        complaints: list[IO[str]] = [left.enter_context(TemporaryFile("w+")) for _ in range(ranks)]
        processes = []
        for rank, complaint in enumerate(complaints):
            processes.append(_start(folder, rank, ranks, rounds, wanted, complaint))
            left.callback(_end, processes[-1])
        for each in processes[1:]:  # where one breaks, the first must not wait for it
            Thread(target=_end_with, args=(each, processes[0]), daemon=True).start()
        said: dict[str, Any] = {}
        assert processes[0].stdout is not None  # it is a pipe
        for line in processes[0].stdout:
            said = json.loads(line)
            if "part" in said:
                tell(said["part"])
        if "refused" in said:
            raise WrongValues(f"{_called(ranks)}: {said['refused']}")
        status = [process.wait() for process in processes]
        if any(status) or "steps" not in said:
            raise CannotMeasure(f"{_called(ranks)}: " + "; ".join(_last_words(complaints)))
    return _measured(ranks, said)


def _start(
    folder: str, rank: int, ranks: int, rounds: int, wanted: Iterable[str], complaint: IO[str]
) -> subprocess.Popen[str]:
    module = "normwright.bench.distributed.rank"
    # One thread each, and all with the same allocator: warm where it can be, so that nobody pays for fresh pages.
    warm = next(iter(allocators().values()))
    return subprocess.Popen(
        [sys.executable, "-m", module, folder, str(rank), str(ranks), str(rounds), *wanted],
        env=environment({**warm, "OMP_NUM_THREADS": "1"}),
        stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
        stderr=complaint,
        text=True,
    )


def _end_with(process: subprocess.Popen[str], first: subprocess.Popen[str]) -> None:
    if process.wait() != 0:
        first.kill()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    with suppress(BrokenPipeError), process:  # closes the pipe, and waits
        pass


def _last_words(complaints: Iterable[IO[str]]) -> Iterable[str]:
    for rank, complaint in enumerate(complaints):
        complaint.seek(0)
        lines = complaint.read().strip().splitlines()
        yield f"rank {rank}: {lines[-1] if lines else 'it said nothing'}"


def _measured(ranks: int, said: Mapping[str, Any]) -> Measured:
    def timings(of: Mapping[str, Sequence[float]]) -> dict[str, Timing]:
        return {name: Timing(tuple(samples)) for name, samples in of.items()}

    return Measured(
        ranks,
        {network: timings(of) for network, of in said["steps"].items()},
        {int(channels): timings(of) for channels, of in said["layers"].items()},
        {
            network: {when: [(name, size) for name, size in sent] for when, sent in of.items()}
            for network, of in said["counted"].items()
        },
    )


# ---- telling -------------------------------------------------------------------------------------------------


def tables(found: Sequence[Measured], rounds: int) -> list[Table]:
    """Of steps, of layers, and of what was sent."""
    return [_steps(found, rounds), _layers(found), _sent(found)]


def _steps(found: Sequence[Measured], rounds: int) -> Table:
    rows = []
    for network in NETWORKS:
        for each in found:
            if network in each.steps:
                of = each.steps[network]
                base = of[TORCH]
                others = (f"{of[name].median / base.median:.2f}x" for name in (OURS, SYNC, COMPOSED))
                rows.append((network, str(each.ranks), _spread(base), *others))
    machine = stamp()
    note = (
        "Milliseconds of forward and backward in DistributedDataParallel on gloo, median and quartiles of "
        f"{rounds} interleaved rounds, of the slowest process in each; x: times that, by medians. One thread a "
        f"process; {machine['cores']} cores, which more processes than cores share. torch.nn.SyncBatchNorm takes "
        f"no CPU tensors. {machine['processor']}, torch {machine['torch']}. Made by `{COMMAND}`."
    )
    return Table("A training step", ("network", "processes", *SHOWN.values()), tuple(rows), note, names=2)


def _layers(found: Sequence[Measured]) -> Table:
    rows = []
    for channels in WIDTHS:
        for each in found:
            if channels in each.layers:
                of = each.layers[channels]
                shape = " x ".join(map(str, (LAYER_SHAPE[0], channels, *LAYER_SHAPE[1:])))
                floor = of[ALONE].median + of[BARE].median
                rows.append((
                    shape, str(each.ranks), *(_spread(of[name], 1e6) for name in (ALONE, BARE, SYNC)),
                    f"{of[SYNC].median / floor:.2f}x",
                ))  # fmt: skip
    columns = (
        "input of each process",
        "processes",
        "not synchronized",
        "two collectives, bare",
        "synchronized",
        "over the sum of both",
    )
    note = (
        "Microseconds of forward and backward, median and quartiles. Bare: an all-gather and an all-reduce of the "
        "same sizes, and nothing else."
    )
    return Table("One layer", columns, tuple(rows), note, names=2)


def _sent(found: Sequence[Measured]) -> Table:
    rows = []
    for network in NETWORKS:
        for each in found:
            of = each.counted.get(network)
            if of:
                gathered = sum(size for name, size in of["forward"] if name == "all_gather")
                told = (", ".join(_count(of[when])) for when in ("forward", "backward"))
                reduced = sum(size for _, size in of["backward"])
                received = f"{gathered * each.ranks:,}"
                rows.append((network, str(each.ranks), *told, f"{gathered:,}", received, f"{reduced:,}"))
    columns = (
        "network",
        "processes",
        "forward",
        "backward",
        "bytes sent forward",
        "bytes received forward",
        "bytes summed backward",
    )
    note = "Counted by torch's profiler in a step, for each process, without DistributedDataParallel's own."
    return Table("What is sent", columns, tuple(rows), note, names=2)


def _count(sent: Sequence[tuple[str, int]]) -> list[str]:
    names = [name for name, _ in sent]
    return [f"{names.count(name)} {name}" for name in sorted(set(names))] or ["nothing"]


def _spread(timing: Timing, scale: float = 1e3) -> str:
    low, middle, high = (f"{seconds * scale:,.{1 if scale == 1e3 else 0}f}" for seconds in timing.quartiles)
    return f"{middle} ({low} to {high})"
