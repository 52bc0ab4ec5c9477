"""Cached evaluations, by the weights and the request, so that one that was stopped goes on.

One SQLite file in the cache folder. A key is the digest of the model's files, the engine, the package's
version and the request in ids; a value is JSON. A file is hashed again when its size, time or inode changes.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cutaway
from cutaway import store
from cutaway.errors import OperationalError
from cutaway.lm import LanguageModel
from cutaway.store.files import OTHER_HOME, digest, disk_errors
from cutaway.weights import adapters

SLICE = 64  # requests after which results are kept


class Cache:
    """Values by request, for one model. ``path`` None keeps nothing beyond this object."""

    def __init__(self, lm: LanguageModel, path: Path | None) -> None:
        self.path, self.database = path, _opened(path)
        engine = "pytorch" if lm.checkpoint.classifier else lm.engine_choice[0]
        self.model = [cutaway.__version__, engine, lm.dtype, lm.context]
        if path is not None:
            self.model += [adapters.digest(lm.checkpoint), *map(self._digest, lm.checkpoint.files)]

    def fill(
        self,
        requests: Sequence[Any],
        compute: Callable[[Sequence[int]], Sequence[Any]],
        progress: Callable[[int], None],
    ) -> list[Any]:
        """A value for each request. ``compute(numbers)`` gives those of some, whose values are not known."""
        keys = [self._key(request) for request in requests]
        found: dict[int, Any] = {}
        for n, key in enumerate(keys):
            with _usable(self.path):
                row = self.database.execute("SELECT value FROM results WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[n] = json.loads(row[0])
        missing = [n for n in range(len(requests)) if n not in found]
        progress(len(found))
        slices = [missing[start : start + SLICE] for start in range(0, len(missing), SLICE)]
        for numbers, values in zip(slices, self.computed(slices, compute), strict=True):
            made = dict(zip(numbers, values, strict=True))
            found |= made
            rows = [(keys[n], json.dumps(value)) for n, value in made.items()]
            with _usable(self.path):
                self.database.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", rows)
                self.database.commit()
            progress(len(found))
        return [json.loads(json.dumps(found[n])) for n in range(len(requests))]

    def computed(
        self, slices: Sequence[Sequence[int]], compute: Callable[[Sequence[int]], Sequence[Any]]
    ) -> Iterable[Sequence[Any]]:
        """The values of each slice of a request's numbers, one after the other."""
        return map(compute, slices)

    def _key(self, request: Any) -> str:
        return hashlib.blake2b(json.dumps([self.model, request]).encode(), digest_size=20).hexdigest()

    def _digest(self, file: Path) -> str:
        status = file.stat()
        stamp = f"{file} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
        with _usable(self.path):
            row = self.database.execute("SELECT value FROM results WHERE key = ?", (stamp,)).fetchone()
            if row is None:
                row = (digest(file),)
                self.database.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (stamp, row[0]))
                self.database.commit()
        return row[0]


def path() -> Path:
    """The path of the results."""
    return store.home() / "evaluations.sqlite"


def _opened(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        with disk_errors(path, OTHER_HOME):
            path.parent.mkdir(parents=True, exist_ok=True)
    with _usable(path):
        database = sqlite3.connect(":memory:" if path is None else path, timeout=60)
        database.execute(
            "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"
        )
    return database


@contextmanager
def _usable(path: Path | None) -> Iterator[None]:
    """OperationalError where the file is damaged, or holds what is no JSON."""
    try:
        yield
    except (sqlite3.DatabaseError, ValueError, TypeError, RecursionError) as error:
        raise OperationalError(
            f"{path}: results cannot be kept there ({error}): delete it, or use --no-cache"
        ) from None
