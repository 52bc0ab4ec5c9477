"""Find a lens by its name or its file: the logit lens, a tuned lens or a Jacobian lens.

A lens shows the next token as if the model ended after a layer: logits = head(norm(T(r))), where r is the
residual stream there. The logit lens has T(r) = r; a file holds each layer's linear map T, which
``translated`` applies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cutaway import store
from cutaway.errors import UserError, quoted
from cutaway.inspect import jacobian_file, tuned_maps
from cutaway.inspect.jacobian_lens import JacobianLens, digest
from cutaway.inspect.subject import Subject, subject_of
from cutaway.store.files import read_errors
from cutaway.weights import safetensors

OWN = Path(__file__).parent / "fitted"  # lenses of models that Cutaway knows, in 8 bits


@runtime_checkable
class Translator(Protocol):
    """A lens with a linear map for each of some layers."""

    def translated(self, residuals: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """What the head reads in place of each residual stream [t d], by name; only of layers that it has."""
        ...


def find(by: Any, lm: Any) -> Translator | None:
    """The lens ``by``: "logit" (None is returned), "jacobian", the path of a file, or a lens.

    UserError for a lens of another model, for a model without one, and for anything else.
    """
    if by == "logit":
        return None
    if not isinstance(by, str | Path):
        if isinstance(by, Translator):
            return by
        raise UserError(f'a lens is "logit", "jacobian", the path of a file, or a lens, not {quoted(by)}')
    return load(own(subject_of(lm)) if by == "jacobian" else Path(by), lm)


def load(path: Path, lm: Any) -> Translator:
    """The tuned or Jacobian lens of a file. UserError for one that is damaged or of another model."""
    jacobian_file.check_path(path)
    if kind(path) == "jacobian":
        return jacobian_file.load(path, lm)
    return tuned_maps.load(path, lm)


def kind(path: Path) -> str:
    """Which lens a file holds, by how it begins: "tuned" or "jacobian"."""
    with read_errors(path), path.open("rb") as file:
        head = file.read(4)
    if head in (b"PK\x03\x04", b"GGUF"):
        return "jacobian"
    return "jacobian" if safetensors.metadata(path).get("format") == jacobian_file.FORMAT else "tuned"


def with_control(by: Translator) -> dict[str, Translator]:
    """A lens by its kind, and beside a Jacobian one its control, a random rotation."""
    if isinstance(by, JacobianLens):
        return {"jacobian": by, "random": by.random()}
    return {"tuned": by}


def own(subject: Subject) -> Path:
    """The file of a model's Jacobian lens; UserError if it has none."""
    path = own_path(subject)
    if path is None:
        raise UserError(
            "this model has no Jacobian lens yet: `cutaway lens fit MODEL --texts FILE` makes one"
        )
    return path


def own_path(subject: Subject) -> Path | None:
    """The file of a model's Jacobian lens, fitted on this machine or Cutaway's own; None if it has none."""
    paths = (cached(subject), OWN / f"{digest(subject)}.gguf")
    return next((path for path in paths if path.is_file()), None)


def cached(subject: Subject) -> Path:
    """The path of a model's lens that is fitted without a name."""
    return store.home() / "lenses" / f"{digest(subject)}.safetensors"


def lens_logits(
    subject: Subject, by: Translator, layers: Sequence[int], rows: np.ndarray
) -> list[np.ndarray]:
    """The logits of each layer by a lens, float32 [v] each; ``rows`` are the residual streams [d].

    A layer for which the lens has no map is read by the logit lens.
    """
    streams = {f"blocks.{layer}.out": row[None] for layer, row in zip(layers, rows, strict=True)}
    found = by.translated(streams)
    read = [found[name] if name in found else row for name, row in streams.items()]  # noqa: SIM401
    return list(subject.engine.unembed(np.concatenate(read).astype(np.float32, copy=False)))
