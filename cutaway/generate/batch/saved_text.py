"""One text's pages of KV cache in a file of their own: its ids, and each page as `prefix_store.py` has it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.generate.batch.prefix_cache import page_keys
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
            most = 4 * engine.max_context
            raw = self.seal.read_bytes(file, self._text_key(engine, scope), most)
            ids, before, pages = np.frombuffer(raw, np.int32).tolist(), None, list[Any]()
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

    def _text_key(self, engine: Storable, scope: bytes) -> bytes:
        return hashlib.sha256(b"text" + self.digest + scope + engine.scope).digest()
