"""Do the intervals cover the truth, and do the tests find what is not there? Simulated, in planted worlds.

    python -m scripts.check.coverage_figures                    # about fifteen minutes on one core
    python -m scripts.check.coverage_figures --kind "a paired"  # figures whose name has this in it
    python -m scripts.check.coverage_figures --quick            # a tenth of the worlds: half a minute

Each row is a kind of figure that Cutaway prints with an interval or a p: n is what is independent (questions,
clusters, documents, prompts, seeds, runs). Coverage is the share of worlds whose interval holds the planted
truth, "false" the share of worlds without a difference in which p is below 5%. Proportions alone are not
simulated: their coverage is summed over all outcomes. "least" is then the smallest coverage of 95% or more
that any set of outcomes has there: outcomes are few, so that no interval covers in exactly 95%. Exit code 1
where a row covers in less than 93% (fits of 90%: 88%), or finds more than 6% false, by more than three
standard errors of so many worlds.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from cutaway.errors import UserError
from cutaway.evaluate import bradley_terry, exact, perplexity, statistics
from cutaway.evaluate.bradley_terry import ELO, Game

Random = np.random.Generator
World = Callable[[Random], "Outcome | None"]
SIZES = (2, 5, 10, 20, 50, 200, 1000)
RATES = (0.0, 0.02, 0.5, 0.98, 1.0)
LEAST, MOST_FALSE = 0.93, 0.06
DRAWS = 3_000  # of an exact bound: fewer than it has elsewhere, which is faster and no more often right


@dataclass(frozen=True)
class Outcome:
    """Of one world: whether each interval covers, and whether a difference is found (None: no test)."""

    covered: tuple[bool, ...]
    found: bool | None = None


@dataclass(frozen=True)
class Row:
    """A figure at one n. ``level`` is what its intervals claim."""

    name: str
    n: int
    worlds: int
    coverage: float | None
    false: float | None = None
    least: float | None = None
    level: float = 0.95

    @property
    def holds(self) -> bool:
        """Whether it covers as often as it says, but for two points and what so many worlds leave open."""
        error = 3 * math.sqrt(0.95 * 0.05 / self.worlds) if self.worlds else 0.0
        false = self.false is None or self.false <= MOST_FALSE + error
        covers = self.coverage is None or self.coverage >= LEAST - 0.95 + self.level - error
        return covers and false


def main() -> int:
    """The table; 1 where a row does not hold."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--worlds", type=int, default=600)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kind", default="", help="only figures whose name has this in it")
    options.add_argument("--quick", action="store_true")
    given = options.parse_args()
    print("| figure | coverage in %, by n | least | false in %, by n | worlds |\n|---|---|---|---|---|")
    exact.MOST = DRAWS
    worlds, failed = given.worlds // 10 if given.quick else given.worlds, 0
    for name, group in groupby(rows(worlds, given.seed, given.quick, given.kind), key=lambda row: row.name):
        own = list(group)
        coverage, least, false = (
            ", ".join(
                f"{row.n:,}: {100 * x:.1f}" for row in own for x in [getattr(row, which)] if x is not None
            )
            for which in ("coverage", "least", "false")
        )
        missed = [row.n for row in own if not row.holds]
        mark = f" **misses at {', '.join(map(str, missed))}**" if missed else ""
        simulated = ", ".join(f"{each:,}" for each in dict.fromkeys(row.worlds for row in own)) or "all"
        print(f"| {name} | {coverage}{mark} | {least} | {false} | {simulated} |", flush=True)
        failed += len(missed)
    return int(failed > 0)


def rows(worlds: int, seed: int, quick: bool = False, wanted: str = "") -> Iterator[Row]:
    """Every figure at every n; ``worlds`` of each, fewer of those that take long."""
    sizes = (2, 10, 50) if quick else SIZES
    for rate in RATES:
        if wanted in f"a proportion of {rate:g}":
            yield from (proportion(rate, n) for n in sizes)
    for kind, make in ((kind, make) for kind, make in KINDS.items() if wanted in kind):
        for n in sizes if kind not in SOME else SOME[kind][: 1 if quick else None]:
            count = max(1, worlds // SLOW.get(kind, 1) // (1 if n < 1000 else 4))
            random, covered, found = np.random.default_rng(seed), [], []
            for _ in range(count):
                outcome = make(random, n)
                if outcome is not None:
                    covered += outcome.covered
                    found += [] if outcome.found is None else [outcome.found]
            if covered or found:
                coverage, false = (float(np.mean(each)) if each else None for each in (covered, found))
                yield Row(kind, n, count, coverage, false, level=0.9 if kind in NINETY else 0.95)


def proportion(rate: float, n: int) -> Row:
    """Its coverage, summed over all numbers of successes."""
    k = np.arange(n + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = logs[n] - logs - logs[::-1] + np.where(k, k * np.log(rate), 0.0)
        log_p = log_p + np.where(n - k, (n - k) * np.log1p(-rate), 0.0)
    p = np.exp(log_p)
    inside = [low <= rate <= high for low, high in (exact.proportion(int(x), n) for x in k)]
    likely = np.cumsum(np.sort(p)[::-1])
    least = float(likely[np.searchsorted(likely, 0.95 - 1e-12)])
    return Row(f"a proportion of {rate:g}", n, 0, float(p[inside].sum()), least=min(least, 1.0))


def _holds(found: statistics.Estimate, truth: float) -> Outcome:
    return Outcome((found.low <= truth <= found.high,))


def _compares(found: statistics.Paired, truth: float) -> Outcome:
    holds = found.difference.low <= truth <= found.difference.high
    return Outcome((holds,), found.separated if truth == 0 else None)


def _clustered(random: Random, clusters: int, size: int, rate: float, alike: float) -> np.ndarray:
    """Right and wrong [clusters, size]; ``alike`` is the correlation within a cluster."""
    if not alike:
        return (random.random((clusters, size)) < rate).astype(float)
    if alike == 1:
        return np.repeat((random.random((clusters, 1)) < rate).astype(float), size, axis=1)
    spread = 1 / alike - 1
    own = random.beta(rate * spread, (1 - rate) * spread, (clusters, 1)) if 0 < rate < 1 else rate
    return (random.random((clusters, size)) < own).astype(float)


def clustered(rate: float, alike: float) -> Callable[[Random, int], Outcome]:
    """The accuracy of clusters of 10 questions."""

    def world(random: Random, n: int) -> Outcome:
        x = _clustered(random, n, 10, rate, alike)
        return _holds(statistics.mean(x.ravel(), np.repeat(np.arange(n), 10).tolist()), rate)

    return world


def score(a: float, b: float) -> Callable[[Random, int], Outcome]:
    """A score between 0 and 1, beta-distributed."""
    return lambda random, n: _holds(statistics.mean(random.beta(a, b, n), share=True), a / (a + b))


def samples(random: Random, n: int) -> Outcome:
    """Accuracy of 4 samples of each question, most of which are never right."""
    rates = random.beta(0.2, 1.8, n)
    return _holds(statistics.mean(random.binomial(4, rates) / 4, share=True), 0.1)


def nats(random: Random, n: int) -> Outcome:
    """A mean without bounds, normal."""
    return _holds(statistics.mean(random.normal(size=n), share=False), 0.0)


def paired(rate: float, gain: float, alike: float | None = None) -> Callable[[Random, int], Outcome]:
    """Two models that answer questions of which each has its own difficulty."""

    def world(random: Random, n: int) -> Outcome:
        if alike is None:
            easy = np.clip(rate + random.uniform(-0.2, 0.2, n) * min(rate, 1 - rate - gain) / 0.5, 0, 1)
            a, b = ((random.random(n) < easy + more).astype(float) for more in (gain, 0.0))
            return _compares(statistics.paired(a, b), gain)
        a, b = (_clustered(random, n, 10, rate + more, alike).ravel() for more in (gain, 0.0))
        return _compares(statistics.paired(a, b, np.repeat(np.arange(n), 10).tolist()), gain)

    return world


def paired_nats(random: Random, n: int) -> Outcome:
    """Differences without bounds, in clusters of very uneven sizes that share an effect."""
    sizes = np.round(np.exp(random.normal(0, 0.7, n)) * 10).astype(int) + 1
    of = np.repeat(np.arange(n), sizes)
    d = random.normal(size=n)[of] + random.normal(size=len(of))
    return _compares(statistics.paired(d, np.zeros(len(d)), of.tolist(), share=False), 0.0)


def documents(random: Random, n: int) -> Outcome:
    """Bits per byte of n documents of uneven lengths, each of its own difficulty."""
    sizes = np.round(np.exp(random.normal(6, 0.7, n))) + 1
    sums = sizes * (3 + 0.4 * random.normal(size=n)) + np.sqrt(sizes) * random.normal(size=n)
    return _holds(statistics.ratio(sums, sizes), 3.0)


def one_text(random: Random, n: int) -> Outcome:
    """The surprise of one text of n blocks of 256 tokens, whose level drifts with a memory of 30 tokens."""
    count = 256 * n
    noise, keep = random.normal(size=count + 500), math.exp(-1 / 30)
    drift = np.convolve(noise, keep ** np.arange(300))[500 : 500 + count] * math.sqrt(1 - keep * keep)
    x = drift + random.normal(size=count)
    return _holds(statistics.mean(x, statistics.blocks(count).tolist(), share=False), 0.0)


def windows(random: Random, n: int) -> Outcome:
    """The error of a perplexity of n windows, with Student's factor."""
    parts = [level + random.normal(size=255) for level in random.normal(0, 0.3, n)]
    half = statistics.student_quantile(min(n, statistics.BLOCKS) - 1) * perplexity.error(parts)
    return Outcome((bool(abs(np.concatenate(parts).mean()) <= half),))


def area(gap: float, spread: float, others: int | None = None) -> Callable[[Random, int], Outcome]:
    """AUROC of n normal positives and as many negatives, or ``others``."""
    truth = statistics.NormalDist().cdf(gap / math.hypot(spread, 1))

    def world(random: Random, n: int) -> Outcome:
        return _holds(statistics.area(random.normal(gap, spread, n), random.normal(size=others or n)), truth)

    return world


def seeds(random: Random, n: int) -> Outcome:
    """An arm's score over seeds."""
    low, high = statistics.student(random.normal(size=n))
    return Outcome((low <= 0 <= high,))


def arms(random: Random, n: int) -> Outcome:
    """Four arms beside a first one, over n seeds, none better: is one found after Holm's correction?"""
    shared, every = random.normal(size=n), random.normal(size=(5, n))
    p = statistics.holm([statistics.paired_t(each + shared, every[0] + shared) for each in every[1:]])
    return Outcome((), min(p) < exact.LEVEL)


def law(random: Random, n: int) -> Outcome:
    """The exponent of losses that fall with shots, over n questions (the many-shot probe)."""
    shots = np.array([1.0, 2, 4, 8, 16])
    x = np.log(shots) - np.log(shots).mean()
    losses = np.outer(shots**-0.4, random.uniform(1, 3, n)) * np.exp(0.3 * random.normal(size=(5, n)))
    found = statistics.jackknife(lambda kept: -float(x @ np.log(losses[:, kept].mean(1)) / (x @ x)), n)
    return _holds(found, 0.4)


def attack(rate: float) -> Callable[[Random, int], Outcome]:
    """An attack that succeeds as often as its control: is a difference found? Clusters of 5 tries."""
    from cutaway.security.finding import verdict

    def world(random: Random, n: int) -> Outcome:
        a, b = (_clustered(random, n, 5, rate, 0.5).ravel() for _ in range(2))
        said = verdict(a.tolist(), b.tolist(), np.repeat(np.arange(n), 5).tolist())
        return Outcome((), said == "vulnerable")

    return world


def arena(
    strengths: dict[str, float], weight: float | None, rounds: int = 200
) -> Callable[..., Outcome | None]:
    """Ratings, differences and a covariate's weight, over n prompts; None where the games order nothing."""

    def world(random: Random, n: int) -> Outcome | None:
        games, names = [], list(strengths)
        for prompt in range(n):
            for k, a in enumerate(names):
                for b in names[k + 1 :]:
                    x = () if weight is None else (random.normal(),)
                    z = strengths[a] - strengths[b] + (weight or 0) * sum(x)
                    games.append(Game(a, b, float(random.random() < 1 / (1 + math.exp(-z))), prompt, x))
        try:
            found = bradley_terry.fit(games, rounds=rounds, seed=int(random.integers(1 << 30)))
        except UserError:
            return None
        mean = sum(strengths.values()) / len(strengths)
        truths = [(1000 + ELO * (strengths[each] - mean), *found.interval[each]) for each in names]
        for (a, b), (_, low, high) in found.differences.items():
            truths.append((ELO * (strengths[a] - strengths[b]), low, high))
        truths += [(weight or 0.0, *ends) for ends in found.weight_intervals]
        return Outcome(tuple(low <= truth <= high for truth, low, high in truths))

    return world


def scaling(random: Random, n: int) -> Outcome:
    """The five numbers of a scaling law of n runs, at 90%."""
    from cutaway.compare.scaling import Point, fit

    side = math.isqrt(n)
    grid = [(size, d) for size in np.geomspace(3e4, 1e6, side) for d in np.geomspace(1e6, 1e8, side)]
    true = 1.5 + 400 / np.array([s for s, _ in grid]) ** 0.35 + 400 / np.array([d for _, d in grid]) ** 0.3
    losses = true * np.exp(0.003 * random.normal(size=len(grid)))
    found = fit([Point(s, d, loss) for (s, d), loss in zip(grid, losses, strict=True)], draws=200)
    planted = {"E": 1.5, "A": 400, "B": 400, "alpha": 0.35, "beta": 0.3}
    return Outcome(tuple(low <= planted[name] <= high for name, (_, low, high) in found.intervals.items()))


KINDS: dict[str, Callable[[Random, int], Outcome | None]] = {
    **{
        f"an accuracy of {rate:g}, clusters of 10, alike {alike:g}": clustered(rate, alike)
        for rate in (0.02, 0.5, 0.98)
        for alike in (0.0, 0.1, 0.5, 1.0)
    },
    "an accuracy of 0, clusters": clustered(0.0, 0.5),
    "an accuracy of 1, clusters": clustered(1.0, 0.5),
    "a mean score, uniform": score(1, 1),
    "a mean score of 0.25, lopsided": score(0.5, 1.5),
    "a mean score of 0.05, very lopsided": score(0.2, 3.8),
    "an accuracy of 4 samples a question": samples,
    "a mean in nats": nats,
    "a paired difference of 0 at 0.02": paired(0.02, 0.0),
    "a paired difference of 0 at 0.5": paired(0.5, 0.0),
    "a paired difference of 0.1 at 0.5": paired(0.5, 0.1),
    "a paired difference of 0.08 at 0.9": paired(0.9, 0.08),
    "a paired difference of 0 at 0.02, clusters of 10, alike 0.5": paired(0.02, 0.0, 0.5),
    "a paired difference of 0 at 0.5, clusters of 10, alike 0.1": paired(0.5, 0.0, 0.1),
    "a paired difference of 0 at 0.5, clusters of 10, alike 1": paired(0.5, 0.0, 1.0),
    "a paired difference of 0.1 at 0.5, clusters of 10, alike 0.5": paired(0.5, 0.1, 0.5),
    "a paired difference in nats, uneven clusters": paired_nats,
    "bits per byte of documents": documents,
    "the surprise of one text, in blocks": one_text,
    "perplexity's error, in windows": windows,
    "AUROC of 0.5, n and n": area(0.0, 1.0),
    "AUROC of 0.76, n and n": area(1.0, 1.0),
    "AUROC of 0.98, n and n": area(2.9, 1.0),
    "AUROC of 0.62, spreads 3 and 1, n and 60": area(1.0, 3.0, 60),
    "an arm's mean over seeds": seeds,
    "four arms beside the first, Holm": arms,
    "the exponent of many shots": law,
    "a verdict on an attack at 0.02": attack(0.02),
    "a verdict on an attack at 0.5": attack(0.5),
    "ratings of two equal players": arena({"a": 0.0, "b": 0.0}, None),
    "ratings of two players 520 Elo apart": arena({"a": 1.5, "b": -1.5}, None),
    "ratings of three players, a covariate": arena({"a": -0.6, "b": 0.0, "c": 0.6}, 0.5),
    "a scaling law's five numbers (90%)": scaling,
}
SOME = {  # sizes other than all
    "the surprise of one text, in blocks": (2, 5, 20, 100),
    "an arm's mean over seeds": (2, 3, 5, 10),
    "four arms beside the first, Holm": (2, 3, 5, 10),
    "perplexity's error, in windows": (2, 5, 20, 200),
    "the exponent of many shots": (10, 20, 64, 200),
    "ratings of two equal players": (2, 5, 10, 60, 300, 1000),
    "ratings of two players 520 Elo apart": (2, 5, 10, 60, 300, 1000),
    "ratings of three players, a covariate": (5, 10, 60, 300),
    "a scaling law's five numbers (90%)": (9, 16, 36),
}
SLOW = {  # how many times fewer worlds
    "the surprise of one text, in blocks": 4,
    "the exponent of many shots": 4,
    "ratings of two equal players": 4,
    "ratings of two players 520 Elo apart": 4,
    "ratings of three players, a covariate": 12,
    "a scaling law's five numbers (90%)": 20,
}
NINETY = {"a scaling law's five numbers (90%)"}

if __name__ == "__main__":
    sys.exit(main())
