"""What /v1/responses keeps: JSON by its id, for each API key apart, bounded, and for a time."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TABLE = "CREATE TABLE IF NOT EXISTS kept (key BLOB, id TEXT, until REAL, json TEXT, PRIMARY KEY (key, id))"
PRUNE = """DELETE FROM kept WHERE rowid IN (
    SELECT rowid FROM (
        SELECT rowid, SUM(LENGTH(json)) OVER newest AS size, COUNT(*) OVER newest AS number
        FROM kept WHERE key = ? WINDOW newest AS (ORDER BY rowid DESC)
    ) WHERE size > ? OR number > ?)"""


@dataclass
class ResponseStore:
    """In memory, or in a file: of one key at most ``most`` entries and ``size`` characters, the oldest going
    first, each for ``seconds``. For any thread.
    """

    path: Path | None = None
    seconds: float = 3600.0
    most: int = 4096
    size: int = 32 << 20
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._db = sqlite3.connect(self.path or ":memory:", check_same_thread=False, isolation_level=None)
        self._db.execute(TABLE)

    def put(self, key: bytes, entries: dict[str, Any]) -> None:
        """Keep these entries by their ids."""
        until = time.time() + self.seconds
        rows = [(key, id, until, json.dumps(value)) for id, value in entries.items()]
        with self._lock:
            self._db.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", rows)
            self._db.execute("DELETE FROM kept WHERE until < ?", (time.time(),))
            self._db.execute(PRUNE, (key, self.size, self.most))

    def get(self, key: bytes, id: str) -> Any:
        """An entry of this key, None where there is none."""
        with self._lock:
            query = "SELECT json FROM kept WHERE key = ? AND id = ? AND until >= ?"
            found = self._db.execute(query, (key, id, time.time())).fetchone()
        return found and json.loads(found[0])

    def delete(self, key: bytes, id: str) -> bool:
        """Forget an entry; whether it was there."""
        with self._lock:
            return self._db.execute("DELETE FROM kept WHERE key = ? AND id = ?", (key, id)).rowcount > 0
