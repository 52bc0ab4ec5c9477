"""The values of a forward pass that the runtime shows: names, shapes, arrays of whole texts.

    embed, blocks.N.middle, blocks.N.out   the residual stream [d]: before block 0, after each half of block N
    blocks.N.attention_norm, mlp_norm      what each half reads of it [d], normed
    blocks.N.attention_post_norm, mlp_...  what each half adds to it [d], where that is normed
    blocks.N.attention.q_unrotated, k_...  queries [h k] and keys [g k] before RoPE
    blocks.N.attention.q k v z             those that scores read, values [g v], and what attention, or a
                                           recurrence, gave each head [h v]
    blocks.N.attention.gate, out_input     a gate of what heads give [h*v], and what the last matrix reads of
                                           gated attention or a recurrence [h v]
    blocks.N.attention.latent              of latent attention: the latent and the rotated key [1 c+kr]
    blocks.N.attention.scores, pattern     scores [h s] over the text up to the token, those outside of a
                                           window too, and attention weights
    blocks.N.attention.chosen              1 for each position that an indexer chose [1 s]
    blocks.N.attention.out                 what the mixer's last matrix gives [d]
    blocks.N.mlp.hidden, mlp.down          each neuron's activation [f], and what the last matrix gives [d]
    blocks.N.mlp.expert_indices, ..weights a mixture's choice of experts [k], and how they are weighed
    blocks.N.mlp.expert_hidden             the activations of those experts' neurons [k f]
    blocks.N.mlp.shared.hidden, shared_gate   those of the shared expert [f], and its gate's logit [1]
    blocks.N.mlp.out                       a mixture's output [d]
    blocks.N.beside.out                    what a second mixer beside attention gives [d]
    blocks.N.attention.state               what a recurrence holds after each token [h k v]
    norm, logits                           what the head reads [d], and what it gives [v]

The names are those of the PyTorch model (docs/inspect.md). Keys and values are the halves that the KV cache
keeps. Everything else happens within a fused kernel, and is refused with the engine that shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.layers.config import MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.runtime.block_numbers import GATED, attends, indexed, latent

HEADS = ("attention.q", "attention.k", "attention.v", "attention.z")
UNROTATED = ("attention.q_unrotated", "attention.k_unrotated")
WHATS = ("embed", "middle", "out", *HEADS, "attention_norm", "mlp_norm", *UNROTATED, "attention.out")
WHATS += ("mlp.hidden", "mlp.down", "mlp.out", "attention_post_norm", "mlp_post_norm", "norm")
WHATS += ("mlp.expert_indices", "mlp.expert_weights", "attention.state", "attention.out_input")
WHATS += ("attention.gate", "attention.latent", "mlp.expert_hidden", "mlp.shared_gate", "beside.out")
# The indices are step.hpp's What. Neurons of a shared expert are those of a dense MLP there.
SHARED = "mlp.shared.hidden"
OF_MIXERS = ("attention.state", "attention.out_input", "attention.gate", "attention.latent")
NORMS = ("attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm")
PATTERN, SCORES, CHOSEN = "attention.pattern", "attention.scores", "attention.chosen"
LOGITS = -3
LOOKS = {PATTERN: -1, SCORES: -2, CHOSEN: -4}  # [h s], written out apart: in place of an index in WHATS
ENDS = ("embed", "norm", "logits")  # of no block
SHOWN_ALONE = ("norm", "logits", SCORES, CHOSEN, "mlp.expert_indices", "mlp.expert_hidden", "attention.state")
INSIDE = [what for what in (*WHATS, SHARED, *LOOKS) if what not in ENDS]
NAME = re.compile(rf"(?:({'|'.join(ENDS)})|blocks\.(\d+)\.({'|'.join(map(re.escape, INSIDE))}))")
GIVES = (
    "embed and blocks.N.middle, .out, .attention_norm, .mlp_norm, their .._post_norm, .attention.q, .k, .v, "
    ".z, .q_unrotated, .k_unrotated, .scores, .pattern, .out, .mlp.hidden, .mlp.down, a mixture's .mlp.out, "
    ".expert_indices, .expert_weights, .expert_hidden, .shared.hidden and .shared_gate, gated attention's "
    ".gate and .out_input, latent attention's .latent and .chosen, a recurrence's .attention.out_input and "
    ".state, .beside.out, norm and logits"
)
PYTORCH = 'load with engine="pytorch" for'
Values = dict[str, Any]  # by name: an array, or of patterns a list


class Value(NamedTuple):
    """A value: its name, its index in WHATS (or LOOKS, LOGITS), its layer, and a token's shape."""

    name: str
    what: int
    layer: int
    shape: tuple[int, ...]


@lru_cache(maxsize=64)
def named(config: Decoder, names: tuple[str, ...]) -> tuple[Value, ...]:
    """The values that names, or wildcards, ask for; UserError for one that the runtime does not show."""
    found: dict[str, Value] = {}
    for name in names:
        own = [name] if NAME.fullmatch(name) else [one for one in every(config) if fnmatchcase(one, name)]
        if not own:
            why = f"it shows {GIVES}; {PYTORCH} every other"
            raise UserError(f"the runtime does not show {quoted(name)}: {why}")
        found |= {one: _value(config, one) for one in own}
    return tuple(found.values())


def every(config: Decoder) -> list[str]:
    """All names of a model's values that wildcards stand for: logits, which are large, have to be named."""
    names = ["embed"]
    for n, block in enumerate(config.blocks):
        names += [f"blocks.{n}.{what}" for what in INSIDE if has(block, what)]
    return [*names, "norm"]


def editable(name: str) -> bool:
    """Whether edits may change a value, and not only show it."""
    return name.split(".", 2)[-1 if name.startswith("blocks.") else 0] not in SHOWN_ALONE


def moved_alone(config: Decoder, layer: int, what: str) -> bool:
    """Whether the step has some heads of a value at a time, and can only scale them and add to them."""
    return what == "attention.z" and recurs(config.blocks[layer])


def has(block: Block, what: str) -> bool:
    """Whether a block has a value of this name that the runtime shows."""
    of: Any = block.attention
    if what in NORMS:
        return what in block.norms
    if what.startswith("mlp."):
        if not isinstance(block.mlp, MoE):
            return block.mlp is not None and what in ("mlp.hidden", "mlp.down")
        absent = ("mlp.hidden", "mlp.down", *(() if block.mlp.common else (SHARED,)))
        return what not in (*absent, *(() if block.mlp.shared_gate else ("mlp.shared_gate",)))
    if what == "beside.out":
        return block.beside is not None
    if what == "attention.state":
        return recurs(block) and kind_of(of) != "short_conv"
    if what in ("attention.gate", "attention.out_input"):
        return kind_of(of) in GATED or (recurs(block) and what == "attention.out_input")
    if what in (CHOSEN, "attention.latent"):
        return latent(block) and (what != CHOSEN or indexed(of))
    if what in LOOKS:
        return not recurs(block)
    if what in UNROTATED and (recurs(block) or of.position is None):
        return False
    if what.partition("_")[0] in ("attention.k", "attention.v"):
        return attends(block) and of.kv_layer is None
    if what == "attention.q" or what in UNROTATED:
        return attends(block) or (latent(block) and what == "attention.q")
    return True


def recurs(block: Block) -> bool:
    """Whether a block's mixer is a recurrence alone."""
    return not (attends(block) or latent(block))


def _value(config: Decoder, name: str) -> Value:
    match = NAME.fullmatch(name)
    assert match is not None
    layer, what = int(match[2] or 0), match[1] or match[3]
    if what in ("norm", "logits"):
        number, size = (LOGITS, config.vocab) if what == "logits" else (WHATS.index(what), config.width)
        return Value(name, number, len(config.blocks) - 1, (size,))
    if layer >= len(config.blocks):
        last = len(config.blocks) - 1
        raise UserError(f"there is no {name}: this model's layers are 0 to {last}")
    of: Any = config.blocks[layer].attention
    if latent(config.blocks[layer]) and what in (*HEADS[1:3], *UNROTATED):
        raise UserError(
            f"there is no {name}: layer {layer} attends to latents, which no head owns; {PYTORCH} it"
        )
    if recurs(config.blocks[layer]) and what in (*HEADS[:3], *UNROTATED, *LOOKS):
        raise UserError(
            f"there is no {name}: the mixer of layer {layer} is a recurrence; {PYTORCH} its values"
        )
    if what.partition("_")[0] in HEADS[1:3] and getattr(of, "kv_layer", None) is not None:
        raise UserError(f"there is no {name}: layer {layer} reads the keys and values of layer {of.kv_layer}")
    if not has(config.blocks[layer], what):
        raise UserError(f"there is no {name}: this layer has no such part")
    if what in LOOKS:
        return Value(name, LOOKS[what], layer, (1 if what == CHOSEN else of.heads,))
    number = WHATS.index("mlp.hidden" if what == SHARED else what)
    if what.startswith("mlp."):
        return Value(name, number, layer, _shape_of_mlp(config.blocks[layer].mlp, what, config.width))
    if what not in (*HEADS, *UNROTATED, *OF_MIXERS):
        return Value(name, number, layer, (config.width,))
    return Value(name, number, layer, _shape_of_mixer(config.blocks[layer], what))


def _shape_of_mlp(mlp: Any, what: str, width: int) -> tuple[int, ...]:
    if what == "mlp.expert_hidden":
        return (mlp.top_k, mlp.expert.hidden)
    if what in ("mlp.hidden", SHARED):
        return ((mlp.common if what == SHARED else mlp).hidden,)
    sizes = {"mlp.expert_indices": "top_k", "mlp.expert_weights": "top_k"}
    return (1,) if what == "mlp.shared_gate" else (getattr(mlp, sizes[what]),) if what in sizes else (width,)


def _shape_of_mixer(block: Block, what: str) -> tuple[int, ...]:
    of: Any = block.attention
    if kind_of(of) == "short_conv":
        return (1, of.channels)
    if what == "attention.state":
        return (of.heads, of.key_size, of.values)
    if what == "attention.gate":
        return (of.heads * of.values,)
    if what == "attention.latent":
        return (1, of.latent + of.rope_dim)
    if kind_of(of) == "differential" and what == "attention.z":
        return (of.heads // 2, 2 * of.values)
    size = of.values if what in ("attention.v", "attention.z", "attention.out_input") else of.key_size
    size += of.rope_dim if what == "attention.q" and latent(block) else 0
    return (of.groups if what in ("attention.k", "attention.v", "attention.k_unrotated") else of.heads, size)


def of_texts(
    engine: Any,
    texts: Sequence[Sequence[int]],
    names: Sequence[str],
    chunk: int = 512,
    progress: Callable[[int], None] = lambda tokens: None,
    edits: Sequence[Any] = (),
) -> Values:
    """The values of whole texts by name, from a runtime engine: a row for each token, one text after another.

    Reads ``chunk`` tokens a call, of several texts where they are short, and only the layers that are
    needed. Nothing is padded, and what is read beside a text changes no bit of its values. ``progress`` gets
    how many tokens are read. ``edits`` are those of each text, as `edited_state` takes them.
    """
    wanted = named(engine.config, tuple(names))
    shallow = engine.first_layers(1 + max(value.layer for value in wanted))
    parts: list[Values] = []
    call: list[tuple[Sequence[int], Any]] = []
    room = chunk
    for n, text in enumerate(texts):
        state, start = shallow.edited_state(edits[n] if edits else ()), 0
        while start < len(text):
            piece = text[start : start + room]
            call.append((piece, state))
            start, room = start + len(piece), room - len(piece)
            if room == 0:
                parts.append(shallow.observe(*zip(*call, strict=True), names)[1])
                call, room = [], chunk
                progress(chunk * len(parts))
    if call:
        parts.append(shallow.observe(*zip(*call, strict=True), names)[1])
    return {value.name: _joined(value, [part[value.name] for part in parts]) for value in wanted}


def _joined(value: Value, parts: list[Any]) -> Any:
    if value.what in LOOKS.values():
        return [rows for part in parts for rows in part]
    return np.concatenate(parts) if parts else np.empty((0, *value.shape), np.float32)
