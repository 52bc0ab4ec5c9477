"""How much memory this process may still take. Imports nothing of this package."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """Bytes that are free, or would be if what is only cached were dropped.

    Of the system, or of its container if that is less; where the system does not say, all of its memory.
    """
    found = [_windows().available] if os.name == "nt" else [total()]
    with suppress(OSError, ValueError, LookupError):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):
        most = (CGROUP / "memory.max").read_text("ascii")  # "max" is not a number
        found.append(int(most) - int((CGROUP / "memory.current").read_text("ascii")) + _cached())
    return max(0, min(found))


def total() -> int:
    """Bytes of memory that the system has."""
    return _windows().total if os.name == "nt" else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _windows() -> Any:
    """MEMORYSTATUSEX as GlobalMemoryStatusEx fills it."""
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            ("available", ctypes.c_uint64),
            ("others", ctypes.c_uint64 * 5),
        )

    status, windows = Status(length=ctypes.sizeof(Status)), ctypes.__dict__["windll"]
    windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status


def _cached() -> int:
    """Bytes of files that the container has in memory, and can drop."""
    lines = (CGROUP / "memory.stat").read_text("ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
