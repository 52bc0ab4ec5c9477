"""Attention by plain matrix products, a block of queries at a time, for training in bf16 on a CPU.

torch's fused kernel for a CPU keeps scores in float32 and takes twice the time of these bf16 products, most
of it in the backward pass. Here scores are rounded to the type of q and k, as in the naive backend. Only one
block of queries has its scores in memory, keys that no query of a causal block may see have none, and the
backward pass recomputes the pattern.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.backends.sdpa import masking
from cutaway.errors import UserError
from cutaway.shapes import Bool, Float

BLOCK = 128


def attend(inputs: AttentionInputs) -> Float[Tensor, "b h t v"]:
    """UserError where something is done to scores but hiding them."""
    reason = unsupported_reason(inputs)
    if reason is not None:
        raise UserError(f"attention by matrix products: {reason}; the naive backend does all of it")
    seen, causal = masking(inputs)
    out: Any = _Products.apply(inputs.q, inputs.k, inputs.v, seen, causal, inputs.scale)
    return out


def unsupported_reason(inputs: AttentionInputs) -> str | None:
    """Why this backend cannot compute these inputs, or None."""
    odd = {"a soft-cap": inputs.softcap, "a bias": inputs.bias, "sinks": inputs.sinks}
    for name, value in odd.items():
        if value is not None:
            return f"{name} needs a backward pass that is not written here"
    return None


def pays(inputs: AttentionInputs) -> bool:
    """Whether this backend is the faster one: bf16 training on a CPU."""
    if (
        inputs.q.dtype != torch.bfloat16
        or inputs.q.device.type != "cpu"
        or unsupported_reason(inputs) is not None
    ):
        return False
    return needs_gradients(inputs)


def needs_gradients(inputs: AttentionInputs) -> bool:
    """Whether autograd will need gradients of q, k or v."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in (inputs.q, inputs.k, inputs.v))


class _Products(torch.autograd.Function):
    """Forward keeps queries, keys and values; backward has p and dp of a block, and from them

    dv = p' do        ds = p (dp - sum dp p)        dq = ds k        dk = ds' q
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        q, k, v = q * scale, k.contiguous(), v.contiguous()
        out = like(q, v.shape[-1])
        for rows, keys in _blocks(q, k, causal):
            p = _pattern(q, k, seen, causal, rows, keys)
            out[:, :, rows] = _apart(p @ v[:, :, keys], q.shape[1])
        ctx.save_for_backward(q, k, v, seen)
        ctx.causal, ctx.scale = causal, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, seen = ctx.saved_tensors
        grad_q = like(q, q.shape[-1])
        wide = torch.promote_types(q.dtype, torch.float32)  # sums over blocks
        grad_k, grad_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for rows, keys in _blocks(q, k, ctx.causal):
            p = _pattern(q, k, seen, ctx.causal, rows, keys)
            query, grad = _together(q, k.shape[1], rows), _together(grads[0], k.shape[1], rows)
            grad_v[:, :, keys] += p.mT @ grad
            grad_p = grad @ v[:, :, keys].mT
            # p (grad - sum p grad) in one pass; torch has no public name for it, and in parts it is two more.
            grad_p = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, :, rows] = _apart(grad_p @ k[:, :, keys], q.shape[1]) * ctx.scale
            grad_k[:, :, keys] += grad_p.mT @ query
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None


def _blocks(
    q: Float[Tensor, "b h t k"], k: Float[Tensor, "b g s k"], causal: bool
) -> Iterator[tuple[slice, slice]]:
    """The queries of each block, and the keys that it may see."""
    t, s = q.shape[2], k.shape[2]
    for start in range(0, t, BLOCK):
        stop = min(start + BLOCK, t)
        yield slice(start, stop), slice(0, stop if causal else s)


def _pattern(
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b g s k"],
    seen: Bool[Tensor, "b 1 t s"] | None,
    causal: bool,
    rows: slice,
    keys: slice,
) -> Float[Tensor, "b g n m"]:
    """The pattern of these queries over these keys, whose rows sum to 1 or are 0."""
    scores = _together(q, k.shape[1], rows) @ k[:, :, keys].mT
    by_query = scores.unflatten(2, (-1, rows.stop - rows.start))
    if causal:
        by_query += _later(rows, scores)
    if seen is None:
        return torch.softmax(scores, dim=-1)
    hidden = ~seen[:, :, None, rows, keys]
    by_query.masked_fill_(hidden, torch.finfo(scores.dtype).min)  # finite, for rows that see nothing
    return torch.softmax(by_query, dim=-1).masked_fill_(hidden, 0.0).flatten(2, 3)


def _later(rows: slice, like: Tensor) -> Float[Tensor, "n m"]:
    """-inf where a key comes after the query, else 0.

    Added to all scores of the block: compiled, that takes half the time of filling the square on the
    diagonal.
    """
    hidden = like.new_full((rows.stop - rows.start, rows.stop), -torch.inf)
    return hidden.triu(1 + rows.start)


def _together(x: Float[Tensor, "b h t k"], groups: int, rows: slice) -> Float[Tensor, "b g n k"]:
    """These queries of all heads that share a key-value head, one under the other."""
    return x[:, :, rows].unflatten(1, (groups, -1)).flatten(2, 3)


def _apart(x: Float[Tensor, "b g n k"], heads: int) -> Float[Tensor, "b h m k"]:
    """Each head's own again."""
    return x.unflatten(2, (heads // x.shape[1], -1)).flatten(1, 2)


def like(q: Float[Tensor, "b h t k"], size: int) -> Float[Tensor, "b h t v"]:
    """A buffer for one vector a query; the heads of a token are neighbours, as in the projections."""
    b, h, t, _ = q.shape
    return q.new_empty(b, t, h, size).transpose(1, 2)
