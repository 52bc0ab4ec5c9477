"""The loop: rows in, gradient, step; and around it evaluation, samples, checkpoints and a clean end.

Everything that a step does is a function of the weights, the optimiser's state, the seed and the step's
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

from cutaway.data.packing import Mixture, Rows, Span
from cutaway.errors import OperationalError, UserError
from cutaway.model.decoder import Decoder
from cutaway.tokenizer import Tokenizer
from cutaway.train import checkpoint, device
from cutaway.train.config import Run
from cutaway.train.flops import per_token
from cutaway.train.log import Log
from cutaway.train.loss import Objective
from cutaway.train.parallel import ALONE, World
from cutaway.train.signals import Stopper, leave
from cutaway.weights import quant
from cutaway.weights import save as writer
from cutaway.weights.load import Checkpoint
from cutaway.weights.rules import Tensors

CHECKPOINTS, MODEL, TOKENIZER = "checkpoints", "model", "tokenizer"


@runtime_checkable
class Watch(Protocol):
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
class Text:
    """What a run reads: rows to train on, rows held out (None if there are none), and each id's bytes."""

    train: Mixture
    held_out: Span | None
    lengths: Tensor
    tokenizer: Tokenizer


class Training:
    """A run in memory: the model, its optimisers and their average, after ``step`` steps."""

    def __init__(self, run: Run, text: Text, world: World = ALONE, note: checkpoint.Note = print) -> None:
        self.device = world.device or device.device(run.device)
        run = replace(run, precision=device.precision(run.precision, self.device))
        self.run, self.text, self.world = run, text, world
        self.step = 0
        torch.manual_seed(run.seed)
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        self.model = Decoder(run.model).to(self.device).train()
        self.objective = Objective(self.model, run.loss_rows, run.z_loss, run.balance)
        if run.recompute:
            _recompute(self.model)
        if world.size > 1:
            world.shard(self.objective, run)
        _compile(self.objective, run, world, note)
        self.names = {parameter: name for name, parameter in self.model.named_parameters()}
        self.optimisers = run.optim.build([(name, p) for p, name in self.names.items()])
        self.rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]
        self.average = None if run.average is None else [p.detach().clone() for p in self.names]
        self.readings = world.readings(run)

    # ---- a step --------------------------------------------------------------------------------------------

    def advance(self) -> dict[str, float]:
        """One step: its loss, bits per byte, gradient length and rate. OperationalError, and nothing
        changed, if the loss or the gradient is no number.
        """
        loss, entropy, size = self._gradient()
        length = self.world.clip(list(self.names), self.run.clip)
        if not (math.isfinite(loss) and math.isfinite(length)):
            what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's length is {length}"
            raise OperationalError(
                f"step {self.step + 1}: the {what}, so the run stops; nothing of this step was kept. "
                "Lower optim.rate, or bound the gradient with clip, and then go on with --resume"
            )
        factor = self.run.schedule.factor(self.step, self.run.steps)
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if self.average is not None and self.run.average is not None:
            for mean, parameter in zip(self.average, self.names, strict=True):
                mean.lerp_(parameter.detach(), 1 - self.run.average)
        self.step += 1
        if self.device.type == "cpu":
            device.keep_memory()  # once a step was made: what compiling it took is given back
        return {
            "loss": loss,
            "entropy": entropy,
            "bits_per_byte": entropy * self.run.batch * self.run.model.context / math.log(2) / max(size, 1),
            "gradient": length,
            "rate": self.rates[0][0] * factor,
        }

    def _gradient(self) -> tuple[float, float, int]:
        """Goes back from every reading of this step: loss and cross-entropy a token, and the bytes they
        stand for.
        """
        totals = torch.zeros(3, dtype=torch.float64)
        tokens = self.run.batch * self.run.model.context
        first = self.step * self.run.batch
        for n, at in enumerate(self.readings):
            rows = self.text.train.batch(first + at, self.run.rows)
            with self.world.synced(self.objective, last=n == len(self.readings) - 1):
                loss, entropy = self._losses(rows)
                (loss * (self.world.data_size / tokens)).backward()
            totals += torch.stack([loss.detach().double().cpu(), entropy.double().cpu(), self._bytes(rows)])
        totals = self.world.summed(totals)
        return float(totals[0]) / tokens, float(totals[1]) / tokens, int(totals[2])

    def _losses(self, rows: Rows) -> tuple[Tensor, Tensor]:
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
        if self.run.precision == "float32" or self.world.size > 1:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _bytes(self, rows: Rows) -> Tensor:
        return self.text.lengths[torch.from_numpy(rows.targets)].sum().double()

    # ---- what it is worth ----------------------------------------------------------------------------------

    def evaluate(self, rows: int) -> dict[str, float]:
        """Cross-entropy a token and bits per byte on the first ``rows`` held-out rows, with averaged
        weights if there are.
        """
        span = self.text.held_out
        if span is None:
            return {}
        totals = torch.zeros(3, dtype=torch.float64)
        numbers = range(self.world.data_rank, min(rows, span.rows), self.world.data_size)
        with torch.no_grad(), self.averaged():
            self.model.eval()
            for n in numbers:
                row = span.at(span.start + n * span.context)
                _, entropy = self._losses(row)
                totals += torch.stack([entropy.double().cpu(), torch.tensor(1.0).double(), self._bytes(row)])
            self.model.train()
        nats, count, size = self.world.summed(totals).tolist()
        tokens = count * span.context
        return {"held_out_loss": nats / tokens, "held_out_bits_per_byte": nats / math.log(2) / max(size, 1)}

    def sampled(self, watch: Watch) -> list[str]:
        """What the model writes now; it is not trained meanwhile, and no random number of the run is used."""
        with torch.no_grad(), self.averaged():
            self.model.eval()
            texts = watch.sample(self.step, self.model, self.text.tokenizer)
            self.model.train()
        return texts

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights, where it has such."""
        if self.average is None:
            yield
            return
        own = [p.detach().clone() for p in self.names]
        _copy(self.average, self.names)
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
        for optimiser in self.optimisers:
            for parameter, entries in optimiser.state.items():
                moments |= {f"{names[parameter]}.{key}": value for key, value in entries.items()}
        parts["optimiser"] = moments
        if self.average is not None:
            parts["average"] = dict(zip(self.names.values(), self.average, strict=True))
        return parts

    def save(self, folder: Path) -> None:
        """A checkpoint in ``folder``."""
        random = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()
        self.world.write(folder, self.step, self.state(), {"random": random})

    def restore(self, found: Path) -> None:
        """Takes a checkpoint up: weights, optimisers, average, random state, and the place in the data."""
        state = checkpoint.state(found)
        for optimiser in self.optimisers:
            _begin(optimiser)
        self.world.read(found, self.state())
        self.step = int(state["step"])
        torch.set_rng_state(
            torch.from_numpy(np.frombuffer(base64.b64decode(state["random"]), np.uint8).copy())
        )

    def export(self, folder: Path) -> None:
        """The model as a folder that ``cutaway.load`` opens, and transformers where a family describes it."""
        weights = list(self.names) if self.average is None else self.average
        whole = {n: self.world.whole(p.detach()) for n, p in zip(self.names.values(), weights, strict=True)}
        if self.world.rank:
            return
        tensors = Tensors(
            {name: quant.pack(tensor.float().cpu().numpy(), "F32") for name, tensor in whole.items()}
        )
        words = folder / TOKENIZER
        at_rest = Checkpoint(self.run.model, tensors, None, words, lambda: self.text.tokenizer)
        writer.write(folder / MODEL, at_rest, "safetensors", force=True)


def train(
    training: Training, folder: Path, log: Log | None, watch: Watch, stopper: Stopper, peak: float
) -> None:
    """The steps that are left, with what is due between them. Ends as asked by a signal, a checkpoint
    written.
    """
    run, world = training.run, training.world
    tokens = run.batch * run.model.context
    flops = per_token(run.model)
    while training.step < run.steps:
        start = time.perf_counter()
        numbers = training.advance()
        seconds = time.perf_counter() - start
        step = training.step
        speed = tokens / seconds
        numbers |= {"tokens_per_second": speed, "flops": speed * flops, "peak_share": speed * flops / peak}
        if log is not None and _due(step, run.every.log, run.steps):
            log.write({"step": step, **numbers})
            watch.step({"step": step, **numbers}, run.steps)
        _look(training, log, watch)
        asked = world.agreed(stopper.asked)
        if asked is not None or _due(step, run.every.save, run.steps):
            training.save(folder / CHECKPOINTS)
            training.export(folder)
            if log is not None:
                checkpoint.prune(folder / CHECKPOINTS, run.every.keep)
        if asked is not None:
            watch.note(f"Stopped as asked after step {step}, which is saved: go on with --resume.")
            leave(asked)


def _look(training: Training, log: Log | None, watch: Watch) -> None:
    """Reads held-out text and lets the model write, where either is due."""
    run, step = training.run, training.step
    found = training.evaluate(run.every.evaluate_rows) if _due(step, run.every.evaluate, run.steps) else {}
    if log is not None and found:
        log.write({"step": step, **found})
        watch.evaluated(step, found)
    if log is not None and training.world.size == 1 and _due(step, run.every.sample, run.steps):
        for text in training.sampled(watch):
            log.write({"step": step, "sample": text})


def _due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps happens now; at the end everything does."""
    return bool(every) and (step % every == 0 or step == last)


def _recompute(model: Decoder) -> None:
    """Blocks that keep only what enters them, and compute the rest again on the way back."""
    for block in model.blocks:
        block.forward = partial(recomputed, block.forward, use_reentrant=False)


def _compile(objective: Objective, run: Run, world: World, note: checkpoint.Note) -> None:
    found = device.compiler()
    if run.compile == "never" or (run.compile == "auto" and found is None):
        if run.compile == "auto":
            note("There is no C++ compiler here, so torch.compile is not used: the same numbers, slower.")
        return
    if found is None:
        raise UserError(
            "compile: always, but there is no C++ compiler here: install g++, or use compile: never"
        )
    if world.size > 1:  # what gathers a block's weights stands between blocks, and cannot be compiled
        for block in objective.model.blocks:
            block.compile()
        return
    objective.routed = torch.compile(objective.model.routed, dynamic=False)


def _copy(values: Iterable[Tensor], into: Iterable[nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter, value in zip(into, values, strict=True):
            parameter.copy_(value)


def _begin(optimiser: torch.optim.Optimizer) -> None:
    """Makes an optimiser's state, as its first step would, without moving a weight: there is then a place for
    what is read.
    """
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if isinstance(optimiser, torch.optim.Muon):
                optimiser.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
            else:
                zeros = torch.zeros_like(parameter), torch.zeros_like(parameter)
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                optimiser.state[parameter] = {"step": step, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
