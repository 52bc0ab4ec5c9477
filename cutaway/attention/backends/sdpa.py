"""Attention by torch's fused kernel, which never holds the scores in memory."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.visibility import All, Causal
from cutaway.errors import UserError
from cutaway.shapes import Bool, Float

FEW = 8  # the most queries of a decoding step


def attend(inputs: AttentionInputs) -> Float[Tensor, "b h t v"]:
    """Inputs in order that are causal or mask nothing need no mask; all others get a dense one."""
    if inputs.softcap is not None:
        raise UserError("torch's fused kernel cannot bound scores: use the naive or the blocked backend")
    size = inputs.v.shape[-1]
    if inputs.q.shape[2] > FEW:
        inputs = evened(inputs)
    if inputs.bias is not None or inputs.sinks is not None:
        return _added(inputs)[..., :size]
    return _kernel(inputs, inputs.k, inputs.v, *masking(inputs))[..., :size]


def masking(inputs: AttentionInputs) -> tuple[Bool[Tensor, "b 1 t s"] | None, bool]:
    """The mask, or None; and whether the kernel itself must then be causal."""
    seen = None if unmasked(inputs) else inputs.seen()
    return seen, seen is None and inputs.visibility == Causal()


def unmasked(inputs: AttentionInputs) -> bool:
    """Whether the kernel can compute this without a mask."""
    plain = inputs.bias is None and inputs.sinks is None and inputs.chosen is None
    return plain and inputs.in_order and inputs.visibility in (Causal(), All())


def evened(inputs: AttentionInputs) -> AttentionInputs:
    """The same inputs with zeros that make keys and values equally long.

    With unequal lengths torch's CPU kernel falls back to a path that stores all scores.
    """
    q, k, v = inputs.q, inputs.k, inputs.v
    more = v.shape[-1] - k.shape[-1]
    if more == 0 or q.device.type != "cpu":
        return inputs
    wider, longer = (0, max(more, 0)), (0, max(-more, 0))
    return replace(inputs, q=pad(q, wider), k=pad(k, wider), v=pad(v, longer))


def _added(inputs: AttentionInputs) -> Float[Tensor, "b h t v"]:
    """With a float mask, -inf where hidden. A sink is one more key, of zeros, whose score is in the mask."""
    seen, k, v = inputs.seen(), inputs.k, inputs.v
    added = inputs.q.new_zeros(())
    if inputs.bias is not None:
        added = inputs.bias(inputs.query.pos, inputs.key.pos).to(k.dtype)
    reads = seen.any(-1, keepdim=True)
    added = torch.where(seen, added, torch.where(reads, -torch.inf, 0.0).to(k.dtype))
    if inputs.sinks is not None:
        b, h, t = inputs.q.shape[:3]
        sink = inputs.sinks.to(k.dtype)[None, :, None, None].expand(b, -1, t, -1)
        added = torch.cat((added.expand(b, h, t, -1), sink), dim=-1)
        k, v = pad(k, (0, 0, 0, 1)), pad(v, (0, 0, 0, 1))
    return torch.where(reads, _kernel(inputs, k, v, added, False), 0.0)


def _kernel(inputs: AttentionInputs, k: Tensor, v: Tensor, added: Tensor | None, causal: bool) -> Tensor:
    """torch's kernel; the few queries of a decoding step become rows of their key-value head.

    The kernel then reads each key once, and does not copy the keys for every query head of a group.
    """
    q, groups = inputs.q, k.shape[1]
    t, shared = q.shape[2], q.shape[1] // groups
    if added is None or shared == 1 or t > FEW:
        return scaled_dot_product_attention(
            q, k, v, attn_mask=added, is_causal=causal, scale=inputs.scale, enable_gqa=shared > 1
        )
    added = added.expand(-1, q.shape[1], -1, -1).unflatten(1, (groups, shared)).flatten(2, 3)
    rows = q.unflatten(1, (groups, shared)).flatten(2, 3)
    out = scaled_dot_product_attention(rows, k, v, attn_mask=added, scale=inputs.scale)
    return out.unflatten(2, (shared, t)).flatten(1, 2)
