"""The safetensors container, read and written: one file, or shards and the index that names them.

A file is eight bytes of header length, a JSON header naming each tensor's type, shape and place, and the
bytes (the format section of the safetensors README). A header parsed whole may take many times its size, so
each entry is found in place by a regular expression and parsed by itself. Opening allocates at most twice the
file's size, plus about a kilobyte for each of at most 65,536 tensors and room for one metadata value of at
most 4 MiB.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import (
    FOREIGN,
    MAX_NAMED,
    TYPES,
    Later,
    Packed,
    looks_like,
    made,
    mapped,
    packed_shape,
    row_bytes,
)
from cutaway.store.files import atomic_file

STORED = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8"} | FOREIGN.keys())
WRITTEN = ("F32", "F16", "BF16", "I64", "I32")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_INDEXED = 1 << 20
MAX_HEADER = 100_000_000
MAX_TEXT = 1 << 22
MAX_FLAT = 4096
MAX_DIMS = 32
METADATA = "__metadata__"

_LENGTH = struct.Struct("<Q")
_SPACE, _TEXT = r"[ \t\r\n]*+", r'"(?:[^"\\\x00-\x1f]++|\\.)*+"'
# A value: a text, a number or a word, or an object that holds no other.
_VALUE = rf'{_TEXT}|[-+.\w]++|\{{(?:[^{{}}"]++|{_TEXT})*+\}}'
# Each part is optional, so that an error can name the first that is missing.
_PAIR = re.compile(rf"{_SPACE}({_TEXT})?+{_SPACE}(:)?+{_SPACE}({_VALUE})?+{_SPACE}([,}}])?+{_SPACE}".encode())
_OPENED = re.compile(rf"{_SPACE}\{{{_SPACE}(\}}{_SPACE})?+".encode())
_KINDS: dict[type, str] = {
    str: f"not a JSON text of at most {MAX_TEXT} bytes",
    dict: f"neither texts nor a tensor's description of at most {MAX_FLAT} bytes",
}
Parsed = TypeVar("Parsed", str, dict)


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Packed]:
    """The tensors of a .safetensors file, an index of shards, or a folder of either; mapped, not copied.

    Integer, boolean and eight-bit float tensors are carried under their type's name; readers of numbers
    refuse them. UserError for a file that is damaged or another format, and for shards that are not what the
    index says.
    """
    source = _source(Path(path))
    if source.name.endswith(".index.json"):
        return _read_shards(source)
    return _read_file(source)


def read_shaped(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int | None, ...]],
    types: Collection[str] = ("F32",),
) -> dict[str, Packed]:
    """The tensors of a file that holds these, each of its shape (None: any length) and of one of ``types``.

    UserError if it is missing, or has another shape or type; tensors of other names are left out.
    """
    found = read_safetensors(path)
    for name, wanted in shapes.items():
        tensor = found.get(name)
        if tensor is None:
            raise UserError(f"{path}: has no tensor {quoted(name)}")
        fits = len(tensor.shape) == len(wanted) and all(
            length in (None, own) for length, own in zip(wanted, tensor.shape, strict=True)
        )
        if not fits or tensor.type not in types:
            spelt = " x ".join("any" if length is None else str(length) for length in wanted)
            own = " x ".join(map(str, tensor.shape)) or "one number"
            need = f"{' or '.join(types)} of {spelt}"
            raise UserError(f"{path}: {quoted(name)} is {tensor.type} of {own}, and {need} is needed")
    return {name: found[name] for name in shapes}


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts under `__metadata__`; those of the first shard where there are several."""
    source = _source(Path(path))
    if source.name.endswith(".index.json"):
        source = source.parent / min(_weight_map(source).values())
    buffer = mapped(source)
    found: dict[str, str] = {}
    for name, span in _pairs(source, buffer, _header(source, buffer), MAX_NAMED + 1, _KINDS[dict]):
        if name == METADATA:
            found = dict(_texts(source, buffer, span, MAX_NAMED))
    return found


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Packed | Later | tuple[str, tuple[int, ...], np.ndarray]],
    metadata: Mapping[str, object] | None = None,
    max_shard_bytes: int | None = None,
    *,
    force: bool = True,
) -> None:
    """Write F32, F16, BF16 and I32 tensors, whole or not at all.

    More than `max_shard_bytes` become shards and their index beside `path`; a larger tensor gets a shard of
    its own. UserError for other types, and for metadata that is not text.
    """
    target = Path(path)
    texts = _texts_only(target, metadata or {})
    planned = {name: _planned(name, tensor) for name, tensor in tensors.items()}
    shards = _shards(planned, max_shard_bytes)
    if len(shards) == 1:
        with atomic_file(target, force=force) as out:
            _pour(out, shards[0], texts)
        return
    names = [f"{target.stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    with ExitStack() as stack:
        # The file opened first is moved into place last: the index appears when all that it names is there.
        index = stack.enter_context(atomic_file(target.with_name(f"{target.name}.index.json"), force=force))
        index.write(_index(names, shards))
        for name, shard in zip(names, shards, strict=True):
            _pour(stack.enter_context(atomic_file(target.with_name(name), force=force)), shard, texts)
    target.unlink(missing_ok=True)


def packed(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Arrays as the bytes of a safetensors file of F32."""
    out = io.BytesIO()
    planned = {
        name: _planned(name, ("F32", array.shape, array.astype("<f4"))) for name, array in tensors.items()
    }
    _pour(out, planned, dict(metadata or {}))
    return out.getvalue()


# ---- where the tensors are ---------------------------------------------------------------------------------


def _source(path: Path) -> Path:
    """The file or index that `path`, which may be a folder, means."""
    if not path.is_dir():
        return path
    for name in (SINGLE, INDEX):
        if (path / name).exists():
            return path / name
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{path}: has no {SINGLE} and no {INDEX}")
    raise UserError(f"{path}: has {len(found)} .safetensors files, no {SINGLE} or {INDEX}: name one of them")


def unread(folder: Path) -> str:
    """The end of an error where a folder has weights in one file and in shards: which are read."""
    if not all((folder / name).exists() for name in (SINGLE, INDEX)):
        return ""
    return (
        f"; both {SINGLE} and {INDEX} are there, and the first is read, as transformers reads it: "
        "remove it if it is not of this model"
    )


def _read_shards(index: Path) -> dict[str, Packed]:
    where = _weight_map(index)
    stated: dict[str, set[str]] = {}
    for name, shard in where.items():
        stated.setdefault(shard, set()).add(name)
    tensors: dict[str, Packed] = {}
    for shard, names in stated.items():
        path = index.parent / shard
        if not path.exists():
            raise UserError(f"{index}: names the shard {quoted(shard)}, which is missing; get it too")
        found = _read_file(path)
        if missing := names - found.keys():
            raise UserError(f"{path}: lacks the tensor {quoted(min(missing))}, which {index.name} lists")
        if extra := found.keys() - names:
            raise UserError(
                f"{path}: holds the tensor {quoted(min(extra))}, which {index.name} does not list"
            )
        tensors.update(found)
    return {name: tensors[name] for name in where}


def _weight_map(index: Path) -> dict[str, str]:
    """Which shard holds each tensor; every shard is a plain file name, beside the index."""
    buffer = mapped(index)
    if len(buffer) > MAX_HEADER:
        raise UserError(f"{index}: is {len(buffer)} bytes long; an index of at most {MAX_HEADER} is read")
    where: dict[str, str] = {}
    for section, span in _pairs(
        index, buffer, slice(0, len(buffer)), MAX_NAMED, "not JSON that an index holds"
    ):
        if section == "weight_map":
            where = dict(_texts(index, buffer, span, MAX_INDEXED))
    if not where:
        raise UserError(f"{index}: has no weight_map, so it is not an index of safetensors shards")
    for shard in set(where.values()):
        if not re.fullmatch(r"[^/\\:\x00]+", shard) or shard in (".", ".."):
            raise UserError(f"{index}: names the shard {quoted(shard)}, which is not a plain file name")
    return where


# ---- one file ----------------------------------------------------------------------------------------------


def _read_file(path: Path) -> dict[str, Packed]:
    buffer = mapped(path)
    header = _header(path, buffer)
    data = np.frombuffer(buffer, np.uint8)[header.stop :]
    tensors: dict[str, Packed] = {}
    spans: list[tuple[int, int, str]] = []
    for name, span in _pairs(path, buffer, header, MAX_NAMED + 1, _KINDS[dict]):
        if name == METADATA:
            for _ in _texts(path, buffer, span, MAX_NAMED):
                pass  # checked, and not kept
            continue
        if len(tensors) == MAX_NAMED:
            raise UserError(f"{path}: has more than {MAX_NAMED} tensors; split it into shards")
        entry = _parsed(path, buffer, span, f"the entry {quoted(name)}", dict)
        type, shape, start, stop = _checked(path, name, entry, len(data))
        tensors[name] = Packed(type, shape, data[start:stop].reshape(packed_shape(type, shape)))
        spans.append((start, stop, name))
    _check_cover(path, spans, len(data))
    return tensors


def _header(path: Path, buffer: mmap.mmap) -> slice:
    """The header's place in the file."""
    size = len(buffer)
    length = _LENGTH.unpack_from(buffer)[0] if size >= 8 else 0
    if size < 8 or buffer[8:9] != b"{" or length > MAX_HEADER:
        head = buffer[:1024]
        if buffer[8:9] == b"{" and not head.startswith((b"GGUF", b"PK")):
            raise UserError(f"{path}: claims a header of {length} bytes; at most {MAX_HEADER} are read")
        raise UserError(f"{path}: is not a safetensors file; it looks like {looks_like(head)}")
    if length > size - 8:
        raise UserError(f"{path}: has a header of {length} bytes but {size - 8} follow: it is cut short")
    return slice(8, 8 + length)


def _checked(
    path: Path, name: str, entry: dict[str, object], size: int
) -> tuple[str, tuple[int, ...], int, int]:
    """The type, shape and place of a tensor, agreeing with each other and with the `size` of the data."""
    what = f"{path}: the tensor {quoted(name)}"
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{what} is described by {quoted(', '.join(entry))}, not dtype, shape, data_offsets")
    type, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(type, str) or type not in STORED:
        raise UserError(f"{what} has the type {quoted(str(type))}; {', '.join(sorted(STORED))} are read")
    sizes = _whole_numbers(shape)
    if sizes is None or len(sizes) > MAX_DIMS:
        raise UserError(f"{what} has a shape that is not a list of at most {MAX_DIMS} sizes")
    places = _whole_numbers(offsets)
    if places is None or len(places) != 2:
        raise UserError(f"{what} has data_offsets that are not two places")
    start, stop = places
    if not start <= stop <= size:
        raise UserError(f"{what} is stored at {start} to {stop}, outside the {size} bytes: it is cut short")
    width = row_bytes(type, 1)
    if math.prod(max(n, 1) for n in sizes) * width >= 1 << 62:
        raise UserError(f"{what} has a shape beyond any memory")
    if math.prod(sizes) * width != stop - start:
        raise UserError(f"{what} needs {math.prod(sizes) * width} bytes but has {stop - start}")
    return type, sizes, start, stop


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    # Exactly int: a JSON true is a Python int too.
    numbers = tuple(item for item in value if type(item) is int and 0 <= item < 1 << 63)
    return numbers if len(numbers) == len(value) else None


def _check_cover(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """The tensors lie side by side from the first byte of the data to the last, as the format demands."""
    at, before = 0, "the header"
    for start, stop, name in sorted(spans):
        if start != at:
            how = "overlaps" if start < at else "leaves a hole after"
            raise UserError(f"{path}: the tensor {quoted(name)} {how} {before}")
        at, before = stop, f"the tensor {quoted(name)}"
    if at != size:
        raise UserError(f"{path}: {size - at} bytes after the last tensor belong to none")


# ---- JSON --------------------------------------------------------------------------------------------------


def _pairs(path: Path, buffer: mmap.mmap, span: slice, limit: int, kind: str) -> Iterator[tuple[str, slice]]:
    """The keys of the JSON object that fills `span`, each at most once, and where their values are."""
    opened = _OPENED.match(buffer, span.start, span.stop)
    if opened is None:
        raise UserError(f"{path}: the JSON is broken at byte {span.start}, where '{{' was expected")
    at, sign = opened.end(), b"}" if opened[1] else b","
    seen: set[str] = set()
    while sign == b",":
        match = _PAIR.match(buffer, at, span.stop)
        if match is None or match.start(1) < 0:
            raise UserError(f"{path}: the name at byte {at} is not a JSON text")
        key, colon, value, after = (slice(*match.span(i)) for i in range(1, 5))
        name = _parsed(path, buffer, key, f"the name at byte {at}", str)
        if name in seen:
            raise UserError(f"{path}: {quoted(name)} is there twice")
        if len(seen) == limit:
            raise UserError(f"{path}: has more than {limit} entries in one JSON object")
        seen.add(name)
        if value.start < 0 <= colon.start:
            raise UserError(f"{path}: the entry {quoted(name)} is {kind}")
        if colon.start < 0 or after.start < 0:
            raise UserError(f"{path}: the JSON is broken at byte {max(key.stop, value.stop)}")
        yield name, value
        at, sign = match.end(), match[4]
    if at != span.stop:
        raise UserError(f"{path}: there is something after the JSON ends, at byte {at}")


def _texts(path: Path, buffer: mmap.mmap, span: slice, limit: int) -> Iterator[tuple[str, str]]:
    """The pairs of an object of texts."""
    for key, value in _pairs(path, buffer, span, limit, _KINDS[str]):
        yield key, _parsed(path, buffer, value, f"the entry {quoted(key)}", str)


def _parsed(path: Path, buffer: mmap.mmap, span: slice, what: str, kind: type[Parsed]) -> Parsed:
    """A text or a tensor's description, without surrogates and doubled keys."""
    if span.stop - span.start <= (MAX_TEXT if kind is str else MAX_FLAT):
        try:
            value = json.loads(
                str(buffer[span], "utf-8"), object_pairs_hook=partial(_unique, f"{path}: {what}")
            )
            if isinstance(value, str):
                value.encode()
        except (ValueError, RecursionError):
            raise UserError(f"{path}: {what} is not JSON, or not valid Unicode text") from None
        if isinstance(value, kind):
            return value
    raise UserError(f"{path}: {what} is {_KINDS[kind]}")


def _unique(what: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UserError(f"{what} has the same key twice")
    return found


# ---- writing -----------------------------------------------------------------------------------------------


def _texts_only(target: Path, metadata: Mapping[str, object]) -> dict[str, str]:
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    if others := metadata.keys() - texts.keys():
        raise UserError(f"{target}: the metadata {quoted(min(others))} is not text, as safetensors needs")
    return texts


def _planned(name: str, tensor: Packed | Later | tuple[str, tuple[int, ...], np.ndarray]) -> Packed | Later:
    type = tensor[0] if isinstance(tensor, tuple) else tensor.type
    if name == METADATA:
        raise UserError("no tensor can be named __metadata__ in safetensors")
    if type not in WRITTEN:
        raise UserError(f"the tensor {quoted(name)} is {type}, not one of {', '.join(WRITTEN)}")
    if not isinstance(tensor, tuple):
        return tensor
    _, shape, array = tensor
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    stored = packed_shape(type, shape)
    if data.size != math.prod(stored):
        raise UserError(f"{quoted(name)}, {type} {shape}, needs {math.prod(stored)} bytes, not {data.size}")
    return Packed(type, shape, data.reshape(stored))


def _shards(tensors: dict[str, Packed | Later], limit: int | None) -> list[dict[str, Packed | Later]]:
    """The tensors in their order, cut where the next one would exceed `limit` bytes."""
    shards: list[dict[str, Packed | Later]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.nbytes
        if limit is not None and shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    return shards


def _index(names: list[str], shards: list[dict[str, Packed | Later]]) -> bytes:
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2).encode()


def _pour(out: IO[bytes] | io.BytesIO, tensors: dict[str, Packed | Later], texts: dict[str, str]) -> None:
    # Wide types first keeps every tensor aligned to its own width.
    ordered = sorted(tensors.items(), key=lambda item: -TYPES[item[1].type].bytes)
    header: dict[str, object] = {METADATA: texts} if texts else {}
    at = 0
    for name, tensor in ordered:
        stop = at + tensor.nbytes
        header[name] = {"dtype": tensor.type, "shape": list(tensor.shape), "data_offsets": [at, stop]}
        at = stop
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    out.write(_LENGTH.pack(len(data)) + data)
    for name, tensor in ordered:
        out.write(np.ascontiguousarray(made(name, tensor).data).reshape(-1).data)
