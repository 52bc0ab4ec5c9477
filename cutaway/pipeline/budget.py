"""A budget of time: the speed of this machine, the scaling law, and the steps of each training stage.

The speed is measured by a second of training steps on a model of the candidate's shape, and kept by machine.
The law (law.yaml, fitted by `cutaway scale`) gives the weights that are best for the operations that fit the
time. Right before a training stage starts its own first steps are timed, in a folder apart, and its number of
steps is fixed by the time that is left: what earlier stages took too much, later ones give back. A stage that
was fixed stays as it is, so that a run which is resumed has the bits of one that was not stopped.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from cutaway import store
from cutaway.data import run_tokenizer
from cutaway.errors import UserError
from cutaway.model.config_dict import to_dict
from cutaway.pipeline import run as running
from cutaway.pipeline.config import Pipeline
from cutaway.pipeline.folder import Folder
from cutaway.pipeline.verbs import VERBS, command
from cutaway.store import yaml_files
from cutaway.store.files import write_file
from cutaway.store.reading import json_lines, parsed
from cutaway.train.config import TrainingConfig, read_run_config
from cutaway.train.curve import METRICS

LAW = Path(__file__).parent / "law.yaml"
# Widths and layers that the law chooses from, each about the 1.5-fold to 2-fold of the one before.
SHAPES = (
    *((64, 2), (96, 3), (128, 4), (160, 4), (192, 5), (256, 6), (320, 6), (384, 8), (512, 8), (640, 10)),
    *((768, 12), (1024, 16), (1280, 20), (1536, 24), (2048, 24)),
)
VOCABULARY = 512  # where none is stated
HEAD = 32  # numbers of a head
START = 6.0  # seconds in which a process imports and reads what it trains on, until it is measured
OVERHEAD = 1.05  # evaluations, samples and checkpoints beside the steps
PROBED = 6  # steps, the first of which are slow
FEWEST = 10  # steps of a stage
RESERVE = 0.02  # of the budget, for what no estimate has
SPEEDS, DAY = "speeds.json", 86_400.0


def law() -> dict[str, Any]:
    """The law's numbers."""
    return yaml_files.parsed(LAW)


def best_weights(operations: float) -> float:
    """The weights of least loss for so many operations (6 N D), by the law."""
    known = law()
    alpha, beta = known["alpha"], known["beta"]
    ratio = (alpha * known["A"] / (beta * known["B"])) ** (1 / (alpha + beta))
    return ratio * (operations / 6) ** (beta / (alpha + beta))


def shaped(model: Mapping[str, Any], width: int, layers: int) -> dict[str, Any]:
    """A model's entries at another width and number of layers, with heads and MLP in proportion."""
    made = copy.deepcopy(dict(model))
    blocks = made.get("blocks")
    if not (isinstance(blocks, list) and len(blocks) == 1 and isinstance(blocks[0].get("attention"), dict)):
        raise UserError(
            "sized: the law's shapes have equal blocks with attention: give the model's blocks as one entry, "
            "or leave out sized, and the model stays as it is"
        )
    block = blocks[0]
    block["times"] = layers
    heads = max(1, width // HEAD)
    attention = block["attention"]
    attention |= {"heads": heads, "key_size": HEAD}
    if attention.get("kind") == "gqa":
        groups = next((heads // n for n in (2, 3) if heads % n == 0), 1)
        attention |= {"kv_heads": groups}
        if groups == 1:  # which other programs know by its own name
            del attention["kv_heads"]
            attention["kind"] = "mqa"
    if attention.get("position", {}).get("kind") == "rope":
        attention["position"]["size"] = HEAD
    block["mlp"] = {**block.get("mlp", {}), "hidden": round(width * 8 / 3 / 32) * 32}
    return made | {"width": width, "blocks": [block]}


def weights(run: TrainingConfig) -> int:
    """N of the law: the weights of the blocks' matrices, and of the head."""
    shapes = run.model.weights()
    blocks = sum(math.prod(s) for name, s in shapes.items() if name.startswith("blocks.") and len(s) == 2)
    return blocks + run.model.vocab * run.model.width


@dataclass(frozen=True)
class Plan:
    """What a budget comes to: seconds by stage, steps of those that train, and the model."""

    budget: float
    speed: float  # operations a second
    seconds: dict[str, float]
    steps: dict[str, int]
    weights: int
    best: float  # the weights that the law asks for
    width: int
    layers: int
    tokens: float
    beyond: float  # how many times the compute of the law's ladder

    def lines(self) -> list[str]:
        """The plan in words, before anything starts."""
        if not self.weights:
            out = [f"Budget {running.spell(self.budget)}; each stage's first steps decide how many it takes."]
            return out + self._stages()
        out = [
            f"Budget {running.spell(self.budget)}; training reaches {self.speed / 1e9:,.0f} GFLOP/s here.",
            f"Model: {self.layers} layers of width {self.width}, {self.weights:,} weights, trained on "
            f"{self.tokens / 1e6:,.1f} million tokens. The scaling law's best for this compute is "
            f"{self.best:,.0f} weights, of which the nearest shape is taken"
            + (f"; it was fitted on runs of 1/{self.beyond:,.0f} of it." if self.beyond > 1 else "."),
        ]
        return out + self._stages()

    def _stages(self) -> list[str]:
        out = []
        for name, seconds in self.seconds.items():
            steps = f", about {self.steps[name]:,} steps" if name in self.steps else ""
            out.append(f"  {name:<14}{running.spell(seconds)}{steps}")
        return out


def planned(
    pipeline: Pipeline, budget: float, speed: Callable[[TrainingConfig], float]
) -> tuple[Pipeline, Plan]:
    """The pipeline with the model that the law chooses, and the plan. ``speed`` measures operations a second.

    UserError for a budget in which nothing is left to train.
    """
    fixed = {name: stage.seconds for name, stage in pipeline.stages if not VERBS[stage.verb].trains}
    shares = {name: stage.share for name, stage in pipeline.stages if VERBS[stage.verb].trains}
    without = ", ".join(name for name, share in shares.items() if not share)
    if not shares or without:
        of = f": {without} has none" if without else ""
        raise UserError(f"a budget needs stages that train, each with its share of the time{of}")
    left = budget * (1 - RESERVE) - sum(fixed.values())
    if left < 60:
        least = (sum(fixed.values()) + 60) / (1 - RESERVE)
        raise UserError(
            f"a budget of {running.spell(budget)} leaves no time to train: the other stages take "
            f"{running.spell(sum(fixed.values()))}; give {running.spell(least)} or more"
        )
    seconds = {name: left * share / sum(shares.values()) for name, share in shares.items()}
    size = Sized(0, 0, 0, 0.0, 0.0, 0.0)
    if pipeline.sized:
        pipeline, size = _sized(pipeline, sum(seconds.values()), speed)
    steps, tokens = {}, 0.0
    for name in shares:
        run, data = run_of(pipeline, name), pipeline[name].config.get("data", {})
        if run is None or not size.speed or "task" in data:  # of what is sampled its first steps tell
            continue
        a_step = run.batch_size * run.model.context * run.flops_per_token / size.speed
        steps[name] = max(FEWEST, int((seconds[name] - START) / a_step / OVERHEAD))
        tokens += steps[name] * run.batch_size * run.model.context
    order = {name: (fixed | seconds)[name] for name in pipeline.names}
    beyond = 6 * size.weights * tokens / law()["compute"]
    numbers = size.weights, size.best, size.width, size.layers, tokens, beyond
    return pipeline, Plan(budget, size.speed, order, steps, *numbers)


@dataclass(frozen=True)
class Sized:
    """A model that the law chose, and the speed of its steps."""

    width: int
    layers: int
    weights: int
    best: float
    speed: float
    operations: float


def _sized(
    pipeline: Pipeline, seconds: float, speed: Callable[[TrainingConfig], float]
) -> tuple[Pipeline, Sized]:
    """The pipeline with the shape nearest to what the law asks for, at the speed of that shape."""
    stage = pipeline[pipeline.sized]
    tried: dict[tuple[int, int], Sized] = {}
    at = SHAPES[2]
    while at not in tried:
        run = pretraining(pipeline, pipeline.sized, shaped(stage.config["model"], *at))
        reached = speed(run)
        best = best_weights(reached * seconds / OVERHEAD)
        tried[at] = Sized(*at, weights(run), best, reached, reached * seconds)
        at = min(SHAPES, key=lambda shape: abs(math.log(_count(pipeline, shape) / best)))
    size = tried[at]
    config = stage.config | {"model": shaped(stage.config["model"], *at)}
    stages = tuple(
        (name, replace(one, config=config) if name == pipeline.sized else one)
        for name, one in pipeline.stages
    )
    return replace(pipeline, stages=stages), size


def _count(pipeline: Pipeline, shape: tuple[int, int]) -> int:
    return weights(
        pretraining(pipeline, pipeline.sized, shaped(pipeline[pipeline.sized].config["model"], *shape))
    )


def pretraining(pipeline: Pipeline, name: str, model: Mapping[str, Any]) -> TrainingConfig:
    """A pretraining stage's run with this model, of the vocabulary that the tokenizer's stage will make."""
    entries = copy.deepcopy(pipeline[name].config) | {"model": dict(model)}
    tokenizer = str(entries.get("data", {}).get("tokenizer", "bytes"))
    stage = dict(pipeline.stages).get(tokenizer.partition("/")[0])
    size = stage.config.get("size") if stage is not None else run_tokenizer.size_of(tokenizer)
    known = size if isinstance(size, int) else None
    if not entries["model"].get("vocab"):
        entries["model"]["vocab"] = run_tokenizer.padded(known or VOCABULARY)
    return read_run_config(entries)


def run_of(pipeline: Pipeline, name: str) -> TrainingConfig | None:
    """A stage as a training run of the sized model, for its operations; None where it has another base."""
    stage, sized = pipeline[name], pipeline.sized
    if not sized or pipeline.names.index(name) < pipeline.names.index(sized):
        return None
    run = pretraining(pipeline, sized, pipeline[sized].config["model"])
    rows = stage.config.get("batch_size")
    return replace(run, batch_size=rows, micro_batch_size=1) if isinstance(rows, int) and rows else run


# ---- speed -------------------------------------------------------------------------------------------------


def measured_speed(run: TrainingConfig, threads: int) -> float:
    """Operations a second of training steps of this run's shape here; measured once a day and shape."""
    path = store.home() / SPEEDS
    shape = [platform.node(), platform.processor(), threads, run.precision, run.micro_batch_size]
    shape += [to_dict(run.model)]
    key = hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:24]
    known = parsed(path) if path.is_file() else {}
    found = known.get(key)
    if isinstance(found, list) and len(found) == 2 and 0 <= time.time() - found[1] < DAY and found[0] > 0:
        return float(found[0])
    reached = _speed(run, threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(known | {key: [reached, time.time()]}, indent=1))
    return reached


def _speed(run: TrainingConfig, threads: int, least: float = 1.0) -> float:
    """The fastest of a second of forward and backward passes, as operations a second: what a busy machine
    slows is not what it is planned by, for each stage's own steps are timed again.
    """
    import torch

    from cutaway.train.device import device, precision
    from cutaway.train.prepare import new_model
    from cutaway.train.trainable import Trainable, TrainingBatch

    if threads:
        torch.set_num_threads(threads)
    on = device(run.device)
    chosen = precision(run.precision, on)
    trainable = Trainable(
        new_model(run).to(on).train(), run.objective, torch.zeros(run.model.vocab, device=on)
    )
    size = run.micro_batch_size, run.model.context
    ids = torch.randint(0, run.model.vocab, size, device=on)
    pos = torch.arange(size[1], device=on).expand(size)
    batch = TrainingBatch(ids, ids, pos, None, None, float(ids.numel()))
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        begun = time.perf_counter()
        with torch.autocast(on.type, torch.bfloat16, enabled=chosen == "bfloat16"):
            loss, _ = trainable(batch)
        loss.backward()
        loss.item()
        times.append(time.perf_counter() - begun)
    return ids.numel() * run.flops_per_token / min(times[1:])


# ---- while it runs -----------------------------------------------------------------------------------------


@dataclass
class ByTime:
    """Fixes the steps of each training stage by the time that is left, from its own first steps."""

    budget: float
    note: running.Note = print
    probes: dict[str, tuple[float, float]] = field(default_factory=dict)  # for tests: startup, seconds a step

    def fixed(self, folder: Folder, name: str) -> dict[str, Any]:
        """The stage's config with its steps."""
        pipeline = folder.pipeline
        config = copy.deepcopy(pipeline[name].config)
        if not VERBS[pipeline[name].verb].trains or not pipeline[name].share:
            return config
        seconds = self.time_of(folder, name)
        startup, a_step = self.probes.get(name) or self._probed(folder, name, config)
        seconds = min(seconds, self.time_of(folder, name))  # the probe has taken some
        steps = max(FEWEST, int((seconds - startup) / (a_step * OVERHEAD)))
        warmup = config.get("schedule", {}).get("warmup_steps")
        if warmup is not None:
            config["schedule"]["warmup_steps"] = min(warmup, max(1, steps // 10))
        intervals = config.setdefault("intervals", {})
        for each in ("save", "sample", "evaluate"):
            if intervals.get(each) != 0:
                intervals[each] = max(1, steps // 5)
        self.note(
            f"{name}: {steps:,} steps of {a_step:.3g} s, {running.spell(seconds)} of the "
            f"{running.spell(self.budget)}."
        )
        return config | {"steps": steps}

    def time_of(self, folder: Folder, name: str) -> float:
        """The seconds that a training stage may take: its share of what it and those before it have left.

        What later stages took, where this one is made again, is theirs.
        """
        pipeline = folder.pipeline
        at = pipeline.names.index(name)
        took, rest = sum(map(folder.took, pipeline.names[: at + 1])), pipeline.names[at:]
        fixed = sum(pipeline[one].seconds for one in rest if not VERBS[pipeline[one].verb].trains)
        shares = {one: pipeline[one].share for one in rest if VERBS[pipeline[one].verb].trains}
        left = self.budget * (1 - RESERVE) - took - fixed
        return max(0.0, left * shares[name] / sum(shares.values()))

    def _probed(self, folder: Folder, name: str, config: dict[str, Any]) -> tuple[float, float]:
        """Seconds before the first step, and of a step, from some steps in a folder apart."""
        place = folder.path / "probes" / name
        if place.exists():
            shutil.rmtree(place)
        place.parent.mkdir(exist_ok=True)
        nothing = dict.fromkeys(("evaluate", "sample", "save"), 0)
        tried = config | {"steps": PROBED, "intervals": config.get("intervals", {}) | nothing | {"log": 1}}
        if "schedule" in tried:
            tried["schedule"] = tried["schedule"] | {"warmup_steps": 1}
        file = Path("probes") / f"{name}.yaml"
        write_file(folder.path / file, yaml.dump(tried, Dumper=yaml_files.Dumper, sort_keys=False))
        runner = running.Runner(folder)
        begun = time.monotonic()
        words = command(f"probes/{name}", folder.pipeline[name].verb, tried, str(file), False)
        code, _ = runner.process(name, words)
        took = time.monotonic() - begun
        if code:
            raise runner.failure(name, code)
        steps = [line["seconds"] for line in json_lines(place / METRICS) if "seconds" in line]
        for file in running.TOKENISED:  # which the stage would make again
            if (place / file).is_file():
                folder.stage(name).mkdir(exist_ok=True)
                (place / file).replace(folder.stage(name) / file)
        shutil.rmtree(place)
        return max(0.0, took - sum(steps)), statistics.median(steps[2:] or steps)
