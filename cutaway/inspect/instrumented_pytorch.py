"""The PyTorch model shown and edited: every module's output, functions as edits, gradients (``run``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import TAPS, Listener, stopping, tracing
from cutaway.inspect import derived, edits, pytorch_edits
from cutaway.inspect import names as naming
from cutaway.inspect.instrumented import RESULT, SQUARE, Values
from cutaway.layers.packed import rows_of, scores
from cutaway.model.decoder import Decoder
from cutaway.model.token_vectors import padded
from cutaway.quantization.rows import PackedRows
from cutaway.store.files import Progress, silent

BATCH = 32  # texts read together


class InstrumentedPyTorch:
    """A ``Decoder``; ``rounding`` are listeners after all edits (the runtime's rounding)."""

    name = "pytorch"

    def __init__(self, model: Decoder, rounding: Mapping[str, Listener] | None = None) -> None:
        self.model, self.rounding = model, rounding or {}
        self.config: Any = model.config

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(shape)[len(shape) > 2 :] for name, shape in naming.known(self.model).items()}

    def resolve(self, names: Sequence[str]) -> list[str]:
        """Names with wildcards as PyTorch's listeners take them; heads' results one by one."""
        own = derived.results(self.config)
        found = naming.resolve([*naming.known(self.model), *own], names)
        each = (naming.expanded(own, name) if name.endswith(RESULT) else (name,) for name in found)
        return list(dict.fromkeys(one for some in each for one in some))

    def unsupported_reason(
        self, names: Sequence[str], edits: Sequence[edits.Given], lengths: Sequence[int]
    ) -> None:
        """None: what does not fit the model is an error of ``values``."""

    @contextmanager
    def tracing(
        self, lengths: Sequence[int], kept: Sequence[str], edit: edits.Given = ()
    ) -> Iterator[dict[str, Tensor]]:
        """Listens to passes over texts of these lengths; edits act, and no layer after ``kept`` runs."""
        model = self.model
        own = pytorch_edits.prepare(model, edit, lengths, self.rounding).at()
        whole = not kept or {TAPS, "logits", "*"} & set(kept)
        last = None if whole else naming.last_layer(naming.known(model), kept)
        acting = [
            {name: change for name, change in some.items() if last is None or naming.layer(name) <= last}
            for some in (own, self.rounding)
        ]
        with ExitStack() as stack:
            for listeners in filter(None, acting):
                stack.enter_context(tracing(model, edit=listeners))
            seen = stack.enter_context(tracing(model, *kept)) if kept else {}
            if last is not None and len(model.blocks):
                stack.enter_context(stopping(model.blocks[last]))
            yield seen

    def run(
        self, rows: Sequence[Sequence[int]], kept: Sequence[str], edit: edits.Given = (), grad: bool = False
    ) -> dict[str, Tensor]:
        """One pass over texts, padded at their ends: the activations ``kept`` [b ...] as tensors."""
        ids, pos, _ = padded(rows)
        here = next(self.model.parameters()).device
        with torch.set_grad_enabled(grad), self.tracing(list(map(len, rows)), kept, edit) as seen:
            self.model(ids.to(here), pos.to(here))
        return seen

    def values(
        self,
        texts: Sequence[Sequence[int]],
        names: Sequence[str],
        edits: Sequence[edits.Given] = (),
        *,
        logits_at: Sequence[int] | None = None,
        progress: Progress = silent,
    ) -> list[Values]:
        kept = self.resolve(names)
        follow = [name for name in kept if name.endswith(RESULT)]
        if follow:
            return self._with_results(texts, kept, follow, edits, logits_at, progress)
        if len(texts) > 1 and any(".experts." in name for name in kept):
            raise UserError("experts read the tokens of all texts as one list: trace the texts one by one")
        found: list[Values] = [{} for _ in texts]
        done = 0
        for chosen in _batches(texts, edits):
            seen = self.run([texts[i] for i in chosen], kept, edits[chosen[0]] if edits else ())
            longest = max(len(texts[i]) for i in chosen)
            for at, i in enumerate(chosen):
                length = len(texts[i])
                found[i] = {name: array(_own(name, x, at, length, longest)) for name, x in seen.items()}
                if "logits" in seen and logits_at is not None:
                    found[i]["logits"] = found[i]["logits"][[position % length for position in logits_at]]
            progress("tracing", done := done + len(chosen), len(texts))
        return found

    def _with_results(
        self,
        texts: Sequence[Sequence[int]],
        kept: Sequence[str],
        follow: Sequence[str],
        edits: Sequence[edits.Given],
        logits_at: Sequence[int] | None,
        progress: Progress,
    ) -> list[Values]:
        """Values, and those that are computed from them."""
        own = [name for name in kept if name not in follow]
        read = [*own, *(source for name in follow for source in derived.sources(self.config, name))]
        found = self.values(texts, read, edits, logits_at=logits_at, progress=progress)
        only = {source for name in follow for source in derived.sources(self.config, name)} - {*own}
        for one in found:
            one |= {name: derived.value(self.config, name, one, self.weight) for name in follow}
        return [{name: x for name, x in one.items() if name not in only} for one in found]

    def weight(self, name: str) -> np.ndarray:
        return array(reduce(getattr, name.split("."), self.model))

    def table(self, name: str, count: int | None = None) -> np.ndarray | PackedRows:
        table: Any = self.model.embedding if name == "embedding.weight" else self.model.head
        return rows_of(table, self.config.vocab if count is None else count)

    @torch.no_grad()
    def distance_bias(self, layer: int, length: int) -> np.ndarray | None:
        block: Any = self.model.blocks[layer]
        relative = getattr(block.attention, "relative", None)
        if relative is None:
            return None
        here = next(self.model.parameters()).device
        last = torch.full((1, 1), length - 1, device=here)
        back = torch.arange(length - 1, -1, -1, device=here)[None]
        return relative(last, back)[0, :, 0].double().cpu().numpy()

    @torch.no_grad()
    def head_product(self, rows: np.ndarray) -> np.ndarray:
        table = self.model.embedding if self.model.head is None else self.model.head
        return array(scores(table, torch.from_numpy(rows).to(next(self.model.parameters()))))

    @torch.no_grad()
    def unembed(self, rows: np.ndarray) -> np.ndarray:
        like = next(self.model.parameters())
        return array(self.model.logits(torch.from_numpy(rows).to(like)[None])[0])


def _batches(texts: Sequence[Sequence[int]], given: Sequence[edits.Given]) -> Iterator[list[int]]:
    """Numbers of texts that are read together: of like lengths, under the same edits."""
    alike: dict[int, list[int]] = {}
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        alike.setdefault(id(given[i]) if given else 0, []).append(i)
    for order in alike.values():
        for start in range(0, len(order), BATCH):
            yield order[start : start + BATCH]


def _own(name: str, value: Tensor, row: int, length: int, longest: int) -> Tensor:
    """A text's part of a batch's activation, without padding and without the batch's axis."""
    if value.ndim < 3:
        return value
    part = value[row]
    if length < longest and not name.endswith(".S"):
        part = part[..., :length, :]
        part = part[..., :length] if name.rpartition(".")[2] in SQUARE else part
    return part


def array(value: Tensor) -> np.ndarray:
    """An array of its own, float32 of shorter floats, which numpy does not have."""
    value = value.detach().cpu()
    own = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    return own.numpy().copy() if own.data_ptr() == value.data_ptr() else own.numpy()
