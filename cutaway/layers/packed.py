"""Weight matrices that stay packed in memory: each use unpacks the numbers and drops them.

A model loaded with ``dtype="packed"`` has these in place of its linear layers and its embedding table. Its
logits equal those of the unpacked model bit for bit; its memory is that of the file, and each step pays for
unpacking.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cutaway import native
from cutaway.gguf import Packed
from cutaway.layers.product import Pair, products
from cutaway.layers.workers import workers
from cutaway.native import packed_product
from cutaway.quantization.rows import PackedRows
from cutaway.shapes import Float, Int

Unpack = Callable[[Packed], np.ndarray]
TILE = 1 << 20  # numbers that are unpacked at once in the backward pass
WHOLE = 1 << 24  # and in the forward pass: smaller matrices are unpacked whole


class PackedLinear(nn.Module):
    """y = x W' + b with W [out in] in the file's own type; ``unpack`` converts it to float32."""

    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None, unpack: Unpack) -> None:
        super().__init__()
        self.packed = packed
        self.unpack = unpack
        self.floats: Tensor | None = None  # while they are ``held``
        self._panels: np.ndarray | None = None
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        return torch.from_numpy(self.unpack(self.packed)) if self.floats is None else self.floats

    def serve(self) -> None:
        """Multiply as the runtime does from now on, where it has a kernel: by vectors of eight bits."""
        if native.available() and self.packed.type in packed_product.TYPES:
            rows, columns = self.packed.shape
            self._panels = np.empty(packed_product.packed_bytes(self.packed.type, rows, columns), np.uint8)
            packed_product.pack(
                self.packed.type, rows, columns, np.ascontiguousarray(self.packed.data).ravel(), self._panels
            )

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        return _Product.apply(x, self)  # type: ignore[return-value]

    def product(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """The product without a gradient."""
        if self._panels is None or x.dtype != torch.float32:
            return self._unpacked_product(x)
        rows, columns = self.packed.shape
        flat = x.detach().reshape(-1, columns).numpy()
        made = packed_product.multiply(self.packed.type, rows, columns, self._panels, flat, *workers())
        out = torch.from_numpy(made.reshape(*x.shape[:-1], rows))  # no view of torch's: it may be added to
        return out if self.bias is None else out + self.bias

    def input_gradient(self, grad: Float[Tensor, "n out"], *pairs: Pair) -> Float[Tensor, "n in"]:
        """The gradient of what it reads, by that of its product, and a b of each pair, in one sum."""
        out = None
        for here, weight in self.tiles():
            part = products((grad[:, here], weight.to(grad.dtype)), *(pairs if out is None else ()))
            out = part if out is None else out.add_(part)
        assert out is not None
        return out

    def _unpacked_product(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        rows, columns = self.packed.shape
        if rows * columns <= WHOLE:
            return F.linear(x, self.weight, self.bias)
        out = x.new_empty(*x.shape[:-1], rows)
        for here, weight in self.tiles(WHOLE):
            out[..., here] = F.linear(x, weight, None if self.bias is None else self.bias[here])
        return out

    def tiles(self, numbers: int = TILE) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the matrix, unpacked so many numbers at a time."""
        rows, columns = self.packed.shape
        at_once = max(1, numbers // columns)
        for first in range(0, rows, at_once):
            here = slice(first, min(rows, first + at_once))
            yield here, torch.from_numpy(self.unpack(self.packed.rows(here)))


class _Product(torch.autograd.Function):
    """y = x W' + b of a frozen matrix. Backward unpacks W again: kept, all would be there as floats."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, of: PackedLinear) -> Tensor:
        ctx.of = of
        return of.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        return ctx.of.input_gradient(grad).view(*grads[0].shape[:-1], -1), None


class PackedEmbedding(nn.Module):
    """Row lookup in a table [n d] in the file's own type: only the rows looked up are unpacked."""

    def __init__(self, packed: Packed, unpack: Unpack) -> None:
        super().__init__()
        self.packed = packed
        self.unpack = unpack
        self.floats: Tensor | None = None  # while they are ``held``

    @property
    def weight(self) -> Float[Tensor, "n d"]:
        return torch.from_numpy(self.unpack(self.packed)) if self.floats is None else self.floats

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        rows = self.packed.rows(ids.flatten().numpy())
        return torch.from_numpy(self.unpack(rows)).view(*ids.shape, -1)


@contextmanager
def held(table: nn.Module) -> Iterator[None]:
    """Unpacks a packed table or head once for all that read its ``weight`` inside; others pass."""
    if not isinstance(table, PackedEmbedding | PackedLinear):
        yield
        return
    table.floats = table.weight
    try:
        yield
    finally:
        table.floats = None


def scores(table: Any, x: Float[Tensor, "... d"]) -> Float[Tensor, "... n"]:
    """x W' with the rows W of an embedding table or a head, without the head's bias."""
    if isinstance(table, PackedEmbedding | PackedLinear):
        return PackedLinear(table.packed, None, table.unpack)(x)
    return F.linear(x, table.weight)


def rows_of(table: Any, count: int) -> np.ndarray | PackedRows:
    """The first rows of an embedding table or a head, float32 [count d]; of a packed one they stay packed."""
    if isinstance(table, PackedEmbedding | PackedLinear):
        return PackedRows(table.packed, table.unpack, count)
    return table.weight.detach()[:count].float().cpu().numpy()
