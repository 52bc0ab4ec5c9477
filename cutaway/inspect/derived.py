"""Activations that follow from those that an engine computes, and from single weights.

    blocks.N.attention.result [h t d]       each head's slice of W_o times what it reads (out_input, or z)

For the runtime, also two that its step stores in another form:

    blocks.N.mlp.experts.E.hidden [n f]     of the n tokens that expert E gets, in their order
    blocks.N.attention.k, v [h s k]         of latent attention, whose cache holds latents for all heads

They are shown and not edited: an edit is of ``mlp.expert_weights``, or of ``attention.latent``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cutaway.inspect.inputs import out_input, output_heads
from cutaway.inspect.instrumented import Values
from cutaway.layers.config import MoE
from cutaway.model.config import Decoder
from cutaway.runtime.block_numbers import latent

Weight = Callable[[str], np.ndarray]  # a weight by its name


def results(config: Decoder) -> dict[str, tuple[int, ...]]:
    """What heads add, of each layer, with the shapes for a text of one token."""
    counts = [output_heads(of) if hasattr(of := block.attention, "heads") else 1 for block in config.blocks]
    return {f"blocks.{n}.attention.result": (count, 1, config.width) for n, count in enumerate(counts)}


def names(config: Decoder) -> dict[str, tuple[int, ...]]:
    """All of the runtime's, with their shapes for a text of one token."""
    found = results(config)
    for n, block in enumerate(config.blocks):
        of: Any = block.attention
        if latent(block):
            found[f"blocks.{n}.attention.k"] = (of.heads, 1, of.key_size + of.rope_dim)
            found[f"blocks.{n}.attention.v"] = (of.heads, 1, of.values)
        if isinstance(block.mlp, MoE):
            size = block.mlp.expert.hidden
            found |= {f"blocks.{n}.mlp.experts.{e}.hidden": (1, size) for e in range(block.mlp.experts)}
    return found


def sources(config: Decoder, name: str) -> tuple[str, ...]:
    """The activations that one of them follows from."""
    if name.endswith(".result"):
        layer = int(name.split(".")[1])
        return (out_input(config.blocks[layer].attention, layer),)
    if ".experts." in name:
        path = name.partition(".experts.")[0]
        return f"{path}.expert_indices", f"{path}.expert_hidden"
    return (f"{name.rpartition('.')[0]}.latent",)


def value(config: Decoder, name: str, seen: Values, weight: Weight) -> np.ndarray:
    """One of them, of a text whose ``sources`` are there."""
    if name.endswith(".result"):
        (source,) = sources(config, name)
        return result(seen[source], weight(f"{name.removesuffix('.result')}.out.weight"))
    if ".experts." in name:
        indices, hidden = (seen[source] for source in sources(config, name))
        token, rank = np.nonzero(indices == int(name.split(".")[4]))
        return hidden[token, rank]
    path, _, what = name.rpartition(".")
    of: Any = config.blocks[int(name.split(".")[1])].attention
    rows = seen[f"{path}.latent"][0]
    up = weight(f"{path}.{'key' if what == 'k' else 'value'}_up.weight").reshape(of.heads, -1, of.latent)
    found = rows[:, : of.latent] @ up.swapaxes(1, 2)
    if what == "v":
        return found
    rotated = np.broadcast_to(rows[:, of.latent :], (of.heads, len(rows), of.rope_dim))
    return np.concatenate([found, rotated], axis=-1)


def result(z: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """float32 [h t d]: each head's slice of W_o [d hv] times what it reads [h t v]."""
    own = weight.reshape(-1, z.shape[0], z.shape[2])
    return np.stack([rows @ own[:, head].T for head, rows in enumerate(z)])
