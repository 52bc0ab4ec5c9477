"""Sparse autoencoders as a server shows them: with labels, and texts at which features are strongest.

Those are kept beside a dictionary, in ``contexts.safetensors``, by `cutaway sae texts`:

    often [f], most [f]               the fraction of tokens at which each fires, its largest activation
    ids int32 [f e w], at int32 [f e] the tokens of some texts, -1 for none, and which of them it is about
    strengths [f e]                   the activation there, 0 for no text
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect import sae, sae_folders, sae_formats
from cutaway.inspect.features import AFTER, BEFORE, EACH, Scan, labels
from cutaway.inspect.sae import CARD, SAE
from cutaway.quantization import formats
from cutaway.runtime import values
from cutaway.weights import safetensors

CONTEXTS = "contexts.safetensors"
WINDOW = BEFORE + 1 + AFTER


@dataclass(frozen=True)
class Contexts:
    """The stored results of a scan, as above."""

    often: np.ndarray
    most: np.ndarray
    ids: np.ndarray
    at: np.ndarray
    strengths: np.ndarray

    def of(self, feature: int) -> Iterator[tuple[list[int], int, float]]:
        """The texts of a feature: the ids, which of them it is about, and the activation there."""
        for ids, at, strength in zip(
            self.ids[feature], self.at[feature].tolist(), self.strengths[feature].tolist(), strict=True
        ):
            if strength > 0:
                yield ids[ids >= 0].tolist(), at, strength


@dataclass(frozen=True)
class Dictionary:
    """A dictionary of features, its labels, and what was kept of a scan, where something was."""

    made: SAE
    labels: Mapping[int, str]
    contexts: Contexts | None


def keep(folder: Path, scan: Scan) -> None:
    """Writes what a scan saw of every feature beside its dictionary; of each text one token alone."""
    count = scan.made.card.features
    ids = np.full((count, EACH, WINDOW), -1, np.int32)
    at, strengths = np.zeros((count, EACH), np.int32), np.zeros((count, EACH), np.float32)
    for feature, (rows, strongest) in enumerate(zip(scan.best.tolist(), scan.strongest, strict=True)):
        seen: set[int] = set()
        for row, value in zip(rows, strongest, strict=True):
            document = int(scan.documents[row])
            if row < 0 or document in seen or len(seen) == EACH:
                continue
            first, last = scan.window(row)
            own = len(seen)
            ids[feature, own, : last - first] = scan.ids[first:last]
            at[feature, own], strengths[feature, own] = row - first, value
            seen.add(document)
    arrays = {"often": scan.often.astype(np.float32), "most": scan.most, "strengths": strengths}
    tensors: dict[str, Any] = {name: formats.pack(of, "F32") for name, of in arrays.items()}
    tensors |= {name: ("I32", of.shape, of) for name, of in (("ids", ids), ("at", at))}
    safetensors.write_safetensors(folder / CONTEXTS, tensors)


def read_dictionaries(path: Path, lm: Any) -> list[Dictionary]:
    """The dictionaries of a folder, or of a card's. UserError for those of another model."""
    folder = path.parent if path.name in (CARD, sae_formats.CONFIG, sae_formats.SET) else path
    found = []
    for made, own in sae_folders.with_folders(folder):
        _check(made, lm.config, folder)
        named = {} if own is None else labels(own, made)
        kept = None if own is None else contexts(own, made, len(lm.tokenizer))
        found.append(Dictionary(made, named, kept))
    return found


def _check(made: SAE, config: Any, folder: Path) -> None:
    """Refuse a dictionary of values that this model does not have."""
    try:
        shown = values.named(config, (*made.reads, *made.writes))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    sizes = {one.name: int(np.prod(one.shape)) for one in shown}
    for name, width in zip((*made.reads, *made.writes), made.card.widths, strict=True):
        if sizes[name] != width:
            raise UserError(
                f"{folder}: is of {name} of {width} numbers, and this model's has {sizes[name]}: give a "
                "dictionary of this model"
            )


def contexts(folder: Path, made: SAE, vocabulary: int) -> Contexts | None:
    """Read what `keep` wrote; UserError where it is of another dictionary or tokenizer."""
    path, f = folder / CONTEXTS, made.card.features
    if not path.is_file():
        return None
    floats = sae.arrays(safetensors.read_shaped(path, {"often": (f,), "most": (f,), "strengths": (f, None)}))
    whole = safetensors.read_shaped(path, {"ids": (f, None, None), "at": (f, None)}, ("I32",))
    ids, at = (np.frombuffer(whole[name].data, "<i4").reshape(whole[name].shape) for name in ("ids", "at"))
    found = Contexts(**floats, ids=ids, at=at)
    shown = found.strengths > 0
    fits = ids.shape[:2] == at.shape == shown.shape and all(np.isfinite(one).all() for one in floats.values())
    if fits and shown.any():
        own, middle = ids[shown], at[shown]
        lengths = (own >= 0).sum(1)
        fits = bool(((middle >= 0) & (middle < lengths)).all() and own.max() < vocabulary)
    if not fits:
        raise UserError(f"{path}: is of another dictionary or another tokenizer: make it anew")
    return found
