"""Learning byte pair merges (native/tokenizer/bpe_train.cpp; reference: cutaway/tokenizer/bpe_train.py)."""

import ctypes
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.native.library import check, function

MOST_CELLS = 2**32 - 2  # base symbols and edges between words; a place is 32 bits


def merges(
    symbols: np.ndarray,
    offsets: np.ndarray,
    counts: np.ndarray,
    alphabet: int,
    size: int,
    min_frequency: int,
    reserved: Collection[Sequence[int]] = (),
    step: int = 256,
) -> Iterator[np.ndarray]:
    """The merges of counted words: int64 [n 4] of left, right, made and count, at most `step` at a time.

    Words are `symbols` (int32, below `alphabet`, or -1 where nothing merges) from one offset to the next
    (int64 [words + 1]), each `counts` (int64 [words]) times. Raises UserError for what does not fit.
    """
    check("symbols", symbols, np.int32)
    check("offsets", offsets, np.int64)
    check("counts", counts, np.int64)
    _fits(symbols, offsets, counts, alphabet, size)
    pointer, int64, int32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    new = function("cutaway_bpe_new", *[pointer] * 3, int64, int32, int32, int64, result=pointer)
    advance = function("cutaway_bpe_step", pointer, int64, pointer, result=int64)
    free = function("cutaway_bpe_free", pointer)
    trainer = new(
        symbols.ctypes.data,
        offsets.ctypes.data,
        counts.ctypes.data,
        len(counts),
        alphabet,
        size,
        max(min_frequency, 1),
    )
    if trainer is None:
        raise _no_memory()
    try:
        _reserve(trainer, reserved)
        done = step
        while done == step:
            out = np.empty((step, 4), np.int64)
            done = advance(trainer, step, out.ctypes.data)
            if done < 0:
                raise _no_memory()
            if done:
                yield out[:done]
    finally:
        free(trainer)


def _reserve(trainer: Any, reserved: Collection[Sequence[int]]) -> None:
    reserve = function(
        "cutaway_bpe_reserve", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, result=ctypes.c_int32
    )
    for text in reserved:
        array = np.array(text, np.int32)
        if reserve(trainer, array.ctypes.data, len(array)):
            raise _no_memory()


def _fits(symbols: np.ndarray, offsets: np.ndarray, counts: np.ndarray, alphabet: int, size: int) -> None:
    if len(offsets) != len(counts) + 1 or offsets[0] != 0 or offsets[-1] != len(symbols):
        raise UserError("offsets do not fit the words: they run from 0 to the number of symbols, one a word.")
    if len(counts) and (np.diff(offsets).min() < 0 or counts.min() < 0):
        raise UserError("offsets go backwards, or a count is negative.")
    if len(symbols) and (symbols.min() < -1 or symbols.max() >= alphabet):
        raise UserError(f"symbols are from -1 to {alphabet - 1}, and some are not.")
    if not 0 <= alphabet <= 0x110000 or not 0 <= size <= 1 << 28:
        raise UserError(f"an alphabet of {alphabet:,} and {size:,} tokens cannot be trained.")
    if len(symbols) + len(counts) > MOST_CELLS:
        raise UserError(
            f"the distinct words have {len(symbols):,} symbols, and {MOST_CELLS:,} can be trained on: "
            "lower the limit of distinct words."
        )
    # Sums of counts are 64 bits: each symbol of a word may be a place of one pair.
    if np.multiply(counts, np.diff(offsets), dtype=np.float64).sum() >= 2.0**62:
        raise UserError("the words' counts are too large to be added up in 64 bits.")


def _no_memory() -> OperationalError:
    return OperationalError(
        "there is not enough memory to train on this many distinct words: lower their limit."
    )
