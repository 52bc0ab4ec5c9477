"""Measure a checkpoint of a training run: a fixed sentence, induction heads, its embeddings.

The embedding map of two checkpoints can be compared because one is rotated onto the other (orthogonal
Procrustes): training rotates all rows together, which changes no logit and means nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cutaway.embedding import projection
from cutaway.errors import UserError
from cutaway.inspect import tokens
from cutaway.inspect.arrays import log_softmax
from cutaway.inspect.head_scores import head_scores
from cutaway.inspect.inputs import has_pattern
from cutaway.inspect.subject import Subject
from cutaway.shapes import Float

MOST = 48  # tokens of the map
LENGTH, TEXTS = 16, 2  # of random tokens that repeat, by which induction is scored


def surprisal(lm: Any, text: str) -> list[dict[str, Any]]:
    """Each token of a text with its surprisal in nats; None for a first one, before which there is nothing.

    A model whose logits are NaN has no surprisal either.
    """
    ids = lm.ids(text)
    if len(ids) > lm.context:
        raise UserError(f"the sentence has {len(ids)} tokens, and this model reads {lm.context}")
    scores = log_softmax(np.asarray(lm.logits(ids), np.float64)) if ids else []
    found = []
    for at, id in enumerate(ids):
        if at == 0 and lm.tokenizer.is_special(id):
            continue
        value = -float(scores[at - 1][id]) if at and np.isfinite(scores[at - 1][id]) else None
        found.append({"id": id, "text": tokens.text(lm.tokenizer, [id]), "nats": value})
    return found


def induction(lm: Any) -> dict[str, Any] | None:
    """Each head's induction score, and the highest; None for recurrent layers, and where all are NaN."""
    if not all(has_pattern(block.attention) for block in lm.config.blocks):
        return None
    scores = head_scores(lm, "induction", length=min(LENGTH, lm.context // 2), texts=TEXTS).values
    if not np.isfinite(scores).any():
        return None
    layer, head = np.unravel_index(int(np.nanargmax(scores)), scores.shape)
    heads = [[None if np.isnan(one) else float(one) for one in row] for row in scores]
    return {"heads": heads, "layer": int(layer), "head": int(head), "score": float(scores[layer, head])}


def table(subject: Subject, ids: list[int]) -> np.ndarray:
    """The rows of the embedding table that these ids pick, float32 [n d]."""
    vocabulary = min(subject.config.vocab, len(subject.tokenizer))
    return np.asarray(subject.engine.table("embedding.weight", vocabulary)[np.array(ids)], np.float32)


def aligned(rows: Float[np.ndarray, "n d"], onto: Float[np.ndarray, "n d"]) -> dict[str, Any]:
    """The rows on the plane of ``onto``'s largest components, rotated so that they are as near to ``onto`` as
    a rotation brings them. ``distance`` is what is left, as a part of ``onto``'s own spread.
    """
    rows, onto = (one.astype(np.float64) for one in (rows, onto))
    plane = projection.project(onto.astype(np.float32))
    own, other = rows - rows.mean(0), onto - onto.mean(0)
    rotated = own @ rotation(own, other)
    axes, *_ = np.linalg.lstsq(other, plane.points.astype(np.float64), rcond=None)
    spread = float(np.square(other).sum())
    left = float(np.square(rotated - other).sum())
    return {"at": (rotated @ axes).tolist(), "kept": plane.kept, "distance": left / spread if spread else 0.0}


def rotation(rows: Float[np.ndarray, "n d"], onto: Float[np.ndarray, "n d"]) -> np.ndarray:
    """The orthogonal matrix [d d] that brings ``rows`` nearest to ``onto`` (Schönemann, 1966)."""
    left, _, right = np.linalg.svd(rows.T @ onto)
    return left @ right
