"""Direct logit attribution: the parts of a logit ("A Mathematical Framework for Transformer Circuits", 2021).

The residual stream is a sum: the embedding, each head's output through its slice of W_o, each MLP's output. A
logit is one row of the head times the final norm of that sum; with the norm's scale frozen at its value the
norm is linear too, so the logit is a sum over these parts:

    logit = embed . u  +  sum over heads  z_h . W_o,h' u  +  sum over MLPs  mlp . u  +  biases . u
    u     = the head's row, through the frozen final norm (of a layer norm the mean is subtracted as well)

A head's part is itself a sum over keys, attention weight times value; a gate, the norm of a differential head
and Gemma's norms after attention are frozen likewise. A head of the linear family reads a recurrent state, in
which tokens are no longer apart: its part is exact, and is not split. This is the direct effect only:
patching and ablation find what later layers make of a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.derived import result
from cutaway.inspect.inputs import has_gate, has_pattern, out_input, source_layer
from cutaway.inspect.instrumented import Instrumented, head_table
from cutaway.layers.config import Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of

LAMBDAS = ("lambda_query_one", "lambda_key_one", "lambda_query_two", "lambda_key_two")


@dataclass(frozen=True)
class Attribution:
    """The parts of a logit, in logits; they sum to ``logit``.

    ``heads[i]`` [h] and ``mlps`` [i] are the layers' parts, ``embed`` the token's own embedding, ``biases``
    those of attention, of the final norm and of the head, ``rest`` what edits add to the residual stream and
    what rounding leaves over (below 1e-3 in float32, more where the runtime reads vectors of eight bits).
    ``sources[i]`` [h s] splits each head's part over the keys, None in a recurrent layer; ``beside`` [i] is
    the part of a second mixer beside a layer's attention. What is added to the residual stream adds its
    product with ``direction`` to the logit.
    """

    token: int
    against: int | None
    position: int
    logit: float
    embed: float
    heads: tuple[np.ndarray, ...]
    sources: tuple[np.ndarray | None, ...]
    beside: np.ndarray
    mlps: np.ndarray
    biases: float
    rest: float
    direction: np.ndarray

    @property
    def attention(self) -> np.ndarray:
        """The sum of the heads of each layer, and of what is beside them [i]."""
        return np.array([heads.sum() for heads in self.heads]) + self.beside

    def strongest(self, count: int) -> list[tuple[int, int, float]]:
        """(layer, head, logits) of the heads with the largest parts, positive or negative."""
        flat = [(i, h, part) for i, heads in enumerate(self.heads) for h, part in enumerate(heads.tolist())]
        return sorted(flat, key=lambda one: -abs(one[2]))[:count]


def attribute(
    engine: Instrumented,
    seen: Mapping[str, np.ndarray],
    token: int,
    position: int = -1,
    against: int | None = None,
    sources: bool = True,
) -> Attribution:
    """The parts of ``token``'s logit at ``position``, or of its difference to that of ``against``.

    ``seen`` are a forward pass's activations by name: ``embed``, ``middle`` and ``out`` of each block,
    ``logits``, and what ``inputs.attention_names`` lists. A soft-cap counts as the factor that it applied.
    Without ``sources`` no head's part is split over keys, and neither values nor patterns are read. Raises
    UserError for a token the vocabulary does not have.
    """
    config = engine.config
    _check_sum(config)
    _known(config, token)
    logits = seen["logits"][position].astype(np.float64)
    residual = seen[f"blocks.{len(config.blocks) - 1}.out"] if config.blocks else seen["embed"]
    row, logit = _row(engine, token), logits[token]
    if against is not None:
        _known(config, against)
        if config.softcap is not None:
            raise UserError("this model caps its logits, so a difference of two is no sum: leave out against")
        row, logit = row - _row(engine, against), logit - logits[against]
    row, bias = _through(engine, "norm", config.norm if config.last_norm else None, residual[position], row)
    scale = _cap_factor(config, logit) * config.logit_scale
    row, biases = row * scale, bias * scale + _head_bias(engine, token, against) * _cap_factor(config, logit)
    heads, splits, beside, mlps = [], [], [], []
    embed = float(seen["embed"][position].astype(np.float64) @ row)
    for i in range(len(config.blocks)):
        middle, after = (
            seen[f"blocks.{i}.{name}"][position].astype(np.float64) for name in ("middle", "out")
        )
        parts, split, more, bias = _of_attention(engine, seen, i, position, row, sources)
        heads.append(parts)
        splits.append(split)
        beside.append(more)
        biases += bias
        mlps.append(float((after - middle) @ row))
    total = embed + biases + sum(float(part.sum()) for part in heads) + sum(beside) + sum(mlps)
    return Attribution(
        token=token,
        against=against,
        position=position % len(residual),
        logit=float(logit),
        embed=embed,
        heads=tuple(heads),
        sources=tuple(splits),
        beside=np.array(beside),
        mlps=np.array(mlps),
        biases=float(biases),
        rest=float(logit - total),
        direction=row,
    )


def _of_attention(
    engine: Instrumented,
    seen: Mapping[str, np.ndarray],
    layer: int,
    position: int,
    row: np.ndarray,
    sources: bool,
) -> tuple[np.ndarray, np.ndarray | None, float, float]:
    """The parts [h] of a layer's heads, each split over keys [h s]; of what is beside them, and of biases."""
    block, name = engine.config.blocks[layer], f"blocks.{layer}.attention"
    of: Any = block.attention
    post = block.norm if "attention_post_norm" in block.norms else None
    inner, bias = _through(
        engine,
        f"blocks.{layer}.attention_post_norm",
        post,
        _mixed(block, layer, seen)[position],
        row * block.residual,
    )
    beside = 0.0
    if block.beside is not None:
        given = seen[f"blocks.{layer}.beside.out"][position].astype(np.float64)
        beside, inner = float(given @ inner) * block.beside.outputs[1], inner * block.beside.outputs[0]
    if f"{name}.out.bias" in engine.config.weights():
        bias += float(engine.weight(f"{name}.out.bias").astype(np.float64) @ inner)
    given = seen[out_input(of, layer)][:, position].astype(np.float64)
    writes = (inner @ engine.weight(f"{name}.out.weight")).reshape(given.shape)
    split = _by_source(engine, seen, layer, position, writes) if sources and has_pattern(of) else None
    return (given * writes).sum(-1), split, beside, bias


def _mixed(block: Block, layer: int, seen: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 [t d]: what a layer's mixers give together."""
    out = seen[f"blocks.{layer}.attention.out"]
    if block.beside is None:
        return out
    by, other_by = map(np.float32, block.beside.outputs)
    return out * by + seen[f"blocks.{layer}.beside.out"] * other_by


def head_outputs(engine: Instrumented, seen: Mapping[str, np.ndarray], layer: int) -> np.ndarray:
    """float32 [h t d]: what each head of a layer adds to the residual stream, its slice of W_o times its z.

    A norm after attention has its size frozen.
    """
    block, name = engine.config.blocks[layer], f"blocks.{layer}.attention"
    heads = result(seen[out_input(block.attention, layer)], engine.weight(f"{name}.out.weight"))
    if block.beside is not None:
        heads = heads * np.float32(block.beside.outputs[0])
    if "attention_post_norm" not in block.norms:
        return heads * np.float32(block.residual)
    whole, of = _mixed(block, layer, seen), block.norm
    if of.kind == "layer":
        whole, heads = whole - whole.mean(-1, keepdims=True), heads - heads.mean(-1, keepdims=True)
    if of.weight:
        heads = heads * engine.weight(f"blocks.{layer}.attention_post_norm.weight")
    return heads * _inverse_root(whole, of.eps).astype(np.float32) * np.float32(block.residual)


def unembedded(engine: Instrumented, directions: np.ndarray, vocabulary: int) -> np.ndarray:
    """float32 [n v]: what directions [n d] of the residual stream add to each logit, but for the final norm's
    size.
    """
    return engine.head_product(normed_directions(engine, directions))[:, :vocabulary]


def normed_directions(engine: Instrumented, directions: np.ndarray) -> np.ndarray:
    """Directions [n d] of the residual stream as the head reads them, but for the final norm's size."""
    of = engine.config.norm
    if not engine.config.last_norm:
        return directions
    if of.kind == "layer":
        directions = directions - directions.mean(-1, keepdims=True)
    return directions * engine.weight("norm.weight") if of.weight else directions


def _by_source(
    engine: Instrumented, seen: Mapping[str, np.ndarray], layer: int, position: int, writes: np.ndarray
) -> np.ndarray:
    """Each head's part by key [h s]: its attention weight, times the value's part of the logit."""
    of: Any = engine.config.blocks[layer].attention
    name = f"blocks.{layer}.attention"
    pattern = seen[f"{name}.pattern"][:, position].astype(np.float64)
    values = seen[f"blocks.{source_layer(engine.config, layer)}.attention.v"].astype(np.float64)
    if has_gate(of):
        writes = writes * seen[f"{name}.gate"][position].astype(np.float64).reshape(len(writes), -1)
    if kind_of(of) != "differential":
        values = np.repeat(values, len(pattern) // len(values), axis=0)
        return pattern * np.einsum("hsv,hv->hs", values, writes)
    one, two = np.split(pattern, 2)
    pattern = one - _lambda(engine, name, of.lambda_start) * two
    values = np.concatenate(np.split(values, 2), axis=-1)
    values = np.repeat(values, len(pattern) // len(values), axis=0)
    read = np.einsum("hs,hsv->hv", pattern, values)
    writes = writes * (1 - of.lambda_start) * _inverse_root(read, of.eps)
    if of.norm_weight:
        writes = writes * engine.weight(f"{name}.head_norm.weight")
    return pattern * np.einsum("hsv,hv->hs", values, writes)


def _lambda(engine: Instrumented, name: str, start: float) -> float:
    """The factor of the maps that differential attention subtracts."""
    a1, b1, a2, b2 = (engine.weight(f"{name}.{part}").astype(np.float64) for part in LAMBDAS)
    return float(np.exp(a1 @ b1) - np.exp(a2 @ b2) + start)


def _through(
    engine: Instrumented, path: str, of: Norm | None, x: np.ndarray, row: np.ndarray
) -> tuple[np.ndarray, float]:
    """``row . norm(x)`` as (a row to take x with, a constant), the norm's size as it was for x."""
    if of is None:
        return row, 0.0
    x, bias = x.astype(np.float64), 0.0
    if of.kind == "layer":
        x = x - x.mean()
        bias = float(engine.weight(f"{path}.bias").astype(np.float64) @ row) if of.weight and of.bias else 0.0
    row = (row * engine.weight(f"{path}.weight") if of.weight else row) * _inverse_root(x, of.eps)
    return (row - row.mean() if of.kind == "layer" else row), bias


def _inverse_root(x: np.ndarray, eps: float) -> np.ndarray:
    """1 / sqrt(mean(x^2) + eps) over the last axis, which stays as one."""
    return 1 / np.sqrt(np.square(x, dtype=np.float64).mean(-1, keepdims=True) + eps)


def _row(engine: Instrumented, token: int) -> np.ndarray:
    """float64 [d]: the output head's row of a token."""
    return head_table(engine)[np.array([token])][0].astype(np.float64)


def _head_bias(engine: Instrumented, token: int, against: int | None) -> float:
    """What the head adds to a token's logit, or to its difference from another's."""
    if "head.bias" not in engine.config.weights():
        return 0.0
    bias = engine.weight("head.bias").astype(np.float64)
    return float(bias[token] - (0.0 if against is None else bias[against]))


def _cap_factor(config: Decoder, logit: float) -> float:
    """The soft-cap's factor at this logit: c tanh(x / c) over x."""
    cap = config.softcap
    return 1.0 if cap is None or logit == 0 else float(logit / (cap * np.arctanh(logit / cap)))


def _check_sum(config: Decoder) -> None:
    if any(block.streams or block.laurel or block.shared for block in config.blocks):
        raise UserError(
            "attribution adds what attention and MLPs write to one residual stream; this model's blocks have "
            "several streams, or more beside them"
        )


def _known(config: Decoder, token: int) -> None:
    if not 0 <= token < config.vocab:
        raise UserError(f"token {token} is not in this model's vocabulary of {config.vocab:,}")
