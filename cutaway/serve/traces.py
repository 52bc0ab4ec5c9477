"""/v1/trace: a model's activations over HTTP. One forward pass over a text, with edits or without.

The size of the answer follows from the values' shapes, which a forward pass over the text's first token
shows: so it is known, and refused, before the text is read. Tokens and next tokens have the fields that
`cutaway explain --json` gives them, and ``"format": "page"`` answers with the page's own document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import (
    Field,
    StrictInt,
)
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.errors import OperationalError
from cutaway.serve.api_error import APIError
from cutaway.serve.json_body import BodyResponse, json_response
from cutaway.serve.routes import Route, computed
from cutaway.serve.service import Service
from cutaway.serve.work_pool import spend, stoppable
from cutaway.weights import safetensors

if TYPE_CHECKING:
    from cutaway.inspect.edits import Edit
from cutaway.serve.edit_schema import Edits
from cutaway.serve.edits import check_length, parse_edits
from cutaway.serve.field_types import FailFast, Indices, Positions, Text
from cutaway.serve.openai.message_schema import Ending, Messages
from cutaway.serve.prompts import ending, prompt


class TraceRequest(Ending):
    """One forward pass over a text: which values, of which layers, heads and positions, with which edits."""

    model: Text | None = None
    text: Text | None = None
    messages: Messages | None = None
    values: Annotated[list[Text], FailFast, Field(max_length=64)] = Field([])
    layers: Indices | None = None
    heads: Indices | None = None
    positions: Positions | None = None
    edits: Edits = Field([])
    top: Annotated[StrictInt, Field(ge=0, le=100)] = 5
    format: Literal["json", "safetensors", "page"] = "json"


BY_HEAD = tuple(f"attention.{name}" for name in ("q", "k", "v", "scores", "pattern", "z"))
BY_LAYER = (*BY_HEAD, "attention.out", "middle", "mlp.hidden", "out")
WHOLE = ("embed", "logits")


def trace(service: Service, body: TraceRequest, http: HTTPRequest) -> Response:
    """Answer a trace request."""
    service.check_model(body.model)
    _ = service.decoder  # refuses an encoder
    with stoppable(service.lm.definition.model):
        return _response(service, body)


def _response(service: Service, body: TraceRequest) -> Response:
    from cutaway.inspect import page_data
    from cutaway.inspect.explanation import next_tokens
    from cutaway.inspect.tokens import tokens

    lm, ids = service.lm, prompt(service, body.text, body.messages, "text", ending(body))
    check_length(service, ids, "text")
    edit = parse_edits(service, body.edits, ids)
    if body.format == "page":
        trace = _traced(service, ids, page_data.names(lm.config), edit)
        document = page_data.packed([page_data.build(trace, service.name)])
        return BodyResponse(document, "application/octet-stream")
    names = _names(body, len(lm.config.blocks))
    selection = _Selection(body, len(ids))
    shapes = {name: value.shape for name, value in _kept(lm.trace(ids[:1], names=names), names).items()}
    _check_size(service, shapes, selection)
    trace = _traced(service, ids, names, edit)
    values = {name: selection(name, value) for name, value in _kept(trace, names).items()}
    facts = {
        "model": service.name,
        "tokens": [asdict(token) for token in tokens(lm.tokenizer, ids)],
        "next": [asdict(one) for one in (next_tokens(trace, body.top) if body.top else ())],
    }
    if body.format == "safetensors":
        metadata = {name: json.dumps(value) for name, value in facts.items()}
        return BodyResponse(safetensors.packed(values, metadata), "application/octet-stream")
    data = {name: {"shape": list(value.shape), "data": value} for name, value in values.items()}
    return json_response(facts | {"values": data})


def _traced(service: Service, ids: Sequence[int], names: Sequence[str], edit: Sequence[Edit]) -> Any:
    """A trace; APIError where edits, and OperationalError where the weights, make it NaN or infinite."""
    spend(len(ids))
    trace = service.lm.trace(ids, edit=edit or None, names=names)
    try:
        trace.check_finite()
    except OperationalError as error:
        if not edit:
            raise
        raise APIError(400, f"With these edits {error}", param="edits") from None
    return trace


def _names(body: TraceRequest, layers: int) -> list[str]:
    """The activations asked for, by their names in docs/inspect.md."""
    if not body.values:
        raise APIError(400, "values is missing: name what to trace", param="values", code="missing_parameter")
    for value in body.values:
        if value not in BY_LAYER + WHOLE:
            known = ", ".join(BY_LAYER + WHOLE)
            text = f"There is no value {value[:60]!r} to trace: there are {known}"
            raise APIError(400, text, param="values")
    chosen = range(layers) if body.layers is None else sorted(set(body.layers))
    for layer in chosen:
        _check_layer(layer, layers, "layers")
    names = [value for value in WHOLE if value in body.values]
    return names + [f"blocks.{i}.{value}" for i in chosen for value in BY_LAYER if value in body.values]


def _check_layer(layer: int, layers: int, param: str) -> None:
    if layer >= layers:
        raise APIError(400, f"There is no layer {layer}: this model's are 0 to {layers - 1}", param=param)


def _kept(trace: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: trace[name] for name in names}


class _Selection:
    """What the request selects of each value: some heads, and some query positions with all their keys."""

    def __init__(self, body: TraceRequest, length: int) -> None:
        self.length = length
        self.heads = None if body.heads is None else sorted(set(body.heads))
        self.positions = (
            None if body.positions is None else absolute_positions(body.positions, length, "positions")
        )

    def shape(self, name: str, of_one: Sequence[int]) -> tuple[int, ...]:
        """The selected shape of a value, from its shape for a text of one token."""
        shape = list(of_one)
        if self.heads is not None and _by_head(name):
            if self.heads and self.heads[-1] >= shape[0]:
                text = f"There is no head {self.heads[-1]} in {name}: it has 0 to {shape[0] - 1}"
                raise APIError(400, text, param="heads")
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


def _check_size(service: Service, of_one: Mapping[str, Sequence[int]], selection: _Selection) -> None:
    count = sum(int(np.prod(selection.shape(name, shape))) for name, shape in of_one.items())
    most = service.limits.trace_numbers
    if count > most:
        raise APIError(
            400,
            f"This asks for {count:,} numbers, and a trace has at most {most:,}: "
            "name fewer layers, heads or positions",
            param="values",
            code="above_limit",
        )


def absolute_positions(positions: Sequence[int], length: int, param: str) -> list[int]:
    """Positions from 0; negative ones count from the end."""
    if len(positions) > length:
        raise APIError(400, f"{len(positions):,} positions, and the text has {length} tokens", param=param)
    for position in positions:
        if not -length <= position < length:
            raise APIError(
                400, f"There is no position {position}: the text has {length} tokens, from 0", param=param
            )
    return [position % length for position in positions]


ROUTES = [Route("POST", "/v1/trace", ("internals",), computed(trace), TraceRequest, computes=True)]
