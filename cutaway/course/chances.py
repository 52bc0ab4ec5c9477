"""Chapter 1's first half, what a model says of the next token: chances, sampling, surprise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cutaway.course.chapter_6 import softmax
from cutaway.course.exercise import Arguments, Exercise, Mistake, Property

# ---- 1.1 ---------------------------------------------------------------------------------------------------


def _chances(logits: np.ndarray, temperature: float) -> np.ndarray:
    return softmax(logits[None] / temperature)[0]


def _chances_times(logits: np.ndarray, temperature: float) -> np.ndarray:
    return softmax(logits[None] * temperature)[0]


def _chances_scaled_after(logits: np.ndarray, temperature: float) -> np.ndarray:
    found = softmax(logits[None])[0] / temperature
    return found / found.sum()


def _chances_logs(logits: np.ndarray, temperature: float) -> np.ndarray:
    return np.log(_chances(logits, temperature))


def _chances_not_one(logits: np.ndarray, temperature: float) -> np.ndarray:
    return np.exp(logits / temperature)


def _chances_squared(logits: np.ndarray, temperature: float) -> np.ndarray:
    return softmax(logits[None] / temperature**2)[0]


def _chance_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.array([0.0, math.log(3.0)]), 0.5
    yield rng.normal(size=6) * 3, 0.7
    yield np.array([3000.0, 2998.0, -2000.0]), 1.5  # e^2000 is no number that fits, less the mean neither
    yield rng.normal(size=20) * 4, 1.3


# ---- 1.2 ---------------------------------------------------------------------------------------------------


def _kept(chances: np.ndarray, kept: np.ndarray) -> np.ndarray:
    found = np.zeros_like(chances)
    found[kept] = chances[kept]
    return found / found.sum()


def _top_p(chances: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(-chances, kind="stable")
    return _kept(chances, order[np.cumsum(chances[order]) - chances[order] < mass])


def _top_p_one_less(chances: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(-chances, kind="stable")
    return _kept(chances, order[: max(1, int((np.cumsum(chances[order]) <= mass).sum()))])


def _top_p_one_less_or_none(chances: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(-chances, kind="stable")
    return _kept(chances, order[np.cumsum(chances[order]) <= mass])


def _top_p_one_more(chances: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(-chances, kind="stable")
    return _kept(chances, order[np.cumsum(chances[order]) - chances[order] <= mass])


def _top_p_not_one(chances: np.ndarray, mass: float) -> np.ndarray:
    return np.where(_top_p(chances, mass) > 0, chances, 0.0)


def _top_p_sorted(chances: np.ndarray, mass: float) -> np.ndarray:
    return _top_p(-np.sort(-chances), mass)


def _top_p_as_they_come(chances: np.ndarray, mass: float) -> np.ndarray:
    return _kept(chances, np.cumsum(chances) - chances < mass)


def _at_least(chances: np.ndarray, mass: float) -> np.ndarray:
    return _kept(chances, chances >= mass * chances.max())


def _each_at_least(chances: np.ndarray, mass: float) -> np.ndarray:
    return _kept(chances, chances >= mass)


def _top_p_of_the_rarest(chances: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(chances, kind="stable")
    return _kept(chances, order[np.cumsum(chances[order]) - chances[order] < mass])


def _top_p_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.array([0.5, 0.3, 0.15, 0.05]), 0.7
    yield np.array([0.1, 0.9]), 0.5
    yield np.array([0.0625, 0.5, 0.1875, 0.25]), 0.75  # two are exactly the mass
    for size, mass in ((8, 0.6), (50, 0.9)):
        yield softmax(rng.normal(size=(1, size)) * 2)[0], mass


# ---- 1.3 ---------------------------------------------------------------------------------------------------


def _perplexity(chances: np.ndarray) -> float:
    return float(np.exp(-np.log(chances).mean()))


def _perplexity_of_the_mean(chances: np.ndarray) -> float:
    return float(1 / chances.mean())


def _loss(chances: np.ndarray) -> float:
    return float(-np.log(chances).mean())


def _perplexity_upside_down(chances: np.ndarray) -> float:
    return 1 / _perplexity(chances)


def _perplexity_of_the_sum(chances: np.ndarray) -> float:
    return float(np.exp(-np.log(chances).sum()))


def _perplexity_by_product(chances: np.ndarray) -> float:
    return float(np.prod(chances) ** (-1 / len(chances)))


def _perplexity_of_bits(chances: np.ndarray) -> float:
    return float(np.exp(-np.log2(chances).mean()))


def _perplexity_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield (np.array([0.5, 0.125]),)
    yield (rng.uniform(0.01, 1, 30),)
    yield (rng.uniform(1e-6, 1e-3, 9),)
    yield (rng.uniform(0.01, 0.1, 500),)  # their product is 0 in a float


CHANCES = [
    Exercise(
        number="1.1",
        title="From logits to chances",
        name="chances",
        parameters="logits, temperature",
        task="""
A model gives each token of its vocabulary a number, a logit. The sampler makes chances of them.

logits: [v], some of them may be large; temperature: a number above 0. The chance of a token is e^(logit /
temperature), divided by the sum of that over all tokens. Below 1 the likeliest become likelier. Returns
an array [v].
""",
        cases=_chance_cases,
        reference=_chances,
        mistakes=(
            Mistake("it multiplies by the temperature: it divides by it", _chances_times),
            Mistake(
                "the temperature is missing or comes too late: logits are divided before the exponential",
                _chances_scaled_after,
            ),
            Mistake("the chances do not sum to 1", _chances_not_one),
            Mistake("the temperature was used twice", _chances_squared),
            Mistake("these are logarithms: the chances themselves are asked for", _chances_logs),
        ),
        properties=(Property("the chances should sum to 1", lambda g, f: math.isclose(float(np.sum(f)), 1)),),
    ),
    Exercise(
        number="1.2",
        title="The likeliest few",
        name="top_p",
        parameters="chances, mass",
        task="""
Rare tokens are each unlikely, and together they are not: sample from the likeliest few (nucleus sampling,
1904.09751).

chances: [v], which sum to 1; mass: a number above 0, below 1. Keep the likeliest tokens, the fewest whose
chances together are at least `mass`. Returns the chances [v]: 0 for the others, the kept ones scaled so
that they sum to 1.
""",
        cases=_top_p_cases,
        reference=_top_p,
        mistakes=(
            Mistake("one too few is kept: together they must be at least the mass", _top_p_one_less),
            Mistake("one too few is kept: together they must be at least the mass", _top_p_one_less_or_none),
            Mistake("one too many is kept where the sum is exactly the mass", _top_p_one_more),
            Mistake("the kept ones do not sum to 1", _top_p_not_one),
            Mistake("they are sorted: a chance belongs to its token's place", _top_p_sorted),
            Mistake("it keeps the first ones: the likeliest are asked for", _top_p_as_they_come),
            Mistake("that is min-p: a bound on each chance, and not on their sum", _at_least),
            Mistake("the mass is a bound on the sum of the kept, and not on each chance", _each_at_least),
            Mistake("it keeps the least likely", _top_p_of_the_rarest),
        ),
        properties=(Property("the chances should sum to 1", lambda g, f: math.isclose(float(np.sum(f)), 1)),),
    ),
    Exercise(
        number="1.3",
        title="Perplexity",
        name="perplexity",
        parameters="chances",
        task="""
How surprised is a model by a text?

chances: for each token of a text, the chance that the model gave it just before [n]. The loss is the mean
of -ln(chance); the perplexity is e^loss: a model that always hesitates between 8 equally likely tokens
has 8. Returns one number.
""",
        cases=_perplexity_cases,
        reference=_perplexity,
        mistakes=(
            Mistake(
                "a product of many chances is too small for a float: add logarithms", _perplexity_by_product
            ),
            Mistake("the mean is taken of the chances: it is of their logarithms", _perplexity_of_the_mean),
            Mistake("that is the loss: perplexity is e^loss", _loss),
            Mistake("it is upside down: a surprised model has a large one", _perplexity_upside_down),
            Mistake("the sum is taken where the mean is asked for", _perplexity_of_the_sum),
            Mistake("the logarithm has another base than the power: the loss is in ln", _perplexity_of_bits),
        ),
        properties=(Property("a perplexity should be 1 or more", lambda g, f: float(f) >= 1),),
    ),
]
