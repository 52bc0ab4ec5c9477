"""An experiment as data, and its arms: training runs that differ in one part, of as many parameters.

An arm's MLPs are made as wide as it takes to have the first arm's number of parameters, as near as it goes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cutaway.attention.common import registry
from cutaway.attention.common.registry import Sizes
from cutaway.bounds import Bounded, Count, Natural, Positive
from cutaway.compare import tasks
from cutaway.compare.encoder_decoder import with_encoder
from cutaway.data import run_tokenizer
from cutaway.data.packing import Batch, number, stacked
from cutaway.errors import UserError
from cutaway.inspect.head_scores import induction_scores, previous_token_scores
from cutaway.inspect.inputs import has_pattern
from cutaway.inspect.subject import Subject
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, EncoderDecoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.decoder import Decoder as Model
from cutaway.model.kinds import kind_of
from cutaway.position import alibi, rope, t5
from cutaway.store import yaml_files
from cutaway.store.files import write_file
from cutaway.train.config import Intervals, TrainingConfig, entries
from cutaway.train.folder import TOKENIZER
from cutaway.train.optim import AdamW, Muon
from cutaway.train.recipes import pretrain
from cutaway.train.schedule import Cosine
from cutaway.train.trainable import SOURCE, TrainingBatch
from cutaway.train.training import Dataset, Training

TRIAL = 500  # the first seed of the runs by which a learning rate is chosen: none of them is scored
AGAIN = 1000  # the first seed of the arm that is the first one again
Part = Literal["validation", "test"]
GENERATION = "generation_config.json"
PRESETS = Path(__file__).parent / "presets"
ROWS = 64  # held-out rows that pass the model at a time
USUAL = {
    "attention": "mha",
    "position": "rope",
    "norm": "rms",
    "mlp": "swiglu",
    "optimizer": "adamw",
    "tokenizer": "bytes",
}
KINDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {  # what an arm changes; attention's are its files
    "norm": {
        "rms": ("norm.kind=rms",),
        "layer": ("norm.kind=layer",),
        "post": ("block.pre_norm=false", "block.post_norm=true"),
        "sandwich": ("block.post_norm=true",),
    },
    "mlp": {
        "swiglu": ("mlp.activation=silu", "mlp.gated=true"),
        "geglu": ("mlp.activation=gelu", "mlp.gated=true"),
        "reglu": ("mlp.activation=relu", "mlp.gated=true"),
        "relu2": ("mlp.activation=relu2", "mlp.gated=false"),
        "relu": ("mlp.activation=relu", "mlp.gated=false"),
        "gelu": ("mlp.activation=gelu", "mlp.gated=false"),
        "silu": ("mlp.activation=silu", "mlp.gated=false"),
    },
    "optimizer": {"adamw": ("optimizer.kind=adamw",), "muon": ("optimizer.kind=muon",)},
}
RELATIVE = {"alibi": alibi.Config(), "t5": t5.Config()}
POSITIONS = ("rope", *RELATIVE, "learned", "sinusoidal", "none")


@dataclass(frozen=True)
class Arm(Bounded):
    """A name, and what differs from the experiment: entries of a config by dotted name.

    ``attention.``, ``mlp.`` and ``norm.`` change that part of every block, ``block.`` the block itself;
    ``layers=N`` makes N of the first; ``optimizer.`` and ``task.`` change those; other names are the model's.
    ``encoder`` blocks read the source apart, and the model's attend to them: an encoder-decoder. Its seeds
    count from ``first_seed``: an arm that is another again has seeds of its own.
    """

    name: str
    changes: tuple[str, ...] = ()
    first_seed: Natural = 0
    encoder: Natural = 0


@dataclass(frozen=True)
class Experiment(Bounded):
    """What is compared. ``hypothesis`` is written before it runs.

    ``learning_rates`` are tried for ``trial_steps`` each, the better half for twice as many, and so on up to
    ``steps``; where the best is the lowest or highest of them, the sweep is widened, at most ``widen`` times.
    They are chosen on validation rows, the best one by ``trial_seeds`` seeds. It is then run with ``seeds``
    other seeds and scored on ``test`` held-out rows. A model whose ``vocab`` is 0 has the task's.
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
    trial_seeds: Count = 2
    seeds: Count = 3
    test: Count = 256
    threads: Count = 1
    optimizer: AdamW | Muon = field(default=AdamW(), metadata={"variants": "cutaway.train.optim"})

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
    """One training run of an arm on a task, measured on ``test`` rows of a ``part`` that is not trained."""

    model: Decoder | EncoderDecoder  # type: ignore[assignment]
    data: Any = field(metadata={"variants": "cutaway.compare.tasks"})  # type: ignore[assignment]
    test: Count = 256
    part: Part = "test"

    @property
    def width(self) -> int:
        return self.data.context


@dataclass(frozen=True)
class Rows:
    """A task's rows: row n of a seed is the same for every arm.

    Its first ``source`` ids are apart, in a batch's ``extra``: an encoder's. What is scored follows them.
    """

    task: Any
    seed: int
    rows: int
    source: int = 0

    def row(self, n: int) -> Batch:
        """Row n, [1 t]."""
        random = np.random.default_rng(number(self.seed, "row", n))
        ids, scored = self.task.row(random)
        ids, source = ids[None].astype(np.int64), ids[None, : self.source].astype(np.int64)
        ids, scored = ids[:, self.source :], scored[None, self.source :]
        return Batch(
            ids[:, :-1],
            ids[:, 1:],
            np.arange(scored.size)[None],
            np.zeros(scored.shape, np.int64),
            scored.astype(np.float32),
            {SOURCE: source} if self.source else {},
        )

    def batch(self, first: int, count: int) -> Batch:
        """``count`` rows from the ``first`` on."""
        return stacked([self.row(n) for n in range(first, first + count)])


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows as an `Evaluator`; ``lengths`` is how many bytes each id stands for."""

    rows: Rows
    lengths: torch.Tensor

    def evaluate(self, training: Training, count: int) -> dict[str, float]:
        """Loss, accuracy and bits per byte, and the strongest induction and previous-token heads."""
        sums: dict[str, float] = {}
        weight = size = 0.0
        with torch.no_grad():
            for first in range(0, count, ROWS):
                rows = self.rows.batch(first, min(ROWS, count - first))
                batch = TrainingBatch.of(rows, training.device)
                _, extra = training.trainable(batch)
                sums = {name: sums.get(name, 0.0) + float(value) for name, value in extra.items()}
                weight += batch.weight
                size += float(self.lengths[torch.from_numpy(rows.targets[rows.loss_weights > 0])].sum())
        found = training.run.objective.report(sums, weight)
        found["loss"] = found.pop("cross_entropy")
        if size:
            found["bits_per_byte"] = found["loss"] * weight / math.log(2) / size
        return {f"validation_{name}": value for name, value in (found | _heads(training)).items()}


def _heads(training: Training) -> dict[str, float]:
    """The highest score of any head; none of an encoder-decoder, or where a layer has no weights."""
    model = training.model
    if not isinstance(model, Model) or not all(has_pattern(block.attention) for block in model.config.blocks):
        return {}
    subject, length = Subject.of(model, _Ids(model.config.vocab)), min(24, training.run.width // 2)
    scores = {"induction": induction_scores, "previous_token": previous_token_scores}
    return {name: float(np.concatenate(of(subject, length)).max()) for name, of in scores.items()}


@dataclass(frozen=True)
class _Ids:
    """The vocabulary of a task, whose ids have no text."""

    count: int

    def __len__(self) -> int:
        return self.count

    def token_bytes(self, id: int) -> bytes:
        return str(id).encode()

    def is_special(self, id: int) -> bool:
        return False


def resolved(run: ArmRun, folder: Path, note: pretrain.Note) -> ArmRun:
    """The run as it is, its tokenizer in ``folder``: a task's rows are made from its seed."""
    run_tokenizer.save(run.data.words(), folder / TOKENIZER)
    if source := _source(run):  # how a target begins goes with the tokenizer to the model's folder
        begin = Rows(run.data, 0, 1, source).row(0).ids[0, 0]
        write_file(folder / TOKENIZER / GENERATION, json.dumps({"decoder_start_token_id": int(begin)}))
    return run


def ready(run: ArmRun, folder: Path, note: pretrain.Note) -> Dataset:
    """The rows that are trained on, and the held-out ones, which every seed shares."""
    tokenizer, lengths = run.data.words(), torch.zeros(run.model.vocab, dtype=torch.int64)
    if run.data.metric == "bits_per_byte":
        lengths[: len(tokenizer)] = torch.tensor(run_tokenizer.lengths(tokenizer))
    train = Rows(run.data, number(run.seed, "train"), 0, _source(run))
    chosen_by = run.part == "validation"
    task, seed = (run.data.validation, "validation") if chosen_by else (run.data.held_out, "held out")
    held_out = HeldOut(Rows(task, number(0, seed), run.test, _source(run)), lengths)
    return Dataset(train, held_out, lengths, tokenizer, lambda text: [0], pretrain.export)


def _source(run: ArmRun) -> int:
    """How many ids of a row the run's encoder reads."""
    return run.data.source if isinstance(run.model, EncoderDecoder) else 0


def task(name: str) -> Any:
    """A task with its usual sizes. UserError for a name that is none."""
    known = sorted(path.stem for path in Path(tasks.__file__).parent.glob("[!_]*.py"))
    if name not in known:
        raise UserError(f"there is no task {name!r}: use {', '.join(known)}")
    return import_module(f"{tasks.__name__}.{name}").Config()


def presets() -> list[str]:
    """The names of the experiments that come with Cutaway."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_experiment(source: str) -> Experiment:
    """The experiment of a preset's name or a YAML file.

    A file has the entries of an `Experiment`, or instead of model and arms what `preset` takes: ``parts``,
    ``width``, ``layers``, ``heads``.
    """
    known = presets()
    path = PRESETS / f"{source}.yaml" if source in known else Path(source)
    if not path.is_file():
        raise UserError(f"{source}: is neither a file nor a preset; presets are {', '.join(known)}")
    data = entries(str(path), ())
    if "parts" in data:
        options = {name: data.pop(name) for name in ("parts", "width", "layers", "heads") if name in data}
        model = {"vocab": 0, "width": 1, "context": 1, "blocks": []}
        plain = from_dict(
            {"model": model, "arms": [{"name": "a"}, {"name": "b"}]} | data, Experiment, str(path)
        )
        settings = {name: getattr(plain, name) for name in data if name not in ("task", "model")}
        return preset(plain.task, **options, **settings)
    if isinstance(data.get("model"), dict):
        data["model"].setdefault("vocab", 0)
    return from_dict(data, Experiment, str(path))


def model_of(experiment: Experiment, arm: Arm) -> Decoder | EncoderDecoder:
    """An arm's model: the experiment's with the arm's changes, its MLPs as wide as the budget asks."""
    own = _own(experiment, arm)
    if arm == experiment.arms[0]:
        return own
    return _matched(own, parameters(_own(experiment, experiment.arms[0])))


def _own(experiment: Experiment, arm: Arm) -> Decoder | EncoderDecoder:
    """An arm's model before its MLPs are widened."""
    made = changed(experiment, arm)
    if not arm.encoder:
        return made.model
    if not made.task.source:
        raise UserError(
            f"arm {arm.name}: the rows of {kind_of(made.task)} have no source apart from what is scored: an "
            "encoder-decoder learns copying or reversal"
        )
    return with_encoder(made.model, arm.encoder, made.task.source, made.task.context - made.task.source)


def parameters(model: Decoder | EncoderDecoder) -> int:
    """How many weights a model has."""
    return sum(prod(shape) for shape in model.weights().values())


def run_of(
    experiment: Experiment, arm: Arm, rate: float, steps: int, seed: int, part: Part = "test"
) -> ArmRun:
    """A training run of an arm."""
    own = changed(experiment, arm)
    optimizer = replace(own.optimizer, learning_rate=rate)
    if isinstance(optimizer, Muon):
        optimizer = replace(optimizer, adamw=replace(optimizer.adamw, learning_rate=rate))
    chosen = {name: getattr(experiment, name) for name in ("batch_size", "test", "threads")}
    model = model_of(experiment, arm)
    return training(own.task, model, steps, arm.first_seed + seed, optimizer=optimizer, part=part, **chosen)


def training(
    task: Any, model: Decoder | EncoderDecoder, steps: int, seed: int, *, batch_size: int, **settings: Any
) -> ArmRun:
    """A run of ``steps`` whose warm-up and decay are matched to them."""
    return ArmRun(
        model=model,
        data=task,
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        micro_batch_size=batch_size,
        objective=task.objective,
        schedule=Cosine(warmup_steps=max(1, steps // 10), min_ratio=0.1),
        compile="never",
        device="cpu",
        intervals=Intervals(
            log=max(1, steps // 50),
            evaluate=max(1, steps // 10),
            save=max(1, steps // 4),
            sample=0,
            keep_checkpoints=1,
            evaluate_sequences=settings["test"],
        ),
        **settings,
    )


def preset(
    task: Any,
    parts: Mapping[str, Sequence[str]],
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 2,
    **settings: Any,
) -> Experiment:
    """An experiment on one part of a model: an arm a kind, and the first kind again as the noise floor.

    ``parts`` names the kinds by part (`PARTS`): several of the one that is compared, one of others that are
    not as usual. UserError for a kind that there is not, or does not fit.
    """
    several = [part for part, kinds in parts.items() if len(kinds) > 1]
    if unknown := sorted(parts.keys() - USUAL.keys()):
        raise UserError(f"there is no part {unknown[0]!r} to compare: use {', '.join(USUAL)}")
    if len(several) != 1:
        raise UserError("compare two kinds or more of one part, such as --attention mha,linear")
    (part,) = several
    reach = max(task.context, task.held_out.context)
    base = USUAL | {name: kinds[0] for name, kinds in parts.items()}
    size = width // heads
    sizes = Sizes(width, heads, max(1, heads // 2), size, size)

    def changes(part: str, kind: str) -> tuple[str, ...]:
        chosen = base | {part: kind}
        if part in ("attention", "position"):
            return _attention(chosen["attention"], chosen["position"], sizes, reach)
        if part == "tokenizer":
            if kind_of(task) == "language":
                return (f"task.tokenizer={kind}",)
            if kind == USUAL["tokenizer"]:
                return ()
            raise UserError(f"--tokenizer: {kind_of(task)} is no text: use --task language")
        if kind not in KINDS[part]:
            raise UserError(f"--{part}: there is no {kind!r}: use {', '.join(KINDS[part])}")
        return KINDS[part][kind]

    blocks = (Block(registry.kind("mha").like(sizes, {}), MLP(hidden=4 * width)),) * layers
    skeleton = Decoder(vocab=0, width=width, context=reach, blocks=blocks)
    kinds = parts[part]
    arms = [Arm(kind, changes(part, kind)) for kind in kinds]
    arms.append(Arm(f"{kinds[0]} again", changes(part, kinds[0]), AGAIN))
    plain = Experiment(task=task, model=skeleton, arms=tuple(arms), **settings)
    others = [change for name in base if name != part for change in changes(name, base[name])]
    made = changed(plain, Arm("base", tuple(others)))
    return replace(made, model=replace(made.model, vocab=0))  # an arm's task may have another


def _attention(kind: str, position: str, sizes: Sizes, reach: int) -> tuple[str, ...]:
    """The changes that make every block's attention of this kind, and give it its position encoding.

    Recurrences take no position: they tell an order without one.
    """
    known = {each.name for each in fields(registry.kind(kind).config)}
    if position not in POSITIONS:
        raise UserError(f"--position: there is no {position!r}: use {', '.join(POSITIONS)}")
    options: dict[str, Any] = {}
    if position == "rope" and "position" in known:
        options["position"] = rope.Config(sizes.key_size // 2 if "rope_dim" in known else sizes.key_size)
    elif position in RELATIVE:
        if "relative" not in known:
            raise UserError(f"--position: {kind} takes no {position}: use rope, learned or sinusoidal")
        options["relative"] = RELATIVE[position]
    config = {"kind": kind, **to_dict(registry.kind(kind).like(sizes, options))}
    # The paper's embeddings are as large as its sinusoids; a table that starts at 0.02 would drown in them.
    outer = {"learned": (f"position.size={reach}",), "sinusoidal": ("embedding_scale=50",)}
    added = (f"position.kind={position}", *outer[position]) if position in outer else ()
    return (*_flat(config, "attention"), "position=null", *added)


def _flat(entries: dict[str, Any], name: str) -> Iterator[str]:
    for key, value in entries.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.{key}")
        else:
            yield f"{name}.{key}={value}"


def changed(experiment: Experiment, arm: Arm) -> Experiment:
    """The experiment with an arm's changes made in it."""

    data, inner = to_dict(experiment), {}
    model = data["model"]
    for change in arm.changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"arm {arm.name}: {change!r} should be NAME=VALUE")
        *parents, last = name.split(".")
        place = model
        if parents and parents[0] in ("attention", "mlp", "norm", "block"):
            place = inner
        elif parents and parents[0] in ("optimizer", "task"):
            place = data
        for part in parents:
            place[part] = place.get(part) or {}
            place = place[part]
        if last == "kind":
            place.clear()  # another kind has entries of its own
        place[last] = yaml_files.value(value, f"arm {arm.name}: {name}")
    if (layers := model.pop("layers", None)) is not None:
        model["blocks"] = [{**model["blocks"][0], "times": layers}]
    own = inner.pop("block", {})
    for block in model["blocks"]:
        block |= own
    for part, own in inner.items():
        for home in [*model["blocks"], *([model] if part == "norm" else [])]:
            home[part] = own if "kind" in own else {**home.get(part, {}), **own}
    if "optimizer" in data:
        data["optimizer"].setdefault("kind", kind_of(experiment.optimizer))
    made = from_dict(data, Experiment, f"arm {arm.name}")
    return made if made.model.vocab else replace(made, model=replace(made.model, vocab=made.task.vocab))


def _matched(model: Decoder | EncoderDecoder, budget: int) -> Decoder | EncoderDecoder:
    """The model whose MLPs have the width that comes nearest to so many parameters."""
    one, two = (parameters(_widened(model, hidden)) for hidden in (1, 2))
    return _widened(model, max(1, round(1 + (budget - one) / (two - one))))


def _widened(model: Any, hidden: int) -> Any:
    """The model with MLPs of this width."""
    if isinstance(model, EncoderDecoder):
        halves = _widened(model.encoder, hidden), _widened(model.decoder, hidden)
        return replace(model, encoder=halves[0], decoder=halves[1])
    blocks = (replace(block, mlp=block.mlp and replace(block.mlp, hidden=hidden)) for block in model.blocks)
    return replace(model, blocks=tuple(blocks))
