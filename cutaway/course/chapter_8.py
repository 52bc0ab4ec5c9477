"""Chapter 8, architecture: norms, gated MLPs, blocks, counts, adapters, routers, the logit lens, bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from cutaway.course.chapter_6 import softmax
from cutaway.course.exercise import Arguments, Exercise, Mistake, Property
from cutaway.course.normed import SIZES

TITLE = "Architecture, and what runs in parallel"
QUESTION = (
    "What is between the embedding of a token and the prediction of the next, and what of it must wait?"
)
Layer = Callable[[np.ndarray], np.ndarray]


# ---- 8.1 ---------------------------------------------------------------------------------------------------


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def _norm_by_length(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + eps) * weight


def _norm_without_root(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / ((x * x).mean(-1, keepdims=True) + eps) * weight


def _layer_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight


def _norm_of_all(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean() + eps) * weight


def _norm_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.array([[3.0, 4.0]]), np.ones(2), 0.0
    yield rng.normal(size=(4, 8)) + 1, rng.normal(size=8), 1e-5
    yield 1e-3 * rng.normal(size=(2, 8)), np.ones(8), 1e-5  # where eps counts


# ---- 8.2 ---------------------------------------------------------------------------------------------------


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _swiglu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    return (_silu(x @ gate.T) * (x @ up.T)) @ down.T


def _gate_of_up(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    return ((x @ gate.T) * _silu(x @ up.T)) @ down.T


def _gate_sigmoid(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    return (x @ up.T / (1 + np.exp(-(x @ gate.T)))) @ down.T


def _gate_added(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    return (_silu(x @ gate.T) + x @ up.T) @ down.T


def _gate_relu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    return (np.maximum(x @ gate.T, 0) * (x @ up.T)) @ down.T


def _mlp_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for t, d, m in ((1, 2, 3), (5, 8, 12)):
        yield (
            rng.normal(size=(t, d)),
            rng.normal(size=(m, d)),
            rng.normal(size=(m, d)),
            rng.normal(size=(d, m)),
        )


# ---- 8.3 ---------------------------------------------------------------------------------------------------


class Named:
    """A layer of random numbers: a matrix, and a number of its own that is added."""

    def __init__(self, weight: np.ndarray, shift: float = 0.0) -> None:
        self.weight, self.shift = weight, shift

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.tanh(x @ self.weight) + self.shift


def _block(x: np.ndarray, norm_1: Layer, attention: Layer, norm_2: Layer, mlp: Layer) -> np.ndarray:
    x = x + attention(norm_1(x))
    return x + mlp(norm_2(x))


def _block_without_residual(
    x: np.ndarray, norm_1: Layer, attention: Layer, norm_2: Layer, mlp: Layer
) -> np.ndarray:
    return mlp(norm_2(attention(norm_1(x))))


def _block_parallel(x: np.ndarray, norm_1: Layer, attention: Layer, norm_2: Layer, mlp: Layer) -> np.ndarray:
    return x + attention(norm_1(x)) + mlp(norm_2(x))


def _block_post_norm(x: np.ndarray, norm_1: Layer, attention: Layer, norm_2: Layer, mlp: Layer) -> np.ndarray:
    x = norm_1(x + attention(x))
    return norm_2(x + mlp(x))


def _block_residual_of_norm(
    x: np.ndarray, norm_1: Layer, attention: Layer, norm_2: Layer, mlp: Layer
) -> np.ndarray:
    x = norm_1(x)
    x = x + attention(x)
    x = norm_2(x)
    return x + mlp(x)


def _block_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for t, d in ((1, 3), (4, 8)):
        yield (
            rng.normal(size=(t, d)),
            *(Named(rng.normal(size=(d, d)), float(rng.normal())) for _ in range(4)),
        )


# ---- 8.4 ---------------------------------------------------------------------------------------------------


def _parameters(
    vocab: int, width: int, layers: int, heads: int, groups: int, size: int, neurons: int, tied: bool
) -> int:
    attention = width * size * (2 * heads + 2 * groups)
    each = attention + 3 * width * neurons + 2 * width
    return layers * each + width + vocab * width * (1 if tied else 2)


def _counted(change: str) -> Callable[..., int]:
    def wrong(
        vocab: int, width: int, layers: int, heads: int, groups: int, size: int, neurons: int, tied: bool
    ) -> int:
        right = _parameters(vocab, width, layers, heads, groups, size, neurons, tied)
        off = {
            "head": vocab * width if tied else -vocab * width,
            "groups": layers * width * size * 2 * (heads - groups),
            "mlp": -layers * width * neurons,
            "output": -layers * width * size * heads,
            "norms": -(2 * layers + 1) * width,
        }
        return right + off[change]

    return wrong


def _parameter_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield 49152, 576, 30, 9, 3, 64, 1536, True  # SmolLM2-135M
    yield 128256, 2048, 16, 32, 8, 64, 8192, False
    yield int(rng.integers(10, 99)), 8, int(rng.integers(2, 5)), 6, 3, 3, 5, True


# ---- 8.5 ---------------------------------------------------------------------------------------------------


def _adapted(x: np.ndarray, weight: np.ndarray, a: np.ndarray, b: np.ndarray, alpha: float) -> np.ndarray:
    return x @ weight.T + alpha / len(a) * (x @ a.T @ b.T)


def _adapted_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for t, d, o, r in ((1, 3, 2, 1), (5, 16, 8, 4), (2, 512, 384, 4)):  # the last shows the memory taken
        yield (
            rng.normal(size=(t, d)),
            rng.normal(size=(o, d)),
            rng.normal(size=(r, d)),
            rng.normal(size=(o, r)),
            8.0,
        )


# ---- 8.6 ---------------------------------------------------------------------------------------------------


def _routed(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
    return chosen, softmax(np.take_along_axis(scores, chosen, -1))


def _routed_by_all(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
    return chosen, np.take_along_axis(softmax(scores), chosen, -1)


def _routed_to_the_worst(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.argsort(scores, axis=-1, kind="stable")[:, :k]
    return chosen, softmax(np.take_along_axis(scores, chosen, -1))


def _routed_upwards(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    chosen, weights = _routed(scores, k)
    return chosen[:, ::-1], weights[:, ::-1]


def _routed_alike(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    chosen, weights = _routed(scores, k)
    return chosen, np.full_like(weights, 1 / k)


def _router_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.array([[1.0, 3.0, 2.0]]), 2
    yield rng.normal(size=(6, 8)), 2
    yield rng.normal(size=(4, 16)) * 3, 4


# ---- 8.7 ---------------------------------------------------------------------------------------------------


def _lens(stream: np.ndarray, norm: np.ndarray, unembed: np.ndarray, eps: float) -> np.ndarray:
    return _rms_norm(stream, norm, eps) @ unembed.T


def _lens_without_norm(stream: np.ndarray, norm: np.ndarray, unembed: np.ndarray, eps: float) -> np.ndarray:
    return stream @ unembed.T


def _lens_without_weight(stream: np.ndarray, norm: np.ndarray, unembed: np.ndarray, eps: float) -> np.ndarray:
    return _rms_norm(stream, np.ones_like(norm), eps) @ unembed.T


def _lens_probabilities(stream: np.ndarray, norm: np.ndarray, unembed: np.ndarray, eps: float) -> np.ndarray:
    return softmax(_rms_norm(stream, norm, eps) @ unembed.T)


def _lens_of_the_last(stream: np.ndarray, norm: np.ndarray, unembed: np.ndarray, eps: float) -> np.ndarray:
    return np.repeat(_lens(stream[-1:], norm, unembed, eps), len(stream), 0)


def _lens_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield rng.normal(size=(3, 4)), rng.uniform(0.1, 3, size=4), rng.normal(size=(6, 4)), 1e-5
    yield rng.normal(size=(9, 16)), rng.uniform(0.1, 3, size=16), rng.normal(size=(50, 16)), 1e-5


# ---- 8.8 ---------------------------------------------------------------------------------------------------


def _intensity(rows: int, columns: int, tokens: int, bits: int) -> float:
    return 2 * rows * columns * tokens / (rows * columns * bits / 8)


def _intensity_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield 576, 576, 1, 16
    yield 2048, 8192, 1, 4
    yield 64, 64, 1, 6
    yield int(rng.integers(100, 5000)), 1024, 512, 8


LENS = (
    Mistake("the final norm is missing: the unembedding reads what the norm puts out", _lens_without_norm),
    Mistake("the norm's weight is missing", _lens_without_weight),
    Mistake("those are probabilities: logits are asked for", _lens_probabilities),
    Mistake("every layer shows the last one's logits", _lens_of_the_last),
)
EXERCISES = [
    Exercise(
        number="8.1",
        title="RMSNorm",
        name="rms_norm",
        parameters="x, weight, eps",
        task="""
Before every layer a token's vector is brought to one size (1910.07467).

x: vectors [t d]; weight: [d]; eps: a small number. Each vector is divided by the root of (the mean of its
squares plus eps), then multiplied by the weight, number by number. Returns an array [t d].
""",
        cases=_norm_cases,
        reference=_rms_norm,
        properties=SIZES,
        mistakes=(
            Mistake(
                "it divides by the length: it is the root of the mean of squares, not of their sum",
                _norm_by_length,
            ),
            Mistake("the root is missing", _norm_without_root),
            Mistake("the mean is taken off: that is layer norm", _layer_norm),
            Mistake("all vectors share one size: each has its own", _norm_of_all),
            Mistake(
                "eps is added after the root",
                lambda x, w, e: x / (np.sqrt((x * x).mean(-1, keepdims=True)) + e) * w,
            ),
        ),
    ),
    Exercise(
        number="8.2",
        title="A gated MLP",
        name="swiglu",
        parameters="x, gate, up, down",
        task="""
What a token does with what it has read (SwiGLU, 2002.05202).

x: vectors [t d]; gate, up: [m d]; down: [d m]. Each of m neurons has a gate value z and an up value u,
from its row of each matrix; its activation is silu(z) u, where silu(z) = z / (1 + e^-z). Their
activations meet the matrix down. Returns an array [t d].
""",
        cases=_mlp_cases,
        reference=_swiglu,
        mistakes=(
            Mistake("silu is of the gate, not of up", _gate_of_up),
            Mistake("the gate is a sigmoid: silu multiplies by the gate's own value as well", _gate_sigmoid),
            Mistake("gate and up are multiplied, not added", _gate_added),
            Mistake("that is ReLU: silu lets a little of negative values through", _gate_relu),
        ),
    ),
    Exercise(
        number="8.3",
        title="A block",
        name="block",
        parameters="x, norm_1, attention, norm_2, mlp",
        task="""
A block adds to the residual stream twice: what attention read, then what the MLP made of it.

x: the stream [t d]; the others are functions from [t d] to [t d]. Attention reads the stream through
norm_1, and what it gives is added to the stream; the MLP reads the new stream through norm_2, and is
added too. Returns [t d].
""",
        cases=_block_cases,
        reference=_block,
        mistakes=(
            Mistake("the residual is missing: layers add to the stream", _block_without_residual),
            Mistake(
                "the MLP reads the old stream: that is a parallel block; here it reads what attention added",
                _block_parallel,
            ),
            Mistake(
                "the norms come after: that is post-norm (2017); here a layer reads through its norm",
                _block_post_norm,
            ),
            Mistake("the stream itself is normed: only what a layer reads is", _block_residual_of_norm),
        ),
    ),
    Exercise(
        number="8.4",
        title="Count the weights",
        name="parameters",
        parameters="vocab, width, layers, heads, groups, size, neurons, tied",
        task="""
How many numbers does a model have?

Its embedding has one vector of `width` for each token. Each layer has W_q and W_o for all heads, W_k and
W_v for all groups (each head `size` numbers), a gated MLP of `neurons`, and two norms with a weight of
`width`; after the last layer is one more norm. The unembedding is the embedding itself if `tied`, else a
table of its own. There are no biases. Returns a whole number.
""",
        cases=_parameter_cases,
        reference=_parameters,
        mistakes=(
            Mistake(
                "the unembedding: a tied one is the embedding itself, an untied one is a second table",
                _counted("head"),
            ),
            Mistake(
                "keys and values have fewer heads than queries: there are `groups` of them",
                _counted("groups"),
            ),
            Mistake("a gated MLP has three matrices: gate, up, down", _counted("mlp")),
            Mistake("attention has a fourth matrix, W_o", _counted("output")),
            Mistake("the norms have weights too: two a layer, and the last", _counted("norms")),
        ),
        imports="",
    ),
    Exercise(
        number="8.5",
        title="LoRA",
        name="adapted",
        parameters="x, weight, a, b, alpha",
        task="""
A model is tuned by a small addition to a large matrix (2106.09685).

x: [t d]; weight: [o d]; a: [r d]; b: [o r]; alpha: a number. The weight becomes weight + (alpha / r) b a.
Neither that sum nor b a [o d] is made: both are as large as the weight. Returns the output [t o].
""",
        cases=_adapted_cases,
        memory=1 << 18,
        large="is a matrix as large as the weight made on the way?",
        reference=_adapted,
        mistakes=(
            Mistake(
                "the scale is alpha / r: alpha alone is not divided",
                lambda x, w, a, b, s: x @ w.T + s * (x @ a.T @ b.T),
            ),
            Mistake("the scale is missing", lambda x, w, a, b, s: x @ w.T + x @ a.T @ b.T),
            Mistake(
                "the weight itself is missing: the addition comes on top",
                lambda x, w, a, b, s: s / len(a) * (x @ a.T @ b.T),
            ),
            Mistake(
                "the scale is alpha over the root of r: that is rsLoRA",
                lambda x, w, a, b, s: x @ w.T + s / math.sqrt(len(a)) * (x @ a.T @ b.T),
            ),
            Mistake("it is subtracted", lambda x, w, a, b, s: x @ w.T - s / len(a) * (x @ a.T @ b.T)),
        ),
    ),
    Exercise(
        number="8.6",
        title="A router",
        name="route",
        parameters="scores, k",
        task="""
In a mixture of experts (2101.03961, Mixtral 2401.04088) a token visits a few of many MLPs.

scores: one for each expert [t e]. Choose the k experts with the largest scores, the largest first; their
weights are a softmax over the k scores alone. Returns two arrays: the experts' numbers [t k] and the
weights [t k].
""",
        cases=_router_cases,
        reference=_routed,
        mistakes=(
            Mistake("the softmax is over all experts: here it is over the chosen ones alone", _routed_by_all),
            Mistake("it chooses the worst", _routed_to_the_worst),
            Mistake("the largest comes first", _routed_upwards),
            Mistake("the chosen ones are weighted alike", _routed_alike),
        ),
        properties=(
            Property("the weights of a token should sum to 1", lambda g, f: np.allclose(np.sum(f[1], -1), 1)),
        ),
    ),
    Exercise(
        number="8.7",
        title="The logit lens",
        name="logit_lens",
        parameters="stream, norm, unembed, eps",
        task="""
What would the model say if it stopped after this layer?

stream: the residual stream of one token after each layer [layers d]; norm: the final norm's weight [d];
unembed: one row a token [v d]; eps: the norm's. Read each layer's stream as if it were the last: through
the final RMSNorm, then through the unembedding. Returns the logits after each layer [layers v].
""",
        cases=_lens_cases,
        reference=_lens,
        properties=SIZES,
        mistakes=LENS,
    ),
    Exercise(
        number="8.8",
        title="What bounds a token",
        name="intensity",
        parameters="rows, columns, tokens, bits",
        task="""
Is a matrix waiting for memory or for arithmetic?

A matrix of rows x columns weights of so many bits each is read once from memory and multiplied with so
many tokens' vectors. Count a multiplication and an addition for each weight and token, and only the
weights' bytes. Returns the operations for each byte that is read.
""",
        cases=_intensity_cases,
        reference=_intensity,
        properties=(
            Property(
                "a little too few: are other bytes counted than the weights'?",
                lambda g, f: not 0.9 < f / _intensity(*g) < 1,
            ),
        ),
        mistakes=(
            Mistake(
                "a weight and a token make two operations: a product and a sum",
                lambda r, c, t, b: _intensity(r, c, t, b) / 2,
            ),
            Mistake("it counts bits: a byte has eight", lambda r, c, t, b: _intensity(r, c, t, b) / 8),
            Mistake(
                "it is upside down: bytes for an operation", lambda r, c, t, b: 1 / _intensity(r, c, t, b)
            ),
            Mistake(
                "the weights are read once for all tokens, not once for each",
                lambda r, c, t, b: _intensity(r, c, 1, b),
            ),
        ),
        imports="",
    ),
]
