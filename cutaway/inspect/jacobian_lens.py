"""The Jacobian lens (Gurnee et al. 2026): which words an activation moves the model towards, layer by layer.

    found = jacobian_file.load("lens.safetensors", lm)     # `cutaway lens fit` writes one
    lm.trace("...").lens(found)                            # the likeliest word after every layer
    lm.generate("...", edit=found.swap(lm, " Italy", " France"))

A layer's matrix J_l says how its residual stream moves the last one, on average over texts and over all later
positions (jacobian_fit.py). The lens reads logits_l(h) = unembed(norm(J_l h)), with the model's own norm,
head and soft-cap; J_l = I is the logit lens. Row w of W_U J_l, at norm 1, is the direction of token w.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.edits import Add, Edit, Project, Swap
from cutaway.inspect.instrumented import head_table
from cutaway.inspect.pairs import token_id
from cutaway.inspect.subject import subject_of

BAND = (0.38, 0.92)  # of the depth: the layers that interventions act on


@dataclass(frozen=True, repr=False)
class JacobianLens:
    """``matrices`` float32 [d d] by layer, which take its residual stream to that after layer ``target``;
    fitted to ``texts`` texts, as ``facts`` describe.
    """

    matrices: Mapping[int, np.ndarray]
    target: int
    texts: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Numbers of the residual stream."""
        return len(next(iter(self.matrices.values())))

    def __repr__(self) -> str:
        return f"JacobianLens({len(self.matrices)} layers, width {self.width}, {self.texts} texts)"

    def check(self, lm: Any, name: str = "the lens") -> None:
        """UserError for a lens of another model."""
        subject = subject_of(lm)
        layers, width = len(subject.config.blocks), subject.config.width
        last = max(*self.matrices, self.target)
        if self.width != width or last >= layers:
            raise UserError(
                f"{name} is of another model, of width {self.width} and {last + 1} layers or more: this one "
                f"has width {width} and {layers} layers; name the model that it was fitted to"
            )
        of = self.facts.get("model")
        if of is not None and of != digest(subject):
            raise UserError(f"{name} was fitted to another model, of this one's shape: fit one to this model")

    def translated(self, residuals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the head is to read of residual streams [t d], of layers that have a matrix and later ones."""
        found = {}
        for name, rows in residuals.items():
            layer = int(name.split(".")[1]) if name != "embed" else -1
            if layer in self.matrices:
                found[name] = rows @ self.matrices[layer].T
            elif layer >= self.target:
                found[name] = rows
        return found

    def random(self, seed: int = 0) -> JacobianLens:
        """The control: one random rotation in place of every matrix."""
        normal = np.random.default_rng(seed).standard_normal((self.width, self.width))
        rotation = np.linalg.qr(normal)[0].astype(np.float32)
        return JacobianLens(dict.fromkeys(self.matrices, rotation), self.target, 0)

    def band(self, layers: Sequence[int] | None = None) -> list[int]:
        """The layers of an intervention: those given, or the ones from 0.38 to 0.92 of the depth."""
        if layers is None:
            depth = self.target + 1
            return [layer for layer in self.matrices if BAND[0] <= (layer + 1) / depth <= BAND[1]]
        for layer in layers:
            if layer not in self.matrices:
                raise UserError(
                    f"the lens has no matrix for layer {layer}: its layers are {ranges(self.matrices)}"
                )
        return list(layers)

    def of_layers(self, layers: Sequence[int]) -> JacobianLens:
        """The lens of some of its layers, to which no text can be added."""
        facts = {name: fact for name, fact in self.facts.items() if name not in ("deviation", "done")}
        return replace(
            self, matrices={layer: self.matrices[layer] for layer in self.band(layers)}, facts=facts
        )

    def directions(self, lm: Any, tokens: Iterable[Any], layer: int) -> np.ndarray:
        """float32 [n d]: the direction of each token, an id or a text of one token, at norm 1."""
        (layer,) = self.band([layer])
        subject = subject_of(lm)
        ids = [token_id(subject, token) for token in tokens]
        count = min(subject.config.vocab, len(subject.tokenizer))
        if not 0 <= min(ids, default=0) <= max(ids, default=-1) < count:
            raise UserError(f"give tokens of this model, with ids from 0 to {count - 1:,}, and one at least")
        pulled = head_table(subject.engine)[np.array(ids)] @ self.matrices[layer]
        norms = np.linalg.norm(pulled, axis=1, keepdims=True)
        if not norms.all():
            raise UserError(f"at layer {layer} the lens has no direction for that token")
        return pulled / norms

    def steer(
        self, lm: Any, token: Any, strength: float, layers: Sequence[int] | None = None, **where: Any
    ) -> list[Edit]:
        """h + strength |h| v, v the token's direction, after each of the layers (the middle band)."""
        return [
            Add(
                layer,
                self.directions(lm, [token], layer)[0].tolist(),
                strength=strength,
                relative=True,
                **where,
            )
            for layer in self.band(layers)
        ]

    def swap(
        self, lm: Any, token: Any, other: Any, layers: Sequence[int] | None = None, **where: Any
    ) -> list[Edit]:
        """Exchanges the coordinates along two tokens' directions; what is orthogonal to both stays.

        The residual stream keeps what a layer exchanged, and the next exchange undoes it. So the middle band
        is an odd number of layers; of ``layers`` an even number changes little.
        """
        return [
            Swap(layer, vectors=self.directions(lm, [token, other], layer).tolist(), **where)
            for layer in self.swapped(layers)
        ]

    def swapped(self, layers: Sequence[int] | None = None) -> list[int]:
        """The layers of a swap: those given, or an odd number of the middle band."""
        band = self.band(layers)
        return band if layers is not None else band[: len(band) - 1 + len(band) % 2]

    def project_out(
        self, lm: Any, tokens: Sequence[Any], layers: Sequence[int] | None = None, **where: Any
    ) -> list[Edit]:
        """Removes the tokens' directions: h - V V^+ h, one orthonormal direction after another."""
        found: list[Edit] = []
        for layer in self.band(layers):
            basis = np.linalg.qr(self.directions(lm, tokens, layer).T.astype(np.float64))[0].T
            found += [Project(layer, direction.tolist(), **where) for direction in basis]
        return found


def digest(lm: Any) -> str:
    """What tells one model from another, whatever type its weights are stored as: its shape and its norms."""
    subject = subject_of(lm)
    config, engine = subject.config, subject.engine
    found = hashlib.sha256(f"{len(config.blocks)} {config.width} {config.vocab}".encode())
    for name in ("norm.weight", "blocks.0.mlp_norm.weight", "blocks.0.attention_post_norm.weight"):
        if name in config.weights():
            found.update(np.ascontiguousarray(engine.weight(name), np.float32).tobytes())
    return found.hexdigest()[:16]


def ranges(layers: Iterable[int]) -> str:
    """Layers in a few words: 0 to 28, or a list where some are missing."""
    every = sorted(layers)
    whole = every == list(range(every[0], every[-1] + 1))
    return f"{every[0]} to {every[-1]}" if whole else ", ".join(map(str, every))
