"""The runtime's KV cache of one text: keys and values of every layer, in pages of 128 positions."""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cutaway.native import step
from cutaway.runtime.adapter import AdapterPlan
from cutaway.runtime.edits import Edit
from cutaway.runtime.reference_state import emptied

# Pages made at once. What is never written takes no memory, and numpy asks the system for huge pages where a
# piece is large: attention over a long text reads those twice as fast.
PAGES_AT_ONCE = 4
KEPT = 512 << 20  # bytes of pages that no text uses any more, kept for texts to come
PIECE = 32 << 10  # halves written at once where pages are made ahead
LASTING = 2  # marks: of a conversation's last prompt, and of the one before, for when the last is taken back
Mark = tuple[int, np.ndarray]


class Pages:
    """The pages of an engine's texts, uint16 [halves]. One without references is used again.

    Memory that is new to the process takes longer to get, when it is first written, than a step of the model;
    so a server has some made ahead. What an earlier text left in a page is never read: a text reads what it
    has written. From any thread.
    """

    def __init__(self, halves: int, state_size: int = 0, first_length: int | None = None) -> None:
        self.halves = halves
        self.first_length = first_length  # past which a text rotates otherwise
        self.state_size = state_size  # floats of a text's state of recurrent layers
        self.most = KEPT // max(2 * halves, 1)  # free pages that are kept
        self._free: deque[tuple[np.ndarray, int]] = deque()  # pages written once: block, place
        self._new: deque[tuple[np.ndarray, int]] = deque()  # pages never written

    def take(self) -> np.ndarray:
        """A page."""
        for places in (self._free, self._new):
            with contextlib.suppress(IndexError):
                return self._page(*places.pop())
        return self._page(*self._made())

    def spare(self) -> int:
        """How many pages were written once and are free."""
        return len(self._free)

    def make(self, pause: Callable[[], None]) -> None:
        """One more, written in pieces with a pause after each, so that other threads are hardly held up
        meanwhile.
        """
        block, place = self._made()
        for start in range(0, self.halves, PIECE):
            block[place, start : start + PIECE] = 0
            pause()
        self._give_back(block, place)

    def _made(self) -> tuple[np.ndarray, int]:
        """A place that was not written yet."""
        with contextlib.suppress(IndexError):
            return self._new.pop()
        block = np.zeros((PAGES_AT_ONCE, self.halves), np.uint16)
        self._new.extend((block, place) for place in range(1, PAGES_AT_ONCE))
        return block, 0

    def _page(self, block: np.ndarray, place: int) -> np.ndarray:
        page = block[place]
        weakref.finalize(page, self._give_back, block, place).atexit = False
        return page

    def _give_back(self, block: np.ndarray, place: int) -> None:
        if len(self._free) < self.most:
            self._free.append((block, place))


class State:
    """The state of one text: the keys and values of every layer, 128 positions a page."""

    def __init__(self, store: Pages, adapter: AdapterPlan | None = None) -> None:
        self._store = store
        self.adapter = adapter
        self.adapter_address = None if adapter is None else adapter.address  # of its layers
        self.edits: tuple[Edit, ...] = ()  # of every token that is read into it
        self._pages: list[np.ndarray] = []
        self._borrowed = 0  # how many of them, from the first, others read too
        self.addresses = np.empty(0, np.uint64)
        self.length = 0
        self.recurrent = np.zeros(store.state_size, np.float32)
        # Of a draft, and lasting, the latest last: a length, and what the recurrence held there.
        self._marks = {lasting: deque[Mark](maxlen=kept) for lasting, kept in ((False, 1), (True, LASTING))}
        self.one: step.OneToken | None = None  # made when a token is first read alone
        # Where a longer text rotates otherwise (LongRoPE): what was read, to be read again; the length that
        # is announced; and how the pages are rotated, None where they differ.
        self.ids: list[int] = []
        self.announced = 0
        self.longer: bool | None = False

    @property
    def nbytes(self) -> int:
        """Bytes of its pages, and of the state of recurrent layers."""
        return sum(page.nbytes for page in self._pages) + self.recurrent.nbytes

    def fits(self, new: int) -> bool:
        """Whether its pages are rotated as the text will be with so many ids more."""
        first = self._store.first_length
        return first is None or self.longer == (max(self.length + new, self.announced) > first)

    def restart(self, new: int) -> list[int]:
        """Becomes empty, to be rotated as the text with so many ids more; gives what it held."""
        ids, self.ids = self.ids, []
        assert self._store.first_length is not None
        self.announced = max(len(ids) + new, self.announced)
        self.longer = self.announced > self._store.first_length
        self._pages, self._borrowed, self.length = [], 0, 0
        for marks in self._marks.values():
            marks.clear()
        self.addresses = np.empty(0, np.uint64)
        self.recurrent[:] = 0
        return ids

    def passed(self, ids: Sequence[int]) -> None:
        """These were read."""
        self.length += len(ids)
        if self._store.first_length is not None:
            self.ids += ids

    def reserve(self, length: int) -> None:
        """Makes the pages that hold this many positions."""
        while len(self._pages) * step.PAGE < length:
            self._pages.append(self._store.take())
        if len(self.addresses) != len(self._pages):
            self.addresses = np.array([page.ctypes.data for page in self._pages], np.uint64)

    def mark(self, lasting: bool = False) -> None:
        """Remembers what recurrent layers hold now, so that ``truncate`` can come back to it: the latest two
        marks that are ``lasting``, and the latest that is not.
        """
        if self.recurrent.size:
            self._marks[lasting].append((self.length, self.recurrent.copy()))

    def truncate(self, length: int) -> None:
        """Forgets what is after the first ``length`` positions. Recurrent layers come back to where they were
        marked last before that, and without a mark to the beginning.
        """
        marks = [mark for kind in self._marks.values() for mark in kind if mark[0] <= length]
        if marks and length < self.length:
            self.length, self.recurrent[:] = max(marks, key=lambda mark: mark[0])
        else:
            self.length = emptied(min(length, self.length), self.length, self.recurrent.size > 0)
        for kind in self._marks.values():
            while kind and kind[-1][0] > self.length:
                kind.pop()
        if self.length == 0:
            self.recurrent[:] = 0
        del self.ids[self.length :]
        self.announced = self.length
        del self._pages[-(-self.length // step.PAGE) :]
        if self.length // step.PAGE < min(self._borrowed, len(self._pages)):
            self._pages[-1] = self._pages[-1].copy()  # what is read next is written into it
        self._borrowed = min(self._borrowed, self.length // step.PAGE)
        self.addresses = np.array([page.ctypes.data for page in self._pages], np.uint64)

    @property
    def pages(self) -> tuple[np.ndarray, ...]:
        """Its pages, uint16."""
        return tuple(self._pages)

    def borrow(self, pages: Sequence[np.ndarray]) -> None:
        """Begins with these full pages of another's: what is read next goes to pages of its own."""
        self._pages, self._borrowed = list(pages), len(pages)
        self.length = len(pages) * step.PAGE
        self.reserve(self.length)

    def snapshot(self) -> State:
        """A copy that what is read later does not touch."""
        other = State(self._store, self.adapter)
        other._pages = [page.copy() for page in self._pages]
        other.reserve(len(self._pages) * step.PAGE)
        other.continues(self)
        other.recurrent[:] = self.recurrent
        return other

    def continues(self, other: State) -> None:
        """Share the pages of another text."""
        self.length, self.edits, self.ids = other.length, other.edits, list(other.ids)
        self.announced, self.longer = other.announced, other.longer


class Kept(NamedTuple):
    """A full page of a text that may rotate otherwise, and its ids."""

    page: np.ndarray
    ids: list[int]
    longer: bool | None
