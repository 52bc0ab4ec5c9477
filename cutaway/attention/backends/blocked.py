"""Attention in blocks: a block of queries meets only the blocks of keys that one of them may see.

For a window, for packed documents and for sparse patterns time then grows with what is seen and not with
n^2, and whatever is seen, no mask or bias larger than one block's stands in memory. It needs no compiler, and
its gradient is that of its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cutaway.attention.backends import matmul, naive, native, sdpa
from cutaway.attention.parts.score import Problem
from cutaway.attention.parts.visibility import All, Causal, Places, Span
from cutaway.shapes import Bool, Float, Int

BLOCK = 64
FAR = 16  # blocks of keys in reach from which single keys are looked at
NOWHERE = 2**40  # above every position: where a block of padding begins, so that it is never in reach


def attend(problem: Problem, block: int = BLOCK) -> Float[Tensor, "b h t v"]:
    """The blocks of queries one after another, each against the keys in its reach."""
    inner, size, parts = sdpa.attend, problem.v.shape[-1], []
    if problem.softcap is not None:
        inner = naive.attend
    elif native.pays(problem):
        inner = native.attend
    elif matmul.pays(problem):
        inner = matmul.attend
    elif block > sdpa.FEW:
        problem = sdpa.evened(problem)
    for i, reach in enumerate(reachable(problem, block).tolist()):
        rows = slice(i * block, (i + 1) * block)
        runs = list(_runs(reach, block))
        if runs:
            parts.append(inner(_thinned(_part(problem, rows, runs))))
        else:
            parts.append(problem.q[:, :, rows, :1].expand(-1, -1, -1, problem.v.shape[-1]) * 0)
    return torch.cat(parts, dim=2)[..., :size]


def reachable(problem: Problem, block: int = BLOCK) -> Bool[Tensor, "m n"]:
    """Whether any query of block m may see any key of block n, in any row of the batch."""
    i, j = _spans(problem.query.pos, block), _spans(problem.key.pos, block)
    i, j = Span(i.low[:, :, None], i.high[:, :, None]), Span(j.low[:, None, :], j.high[:, None, :])
    may = problem.visibility.may(i, j) & (i.high >= 0) & (j.high >= 0)
    if problem.query.documents is not None and problem.key.documents is not None:
        asks, told = _spans(problem.query.documents, block), _spans(problem.key.documents, block)
        may &= (asks.low[:, :, None] <= told.high[:, None]) & (told.low[:, None] <= asks.high[:, :, None])
    return may.any(0)


def _spans(numbers: Int[Tensor, "b n"], block: int) -> Span:
    """The lowest and the highest number of each block; what is negative does not count."""
    blocks = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % block), value=-1).unflatten(
        1, (-1, block)
    )
    return Span(torch.where(blocks < 0, NOWHERE, blocks).amin(-1), blocks.amax(-1))


def _runs(reach: list[bool], block: int) -> Iterator[slice]:
    """The stretches of keys that are in reach."""
    start = None
    for n, near in enumerate([*reach, False]):
        if near and start is None:
            start = n
        if not near and start is not None:
            yield slice(start * block, n * block)
            start = None


def _part(problem: Problem, rows: slice, runs: list[slice]) -> Problem:
    """The same problem for these queries and keys alone."""
    chosen = problem.chosen_by(rows)
    return replace(
        problem,
        q=problem.q[:, :, rows],
        k=_joined([problem.k[:, :, run] for run in runs], 2),
        v=_joined([problem.v[:, :, run] for run in runs], 2),
        query=_places(problem.query, [rows]),
        key=_places(problem.key, runs),
        in_order=False,
        chosen=None if chosen is None else _joined([chosen[:, :, run] for run in runs], 2),
    )


def _thinned(part: Problem) -> Problem:
    """Without the keys that no query here sees, where the reach is long and they are more than half of it: a
    pattern may have something to see in every block, and little in each.
    """
    if part.k.shape[2] <= FAR * BLOCK or part.visibility in (Causal(), All()):
        return part
    kept = part.seen().any(2).any(0)[0].nonzero()[:, 0]
    if 2 * len(kept) > part.k.shape[2]:
        return part
    documents = part.key.documents
    chosen = part.chosen_by(slice(None))
    return replace(
        part,
        k=part.k[:, :, kept],
        v=part.v[:, :, kept],
        key=Places(part.key.pos[:, kept], None if documents is None else documents[:, kept]),
        chosen=None if chosen is None else chosen[:, :, kept],
    )


def _places(places: Places, runs: list[slice]) -> Places:
    documents = places.documents
    kept = None if documents is None else _joined([documents[:, run] for run in runs], 1)
    return Places(_joined([places.pos[:, run] for run in runs], 1), kept)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """Laid end to end; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
