"""A training run in memory: its data, one step (micro-batches in, gradient, update), evaluation, its state.

A step is a function of the weights, the optimizer's state, the seed and the step's number. A run that was
stopped therefore continues to the same weights, bit for bit on one device, as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cutaway.data.packing import Batch, number
from cutaway.errors import OperationalError, UserError
from cutaway.generate.batch.many_prompts import generate_batch
from cutaway.generate.sampling_params import SamplingParams
from cutaway.layers.packed import held
from cutaway.model.config import EncoderDecoder
from cutaway.model.decoder import Decoder
from cutaway.model.engine import PyTorchEngine
from cutaway.tokenizer import Tokenizer
from cutaway.train import checkpoint, device
from cutaway.train.config import TrainingConfig
from cutaway.train.flops import Operations, spans
from cutaway.train.parallel import SINGLE_PROCESS, Parallel
from cutaway.train.prepare import checkpoint_activations, compiled, eager_seconds, new_model
from cutaway.train.trainable import Trainable, TrainingBatch


class DataError(OperationalError):
    """The next step's data cannot be had. The run is whole as it is after the last step."""


@runtime_checkable
class Batches(Protocol):
    """What is trained on, as batches of rows."""

    def batch(self, first: int, count: int) -> Batch:
        """``count`` rows of the run from the ``first`` on."""
        ...


@runtime_checkable
class ValidationRows(Protocol):
    """What is validated on: so many rows, each one [1 t]."""

    @property
    def rows(self) -> int: ...

    def row(self, n: int, /) -> Batch: ...


@runtime_checkable
class Evaluator(Protocol):
    """Validates a run otherwise than by the loss on rows; before the first step too."""

    def evaluate(self, training: Training, count: int) -> dict[str, float]:
        """Figures of ``count`` of its items, by names that begin with validation_."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Sequences to train on and to validate on (None: there are none), and the bytes of text of each id.

    ``prompt`` gives a sample's prompt as ids; ``model`` is the one to train (None: a new one); ``export``
    writes a run's model beside it. ``teacher`` is a frozen model that the objective reads. ``report`` gives
    figures of the step's data. ``join`` is given
    how the run's work is split.
    """

    train: Batches
    validation: ValidationRows | Evaluator | None
    lengths: Tensor
    tokenizer: Tokenizer
    prompt: Callable[[str], list[int]]
    export: Callable[[Training, Path], None]
    model: Decoder | None = None
    teacher: Decoder | None = None
    report: Callable[[], dict[str, float]] = dict
    join: Callable[[Parallel], None] = lambda _: None


class Training:
    """A run in memory after ``step`` steps: the model, its optimizers and the moving average of its weights.

    Parameters of the data's model that require no gradient stay as they are, and are no part of a
    checkpoint.
    """

    def __init__(
        self,
        run: TrainingConfig,
        data: Dataset,
        parallel: Parallel = SINGLE_PROCESS,
        note: checkpoint.Note = print,
    ) -> None:
        self.micro_batches = parallel.micro_batches(run)
        self.device = parallel.device or device.device(run.device)
        run = replace(run, precision=device.precision(run.precision, self.device))
        self.run, self.data, self.parallel = run, data, parallel
        data.join(parallel)
        self.step, self.tokens, self.operations = 0, 0.0, 0.0  # tokens and operations of the last step
        if not isinstance(run.model, EncoderDecoder):
            self.work = Operations(run.model, run.frozen)
        torch.manual_seed(run.seed)
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        model = new_model(run) if data.model is None else data.model
        self.model = model.to(self.device).train()
        teacher = None if data.teacher is None else data.teacher.to(self.device)
        self.trainable = Trainable(self.model, run.objective, data.lengths.to(self.device), teacher)
        if run.activation_checkpointing:
            checkpoint_activations(self.trainable.decoder)
        parallel.shard(self.trainable, run)
        self.compiles = compiled(self.trainable, run, parallel, self.device, note)
        self.names = {p: name for name, p in self.model.named_parameters() if p.requires_grad}
        if not self.names:
            raise UserError("the model has no parameter to train: each of them is frozen")
        self.optimizers = run.optimizer.build([(name, p) for p, name in self.names.items()])
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.ema = None if run.ema is None else [p.detach().clone() for p in self.names]

    # ---- a step --------------------------------------------------------------------------------------------

    def advance(self) -> dict[str, float]:
        """One step: its loss, what the objective reports, gradient norm and learning rate; means over the
        objective's updates.

        OperationalError, and this update not made, if the loss or the gradient is NaN or infinite.
        """
        batches, factor = self._batches(), self.run.schedule.factor(self.step, self.run.steps)
        updates = [self._update(batches, factor, n) for n in range(self.run.objective.updates)]
        self.step += 1
        if self.device.type == "cpu":
            device.keep_memory()  # after a step, so that what compiling took is given back
        numbers = {
            name: max(each[name] for each in updates)
            if name.endswith("_max")
            else math.fsum(each[name] for each in updates) / len(updates)
            for name in updates[0]
        }
        numbers |= self.data.report()
        return numbers | {"learning_rate": self.rates[0][0] * factor}

    def _update(self, batches: list[TrainingBatch], factor: float, update: int) -> dict[str, float]:
        """The step's optimisation step ``update`` on these micro-batches, at ``factor`` of the learning
        rates.
        """
        numbers = self._gradient(batches, update)
        norm = self.parallel.clip_gradients(list(self.names), self.run.gradient_clip)
        if not (math.isfinite(numbers["loss"]) and math.isfinite(norm)):
            what = "gradient norm" if math.isfinite(numbers["loss"]) else "loss"
            value = norm if what == "gradient norm" else numbers["loss"]
            raise OperationalError(
                f"step {self.step + 1}: the {what} is {value}, so the run stops and keeps nothing of this "
                "step. Lower optimizer.learning-rate or gradient-clip, then continue with --resume"
            )
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.ema is not None and self.run.ema is not None:
            for mean, parameter in zip(self.ema, self.names, strict=True):
                mean.lerp_(parameter.detach(), 1 - self.run.ema)
        return numbers | {"gradient_norm": norm}

    def _batches(self) -> list[TrainingBatch]:
        """This step's micro-batches of this process."""
        first, size = self.step * self.run.batch_size, self.run.micro_batch_size
        rows = [self.data.train.batch(first + at, size) for at in self.micro_batches]
        self.tokens, self.operations = self._work(rows)
        batches = [TrainingBatch.of(each, self.device) for each in rows]
        self.model.eval()  # what a step's policy is compared with is without dropout, as the reference is
        try:
            with self._autocast():
                return self.run.objective.before(self.trainable, batches, self.parallel.all_reduce)
        finally:
            self.model.train()

    def _work(self, rows: list[Batch]) -> tuple[float, float]:
        """A step's tokens without padding, and its floating-point operations, over all processes."""
        run = self.run
        if isinstance(run.model, EncoderDecoder):  # both texts fill their contexts
            tokens = run.batch_size * run.width
            return tokens, tokens * run.flops_per_token
        found = [span for batch in rows for span in spans(batch.pos, batch.documents)]
        own = sum(stop - start for start, stop in found), self.work.of(found)
        tokens, operations = self.parallel.all_reduce(torch.tensor(own, dtype=torch.float64)).tolist()
        return tokens * run.objective.updates, operations * run.objective.updates

    def _gradient(self, batches: list[TrainingBatch], update: int) -> dict[str, float]:
        """Forward and backward over the micro-batches: the loss, and what the objective reports."""
        own = torch.tensor([sum(batch.weight for batch in batches)], dtype=torch.float64)
        weight = float(self.parallel.all_reduce(own))
        if not weight:
            raise OperationalError(f"step {self.step + 1}: every loss weight is 0, so nothing can be trained")
        sums: dict[str, Tensor] = {}
        # One micro-batch has no use for the head in its backward pass, and need not hold it there.
        with held(self.trainable.head) if len(batches) > 1 else nullcontext():
            for n, batch in enumerate(batches):
                self._draw_from(update, self.micro_batches[n])
                with self.parallel.sync_gradients(self.trainable, last=n == len(batches) - 1):
                    with self._autocast():
                        loss, extra = self.trainable(batch)
                    (loss * (self.parallel.data_size / weight)).backward()
                _add(sums, loss, extra)
        return self._report(sums, weight)

    def _draw_from(self, *place: int | str) -> None:
        """Start torch's random numbers (dropout) anew, as the seed, the step and this place in it decide.

        What was drawn since, by a measurement or a user's function, then changes no step, nor does the number
        of processes.
        """
        torch.manual_seed(number(self.run.seed, "step", self.step, *place))

    def _report(self, sums: dict[str, Tensor], weight: float) -> dict[str, float]:
        """Figures a token over every process."""
        names, values = list(sums), torch.stack(list(sums.values()))
        totals, largest = self.parallel.all_reduce(values.clone()), self.parallel.largest(values)
        each = zip(names, totals.tolist(), largest.tolist(), strict=True)
        named = {name: most if name.endswith("_max") else total for name, total, most in each}
        return {"loss": named.pop("loss") / weight, **self.run.objective.report(named, weight)}

    def _autocast(self) -> Any:
        """bf16 matrix products over float32 weights; ``fully_shard`` rounds sharded weights by itself."""
        if self.run.precision == "float32" or self.parallel.casts:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    # ---- evaluation ----------------------------------------------------------------------------------------

    def evaluate(self, sequences: int) -> dict[str, float]:
        """What the objective reports on the first validation sequences, with averaged weights if any."""
        span = self.data.validation
        if span is None:
            return {}
        if isinstance(span, Evaluator):
            with self._evaluating():
                return span.evaluate(self, sequences)
        sums: dict[str, Tensor] = {}
        weight = torch.zeros(1, dtype=torch.float64)
        rows, processes = min(sequences, span.rows), self.parallel.data_size
        numbers = range(self.parallel.data_rank, rows, processes)
        batches = [TrainingBatch.of(span.row(n), self.device) for n in numbers]
        if len(numbers) < math.ceil(rows / processes):  # processes go through the model together
            batches.append(TrainingBatch.of(span.row(0), self.device).blank)
        with torch.no_grad(), self._evaluating(), self._autocast():
            for batch in self.run.objective.before(self.trainable, batches, self.parallel.all_reduce):
                _add(sums, *self.trainable(batch))
                weight += batch.weight
        report = self._report(sums, float(self.parallel.all_reduce(weight)))
        return {f"validation_{name}": value for name, value in report.items()}

    def sample(self) -> list[tuple[str, str]]:
        """Each of the run's prompts and what follows it; no random number of the run is used."""
        tokenizer, intervals = self.data.tokenizer, self.run.intervals
        length = min(intervals.sample_tokens, self.run.width // 2)
        params = SamplingParams(max_tokens=length, temperature=0.8, top_p=0.95, seed=self.step)
        prompts = self.run.prompts
        with torch.no_grad(), self._evaluating():
            engine, ids = PyTorchEngine(self.trainable.decoder), map(self.data.prompt, prompts)
            made = generate_batch(engine, tokenizer, ids, params)
        return [(prompt, generation.text) for prompt, generation in zip(prompts, made, strict=True)]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The model as it is evaluated: with averaged weights, and not in training mode."""
        with self.averaged():
            self.model.eval()
            try:
                yield
            finally:
                self.model.train()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights, if it has them."""
        if self.ema is None:
            yield
            return
        own = [p.detach().clone() for p in self.names]
        _copy(self.ema, self.names)
        try:
            yield
        finally:
            _copy(own, self.names)

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor that the next step depends on, by part and name."""
        parts: dict[str, dict[str, Tensor]] = {
            "weights": {name: p.detach() for p, name in self.names.items()}
        }
        moments: dict[str, Tensor] = {}
        names: dict[Tensor, str] = {**self.names}
        for optimizer in self.optimizers:
            for parameter, entries in optimizer.state.items():
                moments |= {f"{names[parameter]}.{key}": value for key, value in entries.items()}
        parts["optimizer"] = moments
        if self.ema is not None:
            parts["ema"] = dict(zip(self.names.values(), self.ema, strict=True))
        return parts

    def save(self, folder: Path) -> None:
        """A checkpoint in ``folder``."""
        self.parallel.write(folder, self.step, self.state())

    def restore(self, found: Path) -> None:
        """Continue from a checkpoint: weights, optimizers, average, and the step."""
        for optimizer in self.optimizers:
            _begin(optimizer)
        checkpoint.fill(found, self.state())
        self.step = int(checkpoint.state(found)["step"])

    def trained(self) -> dict[str, Tensor]:
        """Every weight by name, averaged if there is an average, with what other devices hold of it."""
        values = {name: p.detach() for name, p in self.model.named_parameters()}
        if self.ema is not None:
            values |= dict(zip(self.names.values(), self.ema, strict=True))
        return {name: self.parallel.full_tensor(value).float().cpu() for name, value in values.items()}

    def seconds(self) -> float:
        """About how long the steps that are left take, by the peak of this device, without torch.compile."""
        return eager_seconds(self.run, self.run.steps - self.step, self.parallel, self.device)


def _add(sums: dict[str, Tensor], loss: Tensor, extra: dict[str, Tensor]) -> None:
    for name, value in {"loss": loss, **extra}.items():
        value = value.detach().double().cpu()
        if name in sums:
            value = torch.maximum(sums[name], value) if name.endswith("_max") else sums[name] + value
        sums[name] = value


def _copy(values: Iterable[Tensor], into: Iterable[nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter, value in zip(into, values, strict=True):
            parameter.copy_(value)


def _begin(optimizer: torch.optim.Optimizer) -> None:
    """An optimizer's state as its first step makes it, without moving a weight: tensors to read into."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(optimizer, torch.optim.Muon):
                optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
            else:
                zeros = torch.zeros_like(parameter), torch.zeros_like(parameter)
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                optimizer.state[parameter] = {"step": step, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
