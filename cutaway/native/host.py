"""The threads of torch, on which the core works where it works between torch's operations."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch


class Workers(NamedTuple):
    """How many threads work, and whose: the address of OpenMP's GOMP_parallel, or None for the core's own."""

    threads: int
    parallel: int | None


def workers() -> Workers:
    """As many as torch uses, and its own where they are OpenMP's: between torch's operations they wait awake,
    and others would have to share their cores.
    """
    return Workers(torch.get_num_threads(), _parallel())


@cache
def _parallel() -> int | None:
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
    return None
