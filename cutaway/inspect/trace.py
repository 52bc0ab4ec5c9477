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

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload, runtime_checkable

import torch
from torch import Tensor

from cutaway.errors import OperationalError, UserError, quoted
from cutaway.hooks import TAPS, Listener, stopping, tracing
from cutaway.inspect import edits, pytorch_edits
from cutaway.inspect import names as naming
from cutaway.inspect.attribution import Attribution, attribute
from cutaway.inspect.inputs import device, has_pattern
from cutaway.inspect.lens import Lens, lens
from cutaway.inspect.show import Pattern, View
from cutaway.model.config import from_dict
from cutaway.model.decoder import Decoder
from cutaway.model.pooling import padded
from cutaway.quantization import formats
from cutaway.shapes import Bool, Float
from cutaway.store import files
from cutaway.store.reading import parsed_text
from cutaway.weights import safetensors

MOST_BYTES = 2 << 30  # of attention maps: they grow with the square of the text
BATCH = 32  # texts read together
SQUARE = ("scores", "pattern", "index", "chosen")  # activations with keys as their last axis
AXES = {  # of an activation by the last part of its name, without the batch
    **dict.fromkeys(("q", "k", "v", "z", "q_unrotated", "k_unrotated"), ("head", "token", "size")),
    **dict.fromkeys(("scores", "pattern"), ("head", "token", "key")),
    "hidden": ("token", "neuron"),
    "logits": ("token", "vocabulary"),
}
STAGE = re.compile(r"blocks\.\d+\.(middle|out)")  # of the residual stream
Metric = Callable[[Tensor], Tensor]  # of a text's logits [t v], a number


@runtime_checkable
class Vocabulary(Protocol):
    """What is needed of a tokenizer."""

    def __len__(self) -> int: ...

    def token_bytes(self, id: int, /) -> bytes: ...

    def is_special(self, id: int, /) -> bool: ...


@dataclass(frozen=True)
class Subject:
    """A model under study, with the edits that act on its every pass: what traces and studies run.

    ``lm.subject`` is a loaded model's. ``rounding`` are listeners after all edits (an engine's rounding);
    ``encode`` makes ids of a prompt.
    """

    model: Decoder
    tokenizer: Vocabulary
    edit: edits.Given = ()
    rounding: Mapping[str, Listener] = field(default_factory=dict)
    encode: Callable[[Any], list[int]] = list

    def edited(self, edit: edits.Given) -> Subject:
        """The model with more edits, which come after those that it has."""
        return replace(self, edit=(self.edit, edit))

    @contextmanager
    def tracing(
        self, lengths: Sequence[int], kept: Sequence[str], edit: edits.Given = ()
    ) -> Iterator[dict[str, Tensor]]:
        """Listens to passes over texts of these lengths; edits act, and no layer after ``kept`` runs."""
        model = self.model
        own = pytorch_edits.prepare(model, (self.edit, edit), lengths, self.rounding).at()
        whole = not kept or {TAPS, "logits", "*"} & set(kept)
        last = None if whole else naming.last_layer(model, kept)
        acting = [
            {name: change for name, change in some.items() if last is None or _layer(name) <= last}
            for some in (own, self.rounding)
        ]
        with ExitStack() as stack:
            for listeners in filter(None, acting):
                stack.enter_context(tracing(model, edit=listeners))
            seen = stack.enter_context(tracing(model, *kept)) if kept else {}
            if last is not None:
                stack.enter_context(stopping(model.blocks[last]))
            yield seen

    def run(
        self, rows: Sequence[Sequence[int]], kept: Sequence[str], edit: edits.Given = (), grad: bool = False
    ) -> dict[str, Tensor]:
        """One pass over texts, padded at their ends: the activations ``kept`` [b ...]."""
        ids, pos, _ = padded(rows)
        here = device(self.model)
        lengths = list(map(len, rows))
        with torch.set_grad_enabled(grad), self.tracing(lengths, kept, edit) as seen:
            self.model(ids.to(here), pos.to(here))
        return seen

    def trace(
        self,
        rows: Sequence[Sequence[int]],
        kept: Sequence[str] | None = None,
        edit: edits.Given = (),
        progress: files.Progress = files.silent,
    ) -> Traces:
        """Reads texts in batches of like lengths; ``progress`` counts them."""
        asked = naming.resolve(self.model, kept or (TAPS,))
        for ids in rows:
            _check_ids(self.model, self.tokenizer, ids)
        if len(rows) > 1 and any(".experts." in name for name in asked):
            raise UserError("experts read the tokens of all texts as one list: trace the texts one by one")
        found: list[Any] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(rows), BATCH):
            chosen = order[start : start + BATCH]
            _check_size(self.model, len(rows[chosen[-1]]), len(chosen), asked)
            seen = self.run([rows[i] for i in chosen], asked, edit)
            longest = len(rows[chosen[-1]])
            for at, i in enumerate(chosen):
                values = {name: _own(name, x, at, len(rows[i]), longest) for name, x in seen.items()}
                found[i] = Trace(self.edited(edit), rows[i], values)
            progress("tracing", start + len(chosen), len(rows))
        return Traces(found)


def _layer(name: str) -> float:
    """The layer of an activation; after all layers, infinity."""
    first, _, rest = name.partition(".")
    if first == "blocks":
        return int(rest.partition(".")[0])
    return -1 if first in ("embedding", "position", "embedding_norm", "embed") else float("inf")


def _own(name: str, value: Tensor, row: int, length: int, longest: int) -> Tensor:
    """A text's part [1 ...] of a batch's activation, without padding."""
    if value.ndim < 3 or name.endswith(".S"):
        return value
    part = value[row : row + 1]
    if length < longest:
        part = part[..., :length, :]
        part = part[..., :length] if name.rpartition(".")[2] in SQUARE else part
    return part if value.shape[0] == 1 else part.clone()


class Guess(NamedTuple):
    """A token and its probability of coming next."""

    id: int
    token: str
    probability: float


DTYPES = {
    **{name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")},
    **{name: getattr(torch, name) for name in ("int64", "int32", "bool")},
}


@dataclass(frozen=True)
class Facts:
    """What a saved trace's file says beside its activations; ``types`` are those of the activations."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    vocabulary: int
    layers: int
    types: dict


class Trace(Mapping[str, Tensor]):
    """What a model did with a text: ``ids``, ``tokens`` as text, ``logits`` [t v], and activations by name.

    An activation has no batch axis: ``trace["blocks.3.attention.q"]`` is [h t k]. Models may pad their table:
    ``vocabulary`` (v) counts the ids that the tokenizer has, and no other is shown or ranked, though
    ``trace["logits"]`` holds them. Made by ``Trace.of`` and ``lm.trace``; a pickled one has no model.
    """

    def __init__(self, subject: Subject | None, ids: Sequence[int], values: Mapping[str, Tensor]) -> None:
        self.subject = subject
        self.ids = tuple(ids)
        self.values_by_name = dict(values)
        if subject is not None:
            self.tokens = [self.token(id) for id in ids]
            self.vocabulary = min(subject.model.config.vocab, len(subject.tokenizer))
            self.layers = len(subject.model.blocks)

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

        ``names`` may have wildcards and may be TransformerLens's; None keeps all documented names.

        ``edit``: edits (``inspect/edits.py``) or listeners by name. Raises UserError for ids that the model
        does not have, a name that never appears, edits that do not fit, and attention maps that would not.
        """
        kept = (*(names or (TAPS,)), "logits")
        return Subject(model, tokenizer).trace([ids], kept, edit or ())[0]

    @property
    def model(self) -> Decoder:
        """The model that was traced; UserError for a trace that was loaded without one."""
        return self._subject.model

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
    def logits(self) -> Float[Tensor, "t v"]:
        """The logits of what comes after each token."""
        return self["logits"][:, : self.vocabulary]

    def __getitem__(self, name: str) -> Tensor:
        return self._kept(name)[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._name(name) is not None

    def __repr__(self) -> str:
        following = f", next {self.top(1)[0].token!r}" if "logits" in self and self.subject else ""
        return f"Trace({len(self.ids)} tokens, {len(self)} values{following})"

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

    def grads(self, metric: Metric, names: Sequence[str] = ("blocks.*.out",)) -> Trace:
        """The gradient of a metric of the logits [t v] by each activation, in its place; the pass runs again.

        Raises UserError for an activation that the metric does not depend on.
        """
        subject = self._subject
        kept = [
            name for one in naming.resolve(subject.model, names) for name in _matching(subject.model, one)
        ]
        start = {"embed": lambda value: value.detach().requires_grad_()}
        seen = subject.run([self.ids], list(dict.fromkeys((*kept, "logits"))), start, grad=True)
        with torch.enable_grad():
            number = metric(seen["logits"][0, :, : self.vocabulary])
            wanted = {name: seen[name] for name in kept if seen[name].requires_grad}
            found = torch.autograd.grad(number, list(wanted.values()), allow_unused=True)
        grads = {name: grad for name, grad in zip(wanted, found, strict=True) if grad is not None}
        for name in kept:
            if name not in grads:
                raise UserError(f"the metric does not depend on {name!r}, so it has no gradient by it")
        return Trace(subject, self.ids, {name: grads[name] for name in kept})

    def save(self, path: str | Path) -> Path:
        """Writes ids, tokens and activations as one safetensors file, and returns its path."""
        types = {name: str(value.dtype).removeprefix("torch.") for name, value in self.values_by_name.items()}
        facts = {name: getattr(self, name) for name in ("ids", "tokens", "vocabulary", "layers")}
        arrays = {name: value.float().cpu().numpy() for name, value in self.values_by_name.items()}
        text = json.dumps(facts | {"types": types})
        files.write(path, safetensors.packed(arrays, {"format": "cutaway-trace", "trace": text}))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, lm: Any = None) -> Trace:
        """Reads what ``save`` wrote; with the model that was traced it answers what needs the model too."""
        written = safetensors.metadata(path)
        if written.get("format") != "cutaway-trace":
            raise UserError(f"{path} is no trace: `trace.save` writes one")
        facts = from_dict(parsed_text(written.get("trace", ""), f"{path}: trace"), Facts, f"{path}: trace")
        values = {}
        for name, packed in safetensors.read(path).items():
            kind = facts.types.get(name)
            if not isinstance(kind, str) or kind not in DTYPES:
                raise UserError(f"{path}: {quoted(name)} is of type {quoted(kind)}, not {', '.join(DTYPES)}")
            values[name] = torch.from_numpy(formats.unpack(packed)).to(DTYPES[kind])
        trace = cls(None, list(facts.ids), values)
        trace.__dict__ |= {
            "tokens": list(facts.tokens),
            "vocabulary": facts.vocabulary,
            "layers": facts.layers,
        }
        for name, value in values.items():
            if name not in ("logits", "embed") and STAGE.fullmatch(name) is None:
                continue
            rows, wide = value.shape[:-1], facts.vocabulary if name == "logits" else 1
            if rows not in ((len(facts.ids),), (1, len(facts.ids))) or not 0 < wide <= value.shape[-1]:
                raise UserError(
                    f"{path}: {quoted(name)} is of {list(value.shape)}, not of {len(facts.ids)} tokens"
                )
        if len(facts.tokens) != len(facts.ids):
            raise UserError(f"{path}: has {len(facts.ids)} ids and {len(facts.tokens)} tokens")
        trace.subject = None if lm is None else subject_of(lm)
        return trace

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"subject": None}

    def to_pandas(self, name: str) -> Any:
        """An activation as a pandas table: a row a token (and head), a column an index of the last axis."""
        pandas = library("pandas")
        value, axes = self[name].float().cpu().numpy(), self._axes(name)
        labels = [
            self.tokens if axis == "token" else range(n) for axis, n in zip(axes, value.shape, strict=True)
        ]
        rows = pandas.MultiIndex.from_product([range(n) for n in value.shape[:-1]], names=axes[:-1])
        table = pandas.DataFrame(value.reshape(-1, value.shape[-1]), rows)
        table.columns.name = axes[-1]
        table.insert(0, "text", [labels[-2][at] for at in rows.get_level_values("token")])
        return table

    def to_xarray(self) -> Any:
        """The activations as an xarray dataset, whose axes are named and whose tokens have their text."""
        xarray, sizes, arrays = library("xarray"), {"token": len(self.ids)}, {}
        for name in self:
            value, axes = self[name].float().cpu().numpy(), []
            for axis, n in zip(self._axes(name), value.shape, strict=True):
                axes.append(axis if sizes.setdefault(axis, n) == n else f"{axis}_{n}")
            arrays[name] = (axes, value)
        return xarray.Dataset(arrays, {"text": ("token", self.tokens), "id": ("token", list(self.ids))})

    def _axes(self, name: str) -> tuple[str, ...]:
        rank = self[name].ndim
        axes = AXES.get((self._name(name) or name).rpartition(".")[2], ("token", "size"))
        return (
            axes if len(axes) == rank else (*(f"axis{i}" for i in range(rank - 2)), "token", "size")[-rank:]
        )

    def check_finite(self) -> None:
        """Raises OperationalError if an activation is NaN or infinite, naming the first."""
        wrong = next(
            (name for name, value in self.values_by_name.items() if not value.isfinite().all()), None
        )
        if wrong is not None:
            raise OperationalError(f"{wrong} holds NaN or infinity: damaged weights, or too large an edit")

    def _kept(self, name: str) -> Tensor:
        own = self._name(name)
        if own is None:
            raise UserError(
                f"this trace did not keep {name!r}: `list(trace)` shows what it kept, names= adds"
            )
        return self.values_by_name[own]

    def _name(self, name: str) -> str | None:
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
    def mask(self) -> Bool[Tensor, "b t"]:
        """Which tokens are the text's own, and no padding."""
        lengths = torch.tensor([len(ids) for ids in self.ids])
        return torch.arange(int(lengths.max()))[None] < lengths[:, None]

    def __len__(self) -> int:
        return len(self._traces)

    @overload
    def __getitem__(self, at: int, /) -> Trace: ...

    @overload
    def __getitem__(self, at: slice, /) -> Traces: ...

    @overload
    def __getitem__(self, at: str, /) -> Tensor: ...

    def __getitem__(self, at: int | slice | str, /) -> Any:
        if isinstance(at, int):
            return self._traces[at]
        if isinstance(at, slice):
            return Traces(self._traces[at])
        values = [trace[at] for trace in self._traces]
        longest = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
        whole = values[0].new_zeros((len(values), *longest))
        for row, value in zip(whole, values, strict=True):
            row[tuple(map(slice, value.shape))] = value
        return whole

    def at(self, name: str, position: int = -1) -> Tensor:
        """An activation [b ...] at a position of every text; negative ones count from each text's own end."""
        for trace in self._traces:
            trace._check_position(position)
        return torch.stack([trace[name][..., position, :] for trace in self._traces])

    def __repr__(self) -> str:
        return f"Traces({len(self)} texts of up to {self.mask.shape[1]} tokens, {len(self[0])} values)"


class Recording:
    """Keeps activations over the passes of a generation: ``trace`` joins them along the text."""

    def __init__(self, subject: Subject, names: Sequence[str]) -> None:
        self.subject = subject
        model = subject.model
        self.names = [n for one in naming.resolve(model, names) for n in _matching(model, one)]
        if late := [name for name in self.names if _layer(name) > len(model.blocks)]:
            raise UserError(
                f"a generation computes {late[0]!r} of its last token alone: trace the whole text"
            )
        self.parts: dict[str, dict[int, Tensor]] = {name: {} for name in self.names}

    def after(self, prepared: pytorch_edits.Prepared) -> Callable[[int], Mapping[str, Listener]]:
        """The listeners of each pass: those of edits, and after them the recording's."""
        for name in self.names:
            prepared.changes.setdefault(name, []).append(self._keep(name))
        return prepared.at

    def _keep(self, name: str) -> pytorch_edits.Change:
        def keep(value: Tensor, start: int) -> None:
            self.parts[name][start] = value

        return keep

    def trace(self, ids: Sequence[int]) -> Trace:
        """What was kept of these ids, as of one pass; the last was not read where nothing followed it."""
        read = min(len(ids), *(max(at + x.shape[-2] for at, x in self._passes(n)) for n in self.names))
        return Trace(self.subject, ids[:read], {name: self._joined(name, read) for name in self.names})

    def _passes(self, name: str) -> list[tuple[int, Tensor]]:
        """Each pass's first position and values, in order; of keys, each pass has the whole text's."""
        found = sorted(self.parts[name].items())
        return [(0, found[-1][1])] if name.endswith(".attention.k") else found

    def _joined(self, name: str, read: int) -> Tensor:
        passes = self._passes(name)
        last = passes[-1][1]
        width = read if name.rpartition(".")[2] in SQUARE else last.shape[-1]
        whole = last.new_zeros((*last.shape[:-2], read, width))
        for start, part in passes:
            part = part[..., : read - start, :width]
            whole[..., start : start + part.shape[-2], : part.shape[-1]] = part
        return whole


class _Kept(Mapping[str, Tensor]):
    """A trace's activations with their batch axis, for attribution; one that was not kept is UserError."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.trace:
            raise UserError(
                f"attribution needs {name!r}, which this trace did not keep: trace without names, or with "
                "names=inputs.attribution_names(lm.model)"
            )
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


def subject_of(lm: Any) -> Subject:
    """What studies run of a loaded model, or of what already is a subject."""
    return lm if isinstance(lm, Subject) else lm.subject


def _matching(model: Decoder, name: str) -> list[str]:
    return naming.matching(naming.known(model), name)


def library(name: str) -> Any:
    """An optional library; UserError with what installs it."""
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"{name} is not installed: pip install 'cutaway[research]'") from None


def _check_size(model: Decoder, length: int, texts: int, names: Sequence[str]) -> None:
    """Refuses texts whose kept attention maps would take more than MOST_BYTES."""
    cells = sum(
        block.attention.heads
        for i, block in enumerate(model.config.blocks)
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
