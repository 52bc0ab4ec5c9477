"""Weights by name, each made when it is asked for: types and shapes are known before that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.gguf import Later, Packed
from cutaway.model.config import Model
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


class Tensors(Mapping):
    """Weights by name, each made when asked for; ``later(name)`` is its type and shape.

    A Mapping[str, Packed], but not annotated as one: a runtime type checker would unpack weights
    to check them.
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


def exchanged(packed: Packed, heads: int) -> Packed:
    """A matrix [heads a, b] as [heads b, a]: a head's rows become columns; F32 where those share blocks."""
    if packed.type not in WHOLE:
        packed = formats.pack(formats.unpack(packed), "F32")
    rows, columns = packed.shape
    words = packed.data.view(WHOLE[packed.type]).reshape(heads, rows // heads, columns)
    swapped = np.ascontiguousarray(words.swapaxes(1, 2)).reshape(heads * columns, rows // heads)
    return Packed(packed.type, swapped.shape, swapped.view(np.uint8))


def stacked_heads(packed: Packed) -> Packed:
    heads, rows, columns = packed.shape
    return Packed(packed.type, (heads * rows, columns), packed.data.reshape(heads * rows, -1))
