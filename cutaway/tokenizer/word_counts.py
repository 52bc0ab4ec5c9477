"""Distinct words and how often each occurs: all that a tokenizer learns from, and it adds up.

Nothing merges across a piece, so a corpus is to a trainer what its distinct pieces ("words") and their counts
are. Memory is bounded by those and not by the corpus; shards counted anywhere give, merged, the counts of the
whole. Past `limit` distinct words the rarest are dropped, as in lossy counting (Manku and Motwani, VLDB
2002): `undercount` is the most by which any count can then be too low, and 0 as long as nothing was dropped.

The file format is little-endian: the 8 bytes "CUTCOUNT", the length of a header (uint64), the header (JSON in
UTF-8: version, pattern, special, limit, documents, bytes, undercount, done, words, text), then for each word,
in the order of their bytes, its count (int64) and its length in bytes (uint32), and all words' bytes
(`text` of them). Equal counts are equal files.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cutaway import native
from cutaway.errors import UserError, quoted
from cutaway.native import word_counter as native_count
from cutaway.store.files import Bytes, Progress, read_errors, silent, write_file
from cutaway.tokenizer.formats.fields import parsed
from cutaway.tokenizer.unicode import utf8
from cutaway.tokenizer.word_counter import NativeWordCounter, WordCounter, Words, packed, word_counter
from cutaway.tokenizer.word_split import splitter

Source = str | os.PathLike[str]

LIMIT = 20_000_000  # distinct words
SAVED_EVERY = 60.0  # seconds
MAGIC = b"CUTCOUNT"
VERSION = 1


@dataclass
class WordCounts:
    """The words of a corpus as `pattern` cuts it, without the texts in `special`.

    `documents` and `bytes` are how much was counted, `undercount` how much too low a count can be, `done` how
    far each file was read (path to size, time of change, bytes).
    """

    pattern: str = "cl100k"
    special: tuple[str, ...] = ()
    limit: int = LIMIT
    documents: int = 0
    bytes: int = 0
    undercount: int = 0
    done: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    threads: int | None = None

    def __post_init__(self) -> None:
        self.special = _special(self.special)
        if self.limit < 1:
            raise UserError(f"a limit of {self.limit} distinct words leaves none; give 1 or more")
        self._counter = word_counter(splitter(self.pattern, self.special))

    @classmethod
    def of(
        cls,
        sources: Source | Iterable[Source],
        pattern: str = "cl100k",
        special: Iterable[str] = (),
        *,
        limit: int = LIMIT,
        invalid: str = "refuse",
        resume: os.PathLike[str] | str | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> WordCounts:
        """Count texts (str) and files (paths) as `pattern` cuts them: a name such as "cl100k", or a regex.

        What spells a `special` token is left out, as nothing is to be learned across it. Files are UTF-8;
        bytes that are not raise UserError, or count as U+FFFD with invalid="replace". They are read in blocks
        that end where a cut changes nothing around it. With `resume`, a file, the counts are kept there as
        it goes, also at Ctrl-C, and a later call goes on from there. `threads` change nothing but the time.
        Raises OperationalError for a file that cannot be read.
        """
        counts = cls(pattern, tuple(special), limit)
        if resume is not None and Path(resume).exists():
            counts = _resumed(counts, WordCounts.load(resume))
        counts.threads = threads
        if invalid not in ("refuse", "replace"):
            raise UserError(f'invalid is "refuse" or "replace", not {quoted(invalid)}')
        keeper = _Keeper(counts, None if resume is None else Path(resume))
        report = _Report(sources, progress or silent)
        try:
            for source in _listed(sources):
                if isinstance(source, str):
                    counts.add(source)
                else:
                    counts._add_file(Path(source), invalid, report, keeper)
        finally:
            keeper.keep()
        return counts

    def add(self, text: str) -> None:
        """Count one document."""
        with _unbroken():
            self._add(utf8(text, "a text"))
            self.documents += 1

    def merge(self, *others: WordCounts) -> WordCounts:
        """The counts of all shards together. Raises UserError for shards that were cut in another way."""
        out = WordCounts(self.pattern, self.special, self.limit)
        for shard in (self, *others):
            if (shard.pattern, shard.special) != (self.pattern, self.special):
                raise UserError(
                    f"counts of the pattern {quoted(shard.pattern)} with special tokens "
                    f"{quoted(list(shard.special))} do not add to those of {quoted(self.pattern)} with "
                    f"{quoted(list(self.special))}"
                )
            out._counter.put(shard._counter.words())
            out.documents += shard.documents
            out.bytes += shard.bytes
            out.undercount += shard.undercount
            out.done |= shard.done
        out.undercount += out._counter.prune(out.limit)
        return out

    @property
    def words(self) -> dict[str, int]:
        """Each distinct word and how often it occurs, in the order of their bytes."""
        return {word.decode(): count for word, count in sorted(self.arrays().items())}

    def arrays(self) -> Words:
        """The words as arrays, in no particular order."""
        return self._counter.words()

    def __len__(self) -> int:
        return len(self._counter)

    def total(self) -> int:
        """How many words were counted, each as often as it occurs."""
        return int(self.arrays().counts.sum())

    def save(self, path: os.PathLike[str] | str) -> Path:
        """Write the counts, whole or not at all."""
        write_file(path, self.to_bytes())
        return Path(path)

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        words = packed(dict(sorted(self.arrays().items())))
        header = {
            "version": VERSION,
            "pattern": self.pattern,
            "special": list(self.special),
            "limit": self.limit,
            "documents": self.documents,
            "bytes": self.bytes,
            "undercount": self.undercount,
            "done": {name: list(state) for name, state in sorted(self.done.items())},
            "words": len(words.counts),
            "text": len(words.text),
        }
        encoded = json.dumps(header, ensure_ascii=False).encode()
        arrays = words.counts.astype("<i8"), np.diff(words.offsets).astype("<u4"), words.text
        return b"".join([MAGIC, struct.pack("<Q", len(encoded)), encoded, *(a.tobytes() for a in arrays)])

    @classmethod
    def load(cls, path: os.PathLike[str] | str) -> WordCounts:
        """Read what `save` wrote. Raises UserError for a file that is none or is damaged."""
        with read_errors(path):
            data = Path(path).read_bytes()
        return cls.from_bytes(data, Path(path).name)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the counts") -> WordCounts:
        """Read what `to_bytes` gave, of a file called `name`. Raises UserError for anything else."""
        if data[:8] != MAGIC or len(data) < 16:
            raise UserError(f"{name} holds no counts: `cutaway tokenizer count-words` writes them")
        (size,) = struct.unpack_from("<Q", data, 8)
        header = _header(data[16 : 16 + size], name)
        words, text = header["words"], header["text"]
        if len(data) != 16 + size + 12 * words + text:
            raise UserError(f"{name} is damaged: it has {len(data):,} bytes, and its header tells of others")
        counts = np.frombuffer(data, "<i8", words, 16 + size).astype(np.int64)
        lengths = np.frombuffer(data, "<u4", words, 16 + size + 8 * words).astype(np.int64)
        if lengths.sum() != text or (words and (lengths.min() < 1 or counts.min() < 1)):
            raise UserError(f"{name} is damaged: a word is empty, or the lengths do not add up")
        spelt = np.frombuffer(data, np.uint8, text, 16 + size + 12 * words)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        begins = spelt[offsets[:-1]] & 0xC0 != 0x80
        if not _is_utf8(spelt.tobytes()) or not begins.all():
            raise UserError(f"{name} is damaged: a word is not UTF-8")
        out = cls(
            header["pattern"],
            tuple(header["special"]),
            header["limit"],
            header["documents"],
            header["bytes"],
            header["undercount"],
            {path: (state[0], state[1], state[2]) for path, state in header["done"].items()},
        )
        out._counter.put(Words(spelt, offsets, counts))
        if len(out) != words:
            raise UserError(f"{name} is damaged: it has a word twice")
        return out

    @staticmethod
    def is_file(path: os.PathLike[str] | str) -> bool:
        """Whether a file begins as counts do. Raises OperationalError where it cannot be read."""
        with read_errors(path), Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC

    def _add_file(self, path: Path, invalid: str, report: _Report, keeper: _Keeper) -> None:
        name, size, changed = _known(path)
        before = self.done.get(name, (size, changed, 0))
        if before[:2] != (size, changed):
            raise UserError(f"{path} has changed since it was counted: count it anew, to another file")
        if size and before[2] == size:
            return
        for text, end in _blocks(path, before[2], self._counter, invalid):
            with _unbroken():
                self._add(text)
                self.done[name] = size, changed, end
                self.documents += end == size
            report.of(path, end)
            keeper.keep_now_and_then()

    def _add(self, text: bytes) -> None:
        self._counter.add(text, self.threads)
        self.bytes += len(text)
        self.undercount += self._counter.prune(self.limit)


class _Report:
    """Reports how much of all files is read; of files that come one by one the whole is not known."""

    def __init__(self, sources: Source | Iterable[Source], progress: Progress) -> None:
        self.progress, self.ends = progress, dict[Path, int]()
        listed = sources if isinstance(sources, (list, tuple)) else [sources]
        files = [Path(each) for each in listed if isinstance(each, os.PathLike)]
        known = bool(files) and all(path.is_file() for path in files)
        self.total = sum(path.stat().st_size for path in files) if known else None
        self.doing = f"counting words in {files[0].name if len(files) == 1 else f'{len(files):,} files'}"
        if not files:
            self.doing = "counting words"

    def of(self, path: Path, end: int) -> None:
        """A file is read up to this byte."""
        self.ends[path] = end
        total = None if self.total is None else Bytes(self.total)
        self.progress(self.doing, Bytes(sum(self.ends.values())), total)


class _Keeper:
    """Saves counts to a file from time to time, if there is one."""

    def __init__(self, counts: WordCounts, path: Path | None) -> None:
        self.counts, self.path, self.saved = counts, path, time.monotonic()

    def keep_now_and_then(self) -> None:
        if time.monotonic() - self.saved > SAVED_EVERY:
            self.keep()

    def keep(self) -> None:
        if self.path is not None:
            with _unbroken():
                self.counts.save(self.path)
            self.saved = time.monotonic()


@contextmanager
def _unbroken() -> Iterator[None]:
    """Ctrl-C waits until the block is over, so that a text is counted whole or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(came[0], None)


def _listed(sources: Source | Iterable[Source]) -> Iterable[Source]:
    """One text or path as a list. A list of texts that are all names of files was meant otherwise."""
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    if isinstance(sources, (list, tuple)) and sources and all(map(_names_a_file, sources)):
        raise UserError(f"{quoted(sources[0])} is a file's name as text: give pathlib.Path of it")
    return (_source(source) for source in sources)


def _source(source: object) -> Source:
    if not isinstance(source, (str, os.PathLike)):
        raise UserError(f"a corpus is of texts (str) and files (pathlib.Path), not {type(source).__name__}")
    return source


def _names_a_file(source: Source) -> bool:
    return isinstance(source, str) and 0 < len(source) < 256 and "\0" not in source and os.path.isfile(source)


def _special(special: Iterable[str]) -> tuple[str, ...]:
    out = tuple(special)
    if isinstance(special, str) or not all(isinstance(text, str) and text for text in out):
        raise UserError("special tokens are a list of texts, none of them empty")
    if len(set(out)) != len(out):
        raise UserError("a special token is given twice")
    return out


def _known(path: Path) -> tuple[str, int, int]:
    """A file's full name, its size and its time of change."""
    with read_errors(path):
        found = path.resolve()
        state = found.stat()
    return str(found), state.st_size, state.st_mtime_ns


BLOCK = 1 << 22  # bytes


def _blocks(
    path: Path, start: int, words: WordCounter | NativeWordCounter, invalid: str
) -> Iterator[tuple[bytes, int]]:
    """A file's text from a byte on, as UTF-8 in blocks, each with the byte of the file at which it ends."""
    with read_errors(path), path.open("rb") as file:
        file.seek(start)
        waiting, at, wanted, last = b"", start, BLOCK, False
        while not last:
            data = file.read(wanted - len(waiting))
            last = len(data) < wanted - len(waiting)
            waiting += data
            end = len(waiting) if last else words.boundary(waiting)
            if end:
                yield _utf8(waiting[:end], path, at, invalid), at + end
                at += end
                waiting, wanted = waiting[end:], BLOCK
            else:
                wanted *= 2


def _utf8(data: bytes, path: Path, at: int, invalid: str) -> bytes:
    """The data if it is UTF-8. Raises UserError, or writes U+FFFD, for what is not."""
    if native.available() and native_count.utf8_until(data) == len(data):
        return data
    if invalid == "replace":
        return data.decode("utf-8", "replace").encode()
    try:
        data.decode()
    except UnicodeDecodeError as problem:
        raise UserError(
            f"{path} is not UTF-8 at byte {at + problem.start:,} (0x{data[problem.start]:02X}): convert it, "
            'or count such bytes as U+FFFD (invalid="replace", --invalid replace)'
        ) from None
    return data


def _resumed(asked: WordCounts, found: WordCounts) -> WordCounts:
    if (asked.pattern, asked.special, asked.limit) != (found.pattern, found.special, found.limit):
        raise UserError(
            "the counts to go on with were made with another pattern, other special tokens or another limit: "
            "count anew, to another file"
        )
    return found


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _header(data: bytes, name: str) -> dict[str, Any]:
    header = parsed(data, f"{name} is damaged: its header")
    if header.need("version", int) != VERSION:
        raise UserError(f"{name} was written by another version ({header.value['version']}, not {VERSION})")
    numbers = [
        header.need(key, int) for key in ("limit", "documents", "bytes", "undercount", "words", "text")
    ]
    special, done = header.need("special", list), header.need("done", dict)
    header.need("pattern", str)
    texts, states = all(isinstance(text, str) for text in special), all(map(_is_state, done.values()))
    if min(numbers) < 0 or not texts or not states:
        raise UserError(f"{name} is damaged: its header does not say what was counted")
    return header.value


def _is_state(state: object) -> bool:
    return isinstance(state, list) and len(state) == 3 and all(type(number) is int for number in state)
