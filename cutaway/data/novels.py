"""Jane Austen's six novels, public domain, as the preset `book` reads them: a file a chapter.

They come from Debian's package r-cran-janeaustenr (the texts of Project Gutenberg), pinned and checksummed:
through apt where there is apt, which knows the user's mirrors, and else from Debian's own address.
"""

from __future__ import annotations

import io
import lzma
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

from cutaway import store
from cutaway.errors import OperationalError
from cutaway.store.files import OTHER_HOME, atomic_folder, digest, disk_errors

PACKAGE, VERSION = "r-cran-janeaustenr", "1.0.0-1"
ARCHIVE = f"{PACKAGE}_{VERSION}_all.deb"
SHA256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
BYTES = 1_626_392
ADDRESS = f"https://deb.debian.org/debian/pool/main/r/{PACKAGE}/{ARCHIVE}"
DATA = "/janeaustenr/data/Rdata.rdb"
CHAPTER = re.compile(r"^(?:CHAPTER|Chapter)\s+(?:[IVXLC]+|\d+)\b.*$", re.M)
STRINGS, STRING, NOTHING = 16, 9, -1  # of R's serialization: STRSXP, CHARSXP, and the length of NA


def folder(progress: store.Progress = store.silent) -> Path:
    """The folder of chapters, fetched once; OperationalError where neither way reaches Debian."""
    target = store.home() / "texts" / f"austen-{VERSION}"
    if target.is_dir():
        return target
    with disk_errors(target.parent, OTHER_HOME):
        target.parent.mkdir(parents=True, exist_ok=True)
        with store.locked("austen", progress), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            if target.is_dir():
                return target
            progress("fetching Jane Austen's novels", 0, None)
            with atomic_folder(target) as made:
                _write(_novels(_archive(Path(scratch))), made)
    return target


def _archive(scratch: Path) -> bytes:
    apt = shutil.which("apt-get")
    path = scratch / ARCHIVE
    if apt is not None:
        command = [apt, "-q", "download", f"{PACKAGE}={VERSION}"]
        subprocess.run(command, cwd=scratch, capture_output=True, check=False, timeout=300)
    if not path.is_file():
        try:
            with urllib.request.urlopen(ADDRESS, timeout=60) as answer:
                path.write_bytes(answer.read(BYTES + 1))
        except (urllib.error.URLError, TimeoutError) as problem:
            raise OperationalError(
                f"the novels could not be fetched from Debian ({problem}): put texts of your own in a folder "
                "and give it as --data.sources.0.path FOLDER"
            ) from problem
    if digest(path) != SHA256:
        raise OperationalError(f"{ARCHIVE} arrived with another checksum than it is pinned to")
    return path.read_bytes()


def _novels(archive: bytes) -> Iterator[str]:
    """Each novel's text, from R's database of objects inside the package."""
    for name, body in _members(archive):
        if not name.startswith("data.tar"):
            continue
        with tarfile.open(fileobj=io.BytesIO(lzma.decompress(body))) as files:
            member = next(file for file in files if file.name.endswith(DATA))
            content = files.extractfile(member)
            assert content is not None
            for lines in _objects(content.read()):
                yield "\n".join(lines)


def _members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The files of an ar archive: a header of 60 bytes each, bodies on even places."""
    at = 8
    while at < len(archive):
        head = archive[at : at + 60]
        size = int(head[48:58])
        yield head[:16].decode().strip().rstrip("/"), archive[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def _objects(database: bytes) -> Iterator[list[str]]:
    """The vectors of strings in a lazy-load database: a length, then a zlib stream, one after another."""
    at = 0
    while at < len(database):
        stream = zlib.decompressobj()
        data = stream.decompress(database[at + 4 :])
        at = len(database) - len(stream.unused_data)
        yield _strings(data)


def _strings(data: bytes) -> list[str]:
    """One character vector in R's binary (XDR) serialization, version 2 or 3."""
    at = 2  # after "X\n"
    version = struct.unpack_from(">i", data, at)[0]
    at += 12
    if version == 3:
        at += 4 + struct.unpack_from(">i", data, at)[0]
    flags, count = struct.unpack_from(">ii", data, at)
    assert flags & 0xFF == STRINGS
    at += 8
    lines = []
    for _ in range(count):
        kind, length = struct.unpack_from(">ii", data, at)
        assert kind & 0xFF == STRING
        at += 8
        lines.append("" if length == NOTHING else data[at : at + length].decode("utf-8"))
        at += max(length, 0)
    return lines


def _write(novels: Iterator[str], target: Path) -> None:
    for n, novel in enumerate(novels):
        starts = [found.start() for found in CHAPTER.finditer(novel)]
        for m, (start, stop) in enumerate(zip(starts, [*starts[1:], len(novel)], strict=True)):
            text = unwrapped(novel[start:stop])
            (target / f"{n}-{m:03}.txt").write_text(text, "utf-8")


def unwrapped(text: str) -> str:
    """A chapter's paragraphs, each on one line, without the heading."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    return "\n".join(part for part in paragraphs[1:] if part) + "\n"
