"""/v1/trace: a model's activations over HTTP. One forward pass over a text, with edits or without.

The scheduler reads the text beside all other requests, and keeps what is asked for of each step: so a trace
takes the memory of its answer, whose size follows from the values' shapes and is known, and refused, before
the text is read. What no step of the runtime writes out (keys of latents) is a pass of its own. Tokens and
next tokens have the fields that `cutaway explain --json` gives them, and ``"format": "page"`` answers with
the page's own document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, StrictInt
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.errors import OperationalError, UserError
from cutaway.generate.batch.observation import LOGITS, LOOKS, Observation
from cutaway.generate.batch.request import Request
from cutaway.inspect.tokens import tokens
from cutaway.runtime import values
from cutaway.serve.api_error import APIError, errors_in
from cutaway.serve.edits import READ, WHOLE_TOKENS, RequestEdits, check_length, once_ready, parse_edits, read
from cutaway.serve.inside.forward import InsideRequest, prompt_ids
from cutaway.serve.json_body import BodyResponse, json_response
from cutaway.serve.operations.request_record import caller_of
from cutaway.serve.routes import Route, cancellable
from cutaway.serve.service import Service
from cutaway.serve.validation import FailFast, Indices, Positions, Text
from cutaway.serve.work_pool import spend, stoppable
from cutaway.weights import safetensors

PAGE_TYPE = "application/vnd.cutaway.page"  # docs/serving.md has its layout
STEP_NUMBERS = 16_000_000  # of the values of the tokens that a step reads of a trace: 64 MB


class TraceRequest(InsideRequest):
    """One forward pass over a text: which values, of which layers, heads and positions, with which edits."""

    values: Annotated[list[Text], FailFast, Field(max_length=64)] = Field([])
    layers: Indices | None = None
    heads: Indices | None = None
    positions: Positions | None = None
    top: Annotated[StrictInt, Field(ge=0, le=100)] = 5
    format: Literal["json", "safetensors", "page"] = "json"


BY_HEAD = tuple(f"attention.{name}" for name in ("q", "k", "v", "scores", "pattern", "z"))
BY_LAYER = (*BY_HEAD, "attention.out", "middle", "mlp.hidden", "out")
WHOLE = ("embed", "logits")


@cancellable
async def trace(service: Service, body: TraceRequest, http: HTTPRequest) -> Response:
    """Answer a trace request."""
    service.check_model(body.model)
    _ = service.decoder  # refuses an encoder
    caller = caller_of(http, None)
    asked = await service.run(caller.client, _asked, body)
    if not asked.in_step:  # a value that no step of the batch writes out
        return await service.run_alone(http, _alone, body, asked)
    hooks = None
    if asked.edits.edits:
        hooks = await once_ready(asked.edits, http, caller, lambda _, ready: ready.hooks(asked.ids))
    seen = Observation(asked.names, asked.selection.positions, asked.selection.select, asked.chunk)
    request = Request(tuple(asked.ids), READ, edit=hooks, observation=seen, **vars(caller))
    await read(service, http, [request])
    if body.format == "page":  # which computes with the model's weights
        return await service.run_alone(http, _page, asked, seen)
    return await service.run(caller.client, _response, body, asked, seen)


@dataclass(frozen=True)
class _Asked:
    """A request that is checked: its ids, edits, the names of its values, and what is selected of them.

    ``chunk``: how many tokens' values are held at once, while they are read.
    """

    ids: list[int]
    edits: RequestEdits
    names: list[str]
    selection: _Selection
    chunk: int
    in_step: bool = True


def _page_names(service: Service) -> list[str]:
    """The values that the page needs."""
    from cutaway.inspect import page_data

    config = service.lm.config
    names = [name for name in page_data.names(config) if name != LOGITS]
    if service.lm.engine_choice[0] == "runtime":
        try:
            return [*(one.name for one in values.named(config, tuple(names))), LOGITS]
        except UserError:
            return names
    from cutaway.inspect import names as naming

    every = naming.known(service.lm.engines.pytorch_model)
    own = [one for name in naming.resolve(every, names) for one in naming.expanded(every, name)]
    return [*dict.fromkeys(own), LOGITS]


def _asked(service: Service, body: TraceRequest) -> _Asked:
    lm, ids = service.lm, prompt_ids(service, body)
    edits = parse_edits(service, body.edits)
    is_page = body.format == "page"
    names = _page_names(service) if is_page else _names(body, len(lm.config.blocks))
    with errors_in("values"):
        shapes = _shapes(service, names)
    check_length(service, ids, "text", WHOLE_TOKENS if is_page or shapes is None else None)
    selection = _Selection(None if is_page else body, len(ids))
    if shapes is None:
        return _Asked(ids, edits, names, selection, 1, False)
    service.check_ids(ids, "text")
    if not is_page:
        _check_size(service, {name: selection.shape(name, shape) for name, shape in shapes.items()})
    numbers = sum(prod(shape) for shape in shapes.values())
    return _Asked(ids, edits, names, selection, max(1, STEP_NUMBERS // max(1, numbers)))


def _shapes(service: Service, names: Sequence[str]) -> dict[str, tuple[int, ...]] | None:
    """The shape of each value for one token, heads first; None where a step of the runtime does not write one
    out.
    """
    config = service.lm.config
    if service.lm.engine_choice[0] != "runtime":
        from cutaway.inspect import names as naming

        known = naming.known(service.lm.engines.pytorch_model)
        return {name: tuple(known[naming.resolve(known, [name])[0]][1:]) for name in names}
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        if name == LOGITS:
            found[name] = (1, config.vocab)
            continue
        try:
            value, *others = values.named(config, (name,))
        except UserError:
            return None
        if name.endswith(LOOKS):
            found[name] = (config.blocks[value.layer].attention.heads, 1, 1)
        elif others or value.what < 0:
            return None
        else:
            found[name] = (*value.shape[:-1], 1, value.shape[-1])
    return found


def _response(service: Service, body: TraceRequest, asked: _Asked, seen: Observation) -> Response:
    """What was seen of the prompt, as the body asks for it."""
    found, logits = _seen(service, asked, seen)
    return _encoded(service, body, asked.ids, found, _next(service, logits, body.top))


def _page(service: Service, asked: _Asked, seen: Observation) -> Response:
    """The document of the page of what was seen."""
    from cutaway.inspect import page_data
    from cutaway.inspect.trace import Trace

    trace = Trace(service.lm.subject, asked.ids, _seen(service, asked, seen)[0])
    return BodyResponse(page_data.packed([page_data.build(trace, service.name, service.lenses)]), PAGE_TYPE)


def _seen(service: Service, asked: _Asked, seen: Observation) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The values by name, and the logits after the text; APIError where edits made them NaN or infinite."""
    assert seen.logits is not None
    logits, found = seen.logits[: len(service.lm.tokenizer)], {}
    for name in asked.names:
        found[name] = _array(asked, name, seen.rows.pop(name))
    wrong = next((name for name, one in found.items() if not np.isfinite(one).all()), None)
    wrong = wrong or (None if np.isfinite(logits).all() else LOGITS)
    if wrong is not None:
        text = f"{wrong} holds NaN or infinity: damaged weights, or too large an edit"
        if not asked.edits.edits:
            raise OperationalError(text)
        raise APIError(400, f"With these edits {text}", param="edits")
    return found, logits


def _array(asked: _Asked, name: str, rows: list[np.ndarray]) -> np.ndarray:
    """A value's rows as a trace has them: heads, then tokens; of patterns each row has all keys."""
    if name.endswith(LOOKS):
        rows = [np.pad(row, ((0, 0), (0, len(asked.ids) - row.shape[1]))) for row in rows]
    whole = np.stack(rows)[asked.selection.order]
    return whole if whole.ndim == 2 else whole.swapaxes(0, 1)


def _next(service: Service, logits: np.ndarray, top: int) -> list[dict[str, Any]]:
    """The likeliest next tokens, best first, as `cutaway explain --json` has them."""
    tokenizer = service.lm.tokenizer
    shifted = np.exp(logits - logits.max())
    best = np.argsort(-logits, kind="stable")[: min(top, len(logits))].tolist()
    return [
        {
            "id": id,
            "text": tokenizer.token_bytes(id).decode(errors="backslashreplace"),
            "logit": float(logits[id]),
            "probability": float(shifted[id] / shifted.sum()),
        }
        for id in best
    ]


def _alone(service: Service, body: TraceRequest, asked: _Asked) -> Response:
    """The response of values that no step writes out, such as keys of latents: a pass of its own."""
    from cutaway.inspect import page_data
    from cutaway.inspect.explanation import next_tokens

    names = page_data.names(service.lm.config) if body.format == "page" else asked.names
    engine: Any = service.lm.subject.choose(names, [asked.edits.edits], [len(asked.ids)])[0]
    with stoppable(engine.model) if engine.name == "pytorch" else nullcontext():
        if body.format == "page":
            trace = _traced(service, asked, names)
            document = page_data.packed([page_data.build(trace, service.name, service.lenses)])
            return BodyResponse(document, PAGE_TYPE)
        one = service.lm.trace(asked.ids[:1], names=asked.names)
        _check_size(service, {name: asked.selection.shape(name, one[name].shape) for name in asked.names})
        trace = _traced(service, asked, asked.names)
        found = {name: asked.selection(name, trace[name]) for name in asked.names}
        following = [asdict(one) for one in (next_tokens(trace, body.top) if body.top else ())]
        return _encoded(service, body, asked.ids, found, following)


def _encoded(
    service: Service, body: TraceRequest, ids: Sequence[int], found: dict[str, np.ndarray], following: Any
) -> Response:
    """The response's body."""
    facts = {
        "model": service.name,
        "tokens": [asdict(token) for token in tokens(service.lm.tokenizer, ids)],
        "next": following,
    }
    if body.format == "safetensors":
        metadata = {name: json.dumps(value) for name, value in facts.items()}
        return BodyResponse(safetensors.packed(found, metadata), "application/octet-stream")
    data = {name: {"shape": list(value.shape), "data": value} for name, value in found.items()}
    return json_response(facts | {"values": data})


def _traced(service: Service, asked: _Asked, names: Sequence[str]) -> Any:
    """A trace; APIError where edits, and OperationalError where the weights, make it NaN or infinite."""
    spend(len(asked.ids))
    trace = service.lm.trace(asked.ids, edit=list(asked.edits.edits) or None, names=names)
    try:
        trace.check_finite()
    except OperationalError as error:
        if not asked.edits.edits:
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


class _Selection:
    """What the request selects of each value: some heads, and some query positions with all their keys.

    ``positions`` are those, each once and in order, ``order`` is where among them each of the request's is.
    """

    def __init__(self, body: TraceRequest | None, length: int) -> None:
        self.length = length
        self.heads = None if body is None or body.heads is None else sorted(set(body.heads))
        asked: Sequence[int] = range(length)
        if body is not None and body.positions is not None:
            asked = absolute_positions(body.positions, length, "positions")
        self.positions = sorted(set(asked))
        at = {position: n for n, position in enumerate(self.positions)}
        self.order = [at[position] for position in asked]

    def shape(self, name: str, of_one: Sequence[int]) -> tuple[int, ...]:
        """The selected shape of a value, from its shape for a text of one token."""
        shape = list(of_one)
        if self.heads is not None and _by_head(name):
            if self.heads and self.heads[-1] >= shape[0]:
                text = f"There is no head {self.heads[-1]} in {name}: it has 0 to {shape[0] - 1}"
                raise APIError(400, text, param="heads")
            shape[0] = len(self.heads)
        shape[-2] = len(self.order)
        if name.endswith(("attention.scores", "attention.pattern")):
            shape[-1] = self.length
        return tuple(shape)

    def select(self, name: str, row: np.ndarray) -> np.ndarray:
        """What is kept of one token's value, heads first."""
        return row[self.heads] if self.heads is not None and _by_head(name) else row

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if self.heads is not None and _by_head(name):
            value = value[self.heads]
        return value[..., self.positions, :][..., self.order, :]


def _by_head(name: str) -> bool:
    return name.endswith(BY_HEAD)


def _check_size(service: Service, shapes: Mapping[str, tuple[int, ...]]) -> None:
    count, most = sum(map(prod, shapes.values())), service.limits.trace_numbers
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


ROUTES = [Route("POST", "/v1/trace", ("internals",), trace, TraceRequest, computes=True)]
