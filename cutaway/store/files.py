"""Writing a large file so that it is whole or absent, and saying in one sentence why the disk refused it."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cutaway.errors import OperationalError

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, the bytes done, and the bytes in all (None when nobody knows)."""


def silent(doing: str, done: int, total: int | None) -> None:
    """The progress of callers who do not watch."""


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Turn the disk's refusals under `folder` into OperationalError with one sentence."""
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OperationalError(
                f"the disk that holds {folder} is full: free some, or set CUTAWAY_HOME to a roomier folder"
            ) from problem
        if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise OperationalError(
                f"{folder} cannot be written ({problem.strerror}): set CUTAWAY_HOME to a folder that can"
            ) from problem
        raise OperationalError(f"{folder} cannot be written: {problem}") from problem


@contextmanager
def replaced(target: Path, sha256: str | None = None) -> Iterator[IO[bytes]]:
    """A file to write that takes `target`'s place once it is complete, on disk and of the right checksum."""
    part = target.with_name(target.name + ".new")
    try:
        with part.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        if sha256 is not None and digest(part) != sha256:
            raise OperationalError(
                f"{target.name} does not have the checksum it is pinned to, so it was thrown away"
            )
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
