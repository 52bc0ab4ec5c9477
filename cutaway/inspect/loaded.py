"""The protocol of a loaded model that studies use: a ``LanguageModel``, which is above them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from cutaway.weights.checkpoint import Checkpoint


@runtime_checkable
class Loaded(Protocol):
    """A model with its files."""

    @property
    def config(self) -> Any: ...

    @property
    def checkpoint(self) -> Checkpoint: ...
