"""A watermark's scheme and its secret, and how a key is detected in a text."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import numpy as np

from cutaway.bounds import Shown
from cutaway.errors import UserError
from cutaway.generate.sample import History

SCHEMES = ("kgw", "gumbel", "synthid")
SHORTEST_WINDOW = 32  # tokens of the shortest passage that is looked for


@dataclass(frozen=True)
class Watermark(Shown, ABC):
    """A scheme with its secret: called as the last of the samplers, it changes the logits [v]."""

    key: str
    context: int = 4  # ids before a token that its hashes depend on
    greedy: ClassVar[bool] = False  # whether it marks text at temperature 0 too

    def __post_init__(self) -> None:
        if not self.key:
            raise UserError("a watermark needs a secret key: write it after the scheme, as in kgw:SECRET")
        if self.context < 1:
            raise UserError(f"a watermark's context is {self.context}: it must be 1 id or more")

    def __call__(self, logits: np.ndarray, history: History) -> np.ndarray:
        drawn = history.ids[max(0, len(history.ids) - len(history.generated) - self.context) :]
        if len(drawn) < self.context or _drawn_before(drawn, self.context):
            return logits
        return self.shape(logits, _hashes(self.seeds(drawn[None, -self.context :]), np.arange(len(logits))))

    def seeds(self, contexts: np.ndarray) -> np.ndarray:
        """What the hashes after each context begin with: uint64 [t], of contexts int64 [t n]."""
        from hashlib import blake2b  # which loads OpenSSL: only where texts are marked

        secret = blake2b(self.key.encode("utf-8", "surrogatepass"), digest_size=32).digest()
        digests = (blake2b(context.tobytes(), key=secret, digest_size=8).digest() for context in contexts)
        return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)

    @abstractmethod
    def shape(self, logits: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """The marked logits [v], of processed logits [v] and the hashes uint64 [v] of all ids."""

    @abstractmethod
    def scores(self, hashes: np.ndarray) -> np.ndarray:
        """The evidence of tokens for the key, float64 [...], by their own hashes uint64 [...]."""

    @property
    @abstractmethod
    def null(self) -> tuple[float, float]:
        """The mean and variance of a token's score where the key has nothing to do with the text."""

    @abstractmethod
    def tail(self, total: float, tokens: int) -> float:
        """The probability of scores that sum to ``total`` or more under the null."""


@dataclass(frozen=True)
class Detection:
    """What a key's scores of a text are.

    ``tokens`` were scored, one for each distinct context; ``z`` is their standardized sum and ``p`` its tail
    under the null. ``p_keys`` is the rank of ``z`` among random keys, exact and never below 1 / (keys + 1);
    ``p_passage`` is that of the best passage, which a few marked sentences among others do not hide from:
    ``passage`` is where it is, as tokens of the text.
    """

    tokens: int
    z: float
    p: float
    p_keys: float
    p_passage: float
    passage: tuple[int, int]


def parse(spelt: str) -> Watermark:
    """A watermark as it is spelt, SCHEME:SECRET with kgw, gumbel or synthid; else UserError."""
    scheme, _, key = spelt.partition(":")
    if scheme not in SCHEMES:
        raise UserError(f"there is no watermark {scheme!r}: write one of {', '.join(SCHEMES)}, then :SECRET")
    return import_module(f"cutaway.generate.watermark.{scheme}").Config(key)


def detect(watermark: Watermark, ids: Sequence[int], *, keys: int = 999, seed: int = 0) -> Detection:
    """Score the ids of a text. Raises UserError for a text that is too short to have one context."""
    drawn, size = np.asarray(ids, np.int64), watermark.context
    if len(drawn) <= size:
        raise UserError(f"the text has {len(drawn)} tokens: a watermark's detection needs {size + 1} or more")
    windows = np.lib.stride_tricks.sliding_window_view(drawn[:-1], size)
    first = np.sort(np.unique(windows, axis=0, return_index=True)[1])
    contexts, tokens = windows[first], drawn[first + size]
    random = np.random.default_rng(seed)
    mean, variance = watermark.null
    whole, best = np.empty(keys + 1), np.empty(keys + 1)
    found, total = (0, len(tokens)), 0.0
    for n in range(keys + 1):
        seeds = (
            random.integers(1 << 64, size=len(tokens), dtype=np.uint64) if n else watermark.seeds(contexts)
        )
        scores = watermark.scores(_hashes(seeds, tokens))
        centered = (scores - mean) / math.sqrt(variance)
        whole[n] = centered.sum() / math.sqrt(len(tokens))
        best[n], passage = _best_passage(centered)
        if n == 0:
            found, total = passage, float(scores.sum())
    return Detection(
        tokens=len(tokens),
        z=float(whole[0]),
        p=watermark.tail(total, len(tokens)),
        p_keys=float((whole >= whole[0]).mean()),
        p_passage=float((best >= best[0]).mean()),
        passage=(int(first[found[0]]), int(first[found[1] - 1]) + size + 1),
    )


def uniform(hashes: np.ndarray) -> np.ndarray:
    """Numbers between 0 and 1, neither of them, of hashes."""
    return ((hashes >> np.uint64(11)) + 0.5) * 2.0**-53


def normal_tail(z: float) -> float:
    """The probability of a standard normal number above z."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def _best_passage(centered: np.ndarray) -> tuple[float, tuple[int, int]]:
    """The largest z of all passages of SHORTEST_WINDOW, twice that, ... tokens and of the whole; where."""
    sums, count = np.concatenate([[0.0], np.cumsum(centered)]), len(centered)
    best, where = sums[-1] / math.sqrt(count), (0, count)
    length = SHORTEST_WINDOW
    while length < count:
        z = (sums[length:] - sums[:-length]) / math.sqrt(length)
        start = int(z.argmax())
        if z[start] > best:
            best, where = z[start], (start, start + length)
        length *= 2
    return float(best), where


def _drawn_before(drawn: np.ndarray, size: int) -> bool:
    """Whether the last ``size`` ids were the context of an earlier draw."""
    earlier = np.lib.stride_tricks.sliding_window_view(drawn, size)[:-1]
    return bool((earlier == drawn[-size:]).all(axis=1).any())


def _hashes(seed: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """uint64 [...]: splitmix64's finalizer of seed + id * its golden gamma."""
    with np.errstate(over="ignore"):
        mixed = seed + ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
