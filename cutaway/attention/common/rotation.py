"""Rotation of queries and keys (RoPE) in one pass over memory, where training needs gradients on a CPU.

The gradient rotates back by the same angles. The reference is ``position/rope.py``, whose torch operations
read the vectors ten times, forward and backward, and give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cutaway.layers.swiglu import ONE_PASS
from cutaway.layers.workers import workers
from cutaway.native import train as native_rotation
from cutaway.position.rope import Rotation, rotate
from cutaway.shapes import Float

LANES = 16  # pairs that the core rotates at once


def rotated(x: Float[Tensor, "b h t k"], rotation: Rotation) -> Float[Tensor, "b h t k"]:
    """Each pair of x rotated by its angle: by the native core where it fits, or as ``rotate`` does."""
    if torch.compiler.is_compiling() or not fits(x, rotation):
        return rotate(x, rotation)
    return _Rotated.apply(x, rotation.cos, rotation.sin)  # type: ignore[return-value]


def fits(x: Float[Tensor, "b h t k"], rotation: Rotation) -> bool:
    """Whether the core rotates these, and gradients are needed."""
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and x.stride(3) == 1
    halves = not rotation.interleaved and rotation.cos.shape[-1] % LANES == 0
    return ONE_PASS and plain and halves and x.requires_grad and torch.is_grad_enabled()


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        # Angles of rows may be shared: [1 1 t r] for all.
        angles = [each.expand(len(x), -1, -1, -1).to(x.dtype).contiguous() for each in (cos, sin)]
        ctx.save_for_backward(*angles)
        return _run(x, *angles, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0] if grads[0].stride(3) == 1 else grads[0].contiguous()
        return _run(grad, *ctx.saved_tensors, back=True), None, None


def _run(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """Rows are taken one after another, so that each is a run of tokens with one stride."""
    out = x.new_empty(len(x), x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)
    rows, heads, tokens, size = x.shape
    by = workers()
    for row in range(rows):
        given = native_rotation.Rotated(
            *(each[row].data_ptr() for each in (x, cos, sin, out)), tokens, heads, size, cos.shape[-1]
        )
        given.of_token, given.of_head = x.stride(2), x.stride(1)
        given.to_token, given.to_head = out.stride(2), out.stride(1)
        given.back = back
        native_rotation.rotate(given, by)
    return out
