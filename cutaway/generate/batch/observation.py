"""Activations of a prompt's tokens, kept while the scheduler reads it in chunks beside other texts.

An engine shows the values of a step's tokens; what is kept of them is what was asked for: some positions, and
what ``select`` takes of a token's value (some heads). So a long prompt takes no more memory than its answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

LOGITS = "logits"
# [h s] over the text up to a token, apart from values
LOOKS = (".attention.pattern", ".attention.scores", ".attention.chosen")


class Observation:
    """Requested activations of a prompt, and those computed so far: ``rows`` by name, a row a position.

    ``positions`` are in order; every name's rows are float32 [...], of attention weights and scores [h s]
    over the text up to the token. ``logits`` float32 [v] are those after the prompt. A step reads at most
    ``chunk`` ids.
    """

    def __init__(
        self,
        names: Sequence[str],
        positions: Sequence[int],
        select: Callable[[str, np.ndarray], np.ndarray] = lambda name, row: row,
        chunk: int = 512,
    ) -> None:
        self.names, self.positions, self.chunk = tuple(names), list(positions), chunk
        self.rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self.logits: np.ndarray | None = None
        self._select = select

    @property
    def looks(self) -> list[tuple[int, int]]:
        """The layers whose attention is asked for: its weights (0) or its scores (1)."""
        asked = [name for name in self.names if name.endswith(LOOKS)]
        kinds = [next(n for n, look in enumerate(LOOKS) if name.endswith(look)) for name in asked]
        return [(int(name.split(".")[1]), kind) for name, kind in zip(asked, kinds, strict=True)]

    @property
    def values(self) -> list[str]:
        """The names of what an engine shows a row a token of."""
        return [name for name in self.names if name != LOGITS and not name.endswith(LOOKS)]

    @property
    def first(self) -> int:
        """The first position that is asked for; pages before it need not be read again."""
        return self.positions[0] if self.positions else 1 << 62

    def within(self, start: int, count: int) -> list[int]:
        """The observed ones of ``count`` tokens from position ``start`` on, by index."""
        low, high = (bisect_left(self.positions, at) for at in (start, start + count))
        return [at - start for at in self.positions[low:high]]

    def add(self, name: str, row: np.ndarray) -> None:
        """Keep what is selected of the next position's value, as a copy."""
        self.rows[name].append(np.array(self._select(name, row), np.float32))
