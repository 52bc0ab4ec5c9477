"""Threads of a host program, on which the core works where it works between that program's operations."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from typing import NamedTuple


class Workers(NamedTuple):
    """How many threads work, and whose: the address of OpenMP's GOMP_parallel, or None for the core's own."""

    threads: int
    parallel: int | None


@cache
def parallel_of(library: str) -> int | None:
    """Where the GOMP_parallel lies that a shared library calls; None where it has none."""
    with suppress(OSError, AttributeError):
        return ctypes.cast(ctypes.CDLL(library).GOMP_parallel, ctypes.c_void_p).value
    return None
