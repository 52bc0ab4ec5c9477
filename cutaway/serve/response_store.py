"""What a server keeps: responses, conversations, items and threads, of each API key apart, bounded, and for a
time; and what keys have used.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cutaway.errors import OperationalError
from cutaway.serve.operations.api_keys import KeyRing

Kind = Literal["response", "conversation", "item", "thread"]
SECRET = 32  # bytes
PRIVATE = 0o600  # it holds what clients wrote
TABLE = """CREATE TABLE IF NOT EXISTS entry (key BLOB, id TEXT, kind TEXT, until REAL, shown TEXT, items TEXT,
    given INTEGER, PRIMARY KEY (key, id))"""
PRUNE = """DELETE FROM entry WHERE rowid IN (
    SELECT rowid FROM (
        SELECT rowid, SUM(LENGTH(shown) + LENGTH(items)) OVER newest AS size, COUNT(*) OVER newest AS number
        FROM entry WHERE key = ? WINDOW newest AS (ORDER BY rowid DESC)
    ) WHERE size > ? OR number > ?)"""


@dataclass(frozen=True)
class Entry:
    """What is kept under an id: what is ``shown`` of it, and its items, of which the first ``given`` were a
    request's.
    """

    kind: Kind
    shown: Any
    items: list[Any] = field(default_factory=list)
    given: int = 0


@dataclass
class ResponseStore:
    """In memory, or in a file that only its user can read: of one key at most ``most`` entries and ``size``
    characters, the oldest going first, each for ``seconds``. For any thread. OperationalError for a file that
    cannot be used.
    """

    path: Path | None = None
    seconds: float = 3600.0
    most: int = 4096
    size: int = 32 << 20
    secret: bytes = field(init=False, repr=False)  # signs what clients keep; a file's outlives the server
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        try:
            if self.path is not None:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, PRIVATE))
                self.path.chmod(PRIVATE)  # of one that was there; its journals get its mode
            self._db = sqlite3.connect(self.path or ":memory:", check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")  # a write waits for no disk while others wait for it
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("DROP TABLE IF EXISTS kept")  # an earlier version's
            self._db.execute(TABLE)
            self._db.execute("CREATE TABLE IF NOT EXISTS usage (name TEXT PRIMARY KEY, json TEXT)")
            self._db.execute("CREATE TABLE IF NOT EXISTS secret (id INTEGER PRIMARY KEY, value BLOB)")
            new = secrets.token_bytes(SECRET)
            self._db.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (new,))
            found = self._db.execute("SELECT value FROM secret WHERE id = 1").fetchone()
        except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
            text = f"--store {self.path} cannot be used: {error}: name a new file, in a folder of your own"
            raise OperationalError(text) from None
        if found is None or not isinstance(found[0], bytes) or len(found[0]) != SECRET:
            raise OperationalError(f"--store {self.path} is damaged (its secret): name a new file")
        self.secret = found[0]

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """OperationalError where the file turns out to be damaged."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # their messages quote the file's bytes
            raise OperationalError(f"--store {self.path} is damaged ({error}): name a new file") from None

    def put(self, key: bytes, entries: Mapping[str, Entry]) -> None:
        """Keep these entries by their ids."""
        until = time.time() + self.seconds
        rows = [
            (key, id, one.kind, until, json.dumps(one.shown), json.dumps(one.items), one.given)
            for id, one in entries.items()
        ]
        with self._lock, self._usable():
            self._db.executemany("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("DELETE FROM entry WHERE until < ?", (time.time(),))
            self._db.execute(PRUNE, (key, self.size, self.most))

    def get(self, key: bytes, id: str, kind: Kind) -> Entry | None:
        """An entry of this key and kind, None where there is none."""
        found = self._row(key, id, kind, "shown, items, given")
        if found is None:
            return None
        return Entry(kind, self._json(found[0], id), self._json(found[1], id), found[2])

    def shown(self, key: bytes, id: str, kind: Kind) -> Any:
        """What an entry shows, without its items; None where there is none."""
        found = self._row(key, id, kind, "shown")
        return None if found is None else self._json(found[0], id)

    def _json(self, text: Any, id: str) -> Any:
        """What an entry holds. OperationalError for a file that was damaged."""
        try:
            return json.loads(text)
        except (ValueError, TypeError, RecursionError):
            raise OperationalError(
                f"--store {self.path} is damaged ({id} is not JSON): name a new file"
            ) from None

    def _row(self, key: bytes, id: str, kind: Kind, columns: str) -> Any:
        query = f"SELECT {columns} FROM entry WHERE key = ? AND id = ? AND kind = ? AND until >= ?"
        if not id.isascii():  # no entry's, and half a surrogate pair is no text to SQLite
            return None
        with self._lock, self._usable():
            return self._db.execute(query, (key, id, kind, time.time())).fetchone()

    def save_usage(self, keys: KeyRing) -> None:
        """Keep what each API key has used, so that quotas and counts outlive the server."""
        rows = [(name, json.dumps(used)) for name, used in keys.snapshot().items()]
        with self._lock, self._usable():
            self._db.executemany("INSERT OR REPLACE INTO usage VALUES (?, ?)", rows)

    def load_usage(self, keys: KeyRing) -> None:
        """Give API keys what they have used before."""
        with self._lock, self._usable():
            rows = self._db.execute("SELECT name, json FROM usage").fetchall()
        keys.restore({name: self._json(used, name) for name, used in rows})

    def delete(self, key: bytes, id: str, kind: Kind) -> bool:
        """Forget an entry; whether it was there."""
        query = "DELETE FROM entry WHERE key = ? AND id = ? AND kind = ? AND until >= ?"
        with self._lock, self._usable():
            return id.isascii() and self._db.execute(query, (key, id, kind, time.time())).rowcount > 0
