"""Byte pair encoding: a piece of text is cut into symbols, and neighbours merge, the best pair first.

Sennrich et al. (arXiv:1508.07909); over bytes, as GPT-2 does it, when the symbols are the 256 bytes. The rule
of a merge: of all neighbouring pairs that have a rank, the one of lowest rank; of equal ranks the leftmost. A
rank comes from a list of learned pairs, or from the text that a pair makes (tiktoken by id, SentencePiece by
score). Symbols are strings: bytes are written as the 256 characters of GPT-2, so that every vocabulary is a
table of texts.

`train` learns the pairs: again and again, the most frequent pair of neighbours becomes a token.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

from cutaway.errors import UserError, quoted
from cutaway.tokenizer.cache import Cache

Pair = tuple[str, str]
Ranked = tuple[int, str]  # the rank of a pair, and the symbol that it becomes
RankOf = Callable[[Pair], Ranked | None]


def _byte_characters() -> str:
    """GPT-2's spelling: a byte that prints in Latin-1 is itself, the others are U+0100 and on, in order."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return "".join(chr(byte) if byte in prints else chr(next(others)) for byte in range(256))


BYTES = _byte_characters()
_FROM_LATIN = dict(enumerate(BYTES))
_TO_LATIN = {ord(character): byte for byte, character in enumerate(BYTES)}
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))


def spell(data: bytes) -> str:
    """Bytes in GPT-2's spelling, one character each."""
    return data.decode("latin-1").translate(_FROM_LATIN)


def unspell(text: str) -> bytes | None:
    """The bytes of a text in GPT-2's spelling, or None where a character spells no byte."""
    latin = text.translate(_TO_LATIN)
    if len(latin) != len(text) or any(ord(character) not in _TO_LATIN for character in text):
        return None
    return latin.encode("latin-1")


def merge(symbols: list[str], rank_of: RankOf, history: list[Pair] | None = None) -> list[str]:
    """Merge neighbours until no pair has a rank. O(n log n): a heap of (rank, place) over a linked list.

    `symbols` is used up. Each merge is appended to `history` as it happens.
    """
    size = len(symbols)
    living: list[str | None] = list(symbols)
    before, after = list(range(-1, size - 1)), list(range(1, size + 1))
    heap = []
    for place in range(size - 1):
        found = rank_of((symbols[place], symbols[place + 1]))
        if found is not None:
            heap.append(found[0] * size + place)
    heapify(heap)
    while heap:
        rank, place = divmod(heappop(heap), size)
        left, following = living[place], after[place]
        if left is None or following == size:
            continue
        right = living[following]
        found = rank_of((left, right)) if right is not None else None
        if found is None or found[0] != rank:  # the neighbours changed since this pair was noted
            continue
        if history is not None and right is not None:
            history.append((left, right))
        living[place], living[following] = found[1], None
        following = after[place] = after[following]
        if following < size:
            before[following] = place
            noted = rank_of((found[1], living[following] or ""))
            if noted is not None:
                heappush(heap, noted[0] * size + place)
        previous = before[place]
        if previous >= 0:
            noted = rank_of((living[previous] or "", found[1]))
            if noted is not None:
                heappush(heap, noted[0] * size + previous)
    return [symbol for symbol in living if symbol is not None]


def train(
    words: Mapping[str, int],
    alphabet: Sequence[str],
    size: int,
    min_frequency: int = 1,
    reserved: Collection[str] = (),
) -> list[Pair]:
    """The merges that `words` (each with its count) teach, until there are `size` tokens: the reference.

    Each round merges the most frequent pair, in every word from left to right. A word counts as often as it
    occurs, and overlapping places count too (two in "aaa"). Ties go to the lowest id of the left token, then
    of the right one. Ids follow the alphabet, then the order in which tokens were made. (Hugging Face's
    trainer has the same rule, with the alphabet sorted by code point.)

    No two pairs make the same text, because a text is merged in the same way wherever it occurs; so every
    merge makes a new token. Training ends early when no pair occurs `min_frequency` times. A character
    outside the alphabet merges with nothing, and no token in `reserved` is made.
    """
    ids = {symbol: id for id, symbol in enumerate(alphabet)}
    corpus = [(list(word), count) for word, count in words.items()]
    learned: list[Pair] = []
    while len(ids) < size:
        counts: Counter[Pair] = Counter()
        for symbols, count in corpus:
            for pair in pairwise(symbols):
                counts[pair] += count
        allowed = [
            (-count, ids[left], ids[right])
            for (left, right), count in counts.items()
            if left in ids and right in ids and left + right not in reserved
        ]
        rarest, left_id, right_id = min(allowed, default=(0, 0, 0))
        if -rarest < max(min_frequency, 1):
            break
        tokens = list(ids)
        left, right = tokens[left_id], tokens[right_id]
        ids[left + right] = len(ids)
        learned.append((left, right))
        corpus = [(replaced(symbols, (left, right), left + right), count) for symbols, count in corpus]
    return learned


def replaced(symbols: list[str], pair: Pair, made: str) -> list[str]:
    """Symbols with every occurrence of a pair made one, from left to right."""
    out: list[str] = []
    place = 0
    while place < len(symbols):
        both = symbols[place : place + 2] == [*pair]
        out.append(made if both else symbols[place])
        place += 2 if both else 1
    return out


def listed(merges: Iterable[Pair], ids: Mapping[str, int], hidden: frozenset[str] = frozenset()) -> RankOf:
    """Ranks by place in a list of learned pairs. Raises UserError for a pair that makes no token.

    Pairs that would make a `hidden` token are left out.
    """
    table: dict[Pair, Ranked] = {}
    for rank, pair in enumerate(merges):
        made = pair[0] + pair[1]
        if made not in ids:
            raise UserError(f"merge {rank} makes {quoted(made)}, which is no token of the vocabulary")
        if made not in hidden:
            table.setdefault(pair, (rank, made))
    return table.get


def joined(ranks: Mapping[str, int]) -> RankOf:
    """Ranks by the text that a pair makes: any two neighbours whose text is a token may merge."""
    table = {text: (rank, text) for text, rank in ranks.items()}
    get = table.get
    return lambda pair: get(pair[0] + pair[1])


def byte_ids(ids: Mapping[str, int]) -> dict[int, int]:
    """The ids of the byte tokens that a vocabulary has, by their bytes."""
    return {byte: ids[token] for byte, token in enumerate(BYTE_TOKENS) if token in ids}


def in_bytes(text: str, ids: Mapping[int, int]) -> list[int] | None:
    """A text in byte tokens; None where one is missing."""
    data = text.encode()
    return [ids[byte] for byte in data] if ids.keys() >= {*data} else None


class BPE:
    """A vocabulary and its merges: pieces of text to ids.

    `ids` are the tokens that text can come to. `bytewise`: symbols are bytes, else characters. `whole`: a
    piece that is a token is that token, whatever the merges say. A character that no token covers becomes its
    byte tokens if all of them are there (`fallback`), else `unknown`, once a run if `fuse`. A symbol in
    `unused` is cut back into what it was merged from. Bytes in `dropped` are left out before merging.
    `errors` as in `str.encode`: pieces may end inside a character.
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        rank_of: RankOf,
        *,
        bytewise: bool = True,
        whole: bool = False,
        fallback: bool = False,
        unknown: int | None = None,
        fuse: bool = False,
        unused: frozenset[str] = frozenset(),
        dropped: frozenset[str] = frozenset(),
        errors: str = "strict",
    ) -> None:
        self.ids = ids
        self.rank_of = rank_of
        self.bytewise = bytewise
        self.whole = whole
        self.unknown = unknown
        self.fuse = fuse
        self.unused = unused
        self.dropped = dropped
        self.errors = errors
        self.byte_ids = byte_ids(ids) if fallback else {}
        self.cache = Cache(self.encode)

    def spelt(self, piece: str) -> str:
        """A piece in the spelling of the vocabulary."""
        return spell(piece.encode("utf-8", self.errors)) if self.bytewise else piece

    def symbols(self, piece: str, history: list[Pair] | None = None) -> list[str]:
        """What a piece's symbols are after all merges, which `history` receives."""
        text = self.spelt(piece)
        if self.dropped and (absent := self.dropped.intersection(text)):
            self._warn(min(absent))
            text = "".join(character for character in text if character not in absent)
        if self.whole and text in self.ids:
            return [text]
        if not self.unused:
            return merge(list(text), self.rank_of, history)
        made: list[Pair] = [] if history is None else history
        return self._used(merge(list(text), self.rank_of, made), made)

    def encode(self, piece: str) -> list[int]:
        """The ids of one piece. What the vocabulary has no way to write is left out, with a warning."""
        out: list[int] = []
        waiting: list[int] = []  # the unknown token, which `tokenizers` writes before the next known symbol
        for symbol in self.symbols(piece):
            id = self.ids.get(symbol)
            if id is not None:
                out += [*waiting, id]
                waiting = []
            elif self.byte_ids and (spelt := in_bytes(symbol, self.byte_ids)) is not None:
                out += spelt
            elif self.unknown is None:
                self._warn(symbol)
            else:
                out += [] if self.fuse else waiting
                waiting = [self.unknown]
        return out + waiting

    def _warn(self, symbol: str) -> None:
        """Some vocabularies lack rare control bytes; the models' own tokenizers leave those out too."""
        lacking = f"byte 0x{(unspell(symbol) or b'?')[0]:02X}" if self.bytewise else repr(symbol)
        warnings.warn(
            f"the vocabulary has no token for {lacking}: it is left out, as in tokenizers and llama.cpp",
            RuntimeWarning,
            stacklevel=2,
        )

    def _used(self, symbols: list[str], history: list[Pair]) -> list[str]:
        origin = {left + right: (left, right) for left, right in history}
        out: list[str] = []
        waiting = symbols[::-1]
        while waiting:
            symbol = waiting.pop()
            if symbol in self.unused and symbol in origin:
                waiting += origin[symbol][::-1]
            else:
                out.append(symbol)
        return out
