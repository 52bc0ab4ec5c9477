"""Weight names as one table read both ways: ``Rule(theirs, ours, how)``.

``how`` is a pair: what becomes of their tensor when it is loaded, and of ours when it is saved. Both work on
packed weights and leave them packed, and both are lazy: nothing is copied until a weight is asked for. Every
name, type and shape is checked before that; a name that no rule knows is refused, and so is one that is
missing. Where ``ours`` holds ``{e}``, the number of an expert, and ``theirs`` too, a rule is one for each
expert; where ``theirs`` does not, all experts are in one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import FOREIGN, NO_WEIGHTS, TYPES, Later, Packed
from cutaway.layers.config import MoE
from cutaway.model.block_config import Block
from cutaway.model.config import EncoderDecoder, Model
from cutaway.quantization import formats

Shape = tuple[int, ...]
WHOLE = {
    "F32": "<u4",
    "F16": "<u2",
    "BF16": "<u2",
}  # types that store each value by itself, as words of this type


ROUTERS = (".mlp.router.weight", ".mlp.shared_gate.weight")
WHOLE_ENDS = (*ROUTERS, "_norm.weight", ".conv.weight", ".relative.weight", ".A_log")


def is_kept_whole(name: str, shape: Shape) -> bool:
    """Whether this weight of ours is never packed: a vector, learned positions, what routes tokens or is
    convolved, a table of relative positions, rates of decay, several matrices in one tensor."""
    return len(shape) != 2 or name == "position.weight" or name.endswith(WHOLE_ENDS) or ".conv." in name


@dataclass(frozen=True)
class Place:
    """Where a rule is applied: our weights' shapes there, the layer's attention and recurrence."""

    shapes: tuple[Shape, ...]
    attention: Any
    beside: Any = None  # the recurrence beside it


@dataclass(frozen=True)
class How:
    """``load``: theirs to ours; ``save``: ours to theirs; ``shape``: the shape of theirs, from ours.

    Types pass through unchanged, unless ``type`` names the type of the result. With ``absorbs`` ours is made
    of theirs, one head after another [heads latent, k], which is kept beside it (``Absorbed``).
    """

    load: Callable[[Packed, Place], Sequence[Packed]]
    save: Callable[[tuple[Packed, ...], Place], Packed]
    shape: Callable[[Place], Shape]
    type: str | None = None
    absorbs: bool = False


@dataclass(frozen=True)
class Rule:
    """One of their names and ours for it, one or several; ``{n}`` is the layer, ``{e}`` the expert.

    ``when`` says of which layers it is the name; ``number``: their number of each of our layers, where they
    count otherwise, None for those that the rule is not for.
    """

    theirs: str
    ours: str | tuple[str, ...]
    how: How
    when: Callable[[Block], bool] | None = None
    number: Callable[[Any], Sequence[int | None]] | None = None


def _only(place: Place) -> Shape:
    return place.shapes[0]


same = How(lambda packed, _: (packed,), lambda parts, _: parts[0], _only)


def _transposed(packed: Packed) -> Packed:
    word = WHOLE.get(packed.type)
    if word is None:
        raise UserError(f"a {packed.type} matrix cannot be transposed packed: rows share blocks")
    swapped = np.ascontiguousarray(packed.data.view(word).T)
    return Packed(packed.type, (packed.shape[1], packed.shape[0]), swapped.view(np.uint8))


# A matrix stored [in out] (GPT-2's Conv1D) where ours is [out in].
transpose = How(
    lambda packed, _: (_transposed(packed),),
    lambda parts, _: _transposed(parts[0]),
    lambda place: place.shapes[0][::-1],
)


def exchanged(packed: Packed, heads: int) -> Packed:
    """A matrix [heads a, b] as [heads b, a]: a head's rows become columns; F32 where those share blocks."""
    if packed.type not in WHOLE:
        packed = formats.pack(formats.unpack(packed), "F32")
    rows, columns = packed.shape
    words = packed.data.view(WHOLE[packed.type]).reshape(heads, rows // heads, columns)
    swapped = np.ascontiguousarray(words.swapaxes(1, 2)).reshape(heads * columns, rows // heads)
    return Packed(packed.type, swapped.shape, swapped.view(np.uint8))


def _cut(packed: Packed, place: Place) -> tuple[Packed, ...]:
    ends = np.cumsum([shape[0] for shape in place.shapes]).tolist()
    return tuple(
        packed.rows(slice(end - shape[0], end)) for end, shape in zip(ends, place.shapes, strict=True)
    )


def _check_one_type(parts: tuple[Packed, ...]) -> None:
    types = {part.type for part in parts}
    if len(types) > 1:
        raise UserError(f"weights of types {', '.join(sorted(types))} cannot be one matrix")


def _joined(parts: tuple[Packed, ...], _: Place) -> Packed:
    _check_one_type(parts)
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Packed(parts[0].type, shape, np.concatenate([part.data for part in parts]))


# One of theirs that is several of ours, one above the other (query, key and value in one matrix).
split = How(_cut, _joined, lambda place: (sum(shape[0] for shape in place.shapes), *place.shapes[0][1:]))


class _Entries(Sequence):
    """The entries of a tensor's first axis, each made when it is asked for and a view."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return self._packed.shape[0]

    def __getitem__(self, i: int) -> Packed:
        return Packed(self._packed.type, self._packed.shape[1:], self._packed.data[i])


def _stacked(parts: tuple[Packed, ...], _: Place) -> Packed:
    _check_one_type(parts)
    return Packed(parts[0].type, (len(parts), *parts[0].shape), np.stack([part.data for part in parts]))


# One of theirs with an axis more, whose entries are several of ours (all experts of a layer).
stack = How(lambda packed, _: _Entries(packed), _stacked, lambda place: (len(place.shapes), *place.shapes[0]))


class _Inner(Sequence):
    """Our weights out of the entries of a tensor's first axis, ``parts`` of each entry, made one by one."""

    def __init__(self, packed: Packed, inner: How, parts: int, place: Place) -> None:
        self._entries, self._inner, self._parts, self._place = _Entries(packed), inner, parts, place

    def __len__(self) -> int:
        return len(self._entries) * self._parts

    def __getitem__(self, i: int) -> Packed:
        entry, part = divmod(i, self._parts)
        return self._inner.load(self._entries[entry], self._place)[part]


def each(inner: How, parts: int = 1) -> How:
    """One of theirs with an axis more, each entry of which is ``parts`` of ours by another way."""

    def of_one(place: Place) -> Place:
        return replace(place, shapes=place.shapes[:parts])

    def save(ours: tuple[Packed, ...], place: Place) -> Packed:
        ones = [ours[i : i + parts] for i in range(0, len(ours), parts)]
        return _stacked(tuple(inner.save(one, of_one(place)) for one in ones), place)

    return How(
        lambda packed, place: _Inner(packed, inner, parts, of_one(place)),
        save,
        lambda place: (len(place.shapes) // parts, *inner.shape(of_one(place))),
    )


# A matrix of one row of theirs that is a vector of ours.
flat = How(
    lambda packed, _: (Packed(packed.type, packed.shape[1:], packed.data[0]),),
    lambda parts, _: Packed(parts[0].type, (1, *parts[0].shape), parts[0].data[None]),
    lambda place: (1, *place.shapes[0]),
)

# A kernel of a convolution over one channel, [n 1 k], that is [n k] of ours.
kernel = How(
    lambda packed, _: (Packed(packed.type, (packed.shape[0], packed.shape[2]), packed.data[:, 0]),),
    lambda parts, _: Packed(parts[0].type, (parts[0].shape[0], 1, parts[0].shape[1]), parts[0].data[:, None]),
    lambda place: (place.shapes[0][0], 1, place.shapes[0][1]),
)

# A vector of theirs that is a matrix of one row of ours.
row = How(
    lambda packed, _: (Packed(packed.type, (1, *packed.shape), packed.data[None]),),
    lambda parts, _: Packed(parts[0].type, parts[0].shape[1:], parts[0].data[0]),
    lambda place: place.shapes[0][1:],
)


def _flat(packed: Packed) -> Packed:
    heads, rows, columns = packed.shape
    return Packed(packed.type, (heads * rows, columns), packed.data.reshape(heads * rows, -1))


def _apart(packed: Packed, place: Place) -> Packed:
    heads = place.attention.heads
    shape = (heads, packed.shape[0] // heads, packed.shape[1])
    return Packed(packed.type, shape, packed.data.reshape(*shape[:2], -1))


# A matrix of theirs for each head, in one tensor, that is one above the other in ours.
per_head = How(
    lambda packed, _: (_flat(packed),),
    lambda parts, place: _apart(parts[0], place),
    lambda place: (place.attention.heads, place.shapes[0][0] // place.attention.heads, place.shapes[0][1]),
)

# The same of keys of latent attention, of which theirs has rows and columns exchanged.
absorbing = How(
    lambda packed, place: (exchanged(_flat(packed), place.attention.heads),),
    per_head.save,
    lambda place: (place.attention.heads, place.shapes[0][1], place.shapes[0][0] // place.attention.heads),
    absorbs=True,
)


# A vector of theirs that is one column in ours' place.
column = How(
    lambda packed, _: (Packed(packed.type, packed.shape[:1], packed.data.reshape(-1)),),
    lambda parts, _: _as_column(parts[0]),
    lambda place: (*place.shapes[0], 1),
)


def _as_column(packed: Packed) -> Packed:
    return Packed(packed.type, (*packed.shape, 1), packed.data.reshape(packed.shape[0], -1))


def _logarithm(packed: Packed) -> Packed:
    values = formats.unpack(packed).astype(np.float64).reshape(-1)
    if not (values < 0).all():
        raise UserError("rates of decay should be below 0")
    return formats.pack(np.log(-values).astype(np.float32), "F32")


def _decay(packed: Packed) -> Packed:
    rates = -np.exp(formats.unpack(packed).astype(np.float64)).astype(np.float32)
    return _as_column(formats.pack(rates.reshape(-1), "F32"))


# Mamba 2's A = -exp(A_log), one column, rounded to float32.
decay = How(
    lambda packed, _: (_logarithm(packed),), lambda parts, _: _decay(parts[0]), column.shape, type="F32"
)


# The same in a vector.
decay_vector = How(
    lambda packed, _: (_logarithm(packed),),
    lambda parts, _: Packed("F32", parts[0].shape, _decay(parts[0]).data.reshape(-1)),
    _only,
    type="F32",
)


# Mamba's, one for each channel and number of its state.
decay_matrix = How(
    lambda packed, _: (_shaped(_logarithm(packed), packed.shape),),
    lambda parts, _: _shaped(_decay(parts[0]), parts[0].shape),
    _only,
    type="F32",
)


def _shaped(packed: Packed, shape: Shape) -> Packed:
    return Packed(packed.type, shape, packed.data.reshape(*shape[:-1], -1))


def _group_shape(place: Place) -> Shape:
    groups = (place.beside or place.attention).groups
    return (groups, place.shapes[0][0] // groups)


def _in_groups(packed: Packed, place: Place) -> Packed:
    shape = _group_shape(place)
    return Packed(packed.type, shape, packed.data.reshape(shape[0], -1))


# A vector that theirs has as a row for each group of a recurrence's heads.
in_groups = How(
    lambda packed, place: (Packed(packed.type, place.shapes[0], packed.data.reshape(-1)),),
    lambda parts, place: _in_groups(parts[0], place),
    _group_shape,
)


def grouped(groups: int) -> How:
    """A convolution [out in/groups 1] of each token alone, in groups: a matrix with zeros between them."""

    def block(words: np.ndarray, group: int) -> np.ndarray:
        """The part of a matrix in which one group reads its own part of a vector."""
        (out, inside) = (size // groups for size in words.shape)
        return words[group * out : (group + 1) * out, group * inside : (group + 1) * inside]

    def whole(packed: Packed, place: Place) -> Packed:
        if packed.type not in WHOLE:
            raise UserError(f"a {packed.type} convolution is not read: rows share blocks")
        words = packed.data.view(WHOLE[packed.type])[..., 0]
        matrix = np.zeros(place.shapes[0], words.dtype)
        for group, rows in enumerate(np.split(words, groups)):
            block(matrix, group)[:] = rows
        return Packed(packed.type, matrix.shape, matrix.view(np.uint8))

    def parts(packed: Packed, place: Place) -> Packed:
        if packed.type not in WHOLE:
            packed = formats.pack(formats.unpack(packed), "F32")
        words = packed.data.view(WHOLE[packed.type])
        own = np.concatenate([block(words, group) for group in range(groups)])
        if np.count_nonzero(own) != np.count_nonzero(words):
            raise UserError(f"a matrix should be {groups} groups with zeros between them, and is not")
        shape = (*own.shape, 1)
        return Packed(packed.type, shape, own[..., None].view(np.uint8))

    return How(
        lambda packed, place: (whole(packed, place),),
        lambda theirs, place: parts(theirs[0], place),
        lambda place: (place.shapes[0][0], place.shapes[0][1] // groups, 1),
    )


def unpermute(which: str) -> How:
    """Rotary pairs side by side (2i, 2i + 1) in each head, as GGUF's llama has them; ours are (i, i + k/2).

    Dimensions of a head that do not rotate stay where they are. ``which``: "heads" for queries, "groups" for
    keys, of which there may be fewer.
    """

    def reordered(packed: Packed, place: Place, loading: bool) -> Packed:
        heads, position = getattr(place.attention, which), place.attention.position
        rows = np.arange(packed.shape[0]).reshape(heads, -1)
        size = rows.shape[1] if position is None else position.size
        pairs = rows[:, :size].reshape((heads, -1, 2) if loading else (heads, 2, -1))
        order = np.concatenate((pairs.swapaxes(1, 2).reshape(heads, -1), rows[:, size:]), axis=1)
        return packed.rows(order.ravel())

    return How(
        lambda packed, place: (reordered(packed, place, True),),
        lambda parts, place: reordered(parts[0], place, False),
        _only,
    )


def exchange(which: str) -> How:
    """The halves of each head in the other order; ``which`` as in ``unpermute``."""

    def swapped(packed: Packed, place: Place) -> Packed:
        rows = np.arange(packed.shape[0]).reshape(getattr(place.attention, which), 2, -1)
        return packed.rows(rows[:, ::-1].ravel())

    return How(
        lambda packed, place: (swapped(packed, place),), lambda parts, place: swapped(parts[0], place), _only
    )


def beside(which: str | int | None = None) -> How:
    """Several of ours, of which theirs has the rows of a head side by side; ``which`` as in ``unpermute``.

    A number: of so many parts of equal size, in place of heads. None: one row of each after another.
    """

    def order(place: Place) -> np.ndarray:
        parts = place.shapes[0][0] if which is None else which
        heads = parts if isinstance(parts, int) else getattr(place.attention, parts)
        ends = np.cumsum([0, *(shape[0] for shape in place.shapes)])
        each = [np.arange(a, b).reshape(heads, -1) for a, b in pairwise(ends)]
        return np.concatenate(each, axis=1).ravel()

    return How(
        lambda packed, place: _cut(packed.rows(np.argsort(order(place))), place),
        lambda parts, place: _joined(parts, place).rows(order(place)),
        split.shape,
    )


@dataclass(frozen=True, eq=False)
class _PlusOne(Packed):
    """w + 1 in float32, which may round, and the ``w`` that it was made of."""

    w: Packed


def _plus_one(packed: Packed) -> Packed:
    w = formats.pack(formats.unpack(packed), "F32")
    moved = formats.pack(formats.unpack(w) + np.float32(1), "F32")
    return _PlusOne("F32", moved.shape, moved.data, w)


def _minus_one(packed: Packed) -> Packed:
    return (
        packed.w
        if isinstance(packed, _PlusOne)
        else formats.pack(formats.unpack(packed) - np.float32(1), "F32")
    )


# Gemma's norms are stored as w where x is multiplied by w + 1; ours hold the factor.
plus_one = How(
    lambda packed, _: (_plus_one(packed),), lambda parts, _: _minus_one(parts[0]), _only, type="F32"
)


def how_of(rules: Sequence[Rule], changes: Mapping[str, How]) -> tuple[Rule, ...]:
    """The rules, with another way for those of ours that hold one of these words."""

    def way(rule: Rule) -> How:
        return next((how for word, how in changes.items() if word in rule.ours), rule.how)

    return tuple(replace(rule, how=way(rule)) for rule in rules)


def chain(outer: How, inner: How) -> How:
    """``outer``, which makes one of one, and then ``inner``; back in the other order."""

    def shapes_between(place: Place) -> Place:
        return replace(place, shapes=(inner.shape(place),))

    return How(
        lambda packed, place: inner.load(outer.load(packed, shapes_between(place))[0], place),
        lambda parts, place: outer.save((inner.save(parts, place),), shapes_between(place)),
        lambda place: outer.shape(shapes_between(place)),
        inner.type or outer.type,
    )


class Tensors(Mapping):
    """Weights by name, each made when asked for; ``later(name)`` is its type and shape.

    A Mapping[str, Packed], but not annotated as one: a runtime type checker would make
    weights to look.
    """

    def __init__(self, entries: Mapping[str, Packed | Later]) -> None:
        self._entries = dict(entries)

    def later(self, name: str) -> Packed | Later:
        return self._entries[name]

    def __getitem__(self, name: str) -> Packed:
        entry = self._entries[name]
        return entry if isinstance(entry, Packed) else entry.make()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def multiplied(tensors: Tensors, factors: Mapping[str, Any]) -> Tensors:
    """The same weights, those that ``factors`` names times their factor, in float32."""

    def later(name: str) -> Packed | Later:
        entry = tensors.later(name)
        if name not in factors:
            return entry
        factor = np.float32(factors[name])
        return Later("F32", entry.shape, lambda: formats.pack(formats.unpack(tensors[name]) * factor, "F32"))

    return Tensors({name: later(name) for name in tensors})


@dataclass(frozen=True)
class Absorbed(Later):
    """Latent attention's ``key_up`` [heads k, latent], and ``stored``: the same as [heads latent, k].

    That is how GGUF stores it and how the runtime multiplies; to the PyTorch model it is floats.
    """

    stored: Packed | Later


def made(entry: Packed | Later) -> Packed:
    """The weight."""
    return entry if isinstance(entry, Packed) else entry.make()


def absorbed(tensors: Tensors, name: str, heads: int) -> Packed | Later:
    """A ``key_up`` as [heads latent, k]: what is stored, or its floats exchanged."""
    entry = tensors.later(name)
    if isinstance(entry, Absorbed):
        return entry.stored
    type, (rows, columns) = entry.type if entry.type in WHOLE else "F32", entry.shape
    return Later(type, (heads * columns, rows // heads), lambda: exchanged(tensors[name], heads))


def all_absorbed(tensors: Tensors, config: Model) -> Tensors:
    """The same weights, with every ``key_up`` of latent attention as it is stored."""
    entries = {name: tensors.later(name) for name in tensors}
    for n, block in enumerate(config.blocks):
        name = f"blocks.{n}.attention.key_up.weight"
        if name in entries:
            entries[name] = of_absorbed(absorbed(tensors, name, block.attention.heads), block.attention.heads)
    return Tensors(entries)


def of_absorbed(stored: Packed | Later, heads: int) -> Absorbed:
    """The ``key_up`` of what is stored."""
    rows, columns = stored.shape
    type = stored.type if stored.type in WHOLE else "F32"
    shape = (heads * columns, rows // heads)
    return Absorbed(type, shape, lambda: exchanged(made(stored), heads), stored)


@dataclass(frozen=True)
class Bound:
    """A rule at one place of one model."""

    theirs: str
    ours: tuple[str, ...]
    how: How
    place: Place


class Nameless(UserError):
    """A family has no name for this weight of a model."""

    def __init__(self, weight: str) -> None:
        super().__init__(f"this family has no name for the weight {quoted(weight)}")
        self.weight = weight


def bind(rules: Sequence[Rule], config: Model) -> list[Bound]:
    """The rules that apply to this model, layer by layer; UserError if one of its weights has no name."""
    shapes = config.weights()
    bound: list[Bound] = []
    for rule in rules:
        layers = enumerate(_blocks(rule, config)) if "{n}" in rule.theirs else [(0, None)]
        numbers = range(len(config.blocks)) if rule.number is None else rule.number(config)
        for n, block in layers:
            if rule.when is not None and (block is None or not rule.when(block)):
                continue
            number = numbers[n] if block else 0
            if number is None:
                continue
            for theirs, ours in _names(rule, n, number, _experts(block)):
                if all(name in shapes for name in ours):
                    beside = block.beside.mixer if block and block.beside else None
                    inner = tuple(shapes[name] for name in ours)
                    place = Place(inner, block.attention if block else None, beside)
                    bound.append(Bound(theirs, ours, rule.how, place))
    nameless = shapes.keys() - {name for each in bound for name in each.ours}
    if nameless:
        raise Nameless(min(nameless))
    return bound


def _blocks(rule: Rule, config: Model) -> tuple[Block, ...]:
    """The layers that a rule numbers: of an encoder-decoder those of the half that it names."""
    if not isinstance(config, EncoderDecoder):
        return config.blocks
    ours = rule.ours if isinstance(rule.ours, str) else rule.ours[0]
    return (config.encoder if ours.startswith("encoder.") else config.decoder).blocks


def _experts(block: Block | None) -> int:
    return block.mlp.experts if block is not None and isinstance(block.mlp, MoE) else 0


def _names(rule: Rule, n: int, number: int, experts: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Their name and ours in our layer n, of their ``number``, once or for each expert."""
    theirs = rule.theirs.replace("{n}", str(number))
    names = (rule.ours,) if isinstance(rule.ours, str) else rule.ours
    ours = tuple(name.replace("{n}", str(n)) for name in names)
    if not any("{e}" in name for name in ours):
        yield theirs, ours
        return
    each = [tuple(name.replace("{e}", str(e)) for name in ours) for e in range(experts)]
    if "{e}" in theirs:
        yield from ((theirs.replace("{e}", str(e)), one) for e, one in enumerate(each))
    elif each:
        yield theirs, tuple(name for one in each for name in one)


def load(
    rules: Sequence[Rule],
    config: Model,
    theirs: Mapping[str, Packed],
    ignored: Sequence[str] = (),
    where: object = "the file",
    zeros: Sequence[str] = (),
) -> Tensors:
    """Our weights out of theirs; UserError for a wrong or missing name, type or shape.

    ``ignored`` are patterns of names that carry nothing (buffers that are computed anyway), where
    ``{layers}`` stands for the number of layers (of a layer after the last, that predicts further tokens).
    ``zeros``: names that may be missing.
    """
    if len(config.blocks) > len(theirs):
        raise UserError(
            f"{where}: the config says {len(config.blocks)} layers, but there are {len(theirs)} weights"
        )
    experts, matrices = sum(map(_experts, config.blocks)), sum(map(_matrices, theirs.values()))
    if experts > matrices:
        raise UserError(f"{where}: the config says {experts} experts, but there are only {matrices} matrices")
    bound = bind(rules, config)
    known = {each.theirs for each in bound}
    skipped = [pattern.replace("{layers}", str(len(config.blocks))) for pattern in ignored]
    for name in theirs:
        if name not in known and not any(fnmatchcase(name, pattern) for pattern in skipped):
            raise UserError(f"{where}: the weight {quoted(name)} has no place in this model")
    entries: dict[str, Packed | Later] = {}
    for each in bound:
        packed = theirs.get(each.theirs)
        if packed is None and each.theirs in zeros:
            packed = formats.pack(np.zeros(each.how.shape(each.place), np.float32), "F32")
        if packed is None:
            raise UserError(f"{where}: the weight {quoted(each.theirs)} is missing")
        _check(each, packed, where)
        for i, (name, shape) in enumerate(zip(each.ours, each.place.shapes, strict=True)):
            if each.how.absorbs:
                entries[name] = of_absorbed(_flat(packed), each.place.attention.heads)
            else:
                entries[name] = Later(each.how.type or packed.type, shape, _loading(each, packed, i))
    return Tensors({name: entries[name] for name in config.weights()})


def _matrices(packed: Packed) -> int:
    return math.prod(packed.shape[:-2]) if len(packed.shape) > 1 else 0


def _check(each: Bound, packed: Packed, where: object) -> None:
    expected = each.how.shape(each.place)
    if packed.shape != expected:
        raise UserError(
            f"{where}: the weight {quoted(each.theirs)} has the shape {packed.shape}, "
            f"where the config asks for {expected}"
        )
    if packed.type in FOREIGN or packed.type not in TYPES or packed.type in NO_WEIGHTS:
        raise UserError(
            f"{where}: the weight {quoted(each.theirs)} is stored as {packed.type}, "
            "which is not read as weights"
        )


def _loading(each: Bound, packed: Packed, i: int) -> Callable[[], Packed]:
    return lambda: each.how.load(packed, each.place)[i]


def save(rules: Sequence[Rule], config: Model, ours: Tensors) -> Tensors:
    """Their weights out of ours, under their names and in their order."""
    entries: dict[str, Packed | Later] = {}
    for each in bind(rules, config):
        first = ours.later(each.ours[0])
        if each.how.absorbs:
            first = absorbed(ours, each.ours[0], each.place.attention.heads)
        shape = each.how.shape(each.place)
        entries[each.theirs] = Later(each.how.type or first.type, shape, _saving(each, ours))
    return Tensors(entries)


def _saving(each: Bound, ours: Tensors) -> Callable[[], Packed]:
    if each.how.absorbs:
        heads = each.place.attention.heads
        return lambda: each.how.save((made(absorbed(ours, each.ours[0], heads)),), each.place)
    return lambda: each.how.save(tuple(ours[name] for name in each.ours), each.place)
