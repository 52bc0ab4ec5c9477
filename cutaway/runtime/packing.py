"""A model made ready to run: its config and packed weights as the structures that one native call walks
through.

Matrices are laid out anew as panels (panels.py), at the size they have in their file; what was read of the
mapped file is given back to the system as loading goes on, so that memory never holds both. Models that the
step does not know are refused here, by a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cutaway.attention import gqa, local, mha, mqa
from cutaway.errors import UserError
from cutaway.gguf import Packed, give_back
from cutaway.layers.config import MLP, MoE, Router
from cutaway.model.config import Block, Decoder
from cutaway.native import library
from cutaway.native import runtime as native
from cutaway.position import rope
from cutaway.weights import quant
from cutaway.weights.rules import ROUTERS, Tensors

KINDS = (mha.Config, gqa.Config, mqa.Config, local.Config)
OF_HEADS = ("query_norm", "key_norm")  # norms inside attention
ALIGNMENT = 64
AT_ONCE = 1 << 20  # bytes of a mapped file that are in memory beside the panels made of them


def why_not(config: Decoder, tensors: Tensors) -> str | None:
    """Why the runtime cannot run this model, in words that follow "because"; None where it can."""
    if config.position is not None:
        return "positions are added to the embeddings"
    if config.per_layer is not None:
        return "its blocks have embeddings of their own"
    for n, block in enumerate(config.blocks):
        reason = _why_not_block(block)
        if reason is not None:
            return f"block {n}: {reason}"
    if config.norm.kind != "rms" or not config.norm.weight:
        return "its last norm is a layer norm, or has no weights"
    if config.logit_scale != 1.0 or config.head_bias or config.embedding_norm:
        return "its head scales or shifts logits, or a norm follows the embeddings"
    for name, shape in config.weights().items():
        if len(shape) == 2 and name != "embedding.weight":
            type = _type(name, tensors)
            if type not in native.TYPES:
                return f"the weight {name} is stored as {type}"
    table = tensors.later("embedding.weight").type
    if table not in native.LAYOUTS:
        return f"the embedding table is stored as {table}"
    if config.tied and table not in native.TYPES:
        return f"the embedding table, which is also the head, is stored as {table}"
    return None


def _why_not_block(block: Block) -> str | None:
    attention: Any = block.attention
    if block.mlp is None or block.beside is not None:
        return "it has no MLP, or two mixers"
    if type(attention) not in KINDS:
        return f"{type(attention).__module__.rsplit('.', 1)[-1]} attention has no kernel"
    if any(norm and (norm.kind != "rms" or not norm.weight) for norm in (block.norm, attention.qk_norm)):
        return "its norms are layer norms, or have no weights"
    if attention.qk_norm and (attention.qk_norm_over != "head" or attention.qk_norm_after):
        return "queries and keys are normed over all heads at once, or after they are rotated"
    if not block.pre_norm or block.parallel or block.residual != 1.0:
        return "its halves have no norm before them, run side by side, or are multiplied"
    if attention.temperature or attention.clip:
        return "queries are scaled by their position, or clipped"
    if isinstance(block.mlp, MoE) and (block.mlp.router != Router() or block.mlp.bias):
        return "its router scores, groups or biases experts in a way of its own"
    mlp = block.mlp
    if mlp.activation not in native.ACTIVATIONS or mlp.limit:
        return f"its MLP has the activation {mlp.activation}, or limits"
    if isinstance(mlp, MLP) and (mlp.gate_scale, mlp.out_scale) != (1.0, 1.0):
        return "its MLP has multipliers"
    if attention.kv_layer is not None or attention.value_of_key or attention.value_norm:
        return "it reads another layer's keys and values, or its values are normed"
    if block.scaled:
        return "its output is multiplied by a learned number"
    if attention.relative is not None or attention.sinks:
        return "its scores have biases of their own"
    position = attention.position
    if position is not None and (type(position) is not rope.Config or position.grows):
        return "its positions change as the text grows"
    return None


class Plan:
    """A model's structures, and the memory they point to."""

    def __init__(self, config: Decoder, tensors: Tensors) -> None:
        reason = why_not(config, tensors)
        if reason is not None:
            raise UserError(f"The runtime does not run this model, because {reason}: use engine='definition'")
        self.config = config
        self._tensors = tensors
        self._kept: list[Any] = []  # what the structures point to
        self._weights = _Arena(_total(config.weights(), config, tensors))
        self.token_nbytes = _total(config.active(), config, tensors)  # what one token reads of them
        self._names = frozenset(config.weights())
        self.page_halves = 0
        positions = [block.attention.position for block in config.blocks]
        self._rotations = list(dict.fromkeys(each for each in positions if each is not None))
        self._layers = (native.Layer * len(config.blocks))(*map(self._layer, range(len(config.blocks))))
        self.model = self._model()
        del self._tensors

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices as panels."""
        return self._weights.nbytes

    def _model(self) -> native.Model:
        config = self.config
        rotations = (native.Rotation * max(1, len(self._rotations)))(*map(self._rotation, self._rotations))
        head = self._matrix("embedding" if config.tied else "head")
        rows = np.empty((0, 0), np.uint8)  # a tied table is read out of the head's panels
        if not config.tied:
            table = self._tensors["embedding.weight"]
            rows = np.ascontiguousarray(table.data)
            _check_rows("embedding.weight", table)
        self._kept += [rotations, rows]
        return native.Model(
            layers=self._layers,
            rotations=rotations,
            embedding=None if config.tied else rows.ctypes.data,
            norm=self._vector("norm.weight"),
            head=head,
            embedding_row=rows.shape[1],
            embedding_type=native.LAYOUTS[self._tensors.later("embedding.weight").type].id,
            layer_count=len(config.blocks),
            rotation_count=len(self._rotations),
            width=config.width,
            vocab=config.vocab,
            embedding_scale=config.embedding_scale,
            eps=config.norm.eps,
            softcap=config.softcap or 0.0,
        )

    def _layer(self, n: int) -> native.Layer:
        block, path = self.config.blocks[n], f"blocks.{n}"
        attention = block.attention
        offset = self.page_halves
        stride = -(-attention.values // native.PANEL) * native.PANEL
        self.page_halves += attention.groups * native.PAGE * (attention.key_size + stride)
        norms = {
            name: f"{path}.{'attention.' if name in OF_HEADS else ''}{name}.weight" for name in native.NORMS
        }
        mlp: Any = block.mlp
        return native.Layer(
            **{name: self._matrix(f"{path}.attention.{name}") for name in native.MATRICES[:4]},
            **(self._mixture if isinstance(block.mlp, MoE) else self._mlp)(f"{path}.mlp"),
            **{name: self._vector(weight) for name, weight in norms.items() if weight in self._names},
            page_offset=offset,
            heads=attention.heads,
            groups=attention.groups,
            key_size=attention.key_size,
            value_size=attention.values,
            window=attention.window if isinstance(attention, local.Config) else 0,
            rotation=-1 if attention.position is None else self._rotations.index(attention.position),
            activation=native.ACTIVATIONS.index(mlp.activation),
            eps=block.norm.eps,
            qk_eps=attention.qk_norm.eps if attention.qk_norm else 0.0,
            scale=attention.key_size**-0.5 if attention.scale is None else attention.scale,
            softcap=attention.softcap or 0.0,
        )

    def _mlp(self, path: str) -> dict[str, native.Matrix]:
        """The matrices of an MLP; without a gate where it has none."""
        names = [name for name in native.EXPERT if f"{path}.{name}.weight" in self._names]
        return {name: self._matrix(f"{path}.{name}") for name in names}

    def _mixture(self, path: str) -> dict[str, Any]:
        """The experts of a layer, what routes to them, and in the MLP's place the one all tokens pass."""
        of: MoE = self.config.blocks[int(path.split(".")[1])].mlp  # pyright: ignore[reportAssignmentType]
        experts = [native.Expert(**self._mlp(f"{path}.experts.{e}")) for e in range(of.experts)]
        held = (native.Expert * len(experts))(*experts)
        self._kept.append(held)
        routers = [name for name in native.ROUTERS if f"{path}.{name}.weight" in self._names]
        return {
            **{name: self._matrix(f"{path}.{name}") for name in routers},
            **self._mlp(f"{path}.shared"),
            "experts": held,
            "expert_count": of.experts,
            "top_k": of.top_k,
            "normalised": of.normalised,
        }

    def _rotation(self, position: rope.Config) -> native.Rotation:
        radians = np.ascontiguousarray(position.frequencies(), dtype=np.float64)
        self._kept.append(radians)
        return native.Rotation(radians.ctypes.data, position.magnitude, len(radians), position.interleaved)

    def _matrix(self, path: str) -> native.Matrix:
        packed = as_it_runs(f"{path}.weight", self._tensors)
        rows, columns = packed.shape
        panels = self._weights.take(native.packed_bytes(packed.type, rows, columns))
        at_once = max(1, AT_ONCE // (packed.data.shape[1] * native.PANEL)) * native.PANEL
        done, threads = 0, library.threads()
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            size = native.packed_bytes(packed.type, count, columns)
            data = np.ascontiguousarray(packed.data[first : first + count])
            try:
                native.pack(packed.type, count, columns, data, panels[done : done + size], first, threads)
            except UserError as problem:
                raise UserError(f"The weight {path}.weight cannot be run: {problem}") from None
            give_back(packed.data)
            done += size
        bias = self._vector(f"{path}.bias") if f"{path}.bias" in self._tensors else None
        return native.Matrix(panels.ctypes.data, bias, native.LAYOUTS[packed.type].id, rows, columns, 0)

    def _vector(self, name: str) -> int:
        values = quant.finite(name, self._tensors[name])
        self._kept.append(values)
        return values.ctypes.data


def _type(name: str, tensors: Tensors) -> str:
    """The type that a matrix runs as: its own, but routers decide in floats whatever they are stored as."""
    return "F32" if name.endswith(ROUTERS) else tensors.later(name).type


def as_it_runs(name: str, tensors: Tensors) -> Packed:
    """The matrix of this name in the type that it runs as."""
    packed = tensors[name]
    return quant.pack(quant.unpack(packed), "F32") if name.endswith(ROUTERS) else packed


class _Arena:
    """All panels in one piece of memory, in the order in which a step reads them: few and large pages serve
    it.
    """

    def __init__(self, size: int) -> None:
        memory = np.empty(size + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self._memory = memory[start : start + size]
        self.nbytes = size
        self._taken = 0

    def take(self, size: int) -> np.ndarray:
        part = self._memory[self._taken : self._taken + size]
        self._taken += _aligned(size)
        return part


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _total(weights: Mapping[str, tuple[int, ...]], config: Decoder, tensors: Tensors) -> int:
    """Bytes of these weights' matrices as panels."""
    total = 0
    for name, shape in weights.items():
        if len(shape) == 2 and (config.tied or name != "embedding.weight"):
            total += _aligned(native.packed_bytes(_type(name, tensors), *shape))
    return total


def _check_rows(name: str, table: Packed) -> None:
    at_once = max(1, AT_ONCE // (4 * table.shape[1]))
    for start in range(0, table.shape[0], at_once):
        quant.finite(name, table.rows(slice(start, start + at_once)))
        give_back(table.data)
