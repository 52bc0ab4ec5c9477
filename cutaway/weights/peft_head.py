"""The head for labels of a PEFT folder: what it holds of a classifier's, saved whole or changed.

PEFT saves such a head whole beside every adapter of a classifier (``modules_to_save`` of task type SEQ_CLS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.quantization import formats
from cutaway.weights import classifier, pairs, safetensors
from cutaway.weights.changes import Saved, check
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.peft_config import CONFIG, PeftSettings
from cutaway.weights.peft_names import PREFIX, WEIGHTS

PAIR = ("lora_A", "lora_B", "lora_magnitude_vector")


def read_peft_head(folder: Path, base: Checkpoint) -> dict[str, Packed]:
    """The weights of the base's head that the folder has others of, by the base's names; none of a base that
    is no classifier. UserError for what is not read, or does not fit the base's.
    """
    if not base.classifier:
        return {}
    head, found = classifier.parameters(base), dict[str, Packed]()
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, packed in safetensors.read_safetensors(folder / WEIGHTS).items():
        plain = name.removeprefix(PREFIX)
        module, _, part = plain.removesuffix(".weight").rpartition(".")
        if plain in head:
            whole, where = np.array(formats.unpack(packed)), f"{folder}: {quoted(plain)}"
            if whole.shape != head[plain].shape:
                raise UserError(
                    f"{where}: has the shape {whole.shape}, and the base's head has {head[plain].shape}: "
                    "load the model that it was trained on, with as many labels"
                )
            check(Saved(whole), whole.shape, where)
            found[plain] = formats.pack(whole, "F32")
        elif f"{module}.weight" in head and part not in ("weight", "bias"):
            modules.setdefault(module, {})[part] = formats.unpack(packed)
    for module, parts in modules.items():
        name = f"{module}.weight"
        found[name] = _changed(module, parts, found.get(name, head[name]), folder)
    return found


def _changed(module: str, parts: Mapping[str, np.ndarray], packed: Packed, folder: Path) -> Packed:
    """A matrix of the head with the change of a pair."""
    settings, where = PeftSettings.read(folder / CONFIG), f"{folder}: {quoted(module)}"
    if not set(parts) <= set(PAIR) or settings.kind != "LORA" or settings.residual:
        raise UserError(
            f"{where}: of a head for labels, LoRA and DoRA are read, and heads that are saved whole"
        )
    if not settings.targets(module):
        raise UserError(f"{where}: target_modules does not name it, so PEFT leaves its tensors out")
    magnitude = parts.get("lora_magnitude_vector")
    if settings.dora is not (magnitude is not None):
        raise UserError(f"{where}: use_dora and the tensors do not agree")
    pair = {name: part for name, part in parts.items() if name != "lora_magnitude_vector"}
    change = pairs.pair(pair, module, settings, where, (packed.shape[0], packed.shape[1]))
    change = replace(change, magnitude=None if magnitude is None else magnitude.ravel())
    check(change, packed.shape, where)
    return formats.pack(change(formats.unpack(packed)), "F32")
