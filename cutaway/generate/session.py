"""An engine's state and the ids it holds, so that what was read once is not read again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.generate.engine import Engine, Rewindable

Edited = Callable[[int], Mapping[str, Callable[[Any], Any]]]
"""Changes of a model's activations: the listeners, by name, of a forward pass that begins at a position."""


class Session:
    """An engine's state and the ids it has read, so that a conversation's next prompt reads only what is new.

    After an interrupted call the state is not trusted: the next prompt is read from its beginning.
    """

    def __init__(self, engine: Engine, edit: Edited | None = None) -> None:
        self.engine: Any = engine
        self.edit = edit
        self._fresh()

    @property
    def ids(self) -> tuple[int, ...]:
        """What the state holds, in order."""
        return tuple(self._ids)

    def read(self, ids: Sequence[int]) -> tuple[np.ndarray, int]:
        """Make the state hold exactly these ids: logits float32 [v] of the last, and how many were read."""
        kept = self._keep(ids)
        self._whole = False
        logits = self.engine.prefill(ids[kept:], self._state)
        self._ids = list(ids)
        self._whole = True
        return logits, len(ids) - kept

    def step(self, id: int) -> np.ndarray:
        """Read one more id: logits float32 [v]."""
        self._whole = False
        logits = self.engine.step(id, self._state)
        self._ids.append(id)
        self._whole = True
        return logits

    def prefill_all_logits(self, ids: Sequence[int]) -> np.ndarray:
        """Read more ids, by an engine that ``AllLogits``: logits float32 [k v] after each of them."""
        self._whole = False
        logits = self.engine.prefill_all_logits(ids, self._state)
        self._ids.extend(ids)
        self._whole = True
        return logits

    def forget(self, length: int) -> None:
        """Keep the first ``length`` ids; where the state cannot forget, they are read anew."""
        if length < len(self._ids) and not self._truncate(length):
            kept = self._ids[:length]
            self._fresh()
            self.read(kept)

    def _keep(self, ids: Sequence[int]) -> int:
        """Forget what differs from these ids, and the last, whose logits are wanted: how many are kept."""
        shared = _shared(self._ids, ids[:-1])
        trusted = self._whole and self._state.length == len(self._ids)
        if not trusted or (shared < len(self._ids) and not self._truncate(shared)):
            self._fresh()
        return len(self._ids)

    def _truncate(self, length: int) -> bool:
        if length == 0 or not isinstance(self._state, Rewindable):
            return False
        try:
            self._state.truncate(length)
        except UserError:  # a window has dropped what the shorter text needs
            return False
        del self._ids[length:]
        return True

    def _fresh(self) -> None:
        self._state = self.engine.new_state() if self.edit is None else self.engine.edited_state(self.edit)
        self._ids: list[int] = []
        self._whole = True


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two texts begin with together."""
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))
