"""Normalisation: what is done to the characters of a text before it is cut and encoded."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from cutaway.errors import UserError
from cutaway.tokenizer.pretokenize import compiled, seconds_left, time_limit
from cutaway.tokenizer.unicode import MARK, points, runs

MOST_GROWN = 64  # times; Unicode's own forms make at most 18 characters of one
LARGEST = 1 << 27  # characters


# A rule changes a stretch between added tokens. The flags: no text comes before it, or behind it, or a
# control token.
Rule = Callable[[str, bool, bool], str]


@dataclass(frozen=True)
class Unicode:
    """One of the Unicode standard's normal forms, in version 9.0, which `tokenizers` has.

    What came later stays as it is, whatever version Python carries, and nothing is ordered or joined across
    it. Models were trained so, and forms of one version never change in another.
    """

    form: Literal["NFC", "NFD", "NFKC", "NFKD"]

    def __call__(self, text: str, first: bool, last: bool) -> str:
        if text.isascii():
            return text
        if not (later := _later()).search(text):
            return unicodedata.normalize(self.form, text)
        return "".join(
            part if i % 2 else unicodedata.normalize(self.form, part)
            for i, part in enumerate(later.split(text))
        )


@cache
def _later() -> re.Pattern[str]:
    """Runs of characters that Unicode 9.0 does not have, in a group."""
    ranges = (f"\\U{start:08x}-\\U{stop - 1:08x}" for start, stop, of in runs("9.0-assigned") if not of)
    return re.compile(f"([{''.join(ranges)}]+)")


FORMS = {"NFC": Unicode("NFC"), "NFD": Unicode("NFD"), "NFKC": Unicode("NFKC"), "NFKD": Unicode("NFKD")}


@dataclass(frozen=True)
class Lowercase:
    """Every character in lower case, each by itself (a final sigma is a sigma), in Unicode 17.0.

    That is the version of `tokenizers` 0.23; Python's own may be older.
    """

    def __call__(self, text: str, first: bool, last: bool) -> str:
        return "".join(map(lower, text)) if "Σ" in text else lower(text)


# The capitals of Unicode 15.0 to 17.0.
_LOWER = {0x1C89: 0x1C8A, 0xA7CB: 0x0264, 0xA7CC: 0xA7CD, 0xA7CE: 0xA7CF, 0xA7D2: 0xA7D3, 0xA7D4: 0xA7D5}
_LOWER |= {0xA7DA: 0xA7DB, 0xA7DC: 0x019B, **{code: code + 0x20 for code in range(0x10D50, 0x10D66)}}
_LOWER |= {code: code + 0x1B for code in range(0x16EA0, 0x16EB9)}


def lower(text: str) -> str:
    """A text in lower case, in Unicode 17.0."""
    return text.lower() if text.isascii() else text.translate(_LOWER).lower()


@dataclass(frozen=True)
class StripAccents:
    """No combining marks: after NFD, letters without their accents."""

    def __call__(self, text: str, first: bool, last: bool) -> str:
        return text.translate(dict.fromkeys(points("9.0", MARK)))


@dataclass(frozen=True)
class Replace:
    """Every occurrence of a text becomes another one."""

    old: str
    new: str

    def __call__(self, text: str, first: bool, last: bool) -> str:
        if not self.old:
            return text
        _room(text.count(self.old), self.new)
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class ReplaceMatches:
    """Every match of a pattern becomes a text, which is taken as it is."""

    pattern: str
    new: str

    def __call__(self, text: str, first: bool, last: bool) -> str:
        _room(len(text) + 1, self.new)
        return compiled(self.pattern).sub(lambda match: self.new, text, timeout=seconds_left())


@dataclass(frozen=True)
class Prepend:
    """A text in front of every stretch between added tokens."""

    prefix: str

    def __call__(self, text: str, first: bool, last: bool) -> str:
        return self.prefix + text if text else text


@dataclass(frozen=True)
class Strip:
    """No white space in front, or at the end, of a stretch."""

    left: bool
    right: bool

    def __call__(self, text: str, first: bool, last: bool) -> str:
        text = compiled(r"\A\s+").sub("", text) if self.left else text
        return compiled(r"(?<!\s)\s+\Z").sub("", text) if self.right else text


@dataclass(frozen=True)
class OneSpace:
    """Runs of spaces become one, and none is left where the text begins or ends (SentencePiece)."""

    def __call__(self, text: str, first: bool, last: bool) -> str:
        text = _RUNS.sub(" ", text)
        text = text.removeprefix(" ") if first else text
        return text.removesuffix(" ") if last else text


_RUNS = re.compile(" {2,}")


@dataclass(frozen=True)
class Prefix:
    """A text in front of what is encoded, if that is not empty (SentencePiece's dummy prefix)."""

    prefix: str

    def __call__(self, text: str, first: bool, last: bool) -> str:
        return self.prefix + text if first and (text or not last) else text


def normalize(rules: tuple[Rule, ...], text: str, first: bool = True, last: bool = True) -> str:
    """A text after every rule in order."""
    longest = MOST_GROWN * len(text) + 4096
    try:
        with time_limit(len(text)):
            for rule in rules:
                text = rule(text, first, last)
                if len(text) > longest:
                    raise UserError(f"the normaliser makes this text over {MOST_GROWN} times as long")
    except TimeoutError:
        raise UserError("a pattern of the tokenizer's normaliser takes too long on this text") from None
    except MemoryError:
        raise UserError("a pattern of the tokenizer's normaliser takes too much memory here") from None
    return text


def _room(places: int, new: str) -> None:
    """Raises UserError before a replacement fills the memory."""
    if len(new) > MOST_GROWN and places * len(new) > LARGEST:
        raise UserError("the tokenizer's normaliser makes this text too long")
