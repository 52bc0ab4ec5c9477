"""Forward passes over texts, with named activations kept, and the questions people ask of them.

    trace = lm.trace("The capital of France is")
    trace.top(3)                    # the next token
    trace.attention(20)             # [h t s] attention weights; .show() draws them
    trace.lens()                    # the logit lens: the next token after every block
    trace.attribution()             # which heads and MLPs made the answer
    trace["blocks.3.mlp.hidden"]    # any activation, by its name

    traces = lm.trace(texts, names=["blocks.*.out"])         # a batch: padded values, or a Trace a text
    traces["blocks.3.out"], traces.mask                      # [b t d], [b t]
    traces.at("blocks.3.out", -1)                            # [b d]: at each text's last token

Nothing is computed twice: the model runs once, and questions are answered from what was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload, runtime_checkable

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.extras import need
from cutaway.hooks import TAPS
from cutaway.inspect import edits, saved_trace
from cutaway.inspect import names as naming
from cutaway.inspect.arrays import largest, softmax
from cutaway.inspect.attribution import Attribution, attribute
from cutaway.inspect.inputs import has_pattern
from cutaway.inspect.instrumented import EngineChoice, Instrumented, Values, instrumented
from cutaway.inspect.lens import Lens, lens
from cutaway.inspect.show import Pattern, View
from cutaway.store import files

if TYPE_CHECKING:
    from cutaway.inspect.instrumented_pytorch import InstrumentedPyTorch
    from cutaway.model.config import Decoder

MOST_BYTES = 2 << 30  # of attention maps: they grow with the square of the text
ASKED = "it was asked for"
Metric = Callable[[Any], Any]  # of a text's logits [t v], a number


@runtime_checkable
class Vocabulary(Protocol):
    """What is needed of a tokenizer."""

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
        engine, given, _ = self._asked(texts, names, edit, each)
        return engine.values(texts, names, given, logits_at=logits_at)

    def _asked(
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

    def trace(
        self,
        rows: Sequence[Sequence[int]],
        kept: Sequence[str] | None = None,
        edit: edits.Given = (),
        progress: files.Progress = files.silent,
    ) -> Traces:
        """The traces of texts' ids; ``progress`` counts them."""
        engine, given, choice = self._asked(rows, kept or (TAPS,), edit)
        asked = engine.resolve(kept or (TAPS,))
        _check_size(self.config, max(map(len, rows)), len(rows), asked)
        subject = self.edited(edit)
        found = engine.values(rows, asked, given, progress=progress)
        return Traces(
            [Trace(subject, ids, values, engine, choice) for ids, values in zip(rows, found, strict=True)]
        )


class Guess(NamedTuple):
    """A token and its probability of coming next."""

    id: int
    token: str
    probability: float


class Trace(Mapping[str, np.ndarray]):
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

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Vocabulary,
        ids: Sequence[int],
        names: Sequence[str] | None = None,
        edit: edits.Given | None = None,
    ) -> Trace:
        """Runs a PyTorch model, or an engine, over ids once; keeps the activations ``names`` and the logits.

        ``names`` may have wildcards and may be TransformerLens's; None keeps all documented names.

        ``edit``: edits (``inspect/edits.py``) or listeners by name. Raises UserError for ids that the model
        does not have, a name that never appears, edits that do not fit, and attention maps that would not.
        """
        kept = (*(names or (TAPS,)), "logits")
        return Subject.of(model, tokenizer).trace([ids], kept, edit or ())[0]

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
        chances = softmax(self.logits[position])
        return [Guess(id, self.token(id), float(chances[id])) for id in largest(chances, count).tolist()]

    def attention(self, layer: int) -> Pattern:
        """A layer's attention weights [h t s]: a row a query, a column a key. ``.show()`` draws them."""
        layer = self._layer(layer)
        if not has_pattern(self.config.blocks[layer].attention):
            raise UserError(f"layer {layer} is recurrent: it has no attention weights")
        return Pattern.of(self[f"blocks.{layer}.attention.pattern"], self, layer)

    def show(self, *views: str) -> View:
        """The interactive page, or some of its views, for a notebook to draw or ``save`` to write."""
        return View(self, views)

    def residuals(self) -> dict[str, np.ndarray]:
        """The residual stream [t d] after the embedding and after every block."""
        return {name: self[name] for name in ("embed", *(f"blocks.{i}.out" for i in range(self.layers)))}

    def lens(self) -> Lens:
        """The logit lens: the next token after the embedding and after every block, at every position."""
        return lens(self.instrumented, self.residuals(), self.vocabulary)

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

    def grads(self, metric: Metric, names: Sequence[str] = ("blocks.*.out",)) -> Trace:
        """The gradient of a metric of the logits [t v], a tensor, by each activation, in its place.

        The PyTorch model runs again. Raises UserError for an activation that the metric does not depend on.
        """
        from cutaway.inspect.gradients import gradients

        return gradients(self._subject, self.ids, metric, names)

    def save(self, path: str | Path) -> Path:
        """Writes ids, tokens and activations as one safetensors file, and returns its path."""
        return saved_trace.save(self, path)

    @classmethod
    def load(cls, path: str | Path, lm: Any = None) -> Trace:
        """Reads what ``save`` wrote; with the model that was traced it answers what needs the model too."""
        facts, values = saved_trace.load(path)
        subject = None if lm is None else subject_of(lm)
        trace = cls(None, facts.ids, values)
        trace.__dict__ |= {"tokens": list(facts.tokens), "vocabulary": facts.vocabulary, "subject": subject}
        trace.__dict__ |= {"layers": facts.layers, "engine": EngineChoice(*facts.engine or ("", ""))}
        return trace

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"subject": None, "_answered": None}

    def to_pandas(self, name: str) -> Any:
        """An activation as a pandas table: a row a token (and head), a column an index of the last axis."""
        return saved_trace.to_pandas(self, name)

    def to_xarray(self) -> Any:
        """The activations as an xarray dataset, whose axes are named and whose tokens have their text."""
        return saved_trace.to_xarray(self)

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


class Traces(Sequence[Trace]):
    """The traces of several texts: a ``Trace`` a text, or an activation of all, padded with zeros."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self._traces = list(traces)

    @property
    def ids(self) -> list[tuple[int, ...]]:
        """Each text's ids."""
        return [trace.ids for trace in self._traces]

    @property
    def mask(self) -> np.ndarray:
        """bool [b t]: which tokens are the text's own, and no padding."""
        lengths = np.array([len(ids) for ids in self.ids])
        return np.arange(lengths.max())[None] < lengths[:, None]

    def __len__(self) -> int:
        return len(self._traces)

    @overload
    def __getitem__(self, at: int, /) -> Trace: ...

    @overload
    def __getitem__(self, at: slice, /) -> Traces: ...

    @overload
    def __getitem__(self, at: str, /) -> np.ndarray: ...

    def __getitem__(self, at: int | slice | str, /) -> Any:
        if isinstance(at, int):
            return self._traces[at]
        if isinstance(at, slice):
            return Traces(self._traces[at])
        values = [trace[at] for trace in self._traces]
        longest = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
        whole = np.zeros((len(values), *longest), values[0].dtype)
        for row, value in zip(whole, values, strict=True):
            row[tuple(map(slice, value.shape))] = value
        return whole

    def at(self, name: str, position: int = -1) -> np.ndarray:
        """An activation [b ...] at a position of every text; negative ones count from each text's own end."""
        for trace in self._traces:
            trace._check_position(position)
        return np.stack([trace[name][..., position, :] for trace in self._traces])

    def __repr__(self) -> str:
        return f"Traces({len(self)} texts of up to {self.mask.shape[1]} tokens, {len(self[0])} values)"


class _Kept(Mapping[str, np.ndarray]):
    """A trace's activations for attribution; one that was not kept is UserError."""

    def __init__(self, trace: Trace) -> None:
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


def _check_ids(config: Decoder, tokenizer: Vocabulary, ids: Sequence[int]) -> None:
    if not ids:
        raise UserError("the text has no tokens: give at least one")
    if len(ids) > config.context:
        raise UserError(f"the text has {len(ids):,} tokens, the context holds {config.context:,}")
    count = min(config.vocab, len(tokenizer))
    wrong = [id for id in ids if not 0 <= id < count]
    if wrong:
        raise UserError(f"token {wrong[0]} is not in this model's vocabulary of {count:,}")


def subject_of(lm: Any) -> Subject:
    """What studies run of a loaded model, or of what already is a subject."""
    return lm if isinstance(lm, Subject) else lm.subject


def _check_size(config: Decoder, length: int, texts: int, names: Sequence[str]) -> None:
    """Refuses texts whose kept attention maps would take more than MOST_BYTES."""
    cells = sum(
        block.attention.heads
        for i, block in enumerate(config.blocks)
        if has_pattern(block.attention)
        for kind in ("scores", "pattern")
        if any(name == TAPS or fnmatchcase(f"blocks.{i}.attention.{kind}", name) for name in names)
    )
    width = 4 * texts * length * length
    if cells and cells * width > MOST_BYTES:
        most = int((MOST_BYTES / (4 * texts * cells)) ** 0.5)
        raise UserError(
            f"the text has {length:,} tokens, and the attention maps asked for fit up to {most:,}: "
            "shorten it, or ask for fewer names"
        )
