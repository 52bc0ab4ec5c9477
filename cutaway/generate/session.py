"""An engine's state and the ids it holds: a conversation's next prompt reads only what is new."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.generate.engine import Engine, Rewindable

EditHooks = Callable[[int], Mapping[str, Callable[[Any], Any]]] | Sequence[Any]
"""Edits of a model's activations as its engine takes them: for a forward pass that begins at a position, the
hooks by activation (the PyTorch model), or ``runtime/values.py``'s edits in their order (the runtime)."""

See = Callable[[int, Mapping[str, np.ndarray]], None]
WATCHED = 512  # ids that are read at once while values are shown


def _unwatched(start: int, values: Mapping[str, np.ndarray]) -> None:
    """Nothing is watched."""


class Session:
    """One text's state across calls: each prompt reuses the prefix that it shares with the last.

    After an interrupted call the state is discarded: the next prompt is read from its beginning.
    """

    def __init__(self, engine: Engine, edit: EditHooks | None = None) -> None:
        self.engine: Any = engine
        self.edit = edit
        self._watches: Sequence[str] = ()
        self._see: See = _unwatched
        self._reset()

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids in the state, in order."""
        return tuple(self._ids)

    def watch(self, names: Sequence[str], see: See = _unwatched) -> None:
        """Observe these values of all ids that are read from now on: rows from a position on."""
        self._watches, self._see = names, see

    def prefill(self, ids: Sequence[int]) -> tuple[np.ndarray, int]:
        """Make the state hold exactly these ids: logits float32 [v] of the last, and how many were read."""
        kept = self._reuse(ids)
        self._consistent = False
        new = ids[kept:]
        logits = self._watched(new, 1)[0] if self._watches else self.engine.prefill(new, self._state)
        self._ids = list(ids)
        self._consistent = True
        return logits, len(ids) - kept

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

    def full_pages(self) -> list[Any]:
        """Its full pages, by an engine that stores them; none of a recurrence, whose state is at the end."""
        if self.engine.grid != 1 or not self._consistent:
            return []
        return [self.engine.keep(self._state, n) for n in range(len(self._ids) // self.engine.page)]

    def begin(self, ids: Sequence[int], pages: Sequence[Any]) -> None:
        """Hold the pages that begin these ids, in place of what it holds."""
        self._state = self.engine.resume(pages)
        self._ids, self._consistent = list(ids[: self._state.length]), True

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
