"""One text's KV cache in a file of its own: its ids, and its pages (`prefix_store.py`) or its whole state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cutaway.generate.batch.prefix_cache import page_key, page_keys
from cutaway.generate.engine import Storable
from cutaway.store.files import atomic_file, read_errors
from cutaway.store.sealed import DamagedError, Seal

PRIVATE = 0o600


@dataclass(frozen=True)
class Saver:
    """Writes and reads such files of one model, whose ``digest`` all pages depend on."""

    digest: bytes
    seal: Seal

    def write(
        self, path: Path, engine: Storable, scope: bytes, ids: Sequence[int], pages: Sequence[Any]
    ) -> int:
        """Write a text whose first full pages are given; the bytes of the file. Raises what `atomic_file`
        raises.
        """
        keys = page_keys(engine, scope, ids)
        with atomic_file(path, mode=PRIVATE) as out:
            self.seal.write(out, self._text_key(engine, scope), [np.asarray(ids, np.int32)])
            for number, (key, page) in enumerate(zip(keys, pages, strict=False)):
                self.seal.write(out, self.digest + key, engine.page_arrays(page, number))
            return out.tell()

    def read(
        self, path: Path, engine: Storable, scope: bytes
    ) -> tuple[tuple[int, ...], list[bytes], list[Any]]:
        """The ids, and the keys and kept pages of the beginning that the file has. DamagedError for what was
        not written for this model and scope, and for a text that does not fit; OperationalError for a file
        that cannot be read.
        """
        with read_errors(path), path.open("rb", buffering=0) as file:
            ids, before, pages = self._read_ids(file, engine, scope), None, list[Any]()
            keys = page_keys(engine, scope, ids)
            for number, key in enumerate(keys):
                if not file.read(1):
                    break
                file.seek(-1, 1)
                arrays = engine.blank_page()
                self.seal.read(file, self.digest + key, arrays)
                start = number * engine.page
                before = engine.kept_page(arrays, ids[start : start + engine.page], before)
                pages.append(before)
            if file.read(1):
                raise DamagedError
        return tuple(ids), keys[: len(pages)], pages

    def write_state(self, path: Path, engine: Storable, scope: bytes, ids: Sequence[int], state: Any) -> int:
        """Write the state of these ids; the bytes of the file. Raises what `atomic_file` raises."""
        with atomic_file(path, mode=PRIVATE) as out:
            self.seal.write(out, self._text_key(engine, scope), [np.asarray(ids, np.int32)])
            for number, array in enumerate(engine.state_arrays(state)):
                self.seal.write(out, self._part_key(engine, scope, ids, number), [array])
            return out.tell()

    def read_state(self, path: Path, engine: Storable, scope: bytes) -> tuple[list[int], Any]:
        """The ids and the state that `write_state` wrote. DamagedError and OperationalError as `read`."""
        with read_errors(path), path.open("rb", buffering=0) as file:
            ids = self._read_ids(file, engine, scope)
            arrays = engine.blank_state(len(ids))
            for number, array in enumerate(arrays):
                self.seal.read(file, self._part_key(engine, scope, ids, number), [array])
            if file.read(1):
                raise DamagedError
        return ids, engine.stored_state(arrays, ids)

    def _read_ids(self, file: IO[bytes], engine: Storable, scope: bytes) -> list[int]:
        """The record that begins a file."""
        raw = self.seal.read_bytes(file, self._text_key(engine, scope), 4 * engine.max_context)
        return np.frombuffer(raw, np.int32).tolist()

    def _part_key(self, engine: Storable, scope: bytes, ids: Sequence[int], number: int) -> bytes:
        """The key of an array of a state: of all ids, and of its place."""
        return self.digest + page_key(page_key(b"state" + scope + engine.scope, ids), [number])

    def _text_key(self, engine: Storable, scope: bytes) -> bytes:
        return hashlib.sha256(b"text" + self.digest + scope + engine.scope).digest()
