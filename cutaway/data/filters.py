"""Filter a corpus: drop duplicates, near-duplicates, and documents that fail a named rule.

Every document that is dropped is counted under the name of what dropped it; nothing vanishes silently. The
rules are those of Gopher (2112.11446, section A1) that need no language; near-duplicates are found by MinHash
(Broder 1997) through the datasketch library, as in 2107.06499.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

from cutaway.bounds import Bounded, Fraction, Inner, Natural, Positive
from cutaway.extras import library

SHINGLE = 5  # words that make one element of the set that MinHash compares
PERMUTATIONS = 128


@dataclass(frozen=True)
class Filters(Bounded):
    """Which rules apply; a rule that is None does not.

    ``near`` is the Jaccard similarity of 5-word shingles from which a document counts as one already seen;
    ``exact`` drops documents equal to the letter. ``letters`` is the least fraction of letters among
    characters that are not space, ``repeated_lines`` the largest fraction of repeated lines,
    ``word_length`` the largest mean length of a word.
    """

    exact: bool = True
    near: Inner | None = None
    min_characters: Natural | None = None
    max_characters: Natural | None = None
    letters: Fraction | None = None
    repeated_lines: Fraction | None = None
    word_length: Positive | None = None


def min_characters(text: str, least: float) -> bool:
    """Keep documents of at least this length."""
    return len(text) >= least


def max_characters(text: str, most: float) -> bool:
    """Keep documents of at most this length."""
    return len(text) <= most


def letters(text: str, least: float) -> bool:
    """Keep documents where at least this fraction of non-space characters are letters."""
    marks = [character for character in text if not character.isspace()]
    return bool(marks) and sum(map(str.isalpha, marks)) >= least * len(marks)


def repeated_lines(text: str, most: float) -> bool:
    """Keep documents where at most this fraction of non-blank lines repeat an earlier one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return len(lines) - len(set(lines)) <= most * len(lines)


def word_length(text: str, most: float) -> bool:
    """The mean word is at most so long: longer ones are base64, hashes and minified code."""
    words = text.split()
    return bool(words) and sum(map(len, words)) <= most * len(words)


RULES: dict[str, Callable[[str, float], bool]] = {
    rule.__name__: rule for rule in (min_characters, max_characters, letters, repeated_lines, word_length)
}


def kept(texts: Iterable[str | None], rules: Filters, counts: Counter[str]) -> Iterator[str]:
    """The documents that pass, in order; ``counts`` gains "read", "kept" and each reason to drop."""
    limits = {f.name: getattr(rules, f.name) for f in fields(rules) if f.name in RULES}
    seen: set[bytes] = set()
    near = None if rules.near is None else _Near(rules.near)
    for text in texts:
        counts["read"] += 1
        reason = _reason(text, limits, seen if rules.exact else None, near)
        counts[reason or "kept"] += 1
        if reason is None and text is not None:
            yield text


def _reason(
    text: str | None, limits: dict[str, float | None], seen: set[bytes] | None, near: _Near | None
) -> str | None:
    """Why a document is dropped, cheapest rule first; None if it stays."""
    if text is None:
        return "not_text"
    if not text.strip():
        return "empty"
    for name, limit in limits.items():
        if limit is not None and not RULES[name](text, limit):
            return name
    if seen is not None:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in seen:
            return "duplicate"
        seen.add(digest)
    if near is not None and near.seen(text):
        return "near_duplicate"
    return None


class _Near:
    """What was seen, as MinHash signatures under locality-sensitive hashing."""

    def __init__(self, threshold: float) -> None:
        datasketch = library("finding near-duplicates", "datasketch")
        self.sketch = datasketch.MinHash
        self.index = datasketch.MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
        self.count = 0

    def seen(self, text: str) -> bool:
        """Whether something like it was seen before; remembers it if not."""
        words = re.findall(r"\w+", text.lower())
        if len(words) < SHINGLE:
            return False
        shingles = {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}
        sketch = self.sketch(num_perm=PERMUTATIONS)
        sketch.update_batch([shingle.encode() for shingle in shingles])
        if self.index.query(sketch):
            return True
        self.index.insert(self.count, sketch)
        self.count += 1
        return False
