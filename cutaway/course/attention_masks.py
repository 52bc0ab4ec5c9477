"""Chapter 7's first half, who sees whom: Bahdanau's score, the causal mask, windows, heads that share."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cutaway.course.chapter_6 import softmax
from cutaway.course.exercise import Arguments, Exercise, Mistake, Property

# ---- 7.1 ---------------------------------------------------------------------------------------------------


def _additive(
    queries: np.ndarray, keys: np.ndarray, w: np.ndarray, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    return np.tanh((queries @ w.T)[:, None] + (keys @ u.T)[None]) @ v


def _additive_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for t, s, d, n in ((1, 2, 3, 4), (4, 6, 5, 8)):
        yield (
            rng.normal(size=(t, d)),
            rng.normal(size=(s, d + 1)),
            rng.normal(size=(n, d)),
            rng.normal(size=(n, d + 1)),
            rng.normal(size=n),
        )


# ---- 7.2, 7.3, 7.4 -----------------------------------------------------------------------------------------


def causal(length: int) -> np.ndarray:
    return np.tril(np.ones((length, length), dtype=bool))


def _window(length: int, window: int) -> np.ndarray:
    far = np.arange(length)[:, None] - np.arange(length)
    return (far >= 0) & (far < window)


def _window_one_more(length: int, window: int) -> np.ndarray:
    return _window(length, window + 1)


def _window_both_sides(length: int, window: int) -> np.ndarray:
    far = np.arange(length)[:, None] - np.arange(length)
    return np.abs(far) < window


def _window_of_slices(length: int, window: int) -> np.ndarray:
    seen = np.zeros((length, length), dtype=bool)
    for i in range(length):
        seen[i, i - window + 1 : i + 1] = True
    return seen


def _window_of_blocks(length: int, window: int) -> np.ndarray:
    block = np.arange(length) // window
    return causal(length) & (block[:, None] == block)


def masked(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    scores = np.where(visible, q @ k.T / math.sqrt(q.shape[-1]), -np.inf)
    return softmax(scores) @ v


def _masked_by_zeros(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return softmax(q @ k.T / math.sqrt(q.shape[-1]) * visible) @ v


def _masked_after(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return softmax(q @ k.T / math.sqrt(q.shape[-1])) * visible @ v


def _masked_otherwise(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return softmax(np.where(visible, -1e9, q @ k.T / math.sqrt(q.shape[-1]))) @ v


def _masked_unscaled(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return masked(q * math.sqrt(q.shape[-1]), k, v, visible)


def _masked_over_queries(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    scores = np.where(visible, q @ k.T / math.sqrt(q.shape[-1]), -np.inf)
    return softmax(scores.T).T @ v


def unmasked(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return softmax(q @ k.T / math.sqrt(q.shape[-1])) @ v


def _masked_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for t, d in ((3, 4), (6, 16)):
        yield *(rng.normal(size=(t, d)) for _ in range(3)), causal(t)
    yield *(rng.normal(size=(8, 16)) for _ in range(3)), _window(8, 3)


# ---- 7.5 ---------------------------------------------------------------------------------------------------


def _grouped(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    each = len(q) // len(k)
    visible = causal(q.shape[1])
    return np.stack([masked(q[h], k[h // each], v[h // each], visible) for h in range(len(q))])


def _grouped_by_turns(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    visible = causal(q.shape[1])
    return np.stack([masked(q[h], k[h % len(k)], v[h % len(k)], visible) for h in range(len(q))])


def _first_group_alone(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    visible = causal(q.shape[1])
    return np.stack([masked(one, k[0], v[0], visible) for one in q])


def _grouped_unmasked(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    each, every = len(q) // len(k), np.ones((q.shape[1], q.shape[1]), bool)
    return np.stack([masked(q[h], k[h // each], v[h // each], every) for h in range(len(q))])


def _grouped_unscaled(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _grouped(q * math.sqrt(q.shape[-1]), k, v)


def _grouped_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for heads, groups, t, d in ((4, 2, 3, 4), (9, 3, 5, 8), (6, 1, 4, 8)):
        yield rng.normal(size=(heads, t, d)), rng.normal(size=(groups, t, d)), rng.normal(size=(groups, t, d))


MASKS = [
    Exercise(
        number="7.1",
        title="Bahdanau's score",
        name="additive_scores",
        parameters="queries, keys, w, u, v",
        task="""
The first attention (1409.0473) compared a translator's state with each source word by a small network.

queries: states of the decoder [t d]; keys: states of the encoder [s e]; w: [n d]; u: [n e]; v: [n].
The score of a query q and a key k is v . tanh(w q + u k). Returns an array [t s].
""",
        cases=_additive_cases,
        reference=_additive,
        mistakes=(
            Mistake(
                "the tanh is missing: without it a score is one part of the query and one of the key",
                lambda q, k, w, u, v: ((q @ w.T)[:, None] + (k @ u.T)[None]) @ v,
            ),
            Mistake(
                "the tanh is taken of query and key each: it is of their sum",
                lambda q, k, w, u, v: (np.tanh(q @ w.T)[:, None] + np.tanh(k @ u.T)[None]) @ v,
            ),
            Mistake(
                "that is Luong's product: here the two are added",
                lambda q, k, w, u, v: (q @ w.T) @ (k @ u.T).T,
            ),
            Mistake(
                "the softmax is not asked for: scores may have any sign",
                lambda q, k, w, u, v: softmax(_additive(q, k, w, u, v)),
            ),
        ),
        tolerance=1e-9,
    ),
    Exercise(
        number="7.2",
        title="The causal mask",
        name="causal_mask",
        parameters="length",
        task="""
A token that is being written has not seen what comes after it.

length: the number of tokens. Returns an array of booleans [length length]: entry [i, j] is True where
token i sees token j, which is itself and every earlier one.
""",
        cases=lambda rng: iter([(1,), (4,), (int(rng.integers(5, 20)),)]),
        reference=causal,
        mistakes=(
            Mistake("rows and columns are exchanged: the row is the token that looks", lambda n: causal(n).T),
            Mistake("a token sees itself too", lambda n: np.tril(np.ones((n, n), bool), -1)),
            Mistake("a token sees one that comes after it", lambda n: np.tril(np.ones((n, n), bool), 1)),
            Mistake("that is what is hidden: True is what is seen", lambda n: ~causal(n)),
            Mistake(
                "that is what is added to scores: here True is what is seen",
                lambda n: np.where(causal(n), 0, -np.inf),
            ),
        ),
    ),
    Exercise(
        number="7.3",
        title="A window",
        name="window_mask",
        parameters="length, window",
        task="""
Local attention (2004.05150): a token sees itself and the few tokens before it.

length, window: whole numbers. Returns an array of booleans [length length]: token i sees the last
`window` tokens up to itself: `window` = 1 is itself alone.
""",
        cases=lambda rng: iter([(4, 1), (6, 3), (3, 10), (int(rng.integers(8, 20)), 4)]),
        reference=_window,
        mistakes=(
            Mistake("the window is one token too long: the token itself counts", _window_one_more),
            Mistake("the window is one token too short", lambda n, w: _window(n, w - 1)),
            Mistake("it looks to both sides: later tokens are hidden", _window_both_sides),
            Mistake("nothing is left out: a token sees the last few alone", lambda n, w: causal(n)),
            Mistake("the token itself is hidden", lambda n, w: _window(n, w) & ~np.eye(n, dtype=bool)),
            Mistake("rows and columns are exchanged: the row looks", lambda n, w: _window(n, w).T),
            Mistake("that is what is before the window", lambda n, w: causal(n) & ~_window(n, w)),
            Mistake("a slice that begins below 0 counts from the end", _window_of_slices),
            Mistake("the text is cut into blocks: each token has a window of its own", _window_of_blocks),
        ),
    ),
    Exercise(
        number="7.4",
        title="Attention behind a mask",
        name="masked_attention",
        parameters="q, k, v, visible",
        task="""
Scores are divided by the root of d, as in 6.4; but a hidden key has a weight of 0, and the weights of the
seen ones sum to 1.

q, k, v: [t d] each; visible: booleans [t t], True where the row's token sees the column's; a mask need
not be causal. Returns an array [t d].
""",
        cases=_masked_cases,
        reference=masked,
        mistakes=(
            Mistake(
                "a hidden score is 0, and e^0 is 1: it must be -infinity before the softmax",
                _masked_by_zeros,
            ),
            Mistake("the mask comes after the softmax: then the weights no longer sum to 1", _masked_after),
            Mistake("the seen ones are hidden: True is what is seen", _masked_otherwise),
            Mistake("nothing is hidden", unmasked),
            Mistake("the scores are not divided by the root of d", _masked_unscaled),
            Mistake(
                "it hides what comes later, and nothing else: the mask is given",
                lambda q, k, v, visible: masked(q, k, v, causal(len(q))),
            ),
            Mistake("the weights of a key sum to 1: those of a query should", _masked_over_queries),
        ),
        properties=(
            Property(
                "the first token sees itself alone under a causal mask: its output should be its own value",
                lambda g, f: np.allclose(np.asarray(f)[0], g[2][0]),
            ),
        ),
    ),
    Exercise(
        number="7.5",
        title="Grouped queries",
        name="grouped_attention",
        parameters="q, k, v",
        task="""
Keys and values of the past are what fills memory. Grouped-query attention (2305.13245) lets several query
heads share one key head and one value head; with one group it is multi-query attention (1911.02150).

q: [h t d]; k, v: [g t d], h a multiple of g. The first h/g query heads read key and value head 0, the
next h/g head 1, and so on. Scores are divided by the root of d; the mask is causal. Returns an array
[h t d].
""",
        cases=_grouped_cases,
        reference=_grouped,
        mistakes=(
            Mistake(
                "heads take turns (0, 1, 0, 1): neighbours share a group (0, 0, 1, 1)", _grouped_by_turns
            ),
            Mistake("all heads read the first group", _first_group_alone),
            Mistake("the mask is missing", _grouped_unmasked),
            Mistake("the scores are not divided by the root of d", _grouped_unscaled),
        ),
    ),
]
