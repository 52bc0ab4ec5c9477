"""A KV cache in pages of a common pool (PagedAttention, 2309.06180), shared by equal beginnings.

A page holds the entries of a fixed number of tokens. A snapshot takes no memory: it counts one more user of
each page. A state that writes into a page with other users copies it first. A page without users is reused.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from cutaway.attention.state.entries import Entries, refuse_gradients
from cutaway.errors import UserError
from cutaway.shapes import Int

FIRST_PAGES = 16  # in a new pool


class Pool:
    """Pages of ``page`` tokens for the states of one layer, whose entries have the same shapes."""

    def __init__(self, page: int = 16) -> None:
        if page < 1:
            raise UserError(f"a page of {page} tokens holds nothing: it must be 1 or more")
        self.page = page
        self.buffers: Entries = {}  # [pages, g, page, e]
        self.positions = torch.empty(0, page, dtype=torch.long)
        self.users: list[int] = []

    def take(self, count: int, entries: Entries, pos: Tensor) -> list[int]:
        """The numbers of ``count`` pages without users; each now has one."""
        free = [n for n, users in enumerate(self.users) if not users]
        if len(free) < count:
            free += self._grow(max(count - len(free), len(self.users), FIRST_PAGES), entries, pos)
        for n in free[:count]:
            self.users[n] = 1
            self.positions[n] = -1
        return free[:count]

    def _grow(self, more: int, entries: Entries, pos: Tensor) -> list[int]:
        start = len(self.users)
        self.users += [0] * more
        self.positions = torch.cat((self.positions.to(pos.device), pos.new_full((more, self.page), -1)))
        for name, entry in entries.items():
            new = entry.new_zeros(more, entry.shape[1], self.page, entry.shape[3])
            self.buffers[name] = torch.cat((self.buffers[name], new)) if name in self.buffers else new
        return list(range(start, start + more))

    def release(self, pages: list[list[int]]) -> None:
        """Count one user less of each page."""
        for row in pages:
            for n in row:
                self.users[n] -= 1

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use, each counted once."""
        used = sum(users > 0 for users in self.users)
        return sum(used * entry[0].numel() * entry.element_size() for entry in self.buffers.values())


class Paged:
    """Keeps every token, in pages of a pool that it shares with others."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.length = 0
        self.pages: list[list[int]] = []  # for each row of the batch
        weakref.finalize(self, pool.release, self.pages)  # frees the pages with the state

    def append(self, entries: Entries, pos: Int[Tensor, "b t"]) -> tuple[Entries, Int[Tensor, "b s"]]:
        refuse_gradients(entries)
        if not self.pages:
            self.pages += [[] for _ in range(pos.shape[0])]
        if len(self.pages) != pos.shape[0]:
            raise UserError(
                f"this state holds a batch of {len(self.pages)}, it cannot take one of {pos.shape[0]}"
            )
        end, page = self.length + pos.shape[1], self.pool.page
        for row in self.pages:
            self._own_last(row, entries, pos)
            row += self.pool.take(-(-end // page) - len(row), entries, pos)
        slots = torch.arange(self.length, end, device=pos.device)
        table = torch.tensor(self.pages, device=pos.device)
        pages, offsets = table[:, slots // page], (slots % page).expand(len(self.pages), -1)
        for name, entry in entries.items():
            self.pool.buffers[name][pages, :, offsets] = entry.transpose(1, 2)
        self.pool.positions[pages, offsets] = pos
        self.length = end
        return self._view(table)

    def _own_last(self, row: list[int], entries: Entries, pos: Tensor) -> None:
        """Copy a half-filled last page that has other users, before it is written."""
        if self.length % self.pool.page == 0 or self.pool.users[row[-1]] == 1:
            return
        (copy,) = self.pool.take(1, entries, pos)
        for buffer in (*self.pool.buffers.values(), self.pool.positions):
            buffer[copy] = buffer[row[-1]]
        self.pool.users[row[-1]] -= 1
        row[-1] = copy

    def _view(self, table: Tensor) -> tuple[Entries, Int[Tensor, "b s"]]:
        entries = {
            name: buffer[table].transpose(1, 2).flatten(2, 3)[:, :, : self.length]
            for name, buffer in self.pool.buffers.items()
        }
        return entries, self.pool.positions[table].flatten(1)[:, : self.length]

    def can_truncate(self, length: int) -> bool:
        """Always."""
        return True

    def truncate(self, length: int) -> None:
        """Drop everything after the first ``length`` entries, and release the pages that held only those."""
        if length >= self.length:
            return
        kept = -(-length // self.pool.page)
        self.pool.release([row[kept:] for row in self.pages])
        for row in self.pages:
            del row[kept:]
        self.length = length

    def snapshot(self) -> Paged:
        """A copy that shares all pages until one of the two writes into one."""
        copy = Paged(self.pool)
        copy.pages += [list(row) for row in self.pages]
        copy.length = self.length
        for row in self.pages:
            for n in row:
                self.pool.users[n] += 1
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of the entries in use, shared ones too; ``Pool.nbytes`` counts what is allocated."""
        tokens = self.length * len(self.pages)
        return sum(
            tokens * entry[0, :, 0].numel() * entry.element_size() for entry in self.pool.buffers.values()
        )
