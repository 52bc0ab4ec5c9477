"""An adapter made ready to run beside packed weights, which it leaves as they are.

    y = factor (W x + B (A x)) + bias

W x is the packed product; A and B are small and float32, and read x as it is before rounding. LoRA's scale is
in B; DoRA's factor is magnitude / norm of each row; IA3 has a factor alone, and what scales the inputs of
``down`` scales the outputs of ``up``, where the MLP has a gate."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model.config import Decoder
from cutaway.native import packed_product, structures
from cutaway.native.quant import LAYOUTS
from cutaway.quantization import formats
from cutaway.runtime import matmul
from cutaway.runtime.block_numbers import attends
from cutaway.weights.changes import Adapter, Added, LowRank, Saved, Scaled, digest
from cutaway.weights.named_tensors import Tensors

NAME = re.compile(r"(blocks\.(\d+)\.(?:attention|mlp)\.)(query|key|value|out|gate|up|down)\.(weight|bias)")
INPUTS = {  # which matrices read the same vectors
    "heads_in": ("query", "key", "value"),
    "out_in": ("out",),
    "mlp_in": ("gate", "up"),
    "down_in": ("down",),
}


class Beside(NamedTuple):
    """An adapter's part beside one matrix: A float32 [r in], B [out r], factor [out]; None where absent."""

    a: np.ndarray | None = None
    b: np.ndarray | None = None
    factor: np.ndarray | None = None

    def applied(self, out: np.ndarray, x: np.ndarray) -> np.ndarray:
        """float32 [n out]: the matrix's products with x [n in], changed."""
        if self.a is not None and self.b is not None:
            out = out + matmul.product(
                formats.pack(self.b, "F32"), matmul.product(formats.pack(self.a, "F32"), x)
            )
        return out if self.factor is None else out * self.factor


def unsupported_reason(config: Decoder, tensors: Tensors, adapter: Adapter) -> str | None:
    """Why the runtime cannot apply an adapter, in words that follow "because"; None where it can."""
    for name, change in adapter.items():
        found = NAME.fullmatch(name)
        if found is None or not _reached(config, int(found[2]), name):
            return f"it changes {name}"
        if isinstance(change, Saved | Added):
            return f"it replaces {name}" if isinstance(change, Saved) else f"it adds to {name}"
        if isinstance(change, Scaled):
            scaled = f"{found[1]}up" if change.side == "in" else f"{found[1]}{found[3]}"
            gated = f"{found[1]}gate.weight" in tensors
            if f"{scaled}.bias" in tensors or (change.side == "in" and not (found[3] == "down" and gated)):
                return f"it scales the bias or the inputs of {name}"
    return None


def _reached(config: Decoder, layer: int, name: str) -> bool:
    """Whether the changes of a matrix of a layer are applied: those of softmax heads and of dense MLPs."""
    block = config.blocks[layer]
    if ".mlp." in name:
        return isinstance(block.mlp, MLP)
    return attends(block) and name.rsplit(".", 2)[1] != "gate"


def prepared(config: Decoder, tensors: Tensors, adapter: Adapter) -> dict[str, Beside]:
    """The changes by paths of matrices. Raises UserError for an adapter that the runtime cannot apply."""
    reason = unsupported_reason(config, tensors, adapter)
    if reason is not None:
        raise UserError(f"The runtime cannot apply this adapter, because {reason}: use engine='pytorch'")
    made: dict[str, Beside] = {}
    for name, change in adapter.items():
        path = name.removesuffix(".weight")
        if isinstance(change, LowRank):
            b = np.ascontiguousarray(np.float32(change.scale) * change.b, np.float32)
            factor = None if change.magnitude is None else change.factor(formats.unpack(tensors[name]))
            made[path] = Beside(np.ascontiguousarray(change.a, np.float32), b, factor)
        elif isinstance(change, Scaled):
            path = f"{path.removesuffix('down')}up" if change.side == "in" else path
            factor = np.ascontiguousarray(change.factors, np.float32)
            before = made.get(path, Beside()).factor
            made[path] = Beside(factor=factor if before is None else before * factor)
    return made


class AdapterPlan:
    """An adapter as the structures that the native step reads, and the memory they point to."""

    def __init__(self, config: Decoder, tensors: Tensors, adapter: Adapter) -> None:
        self._kept: list[np.ndarray] = []
        changes = prepared(config, tensors, adapter)
        self._layers = (structures.LayerAdapter * len(config.blocks))(
            *(
                structures.LayerAdapter(**self._layer(f"blocks.{n}", changes))
                for n in range(len(config.blocks))
            )
        )
        self.address = ctypes.addressof(self._layers)
        self.key = digest(adapter)

    @property
    def nbytes(self) -> int:
        """Bytes of A, B and factors."""
        return sum(each.nbytes for each in self._kept)

    def _layer(self, path: str, changes: Mapping[str, Beside]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for stacked, names in INPUTS.items():
            group = "attention" if stacked in ("heads_in", "out_in") else "mlp"
            parts, at = [], 0
            for name in names:
                change = changes.get(f"{path}.{group}.{name}")
                if change is None:
                    continue
                factor = None if change.factor is None else self._keep(_filled(change.factor))
                if change.a is None or change.b is None:
                    fields[name] = structures.Change(factor=factor)
                    continue
                fields[name] = structures.Change(self._matrix(change.b), factor, at)
                parts.append(_filled(change.a))
                at += len(parts[-1])
            if parts:
                fields[stacked] = self._matrix(np.concatenate(parts))
        return fields

    def _matrix(self, values: np.ndarray) -> packed_product.Matrix:
        rows, columns = values.shape
        panels = np.empty(packed_product.packed_bytes("F32", rows, columns), np.uint8)
        packed_product.pack("F32", rows, columns, values.view(np.uint8).reshape(-1), panels, threads=1)
        return packed_product.Matrix(self._keep(panels), None, LAYOUTS["F32"].id, rows, columns, 0)

    def _keep(self, array: np.ndarray) -> int:
        self._kept.append(array)
        return array.ctypes.data


def _filled(array: np.ndarray) -> np.ndarray:
    """The rows with rows of zeros up to whole panels."""
    return np.pad(array, [(0, -len(array) % packed_product.PANEL), *[(0, 0)] * (array.ndim - 1)])
