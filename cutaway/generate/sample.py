"""Samplers (temperature, top-k, top-p, min-p, penalties): functions of logits [v] and history, which compose.

The order is the one transformers uses: logit bias, repetition penalty, frequency and presence penalties,
temperature, top-k, top-p, min-p, typical; a watermark is last. (llama.cpp applies its temperature last, which
differs wherever both it and a cut are on.) What is cut becomes -inf. Temperature 0 is greedy: the largest
logit after bias and penalties, of equal ones the lowest id. Log-probabilities are always those of the model
itself, the log-softmax of logits that nothing has touched, as OpenAI reports them.

Sources: top-p 1904.09751, typical 2202.00666, min-p 2407.01082, repetition penalty 1909.05858 (CTRL),
frequency and presence penalties as OpenAI defines them, over the generated tokens alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.generate.sampling_params import Number, SamplingParams

_BLOCK = 64  # values a block, summed at once; columns this high, whose maxima bound the k-th largest
_TINY = 1e-37  # the smallest temperature float32 divides by: below it only the largest logits are left anyway


class History:
    """The ids so far: the prompt's and, after them, the generated ones."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._ids = np.asarray(prompt_ids, dtype=np.int64)
        self._prompt = self._length = len(self._ids)

    def append(self, id: int) -> None:
        """Add a generated id."""
        if self._length == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(max(64, self._length), dtype=np.int64)])
        self._ids[self._length] = id
        self._length += 1

    def copy(self) -> "History":
        """Another that begins as this one is."""
        copy = History(())
        copy._ids, copy._prompt, copy._length = self._ids.copy(), self._prompt, self._length
        return copy

    @property
    def ids(self) -> np.ndarray:
        """int64, prompt and generated."""
        return self._ids[: self._length]

    @property
    def last(self) -> int:
        """The newest id."""
        return int(self._ids[self._length - 1])

    @property
    def generated(self) -> np.ndarray:
        """int64, generated alone."""
        return self._ids[self._prompt : self._length]


Transform = Callable[
    [np.ndarray, History], np.ndarray
]  # logits float32 [v] to logits [v]; the argument is left as it was


def logit_bias(bias: Mapping[int, Number]) -> Transform:
    """Add a number to the logits of some ids."""
    ids = np.array(list(bias), dtype=np.int64)
    values = np.array(list(bias.values()), dtype=np.float32)

    def apply(logits: np.ndarray, history: History) -> np.ndarray:
        logits = logits.copy()
        logits[ids] += values
        return logits

    return apply


def repetition_penalty(penalty: Number) -> Transform:
    """Divide positive logits of ids seen so far by the penalty, multiply negative ones by it (CTRL)."""

    def apply(logits: np.ndarray, history: History) -> np.ndarray:
        ids = history.ids
        seen = logits[ids]
        logits = logits.copy()
        logits[ids] = np.where(seen < 0, seen * np.float32(penalty), seen / np.float32(penalty))
        return logits

    return apply


def count_penalties(frequency: Number, presence: Number) -> Transform:
    """Subtract frequency times the count, plus presence once, from every id that was generated (OpenAI)."""

    def apply(logits: np.ndarray, history: History) -> np.ndarray:
        ids, counts = np.unique(history.generated, return_counts=True)
        logits = logits.copy()
        logits[ids] -= (counts * frequency + presence).astype(np.float32)
        return logits

    return apply


def temperature(value: Number) -> Transform:
    """Divide by the temperature, after a shift of the largest logit to 0, which changes no probability."""
    divisor = np.float32(min(max(value, _TINY), 1e38))

    def apply(logits: np.ndarray, history: History) -> np.ndarray:
        shifted = np.subtract(logits, logits.max())
        with np.errstate(over="ignore"):
            return np.divide(shifted, divisor, out=shifted)

    return apply


def top_k(k: int) -> Transform:
    """Keep the k largest logits, and those equal to the last of them, as transformers does."""

    def apply(logits: np.ndarray, history: History) -> np.ndarray:
        if k >= len(logits):
            return logits
        least = _kth_largest(logits[_candidates(logits, k)], k)
        return np.where(logits >= least, logits, -np.inf)

    return apply


def top_p(mass: Number) -> Transform:
    """Keep the fewest most probable tokens that reach the mass: at least one, of equals the lowest id."""

    def apply(logits: np.ndarray, history: History) -> np.ndarray:
        return _only(logits, _fewest(logits, np.exp(logits - logits.max()), mass))

    return apply


def min_p(ratio: Number) -> Transform:
    """Keep the tokens whose probability is at least this ratio of the most probable one's."""

    def apply(logits: np.ndarray, history: History) -> np.ndarray:
        return np.where(logits >= logits.max() + np.float32(math.log(ratio)), logits, -np.inf)

    return apply


def typical(mass: Number) -> Transform:
    """Keep the fewest tokens that reach the mass, those first whose surprisal is nearest to the entropy.

    Those as near as the last of them are kept, too, as transformers does.
    """

    def apply(logits: np.ndarray, history: History) -> np.ndarray:
        kept = np.flatnonzero(logits > -np.inf)
        log_probabilities = log_softmax(logits[kept])
        probabilities = np.exp(log_probabilities)
        entropy = -np.sum(probabilities * log_probabilities, dtype=np.float64)
        distance = np.abs(-log_probabilities - np.float32(entropy))
        last = _fewest(-distance, probabilities, mass)[-1]
        return _only(logits, kept[distance <= distance[last]])

    return apply


def penalties(settings: SamplingParams) -> tuple[Transform, ...]:
    """The samplers that these settings switch on and that greedy choice obeys too, in their order."""
    transforms: list[Transform] = []
    if settings.logit_bias:
        transforms.append(logit_bias(settings.logit_bias))
    if settings.repetition_penalty != 1:
        transforms.append(repetition_penalty(settings.repetition_penalty))
    if settings.frequency_penalty or settings.presence_penalty:
        transforms.append(count_penalties(settings.frequency_penalty, settings.presence_penalty))
    return tuple(transforms)


def warpers(settings: SamplingParams) -> tuple[Transform, ...]:
    """The samplers that these settings switch on and that shape a random choice, in their order."""
    if settings.temperature == 0:
        return ()
    transforms: list[Transform] = []
    if settings.temperature != 1:
        transforms.append(temperature(settings.temperature))
    if settings.top_k:
        transforms.append(top_k(settings.top_k))
    if settings.top_p < 1:
        transforms.append(top_p(settings.top_p))
    if settings.min_p:
        transforms.append(min_p(settings.min_p))
    if settings.typical_p < 1:
        transforms.append(typical(settings.typical_p))
    return tuple(transforms)


class Sampler:
    """Chooses the next id from logits [v] and history. Holds the random state: make one for each text."""

    def __init__(self, settings: SamplingParams, entropy: np.random.SeedSequence | None = None) -> None:
        self.greedy = settings.temperature == 0
        self._entropy = settings.seed if entropy is None else entropy
        self._before, self._after = penalties(settings), warpers(settings)
        if settings.watermark is not None:
            self._after += (settings.watermark,)

    @cached_property
    def generator(self) -> np.random.Generator:
        """Made when first asked for: numpy's random numbers take longer to load than a token to choose."""
        return np.random.Generator(np.random.PCG64(self._entropy))

    def __call__(self, logits: np.ndarray, history: History) -> int:
        return self.choose(self.process(logits, history))

    def process(self, logits: np.ndarray, history: History) -> np.ndarray:
        """The logits after all that these settings switch on; their softmax is what is drawn from."""
        for transform in self._before:
            logits = transform(logits, history)
        best = logits.max()
        if not np.isfinite(best):
            raise _no_choice(best)
        for transform in self._after:
            logits = transform(logits, history)
        return logits

    def choose(self, processed: np.ndarray, generator: np.random.Generator | None = None) -> int:
        """The largest where the choice is greedy, else one drawn, by other random numbers where given."""
        return int(np.argmax(processed)) if self.greedy else draw(processed, generator or self.generator)


def mask_padding(logits: np.ndarray, vocab: int) -> np.ndarray:
    """float32 [v], -inf for ids that are no tokens: a model's table may be padded past its tokenizer's."""
    logits = np.asarray(logits, dtype=np.float32)
    if vocab >= len(logits):
        return logits
    return np.where(np.arange(len(logits)) < vocab, logits, np.float32(-np.inf))


def draw(logits: np.ndarray, generator: np.random.Generator) -> int:
    """One id from softmax(logits), by inverting its cumulative sum (float64) with one uniform number."""
    weights = np.subtract(logits, logits.max())
    np.exp(weights, out=weights)
    edges = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64))
    point = generator.random() * edges[-1]
    block = _place(edges, point)
    inside = np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    return block * _BLOCK + _place(inside, point - (edges[block - 1] if block else 0.0))


def _place(edges: np.ndarray, point: float) -> int:
    """The first place whose edge is beyond the point, which rounding may put at or past the last one."""
    return min(int(np.searchsorted(edges, point, "right")), int(np.searchsorted(edges, edges[-1], "left")))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities [v] float32 of logits [v]."""
    return logits - np.float32(log_total(logits))


def log_total(logits: np.ndarray) -> float:
    """log of the sum of exp(logits): a logit less this is its log-probability."""
    highest = logits.max()
    weights = np.subtract(logits, highest)
    return float(highest) + math.log(np.exp(weights, out=weights).sum(dtype=np.float64))


def logprobs(logits: np.ndarray, id: int, n: int = 0) -> tuple[float, tuple[tuple[int, float], ...]]:
    """An id's log-probability, and the n best as (id, log-probability), of equals the lowest id first."""
    total = log_total(logits)
    best = largest(logits, n)[:n] if n else ()
    return float(logits[id]) - total, tuple((int(other), float(logits[other]) - total) for other in best)


def _fewest(key: np.ndarray, weight: np.ndarray, mass: Number) -> np.ndarray:
    """The fewest indices, taken by descending key, whose weights reach this ratio of the whole weight."""
    wanted = mass * float(weight.sum(dtype=np.float64))
    count = 256
    while True:
        order = largest(key, count)
        cumulative = np.cumsum(weight[order], dtype=np.float64)
        if cumulative[-1] >= wanted or len(order) == len(key):
            return order[: int(np.searchsorted(cumulative, wanted, side="left")) + 1]
        count *= 16


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """The indices of the `count` largest values and equals of the last, by descending value, then index."""
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    places = _candidates(values, count)
    chosen = places[values[places] >= _kth_largest(values[places], count)]
    return chosen[np.argsort(-values[chosen], kind="stable")]


def _kth_largest(values: np.ndarray, k: int) -> np.floating:
    return np.partition(values, len(values) - k)[len(values) - k]


def _candidates(values: np.ndarray, k: int) -> np.ndarray:
    """The places, ascending, of some values among which are the k largest and the equals of the last.

    At least k values reach the k-th largest of the columns' maxima, so that only the columns whose maximum
    does need sorting. (Maxima of columns, and not of rows, are taken many at a time: a tenth of the time.)
    """
    columns = len(values) // _BLOCK
    if k > columns:
        return np.arange(len(values))
    table = values[: columns * _BLOCK].reshape(_BLOCK, columns)
    maxima = table.max(axis=0)
    found = np.flatnonzero(maxima >= _kth_largest(maxima, k))
    places = np.arange(0, columns * _BLOCK, columns)[:, None] + found
    return np.concatenate([places.ravel(), np.arange(columns * _BLOCK, len(values))])


def _only(logits: np.ndarray, kept: np.ndarray) -> np.ndarray:
    cut = np.full_like(logits, -np.inf)
    cut[kept] = logits[kept]
    return cut


def _no_choice(best: np.floating) -> Exception:
    if best == -np.inf:
        return UserError("No token is left to choose: logit_bias or a constraint bans every one")
    return OperationalError(f"The model's logits hold {best}: its weights or its input are broken")
