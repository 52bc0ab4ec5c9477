"""Which way each layer computes a text, and why not another: what the dispatchers say when a model reads.

The text is read as generation reads it, in pieces, with a state, and then one token more. Nothing else is
watched: who watches a pattern has it computed by the naive path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from cutaway.attention.backends import Choice
from cutaway.errors import UserError
from cutaway.hooks import FACTS, tracing
from cutaway.model.decoder import Decoder, State
from cutaway.model.engine import CHUNK, DefinitionEngine


@dataclass(frozen=True)
class Layer:
    """``path``: how what a layer reads is computed; ``form``: latent attention's own choice, else None."""

    layer: int
    path: Choice
    form: Choice | None


@dataclass(frozen=True)
class Reading:
    """One call of the model: how many tokens it read, after how many, and each layer's way."""

    tokens: int
    after: int
    layers: tuple[Layer, ...]

    def runs(self) -> list[tuple[int, int, Layer]]:
        """Neighbouring layers that go the same way: first, last, and one of them."""
        grouped = (list(run) for _, run in groupby(self.layers, key=lambda one: (one.path, one.form)))
        return [(run[0].layer, run[-1].layer, run[0]) for run in grouped]


def paths(model: Decoder, ids: Sequence[int]) -> tuple[Reading, ...]:
    """The prompt's first piece, the last of those that follow it if there are any, and a decoding step."""
    if not ids:
        raise UserError("there is nothing to read: the text has no tokens")
    if len(ids) >= model.config.context:
        raise UserError(
            f"the text has {len(ids):,} tokens and one more must fit: this model reads at most "
            f"{model.config.context:,}"
        )
    engine, state = DefinitionEngine(model), model.new_state()
    pieces = [ids[:CHUNK], ids[CHUNK:], ids[-1:]]
    return tuple(_read(engine, piece, state) for piece in pieces if piece)


def _read(engine: DefinitionEngine, ids: Sequence[int], state: State) -> Reading:
    """Facts of the last piece that the engine cuts these ids into."""
    before = state.length
    with tracing(engine.model, FACTS) as seen:
        engine.prefill(ids, state)
    last = (len(ids) - 1) % CHUNK + 1
    facts: dict[str, Any] = dict(seen)
    names = (f"blocks.{i}.attention" for i in range(len(engine.model.blocks)))
    layers = (Layer(i, facts[f"{name}.path"], facts.get(f"{name}.form")) for i, name in enumerate(names))
    return Reading(last, before + len(ids) - last, tuple(layers))
