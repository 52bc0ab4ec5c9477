"""Attention in blocks: a block of queries meets only the blocks of keys that one of them may see.

For a window, packed documents and sparse patterns, time grows with what is seen and not with n^2, and no mask
or bias is larger than one block's. It needs no compiler; autograd differentiates it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cutaway.attention.backends import matmul, naive, native, sdpa
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.visibility import All, Causal, Positions, Span
from cutaway.shapes import Bool, Float, Int

BLOCK = 64
FAR = 16  # blocks of keys in reach from which single hidden keys are dropped
NOWHERE = 2**40  # above every position: where a block of padding begins, so that it is never in reach


def attend(inputs: AttentionInputs, block: int = BLOCK) -> Float[Tensor, "b h t v"]:
    """The blocks of queries one after another, each against the keys in its reach."""
    inner, size, parts = sdpa.attend, inputs.v.shape[-1], []
    if inputs.softcap is not None:
        inner = naive.attend
    elif native.pays(inputs):
        inner = native.attend
    elif matmul.pays(inputs):
        inner = matmul.attend
    elif block > sdpa.FEW:
        inputs = sdpa.evened(inputs)
    for i, reach in enumerate(reachable(inputs, block).tolist()):
        rows = slice(i * block, (i + 1) * block)
        runs = list(_runs(reach, block))
        if runs:
            parts.append(inner(_thinned(_part(inputs, rows, runs))))
        else:
            parts.append(inputs.q[:, :, rows, :1].expand(-1, -1, -1, inputs.v.shape[-1]) * 0)
    return torch.cat(parts, dim=2)[..., :size]


def reachable(inputs: AttentionInputs, block: int = BLOCK) -> Bool[Tensor, "m n"]:
    """Whether any query of block m may see any key of block n, in any row of the batch."""
    i, j = _spans(inputs.query.pos, block), _spans(inputs.key.pos, block)
    i, j = Span(i.low[:, :, None], i.high[:, :, None]), Span(j.low[:, None, :], j.high[:, None, :])
    may = inputs.visibility.may(i, j) & (i.high >= 0) & (j.high >= 0)
    if inputs.query.documents is not None and inputs.key.documents is not None:
        query, key = _spans(inputs.query.documents, block), _spans(inputs.key.documents, block)
        near = (query.low[:, :, None] <= key.high[:, None]) & (key.low[:, None] <= query.high[:, :, None])
        shared = _spans((inputs.key.documents < 0).long(), block).high[:, None] > 0  # every document sees it
        may &= near | shared
    return may.any(0)


def _spans(numbers: Int[Tensor, "b n"], block: int) -> Span:
    """The lowest and the highest number of each block; what is negative does not count."""
    blocks = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % block), value=-1).unflatten(
        1, (-1, block)
    )
    return Span(torch.where(blocks < 0, NOWHERE, blocks).amin(-1), blocks.amax(-1))


def _runs(reach: list[bool], block: int) -> Iterator[slice]:
    """The runs of keys that are in reach."""
    start = None
    for n, near in enumerate([*reach, False]):
        if near and start is None:
            start = n
        if not near and start is not None:
            yield slice(start * block, n * block)
            start = None


def _part(inputs: AttentionInputs, rows: slice, runs: list[slice]) -> AttentionInputs:
    """The same inputs for these queries and keys alone."""
    chosen = inputs.chosen_by(rows)
    return replace(
        inputs,
        q=inputs.q[:, :, rows],
        k=_joined([inputs.k[:, :, run] for run in runs], 2),
        v=_joined([inputs.v[:, :, run] for run in runs], 2),
        query=_positions(inputs.query, [rows]),
        key=_positions(inputs.key, runs),
        in_order=False,
        chosen=None if chosen is None else _joined([chosen[:, :, run] for run in runs], 2),
    )


def _thinned(part: AttentionInputs) -> AttentionInputs:
    """Without the keys that no query here sees, where they are more than half of a long reach.

    A pattern may have something to see in every block, and little in each.
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
        key=Positions(part.key.pos[:, kept], None if documents is None else documents[:, kept]),
        chosen=None if chosen is None else chosen[:, :, kept],
    )


def _positions(positions: Positions, runs: list[slice]) -> Positions:
    documents = positions.documents
    kept = None if documents is None else _joined([documents[:, run] for run in runs], 1)
    return Positions(_joined([positions.pos[:, run] for run in runs], 1), kept)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """Concatenated; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
