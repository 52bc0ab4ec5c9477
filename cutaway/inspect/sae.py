"""Sparse autoencoders: an activation x as a sum of few directions, of many more than it has dimensions.

    u = W (x - c) + b    topk (2406.04093): z = the k largest of u that are positive
                         jumprelu (2407.14435): z = u where u > theta
    x' = z D + c         each row of D, a feature's direction, has norm 1 where x has unit variance

Attention sinks (``activations.sinks``) are left out: their activations are so large, and so alike, that they
would be nearly all of the variance.

Both minimise the fraction of variance that x' leaves unexplained. TopK has dead features, which did not fire
for a while, explain what the others leave (the paper's AuxK). JumpReLU adds the penalty (L0 / k - 1)^2, whose
gradient passes the step through a rectangle around each threshold. ``sae_training.py`` trains it.

    sae = train(data, "blocks.15.out", features=4096, k=32)
    sae.top(lm.activations([text], [sae.name])[sae.name])        # the strongest features of each token
    lm.generate(text, edit=sae.add(17, 40.0))                    # a feature's direction, added
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from cutaway.bounds import Count
from cutaway.errors import UserError
from cutaway.inspect.arrays import largest
from cutaway.inspect.edits import Add, Project
from cutaway.model.config_dict import from_dict
from cutaway.quantization import formats
from cutaway.store import files
from cutaway.store.reading import parsed
from cutaway.weights import safetensors

Kind = Literal["topk", "jumprelu"]
KINDS = ("topk", "jumprelu")
WEIGHTS, CARD = "sae.safetensors", "sae.json"
TENSORS = ("encoder", "bias", "decoder", "center", "threshold")
DEAD = 200  # steps without firing
TESTED = 10  # one token in so many is held out
RESIDUAL = re.compile(r"blocks\.(\d+)\.out")


class Feature(NamedTuple):
    """A feature and its activation at a token."""

    feature: int
    activation: float


@dataclass(frozen=True)
class Card:
    """What an autoencoder is: its activation and model, its kind, and how it does on held-out tokens.

    ``unexplained``: the fraction of variance that it leaves; ``l0``: features active at a token; ``dead``:
    features that no held-out token activates. All three are of tokens that are no attention sinks;
    ``unexplained_with_sinks`` is of both. ``sinks`` of ``tokens`` are some; ``keep_sinks``: they were trained
    on. Above ``norm_limit`` a token is one.
    """

    name: str
    model: str
    kind: Kind
    features: Count
    k: Count
    steps: Count
    batch: Count
    seed: int
    keep_sinks: bool = True  # of folders from before there was a choice
    tokens: int = 0
    sinks: int = 0
    norm_limit: float = float("inf")
    unexplained: float = float("nan")
    unexplained_with_sinks: float = float("nan")
    l0: float = float("nan")
    dead: int = 0


class SAE:
    """A trained autoencoder of the activation ``name``; activations go in and out in their own units."""

    def __init__(self, card: Card, tensors: dict[str, np.ndarray]) -> None:
        self.card, self.name = card, card.name
        self.tensors = tensors

    @classmethod
    def load(cls, folder: str | Path) -> SAE:
        """What ``save`` wrote."""
        path = Path(folder)
        if not (path / CARD).is_file():
            raise UserError(f"{folder}: holds no autoencoder: give a folder that `cutaway sae` wrote")
        card = from_dict(parsed(path / CARD), Card, str(path / CARD))
        if card.k > card.features:
            raise UserError(f"{path / CARD}: k is {card.k}, more than the {card.features} features")
        f = card.features
        shapes = {"encoder": (f, None), "bias": (f,), "decoder": (f, None), "center": (None,)}
        read = safetensors.read_shaped(path / WEIGHTS, shapes | {"threshold": (f,)})
        widths = {read[name].shape[-1] for name in ("encoder", "decoder", "center")}
        if len(widths) > 1:
            raise UserError(f"{path / WEIGHTS}: encoder, decoder and center are of activations of {widths}")
        return cls(card, {name: formats.unpack(read[name]).copy() for name in TENSORS})

    def save(self, folder: str | Path, force: bool = False) -> None:
        """Writes it as float32 safetensors and a card."""
        packed = {name: formats.pack(self.tensors[name], "F32") for name in TENSORS}
        with files.atomic_folder(folder, force=force) as part:
            safetensors.write(part / WEIGHTS, packed)
            (part / CARD).write_text(json.dumps(asdict(self.card), indent=1), "utf-8")

    def encode(self, x: np.ndarray) -> np.ndarray:
        """float32 [n f]: the features' activations of rows [n d]."""
        of = self.tensors
        pre = (x - of["center"]) @ of["encoder"].T + of["bias"]
        if self.card.kind == "jumprelu":
            return np.where(pre > of["threshold"], pre, np.float32(0))
        best = np.argpartition(-pre, self.card.k - 1, axis=1)[:, : self.card.k]
        z = np.zeros_like(pre)
        np.put_along_axis(z, best, np.maximum(np.take_along_axis(pre, best, 1), 0), 1)
        return z

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Rows float32 [n d] from activations of features [n f]."""
        return z @ self.tensors["decoder"] + self.tensors["center"]

    def top(self, x: np.ndarray, count: int = 5) -> list[list[Feature]]:
        """The strongest features of each row, the strongest first."""
        z = self.encode(x)
        best = largest(z, count)
        strengths = np.take_along_axis(z, best, axis=1)
        return [
            [Feature(*one) for one in zip(*both, strict=True) if one[1] > 0]
            for both in zip(best.tolist(), strengths.tolist(), strict=True)
        ]

    def sinks(self, x: np.ndarray) -> np.ndarray:
        """Which rows [t d] of a text from its start are attention sinks that it was not trained on [t]."""
        massive = np.linalg.norm(x.reshape(len(x), -1), axis=1) > self.card.norm_limit
        return (massive | (np.arange(len(x)) == 0)) & (not self.card.keep_sinks)

    def add(self, feature: int, strength: float = 1.0) -> Add:
        """The edit that adds as much of a feature's direction as its activation ``strength`` would."""
        return Add(self._layer, self._direction(feature), strength=strength)

    def remove(self, feature: int) -> Project:
        """The edit that projects a feature's direction out."""
        return Project(self._layer, self._direction(feature))

    @property
    def _layer(self) -> int:
        layer = RESIDUAL.fullmatch(self.name)
        if layer is None:
            raise UserError(f"features of {self.name} are no edits: only those of blocks.N.out are")
        return int(layer[1])

    def _direction(self, feature: int) -> list[float]:
        if not 0 <= feature < self.card.features:
            raise UserError(f"there is no feature {feature}: they are 0 to {self.card.features - 1}")
        return self.tensors["decoder"][feature].tolist()
