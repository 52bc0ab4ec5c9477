"""Who may see whom, as a value: ``Causal() & Window(256)``. A path can read its structure and skip what is hidden;
``mask`` lowers it to a dense [b t s] boolean, which is the definition.

Positions are absolute; a position of -1 is padding, which nobody sees and which sees nobody. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Places:
    """Where tokens stand: ``pos`` Int[b n], and the document each belongs to when several are packed in a row."""

    pos: Int[Tensor, "b n"]
    documents: Int[Tensor, "b n"] | None = None


class Visibility:
    """A rule; ``&`` sees what both see, ``|`` what either sees."""

    def __and__(self, other: Visibility) -> And:
        return And(self, other)

    def __or__(self, other: Visibility) -> Or:
        return Or(self, other)

    def sees(self, query: Places, key: Places) -> Bool[Tensor, "b t s"]:
        raise NotImplementedError


@dataclass(frozen=True)
class And(Visibility):
    left: Visibility
    right: Visibility

    def sees(self, query: Places, key: Places) -> Bool[Tensor, "b t s"]:
        return self.left.sees(query, key) & self.right.sees(query, key)


@dataclass(frozen=True)
class Or(Visibility):
    left: Visibility
    right: Visibility

    def sees(self, query: Places, key: Places) -> Bool[Tensor, "b t s"]:
        return self.left.sees(query, key) | self.right.sees(query, key)


@dataclass(frozen=True)
class Causal(Visibility):
    """A token sees itself and what came before."""

    def sees(self, query: Places, key: Places) -> Bool[Tensor, "b t s"]:
        return key.pos[:, None, :] <= query.pos[:, :, None]


@dataclass(frozen=True)
class Window(Visibility):
    """A token sees ``size`` positions up to and including its own: j > i - size."""

    size: int

    def sees(self, query: Places, key: Places) -> Bool[Tensor, "b t s"]:
        return key.pos[:, None, :] > query.pos[:, :, None] - self.size


@dataclass(frozen=True)
class Sink(Visibility):
    """Everyone sees the first ``size`` positions (2309.17453)."""

    size: int

    def sees(self, query: Places, key: Places) -> Bool[Tensor, "b t s"]:
        return (key.pos[:, None, :] < self.size).expand(-1, query.pos.shape[1], -1)


def mask(visibility: Visibility, query: Places, key: Places) -> Bool[Tensor, "b t s"]:
    """True where query t sees key s: the rule, and not padding, and the same document."""
    seen = visibility.sees(query, key)
    seen = seen & (key.pos[:, None, :] >= 0) & (query.pos[:, :, None] >= 0)
    if query.documents is None or key.documents is None:
        return seen
    return seen & (query.documents[:, :, None] == key.documents[:, None, :])
