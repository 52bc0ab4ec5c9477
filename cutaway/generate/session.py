"""An engine's state and the ids it holds: a conversation's next prompt reads only what is new."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.generate.engine import Engine, Rewindable, Rewinding

EditHooks = Callable[[int], Mapping[str, Callable[[Any], Any]]] | Sequence[Any]
"""Edits of a model's activations as its engine takes them: for a forward pass that begins at a position, the
hooks by activation (the PyTorch model), or ``runtime/values.py``'s edits in their order (the runtime)."""

See = Callable[[int, Mapping[str, np.ndarray]], None]
WATCHED = 512  # ids that are read at once while values are shown
RETOLD = 16  # ids at a prompt's end that the next prompt may have otherwise, such as where thinking begins


def _unwatched(start: int, values: Mapping[str, np.ndarray]) -> None:
    """Nothing is watched."""


class Session:
    """One text's state across calls: each prompt reuses the prefix that it shares with the last.

    After an interrupted call the state is discarded: the next prompt is read from its beginning. A recurrence
    forgets no id. So where prompts are to follow (``lasting``), the state is marked a little before the end
    of each, and the next one reads on from there, or from the mark before where the last was taken back.
    """

    def __init__(self, engine: Engine, edit: EditHooks | None = None, lasting: bool = False) -> None:
        self.engine: Any = engine
        self.edit = edit
        self._recurrent = lasting and isinstance(engine, Rewinding) and engine.no_rewinding() is not None
        self._watches: Sequence[str] = ()
        self._see: See = _unwatched
        self._wanted = 0
        self._reset()

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids in the state, in order."""
        return tuple(self._ids)

    @property
    def reading(self) -> tuple[int, int]:
        """How many ids the state holds, and how many the prompt has that is read: for another thread."""
        return self._state.length, self._wanted

    def watch(self, names: Sequence[str], see: See = _unwatched) -> None:
        """Observe these values of all ids that are read from now on: rows from a position on."""
        self._watches, self._see = names, see

    def prefill(self, ids: Sequence[int]) -> tuple[np.ndarray, int]:
        """Make the state hold exactly these ids: logits float32 [v] of the last, and how many were read."""
        kept = marked = self._reuse(ids)
        self._consistent, self._wanted = False, len(ids)
        if self._recurrent and kept < len(ids) - RETOLD:
            marked = len(ids) - RETOLD
            self._read(ids[kept:marked])
            self.engine.mark(self._state, lasting=True)
        logits = self._read(ids[marked:])
        self._ids = list(ids)
        self._consistent = True
        return logits, len(ids) - kept

    def _read(self, ids: Sequence[int]) -> np.ndarray:
        """Read ids: logits float32 [v] of the last."""
        return self._watched(ids, 1)[0] if self._watches else self.engine.prefill(ids, self._state)

    def step(self, id: int) -> np.ndarray:
        """Read one more id: logits float32 [v]."""
        self._consistent = False
        logits = self._watched([id], 1)[0] if self._watches else self.engine.step(id, self._state)
        self._ids.append(id)
        self._consistent = True
        return logits

    def prefill_all_logits(self, ids: Sequence[int]) -> np.ndarray:
        """Read more ids, by an engine that ``AllLogits``: logits float32 [k v] after each of them."""
        self._consistent = False
        if self._watches:
            logits = self._watched(ids, len(ids))
        else:
            logits = self.engine.prefill_all_logits(ids, self._state)
        self._ids.extend(ids)
        self._consistent = True
        return logits

    def _watched(self, ids: Sequence[int], last: int) -> np.ndarray:
        """Read ids and show what is watched: logits float32 [last v]."""
        found = []
        for start in range(0, len(ids), WATCHED):
            chunk, at = ids[start : start + WATCHED], self._state.length
            first = max(0, len(ids) - last - start)
            logits, values = self.engine.observe(
                [chunk], [self._state], self._watches, range(min(first, len(chunk)), len(chunk))
            )
            self._see(at, values)
            found.append(logits)
        return np.concatenate(found)

    def mark(self) -> None:
        """Before a draft is read: a recurrence can come back to what it holds now."""
        mark = getattr(self.engine, "mark", None)  # by name: isinstance of the protocol `Rewinding` is slow
        if mark is not None:
            mark(self._state)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` ids; where the state cannot be rewound, they are read again."""
        if length < len(self._ids) and not self._rewind(length):
            kept = self._ids[:length]
            self._reset()
            self.prefill(kept)

    def storable(self, length: int) -> Any | None:
        """A state of its first ids, at most so many, for a file; None where it has none. Of attention alone
        these are its full pages, which an interrupted call leaves as they are, unless a longer text rotates
        them otherwise. A recurrence must be at that length, or have been marked before it.
        """
        if self.engine.grid == 1:
            full = min(length, len(self._ids), self._state.length) // self.engine.page
            pages = [self.engine.keep(self._state, n) for n in range(full)]
            lasting = self._consistent or all(isinstance(page, np.ndarray) for page in pages)
            return self.engine.resume(pages) if pages and lasting else None
        if not self._consistent or (length < len(self._ids) and not self._rewind(length)):
            return None
        return self._state if self._ids else None

    def begin(self, ids: Sequence[int], state: Any) -> None:
        """Hold a state that has read these ids, in place of what it holds."""
        self._state, self._ids, self._consistent = state, list(ids), True
        if self._recurrent:
            self.engine.mark(state, lasting=True)

    def _reuse(self, ids: Sequence[int]) -> int:
        """Drop what differs from these ids, and the last, whose logits are needed: how many ids are kept."""
        shared = common_prefix(self._ids, ids[:-1])
        trusted = self._consistent and self._state.length == len(self._ids)
        if not trusted or (shared < len(self._ids) and not self._rewind(shared)):
            self._reset()
        return len(self._ids)

    def _rewind(self, length: int) -> bool:
        if length == 0 or not isinstance(self._state, Rewindable):
            return False
        try:
            self._state.truncate(length)
        except UserError:  # a sliding window has dropped what the shorter text needs
            return False
        held: Any = self._state
        del self._ids[held.length :]  # of a recurrence fewer: it came back to where it was marked
        return True

    def _reset(self) -> None:
        self._state = self.engine.new_state() if self.edit is None else self.engine.edited_state(self.edit)
        self._ids: list[int] = []
        self._consistent = True


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))
