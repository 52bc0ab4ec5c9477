"""Attention by torch's FlexAttention, compiled for the rule at hand: for who asks for it and has a C++
compiler.

It computes the same blocks as ``blocked``, in one kernel. On a CPU it has no backward pass. Past a number
of shapes torch gives up compiling and, with no more than a line in a log, holds every score in memory; here
that is an error.
"""

from __future__ import annotations

import shutil
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit

from cutaway.attention.backends import blocked
from cutaway.attention.parts.score import Problem
from cutaway.errors import OperationalError, UserError
from cutaway.shapes import Float

BLOCK = 128  # what torch's kernels are tuned for


def attend(problem: Problem) -> Float[Tensor, "b h t v"]:
    """UserError where it cannot serve, with the reason; OperationalError if torch would fall back."""
    reason = why_not(problem)
    if reason is not None:
        raise UserError(f"flex attention: {reason}; the blocked path needs none of it")
    try:
        return _compiled()(
            problem.q,
            problem.k,
            problem.v,
            block_mask=_blocks(problem),
            scale=problem.scale,
            enable_gqa=True,  # which also serves as many key heads as query heads
        )
    except FailOnRecompileLimitHit as error:
        raise OperationalError(
            f"flex attention: torch compiled for too many shapes and would fall back: {error}"
        ) from error


def why_not(problem: Problem) -> str | None:
    """Why this path cannot compute this problem, or None."""
    cpu = problem.q.device.type == "cpu"
    if cpu and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "there is no C++ compiler"
    if cpu and torch.is_grad_enabled() and any(x.requires_grad for x in (problem.q, problem.k, problem.v)):
        return "it has no backward pass on a CPU"
    if problem.q.dtype == torch.float64:
        return "it has no float64"
    odd = {
        "a soft-cap": problem.softcap,
        "a bias": problem.bias,
        "sinks": problem.sinks,
        "chosen keys": problem.chosen,
    }
    for name, value in odd.items():
        if value is not None:
            return f"{name} would need a kernel that is not written here"
    return None


@cache
def _compiled() -> Any:
    """``fullgraph`` makes torch raise where it would fall back."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def _blocks(problem: Problem) -> Any:
    """The blocks in reach, and the rule inside them."""
    from torch.nn.attention.flex_attention import BlockMask

    query, key, rule = problem.query, problem.key, problem.visibility
    asked, told = query.documents, key.documents

    def sees(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        i, j = query.pos[b, t], key.pos[b, s]
        seen = rule.sees(i, j) & (i >= 0) & (j >= 0)
        return seen if asked is None or told is None else seen & (asked[b, t] == told[b, s])

    reach = blocked.reachable(problem, BLOCK).expand(problem.q.shape[0], 1, -1, -1)
    count = reach.sum(-1).int()
    order = reach.int().argsort(dim=-1, descending=True, stable=True).int()
    lengths = problem.q.shape[2], problem.k.shape[2]
    return BlockMask.from_kv_blocks(count, order, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=lengths)
