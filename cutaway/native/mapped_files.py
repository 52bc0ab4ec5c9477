"""Mapped files that are cut short while they are used: the process ends with a sentence, not by SIGBUS."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from pathlib import Path

import numpy as np

from cutaway.errors import quoted
from cutaway.native.library import function, unavailable_reason


def guard(mapping: mmap.mmap, path: Path) -> None:
    """End the process with the file's name where it lost what is mapped; nothing without the native core."""
    if unavailable_reason() is not None:
        return
    message = f"cutaway: {quoted(str(path))} was cut short while it was in use: restore it, and start again\n"
    size, text = ctypes.c_size_t, message.encode()
    add = function("cutaway_guard", ctypes.c_void_p, size, ctypes.c_char_p, size, result=ctypes.c_int32)
    start = np.frombuffer(mapping, np.uint8).ctypes.data
    number = add(start, len(mapping), text, len(text))
    weakref.finalize(mapping, function("cutaway_unguard", ctypes.c_int32), number).atexit = False
