"""What runs here, and on what: the facts of `normwright info` and of every benchmark. Imports no framework."""

from collections.abc import Mapping

from normwright.kernels import NATIVE
from normwright.report.records import Scalar, stamp

PURE = (
    "built without native kernels (NORMWRIGHT_PURE=1): NumPy runs the float64 reference, torch tensors go to "
    "torch's own batch norm"
)


def kernels() -> dict[str, Scalar]:
    """The native kernels' own facts; nothing but `native` in a package without them.

    Raises:
        ValueError: NORMWRIGHT_ISA names what this machine cannot run.
    """
    if not NATIVE:
        return {"native": False}
    from normwright import _native

    return {
        "native": True,
        "instruction set": _native.isa(),
        "instruction sets": ", ".join(_native.isas()),
        "threads": _native.threads(),
        "last-level cache bytes": _native.last_level_cache_bytes(),
    }


def info() -> dict[str, str]:
    """What `normwright info` prints, line by line."""
    return told(kernels(), stamp())


def told(of: Mapping[str, Scalar], stamped: Mapping[str, Scalar]) -> dict[str, str]:
    """The facts of `kernels` and the stamp in words."""
    lines = {"normwright": str(stamped["normwright"]), "kernels": "native" if of["native"] else PURE}
    if of["native"]:
        lines["instruction set"] = f"{of['instruction set']} (this machine runs {of['instruction sets']})"
        lines["threads"] = str(of["threads"])
    lines["processor"] = f"{stamped['processor']}, {stamped['cores']} cores, {stamped['machine']}"
    lines["cache"] = caches(of, stamped)
    lines["python"] = f"{stamped['python']}, {stamped['system']}"
    lines["numpy"] = str(stamped["numpy"])
    lines["torch"] = str(stamped["torch"] or "not installed (pip install 'normwright[torch]')")
    return lines


def caches(of: Mapping[str, Scalar], stamped: Mapping[str, Scalar]) -> str:
    """The sizes of the caches, smallest first.

    >>> caches({"last-level cache bytes": 33554432}, {"L1 cache bytes": 32768, "L2 cache bytes": 1048576})
    'L1 32 KB, L2 1 MB, last level 32 MB'
    """
    sizes = {
        key.removesuffix(" cache bytes"): int(size)
        for key, size in stamped.items()
        if key.endswith(" cache bytes") and isinstance(size, int)
    }
    last = of.get("last-level cache bytes")
    if isinstance(last, int) and last and last not in sizes.values():
        sizes["last level"] = last
    return ", ".join(f"{level} {_bytes(size)}" for level, size in sizes.items()) or "not told by the system"


def _bytes(size: int) -> str:
    return f"{size / (1 << 20):g} MB" if size >= 1 << 20 else f"{size / (1 << 10):g} KB"
