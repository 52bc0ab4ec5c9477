"""The model of one checkpoint of a training run: RUN/checkpoints/step-00000100.

Its weights are in ``weights.safetensors`` (``ema.safetensors`` holds the averaged ones), its config in the
run's run.yaml. A run that trained a LoRA adapter saves the adapter alone, and names its base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cutaway import store
from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.model.config import Decoder
from cutaway.model.config_dict import from_dict
from cutaway.quantization import formats
from cutaway.store import yaml_files
from cutaway.weights import adapters, safetensors
from cutaway.weights.changes import LowRank
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors

STATE, WEIGHTS, AVERAGED = "state.json", "weights.safetensors", "ema.safetensors"
RUN, WORDS = "run.yaml", "tokenizer"  # in the run's folder
BASE = "smollm2"  # of a fine-tuning run whose config names none
OF_DRAFT = "draft_head"  # the folder of a run that trained a head that drafts, and that head's module
DRAFTS_FOR = "data/begun.json"  # of such a run: which drafts, for which model, and the file of its prompts
Read = Callable[[Path], Checkpoint]
Words = Callable[[Path], Callable[[], Any] | None]


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run."""
    return (folder / STATE).is_file() and (folder / WEIGHTS).is_file()


def read_run(folder: Path, read_model: Read, tokenizer_of: Words) -> Checkpoint:
    """The checkpoint's model. UserError where the run's config is missing or does not fit it.

    ``read_model`` reads the base of a fine-tuning run, ``tokenizer_of`` a folder's tokenizer.
    """
    run = folder.absolute().parents[1]
    data = yaml_files.parsed(run / RUN)
    if not isinstance(data.get("model"), dict):
        raise UserError(f"{run / RUN}: names no model, so its checkpoint {folder.name} cannot be read")
    stored = safetensors.read_safetensors(folder / WEIGHTS)
    if (folder / AVERAGED).is_file():
        stored = {**stored, **safetensors.read_safetensors(folder / AVERAGED)}
    if any(name.startswith(f"{OF_DRAFT}.") for name in stored):
        raise UserError(
            f"{folder}: is a checkpoint of a head that drafts, and no model: --draft {run} drafts with it "
            "once the run has ended"
        )
    pretrained = isinstance(data.get("data"), dict) and "sources" in data["data"]
    base = None if pretrained else read_model(store.resolve(str(data.get("base", BASE)), pull=False))
    if base is not None and data.get("adapter") is not None:
        return replace(adapters.joined(base, _adapter(data["adapter"], stored, folder)), source=folder)
    if base is not None:
        tensors = _tensors(base.config.weights(), stored, base.tensors, folder)
        return replace(base, tensors=Tensors(tensors), source=folder, origin=base.path)
    config = from_dict(data["model"], Decoder, f"{run / RUN}: model")
    tensors = _tensors(config.weights(), stored, {}, folder)
    return Checkpoint(config, Tensors(tensors), None, folder, tokenizer_of(run / WORDS))


def _tensors(
    shapes: Mapping[str, Any], stored: Mapping[str, Packed], base: Any, folder: Path
) -> dict[str, Packed]:
    """The model's weights by name; those that were not trained are the base's."""
    found: dict[str, Packed] = {}
    for name, shape in shapes.items():
        packed = stored[name] if name in stored else base.get(name)
        if packed is None or packed.shape != tuple(shape):
            what = "is missing" if packed is None else f"has the shape {list(packed.shape)}"
            raise UserError(f"{folder}: the weight {name} {what}, and the run's model has {list(shape)}")
        found[name] = packed
    return found


def _adapter(config: Any, stored: Mapping[str, Packed], folder: Path) -> dict[str, LowRank]:
    """The low-rank changes of a checkpoint by the weights that they change."""
    kind = config.get("kind", "lora") if isinstance(config, dict) else config
    if kind != "lora":
        raise UserError(
            f"{folder}: is a checkpoint of a {kind!r} adapter, and only those of LoRA are read: load the run"
        )
    rank, alpha = config.get("rank", 16), config.get("alpha", 32.0)
    scale = alpha / (math.sqrt(rank) if config.get("rank_stabilised") else rank)
    names = sorted(name.removesuffix(".a") for name in stored if name.endswith(".a"))
    if missing := [name for name in names if f"{name}.b" not in stored]:
        raise UserError(f"{folder}: the adapter of {missing[0]} has no second matrix")
    a, b = ({name: formats.unpack(stored[f"{name}.{part}"]) for name in names} for part in "ab")
    return {f"{name}.weight": LowRank(a[name], b[name], scale) for name in names}
