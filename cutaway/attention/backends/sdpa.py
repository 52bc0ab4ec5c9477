"""Attention by torch's fused kernel: the scores never stand in memory."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from cutaway.attention.parts.score import Problem
from cutaway.attention.parts.visibility import All, Causal
from cutaway.errors import UserError
from cutaway.shapes import Float

FEW = 8  # up to so many queries a step decodes


def attend(problem: Problem) -> Float[Tensor, "b h t v"]:
    """Problems in order that are causal or hide nothing need no mask; all others lower to a dense one."""
    if problem.softcap is not None:
        raise UserError("torch's fused kernel cannot bound scores: use the naive or the blocked path")
    size = problem.v.shape[-1]
    if problem.q.shape[2] > FEW:
        problem = evened(problem)
    if problem.bias is not None or problem.sinks is not None:
        return _added(problem)[..., :size]
    seen = None if unmasked(problem) else problem.seen()
    causal = seen is None and problem.visibility == Causal()
    return _kernel(problem, problem.k, problem.v, seen, causal)[..., :size]


def unmasked(problem: Problem) -> bool:
    """Whether the kernel can compute this without a mask."""
    plain = problem.bias is None and problem.sinks is None and problem.chosen is None
    return plain and problem.in_order and problem.visibility in (Causal(), All())


def evened(problem: Problem) -> Problem:
    """The same problem with zeros that make keys and values equally long. Without them torch's kernel for a
    CPU falls back to one that holds every score.
    """
    q, k, v = problem.q, problem.k, problem.v
    more = v.shape[-1] - k.shape[-1]
    if more == 0 or q.device.type != "cpu":
        return problem
    wider, longer = (0, max(more, 0)), (0, max(-more, 0))
    return replace(problem, q=pad(q, wider), k=pad(k, wider), v=pad(v, longer))


def _added(problem: Problem) -> Float[Tensor, "b h t v"]:
    """With numbers to add to the scores, -inf where hidden. A sink is one more key, of zeros, whose score is
    all added.
    """
    seen, k, v = problem.seen(), problem.k, problem.v
    added = problem.q.new_zeros(())
    if problem.bias is not None:
        added = problem.bias(problem.query.pos, problem.key.pos).to(k.dtype)
    reads = seen.any(-1, keepdim=True)
    added = torch.where(seen, added, torch.where(reads, -torch.inf, 0.0).to(k.dtype))
    if problem.sinks is not None:
        b, h, t = problem.q.shape[:3]
        sink = problem.sinks.to(k.dtype)[None, :, None, None].expand(b, -1, t, -1)
        added = torch.cat((added.expand(b, h, t, -1), sink), dim=-1)
        k, v = pad(k, (0, 0, 0, 1)), pad(v, (0, 0, 0, 1))
    return torch.where(reads, _kernel(problem, k, v, added, False), 0.0)


def _kernel(problem: Problem, k: Tensor, v: Tensor, added: Tensor | None, causal: bool) -> Tensor:
    """The kernel itself. The few queries of a decoding step become rows of their key-value head: it then
    reads each key once, where it would copy the keys for every query head that shares them.
    """
    q, groups = problem.q, k.shape[1]
    t, shared = q.shape[2], q.shape[1] // groups
    if added is None or shared == 1 or t > FEW:
        return scaled_dot_product_attention(
            q, k, v, attn_mask=added, is_causal=causal, scale=problem.scale, enable_gqa=shared > 1
        )
    added = added.expand(-1, q.shape[1], -1, -1).unflatten(1, (groups, shared)).flatten(2, 3)
    rows = q.unflatten(1, (groups, shared)).flatten(2, 3)
    out = scaled_dot_product_attention(rows, k, v, attn_mask=added, scale=problem.scale)
    return out.unflatten(2, (shared, t)).flatten(1, 2)
