"""Compiled vocabularies on disk: mapped in milliseconds, without the tokenizer's own file being read.

A file holds a line that says what it is, the small fields of TokenizerSpec as JSON, and the vocabulary in the
core's layout. Its name is a digest of its source, so that a changed tokenizer has another. Checksums guard
both halves, and the core checks that nothing inside points outside. A damaged or forged file, or one of
another version, is made anew.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path as File
from typing import Any, overload

from cutaway.errors import OperationalError
from cutaway.native.bpe import Core
from cutaway.store import files
from cutaway.tokenizer import normalize, pretokenize
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.decode import Lead
from cutaway.tokenizer.spec import TokenizerSpec
from cutaway.tokenizer.template import PairTemplate, Piece

try:  # the public hashlib loads OpenSSL, 4 MB of each process; nothing public has BLAKE2 without it
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

VERSION = 9  # of the JSON and of the core's half, which checks itself as well
LARGEST_READ = (
    64 << 20
)  # bytes: of a larger file, which holds a model too, the name, size and time are the digest
HEAVY = ("tokens", "vocabulary", "merges", "ranks", "scores", "unused", "users", "pieces")
_MARK = b"cutaway vocabulary\n"
_RULES = {
    kind.__name__: kind
    for kind in (
        normalize.Unicode,
        normalize.Lowercase,
        normalize.Replace,
        normalize.Prepend,
        normalize.Prefix,
        normalize.Strip,
        normalize.OneSpace,
        pretokenize.Split,
        pretokenize.PrefixSpace,
        pretokenize.Metaspace,
    )
}


class Texts(Sequence[str | None]):
    """The tokens of a vocabulary that is not read until one of them is asked for."""

    def __init__(self, size: int, read: Callable[[], Sequence[str | None]]) -> None:
        self.size = size
        self.read = read

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> str | None: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str | None]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str | None] | None:
        return self.read()[index]


class Recalled(TokenizerSpec):
    """A TokenizerSpec from a compiled file; its large fields are read from the source at first use."""

    def __init__(self, small: Mapping[str, Any], size: int, read: Callable[[], TokenizerSpec]) -> None:
        vars(self).update(small, tokens=Texts(size, lambda: self._whole.tokens), _read=read)

    @cached_property
    def _whole(self) -> TokenizerSpec:
        return vars(self)["_read"]()

    def __eq__(self, other: object) -> bool:
        return self._whole == (other._whole if isinstance(other, Recalled) else other)

    __hash__ = TokenizerSpec.__hash__


for _name in HEAVY[1:]:
    _held = cached_property(lambda self, name=_name: getattr(self._whole, name))
    _held.__set_name__(Recalled, _name)
    setattr(Recalled, _name, _held)


def digest(paths: Sequence[File], *more: object) -> str:
    """A name for what files hold, and how they are to be read."""
    made = blake2b(repr((VERSION, more)).encode(), digest_size=32)
    for path in paths:
        about = path.stat()
        made.update(b"%d " % about.st_size)
        if about.st_size <= LARGEST_READ:
            made.update(path.read_bytes())
        else:
            made.update(repr((str(path.resolve()), about.st_mtime_ns)).encode())
    return made.hexdigest()


def digest_of(metadata: Mapping[str, Any]) -> str | None:
    """A name for the tokenizer in GGUF metadata; None where a value is of another type than GGUF has."""

    def listed(value: Any) -> Any:
        if not hasattr(value, "tolist"):
            raise TypeError
        return [str(value.dtype), value.tolist()]

    try:
        held = json.dumps(
            {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}, default=listed
        )
    except (TypeError, ValueError):
        return None
    return blake2b(repr((VERSION, "metadata")).encode() + held.encode(), digest_size=32).hexdigest()


def recall(name: str, read: Callable[[], TokenizerSpec]) -> tuple[TokenizerSpec, Core] | None:
    """The tokenizer kept under a name, and its open vocabulary; None where there is none that is whole."""
    try:
        with _file(name).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    start = len(_MARK) + 8
    size, check = (int.from_bytes(data[at : at + 4], "little") for at in (start - 8, start - 4))
    small = data[start : start + size]
    if data[: len(_MARK)] != _MARK or len(small) != size or zlib.crc32(small) != check:
        return None
    try:
        core = Core(data, -(-(start + size) // 64) * 64)
    except ValueError:
        return None
    if hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED)  # all was read, to be checked: what is used comes back by itself
    try:
        held = json.loads(small)
        return Recalled(_small(held), held["size"], read), core
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def keep(name: str, spec: TokenizerSpec, laid_out: bytes) -> None:
    """Keeps a tokenizer under a name, whole or not at all. A cache that cannot be written is done without."""
    small = _small_json(spec)
    if small is None:
        return
    head = _MARK + len(small).to_bytes(4, "little") + zlib.crc32(small).to_bytes(4, "little") + small
    target = _file(name)
    with suppress(OSError, OperationalError):
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write_file(target, head + bytes(-len(head) % 64) + laid_out)


def _file(name: str) -> File:
    from cutaway import store

    return store.home() / "vocabularies" / f"{name}.bin"


def _small_json(spec: TokenizerSpec) -> bytes | None:
    """The small fields as JSON; None where a rule or a step is of a kind that is not written."""
    if spec.words is not None or any(
        type(one).__name__ not in _RULES for one in (*spec.normalizer, *spec.pretokenizer)
    ):
        return None
    held = {
        field.name: getattr(spec, field.name) for field in fields(TokenizerSpec) if field.name not in HEAVY
    }
    for name in ("normalizer", "pretokenizer"):
        held[name] = [[type(one).__name__, asdict(one)] for one in held[name]]
    held["added"] = [asdict(token) for token in spec.added]
    held["lead"] = spec.lead.rule
    return json.dumps({**held, "size": len(spec.tokens)}).encode()


def _small(held: Mapping[str, Any]) -> dict[str, Any]:
    out = {name: value for name, value in held.items() if name != "size"}
    for name in ("normalizer", "pretokenizer"):
        out[name] = tuple(_RULES[kind](**values) for kind, values in held[name])
    out["added"] = tuple(AddedToken(**token) for token in held["added"])
    out["lead"] = Lead(held["lead"])
    out["eot"], out["openers"] = tuple(held["eot"]), tuple(held["openers"])
    for side in ("before", "behind"):
        out[side] = None if held[side] is None else tuple(held[side])
    if held["template"] is not None:
        sides = (tuple(Piece(*piece) for piece in side) for side in held["template"])
        out["template"] = PairTemplate(*sides)
    return out
