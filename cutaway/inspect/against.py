"""Compare a base model with its fine-tuned one: their activations on one text, and their weights.

Four questions, each answered from two traces or from the weights alone:

    where do they part?        KL(base || tuned) of the logit lens, at each token after each block
    what comes next?           the likeliest next tokens of both
    which parts moved?         |tuned - base| / |base| of each head's and MLP's output, over all tokens but
                               attention sinks, whose outputs are so large that they would be the figure
    which directions are new?  the singular value decomposition of a matrix's change, dW = sum s u v^T, read
                               through the unembedding: u is what the change writes into the residual stream

Of LoRA's change B A the decomposition is that of a small matrix (Q_B R_B)(Q_A R_A)^T = Q_B (R_B R_A^T) Q_A^T.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect import explanation, tokens
from cutaway.inspect.activations import sinks
from cutaway.inspect.arrays import largest
from cutaway.inspect.attribution import head_outputs, unembedded
from cutaway.inspect.inputs import output_heads
from cutaway.inspect.instrumented import Instrumented
from cutaway.inspect.logit_lens import divergences
from cutaway.inspect.trace_values import TraceValues
from cutaway.model.config import Decoder as Config
from cutaway.weights.changes import Change, LowRank

WRITES = re.compile(r"blocks\.(\d+)\.(attention\.out|mlp\.(.*\.)?down)\.weight")  # into the residual stream
DIRECTIONS = 3  # of each matrix
PROMOTED = 6  # tokens at each end of a direction


@dataclass(frozen=True)
class Moved:
    """A head's output, or with ``head`` None an MLP's: ``norm`` in the base, and |tuned - base| / norm."""

    layer: int
    head: int | None
    norm: float
    change: float


@dataclass(frozen=True)
class Direction:
    """A left singular vector of a change. ``share``: of the change's squared norm; tokens at both ends."""

    singular_value: float
    share: float
    promotes: tuple[str, ...]
    opposite: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """How a matrix that writes into the residual stream changed: |dW| / |W|, and its largest directions."""

    weight: str
    change: float
    directions: tuple[Direction, ...]


@dataclass(frozen=True)
class Against:
    """``kl`` [t n] in nats at each of ``tokens`` after each of ``stages``; all lists are largest first."""

    text: str
    tokens: tuple[str, ...]
    stages: tuple[str, ...]
    kl: tuple[tuple[float, ...], ...]
    next: tuple[explanation.Changed, ...]
    heads: tuple[Moved, ...]
    mlps: tuple[Moved, ...]
    written: tuple[Written, ...]


def check(base: Config, tuned: Config, vocabularies: tuple[Any, Any]) -> None:
    """UserError unless two models have the same shape and the same tokens."""
    one, other = ({**config.weights(), "head.weight": ()} for config in (base, tuned))
    if one != other:
        name = min(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
        raise UserError(
            f"the models have other shapes: {name} is {one.get(name, 'absent')} in the base and "
            f"{other.get(name, 'absent')} in the other: --against compares a model with what was trained "
            "from it; use --compare-model for two models"
        )
    if any(
        output_heads(mine.attention) != output_heads(theirs.attention)
        for mine, theirs in zip(base.blocks, tuned.blocks, strict=True)
    ):
        raise UserError("the models have other numbers of heads: use --compare-model for two models")
    mine, theirs = vocabularies
    if len(mine) != len(theirs) or any(
        mine.token_bytes(n) != theirs.token_bytes(n) for n in range(len(mine))
    ):
        raise UserError(
            "the models have other vocabularies, so that their distributions cannot be compared: use "
            "--compare-model"
        )


def against(
    base: TraceValues, tuned: TraceValues, changes: Mapping[str, Change] | None = None, top: int = 10
) -> Against:
    """Compare two models on one text, by traces that kept ``explanation.names``.

    ``changes`` is the adapter that makes the one the other; without it the weights are subtracted.
    """
    residuals = base.residuals(), tuned.residuals()
    kl = divergences((base.instrumented, tuned.instrumented), residuals, base.vocabulary)
    heads, mlps, kept = [], [], _usual(base)
    for i in range(base.layers):
        one, other = (head_outputs(trace.instrumented, trace, i)[:, kept] for trace in (base, tuned))
        heads += [_moved(i, h, *pair) for h, pair in enumerate(zip(one, other, strict=True))]
        added = ((trace[f"blocks.{i}.out"] - trace[f"blocks.{i}.middle"])[kept] for trace in (base, tuned))
        mlps.append(_moved(i, None, *added))
    return Against(
        text=tokens.text(base.tokenizer, base.ids),
        tokens=tuple(base.tokens),
        stages=tuple(residuals[0]),
        kl=tuple(map(tuple, kl.T.tolist())),
        next=explanation.change(base, tuned, (), top).next,
        heads=_sorted(heads),
        mlps=_sorted(mlps),
        written=_sorted(written(base, tuned.instrumented, changes)),
    )


def written(
    base: TraceValues, tuned: Instrumented, changes: Mapping[str, Change] | None = None
) -> list[Written]:
    """The changes of the matrices that write into the residual stream, without those that did not change."""
    found = []
    for name in filter(WRITES.fullmatch, base.config.weights()):
        if changes is not None and name not in changes:
            continue
        change, weight = None if changes is None else changes[name], base.instrumented.weight(name)
        if isinstance(change, LowRank) and change.magnitude is None:
            directions, sizes = low_rank_svd(change.scale * change.b, change.a)
        else:
            directions, sizes = left_svd((tuned.weight(name) - weight).astype(np.float64))
        total = float(np.square(sizes).sum())
        if not total:
            continue
        kept = slice(min(DIRECTIONS, len(sizes)))
        size = float(np.linalg.norm(weight.astype(np.float64)))
        found.append(
            Written(name, total**0.5 / size, _read(base, name, directions[:, kept], sizes[kept], total))
        )
    return found


def low_rank_svd(b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left singular vectors [out r] and the singular values of B A, which is never made."""
    (q, left), (_, right) = np.linalg.qr(b.astype(np.float64)), np.linalg.qr(a.T.astype(np.float64))
    u, sizes, _ = np.linalg.svd(left @ right.T, full_matrices=False)
    return q @ u, sizes


def left_svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left singular vectors [out out] and the singular values of a float64 matrix, by M M^T."""
    squares, u = np.linalg.eigh(matrix @ matrix.T)
    return u[:, ::-1], np.sqrt(np.clip(squares[::-1], 0, None))


def _read(
    base: TraceValues, name: str, directions: np.ndarray, sizes: np.ndarray, total: float
) -> tuple[Direction, ...]:
    """The directions with the tokens whose logits each raises most, and those that its opposite raises."""
    found: Any = WRITES.fullmatch(name)
    block, engine = base.config.blocks[int(found[1])], base.instrumented
    norm = "attention_post_norm" if found[2] == "attention.out" else "mlp_post_norm"
    rows = directions.T.astype(np.float32)
    if norm in block.norms and block.norm.weight:
        rows = rows * engine.weight(f"blocks.{found[1]}.{norm}.weight")
    logits = unembedded(engine, rows, base.vocabulary)
    ends = [largest(sign * logits, PROMOTED).tolist() for sign in (1, -1)]
    return tuple(
        Direction(float(size), float(size) ** 2 / total, *(tuple(map(base.token, ids)) for ids in both))
        for size, *both in zip(sizes, *ends, strict=True)
    )


def _usual(trace: TraceValues) -> np.ndarray:
    """The numbers of the tokens that are attention sinks in no layer; all tokens where there is no other."""
    at = np.arange(len(trace.ids))
    norms = (np.linalg.norm(value, axis=-1) for value in trace.residuals().values())
    usual = ~np.any([sinks(each, at) for each in norms], axis=0)
    return at[usual] if usual.any() else at


def _moved(layer: int, head: int | None, one: np.ndarray, other: np.ndarray) -> Moved:
    """How far the output [t d] of a part moved."""
    size, moved = float(np.linalg.norm(one)), float(np.linalg.norm(other - one))
    return Moved(layer, head, size, moved / size if size else 0.0)


def _sorted(found: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(sorted(found, key=lambda one: -one.change))
