"""Causal effects: how the answer changes when one part of a model is ablated or patched, part by part.

Where a patch moves the answer to the other text's, the patched activation holds the difference of the texts
(2202.05262 calls it causal tracing; 2309.16042 compares metrics).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import Listener, tracing
from cutaway.inspect.inputs import output_heads, row
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float


@dataclass(frozen=True)
class Patched:
    """How far patching moves the answer, by position and block.

    ``recovered[p, i]``: from this text's answer (0) to the other's (1) when the residual stream after block i
    is the other's at ``positions[p]``. ``here`` and ``there``: the two answers' ids.
    """

    here: int
    there: int
    positions: tuple[int, ...]
    recovered: Float[Tensor, "p i"]


@torch.no_grad()
def head_effects(model: Decoder, ids: Sequence[int], token: int) -> tuple[Float[Tensor, " h"], ...]:
    """By how much ``token``'s logit after ``ids`` falls when each head alone is ablated, by layer.

    Unlike attribution this counts what later layers make of the head. One forward pass a layer, a row a head.
    """
    ids_row, pos = row(model, ids)
    usual = model(ids_row, pos, last=True)[0, -1, token]
    effects = []
    for layer, block in enumerate(model.config.blocks):
        heads = output_heads(block.attention)
        with tracing(model, edit={f"blocks.{layer}.attention.z": _without_own_head}):
            logits = model(ids_row.expand(heads, -1), pos.expand(heads, -1), last=True)
        effects.append(usual - logits[:, -1, token])
    return tuple(effects)


def _without_own_head(heads: Tensor) -> Tensor:
    """Row i of the batch loses head i."""
    changed, each = heads.clone(), torch.arange(len(heads), device=heads.device)
    changed[each, each] = 0
    return changed


@torch.no_grad()
def patch_residuals(
    model: Decoder, ids: Sequence[int], other: Sequence[int], vocabulary: int | None = None
) -> Patched:
    """Patches the residual stream of each token in which the texts differ, and of the last, block by block.

    The effect is measured in the logit difference of the two answers, which are ids below ``vocabulary``.
    Raises UserError unless the texts have as many tokens, differ, and have different answers.
    """
    positions = _comparable(ids, other)
    (ids_row, pos), (donor, _) = row(model, ids), row(model, other)
    names = [f"blocks.{i}.out" for i in range(len(model.blocks))]
    with tracing(model, *names) as seen:
        theirs = model(donor, pos, last=True)[0, -1]
    ours = model(ids_row, pos, last=True)[0, -1]
    here, there = int(ours[:vocabulary].argmax()), int(theirs[:vocabulary].argmax())
    if here == there:
        raise UserError("both texts have the same answer, so patching has nothing to move")
    low, high = (float(logits[there] - logits[here]) for logits in (ours, theirs))
    at = torch.tensor(positions, device=ids_row.device)
    rows, row_pos = ids_row.expand(len(positions), -1), pos.expand(len(positions), -1)
    columns = []
    for name in names:
        with tracing(model, edit={name: _each_at(at, seen[name])}):
            logits = model(rows, row_pos, last=True)[:, -1]
        columns.append((logits[:, there] - logits[:, here] - low) / (high - low))
    return Patched(here, there, tuple(positions), torch.stack(columns, dim=1))


def _each_at(at: Tensor, donor: Tensor) -> Listener:
    """Row i of the batch gets the donor's residual stream at position at[i]."""

    def change(residual: Tensor) -> Tensor:
        changed = residual.clone()
        changed[torch.arange(len(at), device=at.device), at] = donor[0, at]
        return changed

    return change


def _comparable(ids: Sequence[int], other: Sequence[int]) -> list[int]:
    """The positions where the texts differ, and the last."""
    if len(ids) != len(other):
        raise UserError(
            f"patching needs texts of equal length: this one has {len(ids)} tokens, the other {len(other)}; "
            "reword one of them"
        )
    differing = [i for i, (a, b) in enumerate(zip(ids, other, strict=True)) if a != b]
    if not differing:
        raise UserError("both texts are the same, so patching has nothing to move")
    return sorted({*differing, len(ids) - 1})
