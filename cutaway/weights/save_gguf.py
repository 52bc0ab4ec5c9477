"""A model as one GGUF file: weights by llama.cpp's names; config, tokenizer and template as metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cutaway import gguf
from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.gguf import Later, Packed
from cutaway.gguf.architectures import OWN_HEAD, SQUARE, WINDOWED
from cutaway.model.config import Decoder, Encoder, Model
from cutaway.model.kinds import kind_of
from cutaway.quantization import formats
from cutaway.store.files import Progress
from cutaway.weights import family_registry, mtp, named_tensors, pooling, rotary, rules
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.family import Family
from cutaway.weights.family_match import described, folded
from cutaway.weights.fields import Fields
from cutaway.weights.load import SAMPLING
from cutaway.weights.named_tensors import WHOLE, Tensors
from cutaway.weights.retype import FILE_TYPES, Rounding, fitting, makes_logits, retyped, types, with_progress

TYPED = ("bert", "nomic-bert", "jina-bert-v3")


def write_gguf_model(
    target: Path,
    checkpoint: Checkpoint,
    type: str | None,
    file_type: int | None,
    force: bool,
    progress: Progress,
) -> tuple[str, dict[str, int], Counter[str]]:
    """Write the file: the family's name, tensors by type, and notes. ``file_type`` names a mix of types."""
    notes: Counter[str] = Counter()
    if checkpoint.classifier and isinstance(checkpoint.config, Decoder):
        raise UserError(
            f"{target}: cannot be written as GGUF: a {checkpoint.classifier} has no head that scores tokens"
        )
    if checkpoint.classifier:
        notes["the head for labels is left out: GGUF has the encoder alone"] += 1
    checkpoint = _readable(checkpoint, notes)
    try:
        checkpoint = folded(checkpoint, notes)
    except UserError as error:
        raise UserError(f"{target}: cannot be written as GGUF: {error}") from None
    config = checkpoint.config
    whole = named_tensors.all_absorbed(checkpoint.tensors, config)
    rounding = Rounding()
    pack = rounding.pack if checkpoint.quantized else None
    ours = retyped(whole, lambda name, entry: _gguf_type(name, entry, type, config, notes), pack)

    def describe(family: Family) -> tuple[Any, Model]:
        theirs, architecture = rules.save(family.gguf, config, ours), family.gguf_name_of(config)
        _check_architecture(architecture, config)
        extras = rotary.gguf_extras(config, architecture)
        extras = {name: one for name, one in extras.items() if name in family.ignored_gguf}
        entries = Tensors({name: theirs.later(name) for name in theirs} | extras)
        words = {name: _plain(value) for name, value in family.write(config, gguf=True).items()}
        shapes = {name: entries.later(name) for name in entries}
        return (entries, words), family.read(Fields(words, "GGUF", tensors=shapes))

    try:
        family, (entries, words) = described(checkpoint, describe, in_gguf=True)
    except UserError as error:
        raise UserError(f"{target}: cannot be written as GGUF: {error}") from None
    architecture = family.gguf_name_of(config)
    found = types(entries)
    metadata = {"general.architecture": architecture, **_general(checkpoint, found, file_type)}
    metadata |= {f"{architecture}.{name}": value for name, value in words.items()}
    metadata |= _words(checkpoint, notes)
    if checkpoint.target is not None and checkpoint.target.start is not None:
        metadata[f"{architecture}.decoder_start_token_id"] = np.uint32(checkpoint.target.start)
    if isinstance(config, Encoder):
        more, layers = _after_encoder(checkpoint, config, architecture)
        metadata, entries = metadata | more, Tensors({n: entries.later(n) for n in entries} | layers)
    for key in family.gguf_numbers:
        listed = [formats.unpack(entries[f"blk.{n}.{key}"]).reshape(()) for n in range(len(config.blocks))]
        metadata[key] = np.array(listed, np.float32)
    in_words = {f"blk.{n}.{key}" for n in range(len(config.blocks)) for key in family.gguf_numbers}
    entries = Tensors({name: entries.later(name) for name in entries if name not in in_words})
    gguf.write(target, metadata, with_progress(entries, target, progress), force=force)
    rounding.note(checkpoint, type, notes)
    return family.name, found, notes


def _readable(checkpoint: Checkpoint, notes: Counter[str]) -> Checkpoint:
    """The model without heads that predict further tokens where llama.cpp's architecture has no names."""
    config, family = checkpoint.config, checkpoint.family
    if not isinstance(config, Decoder) or not config.mtp:
        return checkpoint
    if family is not None and mtp.has_names(family_registry.get(family).gguf):
        return checkpoint
    notes["its heads that predict further tokens (MTP) are left out: llama.cpp has no names for them"] += 1
    config = replace(config, mtp=())
    kept = Tensors({name: checkpoint.tensors.later(name) for name in config.weights()})
    return replace(checkpoint, config=config, tensors=kept)


def _gguf_type(name: str, entry: Packed | Later, type: str | None, config: Model, notes: Counter[str]) -> str:
    if named_tensors.is_kept_whole(name, entry.shape):
        return "F32"
    if type is None:
        return entry.type
    if makes_logits(name, config) and type in ("Q4_0", "Q4_1"):
        notes[f"the matrix that makes the logits is Q8_0, since {type} would cost it too much"] += 1
        type = "Q8_0"
    return fitting(entry, type, {}, notes)


def _check_architecture(architecture: str, config: Model) -> None:
    """UserError for a model that llama.cpp's architecture does not open, whatever its metadata say."""
    blocks = getattr(config, "blocks", ())
    heads = [block.attention for block in blocks if isinstance(block.attention, Heads)]
    square = all(of.heads * of.key_size == config.width for of in heads)
    windows = any(kind_of(of) == "local" for of in heads)
    refused = {
        "heads that are not as wide together as the model": architecture in SQUARE and not square,
        "the embedding table as the head": architecture in OWN_HEAD and getattr(config, "tied", False),
        "a model without a window": architecture in WINDOWED and not windows,
    }
    for what, there in refused.items():
        if there:
            raise UserError(f"{what} is not supported in GGUF by llama.cpp's {architecture}")


def _after_encoder(
    checkpoint: Checkpoint, config: Encoder, architecture: str
) -> tuple[dict[str, object], dict[str, Packed]]:
    """What a GGUF file has of a text's vector: its pooling, and EmbeddingGemma's dense layers after it."""
    metadata: dict[str, object] = {}
    if (kind := pooling.stated(checkpoint)) is not None:
        number = next(number for number, name in pooling.GGUF.items() if name == kind)
        metadata[f"{architecture}.pooling_type"] = np.uint32(number)
    if architecture in TYPED:  # llama.cpp needs the number of token types
        metadata["tokenizer.ggml.token_type_count"] = np.uint32(max(config.segments, 1))
    layers = pooling.dense(checkpoint)
    if not layers:
        return metadata, {}
    plain = all(layer.bias is None and layer.named == "Identity" for layer in layers)
    if architecture != pooling.WITH_DENSE or len(layers) != 2 or not plain:
        raise UserError("these dense layers after the pooling are not supported in GGUF")
    weights = dict(zip(pooling.IN_GGUF, (layer.weight for layer in layers), strict=True))
    for name, weight in weights.items():
        metadata[f"{architecture}.{name}_feat_in"] = np.uint32(weight.shape[1])
        metadata[f"{architecture}.{name}_feat_out"] = np.uint32(weight.shape[0])
    return metadata, {f"{name}.weight": formats.pack(weight, "F32") for name, weight in weights.items()}


def _plain(value: object) -> object:
    return np.float32(value) if isinstance(value, float) else value


def _general(checkpoint: Checkpoint, types: Mapping[str, int], file_type: int | None) -> dict[str, object]:
    """The source's general metadata, updated for this file."""
    kept = {
        key: checkpoint.metadata[key]
        for key in checkpoint.metadata
        if key.startswith("general.") and key not in ("general.architecture", "general.file_type")
    }
    own: dict[str, object] = {"general.type": "model", "general.name": checkpoint.source.stem}
    matrices = {type: count for type, count in types.items() if type != "F32"} or {"F32": 1}
    most = max(matrices, key=lambda type: matrices[type])
    if file_type is not None or most in FILE_TYPES:
        own["general.file_type"] = FILE_TYPES[most] if file_type is None else file_type
    elif "general.file_type" in checkpoint.metadata:
        own["general.file_type"] = checkpoint.metadata["general.file_type"]
    if any(type not in WHOLE for type in types):
        own["general.quantization_version"] = 2
    sampling = {
        f"general.sampling.{SAMPLING[name][0]}": value
        for name, value in checkpoint.defaults.items()
        if name in SAMPLING and name != "typical_p"
    }
    return own | sampling | kept


def _words(checkpoint: Checkpoint, notes: Counter[str]) -> dict[str, object]:
    """The tokenizer and the chat template: copied from a GGUF file, made from anything else."""
    words: dict[str, object] = {
        key: checkpoint.metadata[key] for key in checkpoint.metadata if key.startswith("tokenizer.")
    }
    if not words and checkpoint.read_tokenizer is None:
        notes["the model has no tokenizer, so none is in the file, which engines may refuse"] += 1
        return {"tokenizer.ggml.model": "none"}
    if not words:
        try:
            words = dict(checkpoint.tokenizer.to_gguf(checkpoint.config.vocab))
        except UserError as error:
            raise UserError(f"{checkpoint.source}: {error}") from None
    if checkpoint.chat_template is not None:
        words["tokenizer.chat_template"] = checkpoint.chat_template
    return words
