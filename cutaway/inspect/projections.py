"""A head's queries, keys and values as products with W_q, W_k and W_v, for the page to draw.

A page keeps the numbers that enter a layer, float32 [t d]; of a head's three matrices the first columns as
one signed byte a weight, to be drawn; and for each token and row of a matrix the largest products with the
weights they are made of, and the whole sum. The products of a page are thus exact, and its map is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cutaway.attention.common.heads import Heads
from cutaway.inspect.trace_values import TraceValues
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of

BUDGET = 300_000  # bytes of one page
DRAWN = 160  # columns of a matrix
LISTED = 3  # products of a row
MATRICES = {"q": "query", "k": "key", "v": "value"}


class Projected(NamedTuple):
    """One matrix of a head on each token: ``scale`` is the weight that is drawn as 127."""

    drawn: np.ndarray  # int8 [rows columns]
    scale: float
    ids: np.ndarray  # uint32 [t rows listed]: the columns of the largest products
    weights: np.ndarray  # float32 [t rows listed]
    bias: np.ndarray | None  # float32 [rows]
    sums: np.ndarray  # float32 [t rows]: W x + b


def input_name(config: Decoder, layer: int) -> str | None:
    """The activation that a layer's matrices multiply; None where the layer is of another kind."""
    block = config.blocks[layer]
    special = block.streams or block.shared or block.beside or kind_of(block.attention) == "differential"
    if special or not isinstance(block.attention, Heads):
        return None
    if block.pre_norm and block.attention_normed:
        return f"blocks.{layer}.attention_norm"
    return f"blocks.{layer - 1}.out" if layer else "embed"


def names(config: Decoder) -> list[str]:
    """The activations that projections need."""
    found = (input_name(config, layer) for layer in range(len(config.blocks)))
    return list(dict.fromkeys(name for name in found if name))


def matrices(config: Any) -> list[str]:
    """Which of q, k and v a layer makes by a matrix of its own."""
    there = {"q": True, **{name[0]: has for name, has in config.projected.items()}}
    return [one for one in MATRICES if there[one]]


def cost(config: Any, width: int, tokens: int) -> int:
    """The bytes that a head's projections of so many tokens take on a page."""
    rows = sum(config.values if one == "v" else config.key_size for one in matrices(config))
    return 4 * width * tokens + rows * (min(width, DRAWN) + tokens * (4 + 8 * LISTED))


def projected(
    trace: TraceValues, layer: int, head: int, first: int = 0
) -> Iterator[tuple[str, int, Projected]]:
    """Each matrix of a head, with the number of the head that it belongs to, on the tokens from ``first``."""
    config, name = trace.config.blocks[layer].attention, input_name(trace.config, layer)
    if name is None or name not in trace:
        return
    x = trace[name][first:]
    for one in matrices(config):
        size = config.values if one == "v" else config.key_size
        number = head if one == "q" else head // (config.heads // config.groups)
        rows = slice(number * size, (number + 1) * size)
        path = f"blocks.{layer}.attention.{MATRICES[one]}"
        weight = trace.instrumented.weight(f"{path}.weight")[rows]
        bias = trace.instrumented.weight(f"{path}.bias")[rows] if config.bias else None
        yield one, number, _projected(x, weight, bias)


def _projected(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> Projected:
    listed, shown = min(LISTED, weight.shape[1]), weight[:, :DRAWN]
    scale = float(np.abs(shown).max()) or 1.0
    ids = np.empty((len(x), len(weight), listed), np.uint32)
    for token, row in enumerate(x):
        products = np.abs(weight * row)
        best = np.argpartition(-products, listed - 1, axis=-1)[:, :listed]
        order = np.argsort(-np.take_along_axis(products, best, axis=-1), axis=-1, kind="stable")
        ids[token] = np.take_along_axis(best, order, axis=-1)
    sums = x.astype(np.float64) @ weight.T.astype(np.float64)
    return Projected(
        drawn=(shown / scale * 127).round().astype(np.int8),
        scale=scale,
        ids=ids,
        weights=np.take_along_axis(weight[None], ids, axis=-1),
        bias=bias,
        sums=(sums if bias is None else sums + bias).astype(np.float32),
    )
