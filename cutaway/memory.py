"""How much memory this process may still take. Imports nothing of this package."""

import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """Bytes that are free, or would be if what is only cached were dropped.

    Of the system, or of its container if that is less; where the system does not say, all of its memory.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError, LookupError):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):
        most = (CGROUP / "memory.max").read_text("ascii")  # "max" is not a number
        found.append(int(most) - int((CGROUP / "memory.current").read_text("ascii")) + _cached())
    return max(0, min(found))


def _cached() -> int:
    """Bytes of files that the container has in memory, and can drop."""
    lines = (CGROUP / "memory.stat").read_text("ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
