"""A model under study, with the edits that act on its every pass: what traces and studies run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cutaway.errors import UserError
from cutaway.extras import need
from cutaway.inspect import edits
from cutaway.inspect.instrumented import EngineChoice, Instrumented, Values

if TYPE_CHECKING:
    from cutaway.inspect.instrumented_pytorch import InstrumentedPyTorch
    from cutaway.model.config import Decoder

ASKED = "it was asked for"
Metric = Callable[[Any], Any]  # of a text's logits [t v], a number


@runtime_checkable
class Vocabulary(Protocol):
    """The protocol of a tokenizer that studies use."""

    def __len__(self) -> int: ...

    def token_bytes(self, id: int, /) -> bytes: ...

    def is_special(self, id: int, /) -> bool: ...


@dataclass(frozen=True)
class Subject:
    """A model under study, with the edits that act on its every pass: what traces and studies run.

    ``lm.subject`` is a loaded model's. ``engine`` answers what it shows and edits, because of ``reason``;
    ``other`` makes the PyTorch model, which answers the rest. ``encode`` makes ids of a prompt.
    """

    engine: Instrumented
    tokenizer: Vocabulary
    edit: edits.Given = ()
    encode: Callable[[Any], list[int]] = list
    reason: str = ASKED
    other: Callable[[], InstrumentedPyTorch] | None = None

    @classmethod
    def of(cls, model: Any, tokenizer: Vocabulary, edit: edits.Given = ()) -> Subject:
        """A PyTorch model, or an engine, as it is."""
        return cls(instrumented(model), tokenizer, edit)

    @property
    def config(self) -> Decoder:
        """The model's config."""
        return self.engine.config

    @property
    def pytorch(self) -> InstrumentedPyTorch:
        """The PyTorch model as an engine, for gradients; built when it is first asked for."""
        if self.other is not None:
            return self.other()
        if self.engine.name != "pytorch":
            raise UserError("this subject has no PyTorch model, which this needs")
        return self.engine  # pyright: ignore[reportReturnType]

    def edited(self, edit: edits.Given) -> Subject:
        """The model with more edits, which come after those that it has."""
        return replace(self, edit=(self.edit, edit))

    def choose(
        self,
        names: Sequence[str],
        given: Sequence[edits.Given] = (),
        lengths: Sequence[int] = (),
    ) -> tuple[Instrumented, EngineChoice]:
        """The engine that shows these names under these edits, and why it is that one."""
        why = self.engine.unsupported_reason(names, given, lengths)
        if why is None:
            return self.engine, EngineChoice(self.engine.name, self.reason)
        if self.other is None:
            raise UserError(f"{why[:1].upper()}{why[1:]}, and there is no PyTorch model to ask")
        need(f"This, because {why},", "torch")
        engine = self.other()
        return engine, EngineChoice(engine.name, why)

    def values(
        self,
        texts: Sequence[Sequence[int]],
        names: Sequence[str],
        edit: edits.Given = (),
        each: Sequence[edits.Given] | None = None,
        logits_at: Sequence[int] | None = None,
    ) -> list[Values]:
        """The activations of each text's ids by name, under ``edit`` and then its own of ``each``."""
        engine, given, _ = self.asked(texts, names, edit, each)
        return engine.values(texts, names, given, logits_at=logits_at)

    def asked(
        self,
        texts: Sequence[Sequence[int]],
        names: Sequence[str],
        edit: edits.Given,
        each: Sequence[edits.Given] | None = None,
    ) -> tuple[Instrumented, list[edits.Given], EngineChoice]:
        """The engine that answers, and each text's edits."""
        for ids in texts:
            _check_ids(self.config, self.tokenizer, ids)
        common = (self.edit, edit)
        given: list[edits.Given] = [common if each is None else (common, each[i]) for i in range(len(texts))]
        engine, choice = self.choose(names, given, list(map(len, texts)))
        return engine, given, choice


def subject_of(lm: Any) -> Subject:
    """The subject of a loaded model, or the given subject itself."""
    return lm if isinstance(lm, Subject) else lm.subject


def instrumented(model: Any) -> Instrumented:
    """An engine of a PyTorch model; one that already is an engine."""
    if isinstance(model, Instrumented):
        return model
    from cutaway.inspect.instrumented_pytorch import InstrumentedPyTorch

    return InstrumentedPyTorch(model)


def _check_ids(config: Decoder, tokenizer: Vocabulary, ids: Sequence[int]) -> None:
    if not ids:
        raise UserError("the text has no tokens: give at least one")
    if len(ids) > config.context:
        raise UserError(f"the text has {len(ids):,} tokens, the context holds {config.context:,}")
    count = min(config.vocab, len(tokenizer))
    wrong = [id for id in ids if not 0 <= id < count]
    if wrong:
        raise UserError(f"token {wrong[0]} is not in this model's vocabulary of {count:,}")
