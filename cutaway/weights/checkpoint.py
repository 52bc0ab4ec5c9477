"""A model as it was read: its config, packed weights, tokenizer and defaults, and where they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.model.config import Model
from cutaway.weights.named_tensors import Tensors

if TYPE_CHECKING:
    from cutaway.tokenizer import Tokenizer

FILES = (".safetensors", ".gguf", ".json", ".yaml", ".jinja", ".model")  # of a folder, that decide answers
TOKENS = "ForTokenClassification"
CLASSIFIERS = ("ForSequenceClassification", TOKENS)  # how transformers names classes with a head for labels


class Target(NamedTuple):
    """How an encoder-decoder writes: the id before its text, the text's first id, and ids it never writes."""

    start: int | None = None
    first: int | None = None
    never: tuple[int, ...] = ()

    def entries(self) -> dict[str, object]:
        """The keys of config.json for these."""
        bad = [[id] for id in self.never] or None
        return {
            "decoder_start_token_id": self.start,
            "forced_bos_token_id": self.first,
            "bad_words_ids": bad,
        }


@dataclass(frozen=True)
class Checkpoint:
    """A model as its files hold it: ``tensors`` are made when asked for; ``family`` may be None.

    ``defaults`` are those of generation_config, with ``eos_ids`` if it names the ids that end an answer;
    ``metadata`` are a GGUF file's entries; ``read_tokenizer`` is for ``tokenizer`` alone; ``target``, of an
    encoder-decoder alone.
    """

    config: Model
    tensors: Tensors
    family: str | None
    source: Path
    read_tokenizer: Callable[[], Tokenizer] | None = None
    chat_template: str | None = None
    defaults: dict[str, float | tuple[int, ...]] = field(default_factory=dict)
    metadata: Mapping[str, object] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()  # the parts of a multimodal model that are not read
    target: Target | None = None
    quantized: str | None = None  # how a folder's weights are quantised, in words
    classifier: str = ""  # transformers' class, of a folder whose head is for labels (weights/classifier.py)
    head: Mapping[str, Packed] = field(default_factory=dict)  # of it, what an adapter has in its place
    origin: Path | None = None  # where it was read, if ``source``, which errors name, is something else

    @property
    def path(self) -> Path:
        """The folder or file that it was read from: what is read later is beside its weights."""
        return self.origin or self.source

    @property
    def files(self) -> list[Path]:
        """The files that decide what the model answers."""
        if self.path.is_file():
            return [self.path]
        return sorted(
            file for file in self.path.rglob("*") if file.suffix in FILES and "checkpoints" not in file.parts
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, read anew at each call; UserError if it has none."""
        if self.read_tokenizer is None:
            raise UserError(f"{self.source}: has no tokenizer: put its tokenizer.json there")
        return self.read_tokenizer()
