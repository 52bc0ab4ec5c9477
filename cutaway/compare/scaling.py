"""Scaling laws: a ladder of runs, the law that fits their losses, and how far it may be believed.

    L(N, D) = E + A / N^alpha + B / D^beta          (2203.15556)

N counts the weights of the blocks' matrices and of the head, D the tokens trained on, and 6 N D is the
compute C. The law minimises the sum of Huber losses of log L, in float64. For given exponents A, B and E are
a linear problem (variable projection, 2603.22339), solved on a grid of exponents; from the best of them
Gauss-Newton steps with Huber's weights move all five. With 6 N D = C the loss is lowest at

    N = G (C / 6)^a     D = (C / 6)^b / G     a = beta / (alpha + beta)     b = 1 - a
    G = (alpha A / (beta B))^(1 / (alpha + beta))

Intervals are of 90%, by a bootstrap over runs: each draw adds to the fitted losses residuals of runs drawn
anew, and is fitted again. They are enlarged by sqrt(n / (n - 5)) for the five numbers that the fit has taken,
and smoothed by a normal kernel of n^(-1/5) of their deviation, as a fit near least absolute values needs it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.attention import mha
from cutaway.bounds import Bounded, Count, Positive
from cutaway.compare import arms, sweep
from cutaway.errors import OperationalError, UserError
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.page import report
from cutaway.page.charts import Axis, Plot, Series
from cutaway.position import rope
from cutaway.shapes import Float
from cutaway.store.files import Progress, silent, write_file
from cutaway.train.config import entries
from cutaway.train.optim import AdamW

HUBER = 1e-3  # residuals of log L beyond it count linearly
STAGES = ((1.0, 40), (1e-2, 40), (HUBER, 120))  # from least squares on: Huber's bound, and steps
EXPONENTS = np.linspace(0.05, 1.2, 24)
NAMES = ("E", "A", "B", "alpha", "beta")
BEYOND = 10.0  # times the ladder's compute to which the law is asked
DRAWS = 4000


LADDERS = Path(__file__).parent / "ladders"


@dataclass(frozen=True)
class Rung(Bounded):
    """A model of ``width`` and ``layers``, and the steps that it is trained for, one run each."""

    width: Count
    steps: tuple[Count, ...]
    layers: Count = 2


@dataclass(frozen=True)
class Ladder(Bounded):
    """Sizes times budgets. The runs of ``held_out`` are larger, and predicted.

    A model of width w learns at ``learning_rate`` sqrt(64 / w). Its heads have ``head`` numbers.
    """

    task: Any = field(metadata={"variants": "cutaway.compare.tasks"})
    rungs: tuple[Rung, ...]
    held_out: tuple[Rung, ...] = ()
    learning_rate: Positive = 0.003
    batch_size: Count = 16
    head: Count = 16
    seeds: Count = 1
    test: Count = 256
    threads: Count = 1

    def check(self, compute: float | None = None) -> None:
        """Before the first run: UserError for what the law would refuse after the last one."""
        planned, predicted = self._planned(self.rungs), self._planned(self.held_out)
        _check_enough(planned)
        _check_enough(_without_largest(planned)[1], "without its largest run, which the others predict, ")
        largest = max(point.compute for point in planned)
        for asked in (*(point.compute for point in predicted), *(() if compute is None else (compute,))):
            _check_near(asked, largest)

    def _planned(self, rungs: Sequence[Rung]) -> list[Point]:
        """The runs of these rungs, whose losses are not known yet."""
        every = itertools.product(rungs, range(self.seeds))
        return [
            Point(weights(self.model(rung)), self.tokens(steps), math.nan)
            for rung, _ in every
            for steps in rung.steps
        ]

    def tokens(self, steps: int) -> int:
        """What a run of so many steps is trained on."""
        return steps * self.batch_size * self.task.context

    def model(self, rung: Rung) -> Decoder:
        """A rung's decoder."""
        if rung.width % self.head:
            raise UserError(f"ladder: width {rung.width} is no multiple of head, {self.head}")
        attention = mha.Config(
            heads=rung.width // self.head, key_size=self.head, position=rope.Config(self.head)
        )
        block = Block(attention, MLP(4 * rung.width))
        return Decoder(self.task.vocab, rung.width, self.task.context, (block,) * rung.layers)


@dataclass(frozen=True)
class Point:
    """A finished run: weights, tokens, and its held-out loss."""

    n: float
    d: float
    loss: float

    @property
    def compute(self) -> float:
        """Floating-point operations, 6 a weight and token."""
        return 6 * self.n * self.d


@dataclass(frozen=True)
class Law:
    """The fitted numbers [5] in the order of ``NAMES``, and those of every bootstrap draw [r 5]."""

    values: Float[np.ndarray, "5"]
    draws: Float[np.ndarray, "r 5"]
    compute: float  # the ladder's largest

    def loss(self, n: float, d: float) -> tuple[float, float, float]:
        """The loss of ``n`` weights after ``d`` tokens, with its interval.

        UserError beyond ten times the ladder's compute.
        """
        self.check(6 * n * d)
        every = _losses(self.draws, np.array([n]), np.array([d]))[:, 0]
        return float(_losses(self.values[None], np.array([n]), np.array([d]))[0, 0]), *interval(every)

    def optimum(self, compute: float) -> dict[str, tuple[float, float, float]]:
        """Weights, tokens and loss that are best for this compute, and the exponents a and b of the split."""
        self.check(compute)
        found = [_optimum(numbers, compute) for numbers in (self.values[None], self.draws)]
        return {name: (float(found[0][name][0]), *interval(found[1][name])) for name in found[0]}

    def check(self, compute: float) -> None:
        """UserError for more than ten times the compute of the ladder's largest run."""
        _check_near(compute, self.compute)

    @property
    def intervals(self) -> dict[str, tuple[float, float, float]]:
        """Each of the five numbers with its interval."""
        return {name: (float(self.values[n]), *interval(self.draws[:, n])) for n, name in enumerate(NAMES)}


def ladders() -> list[str]:
    """The names of the ladders that come with Cutaway."""
    return sorted(path.stem for path in LADDERS.glob("*.yaml"))


def read_ladder(source: str) -> Ladder:
    """The ladder of a preset's name or a YAML file."""
    path = LADDERS / f"{source}.yaml" if source in ladders() else Path(source)
    if not path.is_file():
        raise UserError(f"{source}: is neither a file nor a preset; presets are {', '.join(ladders())}")
    return from_dict(entries(str(path), ()), Ladder, str(path))


def train(
    ladder: Ladder,
    rungs: Sequence[Rung],
    folder: Path,
    note: sweep.Note = lambda what: None,
    progress: Progress = silent,
) -> list[Point]:
    """The runs of these rungs, begun, continued or read from ``folder``. OperationalError where one fails.

    ``progress`` counts the floating-point operations of all runs in units of 10^9.
    """
    points: list[Point] = []

    def operations(rung: Rung, steps: int) -> float:
        return 6e-9 * weights(ladder.model(rung)) * ladder.tokens(steps)

    total = ladder.seeds * sum(operations(rung, steps) for rung in rungs for steps in rung.steps)
    done = 0.0
    for rung, seed in itertools.product(rungs, range(ladder.seeds)):
        for steps in rung.steps:
            model = ladder.model(rung)
            note(f"width {rung.width}, {rung.layers} layers, {steps} steps, seed {seed}")
            chosen = {name: getattr(ladder, name) for name in ("batch_size", "test", "threads")}
            optimizer = AdamW(learning_rate=ladder.learning_rate * (64 / rung.width) ** 0.5)
            run = arms.training(ladder.task, model, steps, seed, optimizer=optimizer, **chosen)

            def stepped(step: int, before: float = done, rung: Rung = rung) -> None:
                progress("GFLOPs of the ladder", int(before + operations(rung, step)), math.ceil(total))

            measured = sweep.one(run, folder / f"{rung.width}x{rung.layers}-{steps}-{seed}", stepped)
            if measured.failed is not None:
                raise OperationalError(f"{measured.folder}: {measured.failed}")
            points.append(Point(weights(model), ladder.tokens(steps), measured.loss))
            done += operations(rung, steps)
    return points


def weights(model: Decoder) -> int:
    """N: the weights of the blocks' matrices, and of the head."""
    shapes = (s for name, s in model.weights().items() if name.startswith("blocks.") and len(s) == 2)
    return sum(map(prod, shapes)) + model.vocab * model.width


def fit(points: Sequence[Point], draws: int | None = None, seed: int = 0) -> Law:
    """The law of these runs, with ``draws`` of the bootstrap (None: ``DRAWS``).

    UserError for too few runs, or without several sizes and budgets.
    """
    draws = draws or DRAWS
    _check_enough(points)
    n, d, loss = (np.array([getattr(p, name) for p in points], np.float64) for name in ("n", "d", "loss"))
    best = _refined(_projected(n, d, loss)[None], n, d, np.log(loss)[None], STAGES[-1:])[0]
    fitted = np.log(_losses(best[None], n, d))[0]
    count, random = len(n), np.random.default_rng(seed)
    residuals = (np.log(loss) - fitted) * np.sqrt(count / (count - len(NAMES)))
    residuals -= residuals.mean()
    drawn = fitted + residuals[random.integers(0, count, (draws, count))]
    drawn += residuals.std() * count**-0.2 * random.standard_normal(drawn.shape)
    return Law(best, _refined(np.repeat(best[None], draws, 0), n, d, drawn), float((6 * n * d).max()))


def leave_largest_out(points: Sequence[Point]) -> tuple[Point, float]:
    """The run of the most compute, and the loss that a law of the others gives it."""
    largest, others = _without_largest(points)
    return largest, fit(others, draws=1).loss(largest.n, largest.d)[0]


def _without_largest(points: Sequence[Point]) -> tuple[Point, list[Point]]:
    """The run of the most compute, and all others."""
    largest = max(points, key=lambda point: point.compute)
    return largest, [point for point in points if point is not largest]


def _check_enough(points: Sequence[Point], of: str = "") -> None:
    """UserError for fewer runs than a fit takes, or too few sizes or budgets."""
    sizes, budgets = len({point.n for point in points}), len({point.d for point in points})
    if len(points) < 7 or min(sizes, budgets) < 3:
        raise UserError(
            f"{of}a law of five numbers needs 7 runs or more, of 3 sizes and 3 budgets of tokens; "
            f"the ladder has {len(points)} of {sizes} and {budgets}"
        )


def _check_near(compute: float, largest: float) -> None:
    """UserError for more than ten times the compute of the ladder's largest run."""
    if compute > BEYOND * largest * (1 + 1e-9):
        raise UserError(
            f"{compute:.3g} floating-point operations are {compute / largest:.1f} times those of "
            f"the ladder's largest run: the law is not asked beyond {BEYOND:g} times; train larger runs"
        )


def interval(values: Float[np.ndarray, "r"]) -> tuple[float, float]:
    """The middle 90% of values."""
    low, high = np.quantile(values, [0.05, 0.95])
    return float(low), float(high)


def _losses(
    numbers: Float[np.ndarray, "r 5"], n: Float[np.ndarray, "p"], d: Float[np.ndarray, "p"]
) -> Float[np.ndarray, "r p"]:
    e, a, b, alpha, beta = (numbers[:, k, None] for k in range(5))
    return e + a * n**-alpha + b * d**-beta


def _optimum(numbers: Float[np.ndarray, "r 5"], compute: float) -> dict[str, Float[np.ndarray, "r"]]:
    _, a, b, alpha, beta = numbers.T
    g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    share = beta / (alpha + beta)
    n = g * (compute / 6) ** share
    d = compute / 6 / n
    loss = numbers[:, 0] + a * n**-alpha + b * d**-beta
    return {"n": n, "d": d, "loss": loss, "a": share, "b": 1 - share}


def _projected(
    n: Float[np.ndarray, "p"], d: Float[np.ndarray, "p"], loss: Float[np.ndarray, "p"]
) -> Float[np.ndarray, "5"]:
    """The best of a grid of exponents, for each of which the others solve Huber's problem, none below 0."""
    alpha, beta = (grid.ravel() for grid in np.meshgrid(EXPONENTS, EXPONENTS, indexing="ij"))
    terms = np.stack([np.ones((len(alpha), len(n))), n ** -alpha[:, None], d ** -beta[:, None]], 2)
    columns = terms / loss[:, None]
    size = np.linalg.norm(columns, axis=1, keepdims=True)
    columns /= size
    weights = np.ones(columns.shape[:2])
    for _ in range(30):
        weighted = (columns * weights[:, :, None]).transpose(0, 2, 1)
        normal = weighted @ columns + 1e-14 * np.eye(3)
        found = np.linalg.solve(normal, weighted.sum(2, keepdims=True))
        residual = (columns @ found)[:, :, 0] - 1
        weights = np.minimum(1, HUBER / np.maximum(np.abs(residual), 1e-300))
    numbers = found[:, :, 0] / size[:, 0]
    errors = np.where((numbers > 0).all(1), _huber(residual, HUBER), np.inf)
    best = int(errors.argmin())
    if not np.isfinite(errors[best]):
        raise UserError("no law fits: the losses do not fall with weights and tokens")
    return np.array([*numbers[best], alpha[best], beta[best]])


def _refined(
    start: Float[np.ndarray, "r 5"],
    n: Float[np.ndarray, "p"],
    d: Float[np.ndarray, "p"],
    log_loss: Float[np.ndarray, "r p"],
    stages: Sequence[tuple[float, int]] = STAGES,
) -> Float[np.ndarray, "r 5"]:
    """Each row's summed Huber loss lowered by damped Gauss-Newton steps (Levenberg, Marquardt), all at once.

    Steps are on log E, log A, log B, alpha, beta, so that none but the exponents can turn negative.
    """
    x = np.concatenate([np.log(np.maximum(start[:, :3], 1e-12)), start[:, 3:]], 1)
    log_n, log_d = np.log(n), np.log(d)

    def terms_at(x: Float[np.ndarray, "r 5"]) -> Float[np.ndarray, "r 3 p"]:
        powers = np.stack([np.zeros_like(x[:, 3:4] * n), -x[:, 3:4] * log_n, -x[:, 4:5] * log_d], 1)
        return np.exp(np.clip(x[:, :3, None] + powers, -60, 60))

    for bound, steps in stages:
        damping = np.full(len(x), 1e-3)
        terms = terms_at(x)
        residual = np.log(terms.sum(1)) - log_loss
        for _ in range(steps):
            share = terms / terms.sum(1, keepdims=True)  # d log L / d log of each term
            rows = np.concatenate([share, -share[:, 1:2] * log_n, -share[:, 2:3] * log_d], 1)
            weighted = rows * np.minimum(1, bound / np.maximum(np.abs(residual), 1e-300))[:, None]
            normal = weighted @ rows.transpose(0, 2, 1)
            gradient = weighted @ residual[:, :, None]
            scale = np.einsum("rkk->rk", normal) * damping[:, None] + 1e-15
            step = np.linalg.solve(normal + scale[:, :, None] * np.eye(5), gradient)[:, :, 0]
            moved = x - step
            their_terms = terms_at(moved)
            their_residual = np.log(their_terms.sum(1)) - log_loss
            better = (_huber(their_residual, bound) < _huber(residual, bound)) & (moved[:, 3:] > 0).all(1)
            x, residual = (
                np.where(better[:, None], a, b) for a, b in ((moved, x), (their_residual, residual))
            )
            terms = np.where(better[:, None, None], their_terms, terms)
            damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-12, 1e9)
    return np.concatenate([np.exp(np.clip(x[:, :3], -600, 600)), x[:, 3:]], 1)


def _huber(residual: Float[np.ndarray, "r p"], bound: float) -> Float[np.ndarray, "r"]:
    far = np.abs(residual)
    return np.where(far <= bound, far**2 / 2, bound * (far - bound / 2)).sum(1)


# ---- the report --------------------------------------------------------------------------------------------


def document(
    ladder: Ladder, points: Sequence[Point], held_out: Sequence[Point], law: Law, compute: float | None
) -> dict[str, Any]:
    """Everything, for programs."""
    largest, predicted = leave_largest_out(points)
    asked = law.compute * 4 if compute is None else compute
    best = law.optimum(asked)
    return {
        "ladder": to_dict(ladder),
        "points": [vars(point) for point in points],
        "fit": {name: _with_interval(found) for name, found in law.intervals.items()},
        "residuals": [point.loss / law.loss(point.n, point.d)[0] - 1 for point in points],
        "leave_largest_out": vars(largest) | {"predicted": predicted, "error": predicted / largest.loss - 1},
        "held_out": [
            vars(point) | {"predicted": _with_interval(law.loss(point.n, point.d))} for point in held_out
        ],
        "largest_compute": law.compute,
        "optimum": {"compute": asked} | {name: _with_interval(found) for name, found in best.items()},
    }


def markdown(found: dict[str, Any]) -> str:
    """The law, what it predicted, and the compute-optimal split."""

    def words(entry: dict[str, Any]) -> str:
        value, low, high = (
            f"{number:.4g}" if number > 1e-9 else "0" for number in (entry["value"], *entry["interval"])
        )
        return f"{value} | {low} to {high}"

    lines = ["# L(N, D) = E + A / N^alpha + B / D^beta", "", "| | fitted | 90% interval |", "|---|---|---|"]
    lines += [f"| {name} | {words(entry)} |" for name, entry in found["fit"].items()]
    left, best, worst = found["leave_largest_out"], found["optimum"], max(map(abs, found["residuals"]))
    ratio = best["compute"] / found["largest_compute"]
    largest = f"The largest, left out, is predicted {left['predicted']:.4f} and reached {left['loss']:.4f}"
    lines += ["", f"{len(found['points'])} runs, residuals to {worst:.2%}. {largest} ({left['error']:+.2%})."]
    for point in found["held_out"]:
        low, high = point["predicted"]["interval"]
        made = (
            f"Held out: {point['n']:,.0f} weights after {point['d']:,.0f} tokens reached {point['loss']:.4f}"
        )
        lines.append(f"{made}, predicted {point['predicted']['value']:.4f} ({low:.4f} to {high:.4f}).")
    asked = f"At {best['compute']:.3g} floating-point operations, {ratio:.2g} times those of the largest run"
    lines += [
        "",
        f"{asked}, the law's best:",
        "",
        "| | value | 90% interval |",
        "|---|---|---|",
        *(
            f"| {label} | {words(best[name])} |"
            for name, label in (
                ("n", "weights"),
                ("d", "tokens"),
                ("loss", "loss"),
                ("a", "a, of N = G (C/6)^a"),
                ("b", "b, of D = (C/6)^b / G"),
            )
        ),
        "",
    ]
    return "\n".join(lines)


def save(found: dict[str, Any], law: Law, folder: Path) -> str:
    """Write laws.json, report.md and report.html; the Markdown."""
    text = markdown(found)
    write_file(folder / "laws.json", json.dumps(found, indent=1))
    write_file(folder / "report.md", text)
    report.save(_page(found, law, text), folder)
    return text


def _page(found: dict[str, Any], law: Law, text: str) -> report.Report:
    """Losses by compute, a line a size, and the law's curves through them."""
    every, law_of, runs = found["points"] + found["held_out"], [], []
    for color, n in enumerate(sorted({point["n"] for point in every})):
        own = sorted((point["d"], point["loss"]) for point in every if point["n"] == n)
        d = np.geomspace(own[0][0], own[-1][0], 40)
        curve = _losses(law.values[None], np.full(40, float(n)), d)[0].tolist()
        law_of.append(Series(f"law, {n:,.0f} weights", (6 * n * d).tolist(), curve, faint=True, color=color))
        compute, losses = [6 * n * tokens for tokens, _ in own], [loss for _, loss in own]
        runs.append(Series(f"{n:,.0f} weights", compute, losses, line=False, points=True, color=color))
    plot = Plot(
        "Held-out loss by compute",
        Axis("compute, 6 N D", "floating-point operations", log=True),
        Axis("held-out loss", "nats per token"),
        [*law_of, *runs],
        ordered=True,
        note="Points are runs, lines are the fitted law.",
    )
    title, _, rest = text.partition("\n")
    data = report.Fold("The data", json.dumps(found, indent=1))
    return report.Report(title.removeprefix("# "), [plot, report.Text(rest), data])


def _with_interval(found: tuple[float, float, float]) -> dict[str, Any]:
    value, low, high = found
    return {"value": value, "interval": [low, high]}
