"""Read untrusted text files whole, up to a bounded size; errors name the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.store.files import read_errors

LARGEST = 16 << 20  # bytes; JSON of this size takes some 400 MB at most


def text(path: Path, most: int = LARGEST) -> str:
    """A UTF-8 file's text. UserError for another encoding and for more than ``most`` bytes."""
    with read_errors(path), path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path}: is {path.stat().st_size:,} bytes long; at most {most:,} are read")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None


def parsed(path: Path, kind: type = dict, most: int = LARGEST) -> Any:
    """A JSON file that holds entries by name, or a list for ``kind=list``."""
    return parsed_text(text(path, most), str(path), kind)


def parsed_text(data: str | bytes, where: str, kind: type = dict) -> Any:
    """JSON text that holds entries by name, or a list for ``kind=list``. UserError for another."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({error})") from None
    if not isinstance(found, kind):
        wanted = "entries by name" if kind is dict else "a list"
        raise UserError(f"{where}: should hold {wanted}, but holds a {type(found).__name__}")
    return found


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a log, one a line, as far as they are whole: the last line of a killed process is not.

    UserError for a line that is no entry.
    """
    with read_errors(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and line.endswith(b"\n"):
                yield parsed_text(line, f"{path}, line {number}")


def arrays(path: Path, kinds: Mapping[str, str]) -> dict[str, Any]:
    """The lists of numbers of a numpy archive, by name; ``kinds`` are the letters of each one's dtype.kind.

    UserError for a file that is none, is compressed, or lacks one.
    """
    import tokenize
    import zipfile

    import numpy as np

    # what numpy raises of a member that is no array, or whose header is none, beside zipfile's own
    damaged = (ValueError, LookupError, EOFError, OSError, RuntimeError, MemoryError, SyntaxError)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed, and may be of any size")
        with np.load(path, allow_pickle=False) as found:
            made = {name: np.asarray(found[name]) for name in kinds}  # of no array the bytes
    except (*damaged, tokenize.TokenError, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is no archive of arrays that can be read ({why})") from None
    for name, array in made.items():
        if array.ndim != 1 or array.dtype.kind not in kinds[name]:
            raise UserError(f"{path}: {name} is an array of {array.dtype}, {array.ndim} dimensions")
    return made
