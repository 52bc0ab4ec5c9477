"""Cutting text by the models' patterns (native/tokenizer/scan.cpp; reference: tokenizer/pretokenize.py)."""

from __future__ import annotations

import ctypes
from itertools import pairwise

from cutaway.native.library import function

# By the numbers that native/tokenizer/scan.hpp gives them.
SCANNERS = (
    "lines",
    "gpt2",
    "smollm",
    "cl100k",
    "llama3",
    "qwen2",
    "qwen2_any",
    "qwen35",
    "qwen35_any",
    "o200k",
    "tekken",
    "deepseek3",
)


def pieces(scanner: str, text: str) -> list[str]:
    """The pieces into which a scanner cuts a text."""
    call = function(
        "cutaway_scan",
        ctypes.c_int32,
        ctypes.c_char_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        result=ctypes.c_int64,
    )
    data = text.encode()
    ends = (ctypes.c_int64 * (len(data) + 1))()
    count = call(SCANNERS.index(scanner), data, len(data), ctypes.byref(ends))
    return [data[start:stop].decode() for start, stop in pairwise([0, *ends[:count]])]
