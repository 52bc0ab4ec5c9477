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

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from cutaway.errors import UserError
from cutaway.hooks import TAPS
from cutaway.inspect import edits, saved_trace
from cutaway.inspect.inputs import has_pattern
from cutaway.inspect.instrumented import EngineChoice
from cutaway.inspect.names import check_list
from cutaway.inspect.show import Pattern, View
from cutaway.inspect.subject import Metric, Subject, Vocabulary, subject_of
from cutaway.inspect.trace_values import TraceValues
from cutaway.store import files

if TYPE_CHECKING:
    from cutaway.model.config import Decoder

MOST_BYTES = 2 << 30  # of attention maps: they grow with the square of the text


class Trace(TraceValues):
    """What a model did with a text: its activations by name (``TraceValues``), drawn, saved and derived."""

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
        return trace_texts(Subject.of(model, tokenizer), [ids], kept, edit or ())[0]

    def attention(self, layer: int) -> Pattern:
        """A layer's attention weights [h t s]: a row a query, a column a key. ``.show()`` draws them."""
        return Pattern.of(super().attention(layer), self, self._layer(layer))

    def show(self, *views: str) -> View:
        """The interactive page, or some of its views, for a notebook to draw or ``save`` to write."""
        return View(self, views)

    def grads(self, metric: Metric, names: Sequence[str] = ("blocks.*.out",)) -> Trace:
        """The gradient of a metric of the logits [t v], a tensor, by each activation, in its place.

        The PyTorch model runs again. Raises UserError for an activation that the metric does not depend on.
        """
        from cutaway.inspect.gradients import gradients

        found = gradients(self._subject, self.ids, metric, names)
        return Trace(found.subject, found.ids, found, found.instrumented)

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

    def to_pandas(self, name: str) -> Any:
        """An activation as a pandas table: a row a token (and head), a column an index of the last axis."""
        return saved_trace.to_pandas(self, name)

    def to_xarray(self) -> Any:
        """The activations as an xarray dataset, whose axes are named and whose tokens have their text."""
        return saved_trace.to_xarray(self)


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


def trace(subject: Subject, text: Any, names: Sequence[str] | None, edit: edits.Given) -> Trace | Traces:
    """What ``lm.trace`` returns: the trace of a text, ids or messages, or those of a list of them."""
    check_list(() if names is None else names)
    several = _is_text(text) and not isinstance(text, str) and len(text) > 0 and _is_text(text[0])
    if several:
        return trace_texts(subject, [subject.encode(one) for one in text], names, edit)
    kept = (*(names or (TAPS,)), "logits")
    return trace_texts(subject, [subject.encode(text)], kept, edit)[0]


def _is_text(one: Any) -> bool:
    """Whether the first of a list is a text, so that the list is a batch: no id and no message."""
    return isinstance(one, str) or (hasattr(one, "__len__") and not isinstance(one, Mapping))


def trace_texts(
    subject: Subject,
    rows: Sequence[Sequence[int]],
    kept: Sequence[str] | None = None,
    edit: edits.Given = (),
    progress: files.Progress = files.silent,
) -> Traces:
    """The traces of texts' ids, of which ``names`` are kept; ``progress`` counts them."""
    if not len(rows):
        raise UserError("there are no texts: give one or more")
    engine, given, choice = subject.asked(rows, kept or (TAPS,), edit)
    asked = engine.resolve(kept or (TAPS,))
    _check_size(subject.config, max(map(len, rows)), len(rows), asked)
    edited = subject.edited(edit)
    found = engine.values(rows, asked, given, progress=progress)
    return Traces(
        [Trace(edited, ids, values, engine, choice) for ids, values in zip(rows, found, strict=True)]
    )


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
