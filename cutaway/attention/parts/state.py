"""What a layer remembers of the tokens it has read, so that the next one need not read them again.

    entries, places = state.append({"k": k, "v": v}, pos)

Entries are named tensors [b g t e], so that every mechanism stores what it needs. ``pos`` Int[b t] are absolute, -1 for
padding. What comes back is everything a query of this call may need, old and new; keeping old keys for others is the
visibility's matter, not the state's. A state is for reading, not for training: it takes no tensor that needs a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cutaway.errors import Refused
from cutaway.shapes import Float, Int

Entries = dict[str, Float[Tensor, "b g _ _"]]


def _refuse_gradients(entries: Entries) -> None:
    if torch.is_grad_enabled() and any(entry.requires_grad for entry in entries.values()):
        raise Refused("a state does not carry gradients: read with it under torch.no_grad(), train without it")


class Full:
    """Remembers every token. Memory doubles when it is full, so that appending stays cheap."""

    def __init__(self) -> None:
        self.buffers: Entries = {}
        self.places = torch.empty(0, 0, dtype=torch.long)
        self.length = 0

    def append(self, entries: Entries, pos: Int[Tensor, "b t"]) -> tuple[Entries, Int[Tensor, "b s"]]:
        _refuse_gradients(entries)
        end = self.length + pos.shape[1]
        self._reserve(entries, pos, end)
        for name, entry in entries.items():
            self.buffers[name][:, :, self.length : end] = entry
        self.places[:, self.length : end] = pos
        self.length = end
        return self._view()

    def _view(self) -> tuple[Entries, Int[Tensor, "b s"]]:
        return {name: kept[:, :, : self.length] for name, kept in self.buffers.items()}, self.places[:, : self.length]

    def _reserve(self, entries: Entries, pos: Int[Tensor, "b t"], end: int) -> None:
        room = self.places.shape[1]
        if end <= room:
            return
        room = max(end, 2 * room, 64)
        old, old_places = self._view()
        b = pos.shape[0]
        self.places = pos.new_full((b, room), -1)
        self.buffers = {name: entry.new_zeros(b, entry.shape[1], room, entry.shape[3]) for name, entry in entries.items()}
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
    """Remembers the last ``window`` tokens of each row, enough for a window of that size.

    A chunk longer than the window is returned whole before the old is dropped, since its first queries need it.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.buffers: Entries = {}
        self.places = torch.empty(0, 0, dtype=torch.long)
        self.length = 0

    def append(self, entries: Entries, pos: Int[Tensor, "b t"]) -> tuple[Entries, Int[Tensor, "b s"]]:
        _refuse_gradients(entries)
        self.length += pos.shape[1]
        if self.buffers:
            entries = {name: torch.cat((self.buffers[name], entry), dim=2) for name, entry in entries.items()}
            pos = torch.cat((self.places, pos), dim=1)
        # The window's tokens are those with the highest positions of each row, wherever padding put them.
        kept = pos.argsort(dim=1, stable=True)[:, -self.window :]
        self.places = pos.gather(1, kept)
        self.buffers = {
            name: entry.gather(2, kept[:, None, :, None].expand(-1, entry.shape[1], -1, entry.shape[3]))
            for name, entry in entries.items()
        }
        return entries, pos

    def can_truncate(self, length: int) -> bool:
        """Whether the state of ``length`` entries ago can be had back: not once the window has dropped what it held."""
        return length >= self.length or self.length <= self.window

    def truncate(self, length: int) -> None:
        """Forgets everything after the first ``length`` entries; ``can_truncate`` says whether that is possible."""
        if length >= self.length:
            return
        self.places = self.places[:, :length]
        self.buffers = {name: entry[:, :, :length] for name, entry in self.buffers.items()}
        self.length = length

    def snapshot(self) -> Ring:
        """A copy that later appends do not touch. Appending never writes in place, so the tensors are shared."""
        copy = Ring(self.window)
        copy.buffers, copy.places, copy.length = dict(self.buffers), self.places, self.length
        return copy

    @property
    def nbytes(self) -> int:
        return sum(entry.numel() * entry.element_size() for entry in self.buffers.values())
