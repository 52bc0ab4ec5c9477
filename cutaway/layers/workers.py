"""Whether the native core has kernels for PyTorch's operations here; they run on torch's own threads."""

from __future__ import annotations

from pathlib import Path

import torch

from cutaway import native
from cutaway.native.train import Workers, parallel_of

TYPES = (torch.float32, torch.bfloat16)  # of the kernels' inputs
# A constant, because torch.compile cannot trace a call into the library.
KERNELS = native.isa() not in ("reference", "portable")
TORCH = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")


def workers() -> Workers:
    """The number of torch's threads, and torch's own threads if they are OpenMP's.

    OpenMP's threads spin between operations, so that a second pool would compete for the cores.
    """
    return Workers(torch.get_num_threads(), parallel_of(TORCH))
