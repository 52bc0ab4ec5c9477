"""Counting on Ray Data, for a corpus larger than a machine: files counted in place, counts added up.

A block of paths becomes one block of counts, as `WordCounts.to_bytes`. Pairs are merged until one is
left, so that no machine holds more than a few shards' distinct words. The result is that of
`WordCounts.of`, as counts add up in any order.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cutaway.errors import OperationalError, UserError
from cutaway.extras import library
from cutaway.tokenizer.word_counts import LIMIT, WordCounts

TOGETHER = 8  # counts that one task merges


def of(
    files: Iterable[str | os.PathLike[str]],
    pattern: str = "cl100k",
    special: Iterable[str] = (),
    *,
    limit: int = LIMIT,
    invalid: str = "refuse",
) -> WordCounts:
    """`WordCounts.of` files that every worker can read, on the Ray cluster there is, else on this machine.

    Raises UserError without Ray, and what counting raises.
    """
    ray = library("counting on several machines", "ray")
    paths = [str(Path(file).resolve()) for file in files]
    special = tuple(special)
    WordCounts(pattern, special, limit)  # refused here rather than by a worker
    if not paths:
        raise UserError("there is nothing to count: give files")

    def counted(batch: Any) -> Any:
        """WordCounts, or why there are none: Ray would give the sentence back amid its own."""
        files = [Path(path) for path in batch["item"]]
        try:
            counts = WordCounts.of(files, pattern, special, limit=limit, invalid=invalid)
        except (UserError, OperationalError) as problem:
            return {"counts": [b""], "problem": [str(problem)]}
        return {"counts": [counts.to_bytes()], "problem": [""]}

    def merged(batch: Any) -> Any:
        first, *others = map(WordCounts.from_bytes, batch["counts"])
        return {"counts": [first.merge(*others).to_bytes()]}

    data = ray.data.from_items(paths).map_batches(counted, batch_size=1).materialize()
    for row in data.select_columns(["problem"]).iter_rows():
        if row["problem"]:
            raise UserError(row["problem"])
    while data.count() > 1:
        data = data.repartition(-(-data.count() // TOGETHER))
        data = data.map_batches(merged, batch_size=None).materialize()
    return WordCounts.from_bytes(data.take(1)[0]["counts"])
