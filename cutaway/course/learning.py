"""Chapter 1's second half, how a base becomes an assistant: comparisons, rewards, votes, scaling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from cutaway.course.exercise import Arguments, Exercise, Mistake, Property

# ---- 1.4 ---------------------------------------------------------------------------------------------------


def _targets(ids: list[int], wrote: list[bool]) -> list[int]:
    return [ids[n + 1] if wrote[n + 1] else -100 for n in range(len(ids) - 1)]


def _targets_not_shifted(ids: list[int], wrote: list[bool]) -> list[int]:
    return [id if own else -100 for id, own in zip(ids, wrote, strict=True)][:-1]


def _targets_as_long_as_the_text(ids: list[int], wrote: list[bool]) -> list[int]:
    return [id if own else -100 for id, own in zip(ids, wrote, strict=True)]


def _targets_that_are_read(ids: list[int], wrote: list[bool]) -> list[int]:
    return [ids[n] if wrote[n + 1] else -100 for n in range(len(ids) - 1)]


def _targets_filtered(ids: list[int], wrote: list[bool]) -> list[int]:
    return [one for one in _targets(ids, wrote) if one != -100]


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


def _dpo_added(
    chosen: float, rejected: float, base_chosen: float, base_rejected: float, beta: float
) -> float:
    return float(np.logaddexp(0, -beta * ((chosen - base_chosen) + (rejected - base_rejected))))


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


def _advantages_of_a_sample(rewards: np.ndarray) -> np.ndarray:
    return _advantages(rewards) * np.sqrt(1 - 1 / rewards.shape[1])


def _advantages_by_variance(rewards: np.ndarray) -> np.ndarray:
    spread = rewards.std(1, keepdims=True)
    return _advantages(rewards) / np.where(spread > 0, spread, 1)


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


def _vote_none_won(answers: list[str | None]) -> Any:
    return _vote_with_none(answers) or "no answer"


def _vote_nothing(answers: list[str | None]) -> Any:
    return None if all(answer is None for answer in answers) else _vote(answers)


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
    yield (["", "", "", "5", "5", "100"],)
    yield (["b", "a", "b", "a", "a longer one"],)
    for _ in range(3):
        yield ([None if one == 3 else f"{10**one}" for one in rng.integers(0, 4, 9)],)


# ---- 1.8 ---------------------------------------------------------------------------------------------------


def _exponents(compute: np.ndarray, losses: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The exponent of each row of runs."""
    x, y = np.log(compute)[rows], np.log(losses)[rows]
    far = x - x.mean(-1, keepdims=True)
    return -(far * y).sum(-1) / (far * far).sum(-1)


def _drawn(compute: np.ndarray, losses: np.ndarray, seed: int) -> np.ndarray:
    """Many draws' exponents: so many that their interval is surer than that of a reader's thousand."""
    n = len(compute)
    return _exponents(compute, losses, np.random.default_rng(seed).integers(0, n, (8000, n)))


def _scaling_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for exponent, noise in ((0.05, 0.01), (0.3, 0.02), (0.1, 0.05)):
        compute = np.logspace(15, 19, 16)
        losses = 40 * compute**-exponent * np.exp(rng.normal(0, noise, 16))
        yield compute, losses, int(rng.integers(1 << 30))


def _scaling_judged(arguments: Arguments, result: Any) -> str | None:
    compute, losses, _ = arguments
    right = float(_exponents(compute, losses, np.arange(len(compute))[None])[0])
    try:
        found = tuple(float(one) for one in result)
        best, low, high = found
    except (TypeError, ValueError):
        return "the result should be three numbers: the exponent, and the ends of its interval"
    if abs(best + right) < 1e-6:
        return "the exponent's sign: loss falls, and L = A / C^a has a positive a"
    drawn = _drawn(*arguments)
    if abs(best - right) > 1e-6:
        if abs(best - right) < drawn.std() / 4:
            return "a is that of the line through all runs as they are, and not a mean or median of the draws"
        return "the exponent is not that of a straight line through ln(loss) over ln(compute)"
    if not low <= best <= high:
        return "the exponent is outside of its interval, or the ends are exchanged"
    share = (high - low) / float(np.subtract(*np.percentile(drawn, [97.5, 2.5])))
    if share < 0.85:  # a thousand draws give between 0.86 and 1.13 of the interval
        return (
            "the interval is too narrow: a thousand times, draw as many runs as there are, with replacement, "
            "and fit; 2.5% of these are on either side of it"
        )
    if share > 1.17:
        return "the interval is too wide: 95% of the draws are between its ends"
    return None


LEARNING = [
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
            Mistake(
                "a place predicts the next token: the targets are shifted by one",
                _targets_as_long_as_the_text,
            ),
            Mistake("that is the token that is read: the target is the next one", _targets_that_are_read),
            Mistake("every place has a target: -100 where there is nothing to learn", _targets_filtered),
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
-ln(sigmoid(margin)), where sigmoid(x) = 1 / (1 + e^-x). It is ln 2 when nothing has moved.
""",
        cases=_dpo_cases,
        reference=_dpo,
        mistakes=(
            Mistake("the base is missing: what counts is how far each answer has moved", _dpo_without_base),
            Mistake("chosen and rejected are exchanged", _dpo_exchanged),
            Mistake("that is the margin: the loss is -ln(sigmoid(margin))", _dpo_margin),
            Mistake("that is sigmoid(margin): its negative logarithm is asked for", _dpo_chance),
            Mistake("beta is missing", _dpo_without_beta),
            Mistake("what the rejected one has gained is taken off, not added", _dpo_added),
        ),
        properties=(Property("a loss of this kind should be above 0", lambda g, f: float(f) > 0),),
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
                "the deviation is that of a sample, over n - 1: it is over all n", _advantages_of_a_sample
            ),
            Mistake("that is the variance: the standard deviation is its root", _advantages_by_variance),
            Mistake(
                "mean and deviation are of all prompts: they are of each prompt alone", _advantages_of_all
            ),
            Mistake("a prompt is a row, not a column", _advantages_of_columns),
            Mistake("the mean is not taken off", _advantages_not_centred),
        ),
        properties=(
            Property("the advantages of a prompt should sum to 0", lambda g, f: np.allclose(np.sum(f, 1), 0)),
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
            Mistake('where none could be read the result is the text "no answer"', _vote_nothing),
            Mistake("what could not be read does not vote", _vote_with_none),
            Mistake("what could not be read does not vote", _vote_none_won),
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
