"""The device and precision of a run, and the device's peak, beside which tokens/s are shown."""

from __future__ import annotations

import ctypes
import gc
import shutil
import time
from contextlib import suppress
from functools import cache

import torch

from cutaway.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
SIZE = {"cpu": 1024, "cuda": 8192}
FASTER = 1.3  # how many times float32's speed bf16 must reach to be worth its rounding


def device(wanted: str) -> torch.device:
    """The device of that name, UserError without it; "auto" is the first GPU, else the CPU."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, ImportError, NotImplementedError):
        there = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        raise UserError(
            f"config.device: there is no device {wanted!r} here: use auto, or one of {', '.join(there)}"
        ) from None
    return torch.device(wanted)


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use, or None."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


@cache
def peak(device: torch.device, precision: str) -> float:
    """``measured_peak``, of the first time that it is asked for."""
    return measured_peak(device, precision)


def measured_peak(device: torch.device, precision: str, seconds: float = 0.3) -> float:
    """Floating-point operations a second of a large square matrix product: the best of several."""
    n = SIZE.get(device.type, SIZE["cpu"])
    own = torch.Generator(device).manual_seed(0)  # a measurement draws none of the run's random numbers
    a = torch.randn(n, n, generator=own, device=device, dtype=getattr(torch, precision))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        torch.matmul(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def precision(wanted: str, device: torch.device) -> str:
    """The precision of that name; "auto" is bf16 where its products are measured to be faster.

    A processor without bf16 arithmetic emulates it.
    """
    if wanted != "auto":
        return wanted
    half = peak(device, "bfloat16") > FASTER * peak(device, "float32")
    return "bfloat16" if half else "float32"


@cache
def keep_memory() -> None:
    """Frees what is unused, and has glibc keep what is freed from here on for the next step.

    Otherwise every large tensor goes back to the system, whose fresh pages cost a fault each. Runs once a
    process; without glibc it does nothing.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
