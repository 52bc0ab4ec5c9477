"""A head's attention score as a sum over pairs of a query's part and a key's part.

    found = score_parts(lm, text, 18, 6, key=3)        # [query part, key part], which sum to the score
    found.top(5)

A query and a key are sums over what earlier parts wrote at their tokens, norms' sizes frozen, so their
product is a sum over pairs. A ``constant`` is what biases add. The score is that before a soft-cap and before
a bias for the distance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.attention_score import score_scale
from cutaway.inspect.graph import frozen
from cutaway.inspect.graph.parts import Parts
from cutaway.inspect.pairs import token_text
from cutaway.inspect.result import Result
from cutaway.inspect.subject import subject_of
from cutaway.position import rope
from cutaway.runtime.numpy_layers import rotated


def score_parts(lm: Any, text: Any, layer: int, head: int, key: int, query: int = -1) -> Result:
    """The parts of one head's score of a key for a query: [query part, key part].

    Raises UserError for a place that the text or the model does not have.
    """
    subject = subject_of(lm)
    config = subject.config
    frozen.check(config)
    ids = subject.encode(text)
    _check(config, layer, head, len(ids), query, key)
    query, key = query % len(ids), key % len(ids)
    if key > query:
        raise UserError(f"the key at {key} is after the query at {query}, which does not see it")
    path, of = f"blocks.{layer}.attention", config.blocks[layer].attention
    asked = [*frozen.names(config), f"{path}.q", f"{path}.k"]
    engine, given, _ = subject.asked([ids], asked, ())
    (seen,) = engine.values([ids], asked, given)
    layers = frozen.layers(engine, seen)
    parts = Parts(layers[: max(layer, 1)], ids)
    group = head // (of.heads // layers[layer].groups)
    sides = [
        _projected(layers[layer], parts, at, *side)
        for at, side in ((query, ("query", head)), (key, ("key", group)))
    ]
    scale = score_scale(of)
    values = sides[0][1].astype(np.float64) @ sides[1][1].T.astype(np.float64) * scale
    score = float(seen[f"{path}.q"][head, query].astype(np.float64) @ seen[f"{path}.k"][group, key] * scale)
    places = [f"{p} {token_text(subject, ids[p])}" for p in (query, key)]
    facts = {
        "score": score,
        "head": f"{layer}.{head}",
        "query": places[0],
        "key": places[1],
        "engine": engine.name,
    }
    return Result(
        values, {"query part": sides[0][0], "key part": sides[1][0]}, "parts of an attention score", facts
    )


def _projected(
    of: frozen.FrozenLayer, parts: Parts, at: int, name: str, head: int
) -> tuple[list[str], np.ndarray]:
    """What each earlier part at a token adds to a head's query or key: names, rows [n k]; constants last."""
    earlier = np.flatnonzero((parts.positions == at) & (parts.times < 2 * of.i))
    norm = of.attention_norm
    constant = parts.fixed[: of.i, at].sum(0)
    x = np.concatenate([parts.written[earlier], constant[None]])
    x = x - x.mean(-1, keepdims=True) if norm.centred else x
    x = x * norm.inverse[at] * (1 if norm.weight is None else norm.weight)
    x[-1] += 0 if norm.bias is None else norm.bias
    names = [parts.nodes[n].name if parts.nodes[n].kind != "embedding" else "embedding" for n in earlier]
    made = _latent(of, x, at, name, head) if of.latent else _usual(of, x, at, name, head)
    return [*names, "constant"], made


def _usual(of: frozen.FrozenLayer, x: np.ndarray, at: int, name: str, head: int) -> np.ndarray:
    """Rows [n d] that attention reads, constants last, as a head's queries or keys [n k]."""
    config: Any = of.of
    size = config.key_size
    mine = slice(head * size, (head + 1) * size)
    weight, bias = of.engine.weight(f"{of.path}.attention.{name}.weight"), of.weight(f"attention.{name}.bias")
    whole = config.qk_norm is not None and config.qk_norm_over == "width"
    some = slice(None) if whole else mine  # one norm covers all heads (OLMo 2)
    rows = x @ weight[some].T
    rows[-1] += 0 if bias is None else bias[some]
    if config.qk_norm is not None and not config.qk_norm_after:
        rows = _normed(of, rows, name, head)
    rows = _rotated(rows[:, mine] if whole else rows, at, config.position)
    if config.qk_norm is not None and config.qk_norm_after:
        rows = _normed(of, rows, name, head)
    if name == "query" and (by := config.temperature) is not None:
        rows = rows * np.float32(1 + by.beta * np.log1p((at + by.first) // by.original))
    return rows


def _normed(of: frozen.FrozenLayer, rows: np.ndarray, name: str, head: int) -> np.ndarray:
    """Rows [n k] by the norm of queries or keys, its size frozen at that of their sum."""
    path, config = f"{of.path}.attention.{name}_norm", of.of
    own = frozen.FrozenNorm.of(of.engine, path, config.qk_norm, rows.sum(0, keepdims=True))
    if config.qk_norm_over == "each" and own.weight is not None:
        own = replace(own, weight=own.weight[head])
    rows = own.linear(rows)
    rows[-1] += 0 if own.bias is None else own.bias
    return rows


def _latent(of: frozen.FrozenLayer, x: np.ndarray, at: int, name: str, head: int) -> np.ndarray:
    """The same of latent attention: through the latents, whose norms' sizes are frozen; kr comes last."""
    config, path = of.of, f"{of.path}.attention"
    size, weight = config.key_size, of.engine.weight
    rotary = None
    if name == "key":
        x, rotary = np.split(x @ weight(f"{path}.down.weight").T, [config.latent], axis=1)
    elif config.query_latent is not None:
        x = x @ weight(f"{path}.query_down.weight").T
    if name == "key" or config.query_latent is not None:
        norm = "latent_norm" if name == "key" else "query_norm"
        own = frozen.FrozenNorm.of(of.engine, f"{path}.{norm}", config.norm, x.sum(0, keepdims=True))
        x = own.linear(x)
        x[-1] += 0 if own.bias is None else own.bias
    up = weight(f"{path}.{'key_up' if name == 'key' else 'query'}.weight")
    rows = x @ up.reshape(config.heads, -1, up.shape[-1])[head].T
    if rotary is None:
        rows, rotary = np.split(rows, [size], axis=1)
    return np.concatenate([rows, _rotated(rotary, at, config.position)], axis=1)


def _rotated(rows: np.ndarray, at: int, position: Any) -> np.ndarray:
    """Rows [n k] rotated as those of the token ``at``."""
    return rotated(rows[:, None], np.full(len(rows), at), position)[:, 0]


def _check(config: Any, layer: int, head: int, tokens: int, query: int, key: int) -> None:
    if not 0 <= layer < len(config.blocks):
        raise UserError(f"there is no layer {layer}: this model's layers are 0 to {len(config.blocks) - 1}")
    of = config.blocks[layer].attention
    if not 0 <= head < of.heads:
        raise UserError(f"there is no head {head}: the layer's heads are 0 to {of.heads - 1}")
    for name, at in (("query", query), ("key", key)):
        if not -tokens <= at < tokens:
            raise UserError(f"there is no {name} at {at}: the text has {tokens} tokens, from 0")
    if of.position is not None and not isinstance(of.position, rope.Config):
        raise UserError(f"the scores of layer {layer} are no sum of parts: its positions are no RoPE")
