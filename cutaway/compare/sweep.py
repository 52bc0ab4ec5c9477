"""An experiment run: each arm's learning-rate sweep by successive halving, and other seeds of the best rate.

Every training run has a folder, and one that is finished is read and not run again: an experiment that was
stopped goes on to the same table. A run whose loss is NaN counts as failed and is reported. Arms know nothing
of each other, so they run one after the other, in processes side by side, or as Ray tasks.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path

from cutaway.compare import arms
from cutaway.compare.arms import TRIAL, Arm, ArmRun, Experiment, Part
from cutaway.errors import OperationalError
from cutaway.ray_tasks import each
from cutaway.store.files import Progress, silent
from cutaway.store.reading import json_lines
from cutaway.train.curve import METRICS, PAGE, Points
from cutaway.train.run import train
from cutaway.weights.load import RUN

Note = Callable[[str], None]
Train = Callable[[Arm, float, int, int, Part], "Measured"]
CURVES = ("accuracy", "bits_per_byte", "loss", "induction", "previous_token")


@dataclass(frozen=True)
class Measured:
    """A finished run: its held-out score and loss, what was measured by step, and its speed and folder."""

    score: float
    loss: float
    curves: dict[str, Points]
    tokens_per_second: float
    folder: Path
    failed: str | None = None


@dataclass
class ArmResult:
    """An arm: the runs of every rate that was tried by their steps, the best rate, and its scored runs.

    ``bound``: the best rate is the lowest or highest that was tried, so that it bounds the optimum only.
    """

    arm: Arm
    tried: dict[float, dict[int, Measured]] = field(default_factory=dict)
    rate: float = 0.0
    bound: bool = False
    runs: list[Measured] = field(default_factory=list)


def run_sweep(
    experiment: Experiment,
    folder: Path,
    note: Note,
    *,
    workers: int = 1,
    ray: bool = False,
    progress: Progress = silent,
) -> list[ArmResult]:
    """Every arm's sweep and seeds; ``note`` is called before each run, or after each arm that ran elsewhere.

    ``progress`` counts the steps of each run, or the arms that ran elsewhere.

    ``workers`` processes train at a time, or with ``ray`` the machines of a cluster that share ``folder``.
    """
    if not ray and workers == 1:
        return [arm_result(experiment, folder, arm, note, progress) for arm in experiment.arms]
    results = []
    progress("arms", 0, len(experiment.arms))
    for result in (_on_ray if ray else partial(_processes, workers))(experiment, folder.resolve()):
        note(f"{result.arm.name} is done")
        results.append(result)
        progress("arms", len(results), len(experiment.arms))
    return results


def arm_result(
    experiment: Experiment,
    folder: Path,
    arm: Arm,
    note: Note = lambda what: None,
    progress: Progress = silent,
) -> ArmResult:
    """One arm's sweep and seeds."""

    def measured(arm: Arm, rate: float, steps: int, seed: int, part: Part) -> Measured:
        note(f"{arm.name}, learning rate {rate:g}, {steps} steps, seed {seed}")
        place = folder / _plain(arm.name) / f"{rate:g}-{steps}-{seed}"
        made = arms.run_of(experiment, arm, rate, steps, seed, part)
        return one(made, place, lambda step: progress(arm.name, step, steps))

    result = ArmResult(arm)
    _sweep(experiment, result, measured)
    result.runs = [
        measured(arm, result.rate, experiment.steps, seed, "test") for seed in range(experiment.seeds)
    ]
    return result


def _processes(workers: int, experiment: Experiment, folder: Path) -> Iterator[ArmResult]:
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(arm_result, repeat(experiment), repeat(folder), experiment.arms)


def _on_ray(experiment: Experiment, folder: Path) -> Iterator[ArmResult]:
    jobs = ((experiment, folder, arm) for arm in experiment.arms)
    return each("comparing", arm_result, jobs, experiment.threads)


def one(run: ArmRun, folder: Path, stepped: Callable[[int], None] = lambda step: None) -> Measured:
    """A training run, begun, continued or read from its folder; ``stepped`` is called after steps."""
    found = _read(run, folder)
    if found is not None and (folder / PAGE).is_file():  # which is written last
        return found
    try:
        train(run, folder, _Quiet(stepped), recipe=arms, resume=(folder / RUN).is_file())
    except OperationalError as error:
        worst = float("inf") if run.data.metric == "bits_per_byte" else 0.0
        return Measured(worst, float("inf"), {}, 0.0, folder, str(error))
    found = _read(run, folder)
    assert found is not None, "a run that ended has its last evaluation"
    return found


def _sweep(experiment: Experiment, result: ArmResult, measured: Train) -> None:
    """Choose the rate of the lowest mean loss over the trial seeds after all steps, on validation rows.

    No run that chooses is scored: the best of several is lower than it will be again, by its luck. Each rung
    keeps the better half of the rates, but two at least. Short runs may mislead, so the rates beside the best
    one are run to the end too; one seed may, so the best one has all trial seeds, and where their mean is
    above another rate's, that one has them. Beyond the sweep's edge a rate is added. One rate is no choice.
    """
    if len(experiment.learning_rates) == 1:
        (result.rate,) = experiment.learning_rates
        return
    rates, left = list(experiment.learning_rates), list(experiment.learning_rates)
    whole, steps, widened = experiment.steps, experiment.trial_steps, 0

    def tried(rate: float, steps: int) -> Measured:
        own = result.tried.setdefault(rate, {})
        own[steps] = own.get(steps) or measured(result.arm, rate, steps, TRIAL, "validation")
        return own[steps]

    while len(left) > 2 and steps < whole:
        left = sorted(left, key=lambda rate: tried(rate, steps).loss)[: max(2, (len(left) + 1) // 2)]
        steps = min(2 * steps, whole)
    runs = {rate: [tried(rate, whole)] for rate in left}
    while True:
        result.rate = min(runs, key=lambda rate: statistics.fmean(run.loss for run in runs[rate]))
        best, at = runs[result.rate], rates.index(result.rate)
        result.bound = at in (0, len(rates) - 1)
        if beside := [rate for rate in rates[max(0, at - 1) : at + 2] if rate not in runs]:
            runs |= {rate: [tried(rate, whole)] for rate in beside}
        elif len(best) < experiment.trial_seeds:
            best.append(measured(result.arm, result.rate, whole, TRIAL + len(best), "validation"))
        elif result.bound and widened < experiment.widen:
            ratio, widened = rates[1] / rates[0], widened + 1
            rates = sorted([*rates, rates[0] / ratio if at == 0 else rates[-1] * ratio])
        else:
            return


def _read(run: ArmRun, folder: Path) -> Measured | None:
    """A run's figures, None where it did not reach its last evaluation."""
    path = folder / METRICS
    lines = list(json_lines(path)) if path.is_file() else []
    curves: dict[str, Points] = {}
    for line in lines:
        for name in CURVES:
            if (value := line.get(f"validation_{name}")) is not None:
                curves.setdefault(name, []).append((line["step"], value))
    if not curves or curves["loss"][-1][0] != run.steps:
        return None
    speeds = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    score = curves[run.data.metric][-1][1]
    return Measured(score, curves["loss"][-1][1], curves, speeds[len(speeds) // 2], folder)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


@dataclass
class _Quiet:
    """A training run's progress is the experiment's, and no more."""

    stepped: Callable[[int], None]

    def note(self, text: str) -> None:
        pass

    def step(self, numbers: dict[str, float | int], steps: int) -> None:
        self.stepped(int(numbers["step"]))

    def evaluated(self, step: int, numbers: dict[str, float]) -> None:
        pass

    def stopping(self) -> None:
        pass
