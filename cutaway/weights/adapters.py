"""Adapters (LoRA and its kin): read from PEFT's folders and GGUF files, merged into a checkpoint, written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cutaway import store
from cutaway.errors import UserError
from cutaway.gguf import Later, Packed
from cutaway.model.config_dict import from_dict
from cutaway.model.context import ContextExtension
from cutaway.quantization import formats
from cutaway.store.files import atomic_folder
from cutaway.store.reading import parsed
from cutaway.weights import changes, gguf_adapters, peft_head, peft_read
from cutaway.weights.changes import Adapter, LowRank, Scaled
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors
from cutaway.weights.peft_config import CONFIG, EXTENSION
from cutaway.weights.peft_names import untied
from cutaway.weights.peft_write import save


def read_adapter(folder: str | Path, base: Checkpoint) -> Adapter:
    """The adapter of a PEFT folder, or of llama.cpp's GGUF file, for ``base``. UserError for what is not
    read, or does not fit the base.

    PEFT changes a tied table and head apart, unless its config says ``ensure_weight_tying``: an adapter of
    either then has a change of ``head.weight``, which ``joined`` unties.
    """
    folder = Path(folder)
    if folder.suffix == ".gguf" and not folder.is_dir():
        return gguf_adapters.read_gguf_adapter(folder, base)
    check_folder(folder)
    return peft_read.read_peft_adapter(folder, base)


def extended(base: Checkpoint, folder: str | Path) -> Checkpoint:
    """The base with the head for labels that the adapter holds, and the positions that it was trained with
    (``model/context.py``).
    """
    path = Path(folder) / CONFIG
    if path.is_file() and (head := peft_head.read_peft_head(path.parent, base)):
        base = replace(base, head={**base.head, **head})
    entry = parsed(path).get(EXTENSION) if path.is_file() else None
    if entry is None:
        return base
    extension = from_dict(entry, ContextExtension, f"{path}: {EXTENSION}")
    return replace(base, config=extension.extended(base.config))


def stacked(first: Adapter, second: Adapter) -> Adapter:
    """Both low-rank changes as one of the sum of their ranks; UserError where one is of another kind."""
    made = {**first, **second}
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        if not (isinstance(one, LowRank) and isinstance(other, LowRank)) or other.magnitude is not None:
            raise UserError(f"{name} is changed by two adapters, of which one is no LoRA: merge the first")
        b = np.concatenate([one.scale * one.b, other.scale * other.b], axis=1, dtype=np.float32)
        made[name] = LowRank(np.concatenate([one.a, other.a]), b, 1.0)
    return made


def base_path(folder: Path) -> Path:
    """The path of the base that an adapter's folder names; it is pulled if it is not here."""
    if folder.suffix == ".gguf" and not folder.is_dir():
        raise UserError(f"{folder}: a GGUF adapter names no base model: name it by --model")
    check_folder(folder)
    name = parsed(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{folder / CONFIG}: names no base model: load the base, and give this as its adapter"
        )
    return store.resolve(name, pull=True)


class Rounding(NamedTuple):
    """What rounding does to one changed weight.

    ``error``: |written - exact| / |exact - base|, above 1 where it outweighs the change. ``changed``: how
    many values the adapter changes; ``lost``: how many of them by less than half a step of the type.
    """

    error: float
    changed: int
    lost: int


def rounding(base: Checkpoint, adapter: Adapter, written: Checkpoint) -> dict[str, Rounding]:
    """What the type that a model was written in does to each changed weight."""
    if "head.weight" in adapter:
        base = untied(base)
    found: dict[str, Rounding] = {}
    for name, change in adapter.items():
        before, stored = formats.unpack(base.tensors[name]), written.tensors[name]
        exact = change(before)
        moved = np.abs(exact - before)
        size, away = (float(np.linalg.norm(each)) for each in (moved, formats.unpack(stored) - exact))
        lost = int(((moved > 0) & (moved < formats.steps(stored) / 2)).sum())
        found[name] = Rounding(away / size if size else 0.0, int(np.count_nonzero(moved)), lost)
    return found


class AdaptedTensors(Tensors):
    """A base's weights with an adapter merged into them, each computed in float32 when it is asked for.

    ``base`` and ``adapter`` are both apart, for an engine that applies the one beside the other."""

    def __init__(self, base: Tensors, adapter: Adapter) -> None:
        self.base, self.adapter = base, adapter

        def later(name: str) -> Packed | Later:
            entry, change = base.later(name), adapter.get(name)
            if change is None:
                return entry
            return Later("F32", entry.shape, lambda: formats.pack(change(formats.unpack(base[name])), "F32"))

        super().__init__({name: later(name) for name in base})


def digest(checkpoint: Checkpoint) -> str:
    """What tells apart checkpoints of the same files: a hash of the config, the adapter and its head."""
    import hashlib

    tensors = checkpoint.tensors
    adapter = tensors.adapter if isinstance(tensors, AdaptedTensors) else {}
    made = hashlib.blake2b(repr(checkpoint.config).encode() + changes.digest(adapter), digest_size=16)
    for name, packed in sorted(checkpoint.head.items()):
        made.update(f"{name} {packed.type} {packed.shape}\n".encode() + packed.data.tobytes())
    return made.hexdigest()


def joined(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The base with the adapter's changes in its weights; untied where they are of the head alone."""
    if "head.weight" in adapter:
        base = untied(base)
    return replace(base, tensors=AdaptedTensors(base.tensors, adapter))


def write_adapter(
    folder: str | Path,
    adapter: Mapping[str, LowRank] | Mapping[str, Scaled],
    base: Checkpoint,
    name: str,
    force: bool = False,
) -> None:
    """Write low-rank changes, or scaled ones (IA3), as a new folder that PEFT and ``read`` open.

    ``name`` is the base's, for ``base_model_name_or_path``. Raises UserError for a base that no family
    describes.
    """
    with atomic_folder(folder, force=force) as made:
        save(made, adapter, base, name)


def check_folder(folder: Path) -> None:
    """UserError unless the folder holds an adapter."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: holds no adapter: there is no {CONFIG} in it")
