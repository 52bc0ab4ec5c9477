"""Fine-tuning: a base model, examples, and what of the model is trained. The same loop as pretraining's.

A run's config is a training config whose model is the ``base``'s, whose data are examples
(``data/conversations.py``) and which may train an ``adapter`` beside the frozen base. The run's folder holds
the adapter as PEFT's two files, or the whole model; every other verb opens it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cutaway import store
from cutaway.bounds import Bounded, Count, Decay
from cutaway.data.conversations import READ, Example, Reader, rows
from cutaway.data.examples import Packed
from cutaway.data.packing import number, permuted
from cutaway.errors import UserError
from cutaway.model.config import Decoder, from_dict, to_dict
from cutaway.store.files import atomic_file
from cutaway.tokenizer import Tokenizer, chat
from cutaway.train import config
from cutaway.train.adapters import dora, ia3, lora
from cutaway.train.config import TrainingConfig
from cutaway.train.loop import MODEL, Dataset, Training
from cutaway.weights import adapters, build, load, quant
from cutaway.weights import save as writer
from cutaway.weights.load import Checkpoint
from cutaway.weights.rules import Tensors

PRESETS = config.PRESETS / "finetune"
EXAMPLES = "examples.npz"
REPORT = "data.json"
COUNTS = ("left_out_too_long", "cut", "without_trained_tokens", "without_end_token", "begin_token_twice")
COUNTS += ("duplicates", "shared_with_check")
Note = Callable[[str], None]


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
    (QLoRA).
    """

    data: Examples  # type: ignore[assignment]
    base: str = "smollm2"
    base_type: Literal["float32", "packed"] = "float32"
    adapter: lora.Config | dora.Config | ia3.Config | None = field(
        default=None, metadata={"variants": "cutaway.train.adapters"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
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
    """What the examples are, before the first step. Counts are of examples unless they say tokens."""

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
        if self.unread_columns:
            yield f"columns that are not read: {', '.join(self.unread_columns)}"


def presets() -> list[str]:
    """The names of the methods that come with Cutaway."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read(source: str, changes: Sequence[str] = ()) -> FinetuningConfig:
    """The run of a YAML file, a preset or a run's folder, changed; its model is the base's."""
    found = config.entries(str(PRESETS / f"{source}.yaml") if source in presets() else source, changes)
    if "model" not in found:
        base = found.get("base", FinetuningConfig.base)
        described = load.read(store.resolve(str(base), pull=True)).config
        if not isinstance(described, Decoder):
            raise UserError(f"config.base: {base} is an encoder, which writes no text")
        found["model"] = to_dict(described)
    return from_dict(found, FinetuningConfig)


def resolved(run: FinetuningConfig, folder: Path, note: Note) -> FinetuningConfig:
    """The run as it is stored: paths whole, examples tokenised into the folder."""
    data = replace(run.data, path=str(Path(run.data.path).absolute()))
    run = replace(run, data=data, base=_whole(run.base))
    if not (folder / EXAMPLES).is_file():
        examples, report = prepare(run, base(run), note)
        for warning in report.warnings():
            note(f"Note: {warning}.")
        _store(folder, examples)
        with atomic_file(folder / REPORT) as out:
            out.write(json.dumps(asdict(report), indent=1).encode())
    return run


def ready(run: FinetuningConfig, folder: Path, note: Note) -> Dataset:
    """The packed rows of a resolved run, and the model with what is trained of it."""
    at_rest = base(run)
    examples = _stored(folder)
    tokenizer = at_rest.tokenizer
    order = [permuted(n, len(examples), number(run.seed, "held out")) for n in range(len(examples))]
    held = int(len(examples) * run.data.validation_fraction)
    train = Packed.of([examples[n] for n in order[held:]], run.data.context, run.seed)
    validation = Packed.of([examples[n] for n in order[:held]], run.data.context, 0) if held else None
    note(f"{len(order) - held:,} examples in {train.rows:,} rows of {run.data.context} tokens")
    torch.manual_seed(run.seed)
    model = build.decoder(at_rest, run.base_type if run.adapter else "float32")
    if run.adapter is not None:
        run.adapter.attach(model)
    lengths = torch.zeros(run.model.vocab, dtype=torch.int64)
    lengths[: len(tokenizer)] = torch.tensor([len(tokenizer.token_bytes(n)) for n in range(len(tokenizer))])
    return Dataset(train, validation, lengths, tokenizer, _prompt(at_rest), _export(run, at_rest), model)


def base(run: FinetuningConfig) -> Checkpoint:
    """The base model at rest."""
    return load.read(store.resolve(run.base, pull=True))


def prepare(run: FinetuningConfig, at_rest: Checkpoint, note: Note) -> tuple[list[Example], DataReport]:
    """Every example as ids, and what was found. Raises UserError if none can be trained on."""
    reader = _reader(at_rest)
    counts: Counter[str] = Counter()
    columns: set[str] = set()
    seen: set[bytes] = set()
    checked = _digests(reader, run.data.check) if run.data.check else set()
    kept: list[Example] = []
    for where, row in rows(run.data.path):
        columns |= row.keys()
        example = reader.example(row, where)
        ids, trained = example.ids, example.trained
        if len(ids) > run.data.context + 1:
            counts["cut" if run.data.too_long == "cut" else "left_out_too_long"] += 1
            if run.data.too_long == "leave_out":
                continue
            ids, trained = ids[: run.data.context + 1], trained[: run.data.context + 1]
        if not trained[1:].any():
            counts["without_trained_tokens"] += 1
            continue
        counts["without_end_token"] += int(int(ids[np.flatnonzero(trained)[-1]]) not in reader.ends)
        counts["begin_token_twice"] += int(len(ids) > 1 and ids[0] == ids[1] == reader.tokenizer.bos)
        key = ids.tobytes()
        counts["duplicates"] += key in seen
        counts["shared_with_check"] += key in checked
        seen.add(key)
        kept.append(Example(ids, trained))
        if len(kept) % 1000 == 0:
            note(f"{len(kept):,} examples tokenised")
    if not kept:
        raise UserError(
            f"{run.data.path}: no example can be trained on: {counts['left_out_too_long']:,} are longer than "
            f"data.context, {counts['without_trained_tokens']:,} have nothing that the assistant wrote"
        )
    report = DataReport(
        examples=len(kept),
        tokens=sum(len(example.ids) for example in kept),
        trained_tokens=sum(int(example.trained.sum()) for example in kept),
        **{name: counts[name] for name in COUNTS},
        unread_columns=tuple(sorted(columns - set(READ))),
    )
    return kept, report


def _reader(at_rest: Checkpoint) -> Reader:
    ends = at_rest.defaults.get("eos_ids", ())
    return Reader(at_rest.tokenizer, at_rest.chat_template, ends if isinstance(ends, tuple) else ())


def _digests(reader: Reader, path: str) -> set[bytes]:
    return {reader.example(row, where).ids.tobytes() for where, row in rows(path)}


def _whole(name: str) -> str:
    """A base's name as it is, its path whole."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _prompt(at_rest: Checkpoint) -> Callable[[str], list[int]]:
    """A sample's prompt as the question of a conversation, or as text where there is no template."""
    tokenizer: Tokenizer = at_rest.tokenizer
    template = at_rest.chat_template

    def ids(text: str) -> list[int]:
        if template is None:
            begin = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
            return begin + tokenizer.encode(text)
        return chat.render([{"role": "user", "content": text}], template, tokenizer=tokenizer)

    return ids


def _export(run: FinetuningConfig, at_rest: Checkpoint) -> Callable[[Training, Path], None]:
    """Writes the adapter into the run's folder, or the whole model beside it."""

    def export(training: Training, folder: Path) -> None:
        weights = training.trained() if run.adapter is None else {}
        if training.parallel.rank:
            return
        if run.adapter is not None:
            with training.averaged():
                changes: Any = run.adapter.changes(training.model)
                adapters.save(folder, changes, at_rest, run.base)
            return
        tensors = Tensors({name: quant.pack(weight.numpy(), "F32") for name, weight in weights.items()})
        writer.write(folder / MODEL, replace(at_rest, tensors=tensors), "safetensors", force=True)

    return export


def _store(folder: Path, examples: Sequence[Example]) -> None:
    """Ids, mask and ends of all examples in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / EXAMPLES) as out:
        np.savez(
            out,
            ids=np.concatenate([example.ids for example in examples]),
            trained=np.concatenate([example.trained for example in examples]),
            ends=np.cumsum([len(example.ids) for example in examples]),
        )


def _stored(folder: Path) -> list[Example]:
    with np.load(folder / EXAMPLES, allow_pickle=False) as found:
        ends = found["ends"][:-1]
        pairs = zip(np.split(found["ids"], ends), np.split(found["trained"], ends), strict=True)
        return [Example(ids, trained) for ids, trained in pairs]
