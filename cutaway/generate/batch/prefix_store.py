"""Pages of KV cache on disk: prefixes that a restart does not forget.

One file holds one page (`store/sealed.py`), under a name made of its model and its key in the prefix cache: a
hash of all ids up to its end, from the API key and salt on. So a page is found by requests that could have
found it in memory, and by no others. Pages are read into the engine's own memory and checked there; one that
is damaged is deleted, and its ids are read again. A mapped file could change after the check.

Files are written whole or not at all, by a thread of their own. Before pages are written that would take all
models' pages past the limit, the least recently used go, the end of a text before its beginning. Several
processes share a folder: what one writes the others find, and a file that another has just removed is read
again by the model.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import OperationalError, UserError
from cutaway.generate.batch.prefix_cache import Absent
from cutaway.generate.engine import Storable
from cutaway.store.files import atomic_file, disk_errors, part_of
from cutaway.store.sealed import DamagedError, Seal

LONG = 256  # ids that a prompt has at least to be kept: a shorter one is read as fast
PENDING = 512 << 20  # bytes of pages that wait to be written, of more texts than one; more are not kept
PAUSE = 60.0  # seconds without writing after a write failed
STEP = 1000  # nanoseconds by which a page counts as less recently used than the one before it
OWN = re.compile(r"[0-9a-f]{16}/[0-9a-f]{40}")  # of the folder's files those that are pages
PRIVATE, OTHERS = 0o600, 0o022
OTHER_FOLDER = "give another folder"
log = logging.getLogger("cutaway.prefixes")


@dataclass
class StoreFigures:
    """A store's counters since it began, and its folder's bytes after the last write."""

    loaded: int = 0  # pages
    written: int = 0
    damaged: int = 0  # found so, and deleted
    failed: int = 0  # not written, because of an error
    nbytes: int = 0


class PrefixStore:
    """The pages of one model in a folder, which may hold those of others too.

    ``model`` is a digest of all that pages depend on beside their texts: weights, engine, formats, version.
    ``limit``: bytes of all files in the folder. Raises UserError for a folder that others can write to, and
    OperationalError for one that cannot be made.
    """

    def __init__(self, folder: Path, model: bytes, limit: int, seal: Seal | None = None) -> None:
        self.folder, self._model, self._limit = folder, model, limit
        self._seal = Seal() if seal is None else seal
        self._own = folder / self._seal.name(model)[:16]
        check_folder(folder)
        self.figures = StoreFigures(nbytes=sum(size for _, size, _ in _files(folder)))
        self._reads = ThreadPoolExecutor(1, "cutaway-prefix-reads")
        self._writes = ThreadPoolExecutor(1, "cutaway-prefix-writes")
        self._counting = threading.Lock()
        self._pending, self._paused = 0, 0.0

    def has(self, key: bytes) -> bool:
        """Whether there is a file for the page with this key; none where the folder cannot be read."""
        try:
            return self._path(key).is_file()
        except OSError:
            return False

    def fetch(
        self,
        engine: Storable,
        absent: Absent,
        done: Callable[[dict[bytes, Any]], None],
        wanted: Callable[[], bool],
    ) -> bool:
        """Load pages beside the caller, and call ``done`` with them, from another thread. False where no
        thread can be started.
        """

        def work() -> None:
            found: dict[bytes, Any] = {}
            try:
                found = self.load(engine, absent, wanted)
            finally:
                done(found)

        return self._submit(self._reads, work)

    def load(
        self, engine: Storable, absent: Absent, wanted: Callable[[], bool] = lambda: True
    ) -> dict[bytes, Any]:
        """Pages by their keys, in their text's order, as far as there are sound files."""
        found, before = dict[bytes, Any](), absent.before
        for key, ids in zip(absent.keys, absent.ids, strict=True):
            arrays = engine.blank_page()
            if not wanted() or not self._read(key, arrays):
                break
            before = found[key] = engine.kept_page(arrays, ids, before)
        self._touch(list(found))
        self._count(loaded=len(found))
        return found

    def keep(self, engine: Storable, keys: Sequence[bytes], pages: Sequence[Any]) -> None:
        """Write a text's pages, from its first on, beside the caller; those that are there count as used."""
        nbytes = len(keys) * engine.page_bytes
        with self._counting:
            if (self._pending and self._pending + nbytes > PENDING) or time.monotonic() < self._paused:
                return
            self._pending += nbytes
        if not self._submit(self._writes, self._write, engine, list(keys), list(pages)):
            self._count(pending=-nbytes, failed=len(keys))

    def erase(self, keys: Sequence[bytes]) -> None:
        """Delete the files of pages. OSError where the folder cannot be written to."""
        self._writes.submit(lambda: [self._path(key).unlink(missing_ok=True) for key in keys]).result()

    def close(self) -> None:
        """Write what is pending, and end the threads."""
        self._reads.shutdown(cancel_futures=True)
        self._writes.shutdown()

    def _submit(self, pool: ThreadPoolExecutor, work: Callable[..., None], *given: Any) -> bool:
        try:
            pool.submit(work, *given)
        except RuntimeError as error:  # of the machine's limit: requests go on without pages on disk
            log.warning("Prefixes are neither kept nor loaded: %s", error)
            return False
        return True

    # ---- files ---------------------------------------------------------------------------------------------

    def _path(self, key: bytes) -> Path:
        return self._own / self._seal.name(self._model + key)

    def _read(self, key: bytes, arrays: Sequence[Any]) -> bool:
        """Fill arrays with a page's file; False where there is none, or none that is sound."""
        path = self._path(key)
        try:
            with path.open("rb", buffering=0) as file:
                self._seal.read(file, self._model + key, arrays)
                if file.read(1):
                    raise DamagedError
            return True
        except FileNotFoundError:
            return False
        except OSError as error:  # of the disk, or of this process: the page may be sound
            why = error.strerror or error
            log.warning("%s is not readable (%s): its part of a text is read by the model again", path, why)
            return False
        except DamagedError:
            log.warning("%s is damaged: its part of a text is read by the model again", path)
            self._count(damaged=1)
            with suppress(OSError):
                path.unlink()
            return False

    def _write(self, engine: Storable, keys: list[bytes], pages: list[Any]) -> None:
        written = 0
        try:
            check_folder(self.folder)  # which may have been removed since
            with disk_errors(self._own, OTHER_FOLDER):
                self._own.mkdir(mode=0o700, exist_ok=True)
            size = engine.page_bytes + self._seal.overhead
            fit = keys[: self._limit // size]
            self._touch(fit)  # what is there of the text is not what goes
            self._prune(size * sum(not self._path(key).exists() for key in fit))
            for number, (key, page) in enumerate(zip(fit, pages, strict=False)):
                path = self._path(key)
                if path.exists():
                    continue
                try:
                    with atomic_file(path, mode=PRIVATE) as out:
                        self._seal.write(out, self._model + key, engine.page_arrays(page, number))
                    written += 1
                except OperationalError:
                    if not part_of(path).exists():  # or another process writes the same page
                        raise
        except (OperationalError, UserError, OSError) as error:
            log.warning("Prefixes are not kept for %.0f s: %s", PAUSE, error)
            self._paused = time.monotonic() + PAUSE
            self._count(failed=len(keys) - written)
        finally:
            self._touch(keys)
            self._count(written=written, pending=-len(keys) * engine.page_bytes)
            if written:
                self._prune()  # other processes write too

    def _touch(self, keys: Sequence[bytes]) -> None:
        """Mark a text's pages as used just now, its beginning last."""
        now = time.time_ns()
        for n, key in enumerate(keys):
            with suppress(OSError):
                os.utime(self._path(key), ns=(now - n * STEP, now - n * STEP))

    def _prune(self, room: int = 0) -> None:
        """Remove the least recently used files, of any model, until the limit leaves so much room."""
        files = sorted(_files(self.folder))
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._limit - room:
                break
            with suppress(OSError):
                path.unlink()
            total -= size
        self.figures.nbytes = total

    def _count(self, pending: int = 0, **more: int) -> None:
        with self._counting:
            self._pending += pending
            for name, value in more.items():
                setattr(self.figures, name, getattr(self.figures, name) + value)


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """The pages in a folder, of all models: when each was last used, its bytes, and its path."""
    found, paths = [], list[Path]()
    with suppress(OSError):
        paths = [path for path in folder.glob("*/*") if OWN.fullmatch(f"{path.parent.name}/{path.name}")]
    for path in paths:
        with suppress(OSError):  # another process has removed it
            status = path.stat(follow_symlinks=False)
            found.append((status.st_mtime_ns, status.st_size, path))
    return found


def check_folder(folder: Path) -> None:
    """Make a folder for this user alone. UserError for one of another user, or that others can write to:
    a process that writes pages chooses what the model takes for its own reading of a text.
    """
    with disk_errors(folder, OTHER_FOLDER):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: give a folder for prefixes")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    if os.name != "nt" and (status.st_uid != os.geteuid() or status.st_mode & OTHERS):
        raise UserError(
            f"{folder}: others can write there, and pages decide what the model has read: give a folder of "
            f"your own, or `chmod go-w {folder}`"
        )
