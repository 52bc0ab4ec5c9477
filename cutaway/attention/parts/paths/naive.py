"""Attention as the equation says it, every score in memory: the definition, and what is watched and edited."""

import torch
from torch import Tensor

from cutaway.attention.parts.score import Problem
from cutaway.attention.parts.visibility import mask
from cutaway.layers.norm import widened
from cutaway.shapes import Float
from cutaway.trace import tap


def attend(problem: Problem) -> Float[Tensor, "b h t v"]:
    """Taps ``scores`` [b h t s] before anything is hidden, and ``pattern`` [b h t s], whose rows sum to 1 or are 0."""
    q, k, v = problem.q, problem.k, problem.v
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) * problem.scale
    if problem.softcap is not None:
        scores = problem.softcap * torch.tanh(scores / problem.softcap)
    scores = tap("scores", scores)
    seen = mask(problem.visibility, problem.query, problem.key)[:, None]
    pattern = torch.softmax(widened(scores).masked_fill(~seen, -torch.inf), dim=-1)
    pattern = torch.where(seen.any(-1, keepdim=True), pattern, 0.0).to(v.dtype)
    return tap("pattern", pattern) @ v
