"""The pooling that a model states: how a text's vector is made of its tokens' vectors; and its sizes.

A sentence-transformers folder states it in ``modules.json`` and ``1_Pooling/config.json``, a GGUF file in
``ARCHITECTURE.pooling_type``. Either may have dense layers that follow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cutaway import gguf
from cutaway.errors import UserError, quoted
from cutaway.quantization import formats
from cutaway.store.reading import parsed
from cutaway.weights import safetensors
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.fields import Fields

KNOWN = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
WORDS = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
GGUF = {1: "mean", 2: "cls", 3: "last"}
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
DENSE = re.compile(r"[0-9]{1,2}_Dense")
WITH_DENSE = "gemma-embedding"  # GGUF's word for the one architecture that has dense layers
IN_GGUF = ("dense_2", "dense_3")
TENSORS = tuple(f"{name}.weight" for name in IN_GGUF)
ACTIVATIONS = {"Identity": lambda x: x, "Tanh": np.tanh}


class Dense(NamedTuple):
    """A matrix [out in] that is applied to a text's vector after pooling, its bias, and what follows."""

    weight: np.ndarray
    bias: np.ndarray | None = None
    named: str = "Identity"

    @property
    def activation(self) -> Callable[[np.ndarray], np.ndarray]:
        return ACTIVATIONS[self.named]


def stated(checkpoint: Checkpoint) -> str | None:
    """The pooling that comes with the model, or None; UserError if it is one that cannot be honoured."""
    if not checkpoint.path.is_dir():
        return _in_gguf(checkpoint)
    modules = checkpoint.path / "modules.json"
    for module in parsed(modules, list) if modules.is_file() else []:
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        if kind not in MODULES:
            raise UserError(f"{modules}: has the module {quoted(kind)}; known are {', '.join(MODULES)}")
    path = checkpoint.path / "1_Pooling" / "config.json"
    return _in_folder(Fields(parsed(path), path)) if path.is_file() else None


def dimensions(checkpoint: Checkpoint) -> Sequence[int]:
    """The lengths that vectors may be cut to, which ``config.json`` states of a model that was trained for it
    (Matryoshka, 2205.13147); empty for others.
    """
    path = checkpoint.path / "config.json"
    if not path.is_file():
        return ()
    stated = parsed(path)
    named = stated.get("matryoshka_dimensions")
    if isinstance(named, list) and named:
        return [one for one in named if isinstance(one, int) and 0 < one <= checkpoint.config.width]
    return range(1, checkpoint.config.width + 1) if stated.get("is_matryoshka") is True else ()


def dense(checkpoint: Checkpoint) -> list[Dense]:
    """The layers after the pooling, in their order (EmbeddingGemma): a folder's own, or a GGUF file's two."""
    if checkpoint.path.is_file():
        tensors = gguf.read(checkpoint.path).tensors
        return [Dense(formats.finite(name, tensors[name])) for name in TENSORS if name in tensors]
    modules = checkpoint.path / "modules.json"
    found, size = [], checkpoint.config.width
    for module in parsed(modules, list) if checkpoint.path.is_dir() and modules.is_file() else []:
        if not isinstance(module, dict) or not str(module.get("type", "")).endswith(".Dense"):
            continue
        if not DENSE.fullmatch(str(module.get("path", ""))):
            raise UserError(
                f"{modules}: the path of a Dense module is {quoted(module.get('path'))}, not 2_Dense"
            )
        folder = checkpoint.path / str(module["path"])
        fields = Fields(parsed(folder / "config.json"), folder / "config.json")
        named = fields.text("activation_function", "torch.nn.modules.linear.Identity").rpartition(".")[2]
        if named not in ACTIVATIONS:
            raise fields.refusal(
                "activation_function", f"is {quoted(named)}: known are {', '.join(ACTIVATIONS)}"
            )
        tensors = safetensors.read_safetensors(folder)
        shape, bias = (fields.integer("out_features"), size), fields.flag("bias", True)
        wanted = {"linear.weight": shape} | ({"linear.bias": shape[:1]} if bias else {})
        if {name: packed.shape for name, packed in tensors.items()} != wanted:
            raise UserError(f"{folder}: should hold {', '.join(f'{n} {s}' for n, s in wanted.items())}")
        weight, *more = (formats.finite(name, tensors[name]) for name in wanted)
        found.append(Dense(weight, more[0] if more else None, named))
        size = shape[0]
    return found


def projected(vectors: np.ndarray, layers: Sequence[Dense], normalise: bool) -> np.ndarray:
    """float32 [n d]: the vectors through these layers, of norm one if ``normalise``."""
    for layer in layers:
        vectors = vectors @ layer.weight.T
        vectors = layer.activation(vectors if layer.bias is None else vectors + layer.bias)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) if normalise else vectors


def _in_folder(fields: Fields) -> str:
    named = fields.get("pooling_mode")
    if named is not None:  # newer files name one mode
        return fields.choice("pooling_mode", WORDS)
    asked = [name for name in fields.data if name.startswith("pooling_mode_") and fields.data[name] is True]
    if len(asked) == 1 and asked[0] in KNOWN:
        return KNOWN[asked[0]]
    raise UserError(
        f"{fields.where}: asks for {', '.join(asked) or 'no pooling'}, and only one of {', '.join(KNOWN)} "
        "is known: give pooling="
    )


def _in_gguf(checkpoint: Checkpoint) -> str | None:
    name = f"{checkpoint.metadata.get('general.architecture')}.pooling_type"
    kind = Fields(checkpoint.metadata, checkpoint.source).integer(name, None, low=0)
    if kind in (None, 0):
        return None
    if kind not in GGUF:
        raise UserError(f"{checkpoint.source}: {name} is {kind}, which is not supported: give pooling=")
    return GGUF[kind]
