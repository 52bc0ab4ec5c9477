"""Weights as the CPU kernels read them: matrices as panels in one piece of memory, vectors as floats.

What a model's structures point to, for decoders (packing.py) and encoders (encoder.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Packed, ReadAhead, give_back
from cutaway.layers.config import Norm
from cutaway.model.config import Decoder
from cutaway.native import library, packed_product, structures
from cutaway.native.quant import LAYOUTS
from cutaway.position import rope
from cutaway.position.scaling import LongRoPE
from cutaway.quantization import formats
from cutaway.weights import named_tensors
from cutaway.weights.named_tensors import ROUTERS, Tensors

ALIGNMENT = 64
TABLES = ("embedding.weight", "per_layer.embedding.weight")  # their rows are read as in the file
AT_ONCE = 1 << 20  # bytes of a mapped file that are in memory beside the panels made of them


class Packing:
    """The memory of a model's weights while it is filled, and after: ``size`` bytes of panels."""

    def __init__(self, tensors: Tensors, size: int) -> None:
        self._tensors = tensors
        self._kept: list[Any] = []  # what the structures point to
        self._read_ahead = ReadAhead()
        self._weights = _Arena(size)

    def _finish(self) -> None:
        """All is packed: the files may go."""
        del self._tensors, self._read_ahead

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices as panels."""
        return self._weights.nbytes

    def _table(self, name: str) -> np.ndarray:
        """The rows of a table as they are in its file; UserError unless all are finite."""
        table = self._tensors[name]
        rows = np.ascontiguousarray(table.data)
        _check_rows(name, table)
        self._kept.append(rows)
        return rows

    def _norm(self, path: str, of: Norm | None, size: int) -> structures.Norm:
        """A norm of ``size`` numbers; where nothing is learned its weights are ones."""
        if of is None:
            return structures.Norm()
        weight = self._vector(f"{path}.weight") if of.weight else self._keep(np.ones(size, np.float32))
        bias = self._vector(f"{path}.bias") if "bias" in of.weights(size) else None
        return structures.Norm(weight, bias, structures.NORM_KINDS.index(of.kind), of.eps)

    def _activation(self, path: str, of: Any) -> structures.Activation:
        own = self._keep(np.array(xielu(self._tensors, path))) if of.activation == "xielu" else None
        return structures.Activation(own, structures.ACTIVATIONS.index(of.activation), of.limit or 0.0)

    def _rotation(self, position: rope.Config) -> structures.Rotation:
        radians = np.ascontiguousarray(position.frequencies(), dtype=np.float64)
        self._kept.append(radians)
        longer = None
        if isinstance(position.scaling, LongRoPE):
            more = np.ascontiguousarray(position.frequencies(position.scaling.original + 1), np.float64)
            self._kept.append(more)
            longer = more.ctypes.data
        return structures.Rotation(
            radians.ctypes.data, longer, position.magnitude, len(radians), position.interleaved
        )

    def _matrix(self, path: str) -> packed_product.Matrix:
        packed = as_it_runs(f"{path}.weight", self._tensors)
        rows, columns = packed.shape
        panels = self._weights.take(packed_product.packed_bytes(packed.type, rows, columns))
        self._pack(packed, panels, path)
        bias = self._vector(f"{path}.bias") if f"{path}.bias" in self._tensors else None
        return packed_product.Matrix(panels.ctypes.data, bias, LAYOUTS[packed.type].id, rows, columns, 0)

    def _pack(self, packed: Packed, panels: np.ndarray, path: str) -> None:
        """Lays a matrix out as panels, a megabyte at a time."""
        rows, columns = packed.shape
        at_once = max(1, AT_ONCE // (packed.data.shape[1] * packed_product.PANEL)) * packed_product.PANEL
        done, threads = 0, library.threads()
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            size = packed_product.packed_bytes(packed.type, count, columns)
            data = np.ascontiguousarray(packed.data[first : first + count])
            self._read_ahead.before(data)
            try:
                packed_product.pack(
                    packed.type, count, columns, data, panels[done : done + size], first, threads
                )
            except UserError as problem:
                raise UserError(f"The weight {path}.weight cannot be run: {problem}") from None
            give_back(packed.data)
            done += size

    def _vector(self, name: str) -> int:
        return self._keep(formats.finite(name, self._tensors[name]))

    def _keep(self, values: np.ndarray) -> int:
        values = np.ascontiguousarray(values, np.float32)
        self._kept.append(values)
        return values.ctypes.data


def type_it_runs_as(name: str, tensors: Tensors) -> str:
    """The type that a matrix runs as: its own, but routers decide in floats whatever they are stored as."""
    return "F32" if name.endswith(ROUTERS) else tensors.later(name).type


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight multiplies vectors; norms with weights for each head have two dimensions too."""
    within = ".conv." not in name and not name.endswith("norm.weight")
    return len(shape) == 2 and within and name != "position.weight"


def as_laid(
    name: str, shape: tuple[int, ...], config: Decoder, tensors: Tensors
) -> tuple[int, str, tuple[int, ...]]:
    """The matrices that a weight runs as (number, type, shape): one, but one a head in latent attention."""
    if not name.endswith((".key_up.weight", ".value_up.weight")):
        return 1, type_it_runs_as(name, tensors), shape
    heads = config.blocks[int(name.split(".")[1])].attention.heads  # pyright: ignore[reportAttributeAccessIssue]
    entry = tensors.later(name)
    entry = named_tensors.absorbed(tensors, name, heads) if name.endswith(".key_up.weight") else entry
    return heads, entry.type, (entry.shape[0] // heads, entry.shape[1])


def as_it_runs(name: str, tensors: Tensors) -> Packed:
    """The matrix of this name in the type that it runs as."""
    packed = tensors[name]
    return formats.pack(formats.unpack(packed), "F32") if name.endswith(ROUTERS) else packed


def xielu(tensors: Tensors, path: str) -> tuple[np.float32, ...]:
    """xIELU's strength above 0 and below, its derivative at 0, and the largest x of its exponential."""
    names = ("alpha_p", "alpha_n", "beta", "eps")
    found = (formats.unpack(tensors[f"{path}.activation.{name}"]).reshape(-1)[0] for name in names)
    above, below, beta, most = map(np.float64, found)
    return tuple(np.float32(x) for x in (np.log1p(np.exp(above)), beta + np.log1p(np.exp(below)), beta, most))


class _Arena:
    """All panels in one piece of memory, in the order in which a step reads them: few and large pages serve
    it.
    """

    def __init__(self, size: int) -> None:
        memory = np.empty(size + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self._memory = memory[start : start + size]
        self.nbytes = size
        self._taken = 0

    def take(self, size: int) -> np.ndarray:
        part = self._memory[self._taken : self._taken + size]
        self._taken += aligned(size)
        return part


def aligned(size: int, to: int = ALIGNMENT) -> int:
    return -(-size // to) * to


def _check_rows(name: str, table: Packed) -> None:
    at_once = max(1, AT_ONCE // (4 * table.shape[1]))
    for start in range(0, table.shape[0], at_once):
        formats.finite(name, table.rows(slice(start, start + at_once)))
        give_back(table.data)
