"""`--steer FILE:STRENGTH` of several verbs: steering vectors that are added in every forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.inspect.edits import Add

Steer = Annotated[
    tuple[str, ...],
    Parameter(
        help="FILE:STRENGTH, add a steering vector times the strength in every forward pass; again for more.",
        negative=(),
    ),
]


def file_and_strength(given: str) -> tuple[str, float]:
    """The file and the strength of a --steer."""
    path, colon, strength = given.rpartition(":")
    try:
        if not colon or not path:
            raise ValueError
        value = float(strength)
    except ValueError:
        raise UserError(f"--steer is {given!r}: write FILE:STRENGTH, as calm.safetensors:0.8") from None
    if not Path(path).exists():
        raise UserError(f"--steer: there is no file {path}")
    return path, value


def vectors(given: Sequence[str]) -> list[Add]:
    """The edits of all --steer; the files are read."""
    from cutaway.inspect import steering

    return [add for one in given for add in steering.load(*file_and_strength(one))]


def steered(lm: Any, given: Sequence[str]) -> Any:
    """The model with the vectors of all --steer; UserError for one that does not fit."""
    if not given:
        return lm
    from cutaway.inspect.edits import check

    edits = vectors(given)
    for edit in edits:
        check(lm.config, edit, 1)
    return lm.edited(edits)
