"""Automatic prefix caching: full pages of KV cache, found again by a hash of all ids up to their end.

A page's key is a hash of its ids and of the previous page's key, so that it stands for the whole text up to
its end (as in vLLM; 2309.06180, section 4.4). The chain starts from the request's cache scope: requests
of another scope (another API key, another ``cache_salt``) have other keys and find nothing. The hash is
BLAKE2b: no two texts with one key can be made. The least recently used pages are evicted first, and the
end of a text before its beginning.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from cutaway import memory
from cutaway.errors import UserError
from cutaway.generate.engine import BatchedEngine


def page_key(previous: bytes, ids: Sequence[int] | np.ndarray) -> bytes:
    """The key of a page with these ids; ``previous`` is the page's before it, or the cache scope."""
    from hashlib import blake2b  # which loads OpenSSL, 4 MB: only where pages are kept

    return blake2b(previous + np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()


@lru_cache(maxsize=256)
def cache_scope(api_key: bytes, salt: str | None) -> bytes:
    """The start of the chain of keys for requests with this API key (or its hash) and this salt."""
    from hashlib import blake2b

    salted = b"" if salt is None else salt.encode("utf-8", "surrogatepass")
    return blake2b(salted, key=blake2b(api_key, digest_size=32).digest(), digest_size=16).digest()


def page_keys(engine: BatchedEngine, scope: bytes, ids: Sequence[int]) -> list[bytes]:
    """The keys of a text's full pages, from its first on."""
    keys = [scope + engine.scope]
    for start in range(0, len(ids) - engine.page + 1, engine.page):
        keys.append(page_key(keys[-1], ids[start : start + engine.page]))
    return keys[1:]


class Absent(NamedTuple):
    """Pages that the cache lacks and a disk may have: keys, ids, and the cached page before them."""

    keys: Sequence[bytes]
    ids: Sequence[Sequence[int]]
    before: Any = None


class PrefixCache:
    """Pages by their keys, at most ``capacity`` of them once it is `trim`med. From any thread."""

    def __init__(self, capacity: int) -> None:
        self.pages: OrderedDict[bytes, Any] = OrderedDict()
        self.capacity = capacity
        self._changing = threading.RLock()

    def __len__(self) -> int:
        return len(self.pages)

    def get(self, key: bytes) -> Any | None:
        """The page, None where it is not cached."""
        return self.pages.get(key)

    def add(self, keys: Sequence[bytes], page: Any) -> None:
        """Cache a page under the last of its text's keys."""
        with self._changing:
            self.pages.setdefault(keys[-1], page)
            self.touch(keys)
            self.trim()

    def drop(self, keys: Sequence[bytes]) -> None:
        """Forget pages."""
        with self._changing:
            for key in keys:
                self.pages.pop(key, None)

    def touch(self, keys: Sequence[bytes]) -> None:
        """Mark a text's pages, from its first on, as used just now."""
        with self._changing:
            for key in reversed(keys):
                if key in self.pages:
                    self.pages.move_to_end(key)

    def trim(self) -> None:
        """Give up the pages that were not used for the longest time, down to the capacity."""
        with self._changing:
            while self.pages and len(self.pages) > self.capacity:
                self.pages.popitem(last=False)


def page_capacity(engine: BatchedEngine, sequences: int, state_bytes: int | None) -> int:
    """How many pages of KV cache there may be."""
    if state_bytes is None:
        whole = -(-engine.max_context // engine.page) * sequences
        return max(1, min(whole, memory.total() // 2 // max(1, engine.page_bytes)))
    if state_bytes < engine.page_bytes:
        raise UserError(f"state_bytes is {state_bytes}, and one page of a text takes {engine.page_bytes}")
    return state_bytes // max(1, engine.page_bytes)
