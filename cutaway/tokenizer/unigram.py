"""Unigram (Kudo, arXiv:1804.10959): of all ways to cut a text into pieces, the most probable one.

Each piece has a score, the logarithm of its probability; pieces are taken to be independent, so that a cut's
score is the sum of its pieces'. The best cut is found by dynamic programming (Viterbi) over the places
between characters: the best way to reach a place goes through the best way to reach the beginning of its last
piece. A character that no piece covers alone may be unknown, at PENALTY below the worst piece, and the
unknown ones side by side are one token, or their bytes.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cutaway.tokenizer.bpe import byte_ids, in_bytes
from cutaway.tokenizer.cache import Cache

PENALTY = 10.0
LONGEST_PIECE = 1000  # characters: every length that pieces have is tried at every place


@dataclass(frozen=True)
class Edge:
    """The characters start to stop as a piece with its score; not `known` if no token covers it."""

    start: int
    stop: int
    score: float
    known: bool


class Unigram:
    """The pieces and their scores, and `encode`: the ids of a text.

    `pieces` are those that text can come to, `ids` every token's id, `worst` the score that PENALTY is
    counted from. With `single`, sums are rounded to 32 bits as SentencePiece's are, else they have 64 as in
    `tokenizers`: of nearly equal cuts each takes its own. `fallback`: an unknown character becomes its byte
    tokens if all of them are there, else `unknown`; a run of them that is in `beyond` is that id.
    """

    def __init__(
        self,
        pieces: Mapping[str, float],
        ids: Mapping[str, int],
        *,
        worst: float | None = None,
        unknown: int | None = None,
        fallback: bool = False,
        single: bool = False,
        beyond: Mapping[str, int] | None = None,
    ) -> None:
        self.pieces = pieces
        self.beyond = beyond or {}
        self.ids = ids
        self.unknown = unknown
        self.unknown_score = (min(pieces.values(), default=0.0) if worst is None else worst) - PENALTY
        self.single = single
        self.sizes = _sizes(pieces)
        self.byte_ids = byte_ids(ids) if fallback else {}
        self.cache = Cache(self.encode)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, along its best cut."""
        out: list[int] = []
        unknown = ""
        for edge in self.best(text):
            piece = text[edge.start : edge.stop]
            if not edge.known:
                unknown += piece
                continue
            out += [*self._lacking(unknown), self.ids[piece]]
            unknown = ""
        return out + self._lacking(unknown)

    def best(self, text: str) -> list[Edge]:
        """The best cut: of equal ones, the one whose last piece begins first."""
        kind, size = ("f", 4) if self.single else ("d", 8)
        score, total = array(kind, bytes(size * (len(text) + 1))), array(kind, bytes(size))
        through: list[Edge | None] = [None] * (len(text) + 1)
        for start in range(len(text)):
            for edge in self.edges(text, start):
                total[0] = edge.score + score[start]  # rounded to the kind, as it is compared
                if through[edge.stop] is None or total[0] > score[edge.stop]:
                    through[edge.stop] = edge
                    score[edge.stop] = total[0]
        path: list[Edge] = []
        place = len(text)
        while place and (edge := through[place]) is not None:
            path.append(edge)
            place = edge.start
        return path[::-1]

    def edges(self, text: str, start: int) -> Iterator[Edge]:
        """The pieces at a place, shortest first, and the unknown character where none is just it."""
        covered = False
        for size in self.sizes.get(text[start], ()):
            stop = start + size
            if stop > len(text):
                break
            score = self.pieces.get(text[start:stop])
            if score is not None:
                covered = covered or stop == start + 1
                yield Edge(start, stop, score, True)
        if not covered:
            yield Edge(start, start + 1, self.unknown_score, False)

    def _lacking(self, text: str) -> list[int]:
        """The ids of characters that no piece covers."""
        if not text:
            return []
        if self.byte_ids and (spelt := in_bytes(text, self.byte_ids)) is not None:
            return spelt
        id = self.beyond.get(text, self.unknown)
        return [] if id is None else [id]


def _sizes(pieces: Mapping[str, float]) -> dict[str, list[int]]:
    """The lengths of the pieces that begin with each character, in order."""
    sizes: dict[str, set[int]] = {}
    for piece in pieces:
        if piece:
            sizes.setdefault(piece[0], set()).add(len(piece))
    return {first: sorted(found) for first, found in sizes.items()}
