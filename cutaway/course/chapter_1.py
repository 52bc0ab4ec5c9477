"""Chapter 1, what a language model is: chances, sampling, surprise, and how a base becomes an assistant."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from cutaway.course.chapter_6 import softmax
from cutaway.course.exercise import Arguments, Exercise, Mistake, Property

TITLE = "What a large language model is"
QUESTION = "What is in the file of a language model, and how does it come to answer questions?"


# ---- 1.1 ---------------------------------------------------------------------------------------------------


def _chances(logits: np.ndarray, temperature: float) -> np.ndarray:
    return softmax(logits[None] / temperature)[0]


def _chances_times(logits: np.ndarray, temperature: float) -> np.ndarray:
    return softmax(logits[None] * temperature)[0]


def _chances_scaled_after(logits: np.ndarray, temperature: float) -> np.ndarray:
    found = softmax(logits[None])[0] / temperature
    return found / found.sum()


def _chances_not_one(logits: np.ndarray, temperature: float) -> np.ndarray:
    return np.exp(logits / temperature)


def _chances_squared(logits: np.ndarray, temperature: float) -> np.ndarray:
    return softmax(logits[None] / temperature**2)[0]


def _chance_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.array([0.0, math.log(3.0)]), 0.5
    yield rng.normal(size=6) * 3, 0.7
    yield np.array([2000.0, 1998.0, 1990.0]), 2.0  # e^1000 is no number that fits
    yield rng.normal(size=20) * 4, 1.3


# ---- 1.2 ---------------------------------------------------------------------------------------------------


def _top_p(chances: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(-chances, kind="stable")
    kept = np.cumsum(chances[order]) - chances[order] < mass
    found = np.zeros_like(chances)
    found[order[kept]] = chances[order[kept]]
    return found / found.sum()


def _top_p_one_less(chances: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(-chances, kind="stable")
    kept = np.cumsum(chances[order]) <= mass
    kept[0] = True
    found = np.zeros_like(chances)
    found[order[kept]] = chances[order[kept]]
    return found / found.sum()


def _top_p_not_one(chances: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(-chances, kind="stable")
    kept = np.cumsum(chances[order]) - chances[order] < mass
    found = np.zeros_like(chances)
    found[order[kept]] = chances[order[kept]]
    return found


def _at_least(chances: np.ndarray, mass: float) -> np.ndarray:
    found = np.where(chances >= mass * chances.max(), chances, 0.0)
    return found / found.sum()


def _top_p_of_the_rarest(chances: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(chances, kind="stable")
    kept = np.cumsum(chances[order]) - chances[order] < mass
    found = np.zeros_like(chances)
    found[order[kept]] = chances[order[kept]]
    return found / found.sum()


def _top_p_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.array([0.5, 0.3, 0.15, 0.05]), 0.7
    yield np.array([0.1, 0.9]), 0.5
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


def _perplexity_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield (np.array([0.5, 0.125]),)
    yield (rng.uniform(0.01, 1, 30),)
    yield (rng.uniform(1e-6, 1e-3, 9),)


# ---- 1.4 ---------------------------------------------------------------------------------------------------


def _targets(ids: list[int], wrote: list[bool]) -> list[int]:
    return [ids[n + 1] if wrote[n + 1] else -100 for n in range(len(ids) - 1)]


def _targets_not_shifted(ids: list[int], wrote: list[bool]) -> list[int]:
    return [id if own else -100 for id, own in zip(ids, wrote, strict=True)][:-1]


def _targets_of_all(ids: list[int], wrote: list[bool]) -> list[int]:
    return ids[1:]


def _targets_by_the_reader(ids: list[int], wrote: list[bool]) -> list[int]:
    return [ids[n + 1] if wrote[n] else -100 for n in range(len(ids) - 1)]


def _targets_of_the_user(ids: list[int], wrote: list[bool]) -> list[int]:
    return [-100 if wrote[n + 1] else ids[n + 1] for n in range(len(ids) - 1)]


def _target_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield [10, 11, 12, 13], [False, False, True, True]
    yield [5, 6, 7, 8, 9, 10], [False, True, True, False, True, True]
    yield [int(one) for one in rng.integers(0, 99, 12)], [bool(one) for one in rng.integers(0, 2, 12)]


# ---- 1.5 ---------------------------------------------------------------------------------------------------


def _dpo(chosen: float, rejected: float, base_chosen: float, base_rejected: float, beta: float) -> float:
    margin = beta * ((chosen - base_chosen) - (rejected - base_rejected))
    return float(np.logaddexp(0, -margin))


def _dpo_without_base(
    chosen: float, rejected: float, base_chosen: float, base_rejected: float, beta: float
) -> float:
    return float(np.logaddexp(0, -beta * (chosen - rejected)))


def _dpo_exchanged(
    chosen: float, rejected: float, base_chosen: float, base_rejected: float, beta: float
) -> float:
    return _dpo(rejected, chosen, base_rejected, base_chosen, beta)


def _dpo_margin(
    chosen: float, rejected: float, base_chosen: float, base_rejected: float, beta: float
) -> float:
    return beta * ((chosen - base_chosen) - (rejected - base_rejected))


def _dpo_chance(
    chosen: float, rejected: float, base_chosen: float, base_rejected: float, beta: float
) -> float:
    return math.exp(-_dpo(chosen, rejected, base_chosen, base_rejected, beta))


def _dpo_without_beta(
    chosen: float, rejected: float, base_chosen: float, base_rejected: float, beta: float
) -> float:
    return _dpo(chosen, rejected, base_chosen, base_rejected, 1.0)


def _dpo_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield -10.0, -12.0, -10.0, -12.0, 0.1  # nothing has moved: ln 2
    for _ in range(3):
        yield *(float(one) for one in -rng.uniform(5, 60, 4)), 0.1


# ---- 1.6 ---------------------------------------------------------------------------------------------------


def _advantages(rewards: np.ndarray) -> np.ndarray:
    spread = rewards.std(1, keepdims=True)
    return (rewards - rewards.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)


def _advantages_not_scaled(rewards: np.ndarray) -> np.ndarray:
    return rewards - rewards.mean(1, keepdims=True)


def _advantages_of_all(rewards: np.ndarray) -> np.ndarray:
    return (rewards - rewards.mean()) / rewards.std()


def _advantages_of_columns(rewards: np.ndarray) -> np.ndarray:
    return _advantages(rewards.T).T


def _advantages_not_centred(rewards: np.ndarray) -> np.ndarray:
    spread = rewards.std(1, keepdims=True)
    return rewards / np.where(spread > 0, spread, 1)


def _advantage_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield (np.array([[1.0, 0.0, 0.0, 1.0]]),)
    yield (rng.uniform(0, 1, (4, 6)),)
    yield (np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]),)  # a prompt that all answers solve teaches nothing


# ---- 1.7 ---------------------------------------------------------------------------------------------------


def _vote(answers: list[str | None]) -> str | None:
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=lambda one: (counts[one], -answers.index(one))) if counts else "no answer"


def _vote_with_none(answers: list[str | None]) -> Any:
    counts = Counter(answers)
    return max(counts, key=lambda one: (counts[one], -answers.index(one)))


def _vote_first(answers: list[str | None]) -> Any:
    return next((answer for answer in answers if answer is not None), "no answer")


def _vote_last_of_equals(answers: list[str | None]) -> Any:
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=lambda one: (counts[one], answers.index(one))) if counts else "no answer"


def _vote_longest(answers: list[str | None]) -> Any:
    return max((answer for answer in answers if answer is not None), key=len, default="no answer")


def _vote_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield (["7", "12", "12", None],)
    yield ([None, None, None, "5"],)
    yield ([None, None],)
    yield (["b", "a", "a", "b", "a longer one"],)
    for _ in range(3):
        yield ([None if one == 3 else f"{10**one}" for one in rng.integers(0, 4, 9)],)


# ---- 1.8 ---------------------------------------------------------------------------------------------------


def _exponent(compute: np.ndarray, losses: np.ndarray, seed: int) -> tuple[float, float, float]:
    rng, n = np.random.default_rng(seed), len(compute)
    x, y = np.log(compute), np.log(losses)

    def fitted(rows: np.ndarray) -> float:
        return float(-np.polyfit(x[rows], y[rows], 1)[0])

    drawn = [fitted(rng.integers(0, n, n)) for _ in range(1000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return fitted(np.arange(n)), float(low), float(high)


def _scaling_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for exponent, noise in ((0.05, 0.01), (0.3, 0.02), (0.1, 0.05)):
        compute = np.logspace(15, 19, 16)
        losses = 40 * compute**-exponent * np.exp(rng.normal(0, noise, 16))
        yield compute, losses, int(rng.integers(1 << 30))


def _scaling_judged(arguments: Arguments, result: Any) -> str | None:
    right = _exponent(*arguments)
    try:
        found = tuple(float(one) for one in result)
        best, low, high = found
    except (TypeError, ValueError):
        return "the result should be three numbers: the exponent, and the ends of its interval"
    if abs(best + right[0]) < 1e-6:
        return "the exponent's sign: loss falls, and L = A / C^a has a positive a"
    if abs(best - right[0]) > 1e-3:
        return "the exponent is not that of a straight line through ln(loss) over ln(compute)"
    if not low <= best <= high:
        return "the exponent is outside of its interval, or the ends are exchanged"
    width, wanted = high - low, right[2] - right[1]
    if width < 0.6 * wanted:
        return "the interval is too narrow: draw as many runs as there are, with replacement, and fit"
    if width > 1.7 * wanted:
        return "the interval is too wide: 95% of the draws are between its ends"
    return None


EXERCISES = [
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
                "the temperature comes too late: logits are divided before the exponential",
                _chances_scaled_after,
            ),
            Mistake("the chances do not sum to 1", _chances_not_one),
            Mistake("the temperature was used twice", _chances_squared),
        ),
        properties=(Property("the chances sum to 1", lambda g, f: math.isclose(float(np.sum(f)), 1)),),
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
            Mistake("the kept ones do not sum to 1", _top_p_not_one),
            Mistake("that is min-p: a bound on each chance, and not on their sum", _at_least),
            Mistake("it keeps the least likely", _top_p_of_the_rarest),
        ),
        properties=(Property("the chances sum to 1", lambda g, f: math.isclose(float(np.sum(f)), 1)),),
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
            Mistake("the mean is taken of the chances: it is of their logarithms", _perplexity_of_the_mean),
            Mistake("that is the loss: perplexity is e^loss", _loss),
            Mistake("it is upside down: a surprised model has a large one", _perplexity_upside_down),
            Mistake("the sum is taken where the mean is asked for", _perplexity_of_the_sum),
        ),
        properties=(Property("a perplexity is 1 or more", lambda g, f: float(f) >= 1),),
    ),
    Exercise(
        number="1.4",
        title="What an assistant learns from",
        name="targets",
        parameters="ids, wrote",
        task="""
Fine-tuning shows a base model conversations. It should learn to write the assistant's words, and not the
user's.

ids: the tokens of a conversation [n]; wrote: for each, whether the assistant wrote it. At each place the
model predicts the next token. Returns a list of n - 1 targets: the next token where the assistant wrote
that one, else -100, which training leaves out.
""",
        cases=_target_cases,
        reference=_targets,
        mistakes=(
            Mistake("a place predicts the next token: the targets are shifted by one", _targets_not_shifted),
            Mistake("the user's tokens are learned too", _targets_of_all),
            Mistake("whose token is predicted counts, and not whose is read", _targets_by_the_reader),
            Mistake("the user's tokens are learned, and the assistant's left out", _targets_of_the_user),
        ),
        imports="",
    ),
    Exercise(
        number="1.5",
        title="Learning from comparisons",
        name="dpo_loss",
        parameters="chosen, rejected, base_chosen, base_rejected, beta",
        task="""
People compare two answers, and the model learns which is better (DPO, 2305.18290).

chosen, rejected: the log-probabilities of both answers in the model that is trained; base_chosen,
base_rejected: the same in the model that it began as; beta: a number. The margin is beta times (how much
the chosen one has gained on the base, less how much the rejected one has). Returns the loss:
-ln(sigmoid(margin)). It is ln 2 when nothing has moved.
""",
        cases=_dpo_cases,
        reference=_dpo,
        mistakes=(
            Mistake("the base is missing: what counts is how far each answer has moved", _dpo_without_base),
            Mistake("chosen and rejected are exchanged", _dpo_exchanged),
            Mistake("that is the margin: the loss is -ln(sigmoid(margin))", _dpo_margin),
            Mistake("that is sigmoid(margin): its negative logarithm is asked for", _dpo_chance),
            Mistake("beta is missing", _dpo_without_beta),
        ),
        imports="import math",
    ),
    Exercise(
        number="1.6",
        title="Learning from rewards",
        name="advantages",
        parameters="rewards",
        task="""
For tasks whose answers a program can check the model samples several answers a prompt (GRPO, 2402.03300).

rewards: one row a prompt, one column an answer [p n]. An answer's advantage is its reward less the mean
of its prompt's, divided by the standard deviation of its prompt's (over all n). Where all rewards of a
prompt are equal the advantages are 0. Returns an array [p n].
""",
        cases=_advantage_cases,
        reference=_advantages,
        mistakes=(
            Mistake("they are not divided by the standard deviation", _advantages_not_scaled),
            Mistake(
                "mean and deviation are of all prompts: they are of each prompt alone", _advantages_of_all
            ),
            Mistake("a prompt is a row, not a column", _advantages_of_columns),
            Mistake("the mean is not taken off", _advantages_not_centred),
        ),
        properties=(
            Property("the advantages of a prompt sum to 0", lambda g, f: np.allclose(np.sum(f, 1), 0)),
        ),
    ),
    Exercise(
        number="1.7",
        title="Slow thinking: a vote",
        name="vote",
        parameters="answers",
        task="""
Let a model answer several times, and take what most answers agree on (self-consistency, 2203.11171).

answers: a list of texts; None where an answer could not be read. Returns the most frequent text; of
equally frequent ones the one that came first; "no answer" where none could be read.
""",
        cases=_vote_cases,
        reference=_vote,
        mistakes=(
            Mistake("what could not be read does not vote", _vote_with_none),
            Mistake("it takes the first answer: the most frequent is asked for", _vote_first),
            Mistake("of equally frequent answers the first counts", _vote_last_of_equals),
            Mistake("it takes the longest answer", _vote_longest),
        ),
        imports="",
    ),
    Exercise(
        number="1.8",
        title="A scaling law, with its interval",
        name="exponent",
        parameters="compute, losses, seed",
        task="""
More compute, less loss: L is about A / C^a. How well do a few runs fix the exponent a?

compute, losses: one number a run [n]; seed: of the generator. Fit a straight line by least squares to
ln(loss) over ln(compute); a is minus its steepness. For the interval draw n runs with replacement a
thousand times, fit each draw, and take the 2.5th and 97.5th percentile. Returns (a, low, high).
""",
        cases=_scaling_cases,
        judge=_scaling_judged,
    ),
]
