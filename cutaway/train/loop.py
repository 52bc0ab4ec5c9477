"""The loop of a training run: steps, and between them evaluation, samples, checkpoints and a clean end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol, runtime_checkable

from cutaway.data.tasks import ScorerError
from cutaway.errors import OperationalError, UserError, plural
from cutaway.train import checkpoint, compiling, device
from cutaway.train.early_stopping import EarlyStopping
from cutaway.train.folder import BEST, CHECKPOINTS
from cutaway.train.log import Log
from cutaway.train.signals import SignalHandler, exit_by_signal
from cutaway.train.training import DataError, Evaluator, Training


@runtime_checkable
class Callback(Protocol):
    """What is notified of a run's progress, on the first process alone."""

    def note(self, text: str) -> None:
        """A line for the user."""
        ...

    def step(self, numbers: dict[str, float | int], steps: int) -> None:
        """A step of ``steps`` is done."""
        ...

    def evaluated(self, step: int, numbers: dict[str, float]) -> None:
        """The validation loss is known."""
        ...

    def stopping(self) -> None:
        """A signal ends the run after the step under way: it is called where no lock may be taken."""
        ...


def train(
    training: Training, folder: Path, log: Log | None, callback: Callback, signals: SignalHandler, peak: float
) -> None:
    """Make the steps that are left, with what is due between them. Each ending saves a checkpoint first.

    A run also ends by a signal (the process exits by it), and by a validation loss that rises, where the run
    says so. ``log`` is None on all processes but the first; ``peak`` is what matrix products reach on this
    machine, in floating-point operations a second.

    Raises UserError or OperationalError where data cannot be had (DataError) or scored (ScorerError).
    """
    stopping = EarlyStopping.of(training.run.early_stopping, folder, training.step)
    try:
        _steps(training, folder, log, callback, signals, peak, stopping)
        _keep_best(training, folder, callback, stopping)
    except (DataError, ScorerError) as error:
        step = training.step
        if step == 0:
            raise
        if not checkpoint.path(folder / CHECKPOINTS, step).exists():
            _save(training, folder)
        command = f"cutaway {training.run.verb} {folder} --resume"
        kind = UserError if isinstance(error, UserError) else OperationalError
        raise kind(f"{error}. Step {step} is saved: continue with `{command}`") from error


def _save(training: Training, folder: Path) -> None:
    """A checkpoint, and the model as it is."""
    training.save(folder / CHECKPOINTS)
    training.data.export(training, folder)


def _keep_best(training: Training, folder: Path, callback: Callback, stopping: EarlyStopping) -> None:
    """The model becomes that of the lowest validation loss, where the last step's is another."""
    run, best = training.run, stopping.best
    if stopping.stops and training.step < run.steps:
        callback.note(
            f"The validation loss rises, so the run stops after {training.step} of "
            f"{plural(run.steps, 'step')} (`cutaway {run.verb} {folder} --resume --early-stopping 0` goes "
            "on)."
        )
    if best is None or best[0] == training.step:
        return
    found = checkpoint.path(folder / BEST, best[0])
    fault = checkpoint.damage(found)
    if fault is not None:
        callback.note(f"{found}: is not whole ({fault}), so the last step's weights are kept.")
        return
    training.restore(found)
    training.data.export(training, folder)
    callback.note(
        f"The weights of step {best[0]} are kept, whose validation loss of {best[1]:.3f} is the lowest."
    )


def _steps(
    training: Training,
    folder: Path,
    log: Log | None,
    callback: Callback,
    signals: SignalHandler,
    peak: float,
    stopping: EarlyStopping,
) -> None:
    """Step, measure, log, evaluate and save until the last step, a signal, or early stopping."""
    run, parallel = training.run, training.parallel
    if training.step == 0 and isinstance(training.data.validation, Evaluator):
        _evaluate(training, log, callback)
    remeasured = False
    compiled: list[float] = []  # seconds of the first steps, the first of which compiles
    while training.step < run.steps and not stopping.stops:
        start = time.perf_counter()
        if training.compiles and not compiled:
            with compiling.watched(compiling.seconds(len(run.model.blocks)), callback.note):
                numbers = training.advance()
        else:
            numbers = training.advance()
        seconds = time.perf_counter() - start
        if training.compiles and len(compiled) < 2:
            compiled.append(seconds)
            if len(compiled) == 2 and parallel.rank == 0:
                compiling.measured(len(run.model.blocks), max(0.0, compiled[0] - compiled[1]))
        step, flops = training.step, training.operations / seconds
        if flops > peak and not remeasured:
            remeasured, before = True, peak
            peak = max(peak, device.measured_peak(training.device, run.precision))
            callback.note(
                f"Step {step} reached {flops / 1e9:,.0f} GFLOP/s, more than matrix products did before the "
                f"first step ({before / 1e9:,.0f}), when the machine was busier: now they reach "
                f"{peak / 1e9:,.0f}."
            )
        speeds = {"tokens_per_second": training.tokens / seconds, "flops_per_second": flops}
        numbers = {"step": step, **numbers, **speeds, "mfu": flops / peak, "seconds": seconds}
        if log is not None:
            callback.step(numbers, run.steps)
            if _due(step, run.intervals.log, run.steps):
                log.write(numbers)
        if stopping.add(step, _evaluate(training, log, callback)):
            training.save(folder / BEST)
            if parallel.rank == 0:
                checkpoint.prune(folder / BEST, 1)
        received = parallel.any_signal(signals.received)
        if received is not None or stopping.stops or _due(step, run.intervals.save, run.steps):
            _save(training, folder)
            if log is not None:
                checkpoint.prune(folder / CHECKPOINTS, run.intervals.keep_checkpoints)
        if received is not None:
            callback.note(
                f"Stopped by a signal after step {step}, which is saved: continue with "
                f"`cutaway {run.verb} {folder} --resume`."
            )
            exit_by_signal(received)


def _evaluate(training: Training, log: Log | None, callback: Callback) -> dict[str, float]:
    """Validation loss, which is returned, and samples, where either is due."""
    run, step = training.run, training.step
    found: dict[str, float] = {}
    if _due(step, run.evaluation_interval, run.steps):
        found = training.evaluate(run.intervals.evaluate_sequences)
        if log is not None and found:
            log.write({"step": step, **found})
            callback.evaluated(step, found)
    if log is not None and training.parallel.size == 1 and _due(step, run.intervals.sample, run.steps):
        for prompt, text in training.sample():
            log.write({"step": step, "prompt": prompt, "sample": text})
            callback.note(f"step {step}: {f'{prompt!r} -> ' if prompt else ''}{text!r}")
    return found


def _due(step: int, interval: int, last: int) -> bool:
    """Whether something with this interval happens after this step; after the last one everything does."""
    return bool(interval) and (step % interval == 0 or step == last)
