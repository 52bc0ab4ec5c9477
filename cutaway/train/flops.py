"""Floating-point operations of a training step, by formula. Imports no torch.

    6 a weight that multiplies a token    2 of the forward pass, 4 of the backward pass; 4 of a frozen weight,
                                          of which no gradient is computed
    6 a multiplication between tokens     the mechanism's own formula (``COST`` of its file) at the document's
                                          length: what a token may see, a window, a recurrence's chunks

Masked scores do not count, nor does recomputation; PaLM's count (2204.02311, appendix B) has the scores of
the whole square, causal or not. Nor do an adapter's own matrices, a few hundredths, and a reference's passes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cutaway.attention.common.cost import at
from cutaway.attention.common.registry import kind
from cutaway.model.config import Decoder, EncoderDecoder
from cutaway.model.kinds import kind_of

Span = tuple[int, int]  # the positions of a document's tokens, from the first to behind the last


@dataclass
class Operations:
    """Floating-point operations of a decoder's documents; ``frozen``: its weights are not trained."""

    config: Decoder
    frozen: bool = False
    _between: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weights = _matrices(self.config.active()) + _tied_head(self.config)
        self.of_weights = (4 if self.frozen else 6) * weights
        self.mixers = Counter(block.attention for block in self.config.blocks)

    def of(self, spans: Iterable[Span]) -> float:
        """Operations of documents, forward and backward. One that begins after 0 reads the text before it."""
        return sum(
            self.of_weights * (stop - start) + 6 * (self.between(stop) - self.between(start))
            for start, stop in spans
        )

    def between(self, n: int) -> float:
        """Multiplications between the tokens of a document of n, in all layers."""
        if n not in self._between:
            each = (count * between(mixer, self.config.width, n=n) for mixer, count in self.mixers.items())
            self._between[n] = sum(each) if n else 0.0
        return self._between[n]


def per_token(config: Decoder | EncoderDecoder, context: int | None = None, frozen: bool = False) -> float:
    """Operations of a training step for each token, where documents fill the ``context``.

    ``context`` None is the config's. Of an encoder-decoder it is the mean over the tokens of a source and of
    a target that fill both contexts.
    """
    if isinstance(config, EncoderDecoder):
        return _per_token_of_both(config)
    n = config.context if context is None else context
    return Operations(config, frozen).of([(0, n)]) / n


def between(mixer: Any, width: int, **tokens: int) -> float:
    """Multiplications between tokens of one layer's prefill, without those of its matrices."""
    cost = kind(kind_of(mixer)).cost
    return at(cost.prefill if cost.between is None else cost.between, mixer, d=width, **tokens)


def spans(pos: np.ndarray, documents: np.ndarray) -> list[Span]:
    """The documents of rows [b t] as positions; padding has none.

    What follows a row's shared beginning (documents -1) begins behind it.
    """
    found: list[Span] = []
    for own, numbers in zip(pos, documents, strict=True):
        own, numbers = own[own >= 0], numbers[own >= 0]
        cuts = np.flatnonzero((np.diff(own) != 1) | (np.diff(numbers) != 0)) + 1
        for part in np.split(own, cuts):
            if len(part):
                found.append((int(part[0]), int(part[-1]) + 1))
    return found


def _per_token_of_both(config: EncoderDecoder) -> float:
    """Cross-attention's keys and values are the source's, its queries the target's."""
    reader, writer = config.encoder, config.decoder
    source, target = reader.context, writer.context
    weights = writer.weights()
    of_source = {
        name: shape for name, shape in weights.items() if ".cross.key." in name or ".cross.value." in name
    }
    reading = source * (_matrices(reader.weights()) + _matrices(of_source))
    reading += sum(between(block.attention, reader.width, n=source) for block in reader.blocks)
    writing = target * (_matrices(weights) - _matrices(of_source) + _tied_head(writer))
    writing += sum(between(block.attention, writer.width, n=target) for block in writer.blocks)
    writing += sum(
        between(block.cross, writer.width, n=target, s=source)
        for block in writer.blocks
        if block.cross is not None
    )
    return 6 * (reading + writing) / (source + target)


def _matrices(weights: Mapping[str, tuple[int, ...]]) -> int:
    """How many weights multiply a token."""
    return sum(math.prod(shape) for name, shape in weights.items() if _multiplied(name, shape))


def _tied_head(config: Decoder) -> int:
    """A head's weights that are counted as an embedding table otherwise."""
    return config.vocab * config.width if config.tied else 0


def _multiplied(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and not name.startswith(("embedding.", "position."))
