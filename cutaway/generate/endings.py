"""Short ways to the end of a grammar, from wherever a text under it is.

    endings = Endings(grammar.shortest, tokenizer)
    endings.of(matcher, 60, end)      # ids that bring the matcher's text to an end, at most 60; or None

Open texts, lists and objects are closed as soon as they may be, and what must be written before is searched
for: breadth first over single characters. Two states of the grammar whose allowed tokens are the same count
as one, so that a search is small: after `2020-01-01T00:00:00.1` more digits lead nowhere new, and `Z` does.
That is blind behind a pattern's `.*`, where all tokens are allowed: there the ends of the shortest texts that
fit the grammar's patterns are tried (`.json` of `^.*\\.json$`).
"""

from __future__ import annotations

import string
import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.errors import UserError

if TYPE_CHECKING:
    from llguidance import LLMatcher

# A backslash would let a quote follow that ends no text.
TRIED = string.digits + string.ascii_letters + " " + string.punctuation.translate({92: None})
QUOTE, BRACKETS = '"', "}],"  # what ends a text; what may follow a value
MOST_FILLED = 128  # letters in a row after which a text has no known end
MOST_STATES = 64  # of one search
MOST_KEPT = 512  # searches whose outcome is remembered
Path = list[int]


class Endings:
    """The ends of one grammar's texts. What a search found is kept for the states that are alike."""

    def __init__(self, shortest: Sequence[str], tokenizer: Any) -> None:
        singles = single_characters(tokenizer)
        self._tokenizer = tokenizer
        self._tried = [singles[one] for one in TRIED if one in singles]
        self._letters, self._zero = self._ids("a "), self._ids("0")
        self._quote, self._brackets = self._ids(QUOTE), self._ids(BRACKETS)
        tails = dict.fromkeys(text[-n:] for text in shortest for n in range(2, len(text) + 1))
        self._tails = [self._ids(one) for one in tails if all(letter in singles for letter in one)]
        self._kept: dict[tuple[int, bool], Path | None] = {}

    def of(self, matcher: LLMatcher, most: int, end: int) -> Path | None:
        """Ids that bring the text to an end, at most ``most``, or None. Where more could follow, the last is
        ``end``, but for a text that may end anywhere. What finds none is tried again with texts closed
        before anything else, as where a pattern holds brackets.
        """
        found = self._to_its_end(matcher, most, end, False)
        return self._to_its_end(matcher, most, end, True) if found is None else found

    def _to_its_end(self, matcher: LLMatcher, most: int, end: int, quote_first: bool) -> Path | None:
        matcher, ids, filled = matcher.deep_copy(), Path(), 0
        while not matcher.is_stopped() and not matcher.is_accepting():
            following, fills = matcher.compute_ff_tokens(), False
            if not following:
                following, fills = self._next(matcher, quote_first)
            filled = filled + 1 if fills else 0
            room = most - len(ids) - len(following)
            if not following or room < 0 or filled > MOST_FILLED or not matcher.consume_tokens(following):
                return None
            ids += following
        if not matcher.is_stopped() and not _first(matcher, self._letters):
            ids.append(end)
        return ids if len(ids) <= most else None

    def _next(self, matcher: LLMatcher, quote_first: bool) -> tuple[Path, bool]:
        """The tokens that bring a text nearer to its end, and whether they only fill it."""
        letter = _first(matcher, self._letters)
        inside = quote_first or bool(letter)  # of a text, which a quote ends
        closing = self._quote if inside else [*self._brackets, *self._quote]
        if found := _first(matcher, closing) or self._search(matcher, closing, inside):
            return found, False
        if quote_first and (found := _first(matcher, self._brackets)):
            return found, False
        filling = letter or _first(matcher, self._zero)
        return filling or _longest(matcher, self._tokenizer), bool(filling)

    def _search(self, matcher: LLMatcher, closing: Sequence[int], inside: bool) -> Path:
        """The shortest way that is found to a state in which one of these tokens is allowed, or the end."""
        key = hash(matcher.compute_bitmask()), inside
        if key in self._kept:
            kept = self._kept[key]
            if kept is None or self._closes(matcher, kept, closing):
                return kept or []
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        found = self._searched(matcher, closing)
        self._kept[key] = found
        return found or []

    def _searched(self, matcher: LLMatcher, closing: Sequence[int]) -> Path | None:
        for tail in self._tails:
            if self._closes(matcher, tail, closing):
                return tail
        seen, states = {matcher.compute_bitmask()}, deque([(matcher, Path())])
        for _ in range(MOST_STATES):
            if not states:
                return None
            state, path = states.popleft()
            for id in self._tried:
                if state.validate_tokens([id]) != 1:
                    continue
                after, step = state.deep_copy(), [id]
                after.consume_token(id)
                while not after.is_stopped() and (forced := after.compute_ff_tokens()):
                    after.consume_tokens(forced)
                    step += forced
                if _closed(after, closing):
                    return path + step
                mask = after.compute_bitmask()
                if mask not in seen and not after.is_error():
                    seen.add(mask)
                    states.append((after, path + step))
        return None

    def _closes(self, matcher: LLMatcher, path: Path, closing: Sequence[int]) -> bool:
        after = matcher.deep_copy()
        return (
            after.validate_tokens(path) == len(path)
            and after.consume_tokens(path)
            and _closed(after, closing)
        )

    def _ids(self, texts: str) -> Path:
        singles = single_characters(self._tokenizer)
        return [singles[one] for one in texts if one in singles]


def _closed(matcher: LLMatcher, closing: Sequence[int]) -> bool:
    return matcher.is_stopped() or matcher.is_accepting() or bool(_first(matcher, closing))


def _first(matcher: LLMatcher, ids: Sequence[int]) -> Path:
    """The first of these ids that is allowed, if one is."""
    return next(([id] for id in ids if matcher.validate_tokens([id]) == 1), [])


def _longest(matcher: LLMatcher, tokenizer: Any) -> Path:
    """The allowed token with the most bytes, if there is one: it brings a fixed text on furthest."""
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    allowed = np.flatnonzero(np.unpackbits(bits, count=len(tokenizer), bitorder="little"))
    control = set(tokenizer.special.values())
    plain = [id for id in allowed.tolist() if id not in control]
    return [max(plain, key=lambda id: len(tokenizer.token_bytes(id)))] if plain else []


_singles: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()


def single_characters(tokenizer: Any) -> dict[str, int]:
    """The ids of the tokens that are one ASCII character, by that. Made once."""
    if tokenizer not in _singles:
        control, found = set(tokenizer.special.values()), dict[str, int]()
        for id in range(len(tokenizer)):
            try:
                spelt = tokenizer.token_bytes(id)
            except UserError:  # a row of the table that no token has
                continue
            if len(spelt) == 1 and spelt.isascii() and id not in control:
                found[spelt.decode()] = id
        _singles[tokenizer] = found
    return _singles[tokenizer]
