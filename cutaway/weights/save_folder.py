"""A model as a folder of safetensors, with the config, tokenizer and template that transformers loads."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.errors import UserError
from cutaway.model.config import Model
from cutaway.model.config_dict import to_dict
from cutaway.store.files import Progress, atomic_folder
from cutaway.weights import classifier, family_registry, rules, safetensors
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.family import Family
from cutaway.weights.family_match import described, folded
from cutaway.weights.fields import Fields
from cutaway.weights.load import CONFIG, SAMPLING, read_checkpoint
from cutaway.weights.named_tensors import WHOLE, Tensors
from cutaway.weights.retype import Rounding, retyped, types, with_progress

if TYPE_CHECKING:
    from cutaway.tokenizer import Tokenizer

SHARD = 5_000_000_000
# Copied from one Hugging Face folder into another.
_COPIED = """tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json added_tokens.json
vocab.json vocab.txt merges.txt tekken.json tiktoken.model qwen.tiktoken chat_template.jinja
chat_template.json generation_config.json modules.json sentence_bert_config.json
config_sentence_transformers.json 1_Pooling/config.json"""
_DENSE = [f"{n}_Dense/{name}" for n in (2, 3, 4) for name in ("config.json", "model.safetensors")]
COPIED = [*_COPIED.split(), *_DENSE]
# With the folder's other files, each is a whole tokenizer for transformers too. For any other
# one, a tokenizer.json is made.
_WHOLE_TOKENIZERS = ("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("vocab.txt",)
_ROLES = [f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]


def write_folder(
    target: Path, checkpoint: Checkpoint, type: str | None, force: bool, progress: Progress
) -> tuple[str | None, dict[str, int], Counter[str]]:
    """Writes the folder: the family's name, None for a Cutaway folder; tensors by type; notes."""
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
        family, entries = _labelled(checkpoint, own) if own else described(checkpoint, describe)
        theirs = rules.save(family.hf, checkpoint.config, ours)
    except UserError as error:
        notes[f"a Cutaway folder, which only Cutaway reads: {error}"] += 1
        family, entries, theirs = None, to_dict(checkpoint.config), ours
    if type is not None:
        theirs = retyped(theirs, lambda *_: type, pack)
    theirs = Tensors({name: theirs.later(name) for name in theirs} | head) if head else theirs
    with atomic_folder(target, force=force) as folder:
        # Transformers asks for this entry in every file it opens.
        safetensors.write_safetensors(
            folder / "model.safetensors", with_progress(theirs, target, progress), {"format": "pt"}, SHARD
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
    return None if family is None else family.name, types(theirs), notes


def _check_as_read(checkpoint: Checkpoint) -> None:
    """UserError for a classifier that its folder's config.json does not describe any more."""
    path = checkpoint.path
    if not (path / "config.json").is_file() or read_checkpoint(path).config != checkpoint.config:
        raise UserError(f"{checkpoint.source}: a {checkpoint.classifier} is written as it was read alone")


def _labelled(checkpoint: Checkpoint, config: dict[str, Any]) -> tuple[Family, dict[str, Any]]:
    """The family of a classifier, and its config.json without the type of its weights."""
    assert checkpoint.family  # a folder that transformers wrote
    return family_registry.get(checkpoint.family), {key: one for key, one in config.items() if key != "dtype"}


def _torch_type(entries: Tensors) -> str:
    found = types(entries)
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[next(iter(found))]


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
