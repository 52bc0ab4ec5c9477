"""Sparse autoencoders (SAE), transcoders, crosscoders: activations as sums of a few of many features.

    u = x W_enc^T + b_enc    topk (2406.04093): f = the k largest of u that are positive
                             jumprelu (2407.14435): f = u where u > threshold
    y = f W_dec + b_dec + x W_skip^T

    kind           reads x                    writes y
    sae            an activation              the same activation
    transcoder     what an MLP reads          what it writes (2406.11944; with a linear skip 2501.18823)
    cross_layer    what the MLP of a layer    what the MLPs of that layer and all later ones write
                   reads, a set of layers
    crosscoder     several activations        the same activations

Several activations are side by side in x or y. A row of W_dec, a feature's direction, has norm 1 where y has
unit variance. BatchTopK (2412.06410) ends as jumprelu with one threshold.

Attention sinks (``activations.sinks``) are left out: their activations are so large, and so alike, that they
would be nearly all of the variance. ``sae_training.py`` trains, ``sae_folders.py`` reads.

    made = train(data, ["blocks.15.out"], features=4096, k=32)
    made.top(lm.activations([text], made.reads)["blocks.15.out"])      # the strongest features of each token
    lm.generate(text, edit=made.add(17, 40.0))                         # a feature's direction, added
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from cutaway.bounds import Count, Natural
from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.inspect.activations import AGAINST
from cutaway.inspect.arrays import LARGEST, largest
from cutaway.inspect.edits import Add, Project
from cutaway.quantization import formats
from cutaway.store import files
from cutaway.weights import safetensors

Kind = Literal["sae", "transcoder", "cross_layer", "crosscoder"]
Activation = Literal["topk", "batch_topk", "jumprelu"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
WEIGHTS, CARD = "sae.safetensors", "sae.json"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
DEAD = 200  # steps without firing
TESTED = 10  # one token in so many is held out
LAYER = re.compile(r"blocks\.(\d+)\.(.+)")


class Feature(NamedTuple):
    """A feature and its activation at a token."""

    feature: int
    activation: float


@dataclass(frozen=True)
class Card:
    """The card of a dictionary: its activations, model and kind, and its figures on held-out tokens.

    ``unexplained``: the fraction of variance of what it writes that it leaves; ``linear``: that the best
    linear map leaves, where it writes another activation than it reads (the mean leaves 1); ``l0``: features
    active at a token; ``dead``: features that no held-out token activates. All are of tokens that are no
    attention sinks; ``unexplained_with_sinks`` is of both. ``sinks`` of ``tokens`` are some; ``keep_sinks``:
    they were trained on. Where what is read has a norm above ``norm_limit`` a token is one. ``widths``: the
    numbers of each activation that it reads, then of each that it writes.
    """

    kind: Kind
    activation: Activation
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    widths: tuple[int, ...]
    model: str
    features: Count
    k: Natural  # 0: not known
    skip: bool = False
    steps: Natural = 0
    batch: Natural = 0
    seed: int = 0
    keep_sinks: bool = False
    tokens: int = 0
    sinks: int = 0
    norm_limit: float = float("inf")
    unexplained: float | None = None  # of another tool's folder
    unexplained_with_sinks: float | None = None
    linear: float | None = None
    l0: float | None = None
    dead: int = 0

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                wrong = quoted(getattr(self, name))
                raise UserError(f"{name} {wrong} is not known: use one of {', '.join(known)}")
        if not self.reads or not self.writes or len(self.widths) != len(self.reads) + len(self.writes):
            raise UserError("a sparse dictionary reads and writes activations, each of a width")
        if any(width < 1 for width in self.widths) or self.k > self.features:
            raise UserError(f"k is {self.k} of {self.features} features of activations of {self.widths}")


class SAE:
    """A sparse dictionary; activations go in and out in their own units, float32.

    ``W_enc`` [f x], ``b_enc`` [f], ``W_dec`` [f y], ``b_dec`` [y], ``W_skip`` [y x] or None, ``threshold``
    [f] or None where the k largest are kept.
    """

    def __init__(self, card: Card, tensors: Mapping[str, np.ndarray]) -> None:
        self.card = card
        self.reads: tuple[str, ...] = card.reads
        self.writes: tuple[str, ...] = card.writes
        self.tensors = dict(tensors)
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (self.tensors[name] for name in TENSORS)
        self.W_skip, self.threshold = self.tensors.get("W_skip"), self.tensors.get("threshold")
        if (self.threshold is None) != (card.activation == "topk"):
            raise UserError(f"{card.activation} goes with {'no ' * (card.activation == 'topk')}thresholds")
        for name, of in self.tensors.items():
            most = np.inf if name == "threshold" else LARGEST  # a feature may be switched off
            if of.size and not (of.max() <= most and of.min() >= -most):
                raise UserError(
                    f"the dictionary of {self.name}: {name} has numbers that are NaN or beyond {LARGEST:g}; "
                    "its file is damaged: get it, or train it, again"
                )

    def save(self, folder: str | Path, force: bool = False) -> None:
        """Writes it as float32 safetensors and a card."""
        with files.atomic_folder(folder, force=force) as part:
            safetensors.write_safetensors(
                part / WEIGHTS, {name: formats.pack(of, "F32") for name, of in self.tensors.items()}
            )
            (part / CARD).write_text(json.dumps(asdict(self.card), indent=1), "utf-8")

    def named(self, model: str) -> SAE:
        """The same, of a model by another name."""
        return SAE(replace(self.card, model=model), self.tensors)

    @property
    def name(self) -> str:
        """The activation that it reads; the first of several."""
        return self.reads[0]

    @property
    def layer(self) -> int:
        """The layer that it reads; -1 for the embedding."""
        found = LAYER.fullmatch(self.name)
        return int(found[1]) if found else -1

    def parts(self, y: np.ndarray) -> dict[str, np.ndarray]:
        """What it writes [n y] by activation [n d]."""
        ends = np.cumsum(self.card.widths[len(self.reads) :])
        return dict(zip(self.writes, np.split(y, ends[:-1], axis=1), strict=True))

    def decoder(self, name: str) -> np.ndarray:
        """The features' directions in one of the activations that it writes [f d]."""
        return self.parts(self.W_dec)[name]

    def rows(self, values: Any) -> np.ndarray:
        """What it reads of activations by name: rows [n x]."""
        return np.concatenate([values[name].reshape(len(values[name]), -1) for name in self.reads], 1)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """float32 [n f]: the features' activations of rows [n x]."""
        pre = x.reshape(len(x), -1) @ self.W_enc.T + self.b_enc
        if self.threshold is not None:
            return np.where(pre > np.maximum(self.threshold, 0), pre, np.float32(0))
        best = np.argpartition(-pre, self.card.k - 1, axis=1)[:, : self.card.k]
        f = np.zeros_like(pre)
        np.put_along_axis(f, best, np.maximum(np.take_along_axis(pre, best, 1), 0), 1)
        return f

    def decode(self, f: np.ndarray, x: np.ndarray | None = None) -> np.ndarray:
        """Rows float32 [n y] of features [n f]; a skip also needs the rows [n x] that were read."""
        y = f @ self.W_dec + self.b_dec
        if self.W_skip is None:
            return y
        if x is None:
            raise UserError("this dictionary has a linear skip: decode(f, x) needs what it read too")
        return y + x.reshape(len(x), -1) @ self.W_skip.T

    def top(self, x: np.ndarray, count: int = 5) -> list[list[Feature]]:
        """The strongest features of each row, the strongest first."""
        f = self.encode(x)
        best = largest(f, count)
        strengths = np.take_along_axis(f, best, axis=1)
        return [
            [Feature(*one) for one in zip(*both, strict=True) if one[1] > 0]
            for both in zip(best.tolist(), strengths.tolist(), strict=True)
        ]

    def sinks(self, x: np.ndarray) -> np.ndarray:
        """Which rows [t x] of a text from its start are attention sinks that it was not trained on [t]."""
        return self.sinks_at(x, np.arange(len(x)))

    def sinks_at(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The same of rows at these positions of a text."""
        massive = np.linalg.norm(x.reshape(len(x), -1), axis=1) > self.card.norm_limit
        return (massive | (positions == 0)) & (not self.card.keep_sinks)

    @property
    def parts_against(self) -> np.ndarray | None:
        """For a crosscoder of two models, the fraction of each feature's direction in the second one [f].

        Near 0 the feature is the first model's alone, near 1 the second's. None for other dictionaries.
        """
        norms = {name: np.linalg.norm(self.decoder(name), axis=1) for name in self.writes}
        theirs = sum(norm for name, norm in norms.items() if name.startswith(AGAINST))
        return None if isinstance(theirs, int) else theirs / np.maximum(sum(norms.values()), 1e-30)

    def add(self, feature: int, strength: float = 1.0) -> Add:
        """The edit that adds as much of a feature's direction as its activation ``strength`` would."""
        return Add(strength=strength, **self._direction(feature))

    def remove(self, feature: int) -> Project:
        """The edit that projects a feature's direction out of what is written."""
        return Project(**self._direction(feature))

    def _direction(self, feature: int) -> dict[str, Any]:
        self.check_feature(feature)
        name, *others = self.writes
        if others:
            raise UserError(
                f"features of a {self.card.kind} write several activations: they are no single edit"
            )
        vector, found = self.W_dec[feature].tolist(), LAYER.fullmatch(name)
        if found and found[2] == "out":
            return {"layer": int(found[1]), "vector": vector}
        return {"name": name, "vector": vector}

    def check_feature(self, feature: int) -> None:
        """UserError for a number that no feature has."""
        if not 0 <= feature < self.card.features:
            raise UserError(f"there is no feature {feature}: they are 0 to {self.card.features - 1}")


def arrays(tensors: Mapping[str, Packed]) -> dict[str, np.ndarray]:
    """float32 copies of tensors."""
    return {name: formats.unpack(tensor).copy() for name, tensor in tensors.items()}
