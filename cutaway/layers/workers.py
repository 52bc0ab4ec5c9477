"""Torch's operations in the native core: whether it has kernels for them here, and whose threads work."""

from __future__ import annotations

from pathlib import Path

import torch

from cutaway import native
from cutaway.native.host import Workers, parallel_of

TYPES = (torch.float32, torch.bfloat16)  # that kernels of these operations read
# Known once: a compiler does not follow the library's door.
KERNELS = native.isa() not in ("twin", "portable")
TORCH = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")


def workers() -> Workers:
    """As many threads as torch uses, and its own where they are OpenMP's: between torch's operations those
    wait awake, and others would have to share their cores.
    """
    return Workers(torch.get_num_threads(), parallel_of(TORCH))
