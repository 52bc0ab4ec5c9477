"""A KV cache of 8 or 4 bits a number; it wraps any other and has the same interface.

    x ~ low + step * code        codes to 255 or 15, low and step float16 for each 32 numbers

Groups are cut along each head's vector, so that a token's codes do not depend on its neighbours: reading a
text in pieces gives the same as reading it at once. Entries come back in the type they had. A number is off
by at most half a step, which is its group's range / 255 or / 15, and by the float16 of low and step.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from cutaway.attention.common.cost import GROUP
from cutaway.attention.common.mixer import LayerState, Wrap
from cutaway.attention.state.entries import Entries, Store
from cutaway.errors import UserError
from cutaway.shapes import Int


class Quantized:
    """``inner`` stores codes instead of numbers. UserError unless ``bits`` are 8 or 4."""

    def __init__(self, inner: Store, bits: int = 8) -> None:
        if bits not in (4, 8):
            raise UserError(f"a quantized state has 8 or 4 bits a number, not {bits}")
        self.inner, self.bits = inner, bits

    @classmethod
    def of(cls, bits: int) -> Wrap:
        """For ``Decoder.new_state``: every KV cache in so many bits, recurrent states as they are."""
        return partial(_wrapped, bits=bits)

    @property
    def length(self) -> int:
        return self.inner.length

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    def append(self, entries: Entries, pos: Int[Tensor, "b t"]) -> tuple[Entries, Int[Tensor, "b s"]]:
        packed: Entries = {}
        for name, entry in entries.items():
            packed[f"{name}.codes"], packed[f"{name}.scales"] = pack(entry, self.bits)
        kept, positions = self.inner.append(packed, pos)
        return {
            name: unpack(kept[f"{name}.codes"], kept[f"{name}.scales"], self.bits, entry.shape[-1]).to(
                entry.dtype
            )
            for name, entry in entries.items()
        }, positions

    def can_truncate(self, length: int) -> bool:
        return self.inner.can_truncate(length)

    def truncate(self, length: int) -> None:
        self.inner.truncate(length)

    def snapshot(self) -> Quantized:
        return Quantized(self.inner.snapshot(), self.bits)


def _wrapped(state: LayerState, bits: int) -> LayerState:
    return Quantized(state, bits) if isinstance(state, Store) else state


def pack(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes uint8 [... bytes] and scales float16 [... 2 groups]: every group's low, then every step."""
    groups = pad(x.float(), (0, -x.shape[-1] % GROUP), mode="constant").unflatten(-1, (-1, GROUP))
    size = x.shape[-1]
    if size % GROUP:  # zeros that fill the last group up must not widen its range
        groups[..., -1, size % GROUP :] = groups[..., -1, :1]
    low = groups.amin(-1).half()
    step = ((groups.amax(-1) - low.float()) / (2**bits - 1)).half()
    safe = torch.where(step > 0, step.float(), 1.0)
    codes = (
        ((groups - low.float()[..., None]) / safe[..., None])
        .round()
        .clamp(0, 2**bits - 1)
        .to(torch.uint8)
        .flatten(-2)
    )
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes, torch.cat((low, step), dim=-1)


def unpack(codes: Tensor, scales: Tensor, bits: int, size: int) -> Tensor:
    """The numbers, float32 [... size]."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    low, step = scales.float().chunk(2, dim=-1)
    return (low[..., None] + step[..., None] * codes.unflatten(-1, (-1, GROUP))).flatten(-2)[..., :size]
