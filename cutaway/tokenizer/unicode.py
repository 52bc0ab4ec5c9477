"""The versions of Unicode by which text is cut, whatever version Python and the `regex` package carry.

tiktoken and Hugging Face's tokenizers cut by Unicode 16.0, and a character that was a letter to a model's
tokenizer is one here. `regex` moves on to each new version; so a character that it sees in another class than
16.0 does is shown to it as one that has the wanted class in both: the pattern then matches as the model's own
engine would have it. BERT's rules are those of Unicode 8.0 and 9.0 in `tokenizers`: a letter that came later
is no mark and no punctuation for them.

A table is a file, `unicode-VERSION.inc`, that the native core includes as it is. That of 16.0 is read off
both engines (scripts/tables/unicode_tables.py); tests ask `tokenizers` about every code point of the others.
"""

import re
from bisect import bisect_left
from functools import cache
from itertools import pairwise
from pathlib import Path

from cutaway.errors import UserError

CLASSES = (r"[\p{Lu}\p{Lt}]", r"\p{Ll}", r"[\p{Lm}\p{Lo}]", r"\p{M}", r"\p{N}", r"\p{P}", r"\p{S}", r"\s")
MARK, PUNCTUATION, FORMAT = 4, 6, 9  # numbers of classes: from 1 on their places in CLASSES, then Cf


@cache
def runs(version: str) -> list[tuple[int, int, int]]:
    """Each run of code points of one class: its first, the one behind its last, and the class; 0 for none."""
    text = Path(__file__).with_name(f"unicode-{version}.inc").read_text("ascii")
    words = [int(word, 16) for word in re.findall("0x[0-9a-f]+", text)]
    return [(word >> 4, next >> 4, word & 15) for word, next in pairwise([*words, 0x110000 << 4])]


@cache
def points(version: str, number: int) -> frozenset[int]:
    """The code points of a class."""
    return frozenset(code for start, stop, of in runs(version) if of == number for code in range(start, stop))


@cache
def classes() -> bytes:
    """The class of every code point in 16.0, a byte each."""
    return b"".join(bytes([number]) * (stop - start) for start, stop, number in runs("16.0"))


@cache
def stand_ins() -> dict[int, str]:
    """For each code point that `regex` sees in another class, the nearest one of the right class in both."""
    import regex

    theirs = bytearray(0x110000)
    every = "".join(map(chr, range(0x110000)))
    for number, pattern in enumerate(CLASSES, 1):
        for found in regex.finditer(f"{pattern}+", every):
            theirs[found.start() : found.end()] = bytes([number]) * (found.end() - found.start())
    ours = classes()
    differing = [code for code in range(0x110000) if ours[code] != theirs[code]]
    good: dict[int, list[int]] = {number: [] for number in range(len(CLASSES) + 1)}
    for code in range(0x110000):
        if ours[code] == theirs[code] and not 0xD800 <= code < 0xE000:
            good[ours[code]].append(code)
    return {code: chr(_nearest(good[ours[code]], code)) for code in differing}


def shown(text: str) -> str:
    """A text of the same length as `regex` is to see it."""
    return text if text.isascii() else text.translate(stand_ins())


def utf8(text: str, what: str) -> bytes:
    """A text as UTF-8. Raises UserError, which names `what`, where it holds half a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as problem:
        place, half = problem.start, ord(text[problem.start])
        raise UserError(
            f"{what} holds half a surrogate pair (U+{half:04X}) at character {place}, which is no text"
        ) from None


def _nearest(codes: list[int], code: int) -> int:
    place = bisect_left(codes, code)
    return min(codes[max(0, place - 1) : place + 1], key=lambda other: abs(other - code))
