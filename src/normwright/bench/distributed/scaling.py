"""The paper model's tables and its picture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from normwright.bench.distributed import paper
from normwright.bench.distributed.paper import (
    BEST,
    CLUSTERS,
    GROUP,
    NETWORKS,
    RANKS,
    SHARES,
    STEPS,
    Cluster,
    Network,
)
from normwright.report import markdown, terminal
from normwright.report.document import Table

COMMAND, MARKERS = "normwright scaling", "scaling"
RECEIVED_AT = (8, 64, 512, 4096)
DRAWN = CLUSTERS[0], NETWORKS[0]


def run(*, into: Path | None = None, figure: Path | None = None, console: Console | None = None) -> None:
    """Print the tables, put them between a file's markers and draw the picture where asked.

    Args:
        into: a Markdown file.
        figure: an SVG file.
        console: where to print.

    Raises:
        ImportError: matplotlib is not installed, and a picture was asked for.
        OSError: a file cannot be read or written.
        ValueError: `into` has no markers; nothing was done then.
    """
    console = console or Console()
    shown = tables()
    if into is not None:
        markdown.write_into(into, MARKERS, block())
    if figure is not None:
        from normwright.report import figures

        figures.save(draw(), figure)
    for each in shown:
        terminal.put(each, console)


def tables() -> list[Table]:
    """What is sent; what every layer's synchronizing adds to a step, cluster by cluster; where it becomes dear."""
    return [sent(), *map(costs, CLUSTERS), dear(), assumed()]


def block() -> str:
    """The tables as Markdown."""
    each = [f"**{table.title}**\n\n{markdown.table(table)}" for table in tables()]
    return "\n\n".join([*each, f"Made by `{COMMAND}`."])


def sent() -> Table:
    """Bytes a step, which no cluster changes."""
    rows = tuple(
        (
            each.name,
            str(len(each.channels)),
            str(2 * len(each.channels)),
            f"{each.row:,}",
            f"{sum(map(paper.backward_bytes, each.channels)):,}",
            *(f"{each.received(ranks) / 1e6:,.1f} MB" for ranks in RECEIVED_AT),
        )
        for each in NETWORKS
    )
    received = (f"received of {ranks} ranks" for ranks in RECEIVED_AT)
    columns = ("a step", "layers", "collectives", "bytes sent forward", "bytes summed backward", *received)
    return Table("What synchronizing every layer sends, for each rank", columns, rows)


def costs(cluster: Cluster) -> Table:
    """Milliseconds on one cluster, and their share of a step."""
    columns = ["ranks"]
    for each in NETWORKS:
        columns += [f"{each.name}: every layer", "in log2 steps", "pooled, each time"]
    rows = []
    for ranks in RANKS:
        row = [str(ranks)]
        for each in NETWORKS:
            step = STEPS[cluster.name, each.name]
            row += [
                _cell(paper.step_seconds(cluster, each, ranks), step),
                _cell(paper.step_seconds(cluster, each, ranks, BEST), step),
                _milliseconds(paper.pooled_seconds(cluster, each, ranks)),
            ]
        rows.append(tuple(row))
    steps = ", ".join(
        f"{STEPS[cluster.name, each.name] * 1e3:.0f} ms of {each.name} (batch {each.batch})"
        for each in NETWORKS
    )
    return Table(f"{cluster.name}: what is added to a step of {steps}", tuple(columns), tuple(rows))


def dear() -> Table:
    """From how many ranks on synchronizing costs some shares of a step."""
    rows = []
    for cluster in CLUSTERS:
        for network in NETWORKS:
            step = STEPS[cluster.name, network.name]
            found = (_from(cluster, network, share) for share in SHARES)
            group = paper.grouped_seconds(cluster, network, RANKS[-1]) / step
            rows.append((f"{cluster.name}; {network.name}", *found, _percent(group)))
    shares = (f"over {share:.0%} from" for share in SHARES)
    note = "In brackets: if both collectives went in log2 steps."
    columns = ("every layer, all ranks", *shares, f"groups of {GROUP}, any number of ranks")
    return Table(
        "Ranks from which synchronizing adds more than so much of a step", columns, tuple(rows), note
    )


def assumed() -> Table:
    """The constants, none of which was measured here."""
    rows = []
    for each in CLUSTERS:
        row: tuple[str, ...] = (each.name, f"{each.start * 1e6:.0f} µs")
        for link in (each.inside, each.between):
            row += (f"{link.latency * 1e6:.0f} µs", f"{link.bandwidth / 1e9:,.2f} GB/s".replace(".00", ""))
        rows.append((*row, "rings and trees" if each.trees else "rings"))
    columns = (
        "assumed",
        "to start a collective",
        "a hop inside a node",
        "a rank's bandwidth inside",
        "a hop between nodes",
        "a rank's bandwidth between",
        "algorithms",
    )
    note = (
        "All-gathers go along rings. Nothing overlaps with computing; ranks that come late and other traffic are "
        "left out, so real costs are higher."
    )
    return Table("What these tables assume; nothing in them was measured", columns, tuple(rows), note)


def draw() -> Any:
    """Milliseconds over ranks on the first cluster, for the first network.

    Returns: matplotlib's Figure.
    """
    from normwright.report import style
    from normwright.report.figures import Axis, lines

    drawn = [
        _line("every layer", paper.step_seconds, style.WITHOUT),
        _line("in log2 steps", partial(paper.step_seconds, ways=BEST), style.THIRD, dashed=True),
        _line(f"groups of {GROUP}", paper.grouped_seconds, style.WITH),
        _line("pooled, each time", paper.pooled_seconds, style.FOURTH),
    ]
    step = STEPS[DRAWN[0].name, DRAWN[1].name] * 1e3
    return lines(drawn, Axis("ranks", log=True), Axis("milliseconds; dashed: a step", log=True), level=step)


def _line(name: str, cost: Callable[..., float], colour: str, *, dashed: bool = False) -> Any:
    from normwright.report.figures import Line

    ranks = RANKS[1:]  # one sends nothing, which a logarithm cannot show
    return Line(name, ranks, [cost(*DRAWN, each) * 1e3 for each in ranks], colour, dashed=dashed)


def _from(cluster: Cluster, network: Network, share: float) -> str:
    step = STEPS[cluster.name, network.name]
    today, best = (
        paper.dear_from(partial(paper.step_seconds, cluster, network, ways=ways), step, share)
        for ways in (paper.TODAY, BEST)
    )
    return f"{_ranks(today)} ({_ranks(best)})"


def _ranks(found: int | None) -> str:
    return f"never to {RANKS[-1]}" if found is None else str(found)


def _cell(seconds: float, step: float) -> str:
    return f"{_milliseconds(seconds)} ({_percent(seconds / step)})" if seconds else "0"


def _milliseconds(seconds: float) -> str:
    if not seconds:
        return "0"
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds * 1e3:,.0f} ms"


def _percent(share: float) -> str:
    return f"{share:,.0f}x" if share >= 9.995 else f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"
