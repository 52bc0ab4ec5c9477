"""Perplexity of a text, and how far a model's predictions are from another model's.

    perplexity = exp(mean of -log p(token | those before it in its window))
    KL divergence = mean over positions of sum over tokens of p (log p - log q)

The text is cut into windows of equal size that do not see each other, and of each window the second half is
scored, so that every scored token has at least half a window before it: the protocol of llama.cpp's
llama-perplexity, token for token. Where the model expects a begin token, it replaces each window's
first token. What is left over at the end is not scored, and the result says how many tokens were. Sums are
float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.evaluate import statistics
from cutaway.generate.engine import AllLogits
from cutaway.store.files import Progress, silent

WINDOW = 512
ROWS = 32  # positions whose probabilities are in float64 at once: bounds memory, changes no sum


@dataclass(frozen=True)
class Perplexity:
    """``surprise``: the mean -log p in nats of the scored ``tokens``; ``error``: its standard error.

    Neighbouring windows are alike, so the error is computed over blocks of windows; it is infinite for one.
    """

    tokens: int
    surprise: float
    error: float

    @property
    def perplexity(self) -> float:
        """e to the mean surprise: among how many equally likely tokens the model seems to choose."""
        return math.exp(self.surprise)


@dataclass(frozen=True)
class Divergence:
    """The difference of a model's predictions from a reference's, over the same ``tokens``.

    ``mean`` is the KL divergence from the reference in nats a token, ``error`` its standard error;
    ``median``, ``high`` (of 99 in 100 tokens it is below) and ``largest`` describe how it is spread;
    ``same_best`` is the fraction of positions where both find the same token most likely."""

    tokens: int
    reference: Perplexity
    other: Perplexity
    mean: float
    error: float
    median: float
    high: float
    largest: float
    same_best: float


def perplexity(
    engine: AllLogits,
    ids: Sequence[int],
    window: int = WINDOW,
    begin: int | None = None,
    progress: Progress = silent,
) -> Perplexity:
    """How well the model predicts a text. ``begin``: the begin token, of a model that expects one.

    ``progress`` counts windows. Raises UserError for a text shorter than a window,
    and for a window that the model's context does not hold; OperationalError where logits are NaN."""
    parts = []
    for each in reported(windows(engine, ids, window, begin), progress):
        parts.append(surprises(scores(engine, each), each[window // 2 + 1 :]))
    return _perplexity(parts)


def divergence(
    reference: AllLogits,
    other: AllLogits,
    ids: Sequence[int],
    window: int = WINDOW,
    begin: int | None = None,
    progress: Progress = silent,
) -> Divergence:
    """How far another model's predictions are from a reference's, and how well each predicts the text.

    Raises UserError and OperationalError as ``perplexity`` does, and UserError for models of different
    vocabularies.
    """
    if reference.vocab != other.vocab:
        raise UserError(f"The vocabularies differ: one has {reference.vocab} logits, the other {other.vocab}")
    surprised, far, same = ([], []), [], 0
    windows(other, ids, window, begin)
    for each in reported(windows(reference, ids, window, begin), progress):
        p, q = scores(reference, each), scores(other, each)
        for logits, of in zip((p, q), surprised, strict=True):
            of.append(surprises(logits, each[window // 2 + 1 :]))
        far.append(divergences(p, q))
        same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
    kl = np.concatenate(far)
    return Divergence(
        tokens=len(kl),
        reference=_perplexity(surprised[0]),
        other=_perplexity(surprised[1]),
        mean=float(kl.mean()),
        error=error(far),
        median=float(np.median(kl)),
        high=float(np.quantile(kl, 0.99)),
        largest=float(kl.max()),
        same_best=same / len(kl),
    )


def windows(engine: AllLogits, ids: Sequence[int], window: int, begin: int | None) -> list[list[int]]:
    """The text's whole windows, each with the begin token first where there is one."""
    if window < 4 or window % 2:
        raise UserError(f"A window of {window} tokens cannot be halved: use an even number, 4 or more")
    if window > engine.max_context:
        raise UserError(f"A window of {window} tokens is more than the context of {engine.max_context}")
    if len(ids) < window:
        raise UserError(
            f"The text has {len(ids)} tokens, and a window takes {window}: "
            "give a longer text or a smaller window"
        )
    every = [list(ids[start : start + window]) for start in range(0, len(ids) - window + 1, window)]
    return every if begin is None else [[begin, *each[1:]] for each in every]


def reported(parts: Sequence[list[int]], progress: Progress) -> Iterator[list[int]]:
    """The parts, while ``progress`` gets how many are done."""
    for done, part in enumerate(parts):
        progress("measuring", done, len(parts))
        yield part
    progress("measuring", len(parts), len(parts))


def scores(engine: AllLogits, window: Sequence[int]) -> np.ndarray:
    """float32 [window/2 - 1, v]: the logits at the positions whose next token is scored."""
    half = len(window) // 2
    state = engine.new_state()
    engine.prefill(window[:half], state)
    logits = engine.prefill_all_logits(window[half:-1], state)
    if not np.isfinite(logits).all():
        raise OperationalError("The model's logits are not all numbers: its weights or its input are broken")
    return logits


def surprises(logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """float64 [n]: -log p of each id, by logits [n v]."""
    parts = [_log_softmax(rows) for rows in _rows(logits)]
    chosen = [
        part[np.arange(len(part)), now] for part, now in zip(parts, _rows(np.asarray(ids)), strict=True)
    ]
    return -np.concatenate(chosen)


def divergences(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """float64 [n]: the KL divergence of softmax(q) from softmax(p), both [n v]."""
    return np.concatenate([_divergences(*pair) for pair in zip(_rows(p), _rows(q), strict=True)])


def _divergences(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    log_p = _log_softmax(p)
    return (np.exp(log_p) * (log_p - _log_softmax(q))).sum(axis=1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def _rows(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), ROWS):
        yield array[start : start + ROWS]


def _perplexity(parts: Sequence[np.ndarray]) -> Perplexity:
    surprise = np.concatenate(parts)
    return Perplexity(len(surprise), float(surprise.mean()), error(parts))


def error(parts: Sequence[np.ndarray]) -> float:
    """The standard error of the mean of what windows hold, taken in at most 20 blocks of whole windows."""
    count = min(statistics.BLOCKS, len(parts))
    block = [n * count // len(parts) for n, part in enumerate(parts) for _ in part]
    return statistics.mean(np.concatenate(parts), block, share=False).error


def margin(error: float, digits: int = 5) -> str:
    """A standard error beside its figure."""
    return f"+/- {error:.{digits}f}" if math.isfinite(error) else "(one window: no error bar)"
