"""Read sparse autoencoders from folders: ours, SAELens's, circuit-tracer's, one or a set by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.inspect import sae_formats
from cutaway.inspect.sae import CARD, SAE, WEIGHTS, Card, arrays
from cutaway.model.config_dict import from_dict
from cutaway.quantization import formats
from cutaway.store.reading import parsed
from cutaway.weights import safetensors

OLDER = {
    "encoder": "W_enc",
    "bias": "b_enc",
    "decoder": "W_dec",
    "center": "b_dec",
}  # of 2026's first folders


def load(folder: str | Path) -> SAE:
    """The one dictionary of a folder, ours or another tool's; UserError for a set of several."""
    return load_one(folder)[0]


def load_one(folder: str | Path) -> tuple[SAE, Path]:
    """The same, and the folder in which its labels are."""
    (made, own), *others = with_folders(Path(folder))
    if others or own is None:
        raise UserError(f"{folder}: holds {len(others) + 1} dictionaries: name the folder of one of them")
    return made, own


def load_set(folder: str | Path) -> list[SAE]:
    """The dictionaries of a folder by layer: of one, or of a set with a folder for each.

    Also those of SAELens and circuit-tracer. UserError for a folder of another kind.
    """
    return [made for made, _ in with_folders(Path(folder))]


def with_folders(path: Path) -> list[tuple[SAE, Path | None]]:
    """The same, each with the folder of its own in which labels are; None in another tool's set."""
    if (path / CARD).is_file():
        return [(_load(path), path)]
    if (found := sae_formats.load(path)) is not None:
        return [(one, path if len(found) == 1 else None) for one in found]
    inside = sorted(one.parent for one in path.glob(f"*/{CARD}") if not one.parent.name.startswith("."))
    if not inside:
        raise UserError(f"{path}: holds no autoencoder: give a folder that `cutaway sae` wrote")
    return sorted(((_load(one), one) for one in inside), key=lambda one: one[0].layer)


def _load(path: Path) -> SAE:
    facts = parsed(path / CARD)
    older = isinstance(facts, dict) and "name" in facts
    shapes: dict[str, tuple[int | None, ...]]
    if older:
        found = safetensors.read_shaped(
            path / WEIGHTS,
            {"encoder": (None, None), "bias": (None,), "decoder": (None, None), "center": (None,)},
        )
        facts = _newer(facts, found["center"].shape[0])
    card = from_dict(facts, Card, str(path / CARD))
    x, y = sum(card.widths[: len(card.reads)]), sum(card.widths[len(card.reads) :])
    f = card.features
    shapes = {"W_enc": (f, x), "b_enc": (f,), "W_dec": (f, y), "b_dec": (y,)}
    if older:
        shapes = {theirs: shapes[ours] for theirs, ours in OLDER.items()}
    shapes |= {"W_skip": (y, x)} if card.skip else {}
    shapes |= {} if card.activation == "topk" else {"threshold": (f,)}
    if card.activation == "topk" and not card.k:
        raise UserError(f"{path / CARD}: k is 0, and topk needs the number of features that are kept")
    found = safetensors.read_shaped(path / WEIGHTS, shapes)
    return SAE(card, arrays(found if not older else _renamed(found)))


def _newer(facts: dict[str, Any], width: int) -> dict[str, Any]:
    """The card of a folder from before there were kinds."""
    facts = dict(facts)
    name, activation = facts.pop("name"), facts.pop("kind", "topk")
    facts |= {"kind": "sae", "activation": activation, "reads": [name], "writes": [name]}
    return {"keep_sinks": True} | facts | {"widths": [width, width]}


def _renamed(found: dict[str, Packed]) -> dict[str, Packed]:
    """Tensors of such a folder, whose encoder read x - center."""
    out = {OLDER.get(name, name): tensor for name, tensor in found.items()}
    weights, center = formats.unpack(out["W_enc"]), formats.unpack(out["b_dec"])
    bias = formats.unpack(out["b_enc"]) - weights.astype(np.float64) @ center
    return out | {"b_enc": formats.pack(bias.astype(np.float32), "F32")}
