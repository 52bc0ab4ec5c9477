"""Chosen words in the model's embedding table: a map, neighbours, and an analogy by adding vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cutaway.embedding import neighbours, projection
from cutaway.errors import UserError
from cutaway.inspect import tokens
from cutaway.inspect.subject import Subject

MOST = 64  # words
LONGEST = 60  # characters of a word
NEIGHBOURS = 8
WORDS = ("king", "queen", "man", "woman", "Paris", "France", "Rome", "Italy", "dog", "cat", "one", "two")
ANALOGY = ("Paris", "France", "Italy")


def vectors(
    subject: Subject, words: Sequence[str] = WORDS, analogy: Sequence[str] = ANALOGY
) -> dict[str, Any]:
    """The words on the plane of their two largest components, their neighbours, and ``a - b + c``.

    A word is its token with a space before it; of a word of several tokens it is the first, not ``whole``.
    Raises UserError for fewer than 3 or more than 64 words, and for an analogy that is not of 3.
    """
    if not 3 <= len(words) <= MOST:
        raise UserError(f"The map has {len(words)} words: give 3 to {MOST}")
    if len(analogy) != 3:
        raise UserError(f"The analogy has {len(analogy)} words: give 3, for a - b + c")
    if wrong := [word for word in (*words, *analogy) if not word.strip() or len(word) > LONGEST]:
        raise UserError(f"{wrong[0][:LONGEST]!r} is no word: give 1 to {LONGEST} characters each")
    engine, tokenizer = subject.engine, subject.tokenizer
    vocabulary = min(subject.config.vocab, len(tokenizer))
    table = engine.table("embedding.weight", vocabulary)
    ids = [_id(subject, word) for word in words]
    rows = np.asarray(table[np.array([id for id, _ in ids])], np.float32)
    plane = projection.project(rows)
    near, cosines = neighbours.nearest(table, np.array([id for id, _ in ids]), NEIGHBOURS)
    a, b, c = (table[np.array([_id(subject, word)[0]])] for word in analogy)
    three = np.array([[_id(subject, word)[0] for word in analogy]])
    found, scores = neighbours.search(
        table, neighbours.unit(a) - neighbours.unit(b) + neighbours.unit(c), NEIGHBOURS, three
    )

    def text(id: int) -> str:
        return tokens.text(tokenizer, [id])

    def listed(ids: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"text": text(id), "cosine": one} for id, one in zip(ids.tolist(), scores.tolist(), strict=True)
        ]

    points = plane.points.tolist()
    return {
        "words": [
            {"word": word, "token": text(id), "whole": whole, "at": point, "neighbours": listed(*both)}
            for word, (id, whole), point, *both in zip(words, ids, points, near, cosines, strict=True)
        ],
        "kept": plane.kept,
        "analogy": {"words": list(analogy), "found": listed(found[0], scores[0])},
    }


def _id(subject: Subject, word: str) -> tuple[int, bool]:
    """The token of a word, and whether it is the whole word."""
    ids = subject.encode(f" {word.strip()}")
    ids = [id for id in ids if not subject.tokenizer.is_special(id)] or ids
    return ids[0], len(ids) == 1
