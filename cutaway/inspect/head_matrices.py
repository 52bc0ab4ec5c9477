"""A head's two matrices, from its weights alone ("A Mathematical Framework for Transformer Circuits", 2021).

    W_QK = W_q' W_k    which directions at a query look for which at a key; without rotary positions
    W_OV = W_o W_v     what the head writes for what it reads
    both [d d] of rank k or v at most, with the weights of the norm before attention in them

    copying score = sum of Re(e) / sum of |e|, e the eigenvalues of  unembedding W_OV embedding,

from -1 to 1: a head that raises the logits of the tokens that it attends to is near 1. The eigenvalues are
those of the small matrix W_v (embedding' unembedding) W_o [v v].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.instrumented import head_table
from cutaway.inspect.pairs import vocabulary_of
from cutaway.inspect.result import Result
from cutaway.inspect.subject import Subject, subject_of
from cutaway.store.files import Progress, silent

TILE = 4096  # rows of the vocabulary's matrices at once
Factors = tuple[np.ndarray, np.ndarray]


def factors(lm: Any, layer: int, head: int, of: Literal["qk", "ov"] = "ov") -> Factors:
    """A head's matrix as A B: A [d r], B [r d], float64. W_QK is [query key], W_OV [written read].

    Raises UserError for a head that there is not, or whose layer has no such matrices.
    """
    if of not in ("qk", "ov"):
        raise UserError(f'of is {of!r}: use "qk" or "ov"')
    subject = subject_of(lm)
    config, block = _attention(subject, layer)
    if not 0 <= head < config.heads:
        raise UserError(f"there is no head {head}: layer {layer}'s heads are 0 to {config.heads - 1}")
    path, group = f"blocks.{layer}.attention", head // (config.heads // config.groups)
    norm = _norm_weight(subject, layer, block)

    def rows(name: str, number: int, size: int) -> np.ndarray:
        weight = subject.engine.weight(f"{path}.{name}.weight")[number * size : (number + 1) * size]
        return weight.astype(np.float64) * norm

    if of == "qk":
        query, key = rows("query", head, config.key_size), rows("key", group, config.key_size)
        return query.T, key
    out = subject.engine.weight(f"{path}.out.weight").astype(np.float64)
    out = out[:, head * config.values : (head + 1) * config.values] * block.residual
    return out, rows("value", group, config.values) * config.value_scale


def spectrum(lm: Any, layer: int, of: Literal["qk", "ov"] = "ov") -> Result:
    """The singular values [head value] of a layer's heads, the largest first."""
    config, _ = _attention(subject_of(lm), layer)
    found = [_singular(*factors(lm, layer, head, of)) for head in range(config.heads)]
    axes = {"head": range(config.heads), "value": range(len(found[0]))}
    return Result(np.stack(found), axes, f"singular values of W_{of.upper()} of layer {layer}")


def copying_scores(lm: Any, layers: Sequence[int] | None = None, progress: Progress = silent) -> Result:
    """The copying score [layer head] of each head, by its weights alone."""
    subject = subject_of(lm)
    chosen = list(range(len(subject.config.blocks)) if layers is None else layers)
    both = _embedding_unembedding(subject)
    counts = [_attention(subject, layer)[0].heads for layer in chosen]
    values = np.full((len(chosen), max(counts)), np.nan)
    for at, layer in enumerate(chosen):
        for head in range(counts[at]):
            out, value = factors(subject, layer, head)
            found = np.linalg.eigvals(value @ both @ out)
            values[at, head] = found.real.sum() / max(np.abs(found).sum(), 1e-30)
        progress("copying scores", at + 1, len(chosen))
    return Result(values, {"layer": chosen, "head": range(values.shape[1])}, "copying scores")


def _attention(subject: Subject, layer: int) -> tuple[Any, Any]:
    """The attention and the block of a layer that has the four matrices."""
    count = len(subject.config.blocks)
    if not 0 <= layer < count:
        raise UserError(f"there is no layer {layer}: this model's layers are 0 to {count - 1}")
    block: Any = subject.config.blocks[layer]
    of = block.attention
    own = [f"blocks.{layer}.attention.{name}.weight" for name in ("query", "key", "value", "out")]
    if not hasattr(of, "groups") or not set(own) <= set(subject.config.weights()):
        raise UserError(f"layer {layer} has no matrices of queries, keys and values for each head")
    return of, block


def _norm_weight(subject: Subject, layer: int, block: Any) -> np.ndarray:
    """float64 [d]: the weight of the norm before attention, or ones."""
    name = f"blocks.{layer}.attention_norm.weight"
    there = "attention_norm" in block.norms and name in subject.config.weights()
    return subject.engine.weight(name).astype(np.float64) if there else np.ones(subject.config.width)


def _embedding_unembedding(subject: Subject) -> np.ndarray:
    """float64 [d d]: embedding' unembedding, summed over the vocabulary, with the final norm's weight."""
    config, count = subject.config, vocabulary_of(subject)
    embedding, head = subject.engine.table("embedding.weight"), head_table(subject.engine)
    both = np.zeros((config.width, config.width))
    for start in range(0, count, TILE):
        here = slice(start, min(start + TILE, count))
        both += embedding[here].astype(np.float64).T @ head[here].astype(np.float64)
    if config.last_norm and "norm.weight" in config.weights():
        both = both * subject.engine.weight("norm.weight").astype(np.float64)
    return both * config.embedding_scale


def _singular(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The singular values of A B, by the small matrix R_A R_B'."""
    (_, left), (_, right) = np.linalg.qr(a), np.linalg.qr(b.T)
    return np.linalg.svd(left @ right.T, compute_uv=False)
