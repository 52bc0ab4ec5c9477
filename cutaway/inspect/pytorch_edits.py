"""Edits in the PyTorch model's forward pass: those of ``edits.py`` as listeners for `cutaway.tracing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import Listener, tracing
from cutaway.inspect import edits, names
from cutaway.inspect.edits import Ablate, Add, Edit, Given, Noise, Patch, Project, Scale, Swap
from cutaway.inspect.inputs import row
from cutaway.layers.config import MoE
from cutaway.model.decoder import Decoder

Change = Callable[[Tensor, int], Tensor | None]  # of a value whose first token is at this position
Move = Callable[[Tensor, Sequence[int]], Tensor]  # of what an edit selects at these positions


class Prepared:
    """Edits that are checked for one model and its prompts."""

    def __init__(
        self, changes: Sequence[tuple[str, Change]], observers: Sequence[tuple[str, Change]]
    ) -> None:
        self.changes: dict[str, list[Change]] = {}
        for name, change in (*changes, *observers):  # what observes a value sees it as all edits left it
            self.changes.setdefault(name, []).append(change)

    def at(self, start: int = 0) -> dict[str, Listener]:
        """The listeners of a forward pass whose first token is at position ``start``."""
        return {name: partial(_apply, changes, start) for name, changes in self.changes.items()}


def _apply(changes: Sequence[Change], start: int, value: Any) -> Any:
    for change in changes:
        changed = change(value, start)
        value = value if changed is None else torch.as_tensor(changed).to(value)
    return value


def prepare(
    model: Decoder,
    given: Given,
    lengths: int | Sequence[int],
    under: Mapping[str, Listener] | None = None,
) -> Prepared:
    """Checks edits against a model and prompts of these ``lengths``, and reads the prompts they take from.

    Several lengths are those of the rows of a batch. Listeners by name are taken as they are; those ``under``
    the edits act on the prompts they take from too. Raises UserError for a layer, name, head, position or
    vector that does not fit.
    """
    lengths = (lengths,) if isinstance(lengths, int) else tuple(lengths)
    changes: list[tuple[str, Change]] = []
    observers: list[tuple[str, Change]] = []
    for one in edits.listed(given):
        if isinstance(one, Mapping):
            changes += [(n, _listening(f)) for pattern, f in one.items() for n in _expanded(model, pattern)]
            continue
        for length in set(lengths):
            edits.check(model.config, one, length)
        if isinstance(one, Ablate) and one.part == "layer" and one.name is None:
            before, after = _whole_layer(one, lengths)
            observers.append(before)
            changes.append(after)
        else:
            found = _values(model, one)
            moves = _moves(model, one, found, under or {})
            changes += [
                (name, partial(_moved, name, one, lengths, move))
                for name, move in zip(found, moves, strict=True)
            ]
    return Prepared(changes, observers)


def _expanded(model: Decoder, pattern: str) -> list[str]:
    """The names that a pattern stands for, so that edits of one activation follow their stated order."""
    every = names.known(model)
    if pattern.endswith(("attention.result", "attn.hook_result")):
        raise UserError(f"{pattern} follows from z and is shown, not edited: edit attention.z")
    resolved = names.resolve(every, [pattern])
    return [name for one in resolved for name in (names.matching(every, one) or [one])]


def _values(model: Decoder, edit: Edit) -> list[str]:
    """The names of the activations that an edit changes."""
    if edit.name is not None:
        found = _expanded(model, edit.name)
        windowed = [getattr(block.attention, "held", None) is not None for block in model.config.blocks]
        if edit.positions is not None or edit.from_step:
            for name in found:
                if name.endswith(".attention.k") and windowed[int(name.split(".")[1])]:
                    raise UserError(f"{name} holds a window of keys: edit k_unrotated at positions instead")
        for name in found:
            _check_shape(edit, name, names.known(model).get(name, torch.Size()))
        return found
    if isinstance(edit, Add | Project):
        return [f"blocks.{edit.layer}.out"]
    if edit.part == "mlp":
        moe = isinstance(model.config.blocks[edit.layer or 0].mlp, MoE)
        return [f"blocks.{edit.layer}.mlp.{'out' if moe else 'down'}"]
    inside = {"head": "attention.z", "attention": "attention.out", "residual": "out"}
    return [f"blocks.{edit.layer}.{inside[edit.part]}"]


def _check_shape(edit: Edit, name: str, shape: torch.Size) -> None:
    """Raises UserError for a head, units or a vector that do not fit an activation."""
    if len(shape) < 3:
        raise UserError(
            f"{name} is no activation of tokens, of shape {list(shape)}: it takes no edit of this kind"
        )
    if edit.head is not None and not (len(shape) == 4 and 0 <= edit.head < shape[1]):
        raise UserError(
            f"there is no head {edit.head} in {name}, whose shape is {list(shape[1:])} for one token"
        )
    keys = name.endswith((".scores", ".pattern"))
    if edit.units is not None and (keys or not all(-shape[-1] <= one < shape[-1] for one in edit.units)):
        size = "as many as keys" if keys else shape[-1]
        raise UserError(f"units {list(edit.units)} are none of the last axis of {name}, of size {size}")
    if keys and (
        isinstance(edit, Noise | Project)
        or (isinstance(edit, Add) and edit.relative)
        or (isinstance(edit, Swap) and edit.other is None)
        or (isinstance(edit, Ablate) and edit.to != "zero")
    ):
        raise UserError(
            f"{name} has as many units as keys: it takes no noise and no projection, is ablated to zero "
            "alone, and only its heads are swapped"
        )
    if isinstance(edit, Add | Project) and len(edit.vector) != shape[-1] and not keys:
        raise UserError(f"the vector has {len(edit.vector)} numbers, {name} {shape[-1]}")
    if isinstance(edit, Swap):
        _check_swapped(edit, name, shape)


def _check_swapped(edit: Swap, name: str, shape: torch.Size) -> None:
    if edit.other is not None and not (len(shape) == 4 and edit.other < shape[1]):
        raise UserError(
            f"there is no head {edit.other} in {name}, whose shape is {list(shape[1:])} for one token"
        )
    if edit.others is not None and not all(
        0 <= one < shape[-1] for one in (*edit.others, *(edit.units or ()))
    ):
        raise UserError(f"units {list(edit.others)} are none of the last axis of {name}, of size {shape[-1]}")
    if edit.vectors is not None and len(edit.vectors[0]) != shape[-1]:
        raise UserError(f"the vectors have {len(edit.vectors[0])} numbers, {name} {shape[-1]}")


def _moves(model: Decoder, edit: Edit, found: list[str], under: Mapping[str, Listener]) -> Iterator[Move]:
    """What the edit does to what it selects of each activation."""
    if isinstance(edit, Noise):
        return (partial(_noisy, _noise(model, edit, name), edit.strength) for name in found)
    if isinstance(edit, Swap):
        return iter([partial(_swapped, edit)] * len(found))
    if isinstance(edit, Add | Project):
        vector = torch.tensor(edit.vector)
        change = _projected if isinstance(edit, Project) else _steered if edit.relative else _added
        move = partial(change, vector, edit.strength)
        return iter([move] * len(found))
    if isinstance(edit, Scale):
        return iter([partial(_scaled, edit.strength)] * len(found))
    if isinstance(edit, Ablate) and edit.to == "zero":
        return iter([partial(_scaled, 1 - edit.strength)] * len(found))
    return (partial(_mixed, donor, edit.strength) for donor in _donors(model, edit, found, under))


def _donors(
    model: Decoder, edit: Ablate | Patch, found: list[str], under: Mapping[str, Listener]
) -> Iterator[Callable[[Sequence[int]], Tensor]]:
    """For each activation, what the edit moves it to at some positions."""
    kept: dict[str, list[Tensor]] = {name: [] for name in found}
    for ids in edit.reference if isinstance(edit, Ablate) else [edit.ids]:
        with torch.no_grad(), tracing(model, *found, edit=under) as seen:
            model(*row(model, ids), last=True)
        for name in found:
            kept[name].append(_selected(edit, seen[name])[0])
    for name in found:
        pool = torch.cat(kept[name], dim=-2)
        if isinstance(edit, Patch):
            yield lambda at, pool=pool: pool[..., list(at), :]
        elif edit.to == "mean":
            mean = pool.mean(-2, keepdim=True)
            yield lambda at, mean=mean: mean
        else:
            drawn = edits.drawn(edit, pool.shape[-2], model.config.context)
            yield lambda at, pool=pool, drawn=drawn: pool[..., drawn[list(at)], :]


def _noise(model: Decoder, edit: Noise, name: str) -> Callable[[Sequence[int]], Tensor]:
    """The noise of what the edit selects, at some positions: a token's row is drawn whole."""
    shape = names.known(model)[name]
    heads = shape[1] if len(shape) == 4 else 1

    def draw(at: Sequence[int]) -> Tensor:
        rows = edits.noise(edit, name, at, heads * shape[-1]).reshape(len(at), heads, -1).swapaxes(0, 1)
        if edit.head is not None:
            return torch.from_numpy(rows[edit.head])
        return torch.from_numpy(rows if len(shape) == 4 else rows[0])

    return draw


def _selected(edit: Edit, value: Tensor) -> Tensor:
    """A view of the head that an edit acts on, or of all: where heads are exchanged, too."""
    swaps_heads = isinstance(edit, Swap) and edit.other is not None
    return value if edit.head is None or swaps_heads else value[:, edit.head]


def _moved(
    name: str, edit: Edit, lengths: Sequence[int], move: Move, value: Tensor, start: int
) -> Tensor | None:
    """Changes what an edit selects of a value [b ... t d] whose first token is at position ``start``."""
    if name.endswith(".attention.k"):
        start = 0  # a pass's keys are those of the whole text
    count = value.shape[-2]
    rows = [_within(edit, length, start, count) for length in lengths]
    if not any(map(len, rows)):
        return None
    changed = value.clone()
    selected = _selected(edit, changed)
    together = all(at == rows[0] for at in rows)
    for r in [slice(None)] if together else range(len(rows)):
        at = rows[0 if isinstance(r, slice) else r]
        view = selected[r]
        index = slice(None) if len(at) == count else [position - start for position in at]
        part = view[..., index, :]
        if edit.units is None:
            part = move(part, at).expand_as(part)
        else:
            unit = [*edit.units, *((edit.others or ()) if isinstance(edit, Swap) else ())]
            part = part.clone()
            part[..., unit] = move(part, at).expand_as(part)[..., unit]
        if name.endswith(".pattern"):
            part = _seen(view[..., index, :], part, at)
        if edit.keys is not None or edit.renormalise:
            part = _of_keys(edit, view[..., index, :], part)
        view[..., index, :] = part
    return changed


def _seen(before: Tensor, after: Tensor, at: Sequence[int]) -> Tensor:
    """Attention weights of which no query is given any of a later key."""
    positions = torch.tensor(list(at), device=before.device)[:, None]
    return torch.where(torch.arange(before.shape[-1], device=before.device) <= positions, after, before)


def _of_keys(edit: Edit, before: Tensor, after: Tensor) -> Tensor:
    """Attention weights of which some keys alone change, and whose rows may keep their sums."""
    if edit.keys is not None:
        chosen = torch.zeros(before.shape[-1], dtype=torch.bool, device=before.device)
        chosen[[key for key in edit.keys if key < len(chosen)]] = True
        after = torch.where(chosen, after, before)
    if not edit.renormalise:
        return after
    sums, wanted = after.sum(-1, keepdim=True), before.sum(-1, keepdim=True)
    return torch.where((sums == 0) | (sums == wanted), after, after * (wanted / sums))


def _within(edit: Edit, length: int, start: int, count: int) -> Sequence[int]:
    """The positions that an edit acts on, of ``count`` from ``start`` on."""
    first = max(start, length - 2 + edit.from_step if edit.from_step else 0)
    if edit.positions is None:
        return range(first, min(start + count, len(edit.ids)) if isinstance(edit, Patch) else start + count)
    chosen = sorted({position % length for position in edit.positions})
    return [position for position in chosen if first <= position < start + count]


def _scaled(factor: float, view: Tensor, _at: Any) -> Tensor:
    return view * factor


def _mixed(donor: Callable[[Sequence[int]], Tensor], strength: float, view: Tensor, at: Any) -> Tensor:
    theirs = donor(at).to(view)
    if theirs.shape[-1] != view.shape[-1]:  # attention weights of a text of another length
        theirs = torch.nn.functional.pad(theirs, (0, view.shape[-1] - theirs.shape[-1]))
    return theirs if strength == 1 else view + strength * (theirs - view)


def _added(vector: Tensor, strength: float, view: Tensor, _at: Any) -> Tensor:
    more = view.shape[-1] - len(vector)  # not 0 of attention weights alone: those of the first keys change
    return view + strength * torch.nn.functional.pad(vector, (0, more)).to(view)


def _steered(vector: Tensor, strength: float, view: Tensor, _at: Any) -> Tensor:
    direction = (vector.double() / vector.double().norm()).to(view)
    return view + strength * view.norm(dim=-1, keepdim=True) * direction


def _projected(vector: Tensor, strength: float, view: Tensor, _at: Any) -> Tensor:
    direction = (vector.double() / vector.double().norm()).to(view)
    return view - strength * (view @ direction)[..., None] * direction


def _noisy(
    draw: Callable[[Sequence[int]], Tensor], strength: float, view: Tensor, at: Sequence[int]
) -> Tensor:
    return view + strength * draw(at).to(view)


def _swapped(edit: Swap, view: Tensor, _at: Any) -> Tensor:
    if edit.vectors is not None:
        along, read = (torch.from_numpy(vector).to(view) for vector in edits.exchange(edit))
        return view + edit.strength * (view @ read)[..., None] * along
    axis, ours, theirs = (-1, edit.units or (), edit.others or ())
    if edit.other is not None:
        axis, ours, theirs = -3, (edit.head or 0,), (edit.other,)
    here, there = (torch.tensor(each, device=view.device) for each in ((*ours, *theirs), (*theirs, *ours)))
    one, two = view.index_select(axis, here), view.index_select(axis, there)
    return view.index_copy(axis, here, two if edit.strength == 1 else one + edit.strength * (two - one))


def _whole_layer(edit: Ablate, lengths: Sequence[int]) -> tuple[tuple[str, Change], tuple[str, Change]]:
    """The residual stream leaves the layer as it came, or nearer to that."""
    came: list[Tensor] = []
    name = f"blocks.{edit.layer}.out"

    def observe(value: Tensor, _start: int) -> None:
        came[:] = [value]

    def change(value: Tensor, start: int) -> Tensor | None:
        kept = came[0] if edit.strength == 1 else value + edit.strength * (came[0] - value)
        chosen = _moved(name, edit, lengths, lambda part, _at: part + 1, torch.zeros_like(value), start)
        return None if chosen is None else kept.where(chosen == 1, value)

    before = f"blocks.{edit.layer - 1}.out" if edit.layer else "embed"
    return (before, observe), (name, change)


def _listening(listener: Listener) -> Change:
    return lambda value, _start: listener(value)
