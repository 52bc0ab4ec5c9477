"""The attention backend that each layer uses for a text, and why not another.

The text is processed as generation does it, in chunks with a state, and then one token more. Nothing else is
traced: to keep attention maps, attention runs on the naive backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from cutaway.attention.backends.choice import Choice
from cutaway.errors import UserError
from cutaway.hooks import FACTS, tracing
from cutaway.model.decoder import Decoder, State
from cutaway.model.engine import CHUNK, PyTorchEngine


@dataclass(frozen=True)
class Layer:
    """``backend``: the backend of a layer; ``form``: latent attention's own choice, else None."""

    layer: int
    backend: Choice
    form: Choice | None


@dataclass(frozen=True)
class Pass:
    """One forward pass: how many tokens it processes, after how many, and each layer's backend."""

    tokens: int
    after: int
    layers: tuple[Layer, ...]

    def runs(self) -> list[tuple[int, int, Layer]]:
        """Neighbouring layers with the same backend: first, last, and one of them."""
        grouped = (list(run) for _, run in groupby(self.layers, key=lambda one: (one.backend, one.form)))
        return [(run[0].layer, run[-1].layer, run[0]) for run in grouped]

    def to_json(self) -> dict[str, Any]:
        """JSON's own types."""
        layers = [
            {"layer": one.layer, "backend": one.backend._asdict(), "form": one.form and one.form._asdict()}
            for one in self.layers
        ]
        return {"tokens": self.tokens, "after": self.after, "layers": layers}


def backends(model: Decoder, ids: Sequence[int]) -> tuple[Pass, ...]:
    """The prompt's first chunk, the last of those that follow it if there are any, and a decoding step."""
    if not ids:
        raise UserError("the text has no tokens: give at least one")
    if len(ids) >= model.config.context:
        raise UserError(
            f"the text has {len(ids):,} tokens and one more must fit: this model's context holds "
            f"{model.config.context:,}"
        )
    engine, state = PyTorchEngine(model), model.new_state()
    chunks = [ids[:CHUNK], ids[CHUNK:], ids[-1:]]
    return tuple(_pass(engine, chunk, state) for chunk in chunks if chunk)


def _pass(engine: PyTorchEngine, ids: Sequence[int], state: State) -> Pass:
    """Facts of the last chunk into which the engine cuts these ids."""
    before = state.length
    with tracing(engine.model, FACTS) as seen:
        engine.prefill(ids, state)
    last = (len(ids) - 1) % CHUNK + 1
    facts: dict[str, Any] = dict(seen)
    names = (f"blocks.{i}.attention" for i in range(len(engine.model.blocks)))
    layers = (Layer(i, facts[f"{name}.backend"], facts.get(f"{name}.form")) for i, name in enumerate(names))
    return Pass(last, before + len(ids) - last, tuple(layers))
