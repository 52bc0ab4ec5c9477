"""Chapter 7, attention from Bahdanau to latents: masks, windows, shared heads, running sums, caches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from cutaway.course.chapter_6 import _softmax as softmax
from cutaway.course.exercise import Arguments, Exercise, Mistake, Property

TITLE = "Attention, from Bahdanau to latents"
QUESTION = (
    "Attention compares all tokens with all tokens. What was it invented for, and how is it made cheaper?"
)
PERIOD = 40  # random tokens, then the same again: where heads that copy show themselves


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


def _causal(length: int) -> np.ndarray:
    return np.tril(np.ones((length, length), dtype=bool))


def _window(length: int, window: int) -> np.ndarray:
    far = np.arange(length)[:, None] - np.arange(length)
    return (far >= 0) & (far < window)


def _window_one_more(length: int, window: int) -> np.ndarray:
    return _window(length, window + 1)


def _window_both_sides(length: int, window: int) -> np.ndarray:
    far = np.arange(length)[:, None] - np.arange(length)
    return np.abs(far) < window


def _masked(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    scores = np.where(visible, q @ k.T / math.sqrt(q.shape[-1]), -np.inf)
    return softmax(scores) @ v


def _masked_by_zeros(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return softmax(q @ k.T / math.sqrt(q.shape[-1]) * visible) @ v


def _masked_after(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return softmax(q @ k.T / math.sqrt(q.shape[-1])) * visible @ v


def _masked_otherwise(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return softmax(np.where(visible, -1e9, q @ k.T / math.sqrt(q.shape[-1]))) @ v


def _unmasked(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return softmax(q @ k.T / math.sqrt(q.shape[-1])) @ v


def _masked_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for t, d in ((3, 4), (6, 16)):
        yield *(rng.normal(size=(t, d)) for _ in range(3)), _causal(t)
    yield *(rng.normal(size=(8, 16)) for _ in range(3)), _window(8, 3)


# ---- 7.5 ---------------------------------------------------------------------------------------------------


def _grouped(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    each = len(q) // len(k)
    visible = _causal(q.shape[1])
    return np.stack([_masked(q[h], k[h // each], v[h // each], visible) for h in range(len(q))])


def _grouped_by_turns(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    visible = _causal(q.shape[1])
    return np.stack([_masked(q[h], k[h % len(k)], v[h % len(k)], visible) for h in range(len(q))])


def _first_group_alone(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    visible = _causal(q.shape[1])
    return np.stack([_masked(one, k[0], v[0], visible) for one in q])


def _grouped_unmasked(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    each, every = len(q) // len(k), np.ones((q.shape[1], q.shape[1]), bool)
    return np.stack([_masked(q[h], k[h // each], v[h // each], every) for h in range(len(q))])


def _grouped_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for heads, groups, t, d in ((4, 2, 3, 4), (9, 3, 5, 8), (6, 1, 4, 8)):
        yield rng.normal(size=(heads, t, d)), rng.normal(size=(groups, t, d)), rng.normal(size=(groups, t, d))


# ---- 7.6 ---------------------------------------------------------------------------------------------------


def _phi(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def _linear(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    f, g = _phi(q), _phi(k)
    state = np.cumsum(g[:, :, None] * v[:, None], 0)
    return np.einsum("tf,tfn->tn", f, state) / np.einsum("tf,tf->t", f, np.cumsum(g, 0))[:, None]


def _linear_of_all(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    f, g = _phi(q), _phi(k)
    return f @ (g.T @ v) / (f @ g.sum(0))[:, None]


def _linear_not_divided(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    f, g = _phi(q), _phi(k)
    return np.einsum("tf,tfn->tn", f, np.cumsum(g[:, :, None] * v[:, None], 0))


def _linear_without_phi(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    state = np.cumsum(k[:, :, None] * v[:, None], 0)
    return np.einsum("tf,tfn->tn", q, state) / np.einsum("tf,tf->t", q, np.cumsum(k, 0))[:, None]


def _linear_before(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    f, g = _phi(q), _phi(k)
    state, total = np.zeros((q.shape[1], v.shape[1])), np.zeros(q.shape[1])
    found = []
    for i in range(len(q)):
        found.append(f[i] @ state / max(float(f[i] @ total), 1e-9))
        state, total = state + np.outer(g[i], v[i]), total + g[i]
    return np.stack(found)


def _linear_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for t, f, n in ((1, 3, 2), (5, 4, 3), (40, 8, 8)):
        yield rng.normal(size=(t, f)), rng.normal(size=(t, f)), rng.normal(size=(t, n))


# ---- 7.7 ---------------------------------------------------------------------------------------------------


class Projection:
    """Makes the query, key and value of one token; more calls than tokens are an error."""

    def __init__(self, weights: np.ndarray, tokens: int) -> None:
        self.weights, self.tokens, self.calls = weights, tokens, 0

    def __call__(self, vector: np.ndarray) -> tuple[np.ndarray, ...]:
        self.calls += 1
        if self.calls > self.tokens:
            raise RuntimeError(f"project was called more than {self.tokens} times: a token needs it once")
        return tuple(weight @ vector for weight in self.weights)


def _decoded(x: np.ndarray, project: Projection) -> np.ndarray:
    q, k, v = (x @ weight.T for weight in project.weights)
    return _masked(q, k, v, _causal(len(x)))


def _sees_all(x: np.ndarray, project: Projection) -> np.ndarray:
    q, k, v = (x @ weight.T for weight in project.weights)
    return _unmasked(q, k, v, _causal(len(x)))


def _not_itself(x: np.ndarray, project: Projection) -> np.ndarray:
    q, k, v = (x @ weight.T for weight in project.weights)
    before = np.tril(np.ones((len(x), len(x)), bool), -1)
    before[0, 0] = True  # there is nothing before it
    return _masked(q, k, v, before)


def _unscaled_decoded(x: np.ndarray, project: Projection) -> np.ndarray:
    q, k, v = (x @ weight.T for weight in project.weights)
    return _masked(q * math.sqrt(q.shape[-1]), k, v, _causal(len(x)))


def _keys_not_kept(x: np.ndarray, project: Projection) -> np.ndarray:
    return np.stack([project(one)[2] for one in x])


def _decode_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for t, d, n in ((2, 4, 3), (9, 8, 4), (60, 32, 16)):
        yield rng.normal(size=(t, d)), Projection(rng.normal(size=(3, n, d)) / math.sqrt(d), t)


# ---- 7.8 ---------------------------------------------------------------------------------------------------


def _cache_bytes(kind: str, tokens: int, layers: int, heads: int, groups: int, size: int, latent: int) -> int:
    numbers = {"mha": 2 * heads * size, "gqa": 2 * groups * size, "mqa": 2 * size, "mla": latent}[kind]
    return 2 * tokens * layers * numbers


def _cache_of_keys_alone(
    kind: str, tokens: int, layers: int, heads: int, groups: int, size: int, latent: int
) -> int:
    return _cache_bytes(kind, tokens, layers, heads, groups, size, latent) // (1 if kind == "mla" else 2)


def _cache_in_numbers(
    kind: str, tokens: int, layers: int, heads: int, groups: int, size: int, latent: int
) -> int:
    return _cache_bytes(kind, tokens, layers, heads, groups, size, latent) // 2


def _cache_of_one_layer(
    kind: str, tokens: int, layers: int, heads: int, groups: int, size: int, latent: int
) -> int:
    return _cache_bytes(kind, tokens, 1, heads, groups, size, latent)


def _latents_twice(
    kind: str, tokens: int, layers: int, heads: int, groups: int, size: int, latent: int
) -> int:
    return _cache_bytes(kind, tokens, layers, heads, groups, size, latent) * (2 if kind == "mla" else 1)


def _cache_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for kind in ("mha", "gqa", "mqa", "mla"):
        yield kind, 8192, 30, 9, 3, 64, 576
        yield kind, int(rng.integers(1, 10**6)), 27, 16, 4, 128, 576


# ---- 7.9 ---------------------------------------------------------------------------------------------------


def _absorbed(q: np.ndarray, latents: np.ndarray, w_k: np.ndarray) -> np.ndarray:
    return np.einsum("htn,hnl->htl", q, w_k) @ latents.T / math.sqrt(q.shape[-1])


def _absorbed_by_latent_size(q: np.ndarray, latents: np.ndarray, w_k: np.ndarray) -> np.ndarray:
    return _absorbed(q, latents, w_k) * math.sqrt(q.shape[-1] / latents.shape[-1])


def _absorbed_unscaled(q: np.ndarray, latents: np.ndarray, w_k: np.ndarray) -> np.ndarray:
    return _absorbed(q, latents, w_k) * math.sqrt(q.shape[-1])


def _absorbed_with_one_head(q: np.ndarray, latents: np.ndarray, w_k: np.ndarray) -> np.ndarray:
    return _absorbed(q, latents, np.repeat(w_k[:1], len(w_k), 0))


def _absorbed_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for heads, t, s, n, latent in ((2, 1, 3, 4, 5), (3, 2, 6, 8, 4), (16, 1, 2000, 128, 64)):
        yield (
            rng.normal(size=(heads, t, n)),
            rng.normal(size=(s, latent)),
            rng.normal(size=(heads, n, latent)) / math.sqrt(latent),
        )


# ---- 7.10 --------------------------------------------------------------------------------------------------


@cache
def _repeated() -> np.ndarray:
    """[layers heads t t]: SmolLM2's attention weights in random tokens that come twice."""
    import cutaway

    lm = cutaway.load("smollm2")
    ids = np.random.default_rng(7).integers(1000, 40_000, PERIOD).tolist()
    names = [f"blocks.{n}.attention.pattern" for n in range(len(lm.config.blocks))]
    trace = lm.trace([*ids, *ids], names=names)
    return np.stack([np.asarray(trace[name]) for name in names])


def _copying(patterns: np.ndarray, period: int, ahead: int = 1) -> np.ndarray:
    """[layers heads]: the mean weight, in the second copy, on the token behind the same one in the first."""
    at = np.arange(period, patterns.shape[-1])
    return patterns[:, :, at, at - period + ahead].mean(-1)


def _induction_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield _repeated(), PERIOD


def _induction_judged(arguments: Arguments, result: Any) -> str | None:
    patterns, period = arguments
    means = _copying(patterns, period)
    try:
        layer, head = (int(one) for one in result)
    except (TypeError, ValueError):
        return "the result should be two whole numbers: layer and head"
    if not (0 <= layer < means.shape[0] and 0 <= head < means.shape[1]):
        return (
            f"there is no head {layer}.{head}: they go from 0.0 to {means.shape[0] - 1}.{means.shape[1] - 1}"
        )
    if means[layer, head] == means.max():
        return None
    same = _copying(patterns, period, 0)
    if (layer, head) == np.unravel_index(same.argmax(), same.shape):
        return "that head looks at the same token in the first copy, not at the one behind it"
    previous = np.diagonal(patterns, -1, 2, 3).mean(-1)
    if (layer, head) == np.unravel_index(previous.argmax(), previous.shape):
        return (
            "that head looks at the token before, which an induction head reads from: it is one of its parts"
        )
    mean = f"{means[layer, head]:.2f}"
    return f"head {layer}.{head} puts a mean weight of {mean} on that token: another has more"


EXERCISES = [
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
        reference=_causal,
        mistakes=(
            Mistake(
                "rows and columns are exchanged: the row is the token that looks", lambda n: _causal(n).T
            ),
            Mistake("a token sees itself too", lambda n: np.tril(np.ones((n, n), bool), -1)),
            Mistake("a token sees one that comes after it", lambda n: np.tril(np.ones((n, n), bool), 1)),
            Mistake("that is what is hidden: True is what is seen", lambda n: ~_causal(n)),
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
            Mistake("it looks to both sides: later tokens are hidden", _window_both_sides),
            Mistake("nothing is left out: a token sees the last few alone", lambda n, w: _causal(n)),
            Mistake("the token itself is hidden", lambda n, w: _window(n, w) & ~np.eye(n, dtype=bool)),
        ),
    ),
    Exercise(
        number="7.4",
        title="Attention behind a mask",
        name="masked_attention",
        parameters="q, k, v, visible",
        task="""
q, k, v: [t d] each; visible: booleans [t t], True where the row's token sees the column's. As in 6.4, but
a hidden key has a weight of 0, and the weights of the seen ones sum to 1. Returns an array [t d].
""",
        cases=_masked_cases,
        reference=_masked,
        mistakes=(
            Mistake(
                "a hidden score is 0, and e^0 is 1: it must be -infinity before the softmax",
                _masked_by_zeros,
            ),
            Mistake("the mask comes after the softmax: then the weights no longer sum to 1", _masked_after),
            Mistake("the seen ones are hidden: True is what is seen", _masked_otherwise),
            Mistake("nothing is hidden", _unmasked),
        ),
        properties=(
            Property(
                "the first token sees itself alone under a causal mask: its output is its own value",
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
next h/g head 1, and so on. The mask is causal. Returns an array [h t d].
""",
        cases=_grouped_cases,
        reference=_grouped,
        mistakes=(
            Mistake(
                "heads take turns (0, 1, 0, 1): neighbours share a group (0, 0, 1, 1)", _grouped_by_turns
            ),
            Mistake("all heads read the first group", _first_group_alone),
            Mistake("the mask is missing", _grouped_unmasked),
        ),
    ),
    Exercise(
        number="7.6",
        title="Linear attention: a running sum",
        name="linear_attention",
        parameters="q, k, v",
        task="""
With a product of features instead of e^(q . k) the past becomes one matrix that is added to (2006.16236).

q, k: [t f]; v: [t n]. Let phi(x) = x + 1 where x > 0, else e^x, number by number. The output of token i
is sum over j <= i of (phi(q_i) . phi(k_j)) v_j, divided by the sum over j <= i of phi(q_i) . phi(k_j).
Returns an array [t n].
""",
        cases=_linear_cases,
        reference=_linear,
        mistakes=(
            Mistake("every token is read: a token reads itself and what was before", _linear_of_all),
            Mistake("it is not divided by the sum of the weights", _linear_not_divided),
            Mistake("phi is missing: without it weights may be negative", _linear_without_phi),
            Mistake("a token does not read itself: add its key and value before it is read", _linear_before),
        ),
        properties=(
            Property(
                "a mean with positive weights cannot be outside of the values",
                lambda g, f: np.all(f <= g[2].max(0) + 1e-9) and np.all(f >= g[2].min(0) - 1e-9),
            ),
        ),
    ),
    Exercise(
        number="7.7",
        title="The KV cache",
        name="decode",
        parameters="x, project",
        task="""
A text grows by one token at a time. The keys and values of earlier tokens do not change: keep them.

x: the vectors of tokens in the order in which they come [t d]; project: a function that makes (query,
key, value) of one vector, each of n numbers, and may be called once for each token. Go through the tokens
one by one: make the three, keep key and value, and let the query attend to all keys so far, its own among
them. Returns the outputs [t n].
""",
        cases=_decode_cases,
        reference=_decoded,
        mistakes=(
            Mistake("a token sees what comes after it", _sees_all),
            Mistake("a token does not see itself: keep its key and value before it attends", _not_itself),
            Mistake("the scores are not divided by the root of n", _unscaled_decoded),
            Mistake("a token sees itself alone: keep the keys and values of those before", _keys_not_kept),
        ),
    ),
    Exercise(
        number="7.8",
        title="What a cache weighs",
        name="cache_bytes",
        parameters="kind, tokens, layers, heads, groups, size, latent",
        task="""
The bytes that the cache of a text takes, at 2 bytes a number.

kind: "mha" (each head has a key and a value), "gqa" (each of `groups` has), "mqa" (one key and one value
for all) or "mla" (one latent of so many numbers for all heads, from which keys and values are made);
size: the numbers of one key, and of one value. Returns a whole number: the bytes for so many tokens in
all layers.
""",
        cases=_cache_cases,
        reference=_cache_bytes,
        mistakes=(
            Mistake("a token has a key and a value: the cache keeps both", _cache_of_keys_alone),
            Mistake("that is how many numbers it keeps: each has 2 bytes", _cache_in_numbers),
            Mistake("every layer has a cache of its own", _cache_of_one_layer),
            Mistake("one latent is key and value at once: it is kept once", _latents_twice),
        ),
        imports="",
    ),
    Exercise(
        number="7.9",
        title="Latents, absorbed",
        name="latent_scores",
        parameters="q, latents, w_k",
        task="""
Multi-head latent attention (2405.04434) keeps one short latent a token. A head's key is w_k times the
latent, but it need not be made: q . (w_k c) = (w_k^T q) . c, so the query moves to the latents instead.

q: queries of all heads [h t n]; latents: [s l]; w_k: a matrix for each head [h n l]. Returns the scores
[h t s], divided by the root of n. With 2,000 latents and 16 heads it must not take more than 1 MB: the
keys of all heads would be 33.
""",
        cases=_absorbed_cases,
        reference=_absorbed,
        mistakes=(
            Mistake(
                "the scores are divided by the root of the latent's size: a key has n numbers",
                _absorbed_by_latent_size,
            ),
            Mistake("the scores are not divided by the root of n", _absorbed_unscaled),
            Mistake("all heads use the first head's matrix", _absorbed_with_one_head),
        ),
        memory=1 << 20,
    ),
    Exercise(
        number="7.10",
        title="Find the induction head",
        name="induction_head",
        parameters="patterns, period",
        task="""
A model that has seen "Mary gave ... Mary" expects "gave". A head that looks at what followed the last
time does that.

patterns: SmolLM2's attention weights [layers heads t t] in a text of `period` random tokens that comes
twice; entry [l, h, i, j] is how much token i looks at token j. In the second copy, the token behind the
same one in the first copy is what comes next. Returns (layer, head): the head whose mean weight on it,
over the second copy, is largest.
""",
        cases=_induction_cases,
        judge=_induction_judged,
    ),
]
