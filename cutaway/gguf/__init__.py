"""The GGUF container, versions 2 and 3, read and written (the GGUF specification in ggml's docs/gguf.md).

A file is a header, typed key/value metadata, a table of tensors and, after padding, their bytes. Tensors stay
packed as they are on disk and stay mapped: opening a file copies none of them. A file is data from a
stranger, so each number in it is checked against the file's size before it is believed; what opening
allocates is bounded by twice that size, plus about a kilobyte for each of at most 65,536 tensors and as many
keys."""

from cutaway.gguf.container import ReadAhead, give_back, looks_like, mapped, mapping_of
from cutaway.gguf.reader import File, Metadata, read
from cutaway.gguf.types import (
    FOREIGN,
    MAX_NAMED,
    NO_WEIGHTS,
    TYPES,
    UNSUPPORTED,
    GGMLType,
    Later,
    Packed,
    packed_shape,
    row_bytes,
)
from cutaway.gguf.writer import made, write

__all__ = [
    "FOREIGN",
    "MAX_NAMED",
    "NO_WEIGHTS",
    "TYPES",
    "UNSUPPORTED",
    "File",
    "GGMLType",
    "Later",
    "Metadata",
    "Packed",
    "ReadAhead",
    "give_back",
    "looks_like",
    "made",
    "mapped",
    "mapping_of",
    "packed_shape",
    "read",
    "row_bytes",
    "write",
]
