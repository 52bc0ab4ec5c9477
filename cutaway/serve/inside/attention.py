"""/v1/attention: attention weights as bytes, of all heads for a token, or whole maps, pooled.

A byte is 255 times the square root of a weight, so that small weights are distinguished. A pooled cell is the
largest weight of the queries and keys that it covers. Maps are pooled while the text is read: a map of 8,192
tokens takes no more memory than its answer. docs/serving.md has the binary's layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, StrictInt
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.observation import Observation
from cutaway.inspect.inputs import has_pattern
from cutaway.serve.api_error import APIError
from cutaway.serve.inside.forward import Forward, InsideRequest, Prompt, prepared, run, text_of
from cutaway.serve.json_body import BodyResponse, json_response
from cutaway.serve.operations.request_record import client_of
from cutaway.serve.routes import Route, cancellable
from cutaway.serve.service import Service
from cutaway.serve.traces import STEP_NUMBERS, absolute_positions
from cutaway.serve.validation import Indices, Positions

MEDIA_TYPE = "application/vnd.cutaway.maps"


class AttentionRequest(InsideRequest):
    """Attention weights: of which layers, heads and queries, and in how many cells."""

    layers: Indices | None = None
    heads: Indices | None = None
    positions: Positions | None = Field(None, description="Queries; left out: all, pooled into `size`.")
    size: Annotated[StrictInt, Field(ge=1, le=8192)] | None = Field(
        None, description="The most cells on each side, into which keys, and all queries, are pooled."
    )
    format: Literal["json", "binary"] = "json"


@cancellable
async def attention(service: Service, body: AttentionRequest, http: HTTPRequest) -> Response:
    """Attention weights of heads: the rows of some tokens, or whole maps in few cells."""
    prompt, client = await prepared(service, body, http, adapters=True), client_of(http)
    maps = await service.run(client, _maps, body, prompt)
    await run(service, http, [Forward(prompt, maps.observation)])
    return await service.run(client, _response, body, prompt, maps)


@dataclass
class Maps:
    """The maps of some heads, filled while a text is read: uint8 [rows columns] of each head of a layer.

    ``positions`` are the queries in order; each is in row n // ``rows_each`` of them, and a key in column
    position // ``keys_each``.
    """

    heads: dict[str, list[int]]
    positions: list[int]
    rows_each: int
    keys_each: int
    length: int

    def __post_init__(self) -> None:
        self.shape = (-(-len(self.positions) // self.rows_each), -(-self.length // self.keys_each))
        self.cells = {
            name: np.zeros((len(heads), *self.shape), np.uint8) for name, heads in self.heads.items()
        }
        self._seen = dict.fromkeys(self.heads, 0)
        chunk = STEP_NUMBERS // max(1, self.length * sum(map(len, self.heads.values())))
        self.observation = Observation([*self.heads], self.positions, self._add, max(1, min(chunk, 512)))

    def _add(self, name: str, row: np.ndarray) -> np.ndarray:
        """Pool the weights [h s] of the next query; nothing else is kept of them."""
        at, self._seen[name] = self._seen[name] // self.rows_each, self._seen[name] + 1
        weights = row[self.heads[name]]
        if self.keys_each > 1:
            weights = np.maximum.reduceat(weights, range(0, weights.shape[1], self.keys_each), axis=1)
        cells = self.cells[name][:, at, : weights.shape[1]]
        np.maximum(cells, np.rint(255 * np.sqrt(np.clip(weights, 0, 1))).astype(np.uint8), out=cells)
        return weights[:0]


def _maps(service: Service, body: AttentionRequest, prompt: Prompt) -> Maps:
    """The maps that a request asks for; APIError for what the model does not have, and for too many."""
    blocks, length = service.lm.config.blocks, len(prompt.ids)
    layers = range(len(blocks)) if body.layers is None else sorted(set(body.layers))
    if layers and layers[-1] >= len(blocks):
        text = f"There is no layer {layers[-1]}: this model's are 0 to {len(blocks) - 1}"
        raise APIError(400, text, param="layers")
    heads: dict[str, list[int]] = {}
    for layer in layers:
        of: Any = blocks[layer].attention
        if has_pattern(of):
            heads[f"blocks.{layer}.attention.pattern"] = _heads(body.heads, layer, of.heads)
        elif body.layers is not None:
            raise APIError(400, f"Layer {layer} is recurrent: it has no attention weights", param="layers")
    positions = [*range(length)]
    if body.positions is not None:
        positions = sorted(set(absolute_positions(body.positions, length, "positions")))
    keys_each = 1 if body.size is None else -(-length // body.size)
    rows_each = 1 if body.size is None or body.positions is not None else keys_each
    maps = sum(map(len, heads.values()))
    count = maps * -(-len(positions) // rows_each) * -(-length // keys_each)
    if count > service.limits.trace_numbers:
        text = f"This asks for {count:,} weights, and an answer has at most {service.limits.trace_numbers:,}"
        text += ": give a smaller size, or fewer layers, heads or positions"
        raise APIError(400, text, param="size", code="above_limit")
    return Maps(heads, positions, rows_each, keys_each, length)


def _heads(asked: Sequence[int] | None, layer: int, count: int) -> list[int]:
    chosen = list(range(count)) if asked is None else sorted(set(asked))
    if chosen and chosen[-1] >= count:
        raise APIError(
            400, f"There is no head {layer}.{chosen[-1]}: it has heads 0 to {count - 1}", param="heads"
        )
    return chosen


def _response(service: Service, body: AttentionRequest, prompt: Prompt, maps: Maps) -> Response:
    facts = {
        "model": service.name,
        "tokens": [text_of(service, id) for id in prompt.ids],
        "maps": [[int(name.split(".")[1]), head] for name, own in maps.heads.items() for head in own],
        "positions": maps.positions[:: maps.rows_each],
        "shape": list(maps.shape),
        "pooled": [maps.rows_each, maps.keys_each],
    }
    cells = [own for own in maps.cells.values() if len(own)]
    whole = np.concatenate(cells) if cells else np.zeros((0, *maps.shape), np.uint8)
    if body.format == "json":
        return json_response(facts | {"data": whole})
    head = json.dumps(facts, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 4)
    return BodyResponse(len(head).to_bytes(4, "little") + head + whole.tobytes(), MEDIA_TYPE)


ROUTES = [Route("POST", "/v1/attention", ("internals",), attention, AttentionRequest, computes=True)]
