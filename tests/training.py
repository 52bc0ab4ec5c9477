"""Small training runs: a model of a few thousand weights, rows of random tokens, and a callback that keeps
what it hears.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutaway.attention import gqa
from cutaway.data import run_tokenizer
from cutaway.data.packing import Mixture, Span
from cutaway.data.sources import Source
from cutaway.layers.config import MLP
from cutaway.model import decoder
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position import rope
from cutaway.quantization import formats
from cutaway.train import config
from cutaway.train.config import DataConfig, Intervals, TrainingConfig
from cutaway.train.objectives import next_token
from cutaway.train.recipes.pretrain import export
from cutaway.train.training import Dataset, Training
from cutaway.weights import load, save
from cutaway.weights.named_tensors import Tensors

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% if m.thoughts %}({{ m.thoughts }}) {% endif %}"
    "{{ m.content | trim }}<|end|>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
VOCAB, CONTEXT = 320, 16
SAVED = (2, 4, 6)  # steps of the checkpoints of ``saved``
TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune. "


def model(vocab: int = VOCAB, context: int = CONTEXT, attention: Any = None) -> Decoder:
    """Two blocks, 32 wide."""
    own = gqa.Config(heads=4, kv_heads=2, key_size=8, position=rope.Config(8))
    return Decoder(vocab, 32, context, (Block(attention or own, MLP(48)),) * 2)


def run(folder: Path | None = None, **changes: Any) -> TrainingConfig:
    """Eight steps of four rows on ``folder``."""
    plain = TrainingConfig(
        model=model(),
        data=DataConfig((Source(str(folder or ".")),), validation_fraction=0.2),
        steps=8,
        batch_size=4,
        micro_batch_size=4,
        compile="never",
        objective=next_token.Config(chunk_size=24),
        intervals=Intervals(evaluate=4, save=2, sample=0, evaluate_sequences=4),
    )
    return replace(plain, **changes)


class Stream:
    """Random tokens in documents of random lengths; one document if ``longest`` is None."""

    def __init__(self, tokens: int = 4000, longest: int | None = 30, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.tokens = tokens
        self.ids = np.minimum(
            draw.geometric(0.3, tokens), 255
        )  # some tokens are likelier: there is something to learn
        borders = [0]
        while longest is not None and borders[-1] < tokens:
            borders.append(borders[-1] + int(draw.integers(3, longest)))
        self.starts = np.array(borders)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        places = np.arange(start, stop)
        return self.ids[start:stop], self.starts[np.searchsorted(self.starts, places, side="right") - 1]


def text(context: int = CONTEXT, longest: int | None = 30, seed: int = 0, vocab: int = VOCAB) -> Dataset:
    """Rows of a random stream."""
    stream = Stream(longest=longest)
    train = Mixture([Span(stream, 0, 3200, context, seed)], [1.0], seed)
    lengths = torch.ones(vocab, dtype=torch.int64)
    return Dataset(
        train,
        Span(stream, 3200, 4000, context, seed),
        lengths,
        run_tokenizer.of_bytes(),
        lambda one: [256, *one.encode()],
        export,
    )


def training(seed: int = 0, longest: int | None = 30, **changes: Any) -> Training:
    """A run in memory on a random stream."""
    return Training(run(seed=seed, **changes), text(longest=longest), note=lambda _: None)


def losses(made: Training, steps: int) -> list[float]:
    """Of the next steps."""
    return [made.advance()["loss"] for _ in range(steps)]


class Quiet:
    """Keeps what it hears; ``at`` is called after every step."""

    def __init__(self, at: Callable[[int], None] = lambda step: None) -> None:
        self.notes: list[str] = []
        self.steps: list[dict[str, float]] = []
        self.validation: list[dict[str, float]] = []
        self.at = at

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, numbers: dict[str, float], steps: int) -> None:
        self.steps.append(numbers)
        self.at(int(numbers["step"]))

    def evaluated(self, step: int, numbers: dict[str, float]) -> None:
        self.validation.append(numbers)

    def stopping(self) -> None:
        self.notes.append("stopping")


def folder_of_text(folder: Path) -> Path:
    """Five documents."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(5):
        (folder / f"{n}.txt").write_text(f"Chapter {n}. " + TEXT * 8, "utf-8")
    return folder


def chatting_model(folder: Path, vocab: int = VOCAB, context: int = 128) -> Path:
    """A small llama of bytes with a chat template, written as a Hugging Face folder."""
    torch.manual_seed(1)
    config = model(vocab, context)
    weights = decoder.Decoder(config).named_parameters()
    tensors = Tensors({name: formats.pack(p.detach().numpy(), "F32") for name, p in weights})
    tokenizer = run_tokenizer.of_bytes()
    words = run_tokenizer.save(tokenizer, folder.parent / "words")
    (words / "chat_template.jinja").write_text(TEMPLATE)
    checkpoint = load.Checkpoint(config, tensors, None, words, lambda: tokenizer, TEMPLATE)
    save.write_checkpoint(folder, checkpoint, "safetensors")
    return folder


def conversations(path: Path) -> Path:
    """Forty questions that are answered with x."""
    return _lines(
        path,
        [{"messages": [_turn("user", f"{n}?"), _turn("assistant", "x" * (n % 7))]} for n in range(40)],
    )


def pairs(path: Path) -> Path:
    """Thirty questions whose chosen answer is one of x, and the rejected one of y."""
    answers = (("chosen", "x", 5), ("rejected", "y", 3))
    return _lines(
        path,
        [
            {"prompt": [_turn("user", f"{n}?")]}
            | {name: [_turn("assistant", letter * (1 + n % size))] for name, letter, size in answers}
            for n in range(30)
        ],
    )


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def saved(folder: Path) -> Path:
    """A run of a few steps, with three checkpoints."""
    made, data = run(), text()
    tokenizer = run_tokenizer.of_bytes()
    run_tokenizer.save(tokenizer, folder / "tokenizer")
    (folder / "run.yaml").write_text(config.run_config_text(made))
    trained = Training(made, replace(data, tokenizer=tokenizer, export=export), note=lambda _: None)
    lines: list[dict[str, Any]] = []
    for step in range(1, SAVED[-1] + 1):
        lines.append({"step": step, "loss": float(trained.advance()["loss"]), "learning_rate": float("nan")})
        if step in SAVED:
            trained.save(folder / "checkpoints")
            lines += [
                {"step": step, "validation_loss": 3.0 - step / 10},
                {"step": step, "prompt": "the", "sample": f" sample of {step}"},
            ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained.data.export(trained, folder)
    return folder
