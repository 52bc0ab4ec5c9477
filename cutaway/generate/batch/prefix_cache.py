"""What texts have in common is read once: full pages of read state, found again by the ids that led to them.

A page's key is a hash of its ids and of the key before it, so that it stands for everything from the text's
first id on (vLLM's automatic prefix caching; 2309.06180, section 4.4, shares pages the same way). The hash is
BLAKE2b: two texts with one key are not met by chance nor made on purpose. The least recently used go first,
and the end of a text before its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

ROOT = b""  # the key before a text's first page


def key(before: bytes, ids: Sequence[int]) -> bytes:
    """The key of a page with these ids, after the page of the key before it."""
    return blake2b(before + np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()


class PrefixCache:
    """Pages by their keys, at most ``room`` of them."""

    def __init__(self, room: int) -> None:
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._room = room

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Any | None:
        """The page, None where it is not kept."""
        return self._kept.get(key)

    def add(self, keys: Sequence[bytes], page: Any) -> None:
        """Keeps a page under the last of its text's keys."""
        if keys[-1] not in self._kept:
            self._kept[keys[-1]] = page
        self.touch(keys)
        self.fit(self._room)

    def touch(self, keys: Sequence[bytes]) -> None:
        """These pages of one text, from its first on, were used just now."""
        for key in reversed(keys):
            if key in self._kept:
                self._kept.move_to_end(key)

    def fit(self, room: int) -> None:
        """From now on keeps at most so many pages."""
        self._room = max(0, room)
        while len(self._kept) > self._room:
            self._kept.popitem(last=False)
