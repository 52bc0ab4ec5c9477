"""The packed model that generates, shown and edited: activations are written out by the runtime's own step.

Weights come from the checkpoint, one matrix at a time, so that no float model is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from cutaway.errors import UserError
from cutaway.extras import installed
from cutaway.gguf import Packed, give_back
from cutaway.hooks import TAPS
from cutaway.inspect import derived, runtime_edits
from cutaway.inspect import edits as edits_of
from cutaway.inspect import names as naming
from cutaway.inspect.inputs import view_names
from cutaway.inspect.instrumented import BY_HEAD, RESULT, SQUARE, Values
from cutaway.model.config import Decoder
from cutaway.quantization import formats
from cutaway.quantization.rows import PackedRows
from cutaway.runtime import head
from cutaway.runtime.block_numbers import alibi_of
from cutaway.runtime.engine import CHUNK, RuntimeEngine
from cutaway.runtime.reference import ReferenceEngine
from cutaway.runtime.values import CHOSEN, Value, every, named
from cutaway.store.files import Progress, silent
from cutaway.weights.named_tensors import Tensors

ORDER = (  # of a block's activations, as they are computed
    *("attention_norm", "attention.q_unrotated", "attention.k_unrotated", "attention.v", "attention.k"),
    *("attention.latent", "attention.q", "attention.chosen", "attention.scores", "attention.pattern"),
    *("attention.z", "attention.state", "attention.gate", "attention.out_input", "attention.out"),
    *("beside.out", "attention_post_norm", "middle", "mlp_norm", "mlp.expert_indices"),
    *("mlp.expert_weights", "mlp.expert_hidden", "mlp.shared.hidden", "mlp.hidden", "mlp.shared_gate"),
    *("mlp.down", "mlp.out", "mlp_post_norm", "out"),
)
# Outputs of modules, large ones, and what others follow from: kept where they are named.
UNTAPPED = ("norm", ".down", ".state", ".expert_hidden", RESULT)


class Piece(NamedTuple):
    """Some ids of a text that are read in one call: the text's number, the first one's position."""

    text: int
    start: int
    ids: Sequence[int]


class InstrumentedRuntime:
    """The runtime, or its reference implementation, and the checkpoint's ``tensors`` that it packed.

    ``tensors`` hold an adapter's changes too, where the engine applies one.
    """

    name = "runtime"

    def __init__(self, engine: RuntimeEngine | ReferenceEngine, tensors: Tensors) -> None:
        self.engine, self.tensors = engine, tensors
        self.config: Decoder = engine.config

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        values = named(self.config, tuple(_ordered(self.config)))
        shown = {one.name: _shape(one) for one in values}
        return {**shown, **self._derived, "logits": (1, self.config.vocab)}

    @cached_property
    def _derived(self) -> dict[str, tuple[int, ...]]:
        return derived.names(self.config)

    @property
    def _taps(self) -> list[str]:
        return [name for name in self._shapes if not name.endswith(UNTAPPED)]

    def resolve(self, names: Sequence[str]) -> list[str]:
        if "*" in names:
            raise UserError("the runtime does not show the output of every module")
        asked = [one for name in names for one in (self._taps if name == TAPS else (name,))]
        known = naming.resolve(self._shapes, asked)
        found = {name: naming.expanded(self._shapes, name) for name in known}
        if not all(found.values()):
            raise UserError("the runtime does not show activations within experts")
        kept = ((name, one) for name, every in found.items() for one in every)
        # Heads' results are large: a wildcard of other names does not stand for them.
        return list(
            dict.fromkeys(one for name, one in kept if name.endswith(RESULT) or not one.endswith(RESULT))
        )

    def in_step(self, names: Sequence[str]) -> bool:
        """Whether the step itself writes these out, so that a batch of requests may observe them."""
        try:
            return not any(name in self._derived for name in self.resolve(names))
        except UserError:
            return False

    def unsupported_reason(
        self, names: Sequence[str], edits: Sequence[edits_of.Given], lengths: Sequence[int]
    ) -> str | None:
        needed = view_names(self.config) if TAPS in names and installed("torch") else ()
        for name in (name for name in (*names, *needed) if name not in self._shapes):
            try:
                self.resolve([name])
            except UserError:
                return f"the runtime does not show {name!r}"
        different = {id(edit): edit for edit in edits}.values()
        reasons = (runtime_edits.unsupported_reason(self.config, edit) for edit in different)
        return next((reason for reason in reasons if reason is not None), None)

    def values(
        self,
        texts: Sequence[Sequence[int]],
        names: Sequence[str],
        edits: Sequence[edits_of.Given] = (),
        *,
        logits_at: Sequence[int] | None = None,
        progress: Progress = silent,
        prompts: Sequence[int] | None = None,
    ) -> list[Values]:
        """As ``Instrumented`` has it; ``prompts``: how many tokens of each text are the prompt, by which its
        edits count positions and steps (None: all).
        """
        kept = self.resolve(names)
        follow = [name for name in kept if name in self._derived]
        read = [name for name in kept if name not in self._derived]
        read += [source for name in follow for source in derived.sources(self.config, name)]
        wanted = named(self.config, tuple(dict.fromkeys(name for name in read if name != "logits")))
        layers = len(self.config.blocks)
        depth = layers if "logits" in kept else 1 + max((value.layer for value in wanted), default=0)
        engine: Any = self.engine if depth == layers else self.engine.first_layers(depth)
        rows = [_logit_rows(logits_at, len(text)) if "logits" in kept else [] for text in texts]
        states = self._states(engine, depth, texts, edits, prompts or list(map(len, texts)))
        parts = [{name: [] for name in dict.fromkeys(read)} for _ in texts]
        for call in _calls(texts):
            _observe(engine, call, states, wanted, rows, parts)
            progress("tracing", call[-1].text + 1, len(texts))
        joined = [{name: _joined(name, one[name]) for name in one} for one in parts]
        for one, text in zip(joined, texts, strict=True):
            if "logits" in one:
                one["logits"] = one["logits"][_order(logits_at, len(text))]
        weight = lru_cache(self.weight)
        for one in joined if follow else ():
            one |= {name: derived.value(self.config, name, one, weight) for name in follow}
        return [{name: one[name] for name in kept} for one in joined]

    def _states(
        self,
        engine: Any,
        depth: int,
        texts: Sequence[Sequence[int]],
        edits: Sequence[edits_of.Given],
        prompts: Sequence[int],
    ) -> list[Any]:
        """An empty state of each text, whose first layers alone are read, with the edits of those."""
        given = runtime_edits.prepare_each(self.engine, edits, prompts) if edits else [()] * len(texts)
        states = []
        for text, own in zip(texts, given, strict=True):
            states.append(engine.edited_state([one for one in own if one.layer < depth]))
            states[-1].announced = len(text)
        return states

    def weight(self, name: str) -> np.ndarray:
        return self._unpacked(self.tensors[name])

    def table(self, name: str, count: int | None = None) -> PackedRows:
        packed = self.tensors[name]
        return PackedRows(packed, self._unpacked, packed.shape[0] if count is None else count)

    def distance_bias(self, layer: int, length: int) -> np.ndarray | None:
        of: Any = self.config.blocks[layer].attention
        if getattr(of, "relative", None) is None:  # else ALiBi: the runtime has no other
            return None
        return -alibi_of(of).astype(np.float64)[:, None] * np.arange(length)

    def head_product(self, rows: np.ndarray) -> np.ndarray:
        return self.engine.head_product(np.ascontiguousarray(rows, np.float32))

    def unembed(self, rows: np.ndarray) -> np.ndarray:
        return head.unembed(self.config, self.tensors, rows, self.head_product)

    @staticmethod
    def _unpacked(packed: Packed) -> np.ndarray:
        found = formats.unpack(packed)
        give_back(packed.data)
        return found


def _observe(
    engine: Any,
    call: Sequence[Piece],
    states: Sequence[Any],
    wanted: Sequence[Value],
    rows: Sequence[Sequence[int]],
    parts: Sequence[dict[str, list[Any]]],
) -> None:
    """Reads the pieces of one call, and adds what they show to each text's parts."""
    begins = np.cumsum([0, *(len(piece.ids) for piece in call)]).tolist()
    own = [[row - at for row in rows[text] if at <= row < at + len(ids)] for text, at, ids in call]
    logits_at = [begin + row for begin, mine in zip(begins, own, strict=False) for row in mine]
    texts, of_texts = [piece.ids for piece in call], [states[piece.text] for piece in call]
    logits, seen = engine.observe(texts, of_texts, [value.name for value in wanted], logits_at)
    taken = 0
    for begin, piece, mine in zip(begins, call, own, strict=False):
        into = parts[piece.text]
        for value in wanted:
            some = seen[value.name][begin : begin + len(piece.ids)]
            if isinstance(some, list):
                into[value.name] += some
            else:
                into[value.name].append(some)
        if "logits" in into:
            into["logits"].append(logits[taken : taken + len(mine)])
        taken += len(mine)


def _calls(texts: Sequence[Sequence[int]]) -> Iterator[list[Piece]]:
    """The texts in calls of at most ``CHUNK`` tokens: several of short texts, parts of a long one."""
    call: list[Piece] = []
    room = CHUNK
    for number, ids in enumerate(texts):
        start = 0
        while start < len(ids):
            piece = Piece(number, start, ids[start : start + room])
            call.append(piece)
            start, room = start + len(piece.ids), room - len(piece.ids)
            if room == 0:
                yield call
                call, room = [], CHUNK
    if call:
        yield call


def _logit_rows(logits_at: Sequence[int] | None, length: int) -> list[int]:
    """The positions of a text whose logits are computed, in order."""
    return list(range(length)) if logits_at is None else sorted({at % length for at in logits_at})


def _order(logits_at: Sequence[int] | None, length: int) -> Any:
    """The index of each requested position's logits among those computed."""
    computed = _logit_rows(logits_at, length)
    return slice(None) if logits_at is None else [computed.index(at % length) for at in logits_at]


def _joined(name: str, parts: list[Any]) -> np.ndarray:
    """A text's value in its shape: tokens last but one; rows [h s] of patterns filled up to [h t t]."""
    what = name.rpartition(".")[2]
    if what in SQUARE:
        whole = np.zeros((len(parts[0]), len(parts), len(parts)), np.float32)
        for at, row in enumerate(parts):
            whole[:, at, : row.shape[1]] = row
        return whole[0] > 0 if what == "chosen" else whole
    value = parts[0] if len(parts) == 1 else np.concatenate(parts)
    value = value.astype(np.int64) if what == "expert_indices" else value
    return np.ascontiguousarray(value.swapaxes(0, 1)) if what in BY_HEAD else value


def _ordered(config: Decoder) -> list[str]:
    """The names of a model's activations that the runtime shows, as they are computed."""
    names = every(config)

    def place(name: str) -> tuple[int, int]:
        if not name.startswith("blocks."):
            return (-1, 0) if name == "embed" else (len(config.blocks), 0)
        _, layer, what = name.split(".", 2)
        return int(layer), ORDER.index(what)

    return sorted(names, key=place)


def _shape(value: Value) -> tuple[int, ...]:
    """The shape of a value of one token."""
    if value.what < 0:
        return (1, 1) if value.name.endswith(CHOSEN) else (*value.shape, 1, 1)
    heads = value.name.rpartition(".")[2] in (*BY_HEAD, "state")
    return (value.shape[0], 1, *value.shape[1:]) if heads else (1, *value.shape)
