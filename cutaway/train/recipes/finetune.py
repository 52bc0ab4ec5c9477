"""Fine-tuning: a base model, examples, and what of the model is trained. The same loop as pretraining's.

A run's config is a training config whose model is the ``base``'s, whose data are examples
(``data/conversations.py``) and which may train an ``adapter`` beside the frozen base. The run's folder holds
the adapter as PEFT's two files, or the whole model; every other verb opens it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch

from cutaway import store
from cutaway.bounds import Count, Natural, Positive
from cutaway.data.conversations import Item
from cutaway.data.example_packing import MISMATCHED, Packed
from cutaway.errors import UserError, plural
from cutaway.model import decoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.context import ContextExtension
from cutaway.quantization import formats
from cutaway.store.files import atomic_file
from cutaway.tokenizer import Tokenizer, chat
from cutaway.train import config, device, examples, methods
from cutaway.train.adapted import freeze
from cutaway.train.adapters import dora, ia3, lora
from cutaway.train.config import TrainingConfig
from cutaway.train.examples import Examples, Note
from cutaway.train.folder import MODEL, REFERENCES
from cutaway.train.objectives import distill, eagle3
from cutaway.train.trainable import REFERENCE, Trainable, TrainingBatch
from cutaway.train.training import Dataset, Training
from cutaway.weights import adapters, build, load, peft_write, save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.load import RUN
from cutaway.weights.named_tensors import Tensors
from cutaway.weights.run_checkpoint import BASE

EPOCHS = 3.0
ROWS, STEPS_AN_EPOCH = 4, 8  # a batch has four rows, or fewer so that an epoch has eight steps
HELD_OUT = 8  # examples by which a run is stopped early
Run = TypeVar("Run", bound="FinetuningConfig")


@dataclass(frozen=True)
class FinetuningConfig(TrainingConfig):
    """A training config on a ``base`` model: a name, a file or a folder.

    ``epochs`` is how often each example is read, where ``steps`` is 0; the warm-up is then a tenth of the
    steps at most. ``batch_size`` counts rows, in which short examples lie side by side; 0: four, or fewer
    where an epoch has few.
    ``adapter`` None trains all weights. ``base_type`` "packed" leaves the frozen base as it is in its file
    (QLoRA). ``context_extension`` gives the base more positions before training; ``model`` then has them.
    """

    verb: ClassVar[str] = "finetune"
    data: Examples  # type: ignore[assignment]
    steps: Natural = 0
    epochs: Positive = EPOCHS
    batch_size: Natural = 0
    micro_batch_size: Count = 1
    base: str = BASE
    base_type: Literal["float32", "packed"] = "float32"
    adapter: lora.Config | dora.Config | ia3.Config | None = field(
        default=None, metadata={"variants": "cutaway.train.adapters"}
    )
    context_extension: ContextExtension | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.objective, distill.Config) and not self.objective.teacher:
            raise UserError(
                "config.objective.teacher: names no model: give one with --objective.teacher NAME"
            )
        if self.adapter is not None and self.objective.alone:
            raise UserError(
                "config.adapter: names an adapter, and the model stays as it is: take --adapter null"
            )
        if not self.frozen and self.base_type == "packed":
            raise UserError("config.base_type is 'packed', whose weights cannot be trained: name an adapter")
        if self.data.context > self.model.context:
            raise UserError(
                f"config.data.context is {self.data.context}; the base holds {self.model.context} tokens"
            )

    @property
    def width(self) -> int:
        return self.data.context

    @property
    def frozen(self) -> bool:
        return self.adapter is not None or self.objective.alone


def read_finetuning_config(
    source: str, changes: Sequence[str] = (), kind: type[Run] = FinetuningConfig
) -> Run:
    """The run of a YAML file, a preset or a run's folder, changed; its model is the base's."""
    config.check_names(changes, methods.entries(source, ()), kind)
    found = config.without_other_kinds(methods.entries(source, changes), changes, kind)
    if "model" not in found:
        found["model"] = to_dict(methods.base(found).config)
    return from_dict(found, kind)


def resolved(run: FinetuningConfig, folder: Path, note: Note) -> FinetuningConfig:
    """The run as it is stored: paths whole, examples tokenised into the folder, every number known."""
    data = replace(run.data, path=str(Path(run.data.path).expanduser().absolute()))
    run = replace(run, data=data, base=whole(run.base))
    if isinstance(run.objective, distill.Config):
        run = replace(run, objective=replace(run.objective, teacher=whole(run.objective.teacher)))
    if isinstance(run.objective, eagle3.Config):
        run = replace(run, objective=replace(run.objective, head=whole(run.objective.head)))
    begun = config.entries(str(folder), ()) if (folder / RUN).is_file() else None
    if begun is None:
        if isinstance(run.objective, distill.Config):  # before the examples are tokenised
            wise = load.read_checkpoint(store.resolve(run.objective.teacher, pull=True))
            _check_same_words(run.objective.teacher, wise.tokenizer, base(run).tokenizer)
        source = examples.source(run.data, run.objective, run.base)
        if examples.kept_source(folder) != source:  # else a run was stopped before its first step
            (folder / REFERENCES).unlink(missing_ok=True)
            found = examples.prepare(run.data, run.objective, base(run), note)
            for warning in found.report.warnings():
                note(f"Note: {warning}.")
            examples.store(folder, found, source)
    return _with_numbers(run, folder, begun, note)


def _with_numbers(
    run: FinetuningConfig, folder: Path, begun: dict[str, Any] | None, note: Note
) -> FinetuningConfig:
    """The run with the context, batch and steps that its examples ask for, or that it has ``begun`` with."""
    known = begun or {"data": examples.report(folder), "batch_size": 0}
    run = replace(run, data=replace(run.data, context=run.data.context or known["data"]["context"]))
    train, held = _parts(run, folder)
    rows = examples.packed(train, run.data.context, run.seed).rows
    batch = run.batch_size or known["batch_size"] or max(1, min(ROWS, rows // STEPS_AN_EPOCH))
    run = replace(run, batch_size=batch, micro_batch_size=math.gcd(batch, run.micro_batch_size))
    epochs = ""
    if not run.steps:
        epochs = f"{run.epochs:g} {'epoch' if run.epochs == 1 else 'epochs'} of "
        steps, most = max(1, math.ceil(run.epochs * rows / batch)), 0
        if begun is not None:
            steps = begun["steps"] if run.epochs == begun.get("epochs", EPOCHS) else steps
            most = begun["schedule"].get("warmup_steps", 0)
        warmup = min(run.schedule.warmup_steps, most or max(1, steps // 10))
        run = replace(run, steps=steps, schedule=replace(run.schedule, warmup_steps=warmup))
    few = bool(run.early_stopping) and len(held) < HELD_OUT
    if begun is None:
        a_step, read = batch * len(train) / rows, run.steps * batch / rows
        note(
            f"{epochs}{plural(len(train), 'example')}: {plural(run.steps, 'step')} of "
            f"{plural(batch, 'row')} of {run.data.context} tokens, {a_step:.1f} examples a step"
            + ("" if epochs else f", which {_reach(read)}")
            + (
                f"; {len(held):,} more {'is' if len(held) == 1 else 'are'} held out for validation."
                if held
                else "; none is held out."
            )
        )
        if few:
            note(f"With fewer than {HELD_OUT} held-out examples the run does not stop early.")
    return replace(run, early_stopping=0) if few else run


def _reach(epochs: float) -> str:
    """How much of the data so many epochs read."""
    return f"read {epochs:.0%} of them" if epochs < 1 else f"read each {epochs:.1f} times"


def _parts(run: FinetuningConfig, folder: Path) -> tuple[list[Item], list[Item]]:
    """What is trained on, and what is held out."""
    items = examples.stored(folder, run.objective.rows)
    return examples.parted(items, run.data.validation_fraction, run.seed)


def ready(run: FinetuningConfig, folder: Path, note: Note) -> Dataset:
    """The packed rows of a resolved run, and its model with the trained parts."""
    checkpoint = base(run)
    train, held = _parts(run, folder)
    tokenizer = checkpoint.tokenizer
    packed = {"train": examples.packed(train, run.data.context, run.seed)}
    if held:
        packed["validation"] = examples.packed(held, run.data.context, 0)
    model = trained_model(run, checkpoint)
    if run.adapter is None and run.objective.reference:
        packed = _with_reference(run, model, packed, folder / REFERENCES, note)
    run.objective.attach(model)
    lengths = torch.zeros(run.model.vocab, dtype=torch.int64)
    lengths[: len(tokenizer)] = torch.tensor([len(tokenizer.token_bytes(n)) for n in range(len(tokenizer))])
    return Dataset(
        packed["train"],
        packed.get("validation"),
        lengths,
        tokenizer,
        prompt(checkpoint),
        export(run, checkpoint),
        model,
        teacher(run.objective, tokenizer) if isinstance(run.objective, distill.Config) else None,
    )


def _with_reference(
    run: FinetuningConfig, model: decoder.Decoder, packed: Mapping[str, Packed], path: Path, note: Note
) -> dict[str, Packed]:
    """The rows with the log-probabilities of the model before training, computed once and kept in a file."""
    if not path.is_file():
        note("Computing the log-probabilities of the model before training.")
        on = device.device(run.device)
        trainable = Trainable(model.to(on).eval(), run.objective, torch.empty(0))
        found: dict[str, list[np.ndarray]] = {}
        bfloat16 = run.precision == "bfloat16"
        with torch.no_grad(), torch.autocast(on.type, torch.bfloat16, enabled=bfloat16):
            for part, rows_of_part in packed.items():
                for n in range(rows_of_part.rows):
                    batch = TrainingBatch.of(rows_of_part.row(n), on)
                    read = {REFERENCE: batch}
                    if run.objective.rows == "labelled":
                        read[f"{MISMATCHED}{REFERENCE}"] = batch.mismatched
                    for name, each in read.items():
                        values = trainable.log_probs(each, run.objective.chunk_size)
                        found.setdefault(f"{part}.{name}", []).append(values.cpu().numpy())
        with atomic_file(path) as out:
            arrays: Any = {name: np.concatenate(values) for name, values in found.items()}
            np.savez(out, **arrays)
    with np.load(path, allow_pickle=False) as known:
        arrays = {name: known[name] for name in known.files}
    return {
        part: replace(
            each,
            extra={name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(part)},
        )
        for part, each in packed.items()
    }


def teacher(objective: distill.Config, tokenizer: Tokenizer) -> decoder.Decoder:
    """The frozen model to learn from. Raises UserError if its tokens are others than the student's."""
    checkpoint = load.read_checkpoint(store.resolve(objective.teacher, pull=True))
    _check_same_words(objective.teacher, checkpoint.tokenizer, tokenizer)
    model = build.decoder(checkpoint, objective.teacher_type)
    freeze(model)
    return model


def _check_same_words(teacher: str, theirs: Tokenizer, tokenizer: Tokenizer) -> None:
    """UserError for a teacher whose tokens are others than the student's."""
    tokens = range(len(tokenizer))
    if len(theirs) != len(tokens) or any(tokenizer.token_bytes(n) != theirs.token_bytes(n) for n in tokens):
        raise UserError(
            f"config.objective.teacher: {teacher} has another vocabulary than the base, so that their "
            "distributions cannot be compared"
        )


def base(run: FinetuningConfig) -> Checkpoint:
    """The base model's checkpoint, with the positions that the run gives it."""
    checkpoint: Any = load.read_checkpoint(store.resolve(run.base, pull=True))
    if run.context_extension is None:
        return checkpoint
    return replace(checkpoint, config=run.context_extension.extended(checkpoint.config))


def trained_model(run: FinetuningConfig, checkpoint: Checkpoint) -> decoder.Decoder:
    """The base's decoder with what is trained of it."""
    torch.manual_seed(run.seed)
    model = build.decoder(checkpoint, run.base_type if run.frozen else "float32")
    if run.adapter is not None:
        run.adapter.attach(model)
        peft_write.written(run.adapter.changes(model), checkpoint)  # refused now, not when it is trained
    return model


def whole(name: str) -> str:
    """A base's name as it is, its path whole."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def prompt(checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    """A sample's prompt as the question of a conversation, or as text where there is no template."""
    tokenizer: Tokenizer = checkpoint.tokenizer
    template = checkpoint.chat_template

    def ids(text: str) -> list[int]:
        if template is None:
            begin = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
            return begin + tokenizer.encode(text)
        return chat.render([{"role": "user", "content": text}], template, tokenizer=tokenizer)

    return ids


def export(run: FinetuningConfig, checkpoint: Checkpoint) -> Callable[[Training, Path], None]:
    """Writes the adapter into the run's folder, or the whole model beside it."""

    def write(training: Training, folder: Path) -> None:
        weights = {} if run.frozen else training.trained()
        writes = training.parallel.rank == 0
        with training.averaged():
            run.objective.save(training.trainable.decoder, folder if writes else None)
            changes: Any = None if run.adapter is None else run.adapter.changes(training.trainable.decoder)
        if not writes or run.objective.alone:
            return
        if changes is not None:
            adapters.save(folder, changes, checkpoint, run.base, run.context_extension)
            return
        own = {name: weights[name] for name in checkpoint.tensors}
        tensors = Tensors({name: formats.pack(weight.numpy(), "F32") for name, weight in own.items()})
        save.write_checkpoint(folder / MODEL, replace(checkpoint, tensors=tensors), "safetensors", force=True)

    return write
