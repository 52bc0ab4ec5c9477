"""A model read from disk: a GGUF file, a Hugging Face folder, or a folder that Cutaway wrote.

What comes back holds no weights yet: they stay in their mapped files, packed, until they are asked for by
name. Sizes in configs are checked against the weights there are before anything is allocated for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cutaway import gguf
from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.model.config import Decoder, EncoderDecoder, Model
from cutaway.model.config_dict import from_dict
from cutaway.native import mapped_files
from cutaway.quantization import formats
from cutaway.store.reading import parsed, text
from cutaway.weights import (
    adapters,
    eagle3,
    family_registry,
    mtp,
    rows,
    rules,
    run_checkpoint,
    safetensors,
    tensor_maps,
    wrappers,
)
from cutaway.weights.checkpoint import CLASSIFIERS, Checkpoint, Target
from cutaway.weights.family import Family
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import methods

if TYPE_CHECKING:
    from cutaway.tokenizer import Tokenizer

CONFIG = "cutaway.json"  # in a folder whose weights have our names
ADAPTER = "adapter_config.json"  # in a folder that holds changes of another model's weights
RUN = run_checkpoint.RUN  # in the folder of a training run, whose model is the folder beside it
REWARD = "reward.safetensors"  # in a run's folder whose model gives a reward for an answer, and writes none
SAMPLING = {  # our word for a default: GGUF's, Hugging Face's
    "temperature": ("temp", "temperature"),
    "top_k": ("top_k", "top_k"),
    "top_p": ("top_p", "top_p"),
    "min_p": ("min_p", "min_p"),
    "typical_p": ("typical_p", "typical_p"),
    "repetition_penalty": ("penalty_repeat", "repetition_penalty"),
}
HALF = 5e-3  # how far a sinusoid in half precision, of a far position, is from an exact one
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_checkpoint(path: str | Path, strict: bool = False) -> Checkpoint:
    """The model at a path, or of an adapter's folder its base, changed.

    UserError if it is none, or one that cannot be honoured. Keys of a config.json without effect are warned
    of; a ``strict`` reader refuses them.
    """
    path = Path(path)
    if not path.is_dir():
        return _gguf(path)
    if (path / CONFIG).is_file():
        return _cutaway(path)
    if eagle3.is_head(path):
        raise UserError(
            f"{path}: is a head that drafts for a model, and no model itself: "
            f"`cutaway chat MODEL --draft {path}` drafts with it"
        )
    if (path / "config.json").is_file():
        return _hugging_face(path, strict)
    if (path / REWARD).is_file():
        raise UserError(
            f"{path}: is a reward model, which scores answers and writes none: use "
            f"cutaway.train.objectives.reward_model.RewardModel({str(path)!r}).scores([...])"
        )
    if (path / ADAPTER).is_file():
        return with_adapter(path)
    if run_checkpoint.is_checkpoint(path):
        return run_checkpoint.read_run(path, read_checkpoint, tokenizer_of)
    if (path / RUN).is_file():
        if not (path / "model").is_dir():
            raise UserError(f"{path}: is a training run that has saved no model yet")
        return read_checkpoint(path / "model", strict)
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
        return _gguf(found[0])
    if found:
        raise UserError(f"{path}: holds {len(found)} GGUF files: name the one you want, such as {found[0]}")
    raise UserError(f"{path}: holds no model: neither {CONFIG}, nor config.json, nor a .gguf file is in it")


def with_adapter(folder: Path) -> Checkpoint:
    """The base that an adapter's folder names, with the adapter in its weights."""
    base = adapters.extended(adapter_base(folder), folder)
    own = (folder / "modules.json").is_file() and not base.classifier  # of sentence-transformers
    found = adapters.joined(base, adapters.read_adapter(folder, base))
    return replace(found, source=folder, origin=folder if own else base.path)


def adapter_base(folder: Path) -> Checkpoint:
    """The base that an adapter's folder names."""
    return read_checkpoint(adapters.base_path(folder))


def base_and_adapter(model: Checkpoint) -> tuple[Checkpoint, adapters.Adapter]:
    """A checkpoint that was read from an adapter's folder as its base and that adapter.

    Any other is its own base, and so is one whose adapter is no low-rank change without a magnitude.
    """
    if isinstance(model.source, Path) and (model.source / ADAPTER).is_file():
        base = adapters.extended(adapter_base(model.source), model.source)
        changes = adapters.read_adapter(model.source, base)
        plain = (isinstance(one, adapters.LowRank) and one.magnitude is None for one in changes.values())
        if all(plain) and changes.keys() <= set(base.tensors):
            return base, changes
    return model, {}


# ---- GGUF --------------------------------------------------------------------------------------------------


def _gguf(path: Path) -> Checkpoint:
    file = gguf.read(path)
    _guard(file.tensors, path)
    family = family_registry.of_gguf(Fields(file.metadata, path))
    fields = Fields(file.metadata, path, f"{file.metadata['general.architecture']}.", file.tensors)
    config = family.read(fields)
    joined = family.gguf_joined and "blk.0.attn_kv_b.weight" in file.tensors
    names = family.gguf_joined if joined else family.gguf
    config = mtp.stored(config, names, file.tensors)
    numbers = _numbers(family, config, Fields(file.metadata, path))
    theirs = _without_further(file.tensors, fields, config)
    tensors = rules.load(names, config, theirs | numbers, family.ignored_gguf, path)
    has_words = "tokenizer.ggml.tokens" in file.metadata
    return Checkpoint(
        config,
        tensors,
        family.name,
        path,
        tokenizer_of(path) if has_words else None,
        Fields(file.metadata, path).text("tokenizer.chat_template", None),
        _sampling(Fields(file.metadata, path, "general.sampling."), 0),
        file.metadata,
        target=_start(fields, config) if isinstance(config, EncoderDecoder) else None,
    )


def _without_further(theirs: Mapping[str, Packed], fields: Fields, config: Model) -> dict[str, Packed]:
    """The weights but those of layers that predict further tokens where the config has none: then only their
    copies of the embedding table and the head.
    """
    further = fields.integer(rows.FURTHER, 0, low=0)
    first = len(config.blocks) if isinstance(config, Decoder) else 0
    copies = ("nextn.embed_tokens", "nextn.shared_head_head") if getattr(config, "mtp", ()) else ("",)
    names = tuple(f"blk.{first + n}.{copy}" for n in range(further) for copy in copies)
    return {name: packed for name, packed in theirs.items() if not name.startswith(names)}


def _numbers(family: Family, config: Model, fields: Fields) -> dict[str, Packed]:
    """The weights of a GGUF file that its metadata list, a number for each layer."""
    found: dict[str, Packed] = {}
    shapes = {each.theirs: each.how.shape(each.place) for each in rules.bind(family.gguf, config)}
    for key in family.gguf_numbers:
        listed = fields.get(key)
        if not isinstance(listed, np.ndarray) or listed.shape != (len(config.blocks),):
            raise fields.refusal(key, f"should list a number for each of {len(config.blocks)} layers")
        for n, number in enumerate(listed.astype(np.float32)):
            name = f"blk.{n}.{key}"
            found[name] = formats.pack(np.full(shapes[name], number, np.float32), "F32")
    return found


def _start(fields: Fields, config: EncoderDecoder) -> Target:
    """What a text begins with, in a GGUF file."""
    return Target(fields.integer("decoder_start_token_id", None, low=0, high=config.vocab - 1))


def tokenizer_of(path: Path) -> Callable[[], Tokenizer] | None:
    """What reads the tokenizer of a folder or a GGUF file; None for a folder without one."""
    words = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "source.spm")
    words += ("tiktoken.model", *(file.name for file in path.glob("*.tiktoken")))
    if path.is_dir() and not any((path / name).is_file() for name in words):
        return None
    return lambda: _tokenizer_in(path)


def _tokenizer_in(path: Path) -> Tokenizer:
    from cutaway.tokenizer import Tokenizer  # only when text is wanted

    return Tokenizer.load(path)


def _sampling(fields: Fields, column: int) -> dict[str, float | tuple[int, ...]]:
    found: dict[str, float | tuple[int, ...]] = {}
    for ours, names in SAMPLING.items():
        value = fields.number(names[column], None, low=-1.0)
        if value is not None:
            found[ours] = int(value) if ours == "top_k" else value
    return found


# ---- folders -----------------------------------------------------------------------------------------------


def _hugging_face(folder: Path, strict: bool) -> Checkpoint:
    data, where, theirs = parsed(folder / "config.json"), folder / "config.json", _safetensors(folder)
    method = methods.of_folder(data, folder, where)
    if method is not None:
        theirs = method.joined(theirs, folder)
    part = wrappers.text_of(data, theirs, folder)
    if part is not None:
        data, where, theirs = part.config, part.where, part.weights
    fields = Fields(data, where, strict=strict)
    family = family_registry.of_hf(fields)
    config = family.read(fields)
    theirs = _prefixed(_respelt(theirs, family), family.prefix)
    classifier = _classifier(data)
    if isinstance(config, Decoder) and classifier:
        # It writes no text: there is no head of its own, and the table is in its place.
        config = replace(config, tied=True, head_bias=False)
        theirs = {name: one for name, one in theirs.items() if not name.startswith(("score.", "lm_head."))}
    elif isinstance(config, Decoder):
        config, theirs = _tied(config, theirs, family)
    elif isinstance(config, EncoderDecoder):
        theirs = _without_copies(theirs, family, folder) if config.shared else theirs
        table = "embedding.weight" if config.shared else "decoder.embedding.weight"
        own, theirs = _tied(config.decoder, theirs, family, "decoder.head.weight", table)
        config = replace(config, decoder=own)
    else:
        theirs = _without_copies(theirs, family, folder)
    _check_sines(theirs, family, folder)
    unused = family.also_ignored(config) if family.also_ignored else ()
    names = part.rules(family) if part else family.hf
    if method is not None:
        names = methods.names(method, family, names, where)
    theirs = family.recut(theirs, config) if family.recut else theirs
    config = mtp.stored(config, names, theirs)
    try:
        tensors = rules.load(names, config, theirs, (*family.ignored_hf, *unused), folder, family.zeros)
    except UserError as error:
        raise UserError(f"{error}{safetensors.unread(folder)}") from None
    left_out = part.left_out if part else ()
    for note in part.notes(config) if part else ():
        warnings.warn(note, stacklevel=2)
    found = Checkpoint(config, tensors, family.name, folder, left_out=left_out, classifier=classifier)
    found = replace(found, quantized=None if method is None else method.summary)
    return _with_text(folder, found)


def _check_sines(theirs: Mapping[str, Packed], family: Family, folder: Path) -> None:
    """UserError for a table of positions that should be sinusoids, which are computed, and is another."""
    for name, base in family.sines.items():
        if name not in theirs or len(theirs[name].shape) != 2:
            continue
        stated = formats.finite(name, theirs[name])
        rows, width = stated.shape
        angles = np.arange(rows)[:, None] * base ** (-np.arange(0, width, 2) / width)
        computed = np.concatenate((np.sin(angles), np.cos(angles)), axis=1)
        if computed.shape != stated.shape or np.abs(computed - stated).max() > HALF:
            raise UserError(f"{folder}: the weight {name!r} should hold sinusoids, and holds others")


def _classifier(data: Mapping[str, object]) -> str:
    """The class of a model with a head for labels, by the name that its config gives it."""
    named = data.get("architectures")
    first = str(named[0]) if isinstance(named, list) and named else ""
    return first if first.endswith(CLASSIFIERS) else ""


def _cutaway(folder: Path) -> Checkpoint:
    data = parsed(folder / CONFIG)
    config = from_dict(data, EncoderDecoder if "decoder" in data else Decoder, f"{folder / CONFIG}: config")
    own = [rules.Rule(name, name, tensor_maps.same) for name in config.weights()]
    tensors = rules.load(own, config, _safetensors(folder), (), folder)
    return _with_text(folder, Checkpoint(config, tensors, None, folder))


def _safetensors(folder: Path) -> dict[str, Packed]:
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(found for pattern in PICKLES for found in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{pickles[0]}: is a pickle, which can run code and is never opened: "
                "get the model's .safetensors files, or convert it with transformers' save_pretrained"
            )
        raise UserError(f"{folder}: has a config but no .safetensors file with the weights")
    found = safetensors.read_safetensors(folder)
    _guard(found, folder)
    return found


def _guard(tensors: Mapping[str, Packed], path: Path) -> None:
    """Say what happened should a file be cut short while its weights are used."""
    mappings = {id(mapping): mapping for each in tensors.values() if (mapping := gguf.mapping_of(each.data))}
    for mapping in mappings.values():
        mapped_files.guard(mapping, path)


def _respelt(theirs: dict[str, Packed], family: Family) -> dict[str, Packed]:
    """The weights under the family's own spellings of their names."""
    for other, own in family.spellings:
        theirs = {name.replace(other, own): packed for name, packed in theirs.items()}
    return theirs


def _prefixed(theirs: dict[str, Packed], prefix: str) -> dict[str, Packed]:
    """A file that was saved without its head leaves out the prefix of every name."""
    if any(name.startswith(prefix) for name in theirs):
        return theirs
    own = ("lm_head.", "mtp.")
    return {name if name.startswith(own) else prefix + name: packed for name, packed in theirs.items()}


def _tied(
    config: Decoder,
    theirs: dict[str, Packed],
    family: Family,
    ours: str = "head.weight",
    of: str = "embedding.weight",
) -> tuple[Decoder, dict[str, Packed]]:
    """Leave a tied head out if the file has it as the embedding table; one that differs counts."""
    names = {rule.ours: rule.theirs for rule in family.hf}
    head, table = theirs.get(names[ours]), theirs.get(names[of])
    if not config.tied or head is None:
        return config, theirs
    if table is None or not _equal(head, table):
        return replace(config, tied=False), theirs
    return config, {name: packed for name, packed in theirs.items() if name != names[ours]}


def _without_copies(theirs: dict[str, Packed], family: Family, where: Path) -> dict[str, Packed]:
    """The weights, each of ``family.copies`` once and by its first name; UserError for copies that differ."""
    found = dict(theirs)
    for name, source in family.copies:
        if name not in found:
            continue
        packed = found.pop(name)
        if not _equal(found.setdefault(source, packed), packed):
            raise UserError(f"{where}: the weight {name!r} should repeat {source!r}, and differs")
    return found


def _equal(one: Packed, other: Packed) -> bool:
    return (one.type, one.shape) == (other.type, other.shape) and np.array_equal(one.data, other.data)


def _with_text(folder: Path, checkpoint: Checkpoint) -> Checkpoint:
    """The same with the tokenizer, the chat template and the generation_config defaults of the folder."""
    path = folder / "generation_config.json"
    fields = Fields(parsed(path) if path.is_file() else {}, path)
    defaults = _sampling(fields, 1)
    ends = fields.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    ids = tuple(end for end in ends if type(end) is int and 0 <= end < checkpoint.config.vocab)
    if len(ids) < len(ends):
        raise fields.refusal("eos_token_id", f"should be ids below {checkpoint.config.vocab}, but is {ends}")
    if ids:
        defaults["eos_ids"] = ids
    target = (
        _target(folder, fields, checkpoint.config) if isinstance(checkpoint.config, EncoderDecoder) else None
    )
    return replace(
        checkpoint,
        read_tokenizer=tokenizer_of(folder),
        chat_template=chat_template(folder),
        defaults=defaults,
        target=target,
    )


def _target(folder: Path, fields: Fields, config: EncoderDecoder) -> Target:
    """How a text begins: what generation_config.json says, else config.json."""
    path = folder / "config.json"
    older = Fields(parsed(path) if path.is_file() else {}, path)

    def id(key: str) -> int | None:
        where = fields if fields.get(key) is not None else older
        return where.integer(key, None, low=0, high=config.vocab - 1)

    where = fields if fields.get("bad_words_ids") is not None else older
    bad = where.get("bad_words_ids") or []
    if not isinstance(bad, list) or not all(isinstance(one, list) and len(one) == 1 for one in bad):
        raise where.refusal("bad_words_ids", "should list ids one by one: words of several are not read")
    never = tuple(one for (one,) in bad)
    if any(type(one) is not int or not 0 <= one < config.vocab for one in never):
        raise where.refusal("bad_words_ids", f"should be ids below {config.vocab}, but is {bad}")
    return Target(id("decoder_start_token_id"), id("forced_bos_token_id"), never)


def chat_template(folder: Path) -> str | None:
    """The chat template of a folder, by itself or in a JSON file."""
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        return text(alone)
    for name in ("chat_template.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        template = parsed(folder / name).get("chat_template")
        if isinstance(template, list):
            named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None
