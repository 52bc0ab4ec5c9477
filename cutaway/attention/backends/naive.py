"""Attention as the equation says it, every score in memory: the definition, and what is watched and
edited.
"""

import torch
from torch import Tensor

from cutaway.attention.parts.score import Problem
from cutaway.hooks import tap
from cutaway.layers.norm import widened
from cutaway.shapes import Float


def attend(problem: Problem) -> Float[Tensor, "b h t v"]:
    """Taps ``scores`` [b h t s] before anything is hidden, and ``pattern`` [b h t s], whose rows sum to 1 or
    are 0.

    With sinks a row of the pattern sums to less than 1: the rest is the sink's share.
    """
    q, k, v = problem.q, problem.k, problem.v
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) * problem.scale
    if problem.softcap is not None:
        scores = problem.softcap * torch.tanh(scores / problem.softcap)
    if problem.bias is not None:
        scores = scores + problem.bias(problem.query.pos, problem.key.pos).to(scores.dtype)
    scores = tap("scores", scores)
    seen = problem.seen()
    rows = widened(scores).masked_fill(~seen, -torch.inf)
    if problem.sinks is not None:
        sink = problem.sinks.to(rows.dtype)[None, :, None, None].expand(*rows.shape[:-1], 1)
        rows = torch.cat((rows, sink), dim=-1)
    pattern = torch.softmax(rows, dim=-1)[..., : scores.shape[-1]]
    pattern = torch.where(seen.any(-1, keepdim=True), pattern, 0.0).to(v.dtype)
    return tap("pattern", pattern) @ v
