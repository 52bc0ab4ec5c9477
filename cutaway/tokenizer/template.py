"""Special tokens around an input of one text or two, and the segment of each part (BERT, 1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple


class Piece(NamedTuple):
    """An id or one of the texts, and the segment that it is in."""

    what: int | Literal["A", "B"]
    segment: int


class PairTemplate(NamedTuple):
    """The pieces of an input of two texts, and of one of a single text."""

    pair: tuple[Piece, ...]
    single: tuple[Piece, ...]

    def joined(self, first: Sequence[int], second: Sequence[int] | None) -> tuple[list[int], list[int]]:
        """The ids of an input, and the segment of each."""
        ids, segments = list[int](), list[int]()
        for what, segment in self.single if second is None else self.pair:
            own = [what] if isinstance(what, int) else first if what == "A" else second or ()
            ids += own
            segments += [segment] * len(own)
        return ids, segments

    @property
    def added(self) -> int:
        """How many ids are around two texts."""
        return sum(isinstance(what, int) for what, _ in self.pair)


def bert(begin: int, end: int) -> PairTemplate:
    """[begin] A [end] B [end], the second text and its end in a segment of their own."""
    first = (Piece(begin, 0), Piece("A", 0), Piece(end, 0))
    return PairTemplate((*first, Piece("B", 1), Piece(end, 1)), first)


def roberta(begin: int, end: int) -> PairTemplate:
    """<begin> A <end> <end> B <end>, all in one segment."""
    first = (Piece(begin, 0), Piece("A", 0), Piece(end, 0))
    return PairTemplate((*first, Piece(end, 0), Piece("B", 0), Piece(end, 0)), first)


PLAIN = PairTemplate((Piece("A", 0), Piece("B", 1)), (Piece("A", 0),))
