"""Writing files and folders: complete or absent, by one process at a time, replaced only where that is asked.

A file or folder is written under a hidden name beside its target, flushed to the disk and renamed. A lock on
that hidden name tells the second of two processes that write one target; what a killed process left has no
lock, and the next write into the same folder removes it.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import IO

from cutaway.errors import OperationalError, UserError

try:
    import fcntl
except ImportError:  # Windows, which also moves no file or folder that is open: no lock is held there
    fcntl = None

PART, OLD = ".cutaway-part", ".cutaway-old"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TRIES = 20  # for a lock that the sweep of another process holds for a moment
FREE = "free some space"
OTHER_HOME = "set CUTAWAY_HOME to another folder"


class Bytes(int):
    """A number of bytes, as progress of them is reported; other progress counts pieces of work."""


Progress = Callable[[str, int, int | None], None]
"""Called with the current activity, how much is done, and the total (None where it is unknown)."""


def silent(doing: str, done: int, total: int | None) -> None:
    """Progress that is not shown."""


def check_room(folder: Path, needed: int, what: str, remedy: str) -> None:
    """OperationalError before a download of so many bytes that the disk has no room for."""
    if (free := shutil.disk_usage(folder).free) < needed:
        short = f"{what} needs {needed / 1e9:.2f} GB more, and {folder} has {free / 1e9:.2f} GB free"
        raise OperationalError(f"{short}: {FREE}, or {remedy}")


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_overwrite(target: str | os.PathLike[str], force: bool) -> None:
    """UserError if the target exists and `force` is not set: the one rule of every verb that writes.

    A device, a pipe and an empty folder hold nothing that could be lost.
    """
    path = Path(target)
    if force or not os.path.lexists(path) or _is_device(path):
        return
    if not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{target}: already exists: choose another name, or give --force to replace it")


def check_file(target: str | os.PathLike[str], force: bool) -> None:
    """Before long work: UserError for a file that `check_overwrite` refuses, or whose folder is not there."""
    if not Path(target).parent.is_dir():
        raise UserError(f"{target}: cannot be written: its folder does not exist")
    check_overwrite(target, force)


def check_folder(target: str | os.PathLike[str]) -> None:
    """Before long work: UserError for a folder that cannot be made, OperationalError for a read-only one."""
    there = Path(target).absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{target}: cannot be written: {there} is a file: give a folder's name")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OperationalError(f"{target}: cannot be written: {there} is read-only for you")


@contextmanager
def disk_errors(path: str | os.PathLike[str], remedy: str = FREE) -> Iterator[None]:
    """Turn an OSError into one sentence: UserError for a missing folder, else OperationalError.

    `remedy` says what to do about it.
    """
    try:
        yield
    except OSError as problem:
        if isinstance(problem, FileNotFoundError) and not Path(path).parent.exists():
            raise UserError(f"{path}: cannot be written: its folder does not exist") from problem
        why = "the disk is full" if problem.errno in FULL else problem.strerror or str(problem)
        if problem.errno in FULL or remedy != FREE:
            why += f": {remedy}"
        raise OperationalError(f"{path}: cannot be written: {why}") from problem


@contextmanager
def read_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError into OperationalError, a sentence that names the file."""
    try:
        yield
    except OSError as problem:
        raise OperationalError(f"{path} cannot be read: {problem.strerror or problem}") from problem


def contents(path: Path) -> bytes:
    """A file's bytes. Raises OperationalError where it cannot be read."""
    with read_errors(path):
        return path.read_bytes()


@contextmanager
def atomic_file(
    target: str | os.PathLike[str],
    *,
    force: bool = True,
    sha256: str | None = None,
    remedy: str = FREE,
    mode: int = 0o666,
) -> Iterator[IO[bytes]]:
    """A file to write that replaces `target` once it is complete, on disk and of the right checksum.

    A new file has the rights `mode`, less those that the process's umask takes.

    UserError if the target exists and `force` is not set; OperationalError if the disk refuses or another
    process writes the same target. A device or a pipe is written directly.
    """
    path = Path(os.path.realpath(target))
    with disk_errors(target, remedy):
        if _is_device(path):
            with path.open("wb") as out:
                yield out
            return
        if path.is_dir():
            raise UserError(f"{target}: is a folder: give a file's name")
        with _claimed(path, lambda part: part.touch(mode)) as part:
            check_overwrite(target, force)
            with part.open("wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            if sha256 is not None and digest(part) != sha256:
                raise OperationalError(f"{path.name} does not have the checksum pinned for it: deleted")
            os.replace(part, path)
            sync(path.parent)


@contextmanager
def atomic_folder(
    target: str | os.PathLike[str], *, force: bool = True, remedy: str = FREE
) -> Iterator[Path]:
    """An empty folder to fill that replaces `target` once all its files are on disk.

    Raises what `atomic_file` raises.
    """
    path = Path(os.path.realpath(target))
    with disk_errors(target, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(path, Path.mkdir) as part:
            _recover(path)
            check_overwrite(target, force)
            for left in part.iterdir():
                remove(left)
            try:
                yield part
            except OperationalError as problem:  # of a file inside: name it by its place in the target
                raise OperationalError(str(problem).replace(str(part), str(target))) from problem
            for place, _, names in os.walk(part):
                for name in names:
                    sync(Path(place, name))
                sync(Path(place))
            _swap(part, path)
            sync(path.parent)


def write_file(target: str | os.PathLike[str], data: str | bytes | bytearray, *, force: bool = True) -> None:
    """Write a whole file, by `atomic_file`; text becomes UTF-8."""
    with atomic_file(target, force=force) as out:
        out.write(data.encode() if isinstance(data, str) else data)


def part_of(target: Path) -> Path:
    """The hidden path under which `target` is written."""
    return target.with_name(f".{target.name}{PART}")


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk; Windows flushes files that can be written alone."""
    if fcntl is None and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if fcntl else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def _claimed(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """The part of `target`, new and locked; it is removed at the end if it is still there."""
    _sweep(target.parent)
    part = part_of(target)
    tries, handle = TRIES, None
    while handle is None:
        with suppress(FileExistsError):
            make(part)
        handle = _locked(part)
        if handle is None:
            tries -= 1
            if not tries:
                raise OperationalError(
                    f"{target}: another process is writing it: wait, or choose another name"
                )
            sleep(0.01)
    try:
        yield part
    finally:
        remove(part)
        os.close(handle)


def _locked(path: Path, sure: bool = False) -> int | None:
    """A handle that locks `path`; None where another process has the lock, or has just moved the path.

    Where the file system or the system has no locks, an OSError if the lock must be `sure`, else a handle
    without one.
    """
    if fcntl is None:
        if sure:
            raise OSError(errno.ENOLCK, "there are no locks here")
        return os.open(os.devnull, os.O_RDONLY)
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        if not sure:
            return handle
        os.close(handle)
        raise
    os.close(handle)
    return None


def _sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder; what a running process writes is locked, and stays."""
    with suppress(OSError):
        for stray in sorted(folder.glob(f".*{PART}")):
            handle = _locked(stray, sure=True)
            if handle is not None:
                remove(stray)
                os.close(handle)
        for old in sorted(folder.glob(f".*{OLD}")):
            if old.with_name(old.name.removeprefix(".").removesuffix(OLD)).exists():
                remove(old)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}{OLD}")


def _recover(target: Path) -> None:
    """Give the target its name back where a process was killed between the two renames of `_swap`."""
    if _old(target).exists() and not target.exists():
        _old(target).rename(target)


def _swap(part: Path, target: Path) -> None:
    """The new folder takes the target's name, and only then is the old one deleted."""
    if target.exists():
        target.rename(_old(target))
    try:
        part.rename(target)
    except OSError:
        _recover(target)
        raise
    remove(_old(target))


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as the disk lets it."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
