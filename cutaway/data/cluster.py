"""Shards made by a cluster: ``shards.prepare`` as a Ray Data job, for corpora past one machine.

Each file of the source is a task that reads and filters its documents; equal documents meet by their digest
and the first stays; the rest, in the source's order, are cut into blocks, and each block becomes a shard.
``folder`` and the tokenizer's folder must be places that every machine sees. Near-duplicates are one
machine's work and are refused here.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.data import filters, shards, sources
from cutaway.data.shards import Corpus, Shard
from cutaway.errors import UserError
from cutaway.extras import install
from cutaway.store.files import disk_errors

DOCUMENTS = 20_000  # of a shard
MOST_PARTS = 1024  # that meet by digest side by side


def prepare(
    source: sources.Source,
    tokenizer: Path,
    folder: Path,
    *,
    rules: filters.Filters | None = None,
    documents: int = DOCUMENTS,
) -> Corpus:
    """``shards.prepare``, by the Ray cluster there is, else by a local Ray."""
    rules = rules or filters.Filters()
    if rules.near is not None:
        raise UserError(
            "config.data.filters.near: near-duplicates are not looked for over a cluster: leave it out, or "
            "data.ray"
        )
    made = shards.origin(source, rules, tokenizer)
    if (known := shards.there(folder, made)) is not None:
        return known
    try:
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"tokenising on Ray needs it: {install('ray', 'train')}") from None
    place = Path(source.path).expanduser()
    files = sources.files(place, source.suffixes) if place.is_dir() else [place]
    names = [str(path.absolute()) for path in files] if place.exists() else [source.path]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tasks = [{"file": n, "path": path} for n, path in enumerate(names)]
    read = ray.data.from_items(tasks).flat_map(_reader(source, rules)).materialize()
    kept = read.filter(lambda row: row["reason"] == "")
    if rules.exact:
        kept = kept.materialize()
        # Ray cannot sort a part that got no rows, so a small corpus has few parts.
        parts = max(1, min(MOST_PARTS, kept.count() // 1000))
        kept = kept.groupby("digest", num_partitions=parts).map_groups(_first, batch_format="numpy")
    kept = kept.sort(["file", "place"]).materialize()
    count = kept.count()
    if not count:
        raise UserError(f"{source.path}: no document is left to train on")
    blocks = kept.repartition(-(-count // documents))
    written = blocks.map_batches(_writer(tokenizer, folder), batch_size=None, batch_format="numpy")
    found = sorted(written.take_all(), key=lambda row: (row["file"], row["place"]))
    done = [Shard(**json.loads(row["shard"])) for row in found]
    counts = Counter(
        {row["reason"] or "kept": row["count()"] for row in read.groupby("reason").count().take_all()}
    )
    counts["read"] = counts.total()
    counts["duplicate"] = counts["kept"] - count
    counts["kept"] = count
    return shards.indexed(folder, made, tokenizer, +counts, done)


def _reader(source: sources.Source, rules: filters.Filters) -> Any:
    """Of a file, its documents, each with its place and why it is dropped, if it is."""
    alone = replace(rules, exact=False, near=None)

    def read(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for place, document in enumerate(sources.documents(replace(source, path=row["path"]))):
            counts: Counter[str] = Counter()
            kept = next(filters.kept([document], alone, counts), None)
            reason = next(name for name in counts if name != "read")
            data = (kept or "").encode("utf-8", "surrogatepass")
            yield {
                "file": row["file"],
                "place": place,
                "text": kept or "",
                "digest": hashlib.blake2b(data, digest_size=16).hexdigest(),
                "reason": "" if reason == "kept" else reason,
            }

    return read


def _first(group: Any) -> Any:
    """Of equal documents the first."""
    first = np.lexsort((group["place"], group["file"]))[:1]
    return {name: column[first] for name, column in group.items()}


def _writer(tokenizer: Path, folder: Path) -> Any:
    """Of a block of documents, in order, a shard named by them."""

    def write(block: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        documents = [str(document) for document in block["text"]]
        name = hashlib.blake2b("\0".join(block["digest"]).encode(), digest_size=8).hexdigest()
        shard = shards.write_shard(documents, tokenizer, folder, name)
        first = {"file": [int(block["file"][0])], "place": [int(block["place"][0])]}
        return first | {"shard": [json.dumps(asdict(shard))]}

    return write
