"""Bradley-Terry: strengths from who won against whom.

    P(i beats j) = sigmoid(t_i - t_j + covariates . weights)         a tie is half a win for each

The maximum-likelihood strengths exist exactly where every player can be reached from every other along wins
(Ford, 1957); otherwise the missing links are named and nothing is fitted. Newton's method in float64.
Strengths are centred on their mean, so that no player's own error moves into the others' intervals. Their
width is bootstrapped over prompts, whose games belong together, and they are Student's around the estimate:
the bootstrap's percentiles as they are cover too seldom where prompts are few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cutaway.errors import UserError
from cutaway.evaluate import statistics

ELO = 400 / np.log(10)  # of a unit of strength
STEPS, SMALL = 100, 1e-10
ROUNDS = 1000


@dataclass(frozen=True)
class Game:
    """Two players on a prompt; ``score`` is 1 where the first one won, 0 where the second did, 0.5 a tie.

    ``covariates`` are the first player's less the second's, for instance of length.
    """

    first: str
    second: str
    score: float
    prompt: int
    covariates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Ratings:
    """Strengths by player in Elo, centred on 1000, with their intervals; covariates' weights likewise.

    ``differences`` has the interval of a - b for each pair; ``failed`` counts bootstrap rounds in which a
    player only won or only lost, which have no fit and are left out.
    """

    elo: dict[str, float]
    interval: dict[str, tuple[float, float]]
    differences: dict[tuple[str, str], tuple[float, float, float]]
    weights: tuple[float, ...]
    weight_intervals: tuple[tuple[float, float], ...]
    failed: int


def fit(games: Sequence[Game], rounds: int = ROUNDS, seed: int = 0) -> Ratings:
    """The players' strengths. UserError where games do not connect them."""
    players = sorted({name for game in games for name in (game.first, game.second)})
    prompts = sorted({game.prompt for game in games})
    wins = _wins(games, players, np.ones(len(games)))
    if missing := unreached(wins, players):
        raise UserError(f"the games do not order all players: {missing}: play more games")
    design, scores = _design(games, players)
    found = _newton(design, scores, np.ones(len(games)), len(players))
    random = np.random.default_rng(seed)
    place = {prompt: n for n, prompt in enumerate(prompts)}
    of_prompt = np.array([place[game.prompt] for game in games])
    drawn, failed = [], 0
    for _ in range(rounds):
        counts = random.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)))
        weights = counts[of_prompt].astype(np.float64)
        if unreached(_wins(games, players, weights), players):
            failed += 1
            continue
        drawn.append(_newton(design, scores, weights, len(players), found))
    sample = np.array(drawn) if drawn else np.full((1, len(found)), np.nan)
    elo = {name: float(1000 + ELO * found[n]) for n, name in enumerate(players)}
    count = len(prompts)
    intervals = {name: _interval(ELO * sample[:, n], elo[name], count) for n, name in enumerate(players)}
    differences = {
        (a, b): (
            elo[a] - elo[b],
            *_interval(ELO * (sample[:, n] - sample[:, n + 1 + m]), elo[a] - elo[b], count),
        )
        for n, a in enumerate(players)
        for m, b in enumerate(players[n + 1 :])
    }
    own = tuple(found[len(players) :].tolist())
    return Ratings(
        elo,
        intervals,
        differences,
        own,
        tuple(_interval(sample[:, len(players) + n], value, count) for n, value in enumerate(own)),
        failed,
    )


def unreached(wins: np.ndarray, players: Sequence[str]) -> str:
    """Which players never won, even indirectly, against which: empty where strengths can be fitted."""
    reach = (wins > 0) | np.eye(len(wins), dtype=bool)
    for _ in range(len(wins).bit_length()):
        reach = (reach.astype(np.int64) @ reach.astype(np.int64)) > 0
    pairs = [f"{players[i]} never beat {players[j]}" for i, j in np.argwhere(~reach)]
    return ", ".join(pairs[:3]) + (f", and {len(pairs) - 3} more" if len(pairs) > 3 else "")


def _wins(games: Sequence[Game], players: Sequence[str], weights: np.ndarray) -> np.ndarray:
    place = {name: n for n, name in enumerate(players)}
    wins = np.zeros((len(players), len(players)))
    for game, weight in zip(games, weights, strict=True):
        i, j = place[game.first], place[game.second]
        wins[i, j] += weight * game.score
        wins[j, i] += weight * (1 - game.score)
    return wins


def _design(games: Sequence[Game], players: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """[games, players + covariates]: 1 for the first player, -1 for the second; and the scores."""
    place = {name: n for n, name in enumerate(players)}
    extra = len(games[0].covariates)
    design = np.zeros((len(games), len(players) + extra))
    for row, game in zip(design, games, strict=True):
        row[place[game.first]], row[place[game.second]] = 1, -1
        row[len(players) :] = game.covariates
    return design, np.array([game.score for game in games])


def _newton(
    design: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray,
    players: int,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """The strengths and covariates' weights of the highest likelihood; strengths have mean 0."""
    x = np.zeros(design.shape[1]) if start is None else start.copy()
    value = _likelihood(design, scores, weights, x)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-design @ x))
        gradient = design.T @ (weights * (scores - p))
        hessian = (design * (weights * p * (1 - p))[:, None]).T @ design
        hessian[:players, :players] += 1.0  # only the mean, which is 0, and along which nothing changes
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        size = 1.0
        while (moved := _likelihood(design, scores, weights, x + size * step)) < value and size > SMALL:
            size /= 2
        x, value = x + size * step, moved
        x[:players] -= x[:players].mean()
        if np.abs(size * step).max() < SMALL:
            break
    return x


def _likelihood(design: np.ndarray, scores: np.ndarray, weights: np.ndarray, x: np.ndarray) -> float:
    z = design @ x
    return float((weights * (scores * z - np.logaddexp(0, z))).sum())


def _interval(sample: np.ndarray, value: float, prompts: int) -> tuple[float, float]:
    """95% around an estimate, by its bootstrap; NaN where no round could be fitted."""
    if np.isnan(sample).all():
        return float("nan"), float("nan")
    if prompts < 2 or len(sample) < 2:
        return -math.inf, math.inf
    low, high = np.quantile(sample, [0.025, 0.975])  # a round that nearly separates has no say beyond them
    # a bootstrap of n prompts spreads by (n - 1) / n of the variance
    error = float(high - low) / (2 * statistics.Z) * math.sqrt(prompts / (prompts - 1))
    return statistics.interval(value, error, prompts)
