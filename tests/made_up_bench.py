"""Records of a benchmark that nobody ran, for those who tell them."""

from normwright.bench.cases import PASSES
from normwright.report.records import Record

ABOUT = {
    "experiment": "bench",
    "command": "normwright bench",
    "allocators": {"warm": {"MALLOC_MMAP_MAX_": "0"}, "default": {}},
    "contenders": {"torch": "2.13.0", "torch.compile": "2.13.0", "jax": "0.10.2", "normwright": "0.1.0"},
    "subset": ["32x64x56x56 NCHW"],
    "reasons": {"32x64x56x56 NCHW": "a", "1x64x512x512 NCHW": "b", "32x8 (N, C)": "c"},
    "grids": {
        "listed": {"32x64x56x56 NCHW": 1.0, "1x64x512x512 NCHW": 1.0},
        "vision models": {"32x64x56x56 NCHW": 3.0, "1x64x512x512 NCHW": 1.0},
    },
    "kernels": {"native": True, "instruction set": "avx2", "last-level cache bytes": 32 << 20},
    "stamp": {
        "processor": "Some CPU",
        "cores": 2,
        "L2 cache bytes": 1 << 20,
        "L3 cache bytes": 32 << 20,
        "python": "3.12.0",
        "normwright": "0.1.0",
        "torch": "2.13.0",
    },
}
NAMES = ("torch", "normwright", "memory", "torch.compile", "jax")


def cell(shape, layout, size, *, dtype="float32", op="bn", threads=2, peaks=None, **states):
    """Records of one cell: for each state the milliseconds of NAMES (as many as there are) in each pass."""
    found = []
    shared = {"shape": shape, "layout": layout, "dtype": dtype, "op": op, "threads": threads, "bytes": size}
    for allocator, passes in states.items():
        for what, times in zip(PASSES, passes, strict=True):
            where = {**shared, "allocator": allocator, "rounds": 9}
            where["bytes_moved"] = size * (5 if what == "forward+backward" else 2)
            for who, ms in zip(NAMES, times, strict=False):
                name = f"floor {what}" if who == "memory" else what
                faults = {} if who == "memory" else {"page_faults": 7 if allocator == "default" else 0}
                found.append(Record(name, ms / 1e3, "seconds", {**where, "contender": who, **faults}))
    for who, arrays in (peaks or {}).items():
        where = {**shared, "allocator": "counting", "contender": who}
        found.append(Record("peak", arrays * size, "bytes", where))
    return found


WON = cell(
    "32x64x56x56",
    "NCHW",
    25_700_000,
    warm=[(6, 2, 1, 8, 4), (12, 4, 3.2, 8, 16), (3, 1, 1, 4, 0.5)],
    default=[(8, 4, 1), (15, 10, 4), (3, 1, 1)],
    peaks={"torch": 3, "normwright": 2, "torch.compile": 4, "jax": 5},
)
TIED = cell(
    "1x64x512x512",
    "NCHW",
    64 << 20,
    warm=[(3, 3, 1), (9, 12, 4), (8, 4, 2)],
    peaks={"torch": 2, "normwright": 2},
)
LOST = cell("32x8", "(N, C)", 1024, warm=[(5, 10, 1), (9, 8, 1), (4, 2, 1)])
HALF = cell(
    "32x64x56x56", "NCHW", 12_850_000, dtype="bfloat16", op="bn+add+relu", warm=[(8, 2, 1)] * 3
)  # fmt: skip
RECORDS = [*WON, *TIED, *LOST, *HALF]


def rows(markdown):
    """The rows of every table, as lists of cells."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [[field.strip() for field in line.strip("|").split("|")] for line in lines]
