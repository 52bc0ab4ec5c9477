"""Steering: a direction added to the residual stream at every token turns what the model says (2308.10248,
2312.06681).

    calm = difference(model, tokenizer ids of calm texts, ids of angry texts, layer=12)
    save("calm.safetensors", calm)
    with tracing(model, edit=steer(model, load("calm.safetensors"), 0.8)): ...

A vector file is safetensors: each tensor [d] is named by the value it is added to (``blocks.12.out``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import Edit, tracing
from cutaway.inspect.inputs import row as reading
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float
from cutaway.weights import quant, safetensors

Vectors = Mapping[str, Float[Tensor, " d"]]


@torch.no_grad()
def difference(
    model: Decoder, towards: Sequence[Sequence[int]], away: Sequence[Sequence[int]], layer: int
) -> dict[str, Float[Tensor, " d"]]:
    """From the texts ``away`` to the texts ``towards``: the mean difference of the stream after ``layer``,
    last token.
    """
    if not towards or not away:
        raise UserError(
            "a steering vector is made of texts for it and texts against it: give at least one of each"
        )
    name = f"blocks.{layer}.out"
    return {name: _mean(model, towards, name) - _mean(model, away, name)}


def steer(model: Decoder, vectors: Vectors, strength: float = 1.0) -> dict[str, Edit]:
    """The edits that add the vectors, ``strength`` times, at every token. UserError for another width than
    the model's.
    """
    for name, vector in vectors.items():
        if vector.shape != (model.config.width,):
            was = " × ".join(map(str, vector.shape))
            raise UserError(
                f"the steering vector for {name} has {was} numbers, this model's stream {model.config.width}"
            )
    return {name: _add(vector * strength) for name, vector in vectors.items()}


def save(path: str | Path, vectors: Vectors) -> None:
    """Writes vectors as a safetensors file."""
    packed = {
        name: quant.pack(vector.detach().cpu().float().numpy(), "F32") for name, vector in vectors.items()
    }
    safetensors.write(path, packed, {"format": "cutaway-steering"})


def load(path: str | Path) -> dict[str, Float[Tensor, " d"]]:
    """Reads what ``save`` wrote."""
    return {
        name: torch.from_numpy(np.array(quant.unpack(packed)))
        for name, packed in safetensors.read(path).items()
    }


def _mean(model: Decoder, texts: Sequence[Sequence[int]], name: str) -> Float[Tensor, " d"]:
    return torch.stack([_last(model, ids, name) for ids in texts]).mean(0)


def _last(model: Decoder, ids: Sequence[int], name: str) -> Float[Tensor, " d"]:
    with tracing(model, name) as seen:
        model(*reading(model, ids), last=True)
    return seen[name][0, -1]


def _add(vector: Tensor) -> Edit:
    return lambda stream: stream + vector.to(stream)
