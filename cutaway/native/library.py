"""The compiled core (native/, C++): loads it, types its calls, says why it is absent, counts its threads.

Nothing here is needed for a right answer: each kernel has a reference in Python that computes the same bits,
slower. Three variables of the environment are read: CUTAWAY_THREADS (how many threads), CUTAWAY_ISA (an
instruction set other than the processor's best: avx512_bf16, avx512, avx_vnni, avx2, neon, portable) and
CUTAWAY_PURE (do without the core).
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import platform
import struct
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.errors import OperationalError, UserError

if TYPE_CHECKING:
    import numpy as np

ABI = 16
CPU_INFO = Path("/proc/cpuinfo")


# Instruction sets by the number that native/core/isa.hpp gives them.
SETS = {"portable": 0, "neon": 1, "avx2": 2, "avx_vnni": 3, "avx512": 4, "avx512_bf16": 5, "amx": 6}


def available() -> bool:
    """Whether the core can be called; the first time it cannot, a RuntimeWarning says why and the cost."""
    if unavailable_reason() is None:
        return True
    _warn_once()
    return False


def unavailable_reason() -> str | None:
    """Why the core is absent, in a sentence; None when it is there."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def isa() -> str:
    """The instruction set the kernels use, one of SETS; "reference" when the core is absent."""
    core = _load()
    if isinstance(core, str):
        return "reference"
    return os.environ.get("CUTAWAY_ISA") or _best(core)


def file() -> Path | None:
    """The file of the core; None where it is absent."""
    core = _load()
    return None if isinstance(core, str) else Path(core._name)


def best_isa() -> str:
    """The best instruction set that this processor has; "reference" when the core is absent."""
    core = _load()
    return "reference" if isinstance(core, str) else _best(core)


def threads() -> int:
    """How many cores this process may use: CUTAWAY_THREADS, else its affinity and its container's quota."""
    asked = os.environ.get("CUTAWAY_THREADS")
    if not asked:
        return _cores()
    if not asked.isdecimal() or int(asked) < 1:
        raise UserError(f"CUTAWAY_THREADS is {asked!r}; set it to a number from 1 up, or unset it")
    return min(int(asked), 1024)


@cache
def processor() -> str:
    """The processor's own name, as far as the system tells it."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def function(name: str, *arguments: type, result: type | None = None) -> Any:
    """The core's function `name`, typed for ctypes; OperationalError without the core."""
    core = _load()
    if isinstance(core, str):
        raise OperationalError(core)
    found = getattr(core, name)
    found.argtypes, found.restype = arguments, result
    return found


def check(name: str, array: np.ndarray, dtype: type[np.generic], written: bool = False) -> None:
    """Refuses an array that C++ cannot read in place: of another dtype, strided, or (`written`) read-only."""
    if array.dtype != dtype:
        raise UserError(f"{name} holds {array.dtype}, and {dtype.__name__} is needed.")
    if not array.flags.c_contiguous or not array.flags.aligned:
        raise UserError(f"{name} is not contiguous in memory; pass np.ascontiguousarray of it.")
    if written and not array.flags.writeable:
        raise UserError(f"{name} cannot be written to; give an array that owns its memory.")


@cache
def _load() -> ctypes.CDLL | str:
    """The library, ready to be called, or the sentence that says why there is none."""
    if os.environ.get("CUTAWAY_PURE", "0").lower() not in ("", "0", "false", "no", "off"):
        return "The native core is off, because CUTAWAY_PURE is set."
    spec = importlib.util.find_spec("cutaway._core")
    if spec is None or spec.origin is None:
        return _unbuilt_reason()
    try:
        if _cut_short(spec.origin):
            return f"The native core is cut short ({spec.origin}); install Cutaway again."
        core = ctypes.CDLL(spec.origin)
        abi = core.cutaway_abi()
    except (OSError, AttributeError) as error:
        return f"The native core could not be loaded ({error}); install Cutaway again."
    if abi != ABI:
        return f"The native core was built for another version ({abi}, not {ABI}); install Cutaway again."
    _use_isa(core)
    return core


def _cut_short(path: str) -> bool:
    """Whether an ELF file ends before its last table: the loader maps it, and its first use is a SIGBUS."""
    with open(path, "rb") as file:
        head, end = file.read(64), file.seek(0, os.SEEK_END)
    if head[:6] != b"\x7fELF\x02\x01":  # of 64 bits, little endian: what Linux has here
        return False
    size, count = struct.unpack_from("<HH", head.ljust(64, b"\0"), 58)
    return struct.unpack_from("<Q", head.ljust(64, b"\0"), 40)[0] + size * count > end


def _use_isa(core: ctypes.CDLL) -> None:
    asked = os.environ.get("CUTAWAY_ISA")
    if not asked:
        return
    if asked not in SETS:
        raise UserError(f"CUTAWAY_ISA is {asked!r}; it may be {', '.join(SETS)}.")
    if core.cutaway_isa_use(SETS[asked]):
        best = f"the best that this processor has is {_best(core)}"
        raise UserError(f"CUTAWAY_ISA is {asked!r}, which is absent here; {best}.")


def _best(core: ctypes.CDLL) -> str:
    return list(SETS)[core.cutaway_isa_best()]


def _unbuilt_reason() -> str:
    """Reads the reason from the build tag that the install gave its wheel (pyproject.toml)."""
    import importlib.metadata

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
        f"{unavailable_reason()} Results are the same; reading packed weights and tokenizing take "
        "many times longer.",
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
    """The container's limit of processor time, in cores (cgroup v2, then v1); infinite without a limit."""
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
