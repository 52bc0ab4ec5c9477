"""One forward pass over a text, with every named activation kept, and the questions people ask of it.

    trace = lm.trace("The capital of France is")
    trace.top(3)                    # the next token
    trace.attention(20)             # [h t s] attention weights; .show() draws them
    trace.lens()                    # the logit lens: the next token after every block
    trace.attribution()             # which heads and MLPs made the answer
    trace["blocks.3.mlp.hidden"]    # any activation, by its name

Nothing is computed twice: the model runs once, and questions are answered from what was kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from cutaway.errors import OperationalError, UserError
from cutaway.hooks import TAPS, Listener, tracing
from cutaway.inspect import edits
from cutaway.inspect.attribution import Attribution, attribute
from cutaway.inspect.inputs import has_pattern, row
from cutaway.inspect.lens import Lens, lens
from cutaway.inspect.show import Pattern, View
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float

MOST_BYTES = 2 << 30  # of attention maps: they grow with the square of the text


@runtime_checkable
class Vocabulary(Protocol):
    """What is needed of a tokenizer."""

    def __len__(self) -> int: ...

    def token_bytes(self, id: int, /) -> bytes: ...

    def is_special(self, id: int, /) -> bool: ...


class Guess(NamedTuple):
    """A token and its probability of coming next."""

    id: int
    token: str
    probability: float


class Trace(Mapping[str, Tensor]):
    """What a model did with a text: ``ids``, ``tokens`` as text, ``logits`` [t v], and activations by name.

    An activation has no batch axis: ``trace["blocks.3.attention.q"]`` is [h t k]. Models may pad their table:
    ``vocabulary`` (v) counts the ids that the tokenizer has, and no other is shown or ranked, though
    ``trace["logits"]`` holds them. Made by ``Trace.of`` and ``lm.trace``.
    """

    def __init__(
        self, model: Decoder, tokenizer: Vocabulary, ids: Sequence[int], values: Mapping[str, Tensor]
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.ids = tuple(ids)
        self.tokens = [self.token(id) for id in ids]
        self.values_by_name = dict(values)
        self.vocabulary = min(model.config.vocab, len(tokenizer))
        self.logits: Float[Tensor, "t v"] = values["logits"][0][:, : self.vocabulary]

    @classmethod
    def of(
        cls,
        model: Decoder,
        tokenizer: Vocabulary,
        ids: Sequence[int],
        names: Sequence[str] | None = None,
        edit: edits.Given | None = None,
    ) -> Trace:
        """Runs the model over ids once and keeps the activations of ``names`` and the logits.

        ``names`` may have wildcards; None keeps all documented names.

        ``edit``: edits (``inspect/edits.py``) or listeners by name. Raises UserError for ids that the model
        does not have, a name that never appears, edits that do not fit, and attention maps that would not.
        """
        names = tuple(names or (TAPS,))
        _check_ids(model, tokenizer, ids)
        _check_size(model, len(ids), names)
        listeners: Mapping[str, Listener] = edits.prepare(model, edit, len(ids)).at() if edit else {}
        with torch.no_grad(), tracing(model, *dict.fromkeys((*names, "logits")), edit=listeners) as seen:
            model(*row(model, ids))
        return cls(model, tokenizer, ids, seen)

    def __getitem__(self, name: str) -> Tensor:
        return self._kept(name)[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __contains__(self, name: object) -> bool:
        return name in self.values_by_name

    def __repr__(self) -> str:
        return f"Trace({len(self.ids)} tokens, {len(self)} values, next {self.top(1)[0].token!r})"

    def token(self, id: int) -> str:
        """A token as text; bytes that are no whole character as \\x escapes."""
        return self.tokenizer.token_bytes(id).decode(errors="backslashreplace")

    def top(self, count: int = 10, position: int = -1) -> list[Guess]:
        """The likeliest next tokens after a position, best first."""
        self._check_position(position)
        best = self.logits[position].float().softmax(-1).topk(min(count, self.vocabulary))
        return [
            Guess(id, self.token(id), probability)
            for id, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def attention(self, layer: int) -> Float[Tensor, "h t s"]:
        """A layer's attention weights: a row a query, a column a key. ``.show()`` draws them."""
        layer = self._layer(layer)
        if not has_pattern(self.model.config.blocks[layer].attention):
            raise UserError(f"layer {layer} is recurrent: it has no attention weights")
        return Pattern.of(self[f"blocks.{layer}.attention.pattern"], self, layer)

    def show(self, *views: str) -> View:
        """The interactive page, or some of its views, for a notebook to draw or ``save`` to write."""
        return View(self, views)

    def residuals(self) -> dict[str, Float[Tensor, "t d"]]:
        """The residual stream after the embedding and after every block."""
        return {name: self[name] for name in ("embed", *(f"blocks.{i}.out" for i in range(self.layers)))}

    @property
    def layers(self) -> int:
        """The number of blocks."""
        return len(self.model.blocks)

    def lens(self) -> Lens:
        """The logit lens: the next token after the embedding and after every block, at every position."""
        return lens(self.model, self.residuals(), self.vocabulary)

    def residual_norms(self) -> dict[str, Float[Tensor, " t"]]:
        """The norm of each token's residual stream after the embedding and after each half of each block."""
        halves = (f"blocks.{i}.{half}" for i in range(self.layers) for half in ("middle", "out"))
        return {name: self[name].float().norm(dim=-1) for name in ("embed", *halves)}

    def attribution(
        self, token: int | None = None, position: int = -1, against: int | None = None
    ) -> Attribution:
        """Direct logit attribution of ``token`` (None: the likeliest): all parts sum to its logit.

        With ``against`` the parts sum to the logit difference of the two tokens.
        """
        self._check_position(position)
        token = int(self.logits[position].argmax()) if token is None else token
        return attribute(self.model, _Kept(self), token, position, against)

    def check_finite(self) -> None:
        """Raises OperationalError if an activation is NaN or infinite, naming the first."""
        wrong = next(
            (name for name, value in self.values_by_name.items() if not value.isfinite().all()), None
        )
        if wrong is not None:
            raise OperationalError(f"{wrong} holds NaN or infinity: damaged weights, or too large an edit")

    def _kept(self, name: str) -> Tensor:
        if name not in self.values_by_name:
            raise UserError(
                f"this trace did not keep {name!r}: `list(trace)` shows what it kept, names= adds"
            )
        return self.values_by_name[name]

    def _layer(self, layer: int) -> int:
        if not -self.layers <= layer < self.layers:
            raise UserError(f"there is no layer {layer}: this model's layers are 0 to {self.layers - 1}")
        return layer % self.layers

    def _check_position(self, position: int) -> None:
        if not -len(self.ids) <= position < len(self.ids):
            raise UserError(f"there is no position {position}: the text has {len(self.ids)} tokens, from 0")


class _Kept(Mapping[str, Tensor]):
    """A trace's activations with their batch axis; one that was not kept is UserError."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def __getitem__(self, name: str) -> Tensor:
        return self.trace._kept(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.trace)

    def __len__(self) -> int:
        return len(self.trace)


def _check_ids(model: Decoder, tokenizer: Vocabulary, ids: Sequence[int]) -> None:
    if not ids:
        raise UserError("the text has no tokens: give at least one")
    if len(ids) > model.config.context:
        raise UserError(f"the text has {len(ids):,} tokens, the context holds {model.config.context:,}")
    count = min(model.config.vocab, len(tokenizer))
    wrong = [id for id in ids if not 0 <= id < count]
    if wrong:
        raise UserError(f"token {wrong[0]} is not in this model's vocabulary of {count:,}")


def _check_size(model: Decoder, length: int, names: Sequence[str]) -> None:
    """Refuses a text whose kept attention maps would take more than MOST_BYTES."""
    cells = sum(
        block.attention.heads
        for i, block in enumerate(model.config.blocks)
        if has_pattern(block.attention)
        for kind in ("scores", "pattern")
        if any(name == TAPS or fnmatchcase(f"blocks.{i}.attention.{kind}", name) for name in names)
    )
    width = 4 * length * length
    if cells and cells * width > MOST_BYTES:
        most = int((MOST_BYTES / (4 * cells)) ** 0.5)
        raise UserError(
            f"the text has {length:,} tokens, and the attention maps asked for fit up to {most:,}: "
            "shorten it, or ask for fewer names"
        )
