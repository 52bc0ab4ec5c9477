"""Maps between a file's tensors and our weights: transposed, split, stacked, reordered.

Each works on packed weights and leaves them packed where it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.quantization import formats
from cutaway.weights.named_tensors import WHOLE, Shape, exchanged, stacked_heads
from cutaway.weights.rules import How, Place


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


def _apart(packed: Packed, place: Place) -> Packed:
    heads = place.attention.heads
    shape = (heads, packed.shape[0] // heads, packed.shape[1])
    return Packed(packed.type, shape, packed.data.reshape(*shape[:2], -1))


# A matrix of theirs for each head, in one tensor, that is one above the other in ours.
per_head = How(
    lambda packed, _: (stacked_heads(packed),),
    lambda parts, place: _apart(parts[0], place),
    lambda place: (place.attention.heads, place.shapes[0][0] // place.attention.heads, place.shapes[0][1]),
)


# The same of keys of latent attention, of which theirs has rows and columns exchanged.
absorbing = How(
    lambda packed, place: (exchanged(stacked_heads(packed), place.attention.heads),),
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
