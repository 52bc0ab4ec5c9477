"""The reference engine's state of one text: keys and values, recurrent states, and its edits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.runtime import block_numbers, cache_formats, recurrence
from cutaway.runtime.adapter import Beside
from cutaway.runtime.edits import Edit
from cutaway.runtime.numpy_layers import See


class State:
    """The KV cache of one text: keys and values of every layer as they are read back, [s g size]."""

    def __init__(
        self, config: Decoder, adapter: Mapping[str, Beside] | None = None, kind: cache_formats.Kind = "F16"
    ) -> None:
        self.adapter = adapter or {}
        dtype = np.float16 if kind == "F16" else np.float32
        self.edits: tuple[Edit, ...] = ()  # of every token that is read into it
        shapes = [_cached(block) for block in config.blocks]
        self.keys = [np.empty((0, groups, size), dtype) for groups, size, _ in shapes]
        self.values = [np.empty((0, groups, size), dtype) for groups, _, size in shapes]
        self._recurrent = {
            path: of
            for n, block in enumerate(config.blocks)
            for path, of in recurrences(f"blocks.{n}", block).items()
        }
        self.length = 0
        self.first_length = block_numbers.first_length(config)
        # Where a longer text rotates otherwise (LongRoPE): what was read, to be read again, the length that
        # is announced, and whether it is longer.
        self.ids: list[int] = []
        self.announced, self.longer = 0, False
        self._forget()

    def _forget(self) -> None:
        """Recurrent layers as they are before a text."""
        self.carried = {path: recurrence.empty(of) for path, of in self._recurrent.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(part.nbytes for part in (*self.keys, *self.values))

    def truncate(self, length: int) -> None:
        """Forgets everything after the first ``length`` positions."""
        self.length = emptied(min(length, self.length), self.length, bool(self.carried))
        if self.length == 0:
            self._forget()
        self.ids, self.announced = self.ids[: self.length], self.length
        self.keys = [part[: self.length] for part in self.keys]
        self.values = [part[: self.length] for part in self.values]

    def restart(self, new: int) -> list[int]:
        """Becomes empty if it will rotate otherwise with so many ids more; gives what it then held."""
        longest = max(self.length + new, self.announced)
        longer = self.first_length is not None and longest > self.first_length
        if longer == self.longer:
            return []
        ids = self.ids
        self.truncate(0)
        self.announced, self.longer = longest, longer
        return ids

    def snapshot(self) -> State:
        """A copy that what is read later does not touch."""
        other = copy.copy(self)
        other.keys, other.values, other.carried = list(self.keys), list(self.values), dict(self.carried)
        other.ids = list(self.ids)
        return other


def _cached(block: Block) -> tuple[int, int, int]:
    """Groups of what a layer caches of a token, and the sizes of their keys and values."""
    of: Any = block.attention
    if block_numbers.latent(block):
        return 1, block_numbers.latent_row(of), of.index_size if block_numbers.indexed(of) else 0
    return (of.groups, of.key_size, of.values) if block_numbers.attends(block) else (0, 0, 0)


def emptied(length: int, held: int, recurrent: bool) -> int:
    """The length to which a state of ``held`` tokens returns; UserError where recurrent layers moved on."""
    if recurrent and length not in (0, held):
        raise UserError(f"the state no longer holds the first {length} tokens: read the text again")
    return length


def recurrences(path: str, block: Block) -> dict[str, Any]:
    """A block's recurrent mixers by their paths."""
    attends = block_numbers.attends(block) or block_numbers.latent(block)
    own = {} if attends else {f"{path}.attention": block.attention}
    return own | ({f"{path}.beside": block.beside.mixer} if block.beside else {})


def watcher(state: State, n: int, kept: dict[str, Any], came: np.ndarray | None = None) -> See:
    """What a value of layer n, whose input ``came``, passes: its edits in their order; it is kept."""

    def see(what: str, value: np.ndarray) -> np.ndarray:
        for edit in state.edits:
            if (edit.what, edit.layer) == (what, n):
                value = edit.applied(value, state.length, came)
        kept[what if what == "embed" else f"blocks.{n}.{what}"] = value
        return value

    return see
