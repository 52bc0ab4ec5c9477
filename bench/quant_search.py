"""Blocks fitted by search beside ggml's own quantizers: squared error and processor time, type by type.

    python bench/quant_search.py --ggml PATH/libggml-base.so [--models smollm2 gemma.gguf] [--rows 128]

Of each model one matrix with rows that are whole blocks of 256 (the last of an MLP in the middle), its
columns multiplied by random factors from 0.8 to 1.25, which takes the weights off the levels of the file they
come from; and one of normal numbers. Both sides run on one thread on the same floats. "error" is ours over
theirs, of sum of w (x - packed x)^2: w is 1, or random columns' importance (lognormal, sigma 1.5) that both
are given. "time" is theirs over ours. ggml rounds Q4_0 to Q5_1 and Q8_0 without a search where no importance
is given, which takes no time."""

from __future__ import annotations

import argparse
import ctypes
import time
from pathlib import Path

import numpy as np

from cutaway import native, store
from cutaway.gguf import TYPES, Packed, packed_shape
from cutaway.quantization import formats, search
from cutaway.weights import load

SPREAD = 1.25


class Ggml:
    """ggml_quantize_chunk, which chooses the scales of whole rows."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        pointer, int64 = ctypes.c_void_p, ctypes.c_int64
        self.call = library.ggml_quantize_chunk
        self.call.argtypes = [ctypes.c_int, pointer, pointer, int64, int64, int64, pointer]
        self.call.restype = ctypes.c_size_t

    def pack(self, type: str, array: np.ndarray, importance: np.ndarray | None) -> Packed:
        out = np.empty(packed_shape(type, array.shape), np.uint8)
        address = None if importance is None else importance.ctypes.data
        self.call(TYPES[type].id, array.ctypes.data, out.ctypes.data, 0, *array.shape, address)
        return Packed(type, array.shape, out)


def ours(type: str, array: np.ndarray, importance: np.ndarray | None) -> Packed:
    out = np.empty(packed_shape(type, array.shape), np.uint8)
    native.fit(type, array, importance, out, threads=1)
    return Packed(type, array.shape, out)


def matrices(models: list[str], rows: int) -> dict[str, np.ndarray]:
    """By name, float32 [rows columns]."""
    generator = np.random.default_rng(0)
    found = {"normal": generator.standard_normal((rows, 2048)).astype(np.float32)}
    for model in models:
        path = Path(model)
        checkpoint = load.read_checkpoint(path if path.exists() else store.resolve(model, pull=True))
        layer = len(checkpoint.config.blocks) // 2
        values = formats.unpack(checkpoint.tensors[f"blocks.{layer}.mlp.down.weight"])[:rows]
        factors = np.exp(generator.uniform(-np.log(SPREAD), np.log(SPREAD), values.shape[1]))
        found[path.stem] = np.ascontiguousarray(values * factors.astype(np.float32))
    return found


def measured(pack, type: str, array: np.ndarray, importance: np.ndarray | None) -> tuple[float, float]:
    """The error and the seconds of processor time."""
    begin = time.process_time()
    packed = pack(type, array, importance)
    seconds = time.process_time() - begin
    weights = 1.0 if importance is None else importance.astype(np.float64)
    return float((weights * (array.astype(np.float64) - formats.unpack(packed)) ** 2).sum()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Fitted blocks beside ggml's.")
    parser.add_argument("--ggml", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["smollm2"])
    parser.add_argument("--rows", type=int, default=128)
    asked = parser.parse_args()
    ggml, arrays = Ggml(asked.ggml), matrices(asked.models, asked.rows)
    heads = [f"{name}: {word}" for name in arrays for word in ("error", "time", "weighted", "time")]
    print(f"{native.isa()}, {asked.rows} rows of each\n| type | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 1) + "|")
    for type in search.FITTED:
        cells = []
        for array in arrays.values():
            columns = np.random.default_rng(1).lognormal(sigma=1.5, size=array.shape[1]).astype(np.float32)
            for importance in (None, columns / columns.mean()):
                error, seconds = measured(ours, type, array, importance)
                other, their_seconds = measured(ggml.pack, type, array, importance)
                cells += [f"{error / other:.3f}", f"{their_seconds / seconds:.1f}"]
        print(f"| {type} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
