"""Steering vectors: directions of the residual stream, made of two sets of texts (2308.10248, 2312.06681).

    calm = difference(model, ids of calm texts, ids of angry texts, layer=12)
    save("calm.safetensors", [calm])
    lm.generate("...", edit=load("calm.safetensors", strength=0.8))

A file is safetensors: each tensor [d] is named by the value it is added to (``blocks.12.out``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.inspect.edits import Add
from cutaway.inspect.inputs import row
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float
from cutaway.weights import quant, safetensors


@torch.no_grad()
def difference(
    model: Decoder, towards: Sequence[Sequence[int]], away: Sequence[Sequence[int]], layer: int
) -> Add:
    """The mean residual stream after a layer at the last token of ``towards``, less that of ``away``."""
    if not towards or not away:
        raise UserError("a steering vector needs at least one text for it and one against it")
    name = f"blocks.{layer}.out"
    for_it, against_it = (
        torch.stack([_last(model, ids, name) for ids in one]).mean(0) for one in (towards, away)
    )
    return Add(layer, (for_it - against_it).tolist())


def save(path: str | Path, edits: Sequence[Add]) -> None:
    """Writes the vectors, each times its strength, as a safetensors file."""
    packed = {
        f"blocks.{one.layer}.out": quant.pack(
            np.float32(one.strength) * np.array(one.vector, np.float32), "F32"
        )
        for one in edits
    }
    safetensors.write(path, packed, {"format": "cutaway-steering"})


def load(path: str | Path, strength: float = 1.0) -> tuple[Add, ...]:
    """Reads what ``save`` wrote. Raises UserError for a tensor that is no vector for a layer's output."""
    found = []
    for name, packed in safetensors.read(Path(path)).items():
        layer, vector = re.fullmatch(r"blocks\.(\d+)\.out", name), np.array(quant.unpack(packed))
        if layer is None or vector.ndim != 1:
            raise UserError(
                f"{path} holds {name!r} of shape {list(vector.shape)}: a steering file holds vectors named "
                "blocks.LAYER.out"
            )
        found.append(Add(int(layer[1]), vector.tolist(), strength=strength))
    return tuple(found)


def _last(model: Decoder, ids: Sequence[int], name: str) -> Float[Tensor, " d"]:
    with tracing(model, name) as seen:
        model(*row(model, ids), last=True)
    return seen[name][0, -1]
