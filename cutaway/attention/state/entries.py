"""The entries of a cache: named tensors for each token, appended to a layer's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cutaway.attention.common.mixer import LayerState
from cutaway.errors import UserError
from cutaway.shapes import Int

Entries = dict[str, Tensor]  # [b g t e]


@runtime_checkable
class Store(LayerState, Protocol):
    """A state of entries: Full, Ring, and what stores the same in another way (paged.py, quantized.py)."""

    def append(self, entries: Entries, pos: Int[Tensor, "b t"]) -> tuple[Entries, Int[Tensor, "b s"]]:
        """Store these, and return what a query of this call may need, with its positions."""
        ...

    def snapshot(self) -> Store: ...


def append(
    state: LayerState, entries: Entries, pos: Int[Tensor, "b t"]
) -> tuple[Entries, Int[Tensor, "b s"]]:
    """``state.append``. UserError if the state is of another kind, or if entries carry gradients."""
    if not isinstance(state, Store):
        raise UserError(
            f"attention: {type(state).__name__} stores no entries of tokens: give the layer its own state"
        )
    refuse_gradients(entries)
    return state.append(entries, pos)


def refuse_gradients(entries: Mapping[str, Tensor]) -> None:
    """UserError if a tensor carries a gradient."""
    if torch.is_grad_enabled() and any(entry.requires_grad for entry in entries.values()):
        raise UserError(
            "a state carries no gradients: run the model under torch.no_grad(), or train without a state"
        )
