"""How a text becomes its tokens: each piece that is encoded alone, with its merges or its best path."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from cutaway.tokenizer.bpe import BPE, Pair
from cutaway.tokenizer.unigram import Edge, Unigram


@runtime_checkable
class Encoding(Protocol):
    """What is asked of a tokenizer."""

    @property
    def plain(self) -> Any: ...

    def count(self, text: str, /) -> int: ...

    def token_text(self, id: int, /) -> str: ...


@dataclass(frozen=True)
class Piece:
    """A piece of a text in the vocabulary's spelling, and its ids.

    `merges` are BPE's, in the order in which they happened; `path` is Unigram's best cut.
    """

    text: str
    ids: tuple[int, ...]
    merges: tuple[Pair, ...] = ()
    path: tuple[Edge, ...] = ()

    def states(self) -> list[list[str]]:
        """The piece's symbols from the beginning to the end, one list a merge."""
        symbols = list(self.text)
        out = [symbols]
        for left, right in self.merges:
            at = next(i for i in range(len(symbols)) if symbols[i : i + 2] == [left, right])
            symbols = [*symbols[:at], left + right, *symbols[at + 2 :]]
            out.append(symbols)
        return out


def pieces(tokenizer: Encoding, text: str) -> list[Piece]:
    """Each piece of a text with what happened in it; nothing in it becomes a control token."""
    tokenizer.count(text)  # refuses what is no text
    encoder = tokenizer.plain
    out: list[Piece] = []
    for part in encoder.cut(encoder.segments(text)):
        if isinstance(part, int):
            out.append(Piece(tokenizer.token_text(part), (part,)))
        else:
            out += [_piece(encoder.model, text) for text in part]
    return out


def _piece(model: object, text: str) -> Piece:
    match model:
        case BPE():
            history: list[Pair] = []
            model.symbols(text, history)
            return Piece(model.spelt(text), tuple(model.encode(text)), merges=tuple(history))
        case Unigram():
            return Piece(text, tuple(model.encode(text)), path=tuple(model.best(text)))
    return Piece(text, tuple(model.encode(text)))  # pyright: ignore[reportAttributeAccessIssue]
