"""A classifier's head in a family's folders: names of its tensors, activation, pooling."""

from __future__ import annotations

from typing import NamedTuple

from cutaway.model.labels import HeadPooling


class Head(NamedTuple):
    """The layer's name and its activation, which may be a key of the config and its default; the names of the
    output and of a norm between; how tokens are pooled, and the poolings that a config may choose instead.
    ``of_tokens``: a head for tokens has the layer and the norm too.
    """

    layer: str | None = "pooler.dense"
    activation: str | tuple[str, str] = "tanh"
    out: str = "classifier"
    norm: str | None = None
    pooling: HeadPooling = "cls"
    others: tuple[str, ...] = ()
    of_tokens: bool = False
