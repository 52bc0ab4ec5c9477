"""Bradley-Terry: strengths from who won against whom.

    P(i beats j) = sigmoid(t_i - t_j + covariates . weights)         a tie is half a win for each

The maximum-likelihood strengths exist exactly where every player can be reached from every other along wins
(Ford, 1957); otherwise the missing links are named and nothing is fitted. Newton's method in float64.
Strengths are centred on their mean, so that no player's own error moves into the others' intervals.

Prompts are what is independent; their games belong together. A bound is a quantile of fits under random
weights of the prompts, exponential ones, with one prompt more that speaks for that bound as loudly as a
prompt can: in it the player wins all games, or loses all. Of two players without covariates this is
``exact.py``'s interval of the share of wins, in Elo: it covers for two prompts too, and where all verdicts
are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cutaway.errors import UserError
from cutaway.evaluate.exact import LEVEL

ELO = 400 / np.log(10)  # of a unit of strength
STEPS, SMALL = 100, 1e-10
ROUNDS, NEAR, FARTHEST = 1000, 1e-3, 2.0  # fits for a bound, how near they come, their longest step
CERTAIN = 20.0  # log-odds of a game that no finite fit of so few games reaches
NUMBERS = 1 << 22  # of probabilities of games that are in memory at once


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

    ``differences`` has a - b and its interval for each pair.
    """

    elo: dict[str, float]
    interval: dict[str, tuple[float, float]]
    differences: dict[tuple[str, str], tuple[float, float, float]]
    weights: tuple[float, ...]
    weight_intervals: tuple[tuple[float, float], ...]


def fit(games: Sequence[Game], rounds: int = ROUNDS, seed: int = 0) -> Ratings:
    """The players' strengths. UserError where games do not connect them."""
    players = sorted({name for game in games for name in (game.first, game.second)})
    if missing := unreached(_wins(games, players), players):
        raise UserError(f"the games do not order all players: {missing}: play more games")
    if unbounded(games):
        raise UserError(
            "the covariates order the games without any strength: leave them out, or play more games"
        )
    design, scores = _design(games, players)
    found = _newton(design, scores, len(players))
    elo = {name: float(1000 + ELO * found[n]) for n, name in enumerate(players)}
    own = tuple(found[len(players) :].tolist())
    bounds = _Bounds(games, design, scores, found, len(players), rounds, seed)
    unit, count = np.eye(len(found)), len(players)
    intervals, differences = {}, {}
    for n, name in enumerate(players):
        low, high = bounds.of(unit[n], np.array([unit[n] - unit[m] for m in range(count) if m != n]))
        intervals[name] = float(1000 + ELO * low), float(1000 + ELO * high)
        for m in range(n + 1, count):
            across = [unit[n] - unit[k] for k in range(count) if k not in (n, m)]
            across += [unit[k] - unit[m] for k in range(count) if k not in (n, m)]
            low, high = bounds.of(unit[n] - unit[m], np.array([unit[n] - unit[m], *across]))
            other = players[m]
            differences[name, other] = elo[name] - elo[other], float(ELO * low), float(ELO * high)
    most = np.abs(design).max(axis=0)
    weights = tuple(bounds.of(unit[n], most[n] * unit[n][None]) for n in range(count, len(found)))
    return Ratings(elo, intervals, differences, own, weights)


@dataclass(frozen=True)
class _Bounds:
    """The bounds of figures of one fit."""

    games: Sequence[Game]
    design: np.ndarray
    scores: np.ndarray
    found: np.ndarray
    players: int
    rounds: int
    seed: int

    def of(self, figure: np.ndarray, wins: np.ndarray) -> tuple[float, float]:
        """The interval of ``figure`` . x; ``wins`` [games, x] are the added prompt's, lost and then won."""
        if not self.rounds:
            return float("nan"), float("nan")
        low, high = (
            np.quantile(np.concatenate(list(self._fitted(figure, wins, score))), quantile)
            for score, quantile in ((0.0, LEVEL / 2), (1.0, 1 - LEVEL / 2))
        )
        return float(low), float(high)

    def _fitted(self, figure: np.ndarray, wins: np.ndarray, score: float) -> Iterator[np.ndarray]:
        """The figure in each round, where the added prompt's games have this score."""
        design = np.concatenate([self.design, wins])
        scores = np.concatenate([self.scores, np.full(len(wins), score)])
        place = {prompt: n for n, prompt in enumerate(dict.fromkeys(game.prompt for game in self.games))}
        of_prompt = np.array([place[game.prompt] for game in self.games] + [len(place)] * len(wins))
        random = np.random.default_rng(self.seed)
        at_once = max(1, NUMBERS // len(scores))
        for start in range(0, self.rounds, at_once):
            count = min(at_once, self.rounds - start)
            weights = random.standard_exponential((count, len(place) + 1))[:, of_prompt]
            yield _weighed(design, scores, weights, self.players, self.found) @ figure


def unreached(wins: np.ndarray, players: Sequence[str]) -> str:
    """Pairs where one player never beat the other, even indirectly: none if strengths can be fitted."""
    reach = (wins > 0) | np.eye(len(wins), dtype=bool)
    for _ in range(len(wins).bit_length()):
        reach = (reach.astype(np.int64) @ reach.astype(np.int64)) > 0
    pairs = [f"{players[i]} never beat {players[j]}" for i, j in np.argwhere(~reach)]
    return ", ".join(pairs[:3]) + (f", and {len(pairs) - 3} more" if len(pairs) > 3 else "")


def unbounded(games: Sequence[Game]) -> tuple[int, ...]:
    """The covariates whose weights have no finite best: with them the games are predicted without a miss."""
    players = sorted({name for game in games for name in (game.first, game.second)})
    design, scores = _design(games, players)
    parts = np.abs(design * _newton(design, scores, len(players))).max(axis=0)
    return tuple(np.flatnonzero(parts[len(players) :] > CERTAIN).tolist())


def _wins(games: Sequence[Game], players: Sequence[str]) -> np.ndarray:
    place = {name: n for n, name in enumerate(players)}
    wins = np.zeros((len(players), len(players)))
    for game in games:
        i, j = place[game.first], place[game.second]
        wins[i, j] += game.score
        wins[j, i] += 1 - game.score
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


def _newton(design: np.ndarray, scores: np.ndarray, players: int) -> np.ndarray:
    """The strengths and covariates' weights of the highest likelihood; strengths have mean 0."""
    x = np.zeros(design.shape[1])
    value = _likelihood(design, scores, x)
    for _ in range(STEPS):
        p = np.exp(-np.logaddexp(0, -design @ x))
        gradient = design.T @ (scores - p)
        hessian = (design * (p * (1 - p))[:, None]).T @ design
        hessian[:players, :players] += 1.0  # only the mean, which is 0, and along which nothing changes
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        size = 1.0
        while (moved := _likelihood(design, scores, x + size * step)) < value and size > SMALL:
            size /= 2
        x, value = x + size * step, moved
        x[:players] -= x[:players].mean()
        if np.abs(size * step).max() < SMALL:
            break
    return x


def _likelihood(design: np.ndarray, scores: np.ndarray, x: np.ndarray) -> float:
    z = design @ x
    return float((scores * z - np.logaddexp(0, z)).sum())


def _weighed(
    design: np.ndarray, scores: np.ndarray, weights: np.ndarray, players: int, start: np.ndarray
) -> np.ndarray:
    """The fits [r x] under weights [r games] of the games, by Newton steps that are cut to ``FARTHEST``."""
    x = np.repeat(start[None], len(weights), axis=0)
    outer = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    ridge = np.full(x.shape[1], SMALL)  # of a covariate that varies in one game alone
    for _ in range(STEPS):
        p = np.exp(-np.logaddexp(0, -x @ design.T))
        gradient = (weights * (scores - p)) @ design
        hessian = ((weights * p * (1 - p)) @ outer).reshape(len(x), *[x.shape[1]] * 2) + np.diag(ridge)
        hessian[:, :players, :players] += 1.0  # the mean
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        step *= np.minimum(1, FARTHEST / np.maximum(np.abs(step).max(axis=1, keepdims=True), SMALL))
        x += step
        x[:, :players] -= x[:, :players].mean(axis=1, keepdims=True)
        if np.abs(step).max() < NEAR:
            break
    return x
