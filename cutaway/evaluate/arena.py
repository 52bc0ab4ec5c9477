"""An arena: models answer the same prompts, a judge compares two answers, Bradley-Terry makes ratings.

Each pair of answers is judged in both orders. A verdict that changes with the order is for a place and not
for an answer: it counts as a tie. The fit has the difference of the answers' lengths as a
covariate, so that a rating is not a taste for length. A person sees each pair once, in an order drawn by lot:
there the place is a second covariate. How often the first place won is reported.

    program        a Python file with judge(prompt, first, second): 1 where the first answer is better,
                   0 where the second is, 0.5 for a tie
    reward model   a run's folder: the answer with the higher reward is better
    model          a model's name: it reads prompt and answers, and the likelier of "A" and "B" decides
    person         sees the answers without names, in the terminal
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np

from cutaway.data.tasks import ScorerError, function_of, graded
from cutaway.evaluate.bradley_terry import Game, Ratings, fit, unbounded
from cutaway.evaluate.cache import Cache
from cutaway.evaluate.exact import LEVEL, mcnemar
from cutaway.evaluate.likelihood import Likelihood, score
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.thinking.strategy import Writer, seed_of
from cutaway.lm import LanguageModel

Judge = Callable[[str, str, str], float]
ASK = """Which answer to the question is better? Reply with A or B.

Question: {prompt}

Answer A: {first}

Answer B: {second}"""


@dataclass(frozen=True)
class Arena:
    """Ratings and games; ``first_place`` is how often the answer shown first was preferred, ties left out.

    ``covariates`` names those that are in the fit. ``deciding`` names those that alone decide every game:
    ratings cannot leave these out.
    """

    ratings: Ratings
    games: tuple[Game, ...]
    first_place: float
    disagreements: int
    covariates: tuple[str, ...]
    deciding: tuple[str, ...]


def answers(
    lm: LanguageModel,
    prompts: Sequence[str],
    cache: Cache,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """A model's answer to each prompt, through its chat template where it has one; ``cache`` keeps them."""
    chat = lm.checkpoint.chat_template is not None
    ids = [
        lm.chat_ids([{"role": "user", "content": prompt}]) if chat else lm.ids(f"{prompt}\n")
        for prompt in prompts
    ]
    settings = lm.ending(SamplingParams(max_tokens=max_tokens, temperature=temperature))
    begun = 0

    def compute(numbers: Sequence[int]) -> list[str]:
        asked = [ids[n] for n in numbers]
        chosen = [replace(settings, seed=seed_of(each, seed)) for each in asked]
        with Writer(lm.engine, lm.tokenizer) as writer:
            made = writer.write(asked, chosen, progress=lambda done: progress(begun + done))
        return [generation.text for generation in made]

    def known(done: int) -> None:
        nonlocal begun
        begun = done
        progress(done)

    requests = [["arena answer", each, max_tokens, temperature, seed] for each in ids]
    return cache.fill(requests, compute, known)


def play(
    prompts: Sequence[str],
    written: dict[str, Sequence[str]],
    judge: Judge,
    *,
    both_orders: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Arena:
    """Every pair of models on every prompt. UserError where the games do not connect all models."""
    games, firsts, disagreements = [], [], 0
    pairs = list(combinations(written, 2))
    random = np.random.default_rng(seed)
    for n, prompt in enumerate(prompts):
        for a, b in pairs:
            one, other = written[a][n], written[b][n]
            swapped = False
            if both_orders:
                ahead, behind = judge(prompt, one, other), 1 - judge(prompt, other, one)
                firsts += [ahead, 1 - behind]
                disagreements += (ahead - 0.5) * (behind - 0.5) < 0
                result = ahead if ahead == behind else 0.5
            else:  # a person sees each pair once, in an order drawn by lot
                swapped = bool(random.integers(2))
                found = judge(prompt, other, one) if swapped else judge(prompt, one, other)
                firsts.append(found)
                result = 1 - found if swapped else found
            length = math.log((len(one) + 1) / (len(other) + 1))
            place = () if both_orders else (-1.0 if swapped else 1.0,)  # in both orders it cancels
            games.append(Game(a, b, result, n, (length, *place)))
            progress(len(games), len(prompts) * len(pairs))
    decided = [first for first in firsts if first != 0.5]
    fraction = float(np.mean(decided)) if decided else 0.5
    names = ("length",) if both_orders else ("length", "place")
    deciding = tuple(name for at, name in enumerate(names) if _decides(games, at))
    kept = [
        at
        for at, name in enumerate(names)
        if name not in deciding and len({game.covariates[at] for game in games}) > 1
    ]
    while endless := unbounded(_with(games, kept)):
        deciding += tuple(names[kept[at]] for at in endless)
        kept = [at for place, at in enumerate(kept) if place not in endless]
    games = _with(games, kept)
    found = fit(games, seed=seed)
    return Arena(found, tuple(games), fraction, disagreements, tuple(names[at] for at in kept), deciding)


def _with(games: Sequence[Game], kept: Sequence[int]) -> list[Game]:
    """The games with these of their covariates."""
    return [replace(game, covariates=tuple(game.covariates[at] for at in kept)) for game in games]


def _decides(games: Sequence[Game], at: int) -> bool:
    """Whether one covariate's sign alone is the winner of every game that was won, or of none.

    Ties say nothing against it. Of few games any covariate may be the winner by chance.
    """
    own = [(game.score - 0.5) * game.covariates[at] for game in games if game.score != 0.5]
    return mcnemar(sum(x > 0 for x in own), sum(x < 0 for x in own)) < LEVEL and (
        all(x > 0 for x in own) or all(x < 0 for x in own)
    )


def program(path: str | Path) -> Judge:
    """The function ``judge`` of a Python file, which is run. UserError for a file without one."""
    judge = function_of(str(path), "judge")

    def checked(prompt: str, first: str, second: str) -> float:
        found = graded(f"{path}: judge", judge, prompt, first, second)
        if found not in (0, 0.5, 1):
            raise ScorerError(f"{path}: judge gave {found:g}: it should give 1, 0 or 0.5")
        return found

    return checked


def reward_model(folder: str | Path) -> Judge:
    """A trained reward model. UserError for a folder that holds none."""
    from cutaway.train.recipes.rewards import judged

    judge = judged(str(folder))

    @lru_cache(maxsize=4096)
    def score(prompt: str, answer: str) -> float:
        return graded(f"reward_model:{folder}", judge, answer, {"prompt": prompt})

    def better(prompt: str, first: str, second: str) -> float:
        gap = score(prompt, first) - score(prompt, second)
        return 0.5 if gap == 0 else float(gap > 0)

    return better


def model(lm: LanguageModel) -> Judge:
    """A model that reads both answers; the likelier of "A" and "B" is its verdict."""
    letters = [tuple(lm.tokenizer.encode(letter)) for letter in "AB"]

    def judge(prompt: str, first: str, second: str) -> float:
        text = ASK.format(prompt=prompt, first=first, second=second)
        asked = lm.chat_ids([{"role": "user", "content": text}])
        a, b = score(lm, [Likelihood(tuple(asked), tuple(letters))])[0]
        gap = a.log_probability - b.log_probability
        return 0.5 if gap == 0 else float(gap > 0)

    return judge
