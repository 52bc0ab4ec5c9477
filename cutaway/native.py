"""The one door to the compiled core (native/, C++): loads it, checks its calls, and says why it is absent.

Nothing here is needed for a right answer: each kernel has a twin in Python that computes the same bits,
slower. Three variables of the environment are read: CUTAWAY_THREADS (how many threads), CUTAWAY_ISA (a
lower instruction set than the processor's best: avx512, avx2, neon, portable) and CUTAWAY_PURE (do without
the core).
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import math
import os
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cutaway.errors import Failed, Refused

ABI = 1

# Instruction sets by the number that native/isa.hpp gives them.
SETS = {"portable": 0, "neon": 1, "avx2": 2, "avx512": 3}


class Layout(NamedTuple):
    """A GGML type's number, and how many `bytes` hold a `block` of values."""

    id: int
    block: int
    bytes: int


LAYOUTS = {
    "F32": Layout(0, 1, 4),
    "F16": Layout(1, 1, 2),
    "Q4_0": Layout(2, 32, 18),
    "Q4_1": Layout(3, 32, 20),
    "Q5_0": Layout(6, 32, 22),
    "Q5_1": Layout(7, 32, 24),
    "Q8_0": Layout(8, 32, 34),
    "Q2_K": Layout(10, 256, 84),
    "Q3_K": Layout(11, 256, 110),
    "Q4_K": Layout(12, 256, 144),
    "Q5_K": Layout(13, 256, 176),
    "Q6_K": Layout(14, 256, 210),
    "BF16": Layout(30, 1, 2),
}


def available() -> bool:
    """Whether the core can be called; the first time it cannot, a RuntimeWarning says why and the cost."""
    if why_not() is None:
        return True
    _warn_once()
    return False


def why_not() -> str | None:
    """Why the core is absent, in a sentence; None when it is there."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def isa() -> str:
    """The instruction set the kernels use: avx512, avx2, neon or portable; "twin" when the core is absent."""
    core = _load()
    if isinstance(core, str):
        return "twin"
    return os.environ.get("CUTAWAY_ISA") or _best(core)


def threads() -> int:
    """How many cores this process may use: CUTAWAY_THREADS, else its affinity and its container's quota."""
    asked = os.environ.get("CUTAWAY_THREADS")
    if not asked:
        return _cores()
    if not asked.isdecimal() or int(asked) < 1:
        raise Refused(f"CUTAWAY_THREADS is {asked!r}; set it to a number of threads from 1 up, or unset it.")
    return min(int(asked), 1024)


def unpack(type: str, blocks: np.ndarray, out: np.ndarray, threads: int | None = None) -> None:
    """Unpacks the bytes of a GGML type (uint8) into `out` (float32), both contiguous, on several threads."""
    core = _load()
    if isinstance(core, str):
        raise Failed(core)
    layout = LAYOUTS.get(type)
    if layout is None:
        raise Refused(f"The native core has no weight type {type!r}; it unpacks {', '.join(LAYOUTS)}.")
    _check("blocks", blocks, np.uint8)
    _check("out", out, np.float32)
    if not out.flags.writeable:
        raise Refused("out cannot be written to; give an array that owns its memory.")
    if out.size % layout.block or blocks.size != out.size // layout.block * layout.bytes:
        raise Refused(
            f"{blocks.size} bytes of {type} do not hold {out.size} values; "
            f"{layout.bytes} bytes hold {layout.block}."
        )
    count = _threads() if threads is None else threads
    core.cutaway_unpack(layout.id, blocks.ctypes.data, out.size, out.ctypes.data, count)


_threads = threads  # unpack's argument has the same name


def _check(name: str, array: np.ndarray, dtype: type[np.generic]) -> None:
    if array.dtype != dtype:
        raise Refused(f"{name} holds {array.dtype}, and {np.dtype(dtype)} is needed.")
    if not array.flags.c_contiguous or not array.flags.aligned:
        raise Refused(f"{name} is not contiguous in memory; pass np.ascontiguousarray of it.")


@cache
def _load() -> ctypes.CDLL | str:
    """The library, ready to be called, or the sentence that says why there is none."""
    if os.environ.get("CUTAWAY_PURE", "0").lower() not in ("", "0", "false", "no", "off"):
        return "The native core is off, because CUTAWAY_PURE is set."
    spec = importlib.util.find_spec("cutaway._core")
    if spec is None or spec.origin is None:
        return _why_not_built()
    try:
        core = ctypes.CDLL(spec.origin)
        abi = core.cutaway_abi()
    except (OSError, AttributeError) as error:
        return f"The native core could not be loaded ({error}); install Cutaway again."
    if abi != ABI:
        return f"The native core was built for another version ({abi}, not {ABI}); install Cutaway again."
    core.cutaway_unpack.argtypes = (
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_int32,
    )
    _use_isa(core)
    return core


def _use_isa(core: ctypes.CDLL) -> None:
    asked = os.environ.get("CUTAWAY_ISA")
    if not asked:
        return
    if asked not in SETS:
        raise Refused(f"CUTAWAY_ISA is {asked!r}; it may be {', '.join(SETS)}.")
    if core.cutaway_isa_use(SETS[asked]):
        raise Refused(f"CUTAWAY_ISA is {asked!r}, and the best that this processor has is {_best(core)}.")


def _best(core: ctypes.CDLL) -> str:
    return list(SETS)[core.cutaway_isa_best()]


def _why_not_built() -> str:
    """Reads the reason from the build tag that the install gave its wheel (pyproject.toml)."""
    try:
        wheel = importlib.metadata.distribution("cutaway").read_text("WHEEL") or ""
    except importlib.metadata.PackageNotFoundError:
        return "The native core is absent: this is a source tree that was not built (pip install -e .)."
    if "Build: 0pure" in wheel:
        return "The native core is absent: CUTAWAY_PURE was set when Cutaway was installed."
    if "Build: 0failed" in wheel:
        return "The native core is absent: its build failed when Cutaway was installed (see pip install -v)."
    return "The native core is absent: its file is missing from the package; install Cutaway again."


@cache
def _warn_once() -> None:
    warnings.warn(
        f"{why_not()} Results are the same; reading packed weights and tokenizing take many times longer.",
        RuntimeWarning,
        stacklevel=3,
    )


@cache
def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    return max(1, math.ceil(min(usable, _quota())))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """The container's share of processor time, in cores (cgroup v2, then v1); infinite without a limit."""
    v2 = _words(root / "cpu.max")
    if len(v2) == 2 and v2[0] != "max":
        return int(v2[0]) / int(v2[1])
    quota, period = _words(root / "cpu/cpu.cfs_quota_us"), _words(root / "cpu/cpu.cfs_period_us")
    if quota and period and int(quota[0]) > 0:
        return int(quota[0]) / int(period[0])
    return math.inf


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
