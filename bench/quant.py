"""How fast packed weights become float32: kernels, reference implementations, the gguf package, plain memory.

    python bench/quant.py [millions of values]

Everything runs in this one process on the same bytes, best of nine (of two for the slow ones). "write" is
numpy filling the same output with one number on one thread, and "copy" numpy copying another array of its
size to it. Rates are of float32 written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from cutaway import native
from cutaway.gguf import TYPES, Packed
from cutaway.quantization import formats

ROW = 4096


def best(run: Callable[[], object], times: int = 9) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(name: str, out: np.ndarray) -> tuple[float, float, float, float]:
    """Seconds to unpack random bytes: the kernel on one thread and all, the reference, the gguf package."""
    layout = TYPES[name]
    shape = (len(out), ROW // layout.block * layout.bytes)
    data = np.random.default_rng(0).integers(0, 60, shape, dtype=np.uint8)
    return (
        best(lambda: native.unpack(name, data, out, 1)),
        best(lambda: native.unpack(name, data, out)),
        best(lambda: formats.unpack_reference(Packed(name, out.shape, data)), 2),
        best(lambda: dequantize(data, GGMLQuantizationType[name]).copy(), 2),
    )


def main() -> None:
    millions = float(sys.argv[1]) if len(sys.argv) > 1 else 16
    out = np.zeros((max(1, int(millions * 1e6) // ROW), ROW), np.float32)
    source = np.ones_like(out)
    gigabytes = out.nbytes / 1e9
    print(f"{out.size / 1e6:.1f} million values, {native.isa()}, {native.threads()} threads; GB/s of float32")
    print(f"write {gigabytes / best(lambda: out.fill(1)):6.2f}")
    print(f"copy  {gigabytes / best(lambda: np.copyto(out, source)):6.2f}")
    print("type   1 thread  threads   reference    gguf   over reference  over gguf")
    for name in formats.READERS:
        one, many, reference, peer = measure(name, out)
        rates = "  ".join(f"{gigabytes / seconds:6.2f}" for seconds in (one, many, reference, peer))
        print(f"{name:5}  {rates}   {reference / many:9.1f}  {peer / many:9.1f}")


if __name__ == "__main__":
    main()
