"""Statistics of each head's attention over many texts: sinks, previous token, induction, entropy.

found = attention_statistics(lm, texts)            # [statistic layer head], with intervals over texts
found.show(list(found.axes["statistic"]).index("induction"))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.inputs import check_patterns
from cutaway.inspect.result import Result, student
from cutaway.inspect.subject import subject_of
from cutaway.store.files import Progress, silent

STATISTICS = ("sink", "previous", "itself", "induction", "entropy", "distance")
LEAST = 3  # tokens of a text


def attention_statistics(lm: Any, texts: Sequence[Any], progress: Progress = silent) -> Result:
    """The means over texts of each head's statistics [statistic layer head], of all queries but the first.

    "sink", "previous", "itself": attention weight on the first token, on the one before, on the query's.
    "induction": on tokens that followed an earlier occurrence of the query's token, over queries that have
    one (NaN where no text has). "entropy" in bits, of 0 for one key; "distance" in tokens, the weighted mean.
    """
    subject = subject_of(lm)
    check_patterns(subject.config)
    every = [subject.encode(text) for text in texts]
    if not every or min(map(len, every)) < LEAST:
        raise UserError(f"attention statistics are of one text or more, of {LEAST} tokens or more each")
    layers, found = len(subject.config.blocks), []
    for n, ids in enumerate(every):
        (seen,) = subject.values([ids], ["blocks.*.attention.pattern"])
        rows = [_statistics(seen[f"blocks.{i}.attention.pattern"], ids) for i in range(layers)]
        heads = max(len(row[0]) for row in rows)
        padded = [np.pad(row, ((0, 0), (0, heads - row.shape[1])), constant_values=np.nan) for row in rows]
        found.append(np.stack(padded, axis=1))
        progress("reading texts", n + 1, len(every))
    values = np.stack(found)  # [text statistic layer head]
    count = (~np.isnan(values)).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, 0) / count
        spread = np.sqrt(np.nansum((values - mean) ** 2, 0) / (count - 1) / count)
    times = np.array(
        [[student(max(int(n) - 1, 1)) if n > 2 else np.nan for n in row.ravel()] for row in count]
    )
    axes = {"statistic": STATISTICS, "layer": range(layers), "head": range(values.shape[-1])}
    facts = {"texts": len(every), "tokens": sum(map(len, every))}
    return Result(mean, axes, "attention statistics", facts, spread * times.reshape(count.shape))


def _statistics(pattern: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """float64 [statistic head] of one text's attention weights [h t s]."""
    weights = pattern.astype(np.float64)
    queries, same = np.arange(1, len(ids)), np.asarray(ids)
    rows = weights[:, 1:]
    followed = np.zeros((len(ids), len(ids)), bool)  # key s followed an earlier occurrence of query t's token
    followed[:, 1:] = (same[:, None] == same[None, :-1]) & (
        np.arange(1, len(ids)) <= np.arange(len(ids))[:, None]
    )
    repeats = followed[1:].any(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(rows > 0, rows * np.log2(rows), 0).sum(-1).mean(-1)
    back = queries[:, None] - np.arange(len(ids))
    induction = (
        (rows * followed[1:]).sum(-1)[:, repeats].mean(-1) if repeats.any() else np.full(len(rows), np.nan)
    )
    return np.stack(
        [
            rows[..., 0].mean(-1),
            rows[:, queries - 1, queries - 1].mean(-1),
            rows[:, queries - 1, queries].mean(-1),
            induction,
            entropy,
            (rows * np.maximum(back, 0)).sum(-1).mean(-1),
        ]
    )
