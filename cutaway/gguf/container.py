"""Map untrusted files, and recognise the format of one that is not what was expected."""

from __future__ import annotations

import mmap
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf.types import U64


def mapped(path: Path) -> mmap.mmap:
    """A regular, non-empty file mapped read-only; UserError if it is not one."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(
                f"{path}: is {'a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}"
            )
        if not status.st_size:
            raise UserError(f"{path}: is empty; get it again")
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from None


def mapping_of(data: Any) -> mmap.mmap | None:
    """The mapped file that an array's bytes are in (or what makes them is read from), None where in none."""
    base = data
    while getattr(base, "base", None) is not None:
        base = base.base
    mapping = base.obj if isinstance(base, memoryview) else base
    return mapping if isinstance(mapping, mmap.mmap) else None


def give_back(data: Any) -> None:
    """Tells the system that what was read of the mapped file behind these bytes can leave memory: it can be
    read again.
    """
    mapping = mapping_of(data)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


class ReadAhead:
    """Has the system read a mapped file ahead of its reader, which goes on meanwhile.

    The disk is asked for much at once, and nothing waits for what is in memory already.
    """

    AHEAD = 32 << 20  # bytes

    def __init__(self) -> None:
        self._mapping: mmap.mmap | None = None
        self._begin = self._end = self._address = 0

    def before(self, data: np.ndarray) -> None:
        """These bytes are read next. Those that are in no mapped file are ready."""
        mapping = mapping_of(data)
        if mapping is None or not hasattr(mmap, "MADV_WILLNEED"):
            return
        if mapping is not self._mapping:
            self._mapping, self._begin, self._end = mapping, 0, 0
            self._address = np.frombuffer(mapping, np.uint8).ctypes.data
        at = data.ctypes.data - self._address
        inside = self._begin <= at <= self._end
        if inside and (self._end - at > self.AHEAD // 2 or self._end == len(mapping)):
            return
        first = (self._end if inside else at) // mmap.PAGESIZE * mmap.PAGESIZE
        self._begin, self._end = (self._begin if inside else at), min(at + self.AHEAD, len(mapping))
        mapping.madvise(mmap.MADV_WILLNEED, first, self._end - first)


def looks_like(head: bytes) -> str:
    """The likely format of a file by its first kilobyte, as a phrase for an error message."""
    if head.startswith(b"GGUF"):
        return "a GGUF file"
    if head.startswith(b"PK\x03\x04"):
        torch = b"data.pkl" in head
        return "a PyTorch checkpoint (a pickle in a zip), which is never opened" if torch else "a zip archive"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a Python pickle (an old PyTorch checkpoint?), which is never opened"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself: fetch it with `git lfs pull`"
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", head, re.IGNORECASE):
        return "an HTML page, as a failed download leaves behind"
    if len(head) > 8 and U64.unpack_from(head)[0] <= 100_000_000 and head[8:9] == b"{":
        return "a safetensors file: give the folder that it and its config.json are in"
    if head[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggjt", b"ggla"):
        return "a model of llama.cpp's formats before GGUF: convert it again from its source"
    for magic, name in _MAGICS.items():
        if head.startswith(magic):
            return name
    if re.match(rb"\s*[{\[]", head):
        return "JSON text"
    if head and not head.strip(b"\0"):
        return "nothing but zeros, as an unfinished download"
    return f"an unknown format (it begins with the bytes {head[:8].hex(' ')})"


_MAGICS = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a numpy array",
    b"\x7fELF": "a program",
    b"%PDF": "a PDF",
}
