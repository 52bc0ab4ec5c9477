"""Classifiers' heads as folders have them: layers, labels, and what is made of their numbers.

The models are transformers' ForSequenceClassification and ForTokenClassification. Cross-encoders (monoBERT,
1901.04085), which read a query and a text together, are those with one label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.model.config import Decoder
from cutaway.model.labels import HeadLayer, HeadNorm, HeadPooling, LabelHead
from cutaway.quantization import formats
from cutaway.store.reading import parsed
from cutaway.weights import family_registry, rows, safetensors
from cutaway.weights.checkpoint import TOKENS, Checkpoint
from cutaway.weights.classifier_head import Head

ACTIVATIONS = {**rows.ACTIVATIONS, "tanh": "tanh"}
POOLINGS: dict[str, HeadPooling] = {"cls": "cls", "bos": "cls", "mean": "mean", "late": "late"}
Problem = Literal["regression", "single_label_classification", "multi_label_classification"]
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
SCORES = "sbert_ce_default_activation_function"  # or ``activation_fn`` in ``sentence_transformers``


DECODERS = Head(None, out="score", pooling="last")


@dataclass(frozen=True)
class Classifier:
    """A head, the names of its labels, and whether one of them is right or several.

    ``sigmoid``: whether one makes a cross-encoder's score of its number. A decoder's last token is the last
    that is not ``padding``.
    """

    head: LabelHead
    labels: tuple[str, ...]
    problem: Problem
    sigmoid: bool
    of_tokens: bool
    padding: int | None = None

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of labels (one is right, or several); for a regression, the numbers themselves."""
        if self.problem == "regression":
            return logits
        if self.problem == "multi_label_classification" or len(self.labels) == 1:
            return sigmoid(logits)
        raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return raised / raised.sum(axis=-1, keepdims=True)

    def without_padding(self, row: Sequence[int]) -> Sequence[int]:
        """A row up to its last id that is no padding, as transformers looks for it; the first id at least."""
        end = len(row)
        while end > 1 and row[end - 1] == self.padding:
            end -= 1
        return row[:end]


@dataclass(frozen=True)
class Classes:
    """What a classifier makes of texts, or of tokens: ``logits`` and ``scores`` float32 [n labels]."""

    labels: tuple[str, ...]
    problem: Problem
    logits: np.ndarray
    scores: np.ndarray

    @property
    def best(self) -> list[str]:
        """The likeliest label of each."""
        return [self.labels[n] for n in self.scores.argmax(axis=1)]

    def chosen(self, least: float = 0.5) -> list[tuple[str, ...]]:
        """The labels of each that have this score or more, where several may be right."""
        return [
            tuple(name for name, score in zip(self.labels, row, strict=True) if score >= least)
            for row in self.scores
        ]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, np.ones_like(x)) / (1 + small)


def read_classifier(checkpoint: Checkpoint) -> Classifier | None:
    """A folder's classifier, None where it has none; UserError for one that is damaged or not known."""
    if not checkpoint.classifier:
        return None
    config, of_tokens = parsed(checkpoint.path / "config.json"), checkpoint.classifier.endswith(TOKENS)
    form = _form(checkpoint)
    weights = _Weights.of(checkpoint)
    width = checkpoint.config.width
    layer = None
    if form.layer is not None:
        norm = form.norm and HeadNorm(
            *weights.parts(form.norm, (width,)), float(config.get("norm_eps", 1e-5))
        )
        layer = HeadLayer(*weights.parts(form.layer, (width, width)), _activation(form, config), norm or None)
    out, bias = weights.parts(form.out, (None, width))
    pooling = form.pooling
    if form.others and not of_tokens:
        stated = config.get("classifier_pooling", pooling)
        if stated not in form.others:
            raise UserError(
                f"config.json: classifier_pooling is {quoted(stated)}: known are {', '.join(form.others)}"
            )
        pooling = POOLINGS[str(stated)]
    head = LabelHead(layer, out, bias, pooling)
    labels = _labels(config, head.labels)
    padding = config.get("pad_token_id")
    if padding is not None and type(padding) is not int:
        raise UserError(f"config.json: pad_token_id is {quoted(padding)}, not a whole number")
    return Classifier(head, labels, _problem(config, len(labels)), _by_sigmoid(config), of_tokens, padding)


def kept(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Packed]]:
    """The config.json and the head's weights of a classifier's folder, for another of the same model."""
    config = parsed(checkpoint.path / "config.json")
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    return config, parameters(checkpoint)


def parameters(checkpoint: Checkpoint) -> dict[str, Packed]:
    """The weights of a classifier's head by their names in its folder."""
    weights, form = _Weights.of(checkpoint), _form(checkpoint)
    modules = [name for name in (form.layer, form.norm, form.out) if name]
    names = (weights.name(f"{name}.{part}") for name in modules for part in ("weight", "bias"))
    return {name: weights.tensors[name] for name in names if name}


def _form(checkpoint: Checkpoint) -> Head:
    """The form of a classifier's head; UserError for one that is not known."""
    of_tokens, family = checkpoint.classifier.endswith(TOKENS), checkpoint.family or ""
    form = (
        DECODERS
        if isinstance(checkpoint.config, Decoder)
        else family_registry.get(family).head
        if family
        else None
    )
    if form is None:
        raise UserError(f"{checkpoint.source}: the head of {quoted(checkpoint.classifier)} is not known here")
    return Head(None) if of_tokens and form is not DECODERS and not form.of_tokens else form


@dataclass(frozen=True)
class _Weights:
    """The weights of a folder, found by the ends of their names."""

    checkpoint: Checkpoint
    tensors: Mapping[str, Packed]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Weights:
        """With an adapter's in their places."""
        return cls(checkpoint, {**safetensors.read_safetensors(checkpoint.path), **checkpoint.head})

    def name(self, end: str) -> str | None:
        """This name, or the only one that ends so."""
        found = [end] if end in self.tensors else [name for name in self.tensors if name.endswith(f".{end}")]
        if len(found) > 1:
            raise UserError(f"{self.checkpoint.source}: two weights are called {end}: {', '.join(found[:2])}")
        return found[0] if found else None

    def _get(self, end: str) -> Packed | None:
        name = self.name(end)
        return None if name is None else self.tensors[name]

    def parts(self, name: str, shape: tuple[int | None, ...]) -> tuple[np.ndarray, np.ndarray | None]:
        """A module's weight, whose shape is checked, and its bias."""
        weight, bias = self._get(f"{name}.weight"), self._get(f"{name}.bias")
        found = None if weight is None else weight.shape
        fits = found is not None and len(found) == len(shape)
        if (
            weight is None
            or not fits
            or any(a not in (None, b) for a, b in zip(shape, weight.shape, strict=True))
        ):
            given = "is missing" if found is None else f"has the shape {found}"
            raise UserError(f"{self.checkpoint.source}: the head's weight {name}.weight {given}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise UserError(f"{self.checkpoint.source}: the head's {name}.bias has the shape {bias.shape}")
        return _array(name, weight), None if bias is None else _array(name, bias)


def _array(name: str, packed: Packed) -> np.ndarray:
    return np.array(formats.finite(name, packed))  # a copy: what is mapped from a file cannot be written


def _activation(form: Head, config: Mapping[str, Any]) -> str:
    word = form.activation
    stated = config.get(*word) if isinstance(word, tuple) else word
    if stated not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"config.json: the head's activation is {quoted(stated)}: known are {known}")
    return ACTIVATIONS[str(stated)]


def _labels(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """The labels' names, by their numbers."""
    named = config.get("id2label")
    if not isinstance(named, dict) or not named:
        return tuple(f"LABEL_{n}" for n in range(count))
    wanted = [str(n) for n in range(count)]
    if set(named) != set(wanted) or not all(isinstance(one, str) for one in named.values()):
        raise UserError(
            f"config.json: id2label should name the head's {count} labels by their numbers from 0"
        )
    return tuple(named[n] for n in wanted)


def _problem(config: Mapping[str, Any], count: int) -> Problem:
    """What labels are: where it is not stated one of several is right, as in transformers' pipelines."""
    stated = config.get("problem_type")
    if stated is None:
        return "multi_label_classification" if count == 1 else "single_label_classification"
    if stated not in PROBLEMS:
        raise UserError(f"config.json: problem_type is {quoted(stated)}: known are {', '.join(PROBLEMS)}")
    return stated


def _by_sigmoid(config: Mapping[str, Any]) -> bool:
    """Whether a cross-encoder's scores go through a sigmoid: unless the config names the identity."""
    own = config.get("sentence_transformers")
    stated = config.get(SCORES, own.get("activation_fn") if isinstance(own, dict) else None)
    named = str(stated or "Sigmoid").rpartition(".")[2]
    if named not in ("Sigmoid", "Identity"):
        raise UserError(f"config.json's activation of scores is {quoted(named)}: known are Sigmoid, Identity")
    return named == "Sigmoid"
