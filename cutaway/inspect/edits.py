"""Edits: changes to a model's activations during its forward pass, as plain values.

    edit = [Ablate(23, "head", 4), Add(15, direction, strength=0.8)]
    lm.trace(text, edit=edit)                  # one forward pass
    lm.generate(text, edit=edit)               # every forward pass of a generation
    lm.edited(edit).logits(text)               # a model whose every call has them, in any thread

Five kinds: Ablate, Scale, Patch, Add (steering) and Project. Each round-trips through JSON, and `prepare`
turns a list of them into listeners for `cutaway.tracing`. Positions are absolute, so an edit does the same
with and without a KV cache.

The order: an activation is edited when it is computed, by the edits of it in the order in which they are
given; later ones see what earlier ones made of it. A skipped layer passes on its input as all edits left it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from cutaway.bounds import is_finite
from cutaway.errors import UserError
from cutaway.hooks import Listener, tracing
from cutaway.inspect import names
from cutaway.inspect.inputs import output_heads, row
from cutaway.layers.config import MoE
from cutaway.model.config import Decoder as Config
from cutaway.model.decoder import Decoder

LARGEST = 3e38  # float32 holds no larger number
Part = Literal["head", "attention", "mlp"]


@dataclass(frozen=True, kw_only=True)
class _Where:
    """Where an edit acts, beside its ``layer`` and part; negative ``positions`` count from the prompt's end.

    ``name``: any activation in their stead, also with wildcards or by TransformerLens's name. ``units``: some
    indices of its last axis (neurons of ``blocks.3.mlp.hidden``). ``from_step`` n > 0: only from the pass
    that gives the n-th new token on.
    """

    name: str | None = None
    units: Sequence[int] | None = None
    from_step: int = 0

    def __post_init__(self) -> None:
        if (getattr(self, "layer", None) is None) == (self.name is None):
            raise UserError("an edit acts on a layer or on an activation by its name: give one of the two")
        for name in ("positions", "units", "ids"):
            if getattr(self, name, None) is not None:
                object.__setattr__(self, name, tuple(map(int, getattr(self, name))))


@dataclass(frozen=True)
class Ablate(_Where):
    """Moves a part's output to zero, to its mean over ``reference`` texts (ids), or to a random token's.

    ``strength`` 1 goes all the way. A layer, which has zero alone, then passes its input on. ``to``
    "resample" draws a token of the reference for each position, by ``seed`` (2202.05262, 2304.14997).
    """

    layer: int | None = None
    part: Literal["head", "attention", "mlp", "layer"] = "layer"
    head: int | None = None
    strength: float = 1.0
    positions: Sequence[int] | None = field(default=None, kw_only=True)
    to: Literal["zero", "mean", "resample"] = field(default="zero", kw_only=True)
    reference: Sequence[Sequence[int]] = field(default=(), kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "reference", tuple(tuple(map(int, ids)) for ids in self.reference))


@dataclass(frozen=True)
class Scale(_Where):
    """Multiplies a part's output by ``strength``."""

    layer: int | None = None
    part: Part = "attention"
    head: int | None = None
    strength: float = 1.0
    positions: Sequence[int] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Patch(_Where):
    """Moves an activation towards that of another prompt's ``ids``; ``strength`` 1 replaces it.

    ``positions`` None means all, and needs prompts of equal length. "residual" is the residual stream after
    the layer.
    """

    layer: int | None = None
    ids: Sequence[int] = ()
    part: Literal["head", "attention", "mlp", "residual"] = "residual"
    head: int | None = None
    positions: Sequence[int] | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class _Directed(_Where):
    """An edit along a direction [d] of the residual stream after a layer, or of another activation."""

    layer: int | None = None
    vector: Sequence[float] = field(default=(), repr=False)
    positions: Sequence[int] | None = None
    strength: float = 1.0
    head: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "vector", tuple(map(float, self.vector)))


class Add(_Directed):
    """Steering: adds ``vector`` to the residual stream after a layer, ``strength`` times (2308.10248)."""


class Project(_Directed):
    """Removes a direction: x - strength (x · v) v, v the ``vector`` at norm 1 (2406.11717)."""


Edit = Ablate | Scale | Patch | Add | Project
KINDS: dict[str, type[Any]] = {
    "ablate": Ablate,
    "scale": Scale,
    "patch": Patch,
    "add": Add,
    "project": Project,
}
Given = Edit | Mapping[str, Listener] | Sequence[Any]  # what `edit=` takes: listeners by name too, and lists
Change = Callable[[Tensor, int], Tensor | None]  # of a value whose first token is at this position
Move = Callable[[Tensor, Sequence[int]], Tensor]  # of what an edit selects at these positions


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
    if edit.name is not None:
        where = edit.name if edit.head is None else f"head {edit.head} of {edit.name}"
    elif isinstance(edit, _Directed):
        where = f"layer {edit.layer}"
    else:
        part = "layer" if edit.part == "layer" else f"{edit.part} of layer"
        where = f"head {edit.layer}.{edit.head}" if edit.part == "head" else f"{part} {edit.layer}"
    if isinstance(edit, _Directed):
        done = f"added {edit.strength:g} times" if isinstance(edit, Add) else "projected out"
        return f"a direction {done} {'after' if edit.name is None else 'in'} {where}"
    if isinstance(edit, Scale):
        return f"{where} scaled by {edit.strength:g}"
    return f"{where} {'ablated' if isinstance(edit, Ablate) else 'patched'}"


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
    for one in _listed(given):
        if isinstance(one, Mapping):
            changes += [(n, _listening(f)) for pattern, f in one.items() for n in _expanded(model, pattern)]
            continue
        for length in set(lengths):
            check(model.config, one, length)
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


def _listed(given: Given) -> Iterator[Edit | Mapping[str, Listener]]:
    if isinstance(given, Mapping | _Where):
        yield given  # pyright: ignore[reportReturnType]
        return
    for one in given:
        yield from _listed(one)


def _expanded(model: Decoder, pattern: str) -> list[str]:
    """The names that a pattern stands for, so that edits of one activation follow their stated order."""
    every = names.known(model)
    resolved = names.resolve(every, [pattern])
    return [name for one in resolved for name in (names.matching(every, one) or [one])]


def check(config: Config, edit: Edit, length: int) -> None:
    """Raises UserError unless the edit fits the model and a prompt of ``length`` tokens."""
    blocks = config.blocks
    if edit.layer is not None and not 0 <= edit.layer < len(blocks):
        raise UserError(f"there is no layer {edit.layer}: this model's layers are 0 to {len(blocks) - 1}")
    if not is_finite(edit.strength):
        raise UserError(f"the edit's strength is {edit.strength}: it must be a finite number")
    if edit.from_step < 0:
        raise UserError(
            f"from_step is {edit.from_step}: 0 is from the prompt on, n from the n-th new token on"
        )
    if isinstance(edit, _Directed):
        _check_vector(edit, config.width)
    elif edit.layer is not None:
        _check_part(edit, output_heads(blocks[edit.layer].attention))
    if isinstance(edit, Ablate):
        _check_reference(edit, config)
    if isinstance(edit, Patch):
        if not edit.ids:
            raise UserError("a patch takes activations from another prompt: give its ids")
        if edit.positions is None and len(edit.ids) != length:
            raise UserError(
                f"a patch of all positions needs prompts of equal length: this one has {length} tokens, the "
                f"other {len(edit.ids)}; name positions, or reword one of them"
            )
        length = min(length, len(edit.ids))
    for position in edit.positions or ():
        if not -length <= position < length:
            raise UserError(f"there is no position {position}: positions are 0 to {length - 1}")


def _check_part(edit: Ablate | Scale | Patch, heads: int) -> None:
    if (edit.part == "head") != (edit.head is not None):
        raise UserError('"head" goes with part "head", and only with it')
    if edit.head is not None and not 0 <= edit.head < heads:
        raise UserError(f"there is no head {edit.layer}.{edit.head}: it has heads 0 to {heads - 1}")


def _check_reference(edit: Ablate, config: Config) -> None:
    if (edit.to == "zero") != (not edit.reference):
        raise UserError(
            f'an ablation to "{edit.to}" {"takes no" if edit.to == "zero" else "needs a"} reference'
        )
    if edit.to not in ("zero", "mean", "resample"):
        raise UserError(f'an ablation goes to "zero", "mean" or "resample", not {edit.to!r:.40}')
    if edit.to != "zero" and edit.part == "layer" and edit.name is None:
        raise UserError(f'a layer has no {edit.to} of its own: ablate its parts, or "blocks.N.out" by name')
    for ids in edit.reference:
        if not ids or not 0 <= min(ids) <= max(ids) < config.vocab or len(ids) > config.context:
            raise UserError("a reference text is empty, longer than the context, or has unknown ids")


def _check_vector(edit: _Directed, width: int) -> None:
    if edit.name is None and len(edit.vector) != width:
        raise UserError(f"the vector has {len(edit.vector)} numbers, the residual stream {width}")
    if not all(abs(value) < LARGEST for value in edit.vector):
        raise UserError("the vector holds a number that is NaN, infinite or beyond float32")
    if isinstance(edit, Project) and not any(edit.vector):
        raise UserError("the vector is zero, so it names no direction to project out")


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
    if isinstance(edit, _Directed):
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
    if isinstance(edit, _Directed) and len(edit.vector) != shape[-1]:
        raise UserError(f"the vector has {len(edit.vector)} numbers, {name} {shape[-1]}")


def _moves(model: Decoder, edit: Edit, found: list[str], under: Mapping[str, Listener]) -> Iterator[Move]:
    """What the edit does to what it selects of each activation."""
    if isinstance(edit, _Directed):
        vector = torch.tensor(edit.vector)
        move = partial(_added if isinstance(edit, Add) else _projected, vector, edit.strength)
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
            drawn = torch.randint(
                pool.shape[-2], (model.config.context,), generator=torch.Generator().manual_seed(edit.seed)
            )
            yield lambda at, pool=pool, drawn=drawn: pool[..., drawn[list(at)], :]


def _selected(edit: Edit, value: Tensor) -> Tensor:
    """A view of the head that an edit acts on, or of all."""
    return value if edit.head is None else value[:, edit.head]


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
            unit = list(edit.units)
            part = part.clone()
            part[..., unit] = move(part, at).expand_as(part)[..., unit]
        view[..., index, :] = part
    return changed


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
    return theirs if strength == 1 else view + strength * (theirs - view)


def _added(vector: Tensor, strength: float, view: Tensor, _at: Any) -> Tensor:
    return view + strength * vector.to(view)


def _projected(vector: Tensor, strength: float, view: Tensor, _at: Any) -> Tensor:
    direction = (vector.double() / vector.double().norm()).to(view)
    return view - strength * (view @ direction)[..., None] * direction


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
