"""MXFP4 in a Hugging Face folder: a tensor of blocks and one of scales, read as GGUF's type of that name.

``NAME_blocks`` uint8 [e rows groups 16] holds two numbers a byte, neighbours in the low and the high nibble;
``NAME_scales`` uint8 [e rows groups] one exponent a group of 32. GGUF has the exponent before its group, and
the first 16 numbers in the low nibbles. Nothing is converted before an expert is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed

BLOCKS, SCALES = "_blocks", "_scales"


class _Interleaved:
    """The ``Packed.data`` of all experts, uint8 [e rows groups * 17]: each is made when it is indexed."""

    dtype = np.dtype(np.uint8)

    def __init__(self, blocks: np.ndarray, scales: np.ndarray) -> None:
        self._blocks, self._scales = blocks, scales
        self.shape = (*scales.shape[:-1], scales.shape[-1] * 17)
        self.nbytes = blocks.nbytes + scales.nbytes

    def __getitem__(self, i: Any) -> np.ndarray:
        blocks, scales = self._blocks[i], self._scales[i]
        numbers = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 2, 16)
        packed = numbers[..., 0, :] | numbers[..., 1, :] << 4
        return np.concatenate([scales[..., None], packed], axis=-1).reshape(*scales.shape[:-1], -1)


def joined(theirs: dict[str, Packed], where: object) -> dict[str, Packed]:
    """The folder's weights, each pair as one; UserError for a pair that does not fit together."""
    out = {}
    for name, packed in theirs.items():
        if name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in theirs:
            continue
        if not name.endswith(BLOCKS):
            out[name] = packed
            continue
        whole = name.removesuffix(BLOCKS)
        scales = theirs.get(whole + SCALES)
        if (
            scales is None
            or {packed.type, scales.type} != {"U8"}
            or packed.shape != (*scales.shape, 16)
            or len(packed.shape) != 4
        ):
            raise UserError(
                f"{where}: {quoted(name)} should be blocks of 16 bytes, with {SCALES[1:]} of each"
            )
        data: Any = _Interleaved(packed.data.reshape(packed.shape), scales.data.reshape(scales.shape))
        out[whole] = Packed("MXFP4", (*scales.shape[:-1], scales.shape[-1] * 32), data)
    return out
