"""Reading strangers' text files whole: of bounded size, and refused in a sentence that names the file."""

from __future__ import annotations

import json
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
