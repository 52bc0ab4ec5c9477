"""What generation asks of an engine: ids in, logits out, and a state that remembers what was read.

The definition (PyTorch) and the runtime (native) both stand behind this protocol, so that generation, serving
and evaluation never ask which one they hold.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class State(Protocol):
    """What an engine keeps of the ids it has read, for instance the keys and values of every layer."""

    @property
    def length(self) -> int:
        """How many ids the state holds."""
        ...


@runtime_checkable
class Rewindable(Protocol):
    """A state that can forget its last ids."""

    def truncate(self, length: int) -> None:
        """Keep the first `length` ids; Refused where a window has dropped what is before them."""
        ...


@runtime_checkable
class Engine(Protocol):
    """A model: both readings append to the state and return float32 [v], the logits of the last position."""

    @property
    def max_context(self) -> int:
        """How many ids a state can hold."""
        ...

    @property
    def vocab(self) -> int:
        """v, the number of logits."""
        ...

    def new_state(self) -> Any:
        """An empty state (it satisfies `State`)."""
        ...

    def prefill(self, ids: Sequence[int], state: Any) -> np.ndarray:
        """Read one or more ids after the `state.length` that are there, in chunks that suit the engine."""
        ...

    def step(self, id: int, state: Any) -> np.ndarray:
        """Read one id."""
        ...


@runtime_checkable
class ReadsEach(Engine, Protocol):
    """An engine that answers at every id that it reads: what is checked or scored is read in one call."""

    def read_each(self, ids: Sequence[int], state: Any) -> np.ndarray:
        """Read one or more ids after those that are there: float32 [k v], the logits after each of them."""
        ...
