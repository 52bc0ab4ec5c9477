"""A packed table read like an array: rows are unpacked when a slice or ids of them are read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cutaway.gguf import Packed


class PackedRows:
    """The first ``count`` rows of a packed table; ``unpack`` makes floats of those that are asked for."""

    def __init__(self, packed: Packed, unpack: Callable[[Packed], np.ndarray], count: int) -> None:
        self.packed, self.unpack = packed, unpack
        self.shape = (count, packed.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        rows = slice(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        return self.unpack(self.packed.rows(rows))
