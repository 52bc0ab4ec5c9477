"""EAGLE-3 heads (2503.01840) from a folder: SafeAILab's format, or that of vLLM's speculators.

    h_i = W [a; b; c]            a, b, c: the target's residual stream before three of its layers
    x_i = [norm(e); norm(h_i)]   e: the embedding of token i + 1
    h'_i = block(x, h)           attention reads x, twice as wide as the stream h that it adds to

Its logits are of the tokens ``ids``, often fewer than the target has. Weights are read from safetensors, or
from PyTorch's .bin as data (torch_zip.py): no code of a folder runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.layers.config import Norm
from cutaway.model.config import Decoder
from cutaway.quantization import formats
from cutaway.store.reading import parsed
from cutaway.weights import family_registry, safetensors, torch_zip
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import WHOLE, Tensors
from cutaway.weights.run_checkpoint import OF_DRAFT

LAYER_CONFIG = "transformer_layer_config"  # of speculators
OTHER_KEYS = ("draft_vocab_size", "target_hidden_size", "norm_before_residual", "norm_before_fc")
OTHER_KEYS += ("eagle_config", "eagle_aux_hidden_state_layer_ids", "embed_requires_grad")
LAYERS = ("midlayer.", "layers.0.")
GROUP = 32  # columns of Q8_0
DERIVED = {"t2d", "self_attn.rotary_emb.inv_freq"}  # what d2t and config.json say
NAMES = {  # theirs of matrices and norms that are those of a block of ours
    "self_attn.o_proj": "blocks.0.attention.out",
    "post_attention_layernorm": "blocks.0.mlp_norm",
    "mlp.gate_proj": "blocks.0.mlp.gate",
    "mlp.up_proj": "blocks.0.mlp.up",
    "mlp.down_proj": "blocks.0.mlp.down",
}
PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}


@dataclass(frozen=True)
class Eagle3:
    """A head: ``config`` and ``tensors`` are of a model of one block, which reads its own stream alone.

    ``fc`` makes the stream of the target's, ``beside`` are the rows of query, key and value that read the
    embedding. ``layers``: those before which the target's streams are read, None for the usual ones.
    ``normed_stream``: the stream is normed before attention adds to it. ``table``: its own embeddings, None
    for the target's. ``ids``: the target's ids of what it scores, None for all of them.
    """

    where: Path
    config: Decoder
    tensors: Tensors
    fc: Packed
    beside: Packed
    norms: tuple[np.ndarray, np.ndarray]  # of the embedding, of the stream
    layers: tuple[int, ...] | None
    normed_stream: bool
    table: Packed | None
    ids: np.ndarray | None
    vocab: int  # of the target

    @property
    def target_width(self) -> int:
        """The width of the target's residual stream."""
        return self.fc.shape[1] // 3

    @property
    def norm(self) -> Norm:
        """The kind of all its norms."""
        return self.config.norm

    def watches(self, blocks: int) -> tuple[str, ...]:
        """The values that it reads of a target of so many blocks."""
        layers = self.layers or (2, blocks // 2, blocks - 3)
        return tuple("embed" if n == 0 else f"blocks.{n - 1}.out" for n in layers)


def is_head(folder: Path) -> bool:
    """Whether a folder has an EAGLE-3 head, by its config.json, or is a run that trained one."""
    folder = own_folder(folder)
    if not (folder / "config.json").is_file():
        return False
    data = parsed(folder / "config.json")
    classes = data.get("architectures")
    named = classes if isinstance(classes, list) else []
    return data.get("speculators_model_type") == "eagle3" or any(
        "eagle3" in str(one).lower() for one in named
    )


def read(folder: Path) -> Eagle3:
    """The head of a folder; UserError for one that is damaged or computes something else."""
    if not is_head(folder):
        raise UserError(f"{folder}: has no EAGLE-3 head: no config.json names one")
    folder = own_folder(folder)
    where = folder / "config.json"
    data = parsed(where)
    fields = Fields(data, where)
    inner = data.get(LAYER_CONFIG)
    layer: dict[str, Any] = dict(inner) if isinstance(inner, dict) else dict(data)
    own = fields.section("eagle_config")
    fields.only("norm_before_fc", (False, None), "a norm before the matrix of three layers")
    if own is not None:
        own.only("use_aux_hidden_state", (True, None), "a head of one layer of the target")
    config = _config(layer, where)
    vocab = config.vocab
    scored = fields.integer("draft_vocab_size", vocab, high=vocab) if data.get("draft_vocab_size") else vocab
    config = replace(config, vocab=scored, tied=False)
    weights = _weights(folder)
    width, seen = config.width, fields.integer("target_hidden_size", None) or config.width
    names = _Named(folder, weights)
    normed = bool(fields.flag("norm_before_residual", False)) if "norm_before_residual" in data else False
    tensors, beside = _block(names, config)
    norms = (names.vector("input_layernorm.weight", width), names.vector("hidden_norm.weight", width))
    (block,) = config.blocks
    if normed:
        config = replace(config, blocks=(replace(block, attention_normed=False),))
    else:
        tensors["blocks.0.attention_norm.weight"] = names.take("hidden_norm.weight", (width,))
    tensors["norm.weight"] = names.take("norm.weight", (width,))
    tensors["head.weight"] = names.take("lm_head.weight", (scored, width))
    fc = names.take("fc.weight", (width, 3 * seen))
    table = names.take("embed_tokens.weight", (vocab, width)) if names.has("embed_tokens.weight") else None
    ids = _ids(names, scored, vocab)
    names.finish()
    return Eagle3(
        folder, config, Tensors(tensors), fc, beside, norms, _layers(fields, own), normed, table, ids, vocab
    )


def own_folder(folder: Path) -> Path:
    """The folder of the head: a run's is inside."""
    return folder / OF_DRAFT if (folder / OF_DRAFT).is_dir() else folder


def check_fits(head: Eagle3, config: Decoder) -> None:
    """UserError for a head of another model."""
    where, count = head.where, len(config.blocks)
    if head.vocab != config.vocab:
        raise UserError(f"{where}: is a head for {head.vocab} ids, and the model has {config.vocab}")
    if head.target_width != config.width:
        why = f"reads streams of width {head.target_width}, and the model's are {config.width} wide"
        raise UserError(f"{where}: {why}")
    if head.table is None and head.config.width != config.width:
        raise UserError(f"{where}: has no embeddings, and its width of {head.config.width} is another")
    if (
        config.streams
        or (count < 4 and head.layers is None)
        or not all(0 <= n <= count for n in head.layers or ())
    ):
        raise UserError(f"{where}: reads three layers that a model of {count} layers does not have")


def weights(folder: Path) -> dict[str, Packed]:
    """The weights of a folder by their published names, without those of the modules that they are in."""
    found = {_plain(name): packed for name, packed in _weights(own_folder(folder)).items()}
    return {name: packed for name, packed in found.items() if name not in DERIVED}


def named(weights: Mapping[str, Packed]) -> dict[str, Packed]:
    """The weights as SafeAILab's files name them, from their names in the one layer."""
    outside = ("fc.", "norm.", "lm_head.", "embed_tokens.", "d2t", "t2d")
    return {
        name if name.startswith(outside) else f"{LAYERS[0]}{name}": packed for name, packed in weights.items()
    }


def in_eight_bits(head: Eagle3) -> Eagle3:
    """The head with its float matrices as Q8_0, where their rows are whole groups: it reads half the bytes of
    BF16, and what it drafts is verified.
    """

    def packed(one: Packed) -> Packed:
        whole = len(one.shape) == 2 and one.type in WHOLE and one.shape[1] % GROUP == 0
        return formats.pack(formats.unpack(one), "Q8_0") if whole else one

    tensors = Tensors({name: packed(head.tensors[name]) for name in head.tensors})
    return replace(head, tensors=tensors, fc=packed(head.fc), beside=packed(head.beside))


def _config(layer: Mapping[str, Any], where: Path) -> Decoder:
    """The config of its one layer, a Llama's."""
    plain = {key: value for key, value in layer.items() if key not in OTHER_KEYS}
    plain |= {"model_type": "llama", "tie_word_embeddings": False}
    config = family_registry.get("llama").read(Fields(plain, where, kind="llama"))
    assert isinstance(config, Decoder)
    if len(config.blocks) != 1:
        raise UserError(f"{where}: has {len(config.blocks)} layers, and EAGLE-3 heads of one layer are read")
    return config


def _layers(fields: Fields, own: Fields | None) -> tuple[int, ...] | None:
    """Before which layers the target's streams are read.

    vLLM names the layer that reads a stream; SGLang, in ``eagle_config``, the one before, which gives it.
    """
    key = "eagle_aux_hidden_state_layer_ids"
    for given, more in ((fields, 0), (own, 1)):
        listed = given.get(key) if given is not None else None
        if listed is None:
            continue
        assert given is not None
        if not isinstance(listed, list) or len(listed) != 3 or not all(type(n) is int for n in listed):
            raise given.refusal(key, f"should be three numbers of layers, but is {quoted(listed)}")
        return tuple(n + more for n in listed)
    return None


def _block(names: _Named, config: Decoder) -> tuple[dict[str, Packed], Packed]:
    """The weights of the block as ours, those that read the stream; and those that read the embedding."""
    width = config.width
    shapes, found, beside = config.weights(), dict[str, Packed](), list[Packed]()
    for theirs, ours in NAMES.items():
        for part in ("weight", "bias"):
            if f"{ours}.{part}" in shapes:
                found[f"{ours}.{part}"] = names.take(f"{theirs}.{part}", shapes[f"{ours}.{part}"])
    for theirs, ours in PROJECTIONS.items():
        name = f"blocks.0.attention.{ours}"
        rows = shapes[f"{name}.weight"][0]
        both = names.take(f"self_attn.{theirs}.weight", (rows, 2 * width))
        first, second = _halves(both, names.where)
        beside.append(first)
        found[f"{name}.weight"] = second
        if f"{name}.bias" in shapes:
            found[f"{name}.bias"] = names.take(f"self_attn.{theirs}.bias", shapes[f"{name}.bias"])
    if len({part.type for part in beside}) > 1:
        raise UserError(f"{names.where}: its projections are of several types")
    data = np.concatenate([part.data for part in beside])
    return found, Packed(beside[0].type, (len(data), width), data)


def _halves(packed: Packed, where: Path) -> tuple[Packed, Packed]:
    """The columns that read the embedding, and those that read the stream."""
    word = WHOLE.get(packed.type)
    if word is None:
        raise UserError(f"{where}: its projections are stored as {packed.type}, whose columns share blocks")
    rows, columns = packed.shape
    words = np.ascontiguousarray(packed.data).view(word).reshape(rows, columns)
    parts = (np.ascontiguousarray(part) for part in np.split(words, 2, axis=1))
    first, second = (Packed(packed.type, part.shape, part.view(np.uint8)) for part in parts)
    return first, second


def _ids(names: _Named, scored: int, vocab: int) -> np.ndarray | None:
    """The target's id of each that is scored: its number, and the difference that d2t has."""
    if not names.has("d2t"):
        if scored != vocab:
            raise UserError(
                f"{names.where}: scores {scored} of {vocab} tokens and has no d2t that names them"
            )
        return None
    packed = names.take("d2t", (scored,), ("I64", "I32"))
    differences = np.ascontiguousarray(packed.data).reshape(-1).view("<i8" if packed.type == "I64" else "<i4")
    ids = np.arange(scored) + differences.astype(np.int64)
    if ids.min() < 0 or ids.max() >= vocab or len(np.unique(ids)) != scored:
        raise UserError(f"{names.where}: d2t does not name {scored} different ids of {vocab}")
    return ids


class _Named:
    """The weights of a folder by the names in its one layer, each taken once."""

    def __init__(self, where: Path, weights: Mapping[str, Packed]) -> None:
        self.where, self._left = where, {_plain(name): packed for name, packed in weights.items()}
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, shape: tuple[int, ...], types: tuple[str, ...] = tuple(WHOLE)) -> Packed:
        """The weight; UserError unless it has this shape and one of these types."""
        packed = self._left.get(name)
        if packed is None:
            raise UserError(f"{self.where}: the weight {quoted(name)} is missing")
        if packed.shape != shape or packed.type not in types:
            raise UserError(
                f"{self.where}: the weight {quoted(name)} is {packed.type} of {packed.shape}, and "
                f"{' or '.join(types)} of {shape} is needed"
            )
        self._taken.add(name)
        return packed

    def vector(self, name: str, size: int) -> np.ndarray:
        """The numbers of a vector."""
        return formats.finite(name, self.take(name, (size,)))

    def finish(self) -> None:
        """UserError for a weight that has no place; t2d says again what d2t does."""
        left = sorted(self._left.keys() - self._taken - DERIVED)
        if left:
            raise UserError(f"{self.where}: the weight {quoted(left[0])} has no place in an EAGLE-3 head")


def _plain(name: str) -> str:
    """The name without the module that it is in."""
    name = name.removeprefix("model.")
    return next((name.removeprefix(one) for one in LAYERS if name.startswith(one)), name)


def _weights(folder: Path) -> dict[str, Packed]:
    """The weights of a folder, from safetensors or from PyTorch's own file, which is read as data."""
    older = folder / "pytorch_model.bin"
    if any(folder.glob("*.safetensors")) or not older.is_file():
        return safetensors.read_safetensors(folder)
    found = torch_zip.read_torch_zip(older)
    if not isinstance(found, dict) or not all(isinstance(one, np.ndarray) for one in found.values()):
        raise UserError(f"{older}: holds something else than weights by name")
    return {str(name): _packed(array) for name, array in found.items()}


def _packed(array: np.ndarray) -> Packed:
    type = {"<i8": "I64", "<f2": "F16"}.get(array.dtype.str, "F32")
    if type == "F32":
        return formats.pack(np.ascontiguousarray(array, np.float32), "F32")
    data = np.ascontiguousarray(array)
    width = data.shape[-1] if data.shape else 1
    return Packed(type, data.shape, data.view(np.uint8).reshape(*data.shape[:-1], width * data.itemsize))
