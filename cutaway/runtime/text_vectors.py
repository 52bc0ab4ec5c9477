"""Vectors and labels of whole texts from an engine's vectors of their tokens (Sentence-BERT, 1908.10084).

    mean   the average of the tokens        cls   the first token's        last   the last token's

A text is pooled by itself, so that it has the same bits beside any others. Numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from cutaway.errors import OperationalError
from cutaway.model.labels import LabelHead
from cutaway.runtime import arithmetic
from cutaway.runtime.activation_functions import ACTIVATIONS
from cutaway.store.files import Progress, silent

Pooling = Literal["mean", "cls", "last"]


@runtime_checkable
class Encoding(Protocol):
    """What computes the vectors of the tokens of some texts.

    ``together``: tokens that are read at once, unless one text has more. ``pads``: a text in a batch costs as
    much as the longest, so that texts of like length are read together.
    """

    @property
    def together(self) -> int: ...

    @property
    def pads(self) -> bool: ...

    def encode(
        self, rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None
    ) -> list[np.ndarray]: ...


def vectors(
    engine: Encoding,
    rows: Sequence[Sequence[int]],
    pooling: str,
    normalise: bool = True,
    batch: int = 32,
    progress: Progress = silent,
) -> np.ndarray:
    """float32 [n d]: a vector for each row of ids, of norm one if ``normalise``.

    At most ``batch`` rows are read at once; ``progress`` counts them.
    """
    found = _read(engine, rows, None, batch, "embedding", progress, lambda x: pool(x, pooling))
    out = np.stack(found)
    return out / np.linalg.norm(out, axis=1, keepdims=True).clip(1e-12) if normalise else out


def pool(x: np.ndarray, pooling: str) -> np.ndarray:
    """float32 [d] of a text's tokens [t d]."""
    return x.mean(axis=0, dtype=np.float32) if pooling == "mean" else x[0 if pooling == "cls" else -1]


def logits(
    engine: Encoding,
    head: LabelHead,
    rows: Sequence[Sequence[int]],
    segments: Sequence[Sequence[int]] | None = None,
    batch: int = 32,
    progress: Progress = silent,
) -> list[np.ndarray]:
    """For each row of ids float32 [n] for its labels; ``segments`` of tokens are the first by default."""

    def of_text(x: np.ndarray) -> np.ndarray:
        if head.pooling == "late":
            return of_tokens(head, x).mean(axis=0, dtype=np.float32)
        return of_tokens(head, pool(x, head.pooling)[None])[0]

    return _read(engine, rows, segments, batch, "classifying", progress, of_text)


def token_logits(
    engine: Encoding,
    head: LabelHead,
    rows: Sequence[Sequence[int]],
    segments: Sequence[Sequence[int]] | None = None,
    batch: int = 32,
    progress: Progress = silent,
) -> list[np.ndarray]:
    """Logits of each token's labels: float32 [t n] for each row of ids."""
    made = lambda x: of_tokens(head, x)  # noqa: E731
    return _read(engine, rows, segments, batch, "classifying", progress, made)


def of_tokens(head: LabelHead, x: np.ndarray) -> np.ndarray:
    """A number for each label of each vector: float32 [t n] of [t d]."""
    if head.layer is not None:
        weight, bias, activation, norm = head.layer
        x = _affine(x, weight, bias)
        x = np.tanh(x) if activation == "tanh" else ACTIVATIONS[activation](x)
        if norm is not None:
            x = arithmetic.layer_norm(x, norm.weight, norm.bias, norm.eps)
    return _affine(x, head.weight, head.bias)


def _affine(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    out = x @ weight.T
    return out if bias is None else out + bias


def _read(
    engine: Encoding,
    rows: Sequence[Sequence[int]],
    segments: Sequence[Sequence[int]] | None,
    batch: int,
    doing: str,
    progress: Progress,
    made: Callable[[np.ndarray], np.ndarray],
) -> list[np.ndarray]:
    """What is made of the vectors of each row's tokens; OperationalError if one is NaN."""
    order, out = list(range(len(rows))), dict[int, np.ndarray]()
    if engine.pads:
        order.sort(key=lambda n: len(rows[n]), reverse=True)
    for first, last in _pieces([len(rows[n]) for n in order], batch, engine.together):
        some = order[first:last]
        part = None if segments is None else [segments[n] for n in some]
        for n, x in zip(some, engine.encode([rows[n] for n in some], part), strict=True):
            if np.isnan(x).any():
                raise OperationalError(
                    f"the vectors of text {n} are NaN: check the model's weights, or load them again"
                )
            out[n] = made(x)
        progress(doing, last, len(rows))
    return [out[n] for n in range(len(rows))]


def _pieces(lengths: Sequence[int], batch: int, together: int) -> Iterator[tuple[int, int]]:
    """The rows that are read at once: their begins and ends."""
    first, tokens = 0, 0
    for n, length in enumerate(lengths):
        if n > first and (n - first == batch or tokens + length > together):
            yield first, n
            first, tokens = n, 0
        tokens += length
    if lengths:
        yield first, len(lengths)
