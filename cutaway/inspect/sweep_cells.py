"""The cells of a sweep, a text and what it has otherwise each, and what reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from cutaway.inspect.instrumented import Values

WHOLE = 32  # whole texts at once


class Setting(NamedTuple):
    """A value that is set at ``positions``: ``rows`` [p n] of one head, or [p ...] of the value as a whole.

    Of an attention pattern each row holds the weights on the text up to its position, and zeros.
    """

    name: str
    rows: np.ndarray
    positions: Sequence[int]
    head: int | None = None

    @property
    def layer(self) -> int:
        return 0 if self.name == "embed" else int(self.name.split(".")[1])

    @property
    def what(self) -> str:
        return self.name if self.name == "embed" else self.name.split(".", 2)[2]


class Cell(NamedTuple):
    """The number of a text, and what it has otherwise."""

    text: int
    settings: Sequence[Setting]

    @property
    def first(self) -> int:
        """The first position at which it differs from its text."""
        return min(min(one.positions) for one in self.settings)

    @property
    def layer(self) -> int:
        """The first layer at which it differs from its text."""
        return min(one.layer for one in self.settings)


class Seen(NamedTuple):
    """The output of a cell: logits, [v] at one position or [t v], and values by name."""

    logits: np.ndarray
    values: Values


@runtime_checkable
class Sweep(Protocol):
    """Texts under a subject's edits, and cells of them."""

    def batches(self, cells: Sequence[Cell]) -> list[list[int]]:
        """The cells as lists of their numbers, each of which ``run`` reads together."""
        ...

    def run(
        self,
        cells: Sequence[Cell],
        names: Sequence[str] = (),
        position: int | None = None,
        tokens: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Seen]]:
        """Each cell's number and what is seen of it, in any order. Logits are those at a ``position`` of
        ``tokens``; None is all.
        """
        ...
