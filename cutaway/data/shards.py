"""Tokens on disk: memory-mapped shards with their documents' begins, and an index with checksums.

A shard is two files: ``NAME.tokens``, the ids one after another (uint16 where the vocabulary fits, else
uint32), and ``NAME.starts``, int64, where each document begins. A document opens with the tokenizer's begin
token, and ends with its end token where that is another. The index, written last, names every shard with its
checksum.

Shards are made in parallel. The documents a shard holds depend on the source alone, so a job that was killed
is simply run again: a shard whose documents' digest is already there, whole, is not made twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from cutaway.bounds import Bound, Natural
from cutaway.data import filters, run_tokenizer, sources
from cutaway.errors import OperationalError, UserError, quoted
from cutaway.model.config_dict import from_dict
from cutaway.store import files
from cutaway.store.files import digest, disk_errors
from cutaway.store.reading import parsed
from cutaway.tokenizer import Tokenizer

INDEX = "index.json"
SHARD_CHARACTERS = 32 << 20
Size = Annotated[int, Bound(1, 1 << 40)]


@dataclass(frozen=True)
class Shard:
    """One shard: its tokens, documents and bytes of text, and the digests of documents and files."""

    name: str
    tokens: Size
    documents: Size
    bytes: Natural
    source: str
    tokens_sha256: str
    starts_sha256: str


@dataclass(frozen=True)
class _Index:
    """What the index says: how the shards were made, how an id is stored, what was kept, and the shards."""

    made: dict
    dtype: Literal["<u2", "<u4"]
    counts: dict
    shards: tuple[Shard, ...]


# ---- making them -------------------------------------------------------------------------------------------


def prepare(
    source: sources.Source,
    tokenizer: Path,
    folder: Path,
    *,
    rules: filters.Filters | None = None,
    workers: int | None = None,
    shard_characters: int = SHARD_CHARACTERS,
) -> Corpus:
    """The source, cleaned and tokenised into ``folder``; what an earlier call has written is used again.

    ``tokenizer`` is a folder that ``run_tokenizer.save`` wrote. Raises UserError for a source without text,
    OperationalError if the disk is full.
    """
    made = origin(source, rules or filters.Filters(), tokenizer)
    if (known := there(folder, made)) is not None:
        return known
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        counts: Counter[str] = Counter()
        texts = filters.kept(sources.documents(source), rules or filters.Filters(), counts)
        shards = _shards(texts, tokenizer, folder, workers, shard_characters)
        if not shards:
            kept = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UserError(f"{source.path}: no document is left to train on ({kept})")
        for stray in folder.glob("*.done"):
            if stray.stem not in {shard.name for shard in shards}:
                stray.unlink()
        return indexed(folder, made, tokenizer, counts, shards)


def origin(source: sources.Source, rules: filters.Filters, tokenizer: Path) -> dict[str, Any]:
    """The origin of a corpus: equal origins give equal tokens, on one machine or a cluster."""
    of = {"source": asdict(source), "rules": asdict(rules), "files": _stamp(source)}
    return of | {"tokenizer": run_tokenizer.fingerprint(tokenizer)}


def there(folder: Path, made: object) -> Corpus | None:
    """The corpus of this origin, where the folder has it."""
    index = folder / INDEX
    return Corpus(folder) if index.is_file() and parsed(index).get("made") == _plain(made) else None


def indexed(folder: Path, made: object, tokenizer: Path, counts: Counter[str], shards: list[Shard]) -> Corpus:
    """The corpus of a folder of shards, after writing its index: how they were ``made``, what was kept."""
    entry = {"made": _plain(made), "dtype": dtype(tokenizer), "counts": dict(counts)}
    entry["shards"] = [asdict(shard) for shard in shards]
    files.write_file(folder / INDEX, json.dumps(entry, indent=1))
    return Corpus(folder)


def _shards(
    texts: Iterable[str], tokenizer: Path, folder: Path, workers: int | None, size: int
) -> list[Shard]:
    """Every shard, made by as many processes; at most two pieces of text a worker wait in memory."""
    workers = workers or os.cpu_count() or 1
    shards: list[Shard] = []
    pieces = _pieces(texts, size)
    first = list(islice(pieces, 2))
    tasks = ((piece, tokenizer, folder, f"{n:05}") for n, piece in enumerate(chain(first, pieces)))
    if workers == 1 or len(first) < 2:  # one piece is done before a process has started
        for task in tasks:
            shards.append(write_shard(*task))
        return shards
    waiting: deque[Future[Shard]] = deque()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for task in tasks:
            waiting.append(pool.submit(write_shard, *task))
            if len(waiting) > 2 * workers:
                shards.append(waiting.popleft().result())
        for future in waiting:
            shards.append(future.result())
    return shards


def _pieces(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Documents in lists of about ``size`` characters."""
    piece: list[str] = []
    held = 0
    for document in texts:
        piece.append(document)
        held += len(document)
        if held >= size:
            yield piece
            piece, held = [], 0
    if piece:
        yield piece


def write_shard(documents: list[str], tokenizer: Path, folder: Path, name: str) -> Shard:
    """One shard; one of the same documents and tokenizer that is there already is left as it is."""
    source = _digest(documents, tokenizer)
    done = folder / f"{name}.done"
    found = _done(done, folder)
    if found is not None and found.source == source:
        return found
    vocabulary = _loaded(str(tokenizer))
    begin, end = run_tokenizer.ends(vocabulary)
    parts: list[np.ndarray] = []
    starts: list[int] = []
    at = 0
    for document in documents:
        ids = vocabulary.encode_array(document)
        starts.append(at)
        parts += [np.array([begin], np.int32), ids, np.array([] if end == begin else [end], np.int32)]
        at += len(ids) + (1 if end == begin else 2)
    with disk_errors(folder):
        arrays = {
            "tokens": np.concatenate(parts).astype(dtype(tokenizer)),
            "starts": np.array(starts, np.int64),
        }
        for suffix, array in arrays.items():
            files.write_file(folder / f"{name}.{suffix}", array.tobytes())
        sums = {suffix: hashlib.sha256(array.tobytes()).hexdigest() for suffix, array in arrays.items()}
        size = sum(len(document.encode("utf-8", "surrogatepass")) for document in documents)
        shard = Shard(name, at, len(documents), size, source, sums["tokens"], sums["starts"])
        files.write_file(done, json.dumps(asdict(shard)))
    return shard


def _damaged(folder: Path, shard: Shard) -> Path | None:
    """The first of the shard's files that is missing or has another checksum."""
    for suffix, wanted in (("tokens", shard.tokens_sha256), ("starts", shard.starts_sha256)):
        path = folder / f"{shard.name}.{suffix}"
        if not path.is_file() or digest(path) != wanted:
            return path
    return None


def _done(path: Path, folder: Path) -> Shard | None:
    """The shard that an earlier job finished, if both its files are what they were."""
    if not path.is_file():
        return None
    shard = from_dict(parsed(path), Shard, str(path))
    return None if _damaged(folder, shard) else shard


@cache
def _loaded(path: str) -> Tokenizer:
    return Tokenizer.load(path)


@cache
def dtype(tokenizer: Path) -> str:
    """How an id is stored: two bytes where the vocabulary fits."""
    return "<u2" if len(_loaded(str(tokenizer))) <= 1 << 16 else "<u4"


def _digest(documents: list[str], tokenizer: Path) -> str:
    seen = hashlib.sha256(run_tokenizer.fingerprint(tokenizer).encode())
    for document in documents:
        data = document.encode("utf-8", "surrogatepass")
        seen.update(len(data).to_bytes(8, "little") + data)
    return seen.hexdigest()


def _stamp(source: sources.Source) -> list[list[object]]:
    """Names, sizes and times of local files, which show that they have not changed since they were read."""
    path = Path(source.path).expanduser()
    if source.path.startswith(sources.HUB) or not path.exists():
        return []
    found = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in found]


def _plain(data: object) -> Any:
    return json.loads(json.dumps(data))


# ---- reading them ------------------------------------------------------------------------------------------


class Corpus:
    """The shards of a folder as one stream of tokens. ``counts`` says what cleaning kept and dropped.

    A shard is checked against its checksum when it is first read; one that is not what was written is
    OperationalError.
    """

    def __init__(self, folder: Path) -> None:
        index = folder / INDEX
        if not index.is_file():
            raise UserError(f"{folder}: holds no tokenised text ({INDEX} is missing): prepare it again")
        entry = from_dict(parsed(index), _Index, str(index))
        self.folder = folder
        self.shards = list(entry.shards)
        for shard in self.shards:
            if Path(shard.name).name != shard.name or "\0" in shard.name:
                raise UserError(f"{index}: names the shard {quoted(shard.name)}, which is no file's name")
        if not self.shards:
            raise UserError(f"{index}: names no shard")
        self.counts: dict[str, int] = entry.counts
        self.dtype = np.dtype(entry.dtype)
        self.ends = np.cumsum([shard.tokens for shard in self.shards])
        self.tokens = int(self.ends[-1])
        self.bytes = sum(shard.bytes for shard in self.shards)
        self._open: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens [n] of the stream from ``start`` to ``stop``, and where each one's document begins."""
        ids, begins = [], []
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            base = int(self.ends[shard]) - self.shards[shard].tokens
            tokens, starts = self._shard(shard)
            part = np.arange(start - base, min(stop, int(self.ends[shard])) - base)
            ids.append(tokens[part].astype(np.int64))
            begins.append(starts[np.searchsorted(starts, part, side="right") - 1] + base)
            start, shard = start + len(part), shard + 1
        return np.concatenate(ids), np.concatenate(begins)

    def _shard(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        if n not in self._open:
            shard = self.shards[n]
            if file := _damaged(self.folder, shard):
                raise OperationalError(
                    f"{file}: is damaged or missing (its checksum is not the index's): delete "
                    f"{self.folder / INDEX}, and the next run makes this shard again"
                )
            tokens, starts = (self.folder / f"{shard.name}.{suffix}" for suffix in ("tokens", "starts"))
            found = np.memmap(tokens, self.dtype, "r"), np.fromfile(starts, np.int64)
            if len(found[0]) != shard.tokens or len(found[1]) != shard.documents or found[1][0] != 0:
                raise OperationalError(f"{tokens}: is not what {INDEX} says: delete {self.folder / INDEX}")
            self._open[n] = found
        return self._open[n]
