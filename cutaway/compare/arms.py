"""An experiment as data, and its arms: training runs that differ in one part, of as many parameters.

An arm's MLPs are made as wide as it takes to have the first arm's number of parameters, as near as it goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutaway.attention.common import registry
from cutaway.attention.common.registry import Sizes
from cutaway.bounds import Bounded, Count, Natural, Positive
from cutaway.compare import tasks
from cutaway.data import run_tokenizer
from cutaway.data.packing import Batch, number, stacked
from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model.config import Block, Decoder, from_dict, to_dict
from cutaway.position import rope
from cutaway.train import dataset
from cutaway.train.config import Intervals, TrainingConfig
from cutaway.train.loop import Dataset
from cutaway.train.objectives import targets
from cutaway.train.optim import AdamW
from cutaway.train.schedule import Cosine

AGAIN = 1000  # the first seed of the arm that is the first one again


@dataclass(frozen=True)
class Arm(Bounded):
    """A name, and what differs from the experiment's model: entries of a config by dotted name.

    Its seeds count from ``first_seed``: an arm that is another again has seeds of its own.
    """

    name: str
    changes: tuple[str, ...] = ()
    first_seed: Natural = 0


@dataclass(frozen=True)
class Experiment(Bounded):
    """What is compared. ``hypothesis`` is written before it runs.

    ``learning_rates`` are tried for ``trial_steps`` each, the better half for ``steps``; where the best is
    the lowest or highest of them, the sweep is widened, at most ``widen`` times. The best one is run with
    ``seeds`` seeds, on ``test`` held-out rows.
    """

    task: Any = field(metadata={"variants": "cutaway.compare.tasks"})
    model: Decoder
    arms: tuple[Arm, ...]
    hypothesis: str = ""
    steps: Count = 400
    trial_steps: Count = 100
    batch_size: Count = 64
    learning_rates: tuple[Positive, ...] = (0.001, 0.003, 0.01)
    widen: Count = 2
    seeds: Count = 3
    test: Count = 256
    threads: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [arm.name for arm in self.arms]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError("an experiment needs two arms or more, each with its own name")
        rates = list(self.learning_rates)
        if not rates or rates != sorted(set(rates)):
            raise UserError("learning_rates must be different and rise")


@dataclass(frozen=True)
class ArmRun(TrainingConfig):
    """One training run of an arm on a task."""

    data: Any = field(metadata={"variants": "cutaway.compare.tasks"})  # type: ignore[assignment]
    test: Count = 256

    @property
    def width(self) -> int:
        return self.data.context


@dataclass(frozen=True)
class Rows:
    """A task's rows: row n of a seed is the same for every arm."""

    task: Any
    seed: int
    rows: int

    def row(self, n: int) -> Batch:
        """Row n, [1 t]."""
        random = np.random.default_rng(number(self.seed, "row", n))
        ids, scored = self.task.row(random)
        count = len(scored)
        return Batch(
            ids[None, :-1].astype(np.int64),
            ids[None, 1:].astype(np.int64),
            np.arange(count)[None],
            np.zeros((1, count), np.int64),
            scored[None].astype(np.float32),
        )

    def batch(self, first: int, count: int) -> Batch:
        """``count`` rows from the ``first`` on."""
        return stacked([self.row(n) for n in range(first, first + count)])


def resolved(run: ArmRun, folder: Path, note: dataset.Note) -> ArmRun:
    """The run as it is: a task's rows are made from its seed."""
    return run


def ready(run: ArmRun, folder: Path, note: dataset.Note) -> Dataset:
    """The rows that are trained on, and the held-out ones, which every seed shares."""
    lengths = torch.zeros(run.model.vocab, dtype=torch.int64)
    train = Rows(run.data, number(run.seed, "train"), 0)
    held_out = Rows(run.data, number(0, "held out"), run.test)
    letters = run_tokenizer.of_bytes()  # no text is sampled
    return Dataset(train, held_out, lengths, letters, lambda text: [0], lambda training, folder: None)


def task(name: str) -> Any:
    """A task with its usual sizes. UserError for a name that is none."""
    known = sorted(path.stem for path in Path(tasks.__file__).parent.glob("[!_]*.py"))
    if name not in known:
        raise UserError(f"there is no task {name!r}: use {', '.join(known)}")
    return import_module(f"{tasks.__name__}.{name}").Config()


def model_of(experiment: Experiment, arm: Arm) -> Decoder:
    """An arm's model: the experiment's with the arm's changes, its MLPs as wide as the budget asks."""
    base = _changed(experiment, experiment.arms[0])
    own = _changed(experiment, arm)
    return own if arm == experiment.arms[0] else _matched(own, parameters(base))


def parameters(model: Decoder) -> int:
    """How many weights a model has."""
    return sum(prod(shape) for shape in model.weights().values())


def run_of(experiment: Experiment, arm: Arm, rate: float, steps: int, seed: int) -> ArmRun:
    """A training run of an arm."""
    return ArmRun(
        model=model_of(experiment, arm),
        data=experiment.task,
        steps=steps,
        batch_size=experiment.batch_size,
        micro_batch_size=experiment.batch_size,
        objective=targets.Config(),
        optimizer=AdamW(learning_rate=rate, weight_decay=0.1),
        schedule=Cosine(warmup_steps=max(1, steps // 10), min_ratio=0.1),
        compile="never",
        device="cpu",
        threads=experiment.threads,
        seed=arm.first_seed + seed,
        test=experiment.test,
        intervals=Intervals(
            log=max(1, steps // 50),
            evaluate=max(1, steps // 10),
            save=max(1, steps // 4),
            sample=0,
            keep_checkpoints=1,
            evaluate_sequences=experiment.test,
        ),
    )


def preset(
    task: Any, kinds: Sequence[str], *, width: int = 64, layers: int = 2, heads: int = 2, **settings: Any
) -> Experiment:
    """An experiment on attention mechanisms: one arm a kind, and the first kind again as the noise floor."""
    size = width // heads
    sizes = Sizes(width, heads, max(1, heads // 2), size, size)
    first = registry.kind(kinds[0]).like(sizes, _position(kinds[0], size))
    model = Decoder(
        vocab=task.vocab,
        width=width,
        context=task.context,
        blocks=(Block(first, MLP(hidden=4 * width)),) * layers,
    )
    arms = [Arm(kinds[0])]
    for kind in [*kinds[1:], kinds[0]]:
        config = to_dict(registry.kind(kind).like(sizes, _position(kind, size)))
        entries = tuple(_flat({"kind": kind, **config}, "attention"))
        arms.append(Arm(kind, entries) if kind != kinds[0] else Arm(f"{kind} again", entries, AGAIN))
    return Experiment(task=task, model=model, arms=tuple(arms), **settings)


def _position(kind: str, size: int) -> dict[str, Any]:
    """RoPE for a mechanism that takes a position, which each but recurrences needs to tell an order."""
    config = registry.kind(kind).config
    known = getattr(config, "__dataclass_fields__", {})
    if "position" not in known:
        return {}
    return {"position": rope.Config(size=size // 2 if "rope_dim" in known else size)}


def _flat(entries: dict[str, Any], name: str) -> Iterator[str]:
    for key, value in entries.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.{key}")
        else:
            yield f"{name}.{key}={value}"


def _changed(experiment: Experiment, arm: Arm) -> Decoder:
    """The model with an arm's changes in every block (``attention.``, ``mlp.``, ``norm.``), or in itself."""
    import yaml

    data = to_dict(experiment.model)
    inner: dict[str, Any] = {}
    for change in arm.changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"arm {arm.name}: {change!r} should be NAME=VALUE")
        *parents, last = name.split(".")
        block = parents and parents[0] in ("attention", "mlp", "norm")
        place = inner if block else data
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = yaml.safe_load(value)
    for block in data["blocks"]:
        for part, entries in inner.items():
            block[part] = entries if "kind" in entries else {**block.get(part, {}), **entries}
    return from_dict(data, Decoder, f"arm {arm.name}")


def _matched(model: Decoder, budget: int) -> Decoder:
    """The model whose MLPs have the width that comes nearest to so many parameters."""

    def of(hidden: int) -> Decoder:
        blocks = (replace(block, mlp=replace(block.mlp, hidden=hidden)) for block in model.blocks)
        return replace(model, blocks=tuple(blocks))

    one, two = parameters(of(1)), parameters(of(2))
    hidden = max(1, round(1 + (budget - one) / (two - one)))
    return of(hidden)
