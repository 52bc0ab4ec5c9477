"""Load and save KV-cache pages on disk while the scheduler runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cutaway.generate.batch.prefix_cache import PrefixCache
from cutaway.generate.batch.prefix_store import LONG, PrefixStore, StoreFigures
from cutaway.generate.batch.sequence import ScheduledSequence

LOADING = 0.02  # seconds after which a scheduler that only waits for pages looks for new requests


class Restoring:
    """The scheduler's use of a store. The model's thread calls it (but ``figures`` and ``erase``), and never
    waits for the disk while a text can be read.
    """

    def __init__(self, store: PrefixStore, cache: PrefixCache, wake: threading.Condition) -> None:
        self._store, self._cache, self._wake = store, cache, wake
        self._loading = set[bytes]()  # the key of the first page of each text whose pages are being loaded
        self._arrived: list[tuple[ScheduledSequence, bytes, dict[bytes, Any]]] = []

    @property
    def figures(self) -> StoreFigures:
        """The store's counters."""
        return replace(self._store.figures)

    def ready(self, unread: list[ScheduledSequence]) -> list[ScheduledSequence]:
        """The texts that need not wait. Where several begin alike, one of them loads the pages."""
        self._take_arrived()
        ready = []
        for sequence in unread:
            sequence.reuse_pages(self._cache)
            key = sequence.next_page
            if key is not None and key not in self._loading and not sequence.searched:
                sequence.searched = True
                if self._store.has(key):
                    self._load(sequence, key)
            if key is None or key not in self._loading:
                ready.append(sequence)
        return ready

    def _load(self, sequence: ScheduledSequence, key: bytes) -> None:
        """Load a text's pages, from the one with this key on."""

        def arrived(pages: dict[bytes, Any]) -> None:
            with self._wake:
                self._arrived.append((sequence, key, pages))
                self._wake.notify_all()

        def wanted() -> bool:
            return not sequence.stream.cancelled

        if self._store.fetch(sequence.engine, sequence.pages_to_load(), arrived, wanted):
            self._loading.add(key)

    def _take_arrived(self) -> None:
        """Give each text what was loaded for it: the others that begin alike find it in the prefix cache."""
        with self._wake:
            arrived, self._arrived = self._arrived, []
        for sequence, key, pages in arrived:
            sequence.restored = pages
            sequence.reuse_pages(self._cache)
            self._loading.discard(key)

    def wait(self) -> None:
        """Wait for pages, where every text does; not for long, because others may come."""
        with self._wake:
            self._wake.wait_for(lambda: self._arrived, LOADING)

    def store(self, sequence: ScheduledSequence) -> None:
        """Write the pages of a long prompt, once it is read."""
        if sequence.stored or not sequence.decoding:
            return
        sequence.stored = True
        if len(sequence.prompt) >= LONG:
            self._store.keep(sequence.engine, *sequence.prompt_pages())

    def erase(self, keys: Sequence[bytes]) -> None:
        """Forget pages on disk. From any thread."""
        self._store.erase(keys)

    def close(self) -> None:
        """Write what is pending."""
        self._store.close()
