"""A classifier of texts: logistic regression on hashed words and word pairs, or on MiniLM's vectors.

It learns some families of attacks against ordinary sentences; a family that it has not seen is what tells
whether it detects attacks or remembers them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cutaway import store
from cutaway.lm import LanguageModel, load

BUCKETS = 2048
STEPS, RATE, DECAY = 400, 0.5, 1e-3
Scorer = Callable[[Sequence[str]], np.ndarray]


def words(attacks: Sequence[str], others: Sequence[str]) -> Scorer:
    """A scorer of texts by their words."""
    return fitted(_hashed, attacks, others)


def minilm(attacks: Sequence[str], others: Sequence[str]) -> Scorer | None:
    """A scorer of texts by MiniLM's vectors; None where `cutaway pull minilm` was not run."""
    if (path := store.find("minilm")) is None:
        return None
    encoder: LanguageModel = load(path)
    return fitted(lambda texts: encoder.embed(list(texts)), attacks, others)


def _hashed(texts: Sequence[str]) -> np.ndarray:
    """float32 [n d]: how often words and pairs occur, at norm 1."""
    rows = np.zeros((len(texts), BUCKETS), np.float32)
    for row, text in zip(rows, texts, strict=True):
        found = re.findall(r"\w+|[^\w\s]", text.casefold())
        for word in (*found, *(f"{a} {b}" for a, b in pairwise(found))):
            row[zlib.crc32(word.encode()) % BUCKETS] += 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)


def fitted(
    features: Callable[[Sequence[Any]], np.ndarray], attacks: Sequence[Any], others: Sequence[Any]
) -> Callable[[Sequence[Any]], np.ndarray]:
    """Logistic regression by gradient descent: sigma(w x + b), both classes of equal weight."""
    x = features([*attacks, *others])
    x = np.concatenate([x * 10, np.ones((len(x), 1), x.dtype)], 1)
    y = np.r_[np.ones(len(attacks)), np.zeros(len(others))]
    weight = np.where(y == 1, 0.5 / len(attacks), 0.5 / len(others))
    w = np.zeros(x.shape[1])
    for _ in range(STEPS):
        w -= RATE * (x.T @ (weight * (1 / (1 + np.exp(-x @ w)) - y)) + DECAY * w)
    return lambda texts: features(texts) @ w[:-1] * 10 + w[-1]
