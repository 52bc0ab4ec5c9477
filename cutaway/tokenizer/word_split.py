"""Split a corpus into words for training: by a named pattern or a regex, around the special tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from re import Pattern

import regex

from cutaway.errors import UserError, quoted
from cutaway.tokenizer.added import any_of
from cutaway.tokenizer.normalize import OneSpace, Rule, normalize
from cutaway.tokenizer.pretokenize import (
    PATTERNS,
    TIKTOKEN,
    Metaspace,
    Split,
    Step,
    compiled,
    fused,
    pretokenize,
)
from cutaway.tokenizer.wordpiece import BertNormalizer, BertPreTokenizer

METASPACE = "metaspace"
BERT = {"bert": BertNormalizer(), "bert-cased": BertNormalizer(lowercase=False)}
_LINE_ENDS = regex.compile(r"\r?\n")
_NAME = regex.compile(r"[A-Za-z0-9._-]+")
_AROUND = 256  # characters on either side of a cut that are looked at
_TRIES = 1000


@dataclass(frozen=True)
class WordSplitter:
    """What is done to a text before its words are counted, and by a tokenizer before it encodes.

    `lines`: each line is a text by itself (SentencePiece's convention), else the line ends belong to words.
    """

    steps: tuple[Step, ...]
    special: tuple[str, ...] = ()
    normalizer: tuple[Rule, ...] = ()
    lines: bool = False

    def words(self, text: str) -> list[str]:
        """The words of a text, in order; none crosses a special token, whose text is left out."""
        return list(chain.from_iterable(map(self._pieces, self.stretches(text))))

    def stretches(self, text: str) -> list[str]:
        """The stretches of a text that are cut by themselves."""
        found = self._finder.split(text) if self._finder is not None else [text]
        if self.lines:
            found = chain.from_iterable(map(_LINE_ENDS.split, found))
        return [stretch for stretch in found if stretch]

    def boundary(self, text: str) -> int:
        """The last place at which a text may be cut in two, so that its words stay the same; 0 for none.

        A place is tried behind a line end or before a space, by cutting what is around it both ways.
        """
        found = _PLACES.finditer(text, endpos=max(len(text) - _AROUND, 0))
        places = (match.start() + match[0].startswith("\n") for match in islice(found, _TRIES))
        return next((place for place in places if self._safe(text, place)), 0)

    def _safe(self, text: str, place: int) -> bool:
        left, right = text[max(place - _AROUND, 0) : place], text[place : place + _AROUND]
        return self.words(left + right) == self.words(left) + self.words(right)

    def _pieces(self, text: str) -> list[str]:
        return pretokenize(self._fused, normalize(self.normalizer, text))

    @cached_property
    def _fused(self) -> tuple[Step, ...]:
        return fused(self.steps)

    @cached_property
    def _finder(self) -> Pattern[str] | None:
        return any_of(self.special) if self.special else None


# From the end of the text backwards.
_PLACES = regex.compile(r"(?r)\n| ")


def splitter(pattern: str, special: Iterable[str] = ()) -> WordSplitter:
    """The splitter that a name means ("cl100k", "gpt2", "qwen2", "metaspace"...), or a regular expression.

    Raises UserError for an unknown name, and for what is no regular expression.
    """
    special = tuple(special)
    if pattern == METASPACE:
        return WordSplitter((Metaspace(),), special, (OneSpace(),), lines=True)
    if pattern in BERT:
        return WordSplitter((BertPreTokenizer(),), special, (BERT[pattern],))
    if pattern in TIKTOKEN:
        return WordSplitter((Split(TIKTOKEN[pattern]),), special)
    if pattern in PATTERNS:
        return WordSplitter(tuple(map(Split, PATTERNS[pattern])), special)
    if _NAME.fullmatch(pattern):
        names = ", ".join([*TIKTOKEN, METASPACE, *BERT, *sorted(PATTERNS)])
        raise UserError(f"there is no pattern named {quoted(pattern)}: give a regex, or one of {names}")
    compiled(pattern)
    return WordSplitter((Split(pattern),), special)
