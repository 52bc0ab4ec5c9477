"""Chapter 7's second half, what a past costs: running sums, the KV cache, its bytes, latents, induction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from cutaway.course.attention_masks import causal, masked, unmasked
from cutaway.course.chapter_6 import softmax
from cutaway.course.exercise import Arguments, Exercise, Mistake, Property

PERIOD = 40  # random tokens, then the same again: where heads that copy show themselves


# ---- 7.6 ---------------------------------------------------------------------------------------------------


def _phi(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def _linear_of(f: np.ndarray, g: np.ndarray, v: np.ndarray) -> np.ndarray:
    state = np.cumsum(g[:, :, None] * v[:, None], 0)
    return np.einsum("tf,tfn->tn", f, state) / np.einsum("tf,tf->t", f, np.cumsum(g, 0))[:, None]


def _linear(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _linear_of(_phi(q), _phi(k), v)


def _linear_of_all(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    f, g = _phi(q), _phi(k)
    return f @ (g.T @ v) / (f @ g.sum(0))[:, None]


def _linear_not_divided(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    f, g = _phi(q), _phi(k)
    return np.einsum("tf,tfn->tn", f, np.cumsum(g[:, :, None] * v[:, None], 0))


def _linear_softmax(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return masked(q * math.sqrt(q.shape[-1]), k, v, causal(len(q)))


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
        if np.ndim(vector) != 1:
            raise ValueError(f"project takes the vector of one token, not an array of {np.ndim(vector)} axes")
        self.calls += 1
        if self.calls > self.tokens:
            raise RuntimeError(f"project was called more than {self.tokens} times: a token needs it once")
        return tuple(weight @ vector for weight in self.weights)


def _decoded(x: np.ndarray, project: Projection) -> np.ndarray:
    q, k, v = (x @ weight.T for weight in project.weights)
    return masked(q, k, v, causal(len(x)))


def _sees_all(x: np.ndarray, project: Projection) -> np.ndarray:
    q, k, v = (x @ weight.T for weight in project.weights)
    return unmasked(q, k, v, causal(len(x)))


def _not_itself(x: np.ndarray, project: Projection) -> np.ndarray:
    q, k, v = (x @ weight.T for weight in project.weights)
    before = np.tril(np.ones((len(x), len(x)), bool), -1)
    before[0, 0] = True  # there is nothing before it
    return masked(q, k, v, before)


def _only_those_before(x: np.ndarray, project: Projection) -> np.ndarray:
    found = _not_itself(x, project)
    found[0] = 0  # there is nothing before it
    return found


def _unscaled_decoded(x: np.ndarray, project: Projection) -> np.ndarray:
    q, k, v = (x @ weight.T for weight in project.weights)
    return masked(q * math.sqrt(q.shape[-1]), k, v, causal(len(x)))


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


def _latent_in_each_head(
    kind: str, tokens: int, layers: int, heads: int, groups: int, size: int, latent: int
) -> int:
    return _cache_bytes(kind, tokens, layers, heads, groups, size, latent) * (heads if kind == "mla" else 1)


def _cache_of_a_share(
    kind: str, tokens: int, layers: int, heads: int, groups: int, size: int, latent: int
) -> int:
    return _cache_bytes(kind, tokens, layers, heads, heads // groups, size, latent)


def _cache_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for kind in ("mha", "gqa", "mqa", "mla"):
        yield kind, 8192, 30, 9, 3, 64, 576
        yield kind, int(rng.integers(1, 10**6)), 27, 40, 8, 128, 512


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


def _small_patterns(rng: np.random.Generator) -> np.ndarray:
    """Random causal patterns of 3 layers with 4 heads: 1.2 copies often, 2.3 once and with all its weight."""
    found = np.tril(rng.uniform(0.5, 1, (3, 4, 12, 12)))
    at = np.arange(6, 12)
    found[1, 2, at, at - 5] = 6
    found[2, 3, 8] = np.eye(12)[3]
    return found / found.sum(-1, keepdims=True)


def _induction_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield _small_patterns(rng), 6
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
    at = np.arange(period, patterns.shape[-1])
    most = patterns[:, :, at, at - period + 1].max(-1)
    if (layer, head) == np.unravel_index(most.argmax(), most.shape):
        return "that head has the largest single weight on it: the mean over the second copy is asked for"
    previous = np.diagonal(patterns, -1, 2, 3).mean(-1)
    if (layer, head) == np.unravel_index(previous.argmax(), previous.shape):
        return (
            "that head looks at the token before, which an induction head reads from: it is one of its parts"
        )
    mean = f"{means[layer, head]:.2f}"
    return f"head {layer}.{head} puts a mean weight of {mean} on that token: another has more"


PAST = [
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
            Mistake("phi is missing: without it weights may be negative", _linear_of),
            Mistake(
                "phi is missing for the keys: without it weights may be negative",
                lambda q, k, v: _linear_of(_phi(q), k, v),
            ),
            Mistake(
                "phi(x) is e^x everywhere: above 0 it is x + 1",
                lambda q, k, v: _linear_of(np.exp(q), np.exp(k), v),
            ),
            Mistake(
                "phi(x) is 1 everywhere below 0: there it is e^x",
                lambda q, k, v: _linear_of(np.maximum(q, 0) + 1, np.maximum(k, 0) + 1, v),
            ),
            Mistake("that is a softmax of the scores: here a weight is phi(q) . phi(k)", _linear_softmax),
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
them, with scores divided by the root of n. Returns the outputs [t n].
""",
        cases=_decode_cases,
        reference=_decoded,
        mistakes=(
            Mistake("a token sees what comes after it", _sees_all),
            Mistake("a token does not see itself: keep its key and value before it attends", _not_itself),
            Mistake(
                "a token does not see itself: keep its key and value before it attends", _only_those_before
            ),
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
            Mistake("all heads make their keys and values of the same latent", _latent_in_each_head),
            Mistake("heads / groups is how many heads share one: `groups` are kept", _cache_of_a_share),
            Mistake("each number has 2 bytes, not 4", lambda *asked: 2 * _cache_bytes(*asked)),
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
            Mistake(
                "the softmax is not asked for: scores may have any sign",
                lambda q, latents, w_k: softmax(_absorbed(q, latents, w_k)),
            ),
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

patterns: a model's attention weights, such as SmolLM2's [layers heads t t], in a text of `period` random
tokens that comes twice; entry [l, h, i, j] is how much token i looks at token j. In the second copy, the
token behind the same one in the first copy is what comes next. Returns (layer, head): the head whose mean
weight on it, over the second copy, is largest.
""",
        cases=_induction_cases,
        judge=_induction_judged,
    ),
]
