"""llama-server's slots: what each of a key's slots read last, saved into files and restored from them.

A slot is a number that a request names (``id_slot``, else 0). What it read is in the prefix cache, in pages
of so many tokens. A file has all ids of a text and the KV cache of its full pages: after a restore the model
reads again what is behind them, which is less than a page. Files of different keys are in different folders,
and one that was saved by another key, or of another model, is as damaged.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cutaway.errors import OperationalError, UserError
from cutaway.generate.batch.prefix_cache import cache_scope, page_keys
from cutaway.generate.batch.prefix_store import check_folder
from cutaway.generate.batch.request import Generation, Request, ResponseStream
from cutaway.generate.batch.saved_text import Saver
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.serve.api_error import APIError
from cutaway.store.files import FULL
from cutaway.store.sealed import DamagedError

KEPT = 256  # texts of slots that are remembered, of all keys
# Characters that llama-server allows in no file name, and half of a surrogate pair.
FORBIDDEN = re.compile(r'[/\\:*?"<>|\uff0e\u2215\u2216\ufffd\ufeff\ud800-\udfff\x00-\x1f\x7f-\x9f]|\.\.')
LONGEST = 255  # bytes of a name
_saving = threading.Lock()  # one file at a time, of all models: each fits beside those that are there


class SlotText(NamedTuple):
    """What a slot read, by which engine: the scheduler's, or an adapter's."""

    ids: tuple[int, ...]
    engine: Any


class SavedSlots:
    """The slots of one model. Their files take ``limit`` bytes at most. From any thread."""

    def __init__(self, folder: Path, saver: Saver, limit: int) -> None:
        check_folder(folder)
        self._folder, self._saver, self._limit = folder, saver, limit
        self._texts: OrderedDict[tuple[bytes, int], SlotText] = OrderedDict()
        self._changing = threading.Lock()

    def answered(self, scope: bytes, slot: int, request: Request, generation: Generation) -> None:
        """A slot of a key has read a prompt and written an answer, whose last id is read where an end id
        follows it. With a salt it leaves nothing to save.
        """
        ended = isinstance(generation.stop, int)
        self._read(scope, slot, request, (*generation.prompt_ids, *generation.ids[: None if ended else -1]))

    def stopped(self, scope: bytes, slot: int, stream: ResponseStream) -> None:
        """A slot of a key has read what it did when its request was cancelled."""
        ids = stream.request.ids
        ids = (*ids, *stream.ids[:-1]) if stream.read >= len(ids) else ids[: stream.read]
        if ids:
            self._read(scope, slot, stream.request, ids)

    def _read(self, scope: bytes, slot: int, request: Request, ids: tuple[int, ...]) -> None:
        if request.cache_scope == cache_scope(scope, None):
            self._put(scope, slot, SlotText(ids, request.engine))
            return
        with self._changing:
            self._texts.pop((scope, slot), None)

    def _put(self, scope: bytes, slot: int, text: SlotText) -> None:
        with self._changing:
            self._texts[scope, slot] = text
            self._texts.move_to_end((scope, slot))
            while len(self._texts) > KEPT:
                self._texts.popitem(last=False)

    def _keys(self, scheduler: Scheduler, scope: bytes, text: SlotText) -> list[bytes]:
        return page_keys(text.engine or scheduler.engine, cache_scope(scope, None), text.ids)

    def save(self, scheduler: Scheduler, scope: bytes, slot: int, name: str) -> tuple[int, int]:
        """Save a slot's text: how many tokens, and the bytes of the file. APIError for a wrong name, for a
        slot that read nothing, where there is no room, and while another server saves into the file.
        """
        path = self._path(scope, name)
        text = self._texts.get((scope, slot))
        if text is None:
            raise APIError(400, f"Slot {slot} has read no text: name it by id_slot in a request", param="id")
        engine: Any = text.engine or scheduler.engine
        pages = []
        for key in self._keys(scheduler, scope, text):
            if (page := scheduler.prefix_cache.get(key)) is None:
                break
            pages.append(page)
        with _saving:
            if self._taken(path) + len(pages) * engine.page_bytes > self._limit:
                text = (
                    f"The folder of slots would take more than its {self._limit:,} bytes: remove files there"
                )
                raise APIError(507, text, type="server_error", code="no_room")
            try:
                if path.parent != self._folder:
                    path.parent.mkdir(mode=0o700, exist_ok=True)
                nbytes = self._saver.write(path, engine, cache_scope(scope, None), text.ids, pages)
            except (OperationalError, UserError, OSError) as error:  # which names the machine's path
                raise _not_saved(error) from None
        return _held(engine, text.ids, len(pages)), nbytes

    def restore(
        self, scheduler: Scheduler, scope: bytes, slot: int, name: str, engine: Any
    ) -> tuple[int, int]:
        """Restore a slot's text from a file: how many tokens, and the bytes of the file. APIError for a wrong
        name, and for a file that is not there, damaged, or of another model or key.
        """
        path = self._path(scope, name)
        if not path.is_file():
            raise APIError(400, f"There is no file {name!r} of a slot", param="filename")
        try:
            nbytes = path.stat().st_size
            ids, keys, pages = self._saver.read(path, engine, cache_scope(scope, None))
        except (DamagedError, OperationalError, OSError):
            text = f"{name!r} is damaged, or of another model, key or version: nothing of it is used"
            raise APIError(400, text, param="filename") from None
        for n, page in enumerate(pages, 1):
            scheduler.prefix_cache.add(keys[:n], page)
        self._put(scope, slot, SlotText(ids, None if engine is scheduler.engine else engine))
        held = sum(scheduler.prefix_cache.get(key) is not None for key in keys)  # beside requests that run
        return _held(engine, ids, held), nbytes

    def erase(self, scheduler: Scheduler, scope: bytes, slot: int) -> int:
        """Forget a slot's text, and its pages in memory and in the prefix cache on disk; how many tokens.
        APIError where those cannot be deleted.
        """
        text = self._texts.get((scope, slot))
        if text is None:
            return 0
        keys = self._keys(scheduler, scope, text)
        scheduler.prefix_cache.drop(keys)
        try:
            if scheduler.restoring is not None:
                scheduler.restoring.erase(keys)
        except OSError:
            why = "The text's pages on disk were not deleted: their folder cannot be written to"
            raise APIError(500, why, type="server_error") from None
        with self._changing:
            self._texts.pop((scope, slot), None)
        return len(text.ids)

    def _taken(self, other: Path) -> int:
        """The bytes of the folder's files but one; another server may remove some meanwhile."""
        taken = 0
        for file in self._folder.rglob("*"):
            with suppress(OSError):
                taken += file.stat().st_size if file.is_file() and file != other else 0
        return taken

    def _path(self, scope: bytes, name: str) -> Path:
        """The file with this name among those of a key. APIError for a name that is none."""
        shown = name.strip(" ") == name and not name.endswith(".") and not name.startswith(".")
        fits = 0 < len(name) <= LONGEST and len(name.encode("utf-8", "surrogatepass")) <= LONGEST
        if not (fits and shown) or FORBIDDEN.search(name):
            text = "filename must be a file's name: without a folder, and without / \\ : * ? \" < > | and .."
            raise APIError(400, text, param="filename")
        own = self._folder / hashlib.sha256(scope).hexdigest()[:16] if scope else self._folder
        if (own / name).is_symlink() or (own / name).is_dir():
            raise APIError(400, "filename is no file of a slot", param="filename")
        return own / name


def _held(engine: Any, ids: Sequence[int], pages: int) -> int:
    """How many of a text's ids need not be read again, but for those behind its last full page, which count:
    all of them, unless pages were evicted.
    """
    return len(ids) if pages == len(ids) // engine.page else pages * engine.page


def _not_saved(error: Exception) -> APIError:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(error, OperationalError) and cause is error:
        text = "The slot was not saved: another server saves into this file; try again"
        return APIError(409, text, param="filename")
    why = "its folder cannot be written to"
    if isinstance(cause, OSError) and cause.errno in FULL:
        why = "its disk is full"
    return APIError(507, f"The slot was not saved: {why}", type="server_error", code="no_room")
