"""The vectors that the verbs of `cutaway embed` work on: those of a file, or those inside a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cutaway.commands import console
from cutaway.errors import UserError
from cutaway.weights import load, vectors

if TYPE_CHECKING:
    from cutaway.embedding.vectors import Vectors


def opened(source: str) -> Vectors:
    """The vectors that a verb was given: a file's, or a model's own embedding table."""
    path = Path(source)
    if vectors.is_vectors(path):
        return vectors.read_vectors(path)
    return vectors.of_model(load.read_checkpoint(console.model_path(source)))


def known(found: Vectors, word: str) -> None:
    """Refuse a word that has no vector, with what may have been meant."""
    try:
        found.vector(word)
    except UserError as problem:
        spaced = f" {word}"
        hint = f"; its token {spaced!r} begins with a space" if spaced in found else ""
        raise UserError(f"{problem}{hint}") from None
