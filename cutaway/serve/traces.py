"""/v1/trace: the model's inside over HTTP. One reading of a text, with edits or without, and what is asked of
it.

How large the answer is follows from the values' shapes, which the reading of the text's first token tells: so
it is known, and refused, before the text is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.responses import JSONResponse, Response

from cutaway.layers.config import MoE
from cutaway.serve import openai_format
from cutaway.serve.api_error import Wrong
from cutaway.serve.chat import chat_ids
from cutaway.serve.protocol import Ablate, Add, Patch, Trace
from cutaway.serve.service import Service
from cutaway.weights import safetensors

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.trace import Edit

BY_LAYER = (
    "attention.q", "attention.k", "attention.v", "attention.scores", "attention.pattern", "attention.mixed",
    "attention.out", "middle", "mlp.hidden", "out",
)  # fmt: skip
WHOLE = ("embed", "logits")
BY_HEAD = (
    "attention.q",
    "attention.k",
    "attention.v",
    "attention.scores",
    "attention.pattern",
    "attention.mixed",
)
EDITED = {"head": "attention.mixed", "mlp": "mlp.down", "attention": "attention.out", "stream": "out"}
MIXED = EDITED | {"mlp": "mlp.out"}  # of a layer whose MLP is a mixture of experts


def answered(service: Service, body: Trace) -> Response:
    """The response to a trace request."""
    service.check_model(body.model)
    lm, ids = service.lm, prompt(service, body.text, body.messages, "text")
    if len(ids) > service.limits.trace_tokens:
        most = service.limits.trace_tokens
        raise Wrong(
            400,
            f"The text has {len(ids):,} tokens, and a trace reads at most {most:,}",
            param="text",
            code="above_limit",
        )
    names = _names(body, len(lm.config.blocks))
    cut = _Cut(body, len(ids))
    _sized(
        service,
        {name: value.shape for name, value in _kept(lm.trace(ids[:1], names=names), names).items()},
        cut,
    )
    edit = edits(service, body, ids)
    trace = lm.trace(ids, edit=edit or None, names=names)
    values = {name: cut(name, value.float().cpu().numpy()) for name, value in _kept(trace, names).items()}
    about = {
        "model": service.name,
        "tokens": [{"id": id, "text": openai_format.spelt(lm.tokenizer, id)} for id in ids],
        "next": [
            {"id": one.id, "token": openai_format.spelt(lm.tokenizer, one.id), "probability": one.probability}
            for one in (trace.top(body.top) if body.top else [])
        ],
    }
    if body.format == "safetensors":
        told = {name: json.dumps(value) for name, value in about.items()}
        return Response(safetensors.packed(values, told), media_type="application/octet-stream")
    data = {name: {"shape": list(value.shape), "data": value.tolist()} for name, value in values.items()}
    return JSONResponse(about | {"values": data})


def prompt(service: Service, text: str | None, messages: Any, param: str) -> list[int]:
    """The ids of the one prompt that is given, text or conversation."""
    if (text is None) == (messages is None):
        raise Wrong(400, "Give the prompt once: as text or as messages", param=param)
    return chat_ids(service, messages, None) if text is None else service.lm.ids(text)


def _names(body: Trace, layers: int) -> list[str]:
    """The values asked for, in the project's vocabulary (docs/inspect.md)."""
    for value in body.values:
        if value not in BY_LAYER + WHOLE:
            known = ", ".join(BY_LAYER + WHOLE)
            raise Wrong(400, f"There is no value {value[:60]!r} to trace: there are {known}", param="values")
    chosen = range(layers) if body.layers is None else sorted(set(body.layers))
    for layer in chosen:
        _check_layer(layer, layers, "layers")
    names = [value for value in WHOLE if value in body.values]
    return names + [f"blocks.{i}.{value}" for i in chosen for value in BY_LAYER if value in body.values]


def _check_layer(layer: int, layers: int, param: str) -> None:
    if layer >= layers:
        raise Wrong(400, f"There is no layer {layer}: this model's are 0 to {layers - 1}", param=param)


def _kept(trace: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    return {name: trace[name] for name in names}


class _Cut:
    """What of each value is told: some heads, and some of the positions that read, all that they saw."""

    def __init__(self, body: Trace, length: int) -> None:
        self.length = length
        self.heads = None if body.heads is None else sorted(set(body.heads))
        self.positions = None if body.positions is None else at(body.positions, length, "positions")

    def shape(self, name: str, of_one: Sequence[int]) -> tuple[int, ...]:
        """The shape told of a value, from that for a text of one token."""
        shape = list(of_one)
        if self.heads is not None and _by_head(name):
            if self.heads and self.heads[-1] >= shape[0]:
                raise Wrong(
                    400,
                    f"There is no head {self.heads[-1]} in {name}: it has 0 to {shape[0] - 1}",
                    param="heads",
                )
            shape[0] = len(self.heads)
        shape[-2] = self.length if self.positions is None else len(self.positions)
        if name.endswith(("attention.scores", "attention.pattern")):
            shape[-1] = self.length
        return tuple(shape)

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if self.heads is not None and _by_head(name):
            value = value[self.heads]
        return value if self.positions is None else value[..., self.positions, :]


def _by_head(name: str) -> bool:
    return name.endswith(BY_HEAD)


def _sized(service: Service, of_one: Mapping[str, Sequence[int]], cut: _Cut) -> None:
    count = sum(int(np.prod(cut.shape(name, shape))) for name, shape in of_one.items())
    most = service.limits.trace_numbers
    if count > most:
        raise Wrong(
            400,
            f"This asks for {count:,} numbers, and a trace tells at most {most:,}: "
            "name fewer layers, heads or positions",
            param="values",
            code="above_limit",
        )


def at(positions: Sequence[int], length: int, param: str) -> list[int]:
    """Positions counted from 0; negative ones were counted from the end."""
    for position in positions:
        if not -length <= position < length:
            raise Wrong(
                400, f"There is no position {position}: the text has {length} tokens, from 0", param=param
            )
    return [position % length for position in positions]


# ---- edits -------------------------------------------------------------------------------------------------


def edits(service: Service, body: Trace, ids: Sequence[int]) -> dict[str, Edit]:
    """The edits of a request, one after the other, as `lm.trace` takes them."""
    from cutaway.inspect.ablate import together

    return together(*(_edit(service, one, ids, f"edits[{i}]") for i, one in enumerate(body.edits)))


def _edit(service: Service, asked: Ablate | Patch | Add, ids: Sequence[int], place: str) -> dict[str, Edit]:
    blocks, length = service.lm.config.blocks, len(ids)
    _check_layer(asked.layer, len(blocks), f"{place}.layer")
    if isinstance(asked, Add):
        return _added(asked, service.lm.config.width, length, place)
    parts = MIXED if isinstance(blocks[asked.layer].mlp, MoE) else EDITED
    name, head = f"blocks.{asked.layer}.{parts[asked.part]}", _head(asked, blocks[asked.layer], place)
    if isinstance(asked, Ablate):
        return {name: _mixing(head, slice(None), asked.strength, lambda view: view * 0)}
    other = prompt(service, asked.text, asked.messages, f"{place}.text")
    if asked.positions is None and len(other) != length:
        raise Wrong(
            400,
            f"A patch of every position needs prompts of as many tokens: this one has {length}, the other "
            f"{len(other)}. Name positions, or reword one of them",
            param=f"{place}.positions",
        )
    where = (
        slice(None)
        if asked.positions is None
        else at(asked.positions, min(length, len(other)), f"{place}.positions")
    )
    theirs = service.lm.trace(other, names=[name])[name]
    theirs = theirs if head is None else theirs[head]
    return {name: _mixing(head, where, asked.strength, lambda _: theirs[where])}


def _head(asked: Ablate | Patch, block: Any, place: str) -> int | None:
    """The head that is meant; Wrong for one that the layer does not have."""
    from cutaway.inspect.reading import writers

    if (asked.part == "head") != (asked.head is not None):
        raise Wrong(400, "head goes with part 'head', and with that alone", param=f"{place}.head")
    heads = writers(block.attention)
    if asked.head is not None and asked.head >= heads:
        raise Wrong(
            400,
            f"There is no head {asked.head}: layer {asked.layer} has 0 to {heads - 1}",
            param=f"{place}.head",
        )
    return asked.head


def _mixing(
    head: int | None, where: list[int] | slice, strength: float, other: Callable[[Tensor], Tensor]
) -> Edit:
    """Moves a value [b t d], or a head of one [b h t v], at some positions towards another."""

    def change(value: Tensor) -> Tensor:
        changed = value.clone()
        view = changed if head is None else changed[:, head]
        view[:, where] += strength * (other(view[:, where]).to(view) - view[:, where])
        return changed

    return change


def _added(asked: Add, width: int, length: int, place: str) -> dict[str, Edit]:
    if len(asked.vector) != width:
        raise Wrong(
            400,
            f"The vector has {len(asked.vector)} numbers, and this model's stream {width}",
            param=f"{place}.vector",
        )
    where = slice(None) if asked.positions is None else at(asked.positions, length, f"{place}.positions")

    def change(stream: Tensor) -> Tensor:
        changed = stream.clone()
        changed[:, where] += asked.strength * stream.new_tensor(asked.vector)
        return changed

    return {f"blocks.{asked.layer}.out": change}
