"""Read text from files, folders, JSONL, Parquet and datasets, as a stream of documents.

A source is read in an order that never changes (names sorted, lines as they stand), so that a job which was
stopped can be done again and skip what it has already written.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.bounds import Bounded, Positive
from cutaway.data import parquet
from cutaway.errors import OperationalError, UserError, escaped, quoted
from cutaway.extras import library

HUB = "hub:"  # before the name of a dataset on Hugging Face
PASSED_OVER = frozenset({"node_modules", "__pycache__", "build", "dist", "site-packages"})
TABLES = (".parquet",)
LINES = (".jsonl", ".jsonl.gz", ".ndjson")


@dataclass(frozen=True)
class Source(Bounded):
    """One place of text: a file, a folder (every text file in it is a document), or ``hub:ORG/NAME``.

    ``field`` names the column that holds the text in JSONL, parquet and datasets; ``split`` and ``subset``
    choose within a dataset; ``suffixes`` keeps only files of these endings in a folder. ``weight`` is the
    source's weight in a mixture; when no source has one, each counts by its length.
    """

    path: str
    field: str = "text"
    split: str = "train"
    subset: str | None = None
    suffixes: tuple[str, ...] = ()
    weight: Positive | None = None


def check_exists(source: Source) -> None:
    """UserError for a file or folder that is not there; datasets of the hub are not looked for."""
    path = Path(source.path).expanduser()
    if not source.path.startswith(HUB) and not path.exists():
        raise UserError(f"{path}: there is no such file or folder to read text from")


def documents(source: Source) -> Iterator[str | None]:
    """The texts of a source, in their order; None for a file that is not text, so that it can be counted."""
    if source.path.startswith(HUB):
        yield from _column(_streamed(source.path[len(HUB) :], source), source, source.path)
        return
    check_exists(source)
    path = Path(source.path).expanduser()
    if path.is_dir() and (path / "dataset_info.json").is_file():
        saved = library("a data set of Hugging Face", "datasets").load_from_disk(str(path))
        yield from _column(iter(saved), source, str(path))
        return
    found = files(path, source.suffixes) if path.is_dir() else [path]
    if not found:
        raise UserError(f"{path}: holds no files to read text from")
    for file in found:
        yield from _file(file, source)


def sampled(source: Source, size: int = 1 << 16) -> tuple[list[str], float] | None:
    """A source's first texts, of about ``size`` bytes, and what fraction of its bytes they are.

    None where that is unknown without reading it: compressed files, tables and datasets.
    """
    path = Path(source.path).expanduser()
    if source.path.startswith(HUB) or (path / "dataset_info.json").is_file():
        return None
    found = files(path, source.suffixes) if path.is_dir() else [path]
    if any(file.name.endswith((*TABLES, ".gz")) for file in found):
        return None
    texts, read = list[str](), 0
    for file in found:
        with file.open("rb") as opened:
            if file.name.endswith(LINES):
                while read < size and (line := opened.readline()):
                    read += len(line)
                    with suppress(
                        ValueError, LookupError, TypeError
                    ):  # a wrong line is named when it is read
                        texts.append(str(json.loads(line)[source.field]))
            else:
                head = opened.read(size - read)
                read += len(head)
                texts += [] if b"\0" in head else [head.decode("utf-8", "ignore")]
        if read >= size:
            break
    return texts, read / max(sum(file.stat().st_size for file in found), read, 1)


def files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder and its folders, hidden ones and build outputs left out."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part in PASSED_OVER for part in parts) or not path.is_file():
            continue
        if not suffixes or path.name.endswith(suffixes):
            found.append(path)
    return found


def _file(path: Path, source: Source) -> Iterator[str | None]:
    if path.name.endswith(LINES):
        yield from _lines(path, source.field)
    elif path.name.endswith(TABLES):
        yield from _column(_rows(path, source.field), source, str(path))
    else:
        yield _text(path)


def _text(path: Path) -> str | None:
    data = path.read_bytes()
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _lines(path: Path, field: str) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield _entry(json.loads(line), field, f"{path}: line {number}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {number} is not JSON ({error})") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: is damaged after line {number} ({error})") from None


def _column(rows: Iterator[Any], source: Source, where: str) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield _entry(row, source.field, f"{where}: row {number}")


def _entry(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        there = escaped(", ".join(map(str, row))) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{where} has no text called {quoted(field)} (it has: {there:.300}): give `field`")
    return row[field]


def _rows(path: Path, field: str) -> Iterator[dict[str, Any]]:
    names = parquet.columns(path)
    if field not in names:
        there = ", ".join(map(escaped, names))
        raise UserError(f"{path}: has no column {quoted(field)} (it has: {there:.300}): name it with `field`")
    yield from parquet.rows(path, [field])


def _streamed(name: str, source: Source) -> Iterator[Any]:
    datasets = library("a data set of Hugging Face", "datasets")
    try:
        found = datasets.load_dataset(name, source.subset, split=source.split, streaming=True)
    except Exception as error:  # the library raises of every kind
        raise OperationalError(f"the dataset {name} could not be opened: {error}") from error
    return iter(found)
