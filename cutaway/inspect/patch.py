"""Activation patching: put a value from the reading of one text into the reading of another, and see what
moves.

Where the patch carries the other text's answer along, the value holds what told the two texts apart
(2202.05262 calls it causal tracing; 2309.16042 compares the ways to measure it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import Edit, tracing
from cutaway.inspect.inputs import row as reading
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float


@dataclass(frozen=True)
class Patched:
    """``moved[p, i]``: how far the answer went from this text's (0) to the other's (1) when the stream after
    block i was the other's at ``positions[p]``. ``here`` and ``there``: the two answers' ids.
    """

    here: int
    there: int
    positions: tuple[int, ...]
    moved: Float[Tensor, "p i"]


def patch(values: Mapping[str, Tensor], positions: Sequence[int] | None = None) -> dict[str, Edit]:
    """The edits that put ``values`` of another reading in, whole, or of the streams [b t d] only at
    ``positions``.
    """

    def edit(value: Tensor) -> Edit:
        if positions is None:
            return lambda _: value
        return lambda stream: stream.index_copy(1, at.to(stream.device), value[:, at])

    at = torch.tensor(list(positions or ()))
    return {name: edit(value) for name, value in values.items()}


@torch.no_grad()
def patch_streams(model: Decoder, ids: Sequence[int], other: Sequence[int]) -> Patched:
    """Patches the stream of each token in which the texts differ, and of the last, after each block in turn.

    Progress is measured in the lead of the other's answer over this one's, in logits. Raises UserError unless
    the texts have as many tokens, differ, and have different answers: then there is no way from one to the
    other to measure.
    """
    positions = _comparable(ids, other)
    (row, pos), (donor, _) = reading(model, ids), reading(model, other)
    names = [f"blocks.{i}.out" for i in range(len(model.blocks))]
    with tracing(model, *names) as seen:
        theirs = model(donor, pos, last=True)[0, -1]
    ours = model(row, pos, last=True)[0, -1]
    here, there = int(ours.argmax()), int(theirs.argmax())
    if here == there:
        raise UserError("both texts have the same answer, so patching has nothing to move")
    low, high = (float(logits[there] - logits[here]) for logits in (ours, theirs))
    at = torch.tensor(positions, device=row.device)
    each = torch.arange(len(positions), device=row.device)
    rows, places = row.expand(len(positions), -1), pos.expand(len(positions), -1)
    columns = []
    for name in names:
        with tracing(model, edit={name: _each_at(each, at, seen[name])}):
            logits = model(rows, places, last=True)[:, -1]
        columns.append((logits[:, there] - logits[:, here] - low) / (high - low))
    return Patched(here, there, tuple(positions), torch.stack(columns, dim=1))


def _each_at(each: Tensor, at: Tensor, donor: Tensor) -> Edit:
    """Row i of the batch gets the donor's stream at place at[i]."""

    def change(stream: Tensor) -> Tensor:
        changed = stream.clone()
        changed[each, at] = donor[0, at]
        return changed

    return change


def _comparable(ids: Sequence[int], other: Sequence[int]) -> list[int]:
    """The places where the texts differ, and the last."""
    if len(ids) != len(other):
        raise UserError(
            f"patching needs texts of as many tokens: this one has {len(ids)}, the other {len(other)}; "
            "reword one of them"
        )
    places = [i for i, (a, b) in enumerate(zip(ids, other, strict=True)) if a != b]
    if not places:
        raise UserError("both texts are the same, so patching has nothing to move")
    return sorted({*places, len(ids) - 1})
