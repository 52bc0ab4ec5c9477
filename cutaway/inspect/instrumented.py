"""The one protocol of a model whose activations are read and edited: numpy arrays, from either engine.

    engine.values([ids], ["blocks.*.out"])[0]["blocks.3.out"]     # float32 [t d]
    engine.weight("blocks.3.attention.out.weight")                # float32 [d hv], this matrix alone
    engine.unembed(rows)                                          # float32 [n v]

The runtime (``instrumented_runtime.py``) reads the packed model that generates; the PyTorch model
(``instrumented_pytorch.py``) shows every module's output, takes functions as edits and has gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from cutaway.model.config import Decoder
from cutaway.store.files import Progress, silent

if TYPE_CHECKING:
    from cutaway.inspect.edits import Given

SQUARE = ("scores", "pattern", "index", "chosen")  # activations with keys as their last axis
# Values of heads, [h t k]
RESULT = ".result"  # what each head adds to the residual stream
BY_HEAD = ("q", "k", "v", "z", "q_unrotated", "k_unrotated", "out_input", "latent")
Values = dict[str, np.ndarray]  # activations of one text by name, without a batch axis


class EngineChoice(NamedTuple):
    """Which engine answers, "runtime" or "pytorch" (PyTorch), and why, in words that follow "because"."""

    name: str
    reason: str


@runtime_checkable
class Rows(Protocol):
    """The rows of a matrix, float32 [n d], made when they are asked for by a slice or by ids."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


@runtime_checkable
class Instrumented(Protocol):
    """The protocol of an engine whose activations are read and edited."""

    name: str
    config: Decoder

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The activations that it shows, as they are computed, with their shapes for a text of one token."""
        ...

    def resolve(self, names: Sequence[str]) -> list[str]:
        """Names with wildcards and aliases as the engine's own; UserError for one that it does not show."""
        ...

    def unsupported_reason(
        self, names: Sequence[str], edits: Sequence[Given], lengths: Sequence[int]
    ) -> str | None:
        """Why it does not show these names under these edits of texts of such lengths; None if it does."""
        ...

    def values(
        self,
        texts: Sequence[Sequence[int]],
        names: Sequence[str],
        edits: Sequence[Given] = (),
        *,
        logits_at: Sequence[int] | None = None,
        progress: Progress = silent,
    ) -> list[Values]:
        """The activations of each text by name, float32 [... t ...]; choices are integers.

        ``edits``: none, or one ``Given`` a text. No layer runs that no name needs. ``logits_at`` are the
        positions, the same in every text, whose logits are computed (None: all). ``progress`` counts texts.
        """
        ...

    def weight(self, name: str) -> np.ndarray:
        """A weight by its name in ``config.weights()``, float32, adapters merged in; unpacked anew."""
        ...

    def table(self, name: str, count: int | None = None) -> Rows:
        """A matrix, or its first ``count`` rows, whose rows are unpacked when they are asked for."""
        ...

    def distance_bias(self, layer: int, length: int) -> np.ndarray | None:
        """float64 [h t]: what a layer adds to scores by the distance of the key; None if nothing."""
        ...

    def head_product(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n v]: the output head's matrix times rows [n d], without norm, bias or soft-cap."""
        ...

    def unembed(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n v]: the logits of rows [n d] of the residual stream, as the engine computes them."""
        ...


def head_table(engine: Instrumented) -> Rows:
    """The output head's rows, one a token; the embedding's where it is tied."""
    return engine.table("embedding.weight" if engine.config.tied else "head.weight")
