"""KV caches of a layer: every token's entries, the last tokens', another layer's, or an encoder's."""

from __future__ import annotations

import torch
from torch import Tensor

from cutaway.attention.common.mixer import LayerState
from cutaway.attention.state.entries import Entries, refuse_gradients
from cutaway.errors import UserError
from cutaway.shapes import Int


class Full:
    """Keeps every token. Buffers double when they are full, so that appending stays cheap."""

    def __init__(self) -> None:
        self.buffers: Entries = {}
        self.positions = torch.empty(0, 0, dtype=torch.long)
        self.length = 0

    def append(self, entries: Entries, pos: Int[Tensor, "b t"]) -> tuple[Entries, Int[Tensor, "b s"]]:
        refuse_gradients(entries)
        end = self.length + pos.shape[1]
        self._reserve(entries, pos, end)
        for name, entry in entries.items():
            self.buffers[name][:, :, self.length : end] = entry
        self.positions[:, self.length : end] = pos
        self.length = end
        return self._view()

    def _view(self) -> tuple[Entries, Int[Tensor, "b s"]]:
        return {name: kept[:, :, : self.length] for name, kept in self.buffers.items()}, self.positions[
            :, : self.length
        ]

    def _reserve(self, entries: Entries, pos: Int[Tensor, "b t"], end: int) -> None:
        room = self.positions.shape[1]
        if end <= room:
            return
        room = max(end, 2 * room, 64)
        old, old_positions = self._view()
        b = pos.shape[0]
        self.positions = pos.new_full((b, room), -1)
        self.buffers = {
            name: entry.new_zeros(b, entry.shape[1], room, entry.shape[3]) for name, entry in entries.items()
        }
        if not self.length:
            return
        self.positions[:, : self.length] = old_positions
        for name, entry in old.items():
            self.buffers[name][:, :, : self.length] = entry

    def can_truncate(self, length: int) -> bool:
        """Always."""
        return True

    def truncate(self, length: int) -> None:
        """Drop everything after the first ``length`` entries."""
        self.length = min(length, self.length)

    def snapshot(self) -> Full:
        """A copy that later tokens do not change."""
        copy = Full()
        entries, positions = self._view()
        copy.buffers = {name: entry.clone() for name, entry in entries.items()}
        copy.positions, copy.length = positions.clone(), self.length
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of the entries in use."""
        return sum(entry.numel() * entry.element_size() for entry in self._view()[0].values())


class Elsewhere:
    """The empty state of a layer that reads an earlier layer's keys and values."""

    length = nbytes = 0

    def can_truncate(self, length: int) -> bool:
        """Always."""
        return True

    def truncate(self, length: int) -> None:
        """Nothing is here to drop."""

    def snapshot(self) -> Elsewhere:
        """Itself: it does not change."""
        return self


class Both:
    """The states of two mixers of one block, which read the same tokens."""

    def __init__(self, first: LayerState, second: LayerState) -> None:
        self.first, self.second = first, second

    @property
    def length(self) -> int:
        return self.first.length

    @property
    def nbytes(self) -> int:
        return self.first.nbytes + self.second.nbytes

    def can_truncate(self, length: int) -> bool:
        """Whether both can."""
        return self.first.can_truncate(length) and self.second.can_truncate(length)

    def truncate(self, length: int) -> None:
        """Drop everything after the first ``length`` entries."""
        self.first.truncate(length)
        self.second.truncate(length)

    def snapshot(self) -> Both:
        """A copy that later tokens do not change."""
        return Both(self.first.snapshot(), self.second.snapshot())


class Ring:
    """Keeps the last ``window`` tokens of each row, and the ``first`` ones if a mechanism never drops them.

    ``append`` returns old and new together before it drops the old, since the first queries of a long chunk
    need them.
    """

    def __init__(self, window: int, first: int = 0) -> None:
        self.window, self.first = window, first
        self.buffers: Entries = {}
        self.positions = torch.empty(0, 0, dtype=torch.long)
        self.length = 0

    @property
    def size(self) -> int:
        """The most tokens it holds."""
        return self.window + self.first

    def append(self, entries: Entries, pos: Int[Tensor, "b t"]) -> tuple[Entries, Int[Tensor, "b s"]]:
        refuse_gradients(entries)
        self.length += pos.shape[1]
        if self.buffers:
            entries = {name: torch.cat((self.buffers[name], entry), dim=2) for name, entry in entries.items()}
            pos = torch.cat((self.positions, pos), dim=1)
        self.buffers, self.positions = entries, pos
        if pos.shape[1] > self.size:
            self._drop()
        return entries, pos

    def _drop(self) -> None:
        """Keep the highest positions of each row, wherever its padding is, and the first, in order."""
        pos = self.positions
        rank = torch.where((pos >= 0) & (pos < self.first), pos.max() + 1, pos)
        kept = rank.argsort(dim=1, stable=True)[:, -self.size :].sort(dim=1).values
        self.positions = pos.gather(1, kept)
        self.buffers = {
            name: entry.gather(2, kept[:, None, :, None].expand(-1, entry.shape[1], -1, entry.shape[3]))
            for name, entry in self.buffers.items()
        }

    def can_truncate(self, length: int) -> bool:
        """Whether the first ``length`` entries are all still here: the window may have dropped some."""
        return length >= self.length or self.length <= self.size

    def truncate(self, length: int) -> None:
        """Drop everything after the first ``length`` entries, if ``can_truncate``."""
        if length >= self.length:
            return
        self.positions = self.positions[:, :length]
        self.buffers = {name: entry[:, :, :length] for name, entry in self.buffers.items()}
        self.length = length

    def snapshot(self) -> Ring:
        """A copy that later tokens do not change. Tensors are replaced, never written into."""
        copy = Ring(self.window, self.first)
        copy.buffers, copy.positions, copy.length = dict(self.buffers), self.positions, self.length
        return copy

    @property
    def nbytes(self) -> int:
        return sum(entry.numel() * entry.element_size() for entry in self.buffers.values())


class Cross:
    """The keys and values of an encoder's memory: written once, they do not grow with the text."""

    def __init__(self) -> None:
        self.entries: Entries = {}
        self.positions = torch.empty(0, 0, dtype=torch.long)
        self.length = 0

    @property
    def written(self) -> bool:
        return bool(self.entries)

    def write(self, entries: Entries, pos: Int[Tensor, "b s"]) -> None:
        """UserError if it is written already: a state is for one memory."""
        refuse_gradients(entries)
        if self.written:
            raise UserError("this cross-attention state already holds a memory: make a new one for another")
        self.entries, self.positions, self.length = entries, pos, pos.shape[1]

    def can_truncate(self, length: int) -> bool:
        """Always: the memory does not depend on the text being written."""
        return True

    def truncate(self, length: int) -> None:
        """Nothing to drop: the memory is not part of the text."""

    def snapshot(self) -> Cross:
        """A copy that shares the tensors: they are never written into."""
        copy = Cross()
        copy.entries, copy.positions, copy.length = self.entries, self.positions, self.length
        return copy

    @property
    def nbytes(self) -> int:
        return sum(entry.numel() * entry.element_size() for entry in self.entries.values())
