"""Waits for what another thread or process does, within a limit: a hang fails with what was waited for."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], what: str, seconds: float = 60, every: float = 0.01) -> None:
    """Ask every so often, and fail with ``what`` where it does not hold in time."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, f"waited {seconds:g} s for this: {what}"
        time.sleep(every)
