"""The loop: rows in, gradient, step; and around it evaluation, samples, checkpoints and a clean end.

Everything that a step does is a function of the weights, the optimizer's state, the seed and the step's
number. A run that was stopped therefore goes on to the same weights, bit for bit on one device, as one
that was not.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from cutaway.data.packing import Batch, Mixture, Span
from cutaway.errors import OperationalError, UserError
from cutaway.model.decoder import Decoder
from cutaway.tokenizer import Tokenizer
from cutaway.train import checkpoint, device
from cutaway.train.config import TrainingConfig
from cutaway.train.flops import per_token
from cutaway.train.log import Log
from cutaway.train.loss import Objective
from cutaway.train.parallel import SINGLE_PROCESS, Parallel
from cutaway.train.signals import SignalHandler, exit_by_signal
from cutaway.weights import quant
from cutaway.weights import save as writer
from cutaway.weights.load import Checkpoint
from cutaway.weights.rules import Tensors

CHECKPOINTS, MODEL, TOKENIZER = "checkpoints", "model", "tokenizer"


@runtime_checkable
class Callback(Protocol):
    """Who looks on. All are called on the first device's process alone."""

    def note(self, text: str) -> None:
        """Something to know, once."""
        ...

    def step(self, numbers: dict[str, float | int], steps: int) -> None:
        """A step of ``steps`` is done."""
        ...

    def evaluated(self, step: int, numbers: dict[str, float]) -> None:
        """Held-out text was read."""
        ...

    def sample(self, step: int, model: Decoder, tokenizer: Tokenizer) -> list[str]:
        """The texts that the model writes now."""
        ...


@dataclass(frozen=True)
class Dataset:
    """What a run reads: rows to train on, rows held out (None if there are none), and each id's bytes."""

    train: Mixture
    validation: Span | None
    lengths: Tensor
    tokenizer: Tokenizer


class Training:
    """A run in memory: the model, its optimizers and their average, after ``step`` steps."""

    def __init__(
        self,
        run: TrainingConfig,
        data: Dataset,
        parallel: Parallel = SINGLE_PROCESS,
        note: checkpoint.Note = print,
    ) -> None:
        self.device = parallel.device or device.device(run.device)
        run = replace(run, precision=device.precision(run.precision, self.device))
        self.run, self.text, self.parallel = run, data, parallel
        self.step = 0
        torch.manual_seed(run.seed)
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        self.model = Decoder(run.model).to(self.device).train()
        self.objective = Objective(self.model, run.loss_chunk_size, run.z_loss, run.router_aux_loss)
        if run.activation_checkpointing:
            _recompute(self.model)
        if parallel.size > 1:
            parallel.shard(self.objective, run)
        _compile(self.objective, run, parallel, note)
        self.names = {parameter: name for name, parameter in self.model.named_parameters()}
        self.optimizers = run.optimizer.build([(name, p) for p, name in self.names.items()])
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.ema = None if run.ema is None else [p.detach().clone() for p in self.names]
        self.micro_batches = parallel.micro_batches(run)

    # ---- a step --------------------------------------------------------------------------------------------

    def advance(self) -> dict[str, float]:
        """One step: its loss, bits per byte, gradient length and rate. OperationalError, and nothing
        changed, if the loss or the gradient is no number.
        """
        loss, entropy, size = self._gradient()
        length = self.parallel.clip_gradients(list(self.names), self.run.gradient_clip)
        if not (math.isfinite(loss) and math.isfinite(length)):
            what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's length is {length}"
            raise OperationalError(
                f"step {self.step + 1}: the {what}, so the run stops; nothing of this step was kept. "
                "Lower optim.learning_rate, or bound the gradient with clip, and then go on with --resume"
            )
        factor = self.run.schedule.factor(self.step, self.run.steps)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.ema is not None and self.run.ema is not None:
            for mean, parameter in zip(self.ema, self.names, strict=True):
                mean.lerp_(parameter.detach(), 1 - self.run.ema)
        self.step += 1
        if self.device.type == "cpu":
            device.keep_memory()  # once a step was made: what compiling it took is given back
        return {
            "loss": loss,
            "cross_entropy": entropy,
            "bits_per_byte": entropy
            * self.run.batch_size
            * self.run.model.context
            / math.log(2)
            / max(size, 1),
            "gradient_norm": length,
            "learning_rate": self.rates[0][0] * factor,
        }

    def _gradient(self) -> tuple[float, float, int]:
        """Goes back from every reading of this step: loss and cross-entropy a token, and the bytes they
        stand for.
        """
        totals = torch.zeros(3, dtype=torch.float64)
        tokens = self.run.batch_size * self.run.model.context
        first = self.step * self.run.batch_size
        for n, at in enumerate(self.micro_batches):
            rows = self.text.train.batch(first + at, self.run.micro_batch_size)
            with self.parallel.sync_gradients(self.objective, last=n == len(self.micro_batches) - 1):
                loss, entropy = self._losses(rows)
                (loss * (self.parallel.data_size / tokens)).backward()
            totals += torch.stack([loss.detach().double().cpu(), entropy.double().cpu(), self._bytes(rows)])
        totals = self.parallel.all_reduce(totals)
        return float(totals[0]) / tokens, float(totals[1]) / tokens, int(totals[2])

    def _losses(self, rows: Batch) -> tuple[Tensor, Tensor]:
        ids, targets, pos, documents = (
            torch.from_numpy(array).to(self.device, non_blocking=True)
            for array in (rows.ids, rows.targets, rows.pos, rows.documents)
        )
        with self._precision():
            return self.objective(ids, targets, pos, None if rows.whole else documents)

    def _precision(self) -> Any:
        """bf16 matrix products over float32 weights; sharded weights are rounded by ``fully_shard``
        instead.
        """
        if self.run.precision == "float32" or self.parallel.size > 1:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _bytes(self, rows: Batch) -> Tensor:
        return self.text.lengths[torch.from_numpy(rows.targets)].sum().double()

    # ---- what it is worth ----------------------------------------------------------------------------------

    def evaluate(self, rows: int) -> dict[str, float]:
        """Cross-entropy a token and bits per byte on the first ``rows`` held-out rows, with averaged
        weights if there are.
        """
        span = self.text.validation
        if span is None:
            return {}
        totals = torch.zeros(3, dtype=torch.float64)
        numbers = range(self.parallel.data_rank, min(rows, span.rows), self.parallel.data_size)
        with torch.no_grad(), self.averaged():
            self.model.eval()
            for n in numbers:
                row = span.at(span.start + n * span.context)
                _, entropy = self._losses(row)
                totals += torch.stack([entropy.double().cpu(), torch.tensor(1.0).double(), self._bytes(row)])
            self.model.train()
        nats, count, size = self.parallel.all_reduce(totals).tolist()
        tokens = count * span.context
        return {
            "validation_loss": nats / tokens,
            "validation_bits_per_byte": nats / math.log(2) / max(size, 1),
        }

    def sampled(self, callback: Callback) -> list[str]:
        """What the model writes now; it is not trained meanwhile, and no random number of the run is used."""
        with torch.no_grad(), self.averaged():
            self.model.eval()
            texts = callback.sample(self.step, self.model, self.text.tokenizer)
            self.model.train()
        return texts

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights, where it has such."""
        if self.ema is None:
            yield
            return
        own = [p.detach().clone() for p in self.names]
        _copy(self.ema, self.names)
        try:
            yield
        finally:
            _copy(own, self.names)

    # ---- rest and return -----------------------------------------------------------------------------------

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
        random = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()
        self.parallel.write(folder, self.step, self.state(), {"random": random})

    def restore(self, found: Path) -> None:
        """Takes a checkpoint up: weights, optimizers, average, random state, and the place in the data."""
        state = checkpoint.state(found)
        for optimizer in self.optimizers:
            _begin(optimizer)
        self.parallel.read(found, self.state())
        self.step = int(state["step"])
        torch.set_rng_state(
            torch.from_numpy(np.frombuffer(base64.b64decode(state["random"]), np.uint8).copy())
        )

    def export(self, folder: Path) -> None:
        """The model as a folder that ``cutaway.load`` opens, and transformers where a family describes it."""
        weights = list(self.names) if self.ema is None else self.ema
        whole = {
            n: self.parallel.full_tensor(p.detach())
            for n, p in zip(self.names.values(), weights, strict=True)
        }
        if self.parallel.rank:
            return
        tensors = Tensors(
            {name: quant.pack(tensor.float().cpu().numpy(), "F32") for name, tensor in whole.items()}
        )
        words = folder / TOKENIZER
        at_rest = Checkpoint(self.run.model, tensors, None, words, lambda: self.text.tokenizer)
        try:
            writer.write(folder / MODEL, at_rest, "safetensors", force=True)
        except OSError as problem:
            raise checkpoint.refused(problem, folder) from problem


def train(
    training: Training, folder: Path, log: Log | None, callback: Callback, signals: SignalHandler, peak: float
) -> None:
    """The steps that are left, with what is due between them. Ends as asked by a signal, a checkpoint
    written.
    """
    run, parallel = training.run, training.parallel
    tokens = run.batch_size * run.model.context
    flops = per_token(run.model)
    while training.step < run.steps:
        start = time.perf_counter()
        numbers = training.advance()
        seconds = time.perf_counter() - start
        step = training.step
        speed = tokens / seconds
        numbers |= {
            "tokens_per_second": speed,
            "flops_per_second": speed * flops,
            "mfu": speed * flops / peak,
        }
        if log is not None and _due(step, run.intervals.log, run.steps):
            log.write({"step": step, **numbers})
            callback.step({"step": step, **numbers}, run.steps)
        _look(training, log, callback)
        asked = parallel.any_signal(signals.received)
        if asked is not None or _due(step, run.intervals.save, run.steps):
            training.save(folder / CHECKPOINTS)
            training.export(folder)
            if log is not None:
                checkpoint.prune(folder / CHECKPOINTS, run.intervals.keep_checkpoints)
        if asked is not None:
            callback.note(f"Stopped as asked after step {step}, which is saved: go on with --resume.")
            exit_by_signal(asked)


def _look(training: Training, log: Log | None, callback: Callback) -> None:
    """Reads held-out text and lets the model write, where either is due."""
    run, step = training.run, training.step
    found = (
        training.evaluate(run.intervals.evaluate_sequences)
        if _due(step, run.intervals.evaluate, run.steps)
        else {}
    )
    if log is not None and found:
        log.write({"step": step, **found})
        callback.evaluated(step, found)
    if log is not None and training.parallel.size == 1 and _due(step, run.intervals.sample, run.steps):
        for text in training.sampled(callback):
            log.write({"step": step, "sample": text})


def _due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps happens now; at the end everything does."""
    return bool(every) and (step % every == 0 or step == last)


def _recompute(model: Decoder) -> None:
    """Blocks that keep only what enters them, and compute the rest again on the way back."""
    for block in model.blocks:
        block.forward = partial(recomputed, block.forward, use_reentrant=False)


def _compile(objective: Objective, run: TrainingConfig, parallel: Parallel, note: checkpoint.Note) -> None:
    found = device.compiler()
    if run.compile == "never" or (run.compile == "auto" and found is None):
        if run.compile == "auto":
            note("There is no C++ compiler here, so torch.compile is not used: the same numbers, slower.")
        return
    if found is None:
        raise UserError(
            "compile: always, but there is no C++ compiler here: install g++, or use compile: never"
        )
    if parallel.size > 1:  # what gathers a block's weights stands between blocks, and cannot be compiled
        for block in objective.model.blocks:
            block.compile()
        return
    objective.routed = torch.compile(objective.model.routed, dynamic=False)


def _copy(values: Iterable[Tensor], into: Iterable[nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter, value in zip(into, values, strict=True):
            parameter.copy_(value)


def _begin(optimizer: torch.optim.Optimizer) -> None:
    """Makes an optimizer's state, as its first step would, without moving a weight: there is then a place for
    what is read.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(optimizer, torch.optim.Muon):
                optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
            else:
                zeros = torch.zeros_like(parameter), torch.zeros_like(parameter)
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                optimizer.state[parameter] = {"step": step, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
