"""Rows of a table of examples: JSON lines, JSON, CSV, parquet, or text files, as dicts with where they are.

    .jsonl .ndjson .json   an object a line, or one list of objects
    .csv .tsv              a header, then a row a line
    .parquet               needs pyarrow
    .txt .md ...           each file is one row, {"text": ...}

Tables may be packed by gzip (.jsonl.gz). Of a folder all tables are read, or, where there is none, all texts;
one that was cut into parts, as the hub's are (train-00000-of-00001.parquet, test-...), has its part for
training read alone.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cutaway.data import parquet
from cutaway.data.sources import PASSED_OVER
from cutaway.errors import OperationalError, UserError, escaped

LINES, SHEETS, PARQUET = (".jsonl", ".ndjson", ".json"), (".csv", ".tsv"), (".parquet",)
TEXTS = (".txt", ".md", ".markdown", ".rst", ".text")
TABLES = (*LINES, *SHEETS, *PARQUET)
KINDS = "JSON lines, JSON, CSV, parquet or text (.jsonl, .json, .csv, .tsv, .parquet, .txt, .md)"
OF_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of the hub
PART = re.compile(r"(?:^|[^a-z])(train|test|valid|validation|val|dev|eval)(?:[^a-z]|$)", re.IGNORECASE)
SEPARATORS = ",;\t|"
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # whole pairs are written so too


class Row(dict[str, Any]):
    """The entries of a row that are not null; ``empty``: the names of those that are."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        super().__init__({name: value for name, value in found.items() if value is not None})
        self.empty = tuple(name for name, value in found.items() if value is None)


def rows(path: str | Path) -> Iterator[tuple[str, Row]]:
    """Each row of a file, or of all files of a folder, with where it is; null entries are left out.

    Raises UserError for what is not there or cannot be read, naming its line or row.
    """
    for file in files(path)[0]:
        kind = _kind(file)
        if kind in LINES:
            yield from _objects(file)
        elif kind in SHEETS:
            yield from _sheet(file, kind)
        elif kind in PARQUET:
            yield from _parquet(file)
        else:
            yield str(file), Row({"text": _text(file)})


def files(path: str | Path) -> tuple[list[Path], list[Path]]:
    """The files that hold a path's rows, and a folder's tables that are not for training.

    UserError where there is none, or for a file of another kind.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is neither a file nor a folder, but a device or a pipe")
        if not path.is_file():
            raise UserError(f"{path}: there is no such file or folder")
        if _kind(path) not in (*TABLES, *TEXTS):
            raise UserError(f"{path}: is not read here: give {KINDS}")
        return [path], []
    there = [file for file in sorted(path.rglob("*")) if file.is_file() and _shown(file.relative_to(path))]
    tables = [file for file in there if _kind(file) in TABLES and file.name not in OF_NO_ROWS]
    if not tables:
        texts = [file for file in there if _kind(file) in TEXTS]
        if not texts:
            raise UserError(f"{path}: holds no file to train on: give {KINDS}")
        return texts, []
    parts = {file: found[1].lower() for file in tables if (found := PART.search(file.stem))}
    if "train" not in parts.values():
        return tables, []
    others = [file for file in tables if parts.get(file, "train") != "train"]
    return [file for file in tables if file not in others], others


def is_data(path: str | Path) -> bool:
    """Whether a path names rows by its ending, or is a folder that holds some."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path.is_file() and _kind(path) in (*TABLES, *TEXTS)
    return any(
        _kind(file) in (*TABLES, *TEXTS) and _shown(file.relative_to(path)) for file in path.rglob("*")
    )


def _shown(path: Path) -> bool:
    return not any(part.startswith(".") or part in PASSED_OVER for part in path.parts)


def _kind(path: Path) -> str:
    """A file's ending in small letters, before .gz where it is packed."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _opened(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _text(path: Path) -> str:
    """All of a file. UserError if it is not UTF-8, OperationalError if it is damaged."""
    try:
        with _opened(path) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise OperationalError(f"{path}: is damaged ({error})") from None


def _objects(path: Path) -> Iterator[tuple[str, Row]]:
    """An object a line; one list of objects; or one object that holds such a list."""
    if _kind(path) == ".json" or _begins_a_list(path):
        text = _text(path)
        if text.lstrip()[:1] == "[" or _is_one_object(text):
            yield from _listed(_parsed(text, str(path)), path)
            return
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _row(_parsed(line, where), where)


def _begins_a_list(path: Path) -> bool:
    return next((line for line in _lines(path) if line.strip()), "").lstrip()[:1] == "["


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, one at a time. UserError where one is not UTF-8."""
    try:
        with _opened(path) as file:
            for number, line in enumerate(file):
                yield line.decode("utf-8-sig" if number == 0 else "utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise OperationalError(f"{path}: is damaged ({error})") from None


def _is_one_object(text: str) -> bool:
    """Whether a text is no object a line: its first line is not whole by itself, or is all there is."""
    first, _, rest = text.strip().partition("\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return not rest


def _listed(found: Any, path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of a list, or of the only list that an object holds; an object without one is a row."""
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        held = len(found) == 1 and len(lists) == 1 and all(isinstance(each, dict) for each in lists[0])
        own = held and not any("role" in each or "from" in each for each in lists[0])  # else a conversation
        found = lists[0] if own else [found]
    if not isinstance(found, list):
        raise UserError(f"{path}: holds a {type(found).__name__}: a list of objects is read, or one a line")
    for number, each in enumerate(found, 1):
        where = f"{path}, item {number}"
        yield where, _row(each, where)


def _parsed(text: str, where: str) -> Any:
    try:
        found = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no text"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({error})") from None
    return found


def _row(found: Any, where: str) -> Row:
    if not isinstance(found, dict):
        raise UserError(
            f'{where}: is a {type(found).__name__}; a row is an object such as {{"messages": [...]}}'
        )
    return Row(found)


def _sheet(path: Path, kind: str) -> Iterator[tuple[str, Row]]:
    """A row of text by the header's names for each line of a CSV file."""
    text = _text(path)
    header = text.partition("\n")[0]
    separator = "\t" if kind == ".tsv" else max(SEPARATORS, key=header.count)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # its own limit is 128 KiB, less than some answers
    lines = csv.DictReader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    try:
        names = [(name or "").strip() for name in lines.fieldnames or ()]
        if not any(names):
            raise UserError(f"{path}: is empty")
        lines.fieldnames = names
        for row in lines:
            where = f"{path}, line {lines.line_num}"
            if None in row:
                raise UserError(f"{where}: has more cells than the header, {_brief(names)}")
            yield where, Row({name: value for name, value in row.items() if name})
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: is not CSV ({error})") from None


def _brief(names: Iterable[str]) -> str:
    """The names of columns, on one line."""
    return f"{escaped(', '.join(names)):.300}"


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(parquet.rows(path), 1):
        yield f"{path}, row {number}", Row(row)
