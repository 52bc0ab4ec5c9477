"""Edits: changes to a model's activations during its forward pass, as plain values.

    edit = [Ablate(23, "head", 4), Add(15, direction, strength=0.8)]
    lm.trace(text, edit=edit)                  # one forward pass
    lm.generate(text, edit=edit)               # every forward pass of a generation
    lm.edited(edit).logits(text)               # a model whose every call has them, in any thread

Seven kinds: Ablate, Scale, Patch, Add (steering), Project, Swap and Noise. Each round-trips through JSON.
The runtime makes them in its step (``runtime_edits.py``), the PyTorch model by listeners
(``pytorch_edits.py``). Positions are absolute, so an edit does the same with and without a KV cache.

The order: an activation is edited when it is computed, by the edits of it in the order in which they are
given; later ones see what earlier ones made of it. A skipped layer passes on its input as all edits left it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args
from zlib import crc32

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.model.config import Decoder as Config

if TYPE_CHECKING:
    from cutaway.hooks import Listener

LARGEST = 3e38  # float32 holds no larger number
Part = Literal["head", "attention", "mlp"]


@dataclass(frozen=True, kw_only=True)
class _Where:
    """Where an edit acts, beside its ``layer`` and part; negative ``positions`` count from the prompt's end.

    ``name``: any activation in their stead, also with wildcards or by TransformerLens's name. ``units``: some
    indices of its last axis (neurons of ``blocks.3.mlp.hidden``). ``from_step`` n > 0: only from the pass
    that gives the n-th new token on. Of attention weights (``blocks.3.attention.pattern``) ``positions`` are
    the queries', ``keys`` those that change of a row, and it may be renormalised to the sum that it had.
    """

    name: str | None = None
    units: Sequence[int] | None = None
    from_step: int = 0
    keys: Sequence[int] | None = None
    renormalise: bool = False

    def __post_init__(self) -> None:
        if (getattr(self, "layer", None) is None) == (self.name is None):
            raise UserError("an edit acts on a layer or on an activation by its name: give one of the two")
        if self.name is not None and not isinstance(self.name, str):
            raise UserError(f"an edit's name is the text of an activation's, not {quoted(self.name)}")
        for name in ("layer", "head", "other", "from_step", "seed"):
            if getattr(self, name, None) is not None:
                object.__setattr__(self, name, _whole([getattr(self, name)], name)[0])
        for name in ("positions", "units", "ids", "others", "keys"):
            if getattr(self, name, None) is not None:
                object.__setattr__(self, name, _whole(getattr(self, name), name))


def _whole(given: Any, field: str) -> tuple[int, ...]:
    """Whole numbers; UserError for texts, fractions and what is no list."""
    try:
        return tuple(int(operator.index(one)) for one in given)
    except TypeError:
        hint = "; lm.ids(text) has a text's ids" if field in ("ids", "reference") else ""
        raise UserError(f"an edit's {field} is of whole numbers, not {quoted(given)}{hint}") from None


def _numbers(given: Any) -> tuple[float, ...]:
    """The numbers of a vector; UserError for what is none."""
    try:
        return tuple(map(float, given))
    except (TypeError, ValueError):
        raise UserError(f"an edit's vector is a list of numbers, not {quoted(given)}") from None


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
        object.__setattr__(self, "reference", tuple(_whole(ids, "reference") for ids in self.reference))


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
        object.__setattr__(self, "vector", _numbers(self.vector))


@dataclass(frozen=True)
class Add(_Directed):
    """Steering: adds ``vector`` to the residual stream after a layer, ``strength`` times (2308.10248).

    ``relative``: the vector at norm 1, times ``strength`` and each token's own norm, x + strength |x| v.
    """

    relative: bool = field(default=False, kw_only=True)


class Project(_Directed):
    """Removes a direction: x - strength (x · v) v, v the ``vector`` at norm 1 (2406.11717)."""


@dataclass(frozen=True)
class Swap(_Where):
    """Exchanges a head's values with those of head ``other``, ``units`` with the units ``others``, or the
    coordinates along two ``vectors``, so that what is orthogonal to both stays. ``strength`` 1 goes all the
    way.

    Heads are those of a layer's z or of a named activation, vectors those of the residual stream after the
    layer or of a named activation, units those of a named activation.
    """

    layer: int | None = None
    head: int | None = None
    other: int | None = None
    strength: float = 1.0
    positions: Sequence[int] | None = field(default=None, kw_only=True)
    others: Sequence[int] | None = field(default=None, kw_only=True)
    vectors: Sequence[Sequence[float]] | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vectors is not None:
            object.__setattr__(self, "vectors", tuple(map(_numbers, self.vectors)))

    @property
    def part(self) -> str:
        """Where it acts on a layer."""
        return "head" if self.vectors is None else "residual"


@dataclass(frozen=True)
class Noise(_Where):
    """Adds normal noise of standard deviation ``strength``, by ``seed`` and position: the same for a position
    in any batch and in any chunk. "residual" is the residual stream after the layer (2202.05262).
    """

    layer: int | None = None
    part: Literal["head", "attention", "mlp", "residual"] = "residual"
    head: int | None = None
    strength: float = 1.0
    positions: Sequence[int] | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)


Edit = Ablate | Scale | Patch | Add | Project | Swap | Noise
KINDS: dict[str, type[Any]] = {
    "ablate": Ablate,
    "scale": Scale,
    "patch": Patch,
    "add": Add,
    "project": Project,
    "swap": Swap,
    "noise": Noise,
}
# The types that `edit=` takes: listeners by name too, and lists.
Given = Edit | Mapping[str, "Listener"] | Sequence[Any]


def to_json(edit: Edit) -> dict[str, Any]:
    """The edit as JSON's own types."""

    def plain(one: Any) -> Any:
        return [plain(each) for each in one] if isinstance(one, tuple) else one

    return {"kind": type(edit).__name__.lower()} | {name: plain(one) for name, one in asdict(edit).items()}


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
    elif isinstance(edit, _Directed) or (isinstance(edit, Swap) and edit.vectors is not None):
        where = f"layer {edit.layer}"
    else:
        part = "layer" if edit.part == "layer" else f"{edit.part} of layer"
        where = f"head {edit.layer}.{edit.head}" if edit.part == "head" else f"{part} {edit.layer}"
    if isinstance(edit, _Directed):
        done = f"added {edit.strength:g} times" if isinstance(edit, Add) else "projected out"
        return f"a direction {done} {'after' if edit.name is None else 'in'} {where}"
    if isinstance(edit, Swap):
        if edit.vectors is not None:
            return f"two directions exchanged {'after' if edit.name is None else 'in'} {where}"
        units = f"units of {where}"
        return f"{units if edit.others is not None else where} exchanged with others"
    if isinstance(edit, Noise):
        return f"noise added to {where}"
    if isinstance(edit, Scale):
        return f"{where} scaled by {edit.strength:g}"
    return f"{where} {'ablated' if isinstance(edit, Ablate) else 'patched'}"


def listed(given: Given) -> Iterator[Edit | Mapping[str, Listener]]:
    """The edits of lists within lists, and listeners by name, one after another."""
    if isinstance(given, Mapping | _Where):
        yield given  # pyright: ignore[reportReturnType]
        return
    if isinstance(given, str) or not isinstance(given, Iterable):  # a text is made of texts without end
        raise UserError(f"{quoted(given)} is no edit: give edits, such as Ablate(3), or functions by name")
    for one in given:
        yield from listed(one)


def check(config: Config, edit: Edit, length: int) -> None:
    """Raises UserError unless the edit fits the model and a prompt of ``length`` tokens."""
    blocks = config.blocks
    if edit.layer is not None and not 0 <= edit.layer < len(blocks):
        raise UserError(f"there is no layer {edit.layer}: this model's layers are 0 to {len(blocks) - 1}")
    if not _fits(edit.strength):
        raise UserError(
            f"the edit's strength is {quoted(edit.strength)}: it must be a finite number within float32"
        )
    if edit.from_step < 0:
        raise UserError(
            f"from_step is {edit.from_step}: 0 is from the prompt on, n from the n-th new token on"
        )
    _check_keys(edit)
    if isinstance(edit, _Directed):
        _check_vector(edit, config.width)
    elif edit.layer is not None:
        of: Any = blocks[edit.layer].attention
        _check_part(edit, of.heads // of.maps)
    if isinstance(edit, Noise | Ablate) and edit.seed < 0:
        raise UserError(f"the edit's seed is {edit.seed}: it must not be negative")
    if isinstance(edit, Ablate):
        _check_reference(edit, config)
    if isinstance(edit, Swap):
        _check_swap(edit, config.width)
    if isinstance(edit, Patch):
        if not edit.ids:
            raise UserError("a patch takes activations from another prompt: give its ids")
        if edit.positions is None and len(edit.ids) != length:
            raise UserError(
                f"a patch of all positions needs prompts of equal length: this one has {length} tokens, the "
                f"other {len(edit.ids)}; name positions, or reword one of them"
            )
        late = [one for one in edit.positions or () if one < 0 and length + one >= len(edit.ids)]
        if late:
            raise UserError(
                f"position {late[0]} is number {length + late[0]} of this prompt, and the other has "
                f"{len(edit.ids)} tokens: name a position that both have"
            )
        length = min(length, len(edit.ids))
    for position in edit.positions or ():
        if not -length <= position < length:
            raise UserError(f"there is no position {position}: positions are 0 to {length - 1}")


def _fits(value: Any) -> bool:
    """Whether a value is a number that float32 holds, and neither NaN nor infinite."""
    return isinstance(value, int | float | np.integer | np.floating) and bool(abs(value) < LARGEST)


def _check_keys(edit: Edit) -> None:
    if edit.keys is None and not edit.renormalise:
        return
    if edit.name is None or not edit.name.endswith(("pattern", "*")):
        raise UserError("keys and renormalise are of attention weights: name blocks.N.attention.pattern")
    if edit.keys is not None and (not edit.keys or min(edit.keys) < 0):
        raise UserError(f"keys are positions of the text, counted from 0: {list(edit.keys)} are none")


def _check_part(edit: Ablate | Scale | Patch | Swap | Noise, heads: int) -> None:
    more = "" if isinstance(edit, Scale) else "layer" if isinstance(edit, Ablate) else "residual"
    if edit.part not in (known := [*get_args(Part), *filter(None, [more])]):
        raise UserError(f"a part of a layer is {', '.join(known)}, not {quoted(edit.part)}")
    if (edit.part == "head") != (edit.head is not None):
        raise UserError('"head" goes with part "head", and only with it')
    for head in (edit.head, edit.other if isinstance(edit, Swap) else None):
        if head is not None and not 0 <= head < heads:
            raise UserError(f"there is no head {edit.layer}.{head}: it has heads 0 to {heads - 1}")


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
    if edit.name is None and edit.head is not None:
        raise UserError(
            f"the residual stream has no head {edit.head}: name an activation of heads, blocks.N.attention.z"
        )
    if not edit.vector and edit.name is not None:
        raise UserError(f"the vector is empty: {edit.name} needs a number for each unit or key")
    if edit.name is None and len(edit.vector) != width:
        raise UserError(f"the vector has {len(edit.vector)} numbers, the residual stream {width}")
    if not all(map(_fits, edit.vector)):
        raise UserError("the vector holds a number that is NaN, infinite or beyond float32")
    if (isinstance(edit, Project) or edit.relative) and not any(edit.vector):  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError("the vector is zero, so it names no direction")


def _check_swap(edit: Swap, width: int) -> None:
    given = [edit.other is not None, edit.others is not None, edit.vectors is not None]
    if sum(given) != 1:
        raise UserError(
            "a swap exchanges a head with another, units with others, or two directions: give one"
        )
    if edit.other is not None and edit.head in (None, edit.other):
        raise UserError(f"a swap exchanges two heads of a layer: {edit.head} and {edit.other} are not two")
    if edit.others is not None:
        units = edit.units or ()
        if len(units) != len(edit.others) or len({*units, *edit.others}) < 2 * max(1, len(units)):
            raise UserError("a swap exchanges as many units with others, none of them twice")
        if min(*units, *edit.others) < 0:
            raise UserError(f"a swap's units are counted from 0: {min(*units, *edit.others)} is none")
        return
    if edit.vectors is None:
        return
    one, two = (
        (np.asarray(vector, np.float64) for vector in edit.vectors) if len(edit.vectors) == 2 else ((), ())
    )
    if edit.units is not None or len(one) != len(two) or (edit.name is None and len(one) != width):
        raise UserError(f"a swap needs two whole vectors, of {width} numbers in the residual stream")
    if not all(_fits(value) for vector in edit.vectors for value in vector):
        raise UserError("a vector holds a number that is NaN, infinite or beyond float32")
    if np.linalg.matrix_rank(np.stack([one, two])) < 2:
        raise UserError("the two vectors have one direction, which nothing is exchanged with")


# ---- what both engines compute of an edit ------------------------------------------------------------------


def drawn(edit: Ablate, tokens: int, context: int) -> np.ndarray:
    """Which of a reference's ``tokens`` each position takes in a resample, int [context]."""
    return np.random.default_rng(edit.seed).integers(tokens, size=context)


def noise(edit: Noise, name: str, positions: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """The noise float32 [t size] for rows of the activation ``name`` at these positions, of deviation 1."""
    key = np.array([edit.seed % 2**64, crc32(name.encode())], np.uint64)
    rows = [np.random.Philox(key=key, counter=[0, 0, 0, int(position)]) for position in positions]
    return np.stack([np.random.Generator(row).standard_normal(size, np.float32) for row in rows])


def exchange(edit: Swap) -> tuple[np.ndarray, np.ndarray]:
    """Two float64 vectors u and w: x + strength (x . w) u has its coordinates along ``vectors`` exchanged.

    With V the vectors as columns and c = V^+ x, what changes is V (c swapped - c) = (c2 - c1) (v1 - v2).
    """
    both = np.asarray(edit.vectors, np.float64).T
    one, two = np.linalg.pinv(both)
    return both[:, 0] - both[:, 1], two - one
