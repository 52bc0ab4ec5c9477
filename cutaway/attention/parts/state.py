"""What a layer remembers of the tokens it has read, so that the next one need not read them again.

    entries, places = state.append({"k": k, "v": v}, pos)

Entries are named tensors [b g t e], so that every mechanism stores what it needs: mha its keys and values,
mla one latent. ``pos`` Int[b t] are absolute, -1 for padding. What comes back is everything a query of this
call may need, old and new; keeping old keys for others is the visibility's matter, not the state's. A state
is for reading, not for training: it takes no tensor that needs a gradient.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cutaway.attention.parts.mixer import Memory
from cutaway.errors import UserError
from cutaway.shapes import Int

Entries = dict[str, Tensor]  # [b g t e]


@runtime_checkable
class Store(Memory, Protocol):
    """A memory of entries: Full, Ring, and what stores the same in another way (paged.py, quantised.py)."""

    def append(self, entries: Entries, pos: Int[Tensor, "b t"]) -> tuple[Entries, Int[Tensor, "b s"]]:
        """Remembers these, and returns what a query of this call may need, with its positions."""
        ...

    def snapshot(self) -> Store: ...


def append(state: Memory, entries: Entries, pos: Int[Tensor, "b t"]) -> tuple[Entries, Int[Tensor, "b s"]]:
    """``state.append``, for a memory of entries. UserError if they carry gradients, or if it is of another
    kind.
    """
    if not isinstance(state, Store):
        raise UserError(
            f"attention: {type(state).__name__} remembers no entries of tokens: give the layer its own state"
        )
    refuse_gradients(entries)
    return state.append(entries, pos)


def refuse_gradients(entries: Entries) -> None:
    if torch.is_grad_enabled() and any(entry.requires_grad for entry in entries.values()):
        raise UserError(
            "a state does not carry gradients: read with it under torch.no_grad(), train without it"
        )


class Full:
    """Remembers every token. Memory doubles when it is full, so that appending stays cheap."""

    def __init__(self) -> None:
        self.buffers: Entries = {}
        self.places = torch.empty(0, 0, dtype=torch.long)
        self.length = 0

    def append(self, entries: Entries, pos: Int[Tensor, "b t"]) -> tuple[Entries, Int[Tensor, "b s"]]:
        refuse_gradients(entries)
        end = self.length + pos.shape[1]
        self._reserve(entries, pos, end)
        for name, entry in entries.items():
            self.buffers[name][:, :, self.length : end] = entry
        self.places[:, self.length : end] = pos
        self.length = end
        return self._view()

    def _view(self) -> tuple[Entries, Int[Tensor, "b s"]]:
        return {name: kept[:, :, : self.length] for name, kept in self.buffers.items()}, self.places[
            :, : self.length
        ]

    def _reserve(self, entries: Entries, pos: Int[Tensor, "b t"], end: int) -> None:
        room = self.places.shape[1]
        if end <= room:
            return
        room = max(end, 2 * room, 64)
        old, old_places = self._view()
        b = pos.shape[0]
        self.places = pos.new_full((b, room), -1)
        self.buffers = {
            name: entry.new_zeros(b, entry.shape[1], room, entry.shape[3]) for name, entry in entries.items()
        }
        if not self.length:
            return
        self.places[:, : self.length] = old_places
        for name, entry in old.items():
            self.buffers[name][:, :, : self.length] = entry

    def can_truncate(self, length: int) -> bool:
        """Whether the state of ``length`` entries ago can be had back: always."""
        return True

    def truncate(self, length: int) -> None:
        """Forgets everything after the first ``length`` entries."""
        self.length = min(length, self.length)

    def snapshot(self) -> Full:
        """A copy that later appends do not touch."""
        copy = Full()
        entries, places = self._view()
        copy.buffers = {name: entry.clone() for name, entry in entries.items()}
        copy.places, copy.length = places.clone(), self.length
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of the entries in use."""
        return sum(entry.numel() * entry.element_size() for entry in self._view()[0].values())


class Ring:
    """Remembers the last ``window`` tokens of each row, and the ``first`` ones if a mechanism never lets go
    of them.

    A chunk longer than the window is returned whole before the old is dropped, since its first queries need
    it.
    """

    def __init__(self, window: int, first: int = 0) -> None:
        self.window, self.first = window, first
        self.buffers: Entries = {}
        self.places = torch.empty(0, 0, dtype=torch.long)
        self.length = 0

    @property
    def size(self) -> int:
        """How many tokens it holds at most."""
        return self.window + self.first

    def append(self, entries: Entries, pos: Int[Tensor, "b t"]) -> tuple[Entries, Int[Tensor, "b s"]]:
        refuse_gradients(entries)
        self.length += pos.shape[1]
        if self.buffers:
            entries = {name: torch.cat((self.buffers[name], entry), dim=2) for name, entry in entries.items()}
            pos = torch.cat((self.places, pos), dim=1)
        self.buffers, self.places = entries, pos
        if pos.shape[1] > self.size:
            self._drop()
        return entries, pos

    def _drop(self) -> None:
        """Keeps the highest positions of each row, wherever padding put them, and the first; in the order
        they came.
        """
        pos = self.places
        worth = torch.where((pos >= 0) & (pos < self.first), pos.max() + 1, pos)
        kept = worth.argsort(dim=1, stable=True)[:, -self.size :].sort(dim=1).values
        self.places = pos.gather(1, kept)
        self.buffers = {
            name: entry.gather(2, kept[:, None, :, None].expand(-1, entry.shape[1], -1, entry.shape[3]))
            for name, entry in self.buffers.items()
        }

    def can_truncate(self, length: int) -> bool:
        """Whether the state of ``length`` entries ago can be had back: not once the window has dropped what
        it held.
        """
        return length >= self.length or self.length <= self.size

    def truncate(self, length: int) -> None:
        """Forgets everything after the first ``length`` entries; ``can_truncate`` says whether that is
        possible.
        """
        if length >= self.length:
            return
        self.places = self.places[:, :length]
        self.buffers = {name: entry[:, :, :length] for name, entry in self.buffers.items()}
        self.length = length

    def snapshot(self) -> Ring:
        """A copy that later appends do not touch. Appending never writes in place, so the tensors are
        shared.
        """
        copy = Ring(self.window, self.first)
        copy.buffers, copy.places, copy.length = dict(self.buffers), self.places, self.length
        return copy

    @property
    def nbytes(self) -> int:
        return sum(entry.numel() * entry.element_size() for entry in self.buffers.values())


class Cross:
    """What a decoder remembers of the memory it reads: written once, then only read. It does not grow with
    the text.
    """

    def __init__(self) -> None:
        self.entries: Entries = {}
        self.places = torch.empty(0, 0, dtype=torch.long)
        self.length = 0

    @property
    def written(self) -> bool:
        return bool(self.entries)

    def write(self, entries: Entries, pos: Int[Tensor, "b s"]) -> None:
        """UserError the second time: a state is for one memory."""
        refuse_gradients(entries)
        if self.written:
            raise UserError("a cross-attention state is written once: make a new one for another memory")
        self.entries, self.places, self.length = entries, pos, pos.shape[1]

    def can_truncate(self, length: int) -> bool:
        """Always: what was read of a text does not change the memory it was read beside."""
        return True

    def truncate(self, length: int) -> None:
        """Nothing to forget: the memory is not part of the text."""

    def snapshot(self) -> Cross:
        """A copy. Nothing is ever written into the tensors, so they are shared."""
        copy = Cross()
        copy.entries, copy.places, copy.length = self.entries, self.places, self.length
        return copy

    @property
    def nbytes(self) -> int:
        return sum(entry.numel() * entry.element_size() for entry in self.entries.values())
