"""The logits at the end of a graph: which tokens', how likely, and what of the residual stream they read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.arrays import softmax
from cutaway.inspect.graph import frozen
from cutaway.inspect.instrumented import Instrumented, Values, head_table
from cutaway.inspect.pairs import vocabulary_of
from cutaway.inspect.subject import Subject
from cutaway.model.config import Decoder

LIKELY, MOST = 0.95, 10  # the likeliest up to this probability, and so many at most
FAR = 10  # so many times as likely: another token may have been meant
TILE = 8192  # rows of the head's matrix at once


class Logits(NamedTuple):
    """The tokens whose logits are nodes, their probabilities, and what reads them at the last token.

    ``weights``: the probabilities as parts of their sum.
    """

    ids: list[int]
    probabilities: np.ndarray
    weights: np.ndarray
    directions: np.ndarray  # [n d] of the residual stream
    values: np.ndarray
    constants: np.ndarray


def centred(config: Decoder, row: np.ndarray) -> np.ndarray:
    """float64 [v]: logits before a soft-cap, less their mean: only differences of logits count."""
    row = row.astype(np.float64)
    row = row if config.softcap is None else config.softcap * np.arctanh(row / config.softcap)
    return row - row.mean()


def spaced(subject: Subject, seen: Values, target: object) -> dict[str, float] | None:
    """The probabilities of a target's text and of it after a space, if the second is far likelier."""
    if not isinstance(target, str) or target.startswith(" "):
        return None
    ids = [subject.tokenizer.encode(text) for text in (target, f" {target}")]  # pyright: ignore[reportAttributeAccessIssue]
    if any(len(one) != 1 for one in ids):
        return None
    row = softmax(seen["logits"][-1, : vocabulary_of(subject)].astype(np.float64))
    plain, other = (float(row[one[0]]) for one in ids)
    return {target: plain, f" {target}": other} if other > FAR * plain else None


def read_logits(subject: Subject, engine: Instrumented, seen: Values, target: int | None) -> Logits:
    """The logits that are nodes, of a ``target`` or the likeliest, each less the mean of all."""
    config, count = subject.config, vocabulary_of(subject)
    row = seen["logits"][-1, :count]
    probabilities = softmax(row.astype(np.float64))
    if target is None:
        order = np.argsort(-probabilities, kind="stable")[:MOST]
        likely = int(np.searchsorted(np.cumsum(probabilities[order]), LIKELY)) + 1
        ids = order[: min(likely, len(order))].tolist()
    elif not 0 <= target < count:
        raise UserError(f"token {target} is not in this model's vocabulary of {count:,}")
    else:
        ids = [target]
    table = head_table(engine)
    mean = np.zeros(config.width)
    for start in range(0, count, TILE):
        mean += table[start : min(start + TILE, count)].sum(0, dtype=np.float64)
    wanted = (table[np.array(ids)] - mean / count).astype(np.float32) * np.float32(config.logit_scale)
    stream = seen[f"blocks.{len(config.blocks) - 1}.out"][-1:]
    norm = frozen.FrozenNorm.of(engine, "norm", config.norm if config.last_norm else None, stream)
    constants = np.zeros(len(ids)) if norm.bias is None else (wanted @ norm.bias).astype(np.float64)
    for name in ("head.bias", "logits_bias"):
        if name in config.weights():
            bias = engine.weight(name)[:count].astype(np.float64)
            constants = constants + bias[ids] - bias.mean()
    own = probabilities[ids]
    return Logits(ids, own, own / own.sum(), norm.back(wanted), centred(config, row)[ids], constants)
