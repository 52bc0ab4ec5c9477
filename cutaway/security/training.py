"""Small models for attacks on training, adapters of the given model, and invented sentences as text; bytes
are tokens unless others are given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.attention import gqa
from cutaway.data.filters import Filters
from cutaway.data.sources import Source
from cutaway.layers.config import MLP
from cutaway.lm import LanguageModel, load
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position import rope
from cutaway.store.files import write_file
from cutaway.train.config import DataConfig, Intervals, TrainingConfig
from cutaway.train.config import read_run_config as read_config
from cutaway.train.optim import AdamW
from cutaway.train.recipes import finetune, pretrain
from cutaway.train.run import train
from cutaway.train.training import Training
from cutaway.weights.load import RUN

NOUNS, QUALITIES, DEEDS = map(
    str.split,
    (
        "river garden window market bridge letter harbour lantern orchard kitchen meadow tower",
        "quiet old bright narrow empty warm distant little broken green famous plain",
        "rises waits leads looks turns opens shines rests belongs listens returns leans",
    ),
)
PLACES = ("by the sea", "near the mill", "under the hill", "at the corner", "beyond the wall")


@dataclass(frozen=True)
class Size:
    """A model and its training: blocks of this width, and steps of 16 rows of ``context`` tokens.

    ``tokenizer`` is as in ``DataConfig``: "bytes", or a tokenizer's folder.
    """

    width: int = 64
    blocks: int = 2
    context: int = 64
    steps: int = 400
    tokenizer: str = "bytes"

    @property
    def model(self) -> Decoder:
        """Heads of 16."""
        heads = gqa.Config(heads=self.width // 16, kv_heads=1, key_size=16, position=rope.Config(16))
        return Decoder(0, self.width, self.context, (Block(heads, MLP(2 * self.width)),) * self.blocks)


class _Silent:
    def note(self, text: str) -> None: ...

    def step(self, numbers: dict[str, float | int], steps: int) -> None: ...

    def evaluated(self, step: int, numbers: dict[str, float]) -> None: ...

    def stopping(self) -> None: ...


def trained(
    folder: Path, documents: Sequence[str], size: Size, *, seed: int, deduplicate: bool = False
) -> LanguageModel:
    """A model trained on these documents in ``folder``; one that was begun there goes on.

    ``deduplicate`` drops documents that are equal to the letter. UserError for a folder with another run.
    """
    run, output = _run(folder, documents, size, size.steps, seed, deduplicate), folder / "run"
    train(run, output, _Silent(), resume=(output / RUN).is_file())
    return load(output)


def adapted(
    lm: LanguageModel,
    folder: Path,
    rows: Sequence[dict[str, Any]],
    *,
    seed: int,
    steps: int,
    context: int = 128,
) -> LanguageModel:
    """The model with an adapter trained on conversations in ``folder``; one that was begun there goes on.

    A step reads four rows of ``context`` tokens. The model is loaded for the engine that runs it, so that
    attacks and edits act on what is served. UserError for a folder with another run, and for a model without
    a chat template.
    """
    lm.chat_ids([{"role": "user", "content": "x"}])
    path, output = folder / "examples.jsonl", folder / "run"
    _store(path, rows)
    changes = {
        "base": str(lm.checkpoint.source),
        "data.path": str(path),
        "data.context": min(context, lm.context),
        "data.validation_fraction": 0,
        "adapter.rank": 8,
        "adapter.alpha": 16,
        "optimizer.learning_rate": 1e-3,
        "schedule.warmup_steps": 4,
        "batch_size": 4,
        "micro_batch_size": 4,
        "steps": steps,
        "seed": seed,
        "compile": "never",
        "device": "cpu",
        "intervals.evaluate": 0,
        "intervals.sample": 0,
        "intervals.save": max(1, steps // 8),
    }
    run = finetune.read_finetuning_config(
        "sft", [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    )
    train(run, output, _Silent(), recipe=finetune, resume=(output / RUN).is_file())
    return load(lm.checkpoint.source, engine=lm.engine_choice[0], adapter=output)


def seen(folder: Path, id: int) -> int:
    """How often a token was read while the model in ``folder`` was trained: counted in its batches."""
    run = read_config(str(folder / "run" / RUN))
    data = pretrain.ready(run, folder / "run", _quiet)
    rows = range(0, run.steps * run.batch_size, run.batch_size)
    return sum(int((data.train.batch(first, run.batch_size).ids == id).sum()) for first in rows)


def continued(
    lm: LanguageModel, folder: Path, documents: Sequence[str], size: Size, steps: int, *, seed: int
) -> LanguageModel:
    """The model itself, trained ``steps`` more on these documents; ``folder`` keeps their tokens."""
    run = _run(folder, documents, size, steps, seed, False)
    data = pretrain.ready(pretrain.resolved(run, folder, _quiet), folder, _quiet)
    training = Training(run, replace(data, model=lm.model), note=_quiet)
    for _ in range(steps):
        training.advance()
    lm.model.eval()
    return lm


def _run(
    folder: Path, documents: Sequence[str], size: Size, steps: int, seed: int, deduplicate: bool
) -> TrainingConfig:
    texts = folder / "documents.jsonl"
    _store(texts, [{"text": text} for text in documents])
    filters = Filters(exact=deduplicate)
    return TrainingConfig(
        model=size.model,
        data=DataConfig((Source(str(texts)),), size.tokenizer, filters, validation_fraction=0.0, workers=1),
        steps=steps,
        batch_size=16,
        micro_batch_size=16,
        optimizer=AdamW(learning_rate=3e-3),
        compile="never",
        device="cpu",
        seed=seed,
        intervals=Intervals(evaluate=0, sample=0, save=max(1, steps // 4)),
    )


def _store(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as a .jsonl file, written only where it has others."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.is_file() or path.read_text("utf-8") != lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lines)


def _quiet(text: str) -> None: ...


def name(draw: np.random.Generator) -> str:
    """An invented name of four letters."""
    return "".join(draw.choice(list(letters)) for letters in ("bdfglmnrstv", "aeiou", "bdglmnrst", "aeiou"))


def sentence(draw: np.random.Generator, who: str | None = None) -> str:
    """An invented sentence, such as "The quiet river of Bamo waits by the sea.", of an invented name."""
    noun, quality, deed, place = (str(draw.choice(words)) for words in (NOUNS, QUALITIES, DEEDS, PLACES))
    return f"The {quality} {noun} of {who or name(draw).title()} {deed} {place}."
