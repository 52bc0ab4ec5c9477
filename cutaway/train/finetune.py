"""Fine-tuning: a base model, examples, and what of the model is trained. The same loop as pretraining's.

A run's config is a training config whose model is the ``base``'s, whose data are examples
(``data/conversations.py``) and which may train an ``adapter`` beside the frozen base. The run's folder holds
the adapter as PEFT's two files, or the whole model; every other verb opens it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from cutaway import store
from cutaway.bounds import Bounded, Count, Decay
from cutaway.data.conversations import READ, Example, Item, Kind, Labelled, Pair, Reader, changed, rows
from cutaway.data.examples import MISMATCHED, Packed, mismatched, size
from cutaway.data.packing import number, permuted
from cutaway.errors import UserError
from cutaway.model import decoder
from cutaway.model.config import Decoder, from_dict, to_dict
from cutaway.model.context import ContextExtension
from cutaway.store.files import atomic_file
from cutaway.tokenizer import Tokenizer, chat
from cutaway.train import config, device
from cutaway.train.adapters import dora, freeze, ia3, lora
from cutaway.train.config import TrainingConfig
from cutaway.train.loop import MODEL, Dataset, Training
from cutaway.train.objectives import distill
from cutaway.train.trainable import REFERENCE, Trainable, TrainingBatch
from cutaway.weights import adapters, build, load, quant
from cutaway.weights import save as writer
from cutaway.weights.load import Checkpoint
from cutaway.weights.rules import Tensors

PRESETS = config.PRESETS / "finetune"
EXAMPLES = "examples.npz"
REPORT = "data.json"
COUNTS = ("left_out_too_long", "cut", "without_trained_tokens", "without_end_token", "begin_token_twice")
COUNTS += ("duplicates", "shared_with_check", "same_answers", "liked")
REFERENCES = "reference.npz"  # log-probabilities of the model before training, where all weights are trained
Note = Callable[[str], None]
Run = TypeVar("Run", bound="FinetuningConfig")


@dataclass(frozen=True)
class Examples(Bounded):
    """What is trained on. ``path``: a .jsonl or .parquet file, or a folder of them.

    A row of training has ``context`` tokens; an example that is longer is left out, or with ``too_long``
    "cut" loses its end. ``validation_fraction`` of the examples, drawn by the run's seed, is not trained on.
    ``check`` is a file of examples for evaluation: what it shares with the training data is counted.
    """

    path: str
    context: Count = 1024
    validation_fraction: Decay = 0.05
    too_long: Literal["leave_out", "cut"] = "leave_out"
    check: str | None = None


@dataclass(frozen=True)
class FinetuningConfig(TrainingConfig):
    """A training config on a ``base`` model: a name, a file or a folder.

    ``adapter`` None trains all weights. ``base_type`` "packed" leaves the frozen base as it is in its file
    (QLoRA). ``context_extension`` gives the base more positions before training; ``model`` then has them.
    """

    data: Examples  # type: ignore[assignment]
    base: str = "smollm2"
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
        if self.adapter is None and self.base_type == "packed":
            raise UserError("config.base_type is 'packed', whose weights cannot be trained: name an adapter")
        if self.data.context > self.model.context:
            raise UserError(
                f"config.data.context is {self.data.context}; the base holds {self.model.context} tokens"
            )

    @property
    def width(self) -> int:
        return self.data.context

    @property
    def flops_per_token(self) -> float:
        """Beside a frozen base, the backward pass computes no gradient of the base's weights."""
        return super().flops_per_token * (1 if self.adapter is None else 2 / 3)


@dataclass(frozen=True)
class DataReport:
    """What the examples are, before the first step. Counts are of examples unless they say tokens.

    An example is a pair where the objective reads pairs, and a labelled answer where it reads those.
    """

    rows: Kind
    examples: int
    tokens: int
    trained_tokens: int
    left_out_too_long: int
    cut: int
    without_trained_tokens: int
    without_end_token: int
    begin_token_twice: int
    duplicates: int
    shared_with_check: int
    same_answers: int
    liked: int
    unread_columns: tuple[str, ...]

    def warnings(self) -> Iterator[str]:
        """What a user should look at."""
        if self.left_out_too_long:
            yield f"{self.left_out_too_long:,} examples are longer than data.context and left out"
        if self.cut:
            yield f"{self.cut:,} examples are longer than data.context and cut, so their ends are not learned"
        if self.without_trained_tokens:
            yield f"{self.without_trained_tokens:,} examples have nothing to train on and are left out"
        if self.without_end_token:
            yield (
                f"{self.without_end_token:,} examples train no end token after the last answer, so the "
                "model may not learn to stop"
            )
        if self.begin_token_twice:
            yield f"{self.begin_token_twice:,} examples begin with two begin tokens"
        if self.duplicates:
            yield f"{self.duplicates:,} examples are the same as an earlier one"
        if self.shared_with_check:
            yield f"{self.shared_with_check:,} examples are in the evaluation's file too"
        if self.same_answers:
            yield f"{self.same_answers:,} pairs are left out, whose answers are the same"
        if self.rows == "labelled" and self.liked in (0, self.examples):
            yield "all answers have the same label, so there is nothing to compare"
        if self.unread_columns:
            yield f"columns that are not read: {', '.join(self.unread_columns)}"


def presets() -> list[str]:
    """The names of the methods that come with Cutaway."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read(source: str, changes: Sequence[str] = (), kind: type[Run] = FinetuningConfig) -> Run:
    """The run of a YAML file, a preset or a run's folder, changed; its model is the base's."""
    found = config.entries(str(PRESETS / f"{source}.yaml") if source in presets() else source, changes)
    if "model" not in found:
        base = found.get("base", FinetuningConfig.base)
        described = load.read(store.resolve(str(base), pull=True)).config
        if not isinstance(described, Decoder):
            raise UserError(f"config.base: {base} is not a decoder, and only decoders are finetuned")
        if found.get("context_extension") is not None:
            extension = from_dict(found["context_extension"], ContextExtension, "config.context_extension")
            described = extension.extended(described)
        found["model"] = to_dict(described)
    return from_dict(found, kind)


def resolved(run: FinetuningConfig, folder: Path, note: Note) -> FinetuningConfig:
    """The run as it is stored: paths whole, examples tokenised into the folder."""
    data = replace(run.data, path=str(Path(run.data.path).absolute()))
    run = replace(run, data=data, base=whole(run.base))
    if isinstance(run.objective, distill.Config):
        run = replace(run, objective=replace(run.objective, teacher=whole(run.objective.teacher)))
    if not (folder / EXAMPLES).is_file():
        items, report = prepare(run, base(run), note)
        for warning in report.warnings():
            note(f"Note: {warning}.")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / REPORT) as out:
            out.write(json.dumps(asdict(report), indent=1).encode())
        _store(folder, items)
    return run


def ready(run: FinetuningConfig, folder: Path, note: Note) -> Dataset:
    """The packed rows of a resolved run, and the model with what is trained of it."""
    at_rest = base(run)
    items = _stored(folder, run.objective.rows)
    tokenizer = at_rest.tokenizer
    order = [permuted(n, len(items), number(run.seed, "held out")) for n in range(len(items))]
    held = int(len(items) * run.data.validation_fraction)
    packed = {"train": _packed(run, [items[n] for n in order[held:]], run.seed)}
    if held:
        packed["validation"] = _packed(run, [items[n] for n in order[:held]], 0)
    note(f"{len(order) - held:,} examples in {packed['train'].rows:,} rows of {run.data.context} tokens")
    model = trained_model(run, at_rest)
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
        prompt(at_rest),
        export(run, at_rest),
        model,
        teacher(run.objective, tokenizer) if isinstance(run.objective, distill.Config) else None,
    )


def _packed(run: FinetuningConfig, items: Sequence[Item], seed: int) -> Packed:
    """Rows of these items; labelled answers get their mismatched ones."""
    labelled = [item for item in items if isinstance(item, Labelled)]
    return Packed.of(mismatched(labelled, run.data.context) if labelled else items, run.data.context, seed)


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
    at_rest = load.read(store.resolve(objective.teacher, pull=True))
    theirs = at_rest.tokenizer
    tokens = range(len(tokenizer))
    if len(theirs) != len(tokens) or any(tokenizer.token_bytes(n) != theirs.token_bytes(n) for n in tokens):
        raise UserError(
            f"config.objective.teacher: {objective.teacher} has another vocabulary than the base, so that "
            "their distributions cannot be compared"
        )
    model = build.decoder(at_rest, objective.teacher_type)
    freeze(model)
    return model


def base(run: FinetuningConfig) -> Checkpoint:
    """The base model at rest, with the positions that the run gives it."""
    at_rest: Any = load.read(store.resolve(run.base, pull=True))
    if run.context_extension is None:
        return at_rest
    return replace(at_rest, config=run.context_extension.extended(at_rest.config))


def trained_model(run: FinetuningConfig, at_rest: Checkpoint) -> decoder.Decoder:
    """The base's decoder with what is trained of it."""
    torch.manual_seed(run.seed)
    model = build.decoder(at_rest, run.base_type if run.adapter else "float32")
    if run.adapter is not None:
        run.adapter.attach(model)
    return model


def prepare(run: FinetuningConfig, at_rest: Checkpoint, note: Note) -> tuple[list[Item], DataReport]:
    """Every example as ids, and what was found. Raises UserError if none can be trained on."""
    read, kind, context = reader(at_rest), run.objective.rows, run.data.context
    counts: Counter[str] = Counter()
    columns: set[str] = set()
    seen: set[bytes] = set()
    checked = _digests(read, kind, run.data.check) if run.data.check else set()
    kept: list[Item] = []
    for where, row in rows(run.data.path):
        columns |= row.keys()
        for item in read.items(kind, row, where):
            key = _digest(item)  # before the item is cut
            if run.objective.reads_end:
                item = changed(item, _reading_its_end)
            if size(item) > context:
                counts["cut" if run.data.too_long == "cut" else "left_out_too_long"] += 1
                if run.data.too_long == "leave_out":
                    continue
                limit = context // len(item.documents) + 1
                item = changed(item, lambda example, limit=limit: example.cut(limit))
            if not all(example.trained[1:].any() for example in item.documents):
                counts["without_trained_tokens"] += 1
                continue
            if isinstance(item, Pair) and np.array_equal(item.chosen.ids, item.rejected.ids):
                counts["same_answers"] += 1
                continue
            for name, found in _problems(item, read).items():
                counts[name] += found
            counts["duplicates"] += key in seen
            counts["shared_with_check"] += key in checked
            counts["liked"] += isinstance(item, Labelled) and item.label
            seen.add(key)
            kept.append(item)
            if len(kept) % 1000 == 0:
                note(f"{len(kept):,} examples tokenised")
    if not kept:
        raise UserError(
            f"{run.data.path}: no example can be trained on: {counts['left_out_too_long']:,} are longer than "
            f"data.context, {counts['without_trained_tokens']:,} have nothing that the assistant wrote, "
            f"{counts['same_answers']:,} are pairs of the same answer"
        )
    documents = [example for item in kept for example in item.documents]
    report = DataReport(
        rows=kind,
        examples=len(kept),
        tokens=sum(len(example.ids) for example in documents),
        trained_tokens=sum(int(example.trained.sum()) for example in documents),
        **{name: counts[name] for name in COUNTS},
        unread_columns=tuple(sorted(columns - set(READ))),
    )
    return kept, report


def _problems(item: Item, read: Reader) -> dict[str, bool]:
    """Which faults of tokens an item has."""
    last = [int(example.ids[np.flatnonzero(example.trained)[-1]]) for example in item.documents]
    begins = [example.ids[:2].tolist() for example in item.documents]
    return {
        "without_end_token": not read.ends.issuperset(last),
        "begin_token_twice": [read.tokenizer.bos] * 2 in begins,
    }


def _reading_its_end(example: Example) -> Example:
    """The example up to its end token, which is read too: behind it is a token that is no target."""
    ended = example.to_end
    return Example(np.append(ended.ids, ended.ids[-1]), np.append(ended.trained, False))


def reader(at_rest: Checkpoint) -> Reader:
    """Rows of data as this model reads them."""
    ends = at_rest.defaults.get("eos_ids", ())
    return Reader(at_rest.tokenizer, at_rest.chat_template, ends if isinstance(ends, tuple) else ())


def _digest(item: Item) -> bytes:
    return b"/".join(example.ids.tobytes() for example in item.documents)


def _digests(read: Reader, kind: Kind, path: str) -> set[bytes]:
    return {_digest(item) for where, row in rows(path) for item in read.items(kind, row, where)}


def whole(name: str) -> str:
    """A base's name as it is, its path whole."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def prompt(at_rest: Checkpoint) -> Callable[[str], list[int]]:
    """A sample's prompt as the question of a conversation, or as text where there is no template."""
    tokenizer: Tokenizer = at_rest.tokenizer
    template = at_rest.chat_template

    def ids(text: str) -> list[int]:
        if template is None:
            begin = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
            return begin + tokenizer.encode(text)
        return chat.render([{"role": "user", "content": text}], template, tokenizer=tokenizer)

    return ids


def export(run: FinetuningConfig, at_rest: Checkpoint) -> Callable[[Training, Path], None]:
    """Writes the adapter into the run's folder, or the whole model beside it."""

    def write(training: Training, folder: Path) -> None:
        weights = training.trained() if run.adapter is None else {}
        writes = training.parallel.rank == 0
        with training.averaged():
            run.objective.save(training.trainable.decoder, folder if writes else None)
            changes: Any = None if run.adapter is None else run.adapter.changes(training.trainable.decoder)
        if not writes:
            return
        if changes is not None:
            adapters.save(folder, changes, at_rest, run.base, run.context_extension)
            return
        own = {name: weights[name] for name in at_rest.tensors}
        tensors = Tensors({name: quant.pack(weight.numpy(), "F32") for name, weight in own.items()})
        writer.write(folder / MODEL, replace(at_rest, tensors=tensors), "safetensors", force=True)

    return write


def _store(folder: Path, items: Sequence[Item]) -> None:
    """Ids, mask and ends of all documents in one file, and each item's label or margin."""
    documents = [example for item in items for example in item.documents]
    numbers = [
        item.label if isinstance(item, Labelled) else item.margin if isinstance(item, Pair) else 0
        for item in items
    ]
    with atomic_file(folder / EXAMPLES) as out:
        np.savez(
            out,
            ids=np.concatenate([example.ids for example in documents]),
            trained=np.concatenate([example.trained for example in documents]),
            ends=np.cumsum([len(example.ids) for example in documents]),
            numbers=np.array(numbers, np.float32),
        )


def _stored(folder: Path, kind: Kind) -> list[Item]:
    with np.load(folder / EXAMPLES, allow_pickle=False) as found:
        ends, numbers = found["ends"][:-1], found["numbers"].tolist()
        parts = zip(np.split(found["ids"], ends), np.split(found["trained"], ends), strict=True)
        documents = [Example(ids, trained) for ids, trained in parts]
    if kind == "pairs":
        return [Pair(*pair) for pair in zip(documents[::2], documents[1::2], numbers, strict=True)]
    if kind == "labelled":
        return [Labelled(answer, bool(label)) for answer, label in zip(documents, numbers, strict=True)]
    return [*documents]
