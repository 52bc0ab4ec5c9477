"""An experiment run: a learning-rate sweep for each arm by successive halving, then seeds of the best rate.

Every training run has a folder, and one that is finished is read and not run again: an experiment that was
stopped goes on to the same table. A run whose loss is NaN counts as failed and is reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cutaway.compare import arms
from cutaway.compare.arms import Arm, ArmRun, Experiment
from cutaway.errors import OperationalError
from cutaway.train.curve import METRICS
from cutaway.train.run import train
from cutaway.weights.load import RUN

Note = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measured:
    """A finished run: its held-out accuracy and loss, its curve by step, and what it took."""

    accuracy: float
    loss: float
    curve: list[tuple[int, float]]
    tokens_per_second: float
    failed: str | None = None


@dataclass
class ArmResult:
    """An arm: every rate that was tried with its accuracies, the best one, and the runs of its seeds.

    ``bound``: the best rate is the lowest or highest that was tried, so that it bounds the optimum only.
    """

    arm: Arm
    tried: dict[float, dict[int, Measured]] = field(default_factory=dict)  # by rate and steps
    rate: float = 0.0
    bound: bool = False
    runs: list[Measured] = field(default_factory=list)


def run(experiment: Experiment, folder: Path, note: Note) -> list[ArmResult]:
    """Every arm's sweep and seeds, in order; ``note(what, done, total)`` is called before each run."""
    total = len(experiment.arms) * (
        len(experiment.learning_rates) + (len(experiment.learning_rates) + 1) // 2 + experiment.seeds - 1
    )
    done = 0

    def measured(arm: Arm, rate: float, steps: int, seed: int) -> Measured:
        nonlocal done, total
        note(f"{arm.name}, learning rate {rate:g}, {steps} steps, seed {seed}", done, max(total, done + 1))
        done += 1
        place = folder / _plain(arm.name) / f"{rate:g}-{steps}-{seed}"
        return one(arms.run_of(experiment, arm, rate, steps, seed), place)

    results = []
    for arm in experiment.arms:
        result = ArmResult(arm)
        _sweep(experiment, result, measured)
        result.runs = [measured(arm, result.rate, experiment.steps, seed) for seed in range(experiment.seeds)]
        results.append(result)
    return results


def one(run: ArmRun, folder: Path) -> Measured:
    """A training run, begun, continued or read from its folder."""
    found = _read(folder, run.steps)
    if found is not None:
        return found
    try:
        train(run, folder, _Quiet(), recipe=arms, resume=(folder / RUN).is_file())
    except OperationalError as error:
        return Measured(0.0, float("inf"), [], 0.0, str(error))
    found = _read(folder, run.steps)
    assert found is not None, "a run that ended has its last evaluation"
    return found


def _sweep(
    experiment: Experiment, result: ArmResult, measured: Callable[[Arm, float, int, int], Measured]
) -> None:
    """The rate of the lowest loss after all steps, of those that were among the better half of trials."""
    rates = list(experiment.learning_rates)

    def tried(rate: float, steps: int) -> Measured:
        own = result.tried.setdefault(rate, {})
        own[steps] = own.get(steps) or measured(result.arm, rate, steps, 0)
        return own[steps]

    for round_ in range(experiment.widen + 1):
        ranked = sorted(rates, key=lambda rate: tried(rate, experiment.trial_steps).loss)
        full = {rate: tried(rate, experiment.steps) for rate in ranked[: (len(rates) + 1) // 2]}
        result.rate = min(full, key=lambda rate: full[rate].loss)
        result.bound = result.rate in (min(rates), max(rates)) and len(rates) > 1
        if not result.bound or round_ == experiment.widen:
            return
        ratio = rates[1] / rates[0]
        rates = sorted([*rates, result.rate / ratio if result.rate == min(rates) else result.rate * ratio])


def _read(folder: Path, steps: int) -> Measured | None:
    """A run's figures, None where it did not end."""
    path = folder / METRICS
    if not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    curve = [(line["step"], line["validation_accuracy"]) for line in lines if "validation_accuracy" in line]
    last = next((line for line in lines if line["step"] == steps and "validation_accuracy" in line), None)
    if last is None:
        return None
    speeds = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    return Measured(last["validation_accuracy"], last["validation_loss"], curve, speeds[len(speeds) // 2])


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


class _Quiet:
    """A training run's progress is the experiment's, and no more."""

    def note(self, text: str) -> None:
        pass

    def step(self, numbers: dict[str, float | int], steps: int) -> None:
        pass

    def evaluated(self, step: int, numbers: dict[str, float]) -> None:
        pass
