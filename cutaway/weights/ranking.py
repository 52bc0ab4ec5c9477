"""The head of a cross-encoder, which reads a query and a text together and says how well they fit (monoBERT,
1901.04085): BERT's and RoBERTa's for sequence classification, with one label.

    score = activation(w tanh(W h + b) + c)        h: the first token's vector
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.store.reading import parsed
from cutaway.weights import quant, safetensors
from cutaway.weights.load import Checkpoint

NAMES = {  # by the class that transformers names: the layer, the output, and separators between the texts
    "BertForSequenceClassification": ("bert.pooler.dense", "classifier", 1),
    "RobertaForSequenceClassification": ("classifier.dense", "classifier.out_proj", 2),
    "XLMRobertaForSequenceClassification": ("classifier.dense", "classifier.out_proj", 2),
}
OLD, NEW = (
    "sbert_ce_default_activation_function",
    "sentence_transformers",
)  # where sentence-transformers says it


class Head(NamedTuple):
    """W [d d], b [d], w [d], c; whether a sigmoid follows; how many separators are between the texts."""

    layer: np.ndarray
    layer_bias: np.ndarray
    out: np.ndarray
    out_bias: float
    sigmoid: bool
    separators: int

    def scores(self, first: np.ndarray) -> np.ndarray:
        """float32 [n]: the scores of pairs by their first tokens' vectors [n d]."""
        found = np.tanh(first @ self.layer.T + self.layer_bias) @ self.out + self.out_bias
        return 1 / (1 + np.exp(-found)) if self.sigmoid else found


def head(checkpoint: Checkpoint) -> Head | None:
    """A folder's head with one label, None where it has none; UserError for one that is damaged."""
    path = checkpoint.source / "config.json"
    if not checkpoint.source.is_dir() or not path.is_file():
        return None
    config = parsed(path)
    named = config.get("architectures")
    names = NAMES.get(str(named[0])) if isinstance(named, list) and named else None
    if names is None:
        return None
    layer, out, separators = names
    tensors, width = safetensors.read(checkpoint.source), checkpoint.config.width
    wanted = {f"{layer}.weight": (width, width), f"{layer}.bias": (width,)}
    wanted |= {f"{out}.weight": (1, width), f"{out}.bias": (1,)}
    found = {name: tensors[name].shape for name in wanted if name in tensors}
    if found.get(f"{out}.weight", (1,))[:1] != (1,):
        return None  # a classifier of several classes ranks nothing
    if found != wanted:
        raise UserError(f"{checkpoint.source}: its head should hold {', '.join(wanted)} of width {width}")
    weights = [quant.finite(name, tensors[name]) for name in wanted]
    return Head(weights[0], weights[1], weights[2][0], float(weights[3][0]), _sigmoid(config), separators)


def _sigmoid(config: dict) -> bool:
    """Whether scores go through a sigmoid, as they do unless the config names the identity."""
    own = config.get(NEW)
    stated = config.get(OLD, own.get("activation_fn") if isinstance(own, dict) else None)
    named = str(stated or "Sigmoid").rpartition(".")[2]
    if named not in ("Sigmoid", "Identity"):
        raise UserError(f"config.json's activation of scores is {quoted(named)}: known are Sigmoid, Identity")
    return named == "Sigmoid"
