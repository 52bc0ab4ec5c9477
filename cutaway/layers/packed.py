"""Weight matrices that stay packed in memory: each use unpacks the numbers and drops them.

A model loaded with ``dtype="packed"`` has these in place of its linear layers and its embedding table. Its
logits equal those of the unpacked model bit for bit; its memory is that of the file, and each step pays for
unpacking.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.gguf import Packed
from cutaway.shapes import Float, Int

Unpack = Callable[[Packed], np.ndarray]


class PackedLinear(nn.Module):
    """y = x W' + b with W [out in] in the file's own type; ``unpack`` converts it to float32."""

    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None, unpack: Unpack) -> None:
        super().__init__()
        self.packed = packed
        self.unpack = unpack
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        return torch.from_numpy(self.unpack(self.packed))

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        return F.linear(x, self.weight, self.bias)


class PackedEmbedding(nn.Module):
    """Row lookup in a table [n d] in the file's own type: only the rows looked up are unpacked."""

    def __init__(self, packed: Packed, unpack: Unpack) -> None:
        super().__init__()
        self.packed = packed
        self.unpack = unpack

    @property
    def weight(self) -> Float[Tensor, "n d"]:
        return torch.from_numpy(self.unpack(self.packed))

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        rows = self.packed.rows(ids.flatten().numpy())
        return torch.from_numpy(self.unpack(rows)).view(*ids.shape, -1)
