"""What tests of several files share while they run."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def processes() -> Iterator[Any]:
    """`processes.run(function, *arguments, size=3)`: see processes.py."""
    import torch.distributed as dist  # not every run needs torch

    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch was built without gloo")
    from processes import Processes

    with Processes() as pool:
        yield pool
