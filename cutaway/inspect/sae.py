"""Sparse autoencoders: an activation x as a sum of few directions, of many more than it has dimensions.

    u = W (x - c) + b    topk (2406.04093): z = the k largest of u that are positive
                         jumprelu (2407.14435): z = u where u > theta
    x' = z D + c         each row of D, a feature's direction, has norm 1 where x has unit variance

Attention sinks (``activations.sinks``) are left out: their activations are so large, and so alike, that they
would be nearly all of the variance.

Both minimise the fraction of variance that x' leaves unexplained. TopK has dead features, which did not fire
for a while, explain what the others leave (the paper's AuxK). JumpReLU adds the penalty (L0 / k - 1)^2, whose
gradient passes the step through a rectangle around each threshold.

    sae = train(data, "blocks.15.out", features=4096, k=32)
    sae.top(lm.activations([text], [sae.name])[sae.name])        # the strongest features of each token
    lm.generate(text, edit=sae.add(17, 40.0))                    # a feature's direction, added
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cutaway.bounds import Count
from cutaway.errors import UserError
from cutaway.inspect.activations import Activations, norm_limit
from cutaway.inspect.edits import Add, Project
from cutaway.model.config_dict import from_dict
from cutaway.quantization import formats
from cutaway.shapes import Float
from cutaway.store import files
from cutaway.store.reading import parsed
from cutaway.weights import safetensors

Kind = Literal["topk", "jumprelu"]
KINDS = ("topk", "jumprelu")
WEIGHTS, CARD = "sae.safetensors", "sae.json"
TENSORS = ("encoder", "bias", "decoder", "center", "threshold")
DEAD = 200  # steps without firing
AUX, AUX_FEATURES = 1 / 32, 256
PENALTY, WIDTH = 0.1, 0.5  # of jumprelu: the penalty's weight, the rectangle's width
FIRST_THRESHOLD = 0.5
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

    def __init__(self, card: Card, tensors: dict[str, Tensor]) -> None:
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
        return cls(card, {name: torch.from_numpy(formats.unpack(read[name]).copy()) for name in TENSORS})

    def save(self, folder: str | Path, force: bool = False) -> None:
        """Writes it as float32 safetensors and a card."""
        packed = {name: formats.pack(self.tensors[name].numpy(), "F32") for name in TENSORS}
        with files.atomic_folder(folder, force=force) as part:
            safetensors.write(part / WEIGHTS, packed)
            (part / CARD).write_text(json.dumps(asdict(self.card), indent=1), "utf-8")

    @torch.no_grad()
    def encode(self, x: np.ndarray | Tensor) -> Float[Tensor, "n f"]:
        """The features' activations of rows [n d]."""
        of = self.tensors
        pre = (torch.as_tensor(x) - of["center"]) @ of["encoder"].T + of["bias"]
        return _sparse(pre, of["threshold"], self.card)

    def decode(self, z: Float[Tensor, "n f"]) -> Float[Tensor, "n d"]:
        """Rows [n d] from activations of features."""
        return z @ self.tensors["decoder"] + self.tensors["center"]

    def top(self, x: np.ndarray | Tensor, count: int = 5) -> list[list[Feature]]:
        """The strongest features of each row, the strongest first."""
        best = self.encode(x).topk(count)
        return [
            [Feature(*one) for one in zip(ids, strengths, strict=True) if one[1] > 0]
            for ids, strengths in zip(best.indices.tolist(), best.values.tolist(), strict=True)
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


def train(
    data: Activations,
    name: str,
    *,
    features: int,
    kind: Kind = "topk",
    k: int = 32,
    steps: int = 2000,
    batch: int = 1024,
    learning_rate: float = 1e-3,
    seed: int = 0,
    keep_sinks: bool = False,
    progress: files.Progress = files.silent,
) -> SAE:
    """An autoencoder of ``name``'s rows, Adam with a linear warm-up and decay; a tenth of tokens is held out.

    Attention sinks are not trained on, unless ``keep_sinks``. Raises UserError for a kind that is not known,
    sizes that do not fit, and too few tokens.
    """
    if kind not in KINDS:
        raise UserError(f"kind {kind!r} is not known: use one of {', '.join(KINDS)}")
    if not 1 <= k <= features or steps < 1 or batch < 1:
        raise UserError("k goes from 1 to the number of features, steps and batch from 1")
    sinks, limit = data.sinks(name), norm_limit(data.norms(name), data.positions)
    usual = np.flatnonzero(~sinks)
    if len(usual) < 2 * TESTED:
        raise UserError(
            f"the dataset has {len(usual)} tokens beside {int(sinks.sum())} attention sinks, and at least "
            f"{2 * TESTED} are needed"
        )
    card = Card(name, str(data.facts["model"]), kind, features, k, steps, batch, seed, keep_sinks)
    card = replace(card, tokens=len(data), sinks=int(sinks.sum()), norm_limit=limit)
    held_out = usual[::TESTED]
    also = np.sort(np.concatenate([held_out, np.flatnonzero(sinks)[::TESTED]]))
    rows = np.setdiff1d(np.arange(len(data)) if keep_sinks else usual, also)
    draw = np.random.default_rng(seed)
    first = _flat(data.rows(name, draw.choice(rows, min(len(rows), 8192), replace=False)))
    mean = first.mean(0)
    scale = (first - mean).square().mean().sqrt()
    of = _begun(first.shape[1], card)
    trained = [of[key].requires_grad_() for key in TENSORS if key != "threshold" or kind == "jumprelu"]
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    silent = torch.zeros(features)
    for step in range(steps):
        x = (_flat(data.rows(name, draw.choice(rows, batch))) - mean) / scale
        rate = min(1.0, (step + 1) / max(1, steps // 20), (steps - step) / max(1, steps // 5))
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        loss, z = _loss(x, of, card, silent)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            of["decoder"].copy_(F.normalize(of["decoder"], dim=1))
            silent = torch.where((z > 0).any(0), 0, silent + 1)
        progress("steps", step + 1, steps)
    sae = SAE(card, _in_own_units({key: value.detach() for key, value in of.items()}, mean, scale))
    return SAE(_measured(sae, data, held_out, also), sae.tensors)


def _flat(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows).flatten(1)


def _begun(width: int, card: Card) -> dict[str, Tensor]:
    """Random directions; the encoder begins as the decoder's transpose."""
    generator = torch.Generator().manual_seed(card.seed)
    decoder = F.normalize(torch.randn(card.features, width, generator=generator), dim=1)
    start = FIRST_THRESHOLD if card.kind == "jumprelu" else 0.0
    zeros = torch.zeros(card.features)
    return {
        "encoder": decoder.clone(),
        "bias": zeros.clone(),
        "decoder": decoder,
        "center": torch.zeros(width),
        "threshold": zeros + start,
    }


def _loss(x: Tensor, of: dict[str, Tensor], card: Card, silent: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of rows [b d], and the features' activations [b f]."""
    pre = (x - of["center"]) @ of["encoder"].T + of["bias"]
    z = _sparse(pre, of["threshold"], card)
    error = x - z @ of["decoder"] - of["center"]
    variance = (x - x.mean(0)).square().sum()
    loss = error.square().sum() / variance
    if card.kind == "jumprelu":
        l0 = _Step.apply(pre, of["threshold"]).sum(1).mean()  # pyright: ignore[reportAttributeAccessIssue]
        return loss + PENALTY * (l0 / card.k - 1).square(), z
    dead = silent > DEAD
    if not bool(dead.any()):
        return loss, z
    best = pre.masked_fill(~dead, -torch.inf).topk(min(AUX_FEATURES, int(dead.sum())), dim=1)
    aux = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu()) @ of["decoder"]
    return loss + AUX * (error.detach() - aux).square().sum() / variance, z


def _sparse(pre: Tensor, threshold: Tensor, card: Card) -> Tensor:
    if card.kind == "jumprelu":
        return _JumpReLU.apply(pre, threshold)  # pyright: ignore[reportReturnType]
    best = pre.topk(card.k, dim=1)
    return torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())


def _rectangle(pre: Tensor, threshold: Tensor) -> Tensor:
    """The derivative that stands for a step's: 1 / width within half a width of the threshold."""
    return ((pre - threshold).abs() < WIDTH / 2).to(pre) / WIDTH


class _Step(torch.autograd.Function):
    """1 where u > theta."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return (pre > threshold).to(pre)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, -(gradient * _rectangle(*ctx.saved_tensors)).sum(0)


class _JumpReLU(torch.autograd.Function):
    """u where u > theta, else 0."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pre, threshold = ctx.saved_tensors
        of_threshold = -(gradient * threshold * _rectangle(pre, threshold)).sum(0)
        return gradient * (pre > threshold), of_threshold


def _in_own_units(of: dict[str, Tensor], mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """The same function of x as it was of (x - mean) / scale."""
    moved = {"encoder": of["encoder"] / scale, "decoder": of["decoder"] * scale}
    return of | moved | {"center": mean + scale * of["center"]}


def _measured(sae: SAE, data: Activations, held_out: np.ndarray, with_sinks: np.ndarray) -> Card:
    """The card with its figures on held-out rows."""

    def unexplained(rows: np.ndarray) -> tuple[float, Tensor]:
        x = _flat(data.rows(sae.name, rows[: 1 << 15]))
        z = sae.encode(x)
        return float((x - sae.decode(z)).square().sum() / (x - x.mean(0)).square().sum()), z > 0

    (left, active), (of_both, _) = unexplained(held_out), unexplained(with_sinks)
    l0, dead = float(active.sum(1).float().mean()), int((~active.any(0)).sum())
    return replace(sae.card, unexplained=left, unexplained_with_sinks=of_both, l0=l0, dead=dead)
