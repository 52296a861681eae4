"""A finding: what one check has to say of one layer. All of them together, worst first."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from normwright.report import records
from normwright.report.document import Notice, Table
from normwright.report.records import Record

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
FailOn = Literal["error", "warning", "never"]

FIRST_CHANNELS = 5
FIRST_LAYERS = 10


@dataclass(frozen=True)
class Finding:
    """What one check found at one layer.

    Attributes:
        check: the check's name, such as ``"never trained"``.
        severity: ``"error"``: results are wrong. ``"warning"``: they probably are, or will be in training.
            ``"note"``: good to know.
        layer: its name; empty where the layer, or the whole model, is meant.
        quantity: what the number is, such as ``"smallest variance"``.
        value: the number; None where there is none.
        unit: of the number.
        cause: in a sentence or two.
        remedy: likewise, with a line of code where one does it.
        channels: those concerned, counted from 0, in order; empty where it is not about channels.
        of: channels of the layer.
    """

    check: str
    severity: Severity
    layer: str
    quantity: str
    value: float | None
    unit: str
    cause: str
    remedy: str
    channels: tuple[int, ...] = ()
    of: int = 0

    @property
    def first_channels(self) -> str:
        """The first few of them.

        >>> Finding("dead", "note", "bn", "", None, "", "", "", tuple(range(3, 10)), 64).first_channels
        '3, 4, 5, 6, 7, ...'
        """
        more = ", ..." if len(self.channels) > FIRST_CHANNELS else ""
        return ", ".join(map(str, self.channels[:FIRST_CHANNELS])) + more

    @property
    def share(self) -> float:
        """The part of the layer's channels that is concerned; all of it where channels are not told apart."""
        return len(self.channels) / self.of if self.channels else 1.0

    def record(self) -> Record:
        """The same as a record: what is the check, and everything but the number is where."""
        where: dict[str, records.Scalar] = {
            "severity": self.severity,
            "layer": self.layer,
            "quantity": self.quantity,
            "channels concerned": len(self.channels),
            "first channels": self.first_channels,
            "channels": self.of,
            "cause": self.cause,
            "remedy": self.remedy,
        }
        return Record(self.check, self.value, self.unit, where)


@dataclass(frozen=True)
class Findings:
    """What all checks have found, worst first. `print` shows it as tables.

    Attributes:
        found: errors, then warnings, then notes; among them first those that do more harm, and concern more
            channels.
        layers: how many layers were looked at.
        taken: what they were taken from, where that is not plain.
        not_checked: what could not be looked at, and why, a sentence each.
    """

    found: tuple[Finding, ...]
    layers: int
    taken: str = ""
    not_checked: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Those of one severity."""
        return tuple(finding for finding in self.found if finding.severity == severity)

    def fails(self, on: FailOn = "error") -> bool:
        """Whether something is as bad as `on`, or worse."""
        if on == "never":
            return False
        return any(self.of(severity) for severity in SEVERITIES[: SEVERITIES.index(on) + 1])

    def records(self) -> list[Record]:
        """One record a finding, in order."""
        return [finding.record() for finding in self.found]

    def save(self, path: str | Path) -> None:
        """Write the records as a JSON file, with what was looked at and what was not.

        Args:
            path: the file; folders are made.
        """
        about = {"layers": self.layers, "taken": self.taken, "not checked": list(self.not_checked)}
        records.write(Path(path), self.records(), experiment="inspect", **about)

    @property
    def headline(self) -> str:
        """How many of which, in a line."""
        looked = _counted(self.layers, "batch norm layer")
        counts = [(severity, len(self.of(severity))) for severity in SEVERITIES]
        words = ", ".join(_counted(count, severity) for severity, count in counts if count)
        return f"{looked}: {words or 'nothing found'}"

    @property
    def about(self) -> str:
        """What was looked at and what was not."""
        return " ".join([self.taken, *self.not_checked]).strip()

    def notices(self) -> list[Notice]:
        """What is printed: findings of one check, severity and cause together, worst first."""
        groups: dict[tuple[str, ...], list[Finding]] = {}
        for finding in self.found:
            key = (finding.severity, finding.check, finding.cause, finding.remedy)
            groups.setdefault(key, []).append(finding)
        return [_notice(group) for group in groups.values()]

    def __str__(self) -> str:
        from normwright.report import terminal

        return terminal.as_text(self.headline, self.about, self.notices())


def _notice(group: list[Finding]) -> Notice:
    first = group[0]
    by_channel = any(finding.channels for finding in group)
    columns = ("layer", first.quantity) + (("channels", "which") if by_channel else ())
    rows = []
    for finding in group[:FIRST_LAYERS]:
        which = (f"{len(finding.channels)} of {finding.of}", finding.first_channels) if by_channel else ()
        number = "none" if finding.value is None else f"{finding.value:.3g}"
        rows.append((finding.layer or "(the whole)", number, *which))
    more = len(group) - len(rows)
    title = f"{first.severity}: {first.check}"
    note = f"and {_counted(more, 'layer')} more" if more else ""
    return Notice(title, first.severity, first.cause, Table("", columns, tuple(rows), note), first.remedy)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
