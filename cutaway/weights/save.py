"""A model written to disk: a GGUF file, or a folder of safetensors that Hugging Face's transformers loads.

Without a ``type`` nothing is rounded. In GGUF each weight keeps the type it has, blocks and all; a folder
cannot hold blocks, so there they become F32, and F32, F16 and BF16 stay. Vectors (norms, biases), learned
positions and what routes tokens to experts are always F32 in GGUF, as llama.cpp wants them. With a ``type``
all matrices become it, and the result notes these exceptions:

- the matrix that makes the logits (the head, or the embedding table where it is the head) is Q8_0 for Q4_0
  and Q4_1;
- a matrix whose rows are not whole blocks of 32 is F16 instead.

A model that no family can describe is written as a Cutaway folder: our names, and its config in
``cutaway.json``.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway import gguf
from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.gguf import TYPES, Later, Packed
from cutaway.gguf.architectures import OWN_HEAD, SQUARE, WINDOWED
from cutaway.layers.config import MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder, EncoderDecoder, Model
from cutaway.model.config_dict import to_dict
from cutaway.model.kinds import kind_of
from cutaway.position.scaling import Factors, Llama3, LongRoPE, YaRN
from cutaway.quantization import formats
from cutaway.store.files import Bytes, Progress, atomic_folder, check_file, check_overwrite, silent
from cutaway.weights import classifier, families, lacking, pooling, rotary, rules, safetensors
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.family import Family
from cutaway.weights.fields import Fields
from cutaway.weights.lacking import Difference
from cutaway.weights.load import CONFIG, SAMPLING, read
from cutaway.weights.rules import WHOLE, Tensors

if TYPE_CHECKING:
    from cutaway.tokenizer import Tokenizer

FORMATS = {"safetensors": ("F32", "F16", "BF16"), "gguf": ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")}
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9}
FILE_TYPES |= {"Q2_K": 10, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18}
FILE_TYPES |= {"IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32}
TYPED = ("bert", "nomic-bert", "jina-bert-v3")
SHARD = 5_000_000_000
# Of one Hugging Face folder into another.
_COPIED = """tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json added_tokens.json
vocab.json vocab.txt merges.txt tekken.json tiktoken.model qwen.tiktoken chat_template.jinja
chat_template.json generation_config.json modules.json sentence_bert_config.json
config_sentence_transformers.json 1_Pooling/config.json"""
_DENSE = [f"{n}_Dense/{name}" for n in (2, 3, 4) for name in ("config.json", "model.safetensors")]
COPIED = [*_COPIED.split(), *_DENSE]
# What is a whole tokenizer for transformers too, with the folder's other files; of any other a tokenizer.json
# is made.
_WHOLE_TOKENIZERS = ("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("vocab.txt",)
_ROLES = [f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]


@dataclass(frozen=True)
class Saved:
    """What was written: where, as which format and family, tensors by type, and notes."""

    path: Path
    format: str
    family: str | None
    types: dict[str, int]
    nbytes: int
    notes: tuple[str, ...]


def write(
    target: str | Path,
    checkpoint: Checkpoint,
    format: str | None = None,
    type: str | None = None,
    *,
    file_type: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Saved:
    """Writes a model whole or not at all; ``format`` None goes by the target's name.

    ``type``: one of ``FORMATS[format]``, or None to keep what is there. ``file_type``: GGUF's number of
    a mix of types, else that of most matrices. ``progress`` counts bytes.
    UserError if the target exists (unless ``force``), or if the format cannot describe the model.
    """
    target = Path(target)
    format = (format or ("gguf" if target.suffix == ".gguf" else "safetensors")).lower()
    if format not in FORMATS:
        raise UserError(f"there is no format {format!r} to write: use {' or '.join(FORMATS)}")
    type = None if type is None else formats.type_named(type, FORMATS[format], f"{format} is not written as")
    check_free(target, format, force)
    if format == "gguf":
        return _write_gguf(target, checkpoint, type, file_type, force, progress)
    return _write_folder(target, checkpoint, type, force, progress)


def check_free(target: Path, format: str, force: bool) -> None:
    """UserError if the target is there and may not be replaced, or is no name for a model of this format."""
    if target.suffix in (".safetensors", ".bin"):
        raise UserError(f"{target}: a model is written as a folder of safetensors: give a folder's name")
    (check_file if format == "gguf" else check_overwrite)(target, force)
    if format == "gguf" and target.is_dir():
        raise UserError(f"{target}: is a folder: give a file's name")
    models = (target / CONFIG, target / "config.json")
    if target.is_dir() and any(target.iterdir()) and not any(file.exists() for file in models):
        raise UserError(f"{target}: is a folder that holds no model, and is not replaced")


# ---- which type each weight gets ---------------------------------------------------------------------------


def retyped(
    ours: Tensors,
    choose: Callable[[str, Packed | Later], str],
    pack: Callable[[str, Packed, str], Packed] | None = None,
) -> Tensors:
    """Weights that become the type chosen for each when they are made, by ``pack(name, packed, type)``."""

    def later(name: str, entry: Packed | Later) -> Later:
        if isinstance(entry, rules.Absorbed):
            return rules.of_absorbed(later(name, entry.stored), entry.shape[0] // entry.stored.shape[1])
        wanted = choose(name, entry)

        def make() -> Packed:
            packed = rules.made(entry)
            try:
                if pack is not None:
                    return pack(name, packed, wanted)
                return packed if packed.type == wanted else formats.pack(formats.unpack(packed), wanted)
            except UserError as problem:
                raise UserError(f"the weight {name!r} cannot be stored as {wanted}: {problem}") from None

        return Later(wanted, entry.shape, make)

    return Tensors({name: later(name, ours.later(name)) for name in ours})


def makes_logits(name: str, config: Model) -> bool:
    """Whether this weight is the head, or the embedding table where it is the head."""
    if isinstance(config, EncoderDecoder):
        own = "embedding.weight" if config.shared else "decoder.embedding.weight"
        return name == (own if config.decoder.tied else "decoder.head.weight")
    return isinstance(config, Decoder) and name == ("embedding.weight" if config.tied else "head.weight")


def fitting(entry: Packed | Later, type: str, smaller: Mapping[str, str], notes: Counter[str]) -> str:
    """The type, or the first ``smaller`` one whose blocks the rows fill, else F16."""
    columns, fits = entry.shape[-1], type
    while columns % TYPES[fits].block:
        fits = smaller.get(fits, "F16")
    if fits != type:
        block = TYPES[type].block
        notes[f"matrices stored as {fits} instead of {type} (rows not of whole blocks of {block})"] += 1
    if entry.type not in WHOLE and entry.type != fits:
        notes[f"matrices rounded again, from {entry.type} to {fits}"] += 1
    return fits


def _gguf_type(name: str, entry: Packed | Later, type: str | None, config: Model, notes: Counter[str]) -> str:
    if rules.is_kept_whole(name, entry.shape):
        return "F32"
    if type is None:
        return entry.type
    if makes_logits(name, config) and type in ("Q4_0", "Q4_1"):
        notes[f"the matrix that makes the logits is Q8_0, since {type} would cost it too much"] += 1
        type = "Q8_0"
    return fitting(entry, type, {}, notes)


class Rounding:
    """Packs weights as ``retyped`` does, and keeps the largest change, as a part of its matrix's largest."""

    def __init__(self) -> None:
        self.change = 0.0

    def pack(self, name: str, packed: Packed, wanted: str) -> Packed:
        if packed.type == wanted:
            return packed
        values = formats.unpack(packed)
        made = formats.pack(values, wanted)
        if values.ndim > 1 and (largest := float(np.abs(values).max(initial=0))):
            self.change = max(self.change, float(np.abs(formats.unpack(made) - values).max()) / largest)
        return made

    def note(self, checkpoint: Checkpoint, type: str | None, notes: Counter[str]) -> None:
        """What the rounding of a quantised folder's values changed."""
        if checkpoint.quantized and self.change:
            what = f"the values of {checkpoint.quantized}, as {type}, are at most {self.change:.2g}"
            notes[f"{what} of their matrix's largest away from what they were"] += 1


def counted(notes: Counter[str]) -> tuple[str, ...]:
    """Notes as sentences; one about matrices begins with how many."""
    return tuple(
        re.sub("^matrices", f"{count} {'matrix' if count == 1 else 'matrices'}", text)
        for text, count in notes.items()
    )


def stored_bytes(entries: Tensors) -> int:
    """The bytes that weights have as they are stored."""
    return sum(entries.later(name).nbytes for name in entries)


def _counted(entries: Tensors, target: Path, progress: Progress) -> dict[str, Packed | Later]:
    """The same, telling how far it is whenever one is made."""
    done, total = 0, stored_bytes(entries)

    def later(name: str) -> Later:
        entry = entries.later(name)

        def make() -> Packed:
            nonlocal done
            packed = entries[name]
            done += packed.nbytes
            progress(f"writing {target}", Bytes(done), Bytes(total))
            return packed

        return Later(entry.type, entry.shape, make)

    return {name: later(name) for name in entries}


def _types(entries: Tensors) -> dict[str, int]:
    return dict(Counter(entries.later(name).type for name in entries).most_common())


# ---- which family describes it -----------------------------------------------------------------------------


def _candidates(checkpoint: Checkpoint) -> list[Family]:
    """All families of such models, the model's own first."""
    first = (checkpoint.family, "llama")
    names = sorted(families.names(), key=lambda name: (name != first[0], name != first[1], name))
    return [family for family in map(families.get, names) if family.covers(checkpoint.config)]


def _difference(one: Any, other: Any, where: str) -> Difference | None:
    """Where two configs part; numbers are equal if float32 cannot tell them apart."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one.keys() | other.keys():
            found = _difference(one.get(name), other.get(name), f"{where}.{name}")
            if found:
                return found
        return None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        each = (_difference(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
        return next((found for found in each if found), None)
    if isinstance(one, float) and isinstance(other, float) and abs(one - other) <= 1e-6 * abs(one):
        return None
    return None if one == other else Difference(where, one, other)


def _levelled(config: Model) -> Any:
    """The config as plain data: Llama 3's scaling as its divisors, LongRoPE's and YaRN's as a magnitude."""

    def levelled(block: Any) -> Any:
        position = block.attention.position
        if position is None or not isinstance(position.scaling, Llama3 | Factors | LongRoPE | YaRN):
            return block
        if isinstance(position.scaling, LongRoPE):
            level = replace(position.scaling, factor=1.0, attention=position.scaling.magnitude)
        elif isinstance(position.scaling, YaRN):
            level = replace(position.scaling, attention=position.scaling.magnitude)
        else:
            level = Factors(tuple(rotary.divisors_of(position, position.scaling).astype(float).tolist()))
        position = replace(position, scaling=level)
        return replace(block, attention=replace(block.attention, position=position))

    return {**to_dict(config), "blocks": [to_dict(levelled(block)) for block in config.blocks]}


def _described(
    checkpoint: Checkpoint, describe: Callable[[Family], tuple[Any, Model]], in_gguf: bool = False
) -> tuple[Family, Any]:
    """The first family whose description reads back as the model; UserError with its own reason."""
    config = checkpoint.config
    candidates = [family for family in _candidates(checkpoint) if family.gguf or not in_gguf]
    if not config.blocks:
        raise UserError("no family describes this model (it has no layers)")
    nameless = f"llama.cpp has no architecture for {checkpoint.family}"
    if not candidates and checkpoint.family and in_gguf:
        raise UserError(nameless)
    if not candidates:
        kinds = " and ".join(sorted({kind_of(block.attention) for block in config.blocks}))
        raise UserError(
            f"GGUF has no name for {kinds} layers"
            if in_gguf
            else f"no family describes this model (its {kinds} layers are Cutaway's own)"
        )
    reason: tuple[Family, Difference | UserError] | None = None
    for family in candidates:
        try:
            entries, back = describe(family)
        except UserError as error:
            reason = reason or (family, error)
            continue
        lost = _difference(_levelled(config), _levelled(back), "config")
        if lost is None:
            return family, entries
        reason = reason or (family, lost)
    assert reason
    if not in_gguf:
        raise UserError(f"no family describes this model ({reason[1]})")
    if checkpoint.family and reason[0].name != checkpoint.family:
        raise UserError(nameless)
    raise UserError(lacking.in_gguf(reason[1], reason[0], config))


# ---- GGUF --------------------------------------------------------------------------------------------------


def folded(checkpoint: Checkpoint, notes: Counter[str], in_gguf: bool = True) -> Checkpoint:
    """The same function in a config that GGUF, or a folder, can state: what it has no keys for is in the
    weights.
    """
    family = families.get(checkpoint.family) if checkpoint.family else None
    checkpoint = _without_idle_groups(checkpoint) if in_gguf else checkpoint
    fold = family and (family.folded if in_gguf else family.unfolded)
    if fold is None:
        return checkpoint
    config, tensors, what = fold(checkpoint.config, checkpoint.tensors)
    if config == checkpoint.config:
        return checkpoint
    notes[what] += 1
    return replace(checkpoint, config=config, tensors=tensors)


def _without_idle_groups(checkpoint: Checkpoint) -> Checkpoint:
    """The same with one group of experts where all groups are chosen, which llama.cpp does not open."""

    def plain(block: Block) -> Block:
        mlp = block.mlp
        if not isinstance(mlp, MoE) or mlp.router.groups == 1 or mlp.router.top_groups < mlp.router.groups:
            return block
        return replace(block, mlp=replace(mlp, router=replace(mlp.router, groups=1, top_groups=1)))

    if not isinstance(checkpoint.config, Decoder):
        return checkpoint
    blocks = tuple(map(plain, checkpoint.config.blocks))
    return replace(checkpoint, config=replace(checkpoint.config, blocks=blocks))


def _write_gguf(
    target: Path,
    checkpoint: Checkpoint,
    type: str | None,
    file_type: int | None,
    force: bool,
    progress: Progress,
) -> Saved:
    notes: Counter[str] = Counter()
    if checkpoint.classifier and isinstance(checkpoint.config, Decoder):
        raise UserError(
            f"{target}: cannot be written as GGUF: a {checkpoint.classifier} has no head that scores tokens"
        )
    if checkpoint.classifier:
        notes["the head for labels is left out: GGUF has the encoder alone"] += 1
    try:
        checkpoint = folded(checkpoint, notes)
    except UserError as error:
        raise UserError(f"{target}: cannot be written as GGUF: {error}") from None
    config = checkpoint.config
    whole = rules.all_absorbed(checkpoint.tensors, config)
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
        family, (entries, words) = _described(checkpoint, describe, in_gguf=True)
    except UserError as error:
        raise UserError(f"{target}: cannot be written as GGUF: {error}") from None
    architecture = family.gguf_name_of(config)
    types = _types(entries)
    metadata = {"general.architecture": architecture, **_general(checkpoint, types, file_type)}
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
    gguf.write(target, metadata, _counted(entries, target, progress), force=force)
    nbytes = target.stat().st_size
    rounding.note(checkpoint, type, notes)
    return Saved(target, "gguf", family.name, types, nbytes, counted(notes))


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
    if architecture in TYPED:  # whose number of token types llama.cpp asks for
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


# ---- folders -----------------------------------------------------------------------------------------------


def _write_folder(
    target: Path, checkpoint: Checkpoint, type: str | None, force: bool, progress: Progress
) -> Saved:
    notes: Counter[str] = Counter()
    checkpoint = folded(checkpoint, notes, in_gguf=False)
    rounding = Rounding()
    pack = rounding.pack if checkpoint.quantized else None
    whole = type or "F32"
    ours = retyped(checkpoint.tensors, lambda _, each: each.type if each.type in WHOLE else whole, pack)
    unpacked = {checkpoint.tensors.later(name).type for name in ours} - WHOLE.keys()
    if unpacked:
        notes[
            f"{', '.join(sorted(unpacked))} weights are unpacked to {type or 'F32'}: "
            "safetensors holds no blocks"
        ] += 1

    def describe(family: Family) -> tuple[Any, Model]:
        entries = family.write(checkpoint.config, gguf=False)
        rules.bind(family.hf, checkpoint.config)
        return entries, family.read(Fields(json.loads(json.dumps(entries)), "config.json"))

    if checkpoint.classifier:
        _check_as_read(checkpoint)
    own, head = classifier.kept(checkpoint) if checkpoint.classifier else ({}, {})
    try:
        family, entries = _labelled(checkpoint, own) if own else _described(checkpoint, describe)
        theirs = rules.save(family.hf, checkpoint.config, ours)
    except UserError as error:
        notes[f"a Cutaway folder, which only Cutaway reads: {error}"] += 1
        family, entries, theirs = None, to_dict(checkpoint.config), ours
    if type is not None:
        theirs = retyped(theirs, lambda *_: type, pack)
    theirs = Tensors({name: theirs.later(name) for name in theirs} | head) if head else theirs
    with atomic_folder(target, force=force) as folder:
        # Transformers asks for this entry in every file it opens.
        safetensors.write(
            folder / "model.safetensors", _counted(theirs, target, progress), {"format": "pt"}, SHARD
        )
        if family is not None:
            ids = {
                key: id
                for key, id in _ids(checkpoint).items()
                if id is not None or key not in family.whole_ids
            }
            entries = ids | entries | {"torch_dtype": _torch_type(theirs)}
        _write_json(folder / (CONFIG if family is None else "config.json"), entries)
        _write_words(folder, checkpoint, notes)
    rounding.note(checkpoint, type, notes)
    nbytes = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    name = None if family is None else family.name
    return Saved(target, "safetensors" if family else "cutaway", name, _types(theirs), nbytes, counted(notes))


def _check_as_read(checkpoint: Checkpoint) -> None:
    """UserError for a classifier that its folder's config.json does not describe any more."""
    path = checkpoint.path
    if not (path / "config.json").is_file() or read(path).config != checkpoint.config:
        raise UserError(f"{checkpoint.source}: a {checkpoint.classifier} is written as it was read alone")


def _labelled(checkpoint: Checkpoint, config: dict[str, Any]) -> tuple[Family, dict[str, Any]]:
    """The family of a classifier, and its config.json without the type of its weights."""
    assert checkpoint.family  # a folder that transformers wrote
    return families.get(checkpoint.family), {key: one for key, one in config.items() if key != "dtype"}


def _torch_type(entries: Tensors) -> str:
    types = _types(entries)
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[next(iter(types))]


def _ids(checkpoint: Checkpoint) -> dict[str, object]:
    """The special ids that transformers looks for in config.json; its own defaults would be wrong."""
    begin = {} if checkpoint.target is None else checkpoint.target.entries()
    if checkpoint.read_tokenizer is None:
        ends = checkpoint.defaults.get("eos_ids")
        ends = list(ends) if isinstance(ends, tuple) else None
        return {"bos_token_id": None, "eos_token_id": ends, "pad_token_id": None, **begin}
    tokenizer = checkpoint.tokenizer
    own = {"bos_token_id": tokenizer.bos, "eos_token_id": _ends(checkpoint), "pad_token_id": tokenizer.pad}
    return own | begin


def _ends(checkpoint: Checkpoint) -> int | list[int] | None:
    ends = checkpoint.defaults.get("eos_ids") or checkpoint.tokenizer.eos_ids
    ends = list(ends) if isinstance(ends, tuple | list) else []
    return ends[0] if len(ends) == 1 else ends or None


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_words(folder: Path, checkpoint: Checkpoint, notes: Counter[str]) -> None:
    """Tokenizer, template and sampling defaults: copied from a folder, made from GGUF."""
    if checkpoint.source.is_dir():
        for name in COPIED:
            if (checkpoint.source / name).is_file():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(checkpoint.source / name, folder / name)
        if any(all((folder / name).is_file() for name in names) for names in _WHOLE_TOKENIZERS):
            return
    if checkpoint.chat_template is not None:
        (folder / "chat_template.jinja").write_text(checkpoint.chat_template, "utf-8")
    if checkpoint.read_tokenizer is None:
        notes["the model has no tokenizer, so none is in the folder"] += 1
        return
    tokenizer = checkpoint.tokenizer
    tokenizer.save(folder / "tokenizer.json")
    _write_json(
        folder / "tokenizer_config.json",
        _roles(tokenizer)
        | _stated_roles(folder)
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": checkpoint.config.context,
            "clean_up_tokenization_spaces": False,
            "add_bos_token": tokenizer.add_bos,
            "add_eos_token": tokenizer.add_eos,
        },
    )
    sampling = {SAMPLING[name][1]: value for name, value in checkpoint.defaults.items() if name in SAMPLING}
    sampled = {"do_sample": True} if sampling else {}
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": tokenizer.bos,
            "eos_token_id": _ends(checkpoint),
            "pad_token_id": tokenizer.pad,
            **sampled,
            **sampling,
        },
    )


def _roles(tokenizer: Tokenizer) -> dict[str, str]:
    """The token of each role; BERT's words begin with a token for the class, and separators end them."""
    spec = tokenizer.spec
    begin, end = ("cls", "sep") if spec.model == "WordPiece" else ("bos", "eos")
    named = {begin: spec.bos, end: spec.eos, "unk": spec.unknown, "pad": spec.pad, "mask": spec.mask}
    return {f"{name}_token": tokenizer.token_text(id) for name, id in named.items() if id is not None}


def _stated_roles(folder: Path) -> dict[str, Any]:
    """The roles that a folder's tokenizer_config.json names, if it has one."""
    from cutaway.tokenizer.formats import folder as tokenizer_folder  # only when a tokenizer is written

    found = tokenizer_folder.optional(folder, "tokenizer_config.json").value
    return {key: found[key] for key in (*_ROLES, "additional_special_tokens") if key in found}
