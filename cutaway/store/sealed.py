"""Records in files that are used only as they were written: checksummed, and encrypted with a secret.

A record is written for a key, which says what it is (a page of one text, of one model). Read for another key
it is as damaged as one with a flipped bit:

    magic (8)   encrypted? (1), zeros (7)   bytes of the content (8)   nonce (16)   tag (32)   content

Without a secret the tag is HMAC-SHA-256 by the key. With one the content is AES-256-GCM's, whose own tag ends
it; the key and the header are authenticated beside it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from cutaway.errors import UserError
from cutaway.extras import need

MAGIC = b"CUTSEAL1"
HEADER = struct.Struct("<8s?7xQ16s")
TAG, NONCE, OWN_TAG = 32, 12, 16
LEAST_SECRET, MOST_SECRET = 32, 1 << 16  # bytes of a secret


class DamagedError(Exception):
    """A record that is not what was written for this key: damaged, cut off, or another's."""


class Seal:
    """How records are written and read: with a checksum, or with a secret encrypted.

    Raises UserError for a secret that is short, and where the library that encrypts is absent.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._cipher: Any = None
        self._naming = b"cutaway"
        if secret is None:
            return
        if len(secret) < LEAST_SECRET:
            raise UserError(
                f"The key that encrypts has {len(secret)} bytes, and at least {LEAST_SECRET} are needed: "
                "`openssl rand -hex 32` makes one"
            )
        need("encryption", "cryptography")
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM(hmac.digest(secret, b"cutaway sealed content", "sha256"))
        self._naming = hmac.digest(secret, b"cutaway sealed names", "sha256")

    @property
    def encrypts(self) -> bool:
        """Whether there is a secret."""
        return self._cipher is not None

    @property
    def overhead(self) -> int:
        """The bytes of a record beside its content."""
        return HEADER.size + TAG + (OWN_TAG if self.encrypts else 0)

    def name(self, key: bytes) -> str:
        """The name of the file that holds a key's record, from which neither can be known."""
        return hashlib.blake2b(key, key=self._naming, digest_size=20).hexdigest()

    def write(self, out: IO[bytes], key: bytes, parts: Sequence[np.ndarray]) -> None:
        """Write arrays, one after the other, as a record."""
        views = _views([np.ascontiguousarray(part) for part in parts])
        size = sum(view.nbytes for view in views)
        nonce = os.urandom(NONCE) if self._cipher is not None else b""
        header = HEADER.pack(MAGIC, self.encrypts, size, nonce)
        if self._cipher is not None:
            views = [memoryview(self._cipher.encrypt(nonce, b"".join(views), key + header))]
        out.write(header + self._tag(key, header, views))
        for view in views:
            out.write(view)

    def read(self, file: IO[bytes], key: bytes, parts: Sequence[np.ndarray]) -> None:
        """Fill arrays with the next record of an unbuffered file. DamagedError where it is not this key's, or
        not of their size; then nothing that the arrays hold may be used.
        """
        header, tag, size = self._begin(file)
        if size != sum(part.nbytes for part in parts):
            raise DamagedError
        if self._cipher is None:
            views = _views(parts)
            for view in views:
                _fill(file, view)
            if not hmac.compare_digest(tag, self._tag(key, header, views)):
                raise DamagedError
            return
        plain, at = self._decrypted(file, key, header, size), 0
        for part in parts:
            part[...] = np.frombuffer(plain, part.dtype, part.size, at).reshape(part.shape)
            at += part.nbytes

    def read_bytes(self, file: IO[bytes], key: bytes, most: int) -> bytes:
        """The content of the next record, of at most so many bytes. DamagedError as `read`."""
        at = file.tell()
        size = self._begin(file)[2]
        if size > most:
            raise DamagedError
        file.seek(at)
        found = np.empty(size, np.uint8)
        self.read(file, key, [found])
        return found.tobytes()

    def _begin(self, file: IO[bytes]) -> tuple[bytes, bytes, int]:
        """The header, the tag and the content's size of the record that begins here."""
        head = bytearray(HEADER.size + TAG)
        _fill(file, memoryview(head))
        magic, encrypted, size, _ = HEADER.unpack_from(head)
        if magic != MAGIC or encrypted != self.encrypts:
            raise DamagedError
        return bytes(head[: HEADER.size]), bytes(head[HEADER.size :]), size

    def _decrypted(self, file: IO[bytes], key: bytes, header: bytes, size: int) -> bytes:
        from cryptography.exceptions import InvalidTag

        content = bytearray(size + OWN_TAG)
        _fill(file, memoryview(content))
        try:
            return self._cipher.decrypt(HEADER.unpack(header)[3][:NONCE], content, key + header)
        except InvalidTag:
            raise DamagedError from None

    def _tag(self, key: bytes, header: bytes, views: Sequence[memoryview]) -> bytes:
        """The tag of a plain record; of an encrypted one zeros, because its content has its own."""
        if self._cipher is not None:
            return bytes(TAG)
        made = hmac.new(key, header, "sha256")
        for view in views:
            made.update(view)
        return made.digest()


def secret_from(file: Path | None, variable: str) -> bytes | None:
    """The secret of a file, else of an environment variable; None where neither is given. UserError for a
    file that cannot be read.
    """
    if file is None:
        text = os.environ.get(variable, "").strip()
        return text.encode("utf-8", "surrogateescape") or None
    try:
        with file.open("rb") as opened:
            return opened.read(MOST_SECRET).strip()
    except OSError as error:
        raise UserError(f"{file}: the key cannot be read: {error.strerror or error}") from None


def _views(parts: Sequence[np.ndarray]) -> list[memoryview]:
    """The bytes of contiguous arrays; one without any has no view."""
    return [part.data.cast("B") for part in parts if part.nbytes]


def _fill(file: IO[bytes], view: memoryview) -> None:
    """Read until the view is full; DamagedError at the file's end."""
    while view.nbytes:
        count = getattr(file, "readinto")(view)  # noqa: B009 - IO[bytes] does not name it
        if not count:
            raise DamagedError
        view = view[count:]
