"""WordPiece, BERT's way (arXiv:1810.04805): a word as the longest tokens that fit, left to right.

Schuster & Nakajima, "Japanese and Korean voice search" (2012), gave the name. Text is cleaned
(`BertNormalizer`) and cut at white space and around every punctuation mark (`BertPreTokenizer`). Each word is
cut from left to right: the longest token that fits at its start, then the longest that continues it (written
with `##` in front), and so on. If a part of a word fits no token, or the word is very long, the whole word is
one unknown token.
"""

import string
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cutaway.tokenizer.cache import Cache
from cutaway.tokenizer.normalize import FORMS, lower
from cutaway.tokenizer.unicode import FORMAT, MARK, PUNCTUATION, points

CONTINUES = "##"
LONGEST_WORD = 100  # characters
# U+0085 is white space for Unicode; the cleaning, which comes first, takes it for a control character.
_SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
_BLANKS = frozenset(map(ord, _SPACES)) | {*range(0x2000, 0x200B)}
_LINES = frozenset(map(ord, "\t\n\r"))
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPiece:
    """A vocabulary, and `encode`: the ids of one word. A word that cannot be cut is `unknown`."""

    def __init__(
        self, ids: Mapping[str, int], unknown: int, *, continues: str = CONTINUES, longest: int = LONGEST_WORD
    ) -> None:
        self.ids = ids
        self.unknown = unknown
        self.continues = continues
        self.longest = longest
        self.reach = max(map(len, ids), default=0)
        self.cache = Cache(self.encode)

    def encode(self, word: str) -> list[int]:
        """The ids of one word."""
        if len(word) > self.longest:
            return [self.unknown]
        out: list[int] = []
        start = 0
        while start < len(word):
            found = self._longest_at(word, start)
            if found is None:
                return [self.unknown]
            id, start = found
            out.append(id)
        return out

    def _longest_at(self, word: str, start: int) -> tuple[int, int] | None:
        """The longest token that goes on at `start`, and where it ends."""
        front = self.continues if start else ""
        for stop in range(min(len(word), start + self.reach), start, -1):
            id = self.ids.get(front + word[start:stop])
            if id is not None:
                return id, stop
        return None


@dataclass(frozen=True)
class BertNormalizer:
    """BERT's cleaning of text: controls out, one kind of space, ideographs apart, accents off, lower case.

    `strip_accents` None means "where `lowercase` is".
    """

    clean_text: bool = True
    handle_chinese_chars: bool = True
    strip_accents: bool | None = None
    lowercase: bool = True

    def __call__(self, text: str, first: bool, last: bool) -> str:
        if self.clean_text:
            text = text.translate(_CLEAN)
        if self.handle_chinese_chars:
            text = text.translate(_APART)
        if self.lowercase if self.strip_accents is None else self.strip_accents:
            text = FORMS["NFD"](text, True, True).translate(_PLAIN)
        return text.translate(_LOWER) if self.lowercase else text


@dataclass(frozen=True)
class BertPreTokenizer:
    """Cuts at white space, which is dropped, and on both sides of every punctuation mark."""

    def __call__(self, pieces: list[str], first: bool) -> list[str]:
        return [word for piece in pieces for word in piece.translate(_CUT).split("\n") if word]


class _Characters(dict[int, str | None]):
    """A table for str.translate, each entry found out by `rule` when its character is first met."""

    def __init__(self, rule: Callable[[str], str | None]) -> None:
        super().__init__()
        self.rule = rule

    def __missing__(self, code: int) -> str | None:
        self[code] = made = self.rule(chr(code))
        return made


def _cleaned(character: str) -> str | None:
    code = ord(character)
    if code in _LINES:
        return " "
    if code == 0xFFFD or code in points("8.0", FORMAT) or unicodedata.category(character) in ("Cc", "Co"):
        return None
    return " " if code in _BLANKS else character


def _apart(character: str) -> str:
    chinese = any(first <= ord(character) <= last for first, last in _CHINESE)
    return f" {character} " if chinese else character


def _cut(character: str) -> str:
    """A line feed marks a cut: it is white space itself, so that it is in no piece."""
    if ord(character) in _BLANKS:
        return "\n"
    apart = character in string.punctuation or ord(character) in points("8.0", PUNCTUATION)
    return f"\n{character}\n" if apart else character


_CLEAN, _APART, _CUT = _Characters(_cleaned), _Characters(_apart), _Characters(_cut)
_PLAIN = _Characters(lambda character: None if ord(character) in points("8.0", MARK) else character)
_LOWER = _Characters(lower)
