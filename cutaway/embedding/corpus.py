"""A corpus is a text file: words between white space, a sentence a line. It is read in pieces and never held.

Counting and training pass over the file anew each time, so that a corpus larger than memory streams; what is
kept is the vocabulary. The native core reads (native/embedding/corpus.cpp); reference implementations
are here.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cutaway import native
from cutaway.errors import OperationalError, UserError, quoted
from cutaway.native.embedding import LONGEST, Counter
from cutaway.store.files import Bytes, Progress, silent

PIECE = 1 << 16  # bytes; a word belongs to the piece in which it begins
BATCH = 32  # pieces between two looks at the clock
SPACES = b" \t\n\r\x0b\x0c"


@dataclass(frozen=True)
class Report:
    """How far training is: words or counts ``done`` of ``total``, in ``seconds``, and the epoch from 0."""

    done: int
    total: int
    seconds: float
    epoch: int


@dataclass(frozen=True)
class Vocabulary:
    """Words, the most frequent first, those of one count by their bytes; ``counts`` int64 [v]."""

    words: tuple[str, ...]
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.words)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A corpus's file descriptor. UserError for what is no file, OperationalError for what cannot be read."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a text file, its words between spaces")
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as problem:
        raise OperationalError(f"{path} cannot be read: {problem.strerror}") from problem
    try:
        yield file
    finally:
        os.close(file)


def pieces(file: int) -> int:
    """How many pieces an open file has."""
    return -(-os.fstat(file).st_size // PIECE)


def vocabulary(
    path: Path, min_count: int = 5, threads: int | None = None, progress: Progress = silent
) -> Vocabulary:
    """The words of a file that occur at least ``min_count`` times.

    UserError when there are none, and for words that are not UTF-8.
    """
    with opened(path) as file:
        size, doing = os.fstat(file).st_size, f"counting the words of {path.name}"
        count = _count if native.available() else _count_reference

        def counted(done: int) -> None:
            progress(doing, Bytes(min(done, size)), Bytes(size))

        words, counts = count(file, threads or native.threads(), counted)
    often = sorted((-times, word) for word, times in zip(words, counts, strict=True) if times >= min_count)
    if not often:
        raise UserError(
            f"no word of {path} comes {min_count} times or more (it has {len(words)} different words): "
            "lower --min-count or give a longer text"
        )
    try:
        known = tuple(word.decode() for _, word in often)
    except UnicodeDecodeError as problem:
        raise UserError(f"{path} is not UTF-8 text: it has the word {quoted(problem.object)}") from None
    return Vocabulary(known, np.array([-times for times, _ in often], np.int64))


def _count(file: int, threads: int, progress: Callable[[int], None]) -> tuple[list[bytes], list[int]]:
    with Counter(threads) as counter:
        for first in range(0, pieces(file), BATCH * threads):
            last = min(first + BATCH * threads, pieces(file))
            counter.add(file, first, last)
            progress(last * PIECE)
        words, counts = counter.take()
    return words, counts.tolist()


def _count_reference(
    file: int, threads: int, progress: Callable[[int], None]
) -> tuple[list[bytes], list[int]]:
    counter: collections.Counter[bytes] = collections.Counter()
    for piece in range(pieces(file)):
        for line in lines(file, piece):
            counter.update(line)
        progress((piece + 1) * PIECE)
    return list(counter), list(counter.values())


def lines(file: int, piece: int) -> Iterator[list[bytes]]:
    """The words of a piece, line by line: the reference implementation of the core's Reader."""
    begin, end = piece * PIECE, (piece + 1) * PIECE
    text = _read(file, PIECE + LONGEST + 2, max(begin - 1, 0))
    if begin:
        text = _after_first_word(text)
    # A word that begins in the piece may end after it; one that begins after it is the next piece's.
    stop = min(end - max(begin - 1, 0), len(text))
    if stop < len(text) and text[stop - 1 : stop].strip(SPACES):
        stop += len(text[stop:]) - len(text[stop:].lstrip(bytes(set(range(256)) - set(SPACES))))
    for line in text[:stop].split(b"\n"):
        words = line.split()
        for word in words:
            if len(word) > LONGEST:
                where = max(begin - 1, 0) + text.find(word)
                begins = f"the word that begins at byte {where}"
                raise UserError(f"{begins} has more than {LONGEST} bytes: is this a text file?")
        if words:
            yield words


def _read(file: int, size: int, begin: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file, size, begin)
    os.lseek(file, begin, os.SEEK_SET)  # Windows
    return os.read(file, size)


def _after_first_word(text: bytes) -> bytes:
    """The same length with the word that began before the piece blanked; it is the piece before's."""
    begun = len(text) - len(text.lstrip(bytes(set(range(256)) - set(SPACES))))
    return b" " * begun + text[begun:]
