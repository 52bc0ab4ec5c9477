"""Heads that draft the next tokens from a model's hidden states: one block each, run by the native step.

    x_i = what a head makes of h_i and of the embedding of token i + 1        logits = head(norm(block(x)_i))

h is what the model or the head before computed at position i, and then what the head gave itself. A head is
run as a model of one block whose ``embed`` is set to x. Its states are those of an engine, and hold a
position for each pair of a hidden state and a token after it. MTP heads are part of a model (model/mtp.py);
those of EAGLE-3 (2503.01840) are a folder of their own (weights/eagle3.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.layers.config import Norm
from cutaway.model.config import Decoder
from cutaway.native import library, packed_product, structures
from cutaway.quantization import formats
from cutaway.runtime.edits import Edit
from cutaway.runtime.engine import CHUNK, RuntimeEngine
from cutaway.runtime.kv_cache import State
from cutaway.weights import eagle3
from cutaway.weights.eagle3 import Eagle3
from cutaway.weights.named_tensors import Tensors

Pairs = tuple[Sequence[int], np.ndarray]  # tokens, and the hidden states [t d] at the positions before them


class Product:
    """A matrix as panels, times vectors."""

    def __init__(self, name: str, packed: Packed, threads: int | None) -> None:
        if packed.type not in packed_product.TYPES:
            raise UserError(f"The runtime does not run this head: its {name} is stored as {packed.type}")
        self.type, (rows, columns) = packed.type, packed.shape
        self.rows, self.columns = rows, columns
        self.threads = library.threads() if threads is None else threads
        self.panels = packed_product.lined(packed_product.packed_bytes(packed.type, rows, columns))
        data = np.ascontiguousarray(packed.data)
        packed_product.pack(packed.type, rows, columns, data, self.panels)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 [t rows] of x [t columns]."""
        return packed_product.multiply(self.type, self.rows, self.columns, self.panels, x, self.threads)


class _Table:
    """Rows of an embedding table, as its file has them."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        return formats.unpack(self.packed.rows(np.asarray(ids)))


def _norm(tensors: Tensors, path: str, of: Norm) -> Any:
    """The norm of vectors by these weights."""
    weight = formats.finite(f"{path}.weight", tensors[f"{path}.weight"])
    if of.kind != "rms":
        raise UserError(f"The runtime does not run this head: its norms are {of.kind}, not rms")
    return lambda x: _rms(x, weight, of.eps)


def _rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMS norm by numpy: the native step's order of addition would take a third of a small model's step."""
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * weight


class DraftHead:
    """A block that reads pairs. ``watches``: the values of the model that make a hidden state.

    ``gives`` is the value of the block that is the next hidden state, ``ids``: those of the model that the
    logits are of (None: all); ``chained``: a head after this one reads its hidden states, not the model's.
    """

    watches: tuple[str, ...]
    gives = "norm"
    ids: np.ndarray | None = None
    chained = True
    vocab: int
    engine: RuntimeEngine

    @property
    def max_context(self) -> int:
        """How many pairs a state can hold."""
        return self.engine.max_context

    def new_state(self) -> State:
        """A state without pairs."""
        return self.engine.new_state()

    def seen(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """What it keeps of what the model computed [t s], until it is read."""
        return np.concatenate([values[name] for name in self.watches], axis=1)

    def hidden(self, seen: np.ndarray) -> np.ndarray:
        """Hidden states float32 [t d] of what was kept."""
        return seen

    def inputs(self, ids: Sequence[int], hidden: np.ndarray) -> dict[str, tuple[np.ndarray, bool]]:
        """The values of the block that pairs replace (True) or are added to (False)."""
        raise NotImplementedError

    def read(
        self, pairs: Sequence[Pairs], states: Sequence[State], wanted: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads pairs of several texts: the logits float32 [b v] after each text's last, and the hidden
        states [t d] that the head gives after all of them. At most ``CHUNK`` pairs of a text.
        """
        counts = [len(ids) for ids, _ in pairs]
        assert max(counts) <= CHUNK
        given = self.inputs(
            [id for ids, _ in pairs for id in ids], np.concatenate([hidden for _, hidden in pairs])
        )
        ends = np.cumsum(counts)
        for state, end, count in zip(states, ends.tolist(), counts, strict=True):
            edits = [
                _replacing(name, rows[end - count : end], state.length, sets)
                for name, (rows, sets) in given.items()
            ]
            self.engine.edit(state, edits)
        texts = [[0] * count for count in counts]
        at = (ends - 1).tolist() if wanted else []
        logits, _, values = self.engine.watch_values(texts, states, at, None, (), [self.gives])
        return logits, values[self.gives]


def _replacing(name: str, rows: np.ndarray, start: int, sets: bool) -> Edit:
    """The edit that sets a value of the tokens from position ``start`` on to rows, or adds them."""
    what, factor = name.removeprefix("blocks.0."), 0.0 if sets else 1.0
    return Edit(0, lambda at: rows[at - start], factor=factor, first=start, what=what)


def mtp_heads(base: RuntimeEngine, config: Decoder, tensors: Tensors) -> list[DraftHead]:
    """A model's own heads, in their order. UserError where it has none."""
    if not config.mtp:
        raise UserError("this model has no heads that predict further tokens (MTP)")
    return [MTPHead(base, config, tensors, number) for number in range(len(config.mtp))]


class MTPHead(DraftHead):
    """One of a model's own heads."""

    watches = ("norm",)

    def __init__(self, base: RuntimeEngine, config: Decoder, tensors: Tensors, number: int) -> None:
        path, self.chained = f"mtp.{number}", config.mtp_chained
        own = {
            f"blocks.0.{name.removeprefix(f'{path}.block.')}": tensors.later(name)
            for name in tensors
            if name.startswith(f"{path}.block.")
        }
        own |= {
            f"norm.{part}": tensors.later(f"{path}.norm.{part}") for part in config.norm.weights(config.width)
        }
        alone = replace(
            config, blocks=config.mtp[number : number + 1], mtp=(), embedding_norm=None, position=None
        )
        self.engine = _engine(alone, Tensors(own), base.threads, base)
        self.table, self.vocab = _Table(tensors["embedding.weight"]), config.vocab
        self.norms = [
            _norm(tensors, f"{path}.{name}", config.norm) for name in ("embedding_norm", "hidden_norm")
        ]
        self.join = Product("join.weight", tensors[f"{path}.join.weight"], base.threads)

    def inputs(self, ids: Sequence[int], hidden: np.ndarray) -> dict[str, tuple[np.ndarray, bool]]:
        embedded, of_hidden = self.norms
        return {"embed": (self.join(np.concatenate([embedded(self.table(ids)), of_hidden(hidden)], 1)), True)}


def _engine(
    config: Decoder, tensors: Tensors, threads: int | None, base: RuntimeEngine | None = None
) -> RuntimeEngine:
    """An engine of one block whose embeddings are always set; with the head of ``base`` if that is given."""
    kind = packed_product.PANEL
    blank = formats.pack(np.zeros((kind, config.width), np.float32), "F32")
    entries = {name: tensors.later(name) for name in tensors} | {"embedding.weight": blank}
    if base is None:
        return RuntimeEngine(config, Tensors(entries), threads)
    entries["head.weight"] = blank
    engine = RuntimeEngine(
        replace(config, vocab=kind, tied=False, head_bias=False), Tensors(entries), threads
    )
    engine._model = structures.Model.from_buffer_copy(engine.packed.model)
    engine._model.head = packed_product.Matrix.from_buffer_copy(base.packed.model.head)
    engine._model.vocab = engine.vocab = base.vocab
    return engine


class EagleHead(DraftHead):
    """An EAGLE-3 head beside the model that it was trained for.

    Attention's matrices multiply the residual stream; their products with the embedding are added.
    """

    gives = "blocks.0.out"

    def __init__(self, base: RuntimeEngine, config: Decoder, tensors: Tensors, head: Eagle3) -> None:
        eagle3.check_fits(head, config)
        self.watches = head.watches(len(config.blocks))
        self.engine = _engine(replace(head.config, context=config.context), head.tensors, base.threads)
        self.table = _Table(tensors["embedding.weight"] if head.table is None else head.table)
        self.fc = Product("fc.weight", head.fc, base.threads)
        self.beside = Product("q_proj.weight", head.beside, base.threads)
        self.head, self.ids, self.vocab = head, head.ids, head.vocab

    def hidden(self, seen: np.ndarray) -> np.ndarray:
        return self.fc(seen)

    def inputs(self, ids: Sequence[int], hidden: np.ndarray) -> dict[str, tuple[np.ndarray, bool]]:
        (of_embedding, of_stream), eps = self.head.norms, self.head.norm.eps
        of = self.head.config.blocks[0].attention
        embedded = _rms(self.table(ids), of_embedding, eps)
        stream = _rms(hidden, of_stream, eps) if self.head.normed_stream else hidden
        queries, groups = of.heads * of.key_size, of.groups * of.key_size
        q, k, v = np.split(self.beside(embedded), [queries, queries + groups], axis=1)
        added = {"q_unrotated": q, "k_unrotated": k, "v": v}
        return {"embed": (stream, True)} | {
            f"blocks.0.attention.{name}": (rows, False) for name, rows in added.items()
        }
