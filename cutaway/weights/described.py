"""Describe a model by its files, without its weights: a folder, a config.json alone, a GGUF file.

A model that is not loaded is described too, as far as its config goes: what it is, and why it is not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway import gguf
from cutaway.errors import UserError
from cutaway.model.config import Model
from cutaway.store.reading import parsed
from cutaway.weights import family_registry, load, wrappers
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import methods

if TYPE_CHECKING:
    from cutaway.tokenizer import Tokenizer

SIZES = {  # of a config that no family reads: our word, the keys that configs have for it
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "query_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "vocabulary": ("vocab_size", "padded_vocab_size"),
    "context": ("max_position_embeddings", "n_positions", "seq_length"),
}


@dataclass(frozen=True)
class Description:
    """A model by its config: ``config`` and ``family`` are None where no family reads it, ``refused`` why.

    ``named`` is what the file calls it; ``sizes`` are those that its config states in common words;
    ``quantized`` says how its weights are packed; ``stored`` are their bytes, None where none are here.
    """

    named: str
    family: str | None
    config: Model | None
    source: Path
    refused: str = ""
    quantized: str | None = None
    stored: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, object] = field(default_factory=dict)
    chat_template: str | None = None
    read_tokenizer: Callable[[], Tokenizer] | None = None


def can(path: Path) -> bool:
    """Whether a path holds such a config: not a run's folder, an adapter's or Cutaway's own."""
    if path.is_file():
        return path.name == "config.json" or path.suffix == ".gguf"
    others = (load.CONFIG, load.ADAPTER, load.RUN, load.REWARD)
    return (path / "config.json").is_file() and not any((path / name).is_file() for name in others)


def read_description(path: Path, strict: bool = False) -> Description:
    """The description of a folder, its config.json or a GGUF file; UserError for a file that is none."""
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path)
    folder = path.parent if path.is_file() else path
    data = parsed(folder / "config.json")
    config, family, refused = None, None, ""
    try:
        part = wrappers.text_of(data, {}, folder)
        text, where = (data, folder / "config.json") if part is None else (part.config, part.where)
        fields = Fields(text, where, strict=strict)
        own = family_registry.of_hf(fields)
        family, config = own.name, own.read(fields)
    except UserError as error:
        refused = str(error)
    try:
        packed = methods.describe(data, folder)
    except UserError as error:
        packed, refused = "by a method that is not read", refused or str(error)
    weights = list(folder.glob("*.safetensors"))
    named, inner = str(data.get("model_type")), data.get("text_config")
    classes = data.get("architectures")
    if isinstance(classes, list) and classes:
        named = f"{named} ({', '.join(map(str, classes))})"
    return Description(
        named,
        family,
        config,
        folder,
        refused,
        packed,
        sum(file.stat().st_size for file in weights) if weights else None,
        _sizes(inner if isinstance(inner, dict) else data),
        chat_template=load.chat_template(folder),
        read_tokenizer=load.tokenizer_of(folder),
    )


def _gguf(path: Path) -> Description:
    file = gguf.read(path)
    fields, config, family, refused = Fields(file.metadata, path), None, None, ""
    named = fields.text("general.architecture", "unknown")
    try:
        own = family_registry.of_gguf(fields)
        family, config = own.name, own.read(Fields(file.metadata, path, f"{named}.", file.tensors))
    except UserError as error:
        refused = str(error)
    has_words = "tokenizer.ggml.tokens" in file.metadata
    return Description(
        named,
        family,
        config,
        path,
        refused,
        stored=sum(one.data.nbytes for one in file.tensors.values()),
        sizes={"parameters": sum(math.prod(one.shape) for one in file.tensors.values())},
        metadata=file.metadata,
        chat_template=fields.text("tokenizer.chat_template", None),
        read_tokenizer=load.tokenizer_of(path) if has_words else None,
    )


def _sizes(data: Mapping[str, Any]) -> dict[str, int]:
    found = {
        name: next((data[key] for key in keys if type(data.get(key)) is int), None)
        for name, keys in SIZES.items()
    }
    return {name: size for name, size in found.items() if size is not None}
