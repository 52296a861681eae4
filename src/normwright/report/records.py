"""The record: one measured result. Every table, picture and page is made from records alone."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

SCHEMA = 1

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Record:
    """One measured result.

    Attributes:
        what: the quantity, such as ``"test accuracy"`` or ``"forward+backward"``.
        value: what was measured; None where the measurement was tried and has no value (``where`` says why).
        unit: ``"fraction"``, ``"steps"``, ``"seconds"``, ``"bytes"``, ``"ratio"``.
        where: the conditions it was measured under, by name: network, seed, shape, contender.
        row: the row of docs/sources.md whose claim it measures; None where it measures none.
        experiment: which one of the laboratory; the runner enters it. Empty elsewhere.
    """

    what: str
    value: float | None
    unit: str
    where: Mapping[str, Scalar] = field(default_factory=dict)
    row: int | None = None
    experiment: str = ""


def stamp() -> dict[str, Scalar]:
    """Machine and versions, without which a number means little.

    Caches are the sizes of one instance; ``cores`` counts those this process may run on.
    """
    facts: dict[str, Scalar] = {
        "processor": _processor(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
    }
    facts.update({f"{level} cache bytes": size for level, size in _caches().items()})
    for package in ("normwright", "numpy", "torch", "scikit-learn"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    return facts


def write(path: Path, records: Iterable[Record], **about: object) -> None:
    """Write records, the stamp of this machine and whatever else the document is `about` as one JSON file."""
    document = {"schema": SCHEMA, "stamp": stamp(), **about}
    head = json.dumps(document, indent=1, allow_nan=False).removesuffix("\n}")
    # A record a line: thousands of them stay readable, and a change of one is a change of one line.
    lines = ",\n".join(json.dumps(asdict(record), allow_nan=False) for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "records": [\n{lines}\n]}}\n', encoding="utf-8")


def read(path: Path) -> tuple[list[Record], dict[str, object]]:
    """The records of a file written by `write`, and everything else that stands in it.

    Raises:
        ValueError: it is no file of records.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected records as a JSON file, got something else: {error}.") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"expected records of schema {SCHEMA}, got {schema!r}.")
    try:
        return [Record(**r) for r in document.pop("records")], document
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected records, each with what, value and unit: {error}.") from error


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _caches() -> dict[str, int]:
    """Bytes of one core's data caches by level, as Linux tells them; empty elsewhere."""
    sizes = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((cache / fact).read_text().strip() for fact in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            sizes[f"L{level}"] = int(size[:-1]) * 1024
    return sizes
