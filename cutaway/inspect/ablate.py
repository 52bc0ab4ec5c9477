"""Ablation: what is the answer without a part? A head is taken out by zeroing what it gathered, a layer by
skipping it.

with tracing(model, edit=without(model, ["5.3", "7"])): ...       # head 3 of layer 5, and all of layer 7
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import Edit, tracing
from cutaway.inspect.inputs import row as reading
from cutaway.inspect.inputs import writers
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float


def without(model: Decoder, parts: Iterable[str]) -> dict[str, Edit]:
    """The edits that take parts out: "5.3" is head 3 of layer 5, "5" the whole layer. UserError for what the
    model lacks.
    """
    wanted = sorted(
        {_part(model, part) for part in parts}, key=lambda part: (part[0], part[1] is None, part[1] or 0)
    )
    edits: list[Mapping[str, Edit]] = []
    for layer, head in wanted:
        edits.append(_skip(layer) if head is None else {f"blocks.{layer}.attention.mixed": _zero(head)})
    return together(*edits)


def together(*edits: Mapping[str, Edit]) -> dict[str, Edit]:
    """Several sets of edits as one; where two change the same value, the later changes what the earlier
    made.
    """
    joined: dict[str, Edit] = {}
    for name, change in (item for one in edits for item in one.items()):
        joined[name] = _then(joined[name], change) if name in joined else change
    return joined


@torch.no_grad()
def head_effects(model: Decoder, ids: Sequence[int], token: int) -> tuple[Float[Tensor, " h"], ...]:
    """By how much ``token``'s logit after ``ids`` falls when each head alone is taken out, by layer.

    Unlike attribution this counts what later layers make of the head. One reading a layer, of a batch of h.
    """
    row, pos = reading(model, ids)
    usual = model(row, pos, last=True)[0, -1, token]
    effects = []
    for layer, block in enumerate(model.config.blocks):
        heads = writers(block.attention)
        each = torch.arange(heads, device=row.device)
        with tracing(
            model, edit={f"blocks.{layer}.attention.mixed": lambda x, each=each: _without_one(x, each)}
        ):
            logits = model(row.expand(heads, -1), pos.expand(heads, -1), last=True)
        effects.append(usual - logits[:, -1, token])
    return tuple(effects)


def _without_one(mixed: Tensor, each: Tensor) -> Tensor:
    """Row i of the batch loses head i."""
    changed = mixed.clone()
    changed[each, each] = 0
    return changed


def _part(model: Decoder, part: str) -> tuple[int, int | None]:
    layer, dot, head = part.partition(".")
    if not layer.isdecimal() or (dot and not head.isdecimal()):
        raise UserError(
            f"{part!r} is no part of a model: write 5.3 for head 3 of layer 5, or 5 for the whole layer"
        )
    blocks = model.config.blocks
    if int(layer) >= len(blocks):
        raise UserError(f"there is no layer {layer}: this model's layers are 0 to {len(blocks) - 1}")
    heads = writers(blocks[int(layer)].attention)
    if dot and int(head) >= heads:
        raise UserError(
            f"there is no head {part}: the heads of layer {layer} are {layer}.0 to {layer}.{heads - 1}"
        )
    return int(layer), int(head) if dot else None


def _zero(head: int) -> Edit:
    def change(mixed: Tensor) -> Tensor:
        changed = mixed.clone()
        changed[:, head] = 0
        return changed

    return change


def _skip(layer: int) -> dict[str, Edit]:
    """The stream leaves the layer as it came."""
    came: list[Tensor] = []

    def remember(stream: Tensor) -> None:
        came[:] = [stream]

    before = f"blocks.{layer - 1}.out" if layer else "embed"
    return {before: remember, f"blocks.{layer}.out": lambda _: came[0]}


def _then(first: Edit, second: Edit) -> Edit:
    def change(value: Tensor) -> Tensor:
        for one in (first, second):
            made = one(value)
            value = value if made is None else made
        return value

    return change
