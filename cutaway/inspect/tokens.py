"""The tokens of a text and the merges that made them. Needs no torch, so `cutaway explain` shows it first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

PIECES = 3  # of a text, whose merges are listed


@dataclass(frozen=True)
class Token:
    """``bytes`` in hexadecimal; ``special``: a control token, which no text can spell."""

    position: int
    id: int
    text: str
    bytes: str
    special: bool


@dataclass(frozen=True)
class Merges:
    """A piece of the text, and the pairs that were joined to make its tokens, in order."""

    piece: str
    joined: tuple[tuple[str, str], ...]


def tokens(tokenizer: Any, ids: Sequence[int]) -> tuple[Token, ...]:
    """What each id stands for. Bytes that are no whole character are \\x escapes."""
    found = []
    for position, id in enumerate(ids):
        spelt = tokenizer.token_bytes(id)
        text = spelt.decode(errors="backslashreplace")
        found.append(Token(position, id, text, spelt.hex(" "), tokenizer.is_special(id)))
    return tuple(found)


def text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text that ids spell."""
    return b"".join(map(tokenizer.token_bytes, ids)).decode(errors="backslashreplace")


def merges(tokenizer: Any, ids: Sequence[int]) -> tuple[Merges, ...]:
    """The pieces of the text that took merges, most first; none if the tokenizer does not merge."""
    if not hasattr(tokenizer, "merges_of"):
        return ()
    found: dict[str, Merges] = {}
    for special, run in groupby(ids, tokenizer.is_special):
        for piece, pairs in () if special else _merged(tokenizer, list(run)):
            found[piece] = Merges(piece, tuple(pairs))
    return tuple(sorted((one for one in found.values() if one.joined), key=lambda one: -len(one.joined)))


def _merged(tokenizer: Any, ids: list[int]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The merges that lead to these ids, as text; none if the ids are not how their text is encoded."""
    whole = tokenizer.decode(ids)
    if tokenizer.encode(whole) != ids:
        return []
    return [
        (
            _spelt(tokenizer, piece),
            [(_spelt(tokenizer, left), _spelt(tokenizer, right)) for left, right in pairs],
        )
        for piece, pairs in tokenizer.merges_of(whole)
    ]


def _spelt(tokenizer: Any, symbols: str) -> str:
    """The text of a vocabulary's symbols, looked up whole or else one by one."""
    whole = tokenizer.id_of(symbols)
    ids = [whole] if whole is not None else [tokenizer.id_of(symbol) for symbol in symbols]
    return symbols if None in ids else text(tokenizer, ids)
