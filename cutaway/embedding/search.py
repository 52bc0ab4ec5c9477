"""Search by meaning in a folder's files: an index that is brought up to date and then asked.

What was read is kept in SQLite: files with their size, time and SHA-256, passages with their vectors. A file
whose size and time are those of last time is not opened; one that was only touched is not read again; what is
gone is dropped. Each file is one transaction, so that stopping at any point loses that file's work alone. The
texts are in an FTS5 table too, for search by words (``fused``). The
vectors are asked exactly up to ``EXACT`` passages; past it through an HNSW index (1603.09320) of usearch,
kept beside the database and made anew when they change.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cutaway import store
from cutaway.embedding.passages import LARGEST, decoded, files, fitting, passages
from cutaway.errors import OperationalError, UserError
from cutaway.extras import library
from cutaway.store.files import Bytes, Progress, silent, write_file

Embed = Callable[[list[str]], np.ndarray]
Fits = Callable[[str], bool]
EXACT = 100_000  # passages: as long as all can be compared in a few milliseconds
LAYOUT = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS files (
  id INTEGER PRIMARY KEY, path TEXT UNIQUE, size INTEGER, time INTEGER, sha256 TEXT, text INTEGER);
CREATE TABLE IF NOT EXISTS passages (
  id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER REFERENCES files ON DELETE CASCADE,
  line INTEGER, text TEXT, vector BLOB);
CREATE INDEX IF NOT EXISTS of_file ON passages (file);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (text, content = passages, content_rowid = id);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON passages
  BEGIN INSERT INTO words (rowid, text) VALUES (new.id, new.text); END;
CREATE TRIGGER IF NOT EXISTS dropped AFTER DELETE ON passages
  BEGIN INSERT INTO words (words, rowid, text) VALUES ('delete', old.id, old.text); END;
"""
RANK = 60  # of reciprocal rank fusion: how little the first ranks count more than the next
POOL = 50  # passages that each search gives to the fusion


def home_of(folder: Path) -> Path:
    """The path of a folder's index, unless another is given."""
    return store.home() / "search" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


@dataclass
class Update:
    """What bringing an index up to date did: files read, unchanged, dropped, and skipped as no text."""

    read: int = 0
    unchanged: int = 0
    dropped: int = 0
    skipped: int = 0
    passages: int = 0


@dataclass(frozen=True)
class Hit:
    """A passage that was found: its file, its line there, its score (a cosine, or a sum of reciprocal ranks),
    its text, and its number in the index.
    """

    path: str
    line: int
    score: float
    text: str
    id: int


class Index:
    """The index of one folder. ``model`` names what makes the vectors; UserError where another made them."""

    def __init__(self, folder: Path, home: Path, model: str, rebuild: bool = False) -> None:
        self.folder, self.home = folder.resolve(), home
        if not self.folder.is_dir():
            raise UserError(f"{folder}: there is no such folder to search in")
        with _worded(home):
            home.mkdir(parents=True, exist_ok=True)
            self.base = sqlite3.connect(home / "index.sqlite", isolation_level=None, timeout=60)
            self.base.execute("PRAGMA foreign_keys = ON")
            self.base.execute("PRAGMA journal_mode = WAL")
            wordless = not self._has_words()
            self.base.executescript(LAYOUT)
            if wordless:
                self.base.execute("INSERT INTO words (words) VALUES ('rebuild')")
            made = self.base.execute("SELECT value FROM about WHERE name = 'model'").fetchone()
            if made and made[0] != model and not rebuild:
                raise UserError(
                    f"the index of {folder} was made by the model {made[0]}, whose vectors {model} cannot be "
                    "compared with: use that model, or add --rebuild"
                )
            with self._transaction():
                if rebuild:
                    self.base.execute("DELETE FROM files")
                self.base.execute("INSERT OR REPLACE INTO about VALUES ('model', ?)", (model,))

    def update(self, embed: Embed, fits: Fits, progress: Progress = silent) -> Update:
        """Reads what is new or changed and drops what is gone. ``fits``: whether the model holds a text."""
        done = Update()
        found = {str(path.relative_to(self.folder)): path for path in files(self.folder)}
        known = {row[0]: row[1:] for row in self._rows("SELECT path, size, time, sha256, text FROM files")}
        for gone in known.keys() - found.keys():
            self._execute("DELETE FROM files WHERE path = ?", gone)
            done.dropped += 1
        changed = []
        for name, path in found.items():
            stat = _stat(path)
            old = known.get(name)
            if stat is None or (old and old[:2] == stat):
                done.unchanged += stat is not None and bool(old and old[3])
                done.skipped += stat is None or not (old and old[3])
            else:
                changed.append((name, path, stat))
        read, total = 0, sum(stat[0] for *_, stat in changed)
        for name, path, stat in changed:
            self._read(name, path, stat, known.get(name), embed, fits, done)
            read += stat[0]
            progress("reading files", Bytes(read), Bytes(total))
        done.passages = self._rows("SELECT count(*) FROM passages")[0][0]
        return done

    def _read(
        self, name: str, path: Path, stat: tuple[int, int], old: Any, embed: Embed, fits: Fits, done: Update
    ) -> None:
        try:
            data = path.read_bytes() if stat[0] <= LARGEST else b"\x00"
        except OSError:
            done.skipped += 1
            return
        digest = hashlib.sha256(data).hexdigest()
        if old and old[2] == digest:
            self._execute("UPDATE files SET size = ?, time = ? WHERE path = ?", *stat, name)
            done.unchanged += 1
            return
        text = decoded(data)
        pieces = fitting(passages(text), fits) if text is not None else []
        vectors = embed([piece.text for piece in pieces]) if pieces else np.empty((0, 0), np.float32)
        with _worded(self.home), self._transaction():
            self.base.execute("DELETE FROM files WHERE path = ?", (name,))
            row = self.base.execute(
                "INSERT INTO files (path, size, time, sha256, text) VALUES (?, ?, ?, ?, ?)",
                (name, *stat, digest, text is not None),
            )
            self.base.executemany(
                "INSERT INTO passages (file, line, text, vector) VALUES (?, ?, ?, ?)",
                [
                    (row.lastrowid, piece.line, piece.text, vector.astype("<f4").tobytes())
                    for piece, vector in zip(pieces, vectors, strict=True)
                ],
            )
        done.read += text is not None
        done.skipped += text is None

    def search(self, query: np.ndarray, count: int) -> list[Hit]:
        """The passages whose vectors are nearest to that of the query [d], best first."""
        rows = self._rows("SELECT id, vector FROM passages ORDER BY id")
        if not rows:
            return []
        ids = np.array([row[0] for row in rows])
        table = np.frombuffer(b"".join(row[1] for row in rows), "<f4").reshape(len(rows), -1)
        near, scores = self._nearest(ids, table, query, min(count, len(rows)))
        return self._hits(zip(near.tolist(), scores.tolist(), strict=True))

    def fused(self, text: str, query: np.ndarray, count: int) -> list[Hit]:
        """The passages that search by meaning (query [d]) and by words (FTS5's BM25) rank highest together.

        Reciprocal rank fusion: a passage scores 1 / (60 + rank) in each of the two, from rank 1 on.
        """
        scores: dict[int, float] = {}
        for ranked in ([hit.id for hit in self.search(query, POOL)], self._by_words(text)):
            for rank, id in enumerate(ranked, 1):
                scores[id] = scores.get(id, 0.0) + 1 / (RANK + rank)
        return self._hits(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:count])

    def _by_words(self, text: str) -> list[int]:
        """The ids of passages with any word of a text, best first."""
        words = " OR ".join(f'"{word}"' for word in dict.fromkeys(re.findall(r"\w+", text)))
        asked = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?"
        return [id for (id,) in self._rows(asked, words, POOL)] if words else []

    def _has_words(self) -> bool:
        return bool(self._rows("SELECT 1 FROM sqlite_master WHERE name = 'words'"))

    def _hits(self, scored: Iterable[tuple[int, float]]) -> list[Hit]:
        hits = []
        for id, score in scored:
            ((path, line, text),) = self._rows(
                "SELECT path, line, passages.text FROM passages JOIN files ON files.id = file "
                "WHERE passages.id = ?",
                id,
            )
            hits.append(Hit(path, line, score, text, id))
        return hits

    def _nearest(
        self, ids: np.ndarray, table: np.ndarray, query: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if len(ids) <= EXACT:
            scores = table @ query
            best = np.argsort(-scores, kind="stable")[:count]
            return ids[best], scores[best]
        found = self._graph(ids, table).search(query, count)
        return np.asarray(found.keys), 1 - np.asarray(found.distances)

    def _graph(self, ids: np.ndarray, table: np.ndarray) -> Any:
        """usearch's index of these vectors: the one that is kept, if it is of these, else a new one."""
        usearch = library(f"an index of {len(ids):,} passages", "usearch.index")
        stamp = hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:16]
        kept = self.home / f"vectors-{stamp}.usearch"
        graph = usearch.Index(ndim=table.shape[1], metric="cos", dtype="f32")
        if kept.is_file():
            graph.load(str(kept))
            return graph
        graph.add(ids, table)
        with _worded(self.home):
            for stale in self.home.glob("vectors-*.usearch*"):
                stale.unlink()
            write_file(kept, graph.save())
        return graph

    def close(self) -> None:
        """Gives the database back."""
        self.base.close()

    def _rows(self, question: str, *values: object) -> list[Any]:
        with _worded(self.home), closing(self.base.execute(question, values)) as rows:
            return rows.fetchall()

    def _execute(self, order: str, *values: object) -> None:
        with _worded(self.home):
            self.base.execute(order, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing, also when Ctrl-C comes between."""
        self.base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.base.execute("ROLLBACK")
            raise
        self.base.execute("COMMIT")


def _stat(path: Path) -> tuple[int, int] | None:
    """A file's size and time, None when it is gone again."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _worded(home: Path) -> Iterator[None]:
    """An error of the disk or of SQLite as one sentence."""
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as problem:  # their messages quote the file's bytes
        raise OperationalError(
            f"the index in {home} is unusable ({problem}): delete that folder"
        ) from problem
    except OSError as problem:
        raise OperationalError(f"the index in {home} cannot be written ({problem.strerror})") from problem
