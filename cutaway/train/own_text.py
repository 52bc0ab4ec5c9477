"""Pretraining on one's own text: a model and settings for as much of it as there is. Imports no torch.

The smallest preset that is made for so much text gives the shape; the vocabulary and the steps follow the
text. Four passes over it teach almost what four times as much text would (2305.16264).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log2, prod
from pathlib import Path
from typing import Any

from cutaway.data import rows, run_tokenizer, sources
from cutaway.data.sources import HUB, Source
from cutaway.errors import UserError
from cutaway.train import config
from cutaway.train.config import TrainingConfig
from cutaway.weights.load import RUN

SIZES = ((300e3, "nano"), (30e6, "book"), (300e6, "10m"), (float("inf"), "100m"))  # bytes of text below which
EPOCHS, FEWEST, LONGER = 4, 200, 2  # passes; steps at least; times the preset's steps at most
LEAST = 2000  # bytes
FIELDS = ("text", "content", "body", "document", "article", "story")


@dataclass(frozen=True)
class OwnText:
    """The source of text, its size, and the column that holds it in a table."""

    path: str
    files: int
    bytes: int
    field: str

    @classmethod
    def of(cls, path: str) -> OwnText:
        """What a file or folder holds. UserError where it is too little, or no text."""
        if path.startswith(HUB):
            raise UserError(
                f"{path}: how much text it has is not known before it is read: name a preset, as in "
                f"`cutaway pretrain book --data {path}`"
            )
        source = Source(path)
        sources.check_exists(source)
        place = Path(path).expanduser()
        every = sources.files(place, ()) if place.is_dir() else [place]
        found = [file for file in every if _is_table(file) or b"\0" not in _head(file)]
        tables = [file for file in found if _is_table(file)]
        size = sum(file.stat().st_size for file in found)
        if size < LEAST:
            raise UserError(
                f"{path}: has {size:,} bytes of text, too few to learn from: give {LEAST:,} or more"
            )
        return cls(path, len(found), size, _field(tables[0]) if tables else "text")

    def entries(self) -> dict[str, Any]:
        """A run's entries."""
        preset = next(name for most, name in SIZES if self.bytes < most)
        made = config.entries(preset, ())
        data = made["data"]
        data["sources"] = [{"path": self.path, "field": self.field}]
        if data["tokenizer"].startswith("bpe:"):
            usual = 2 ** round(log2(max(self.bytes / 1000, 512)))
            data["tokenizer"] = f"bpe:{min(usual, int(data['tokenizer'].removeprefix('bpe:')))}"
        row_tokens = made["batch_size"] * made["model"]["context"]
        wanted = ceil(EPOCHS * self.bytes / _bytes_a_token(data["tokenizer"]) / row_tokens)
        steps = min(max(FEWEST, wanted), LONGER * made["steps"])
        made |= {"steps": steps, "early_stopping": 3, "prompts": [""]}
        made["schedule"]["warmup_steps"] = min(made["schedule"]["warmup_steps"], max(1, steps // 10))
        made["intervals"] |= {"evaluate": None, "sample": max(1, steps // 3), "save": 100}
        return made

    def described(self, run: TrainingConfig) -> str:
        """What is trained on it, before it starts."""
        vocab = run_tokenizer.size_of(run.data.tokenizer) or 0  # 0: only its file says
        weights = sum(map(prod, replace(run.model, vocab=run.model.vocab or vocab).weights().values()))
        passes = run.steps * run.batch_size * run.width * _bytes_a_token(run.data.tokenizer) / self.bytes
        files = "one file" if self.files == 1 else f"{self.files:,} files"
        return (
            f"{self.path}: {self.bytes / 1e6:.2g} MB in {files}. A model of {len(run.model.blocks)} layers "
            f"of width {run.model.width}, about {weights / 1e6:.2g} million weights, tokens by "
            f"{run.data.tokenizer}, is trained for {run.steps:,} steps, which read the text {passes:.1f} "
            "times; --steps, --model.width and other entries change that."
        )


def is_text(path: str) -> bool:
    """Whether a command line's SOURCE is text: a folder that holds no run, or a file that is not YAML."""
    place = Path(path).expanduser()
    if path in config.presets() or (place / RUN).is_file():
        return False
    return (
        path.startswith(HUB) or place.is_dir() or (place.is_file() and place.suffix not in (".yaml", ".yml"))
    )


def _is_table(file: Path) -> bool:
    return file.name.endswith((*sources.LINES, *sources.TABLES))


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4096)


def _field(file: Path) -> str:
    """The column of a table that holds its text. UserError where none can be told."""
    where, row = next(rows.rows(file), (str(file), {}))
    texts = [name for name, value in row.items() if isinstance(value, str)]
    found = [name for name in FIELDS if name in texts] or (texts if len(texts) == 1 else [])
    if not found:
        there = ", ".join(map(str, row)) or "nothing"
        raise UserError(
            f"{where}: has no text under {', '.join(FIELDS)} (it has: {there}): name its column with "
            "--data.sources.0.field, or train on conversations by `cutaway finetune sft`"
        )
    return found[0]


def _bytes_a_token(tokenizer: str) -> float:
    """About how many bytes of English a token has: of a byte pair vocabulary by its size."""
    size = tokenizer.removeprefix("bpe:")
    return 0.35 * log2(int(size)) - 0.9 if size.isdecimal() else 1.0
