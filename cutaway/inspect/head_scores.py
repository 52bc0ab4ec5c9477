"""Induction and previous-token heads, by their attention on random tokens given twice (2209.11895).

In the repetition an induction head attends from each token to the one that followed its first occurrence;
only the repetition tells it where that is.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.inputs import check_patterns
from cutaway.inspect.result import Result
from cutaway.inspect.subject import Subject, subject_of

LENGTH = 24  # random tokens before they repeat
TEXTS = 4


def induction_scores(
    lm: Any, length: int = LENGTH, texts: int = TEXTS, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """For each layer, each head's mean attention weight [h] on the token after the earlier occurrence of its
    own.

    Tokens are drawn from the vocabulary of a loaded model or ``Subject``. UserError for a model with a
    recurrent layer, which has no attention weights.
    """
    patterns = _patterns(subject_of(lm), length, texts, seed)
    return tuple(_mean(p[:, :, length:], 1) for p in patterns)


def previous_token_scores(
    lm: Any, length: int = LENGTH, texts: int = TEXTS, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """For each layer, each head's mean attention weight [h] on the token just before."""
    return tuple(_mean(p, -1) for p in _patterns(subject_of(lm), length, texts, seed))


def head_scores(
    lm: Any,
    kind: Literal["induction", "previous"] = "induction",
    length: int = LENGTH,
    texts: int = TEXTS,
    seed: int = 0,
) -> Result:
    """The scores of one kind [layer head] of a loaded model or ``Subject``, under its edits."""
    of = {"induction": induction_scores, "previous": previous_token_scores}
    if kind not in of:
        raise UserError(f"there is no score {kind!r:.40}: use {' or '.join(of)}")
    found = of[kind](lm, length, texts, seed)
    values = np.full((len(found), max(map(len, found))), np.nan)
    for row, scores in zip(values, found, strict=True):
        row[: len(scores)] = scores
    axes = {"layer": range(len(found)), "head": range(values.shape[1])}
    return Result(values, axes, f"{kind} scores", {"tokens": length, "texts": texts})


def repeated(vocabulary: int, length: int = LENGTH, texts: int = TEXTS, seed: int = 0) -> np.ndarray:
    """int64 [texts 2·length]: random ids below ``vocabulary``, each row's given twice."""
    once = np.random.default_rng(seed).integers(vocabulary, size=(texts, length))
    return np.concatenate([once, once], axis=1)


def _mean(patterns: np.ndarray, offset: int) -> np.ndarray:
    """The mean of a diagonal of attention weights [b h t s], over texts and tokens: [h]."""
    return patterns.diagonal(offset, -2, -1).mean((0, -1))


def _patterns(subject: Subject, length: int, texts: int, seed: int) -> list[np.ndarray]:
    """Every layer's attention weights [b h t t] on ``texts`` rows of ``length`` random tokens, each twice."""
    check_patterns(subject.config)
    vocabulary = min(subject.config.vocab, len(subject.tokenizer))
    found = subject.values(repeated(vocabulary, length, texts, seed).tolist(), ["blocks.*.attention.pattern"])
    layers = range(len(subject.config.blocks))
    return [np.stack([one[f"blocks.{i}.attention.pattern"] for one in found]) for i in layers]
