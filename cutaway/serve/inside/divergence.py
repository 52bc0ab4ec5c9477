"""/v1/divergence: by how much edits or an adapter change each next-token distribution, in nats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.observation import LOGITS, Observation
from cutaway.inspect.arrays import log_softmax
from cutaway.serve.api_error import APIError
from cutaway.serve.edits import RequestEdits
from cutaway.serve.inside.forward import Forward, InsideRequest, prepared, run
from cutaway.serve.json_body import json_response
from cutaway.serve.operations.request_record import client_of
from cutaway.serve.routes import Route, cancellable
from cutaway.serve.service import Service
from cutaway.serve.traces import absolute_positions
from cutaway.serve.validation import Positions, Text
from cutaway.serve.work_pool import check_stopped

NUMBERS = 8_000_000  # logits that one side of the comparison holds: 32 MB
CHUNK = 64  # tokens of a step, whose logits are held beside


class DivergenceRequest(InsideRequest):
    """A text read twice: without the edits and with them, or by the model and by ``against``."""

    positions: Positions | None = None
    against: Text | None = Field(
        None, description="An adapter of the model, or the model itself, in place of edits."
    )


@cancellable
async def divergence(service: Service, body: DivergenceRequest, http: HTTPRequest) -> Response:
    """The KL divergence between next-token distributions without edits and with them, or of two adapters."""
    if bool(body.edits) == (body.against is not None):
        text = "Give what changes the model: edits, or against, the name of an adapter or of the model"
        raise APIError(400, text, param="edits", code="missing_parameter")
    prompt, client = await prepared(service, body, http, adapters=True), client_of(http)
    positions = _positions(service, body, len(prompt.ids))
    pairs = [replace(prompt, edits=RequestEdits(service, [])), prompt]
    if body.against is not None:
        pairs = [prompt, replace(prompt, engine=service.engine_of(body.against))]
    passes = [Forward(one, Observation((LOGITS,), positions, chunk=CHUNK)) for one in pairs]
    await run(service, http, passes)
    return await service.run(client, _response, passes, positions)


def _positions(service: Service, body: DivergenceRequest, length: int) -> list[int]:
    """The positions in order, each once; APIError for too many."""
    asked = range(length) if body.positions is None else body.positions
    found = sorted(set(absolute_positions(asked, length, "positions")))
    most = max(1, NUMBERS // service.vocab)
    if len(found) > most:
        text = (
            f"This asks for {len(found):,} positions, and an answer has at most {most:,} of this vocabulary"
        )
        raise APIError(400, text + ": ask in parts", param="positions", code="above_limit")
    return found


def _response(service: Service, passes: list[Forward], positions: list[int]) -> Response:
    vocabulary, found = len(service.lm.tokenizer), []
    rows = [one.seen.rows.pop(LOGITS) for one in passes]
    for pair in zip(*rows, strict=True):
        check_stopped()
        p, q = (log_softmax(row[:vocabulary].astype(np.float64)) for row in pair)
        found.append(max(0.0, float((np.exp(p) * (p - q)).sum())))
    return json_response({"model": service.name, "positions": positions, "kl": found})


ROUTES = [Route("POST", "/v1/divergence", ("internals",), divergence, DivergenceRequest, computes=True)]
