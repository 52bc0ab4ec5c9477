"""Edits: changes to a model's activations during its forward pass, as plain values.

    edit = [Ablate(23, "head", 4), Add(15, direction, strength=0.8)]
    lm.trace(text, edit=edit)                  # one forward pass
    lm.generate(text, edit=edit)               # every forward pass of a generation

Four kinds: Ablate, Patch, Add (steering) and Project. Each round-trips through JSON, and `prepare` turns a
list of them into listeners for `cutaway.tracing`. Positions are absolute, so an edit does the same with and
without a KV cache. Later edits of one value see what earlier ones made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import Listener, tracing
from cutaway.inspect.inputs import output_heads, row
from cutaway.layers.config import MoE
from cutaway.model.config import Decoder as Config
from cutaway.model.decoder import Decoder

LARGEST = 3e38  # float32 holds no larger number
Part = Literal["head", "attention", "mlp", "residual", "layer"]


@dataclass(frozen=True)
class Ablate:
    """Multiplies a part's output by 1 - ``strength``. Without its output a layer passes its input on."""

    layer: int
    part: Literal["head", "attention", "mlp", "layer"] = "layer"
    head: int | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class Patch:
    """Moves an activation towards that of another prompt's ``ids``; ``strength`` 1 replaces it.

    ``positions`` None means all, and needs prompts of equal length. "residual" is the residual stream after
    the layer.
    """

    layer: int
    ids: Sequence[int]
    part: Literal["head", "attention", "mlp", "residual"] = "residual"
    head: int | None = None
    positions: Sequence[int] | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(map(int, self.ids)))
        object.__setattr__(self, "positions", _positions(self.positions))


@dataclass(frozen=True)
class _Directed:
    """An edit along a direction [d] of the residual stream after a layer."""

    layer: int
    vector: Sequence[float] = field(repr=False)
    positions: Sequence[int] | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", tuple(map(float, self.vector)))
        object.__setattr__(self, "positions", _positions(self.positions))


class Add(_Directed):
    """Steering: adds ``vector`` to the residual stream after a layer, ``strength`` times (2308.10248)."""


class Project(_Directed):
    """Removes a direction: x - strength (x · v) v, v the ``vector`` at norm 1 (2406.11717)."""


Edit = Ablate | Patch | Add | Project
KINDS: dict[str, type[Any]] = {"ablate": Ablate, "patch": Patch, "add": Add, "project": Project}
Given = Edit | Sequence[Edit] | Mapping[str, Listener]  # what `edit=` takes
Change = Callable[[Tensor, int], Tensor | None]  # of a value whose first token is at this position


def to_json(edit: Edit) -> dict[str, Any]:
    """The edit as JSON's own types."""
    plain = {name: list(one) if isinstance(one, tuple) else one for name, one in asdict(edit).items()}
    return {"kind": type(edit).__name__.lower(), **plain}


def from_json(document: Mapping[str, Any]) -> Edit:
    """Reads what `to_json` wrote; fields may be left out. Raises UserError for another kind or field."""
    fields = dict(document)
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"an edit's kind is {kind!r:.60}: use one of {', '.join(KINDS)}")
    try:
        return KINDS[kind](**fields)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the {kind} edit has wrong fields: {str(error).partition('() ')[2] or error}"
        ) from None


def ablation(part: str) -> Ablate:
    """ "5.3" is head 3 of layer 5, "5" the whole layer."""
    layer, dot, head = part.partition(".")
    if not layer.isdecimal() or (dot and not head.isdecimal()):
        raise UserError(f"{part!r} names no part of a model: 5.3 is head 3 of layer 5, 5 the whole layer")
    return Ablate(int(layer), "head", int(head)) if dot else Ablate(int(layer))


def describe(edit: Edit) -> str:
    """The edit in a few words."""
    if isinstance(edit, _Directed):
        done = f"added {edit.strength:g} times" if isinstance(edit, Add) else "projected out"
        return f"a direction {done} after layer {edit.layer}"
    part = "layer" if edit.part == "layer" else f"{edit.part} of layer"
    named = f"head {edit.layer}.{edit.head}" if edit.part == "head" else f"{part} {edit.layer}"
    return f"{named} {'ablated' if isinstance(edit, Ablate) else 'patched'}"


class Prepared:
    """Edits that are checked for one model and one prompt."""

    def __init__(
        self, changes: Sequence[tuple[str, Change]], observers: Sequence[tuple[str, Change]]
    ) -> None:
        self.changes: dict[str, list[Change]] = {}
        for name, change in (*changes, *observers):  # what observes a value sees it as all edits left it
            self.changes.setdefault(name, []).append(change)

    def at(self, start: int = 0) -> dict[str, Listener]:
        """The listeners of a forward pass whose first token is at position ``start``."""
        return {name: partial(_apply, changes, start) for name, changes in self.changes.items()}


def _apply(changes: Sequence[Change], start: int, value: Tensor) -> Tensor:
    for change in changes:
        changed = change(value, start)
        value = value if changed is None else changed
    return value


def prepare(
    model: Decoder, given: Given, length: int, under: Mapping[str, Listener] | None = None
) -> Prepared:
    """Checks edits against a model and a prompt of ``length`` tokens, and reads the prompts they patch from.

    Listeners by name are taken as they are; those ``under`` the edits act on the patched-from prompts too.
    Raises UserError for a layer, head, position or vector that does not fit.
    """
    if isinstance(given, Mapping):
        return Prepared([(name, _listening(one)) for name, one in given.items()], ())
    changes: list[tuple[str, Change]] = []
    observers: list[tuple[str, Change]] = []
    for one in [given] if isinstance(given, Ablate | Patch | _Directed) else given:
        check(model.config, one, length)
        if isinstance(one, Ablate) and one.part == "layer":
            before, after = _whole_layer(one)
            observers.append(before)
            changes.append(after)
        else:
            changes.append(_change(model, one, length, under or {}))
    return Prepared(changes, observers)


def check(config: Config, edit: Edit, length: int) -> None:
    """Raises UserError unless the edit fits the model and a prompt of ``length`` tokens."""
    blocks = config.blocks
    if not 0 <= edit.layer < len(blocks):
        raise UserError(f"there is no layer {edit.layer}: this model's layers are 0 to {len(blocks) - 1}")
    if not math.isfinite(edit.strength):
        raise UserError(f"the edit's strength is {edit.strength}: it must be a finite number")
    if isinstance(edit, _Directed):
        _check_vector(edit, config.width)
    else:
        _check_part(edit, output_heads(blocks[edit.layer].attention))
    positions = getattr(edit, "positions", None)
    if isinstance(edit, Patch):
        if positions is None and len(edit.ids) != length:
            raise UserError(
                f"a patch of all positions needs prompts of equal length: this one has {length} tokens, the "
                f"other {len(edit.ids)}; name positions, or reword one of them"
            )
        length = min(length, len(edit.ids))
    for position in positions or ():
        if not -length <= position < length:
            raise UserError(f"there is no position {position}: positions are 0 to {length - 1}")


def _check_part(edit: Ablate | Patch, heads: int) -> None:
    if (edit.part == "head") != (edit.head is not None):
        raise UserError('"head" goes with part "head", and only with it')
    if edit.head is not None and not 0 <= edit.head < heads:
        raise UserError(f"there is no head {edit.layer}.{edit.head}: it has heads 0 to {heads - 1}")


def _check_vector(edit: _Directed, width: int) -> None:
    if len(edit.vector) != width:
        raise UserError(f"the vector has {len(edit.vector)} numbers, the residual stream {width}")
    if not all(abs(value) < LARGEST for value in edit.vector):
        raise UserError("the vector holds a number that is NaN, infinite or beyond float32")
    if isinstance(edit, Project) and not any(edit.vector):
        raise UserError("the vector is zero, so it names no direction to project out")


def _change(model: Decoder, edit: Edit, length: int, under: Mapping[str, Listener]) -> tuple[str, Change]:
    if isinstance(edit, _Directed):
        vector, positions = torch.tensor(edit.vector), _absolute(edit.positions, length)
        move = _added if isinstance(edit, Add) else _projected
        return f"blocks.{edit.layer}.out", partial(
            _moved, None, positions, partial(move, vector, edit.strength)
        )
    name = f"blocks.{edit.layer}.{_value(model, edit)}"
    if isinstance(edit, Ablate):
        return name, partial(_moved, edit.head, None, partial(_scaled, 1 - edit.strength))
    with torch.no_grad(), tracing(model, name, edit=under) as seen:
        model(*row(model, edit.ids), last=True)
    donor = seen[name][0] if edit.head is None else seen[name][0, edit.head]
    positions = range(len(edit.ids)) if edit.positions is None else _absolute(edit.positions, length)
    return name, partial(_moved, edit.head, positions, partial(_mixed, donor, edit.strength))


def _value(model: Decoder, edit: Ablate | Patch) -> str:
    """The name in a layer of the activation that an edit changes."""
    if edit.part == "mlp":
        return "mlp.out" if isinstance(model.config.blocks[edit.layer].mlp, MoE) else "mlp.down"
    return {"head": "attention.z", "attention": "attention.out", "residual": "out"}[edit.part]


def _moved(
    head: int | None,
    positions: Sequence[int] | None,
    move: Callable[[Tensor, list[int]], Tensor],
    value: Tensor,
    start: int,
) -> Tensor | None:
    """Changes a value [b t d], or one head of [b h t v], at some positions of those that this pass reads."""
    count = value.shape[-2]
    within = range(count) if positions is None else [p - start for p in positions if 0 <= p - start < count]
    if not within:
        return None
    changed = value.clone()
    view = changed if head is None else changed[:, head]
    view[..., list(within), :] = move(view[..., list(within), :], [start + at for at in within])
    return changed


def _scaled(factor: float, view: Tensor, _at: Any) -> Tensor:
    return view * factor


def _mixed(donor: Tensor, strength: float, view: Tensor, at: list[int]) -> Tensor:
    theirs = donor[at].to(view)
    return theirs if strength == 1 else view + strength * (theirs - view)


def _added(vector: Tensor, strength: float, view: Tensor, _at: Any) -> Tensor:
    return view + strength * vector.to(view)


def _projected(vector: Tensor, strength: float, view: Tensor, _at: Any) -> Tensor:
    direction = (vector.double() / vector.double().norm()).to(view)
    return view - strength * (view @ direction)[..., None] * direction


def _whole_layer(edit: Ablate) -> tuple[tuple[str, Change], tuple[str, Change]]:
    """The residual stream leaves the layer as it came, or nearer to that."""
    came: list[Tensor] = []

    def observe(value: Tensor, _start: int) -> None:
        came[:] = [value]

    def change(value: Tensor, _start: int) -> Tensor:
        return came[0] if edit.strength == 1 else value + edit.strength * (came[0] - value)

    before = f"blocks.{edit.layer - 1}.out" if edit.layer else "embed"
    return (before, observe), (f"blocks.{edit.layer}.out", change)


def _listening(listener: Listener) -> Change:
    return lambda value, _start: listener(value)


def _positions(given: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if given is None else tuple(map(int, given))


def _absolute(positions: Sequence[int] | None, length: int) -> list[int] | None:
    """Negative positions count from the prompt's end."""
    return None if positions is None else sorted({position % length for position in positions})
