"""What a step adds to the memory of this process at its highest: the peak of the resident set, as Linux has it."""

import gc
import re
from collections.abc import Callable
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
# The system counts pages a little late; a step below this shows nothing.
NOISE = 1 << 20


def can_count() -> bool:
    """Whether this system tells."""
    return CLEAR.exists()


def peak(run: Callable[[], object]) -> int:
    """Bytes that were resident together while `run` ran, beside those before: outputs, what is saved, gradients.

    That is so in a process whose allocator hands every block back when it is freed: pages that it kept would count
    as there before, or as alive. What is less than a megabyte may be anything.
    """
    gc.collect()  # garbage that went while it runs would be taken off its peak
    CLEAR.write_text(RESET_PEAK)
    before = _resident("VmRSS")
    result = run()
    after = _resident("VmHWM")
    del result
    return max(0, after - before)


def _resident(what: str) -> int:
    found = re.search(rf"^{what}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None  # Linux, as `can_count` saw
    return 1024 * int(found[1])
