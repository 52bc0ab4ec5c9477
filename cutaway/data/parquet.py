"""Read untrusted Parquet files: rows of some columns. A damaged file is an error in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.extras import library

BATCH = 1024  # rows that are in memory as Python objects


def columns(path: Path) -> list[str]:
    """The names of a file's columns."""
    return list(_opened(path).schema_arrow.names)


def rows(path: Path, only: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Each row of a file, of all columns or of ``only`` these, by name. UserError for a damaged file."""
    found = _opened(path).iter_batches(BATCH, columns=None if only is None else list(only))
    while True:
        with _one_sentence(path):
            batch = next(found, None)
            made = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        yield from made


def _opened(path: Path) -> Any:
    parquet = library("reading a parquet file", "pyarrow.parquet")
    with _one_sentence(path):
        file = parquet.ParquetFile(path)
        file.schema_arrow.names  # noqa: B018  made when it is asked for, of the file's own description
        return file


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """UserError for what pyarrow raises of a damaged file: its own errors, OSError for a header, and from
    values that Python has no objects for (dates, decimals, texts that are not UTF-8) every kind there is.
    """
    errors = library("reading a parquet file", "pyarrow").ArrowException
    try:
        yield
    except (errors, OSError, ValueError, LookupError, ArithmeticError, TypeError, MemoryError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: is not a parquet file that can be read ({why})") from None
