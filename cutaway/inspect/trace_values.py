"""The activations of one forward pass by name, and the questions that they answer.

``Trace`` (trace.py) adds what is drawn and saved of it, and its gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.inspect import lenses
from cutaway.inspect import names as naming
from cutaway.inspect.arrays import largest, softmax
from cutaway.inspect.attribution import Attribution, attribute
from cutaway.inspect.inputs import has_pattern
from cutaway.inspect.instrumented import EngineChoice, Instrumented
from cutaway.inspect.logit_lens import Lens, lens
from cutaway.inspect.subject import Subject, Vocabulary

if TYPE_CHECKING:
    from cutaway.model.config import Decoder


class Guess(NamedTuple):
    """A token and its probability of coming next."""

    id: int
    token: str
    probability: float


class TraceValues(Mapping[str, np.ndarray]):
    """What a model did with a text: ``ids``, ``tokens`` as text, ``logits`` [t v], and activations by name.

    ``trace["blocks.3.attention.q"]`` is an array [h t k]. Models may pad their table: ``vocabulary`` (v)
    counts the ids that the tokenizer has, and no other is shown or ranked, though ``trace["logits"]`` holds
    them. ``engine`` says which engine computed the activations, and why. Made by ``Trace.of`` and
    ``lm.trace``; a pickled one has no model.
    """

    def __init__(
        self,
        subject: Subject | None,
        ids: Sequence[int],
        values: Mapping[str, np.ndarray],
        answered: Instrumented | None = None,
        engine: EngineChoice | None = None,
    ) -> None:
        self.subject = subject
        self.ids = tuple(ids)
        self.values_by_name = dict(values)
        self._answered: Instrumented | None = None
        if subject is not None:
            self._answered = answered or subject.engine
            self.engine = engine or EngineChoice(self._answered.name, subject.reason)
            self.tokens = [self.token(id) for id in ids]
            self.vocabulary = min(subject.config.vocab, len(subject.tokenizer))
            self.layers = len(subject.config.blocks)

    @property
    def config(self) -> Decoder:
        """The config of the model that was traced."""
        return self._subject.config

    @property
    def instrumented(self) -> Instrumented:
        """The engine that computed the activations, for the model's weights; UserError without a model."""
        if self._answered is None:
            subject = self._subject
            self._answered = subject.pytorch if self.engine.name == "pytorch" else subject.engine
        return self._answered

    @property
    def tokenizer(self) -> Vocabulary:
        """The model's tokenizer."""
        return self._subject.tokenizer

    @property
    def _subject(self) -> Subject:
        if self.subject is None:
            raise UserError("this trace was loaded without its model: Trace.load(path, lm) joins them")
        return self.subject

    @property
    def logits(self) -> np.ndarray:
        """float32 [t v]: the logits of what comes after each token."""
        return self["logits"][:, : self.vocabulary]

    def __getitem__(self, name: str) -> np.ndarray:
        own = self.own_name(name)
        if own is None:
            raise UserError(
                f"this trace did not keep {name!r}: `list(trace)` shows what it kept, names= adds"
            )
        return self.values_by_name[own]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.own_name(name) is not None

    def __repr__(self) -> str:
        following = f", next {self.top(1)[0].token!r}" if "logits" in self and self.subject else ""
        return f"Trace({len(self.ids)} tokens, {len(self)} values{following})"

    def token(self, id: int) -> str:
        """A token as text; bytes that are no whole character as \\x escapes."""
        return self.tokenizer.token_bytes(id).decode(errors="backslashreplace")

    def top(self, count: int = 10, position: int = -1) -> list[Guess]:
        """The likeliest next tokens after a position, best first."""
        self._check_position(position)
        if count < 1:
            raise UserError(f"count is {count}: ask for 1 token or more")
        chances = softmax(self.logits[position])
        return [Guess(id, self.token(id), float(chances[id])) for id in largest(chances, count).tolist()]

    def attention(self, layer: int) -> np.ndarray:
        """A layer's attention weights [h t s]: a row a query, a column a key."""
        layer = self._layer(layer)
        if not has_pattern(self.config.blocks[layer].attention):
            raise UserError(f"layer {layer} is recurrent: it has no attention weights")
        return self[f"blocks.{layer}.attention.pattern"]

    def residuals(self) -> dict[str, np.ndarray]:
        """The residual stream [t d] after the embedding and after every block."""
        return {name: self[name] for name in ("embed", *(f"blocks.{i}.out" for i in range(self.layers)))}

    def lens(self, by: Any = "logit") -> Lens:
        """The next token after the embedding and after every block, at every position, by the logit lens.

        ``by``: "jacobian" (the model's own Jacobian lens), the file of a lens, or a lens, which shows the
        layers that it is of.
        """
        found = lenses.find(by, self._subject)
        residuals = self.residuals()
        read = residuals if found is None else found.translated(residuals)
        return lens(self.instrumented, read, self.vocabulary)

    def residual_norms(self) -> dict[str, np.ndarray]:
        """The norm of each token's residual stream [t] after the embedding and each half of each block."""
        halves = (f"blocks.{i}.{half}" for i in range(self.layers) for half in ("middle", "out"))
        return {name: np.linalg.norm(self[name], axis=-1) for name in ("embed", *halves)}

    def attribution(
        self, token: int | None = None, position: int = -1, against: int | None = None
    ) -> Attribution:
        """Direct logit attribution of ``token`` (None: the likeliest): all parts sum to its logit.

        With ``against`` the parts sum to the logit difference of the two tokens.
        """
        self._check_position(position)
        token = int(self.logits[position].argmax()) if token is None else token
        return attribute(self.instrumented, _Kept(self), token, position, against)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"subject": None, "_answered": None}

    def check_finite(self) -> None:
        """Raises OperationalError if an activation is NaN or infinite, naming the first."""
        wrong = next((name for name, value in self.items() if not np.isfinite(value).all()), None)
        if wrong is not None:
            raise OperationalError(f"{wrong} holds NaN or infinity: damaged weights, or too large an edit")

    def own_name(self, name: str) -> str | None:
        """The name under which an activation is kept, None if it is not."""
        if name in self.values_by_name:
            return name
        return naming.aliases(self.values_by_name, self.layers).get(name) if "hook_" in name else None

    def _layer(self, layer: int) -> int:
        if not -self.layers <= layer < self.layers:
            raise UserError(f"there is no layer {layer}: this model's layers are 0 to {self.layers - 1}")
        return layer % self.layers

    def _check_position(self, position: int) -> None:
        if not -len(self.ids) <= position < len(self.ids):
            raise UserError(f"there is no position {position}: the text has {len(self.ids)} tokens, from 0")


class _Kept(Mapping[str, np.ndarray]):
    """A trace's activations for attribution; one that was not kept is UserError."""

    def __init__(self, trace: TraceValues) -> None:
        self.trace = trace

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.trace:
            raise UserError(
                f"attribution needs {name!r}, which this trace did not keep: trace without names, or with "
                "names=inputs.attribution_names(lm.config)"
            )
        return self.trace[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.trace)

    def __len__(self) -> int:
        return len(self.trace)
