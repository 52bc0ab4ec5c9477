"""The protocol of an engine: ids in, logits out, and a state that remembers what was read.

The PyTorch model and the runtime both have this protocol, so that generation, serving and evaluation never
ask which one they hold.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Rewindable(Protocol):
    """A state that can forget its last ids."""

    def truncate(self, length: int) -> None:
        """Keep the first `length` ids, of a recurrent model those up to where it was marked; UserError where
        a window has dropped what is before them.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """A model: ``prefill`` and ``step`` append to the state and return the last position's logits [v]."""

    @property
    def max_context(self) -> int:
        """How many ids a state can hold."""
        ...

    @property
    def vocab(self) -> int:
        """v, the number of logits."""
        ...

    def new_state(self) -> Any:
        """An empty state, whose ``length`` is how many ids it holds."""
        ...

    def prefill(self, ids: Sequence[int], state: Any) -> np.ndarray:
        """Read one or more ids after the `state.length` that are there, in chunks that suit the engine."""
        ...

    def step(self, id: int, state: Any) -> np.ndarray:
        """Read one id."""
        ...


@runtime_checkable
class AllLogits(Engine, Protocol):
    """An engine that answers at every id that it reads: what is checked or scored is read in one call."""

    def prefill_all_logits(self, ids: Sequence[int], state: Any) -> np.ndarray:
        """Read one or more ids after those that are there: float32 [k v], the logits after each of them."""
        ...


@runtime_checkable
class BatchedEngine(Engine, Protocol):
    """An engine that reads several texts in one call, and whose states share what texts have in common.

    What is read of a text does not depend, to the bit, on what is read beside it, nor on where it is cut into
    calls, if every cut within a prompt is at a multiple of `grid` and ids after it come one at a time.
    """

    @property
    def page(self) -> int:
        """Texts share their beginnings in pages of so many ids: as many as `grid`, where that is not 1."""
        ...

    @property
    def grid(self) -> int:
        """A prompt may be cut at multiples of this number; 1 is anywhere."""
        ...

    @property
    def layers(self) -> int:
        """The number of layers."""
        ...

    @property
    def scope(self) -> bytes:
        """A key for pages: engines with another scope cannot use them, whatever the text."""
        ...

    @property
    def page_bytes(self) -> int:
        """The bytes of a page of one text's state."""
        ...

    @property
    def weights_in_positions(self) -> int:
        """How many positions' keys and values have the bytes of the weights that a step reads."""
        ...

    def read(
        self, texts: Sequence[Sequence[int]], states: Sequence[Any], logits_at: Sequence[int]
    ) -> np.ndarray:
        """Read some ids of each text, each into its own state: float32 [n v].

        The logits are those after the ids at the indices `logits_at` among all that are read. A state
        whose call failed must not be used again.
        """
        ...

    def watch(
        self,
        texts: Sequence[Sequence[int]],
        states: Sequence[Any],
        logits_at: Sequence[int],
        after: Sequence[int],
        attention_at: Sequence[tuple[int, ...]],
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Read as `read` does, to the bit, and look inside: logits and attention weights.

        The logits are the head's output on the residual stream after the layers `after`, one for each
        of `logits_at` (the logit lens). For each (index among the ids, layer) in `attention_at` the
        attention weights over its text are float32 [h s], whose rows sum to 1.
        """
        ...

    def keep(self, state: Any, page: int) -> Any:
        """What another text needs to reuse this full page, which is the last so far where `grid` is not 1."""
        ...

    def fork(self, state: Any) -> Any:
        """Another state that holds what this one does; neither sees what the other reads from now on."""
        ...

    def resume(self, kept: Sequence[Any]) -> Any:
        """A state that holds these pages, the first ones of a text, or none; it writes into none of them."""
        ...


@runtime_checkable
class Rewinding(BatchedEngine, Protocol):
    """An engine whose logits do not depend on how ids after a prompt are cut into calls either, and whose
    states can forget the last ids (`Rewindable`): so it verifies drafts.
    """

    def no_rewinding(self) -> str | None:
        """Why states come back only to where they were marked; None where they forget any ids."""
        ...

    def mark(self, state: Any, lasting: bool = False) -> None:
        """Before a draft is read: what `truncate` may come back to, forgetting ids before the draft too. A
        ``lasting`` mark stays when drafts are marked.
        """
        ...

    def rewindable(self, state: Any) -> int:
        """How many ids more a state may read and forget again."""
        ...


@runtime_checkable
class Observable(BatchedEngine, Protocol):
    """An engine that shows activations of the texts of a step."""

    def watch_values(
        self,
        texts: Sequence[Sequence[int]],
        states: Sequence[Any],
        logits_at: Sequence[int],
        after: Sequence[int],
        attention_at: Sequence[tuple[int, ...]],
        names: Sequence[str],
    ) -> tuple[np.ndarray, list[np.ndarray], Mapping[str, np.ndarray]]:
        """Read as `watch` does, and give values by name: float32 [n ...], a row for each id of the step."""
        ...


@runtime_checkable
class Editable(Protocol):
    """An engine whose states may carry edits of the model's activations."""

    def edited_state(self, edit: Any, kept: Sequence[Any] = ()) -> Any:
        """A state that holds these pages, as `resume` takes them; what is read after them is edited."""
        ...

    def edits_begin(self, edit: Any) -> int:
        """The first position that edits change; pages before it are those of the text without them."""
        ...


@runtime_checkable
class AllocatesAhead(Protocol):
    """An engine whose pages can be allocated before a sequence needs them."""

    def make_ahead(self, pages: int, pause: Callable[[], None], /) -> bool: ...


@runtime_checkable
class Storable(BatchedEngine, Protocol):
    """An engine whose kept pages and whole states can be written into files and read again."""

    def page_arrays(self, kept: Any, page: int) -> list[np.ndarray]:
        """What makes up a kept page, number ``page`` of its text, beside its ids and the pages before it."""
        ...

    def blank_page(self) -> list[np.ndarray]:
        """Arrays of the sizes of `page_arrays`, to be filled."""
        ...

    def kept_page(self, arrays: Sequence[np.ndarray], ids: Sequence[int], before: Any) -> Any:
        """The kept page with these ids of what `page_arrays` gave; ``before`` is the one before it, or None.
        It takes the arrays over.
        """
        ...

    def state_arrays(self, state: Any) -> list[np.ndarray]:
        """All that a state holds, beside its ids. Without a recurrence it holds full pages alone."""
        ...

    def blank_state(self, length: int) -> list[np.ndarray]:
        """Arrays of the sizes of `state_arrays` for a state of so many ids, to be filled."""
        ...

    def stored_state(self, arrays: Sequence[np.ndarray], ids: Sequence[int]) -> Any:
        """The state of these ids of what `state_arrays` gave. It takes the arrays over."""
        ...
