"""/v1/lens: the next token if the model stopped after each block, at one position of a prompt.

The logit lens, a tuned lens and a Jacobian lens side by side; beside a Jacobian lens its control, in which a
random rotation is in place of each matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StrictInt
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.observation import Observation
from cutaway.inspect.arrays import largest, softmax
from cutaway.serve.api_error import APIError
from cutaway.serve.inside.forward import (
    Forward,
    InsideRequest,
    of_layers,
    position_of,
    prepared,
    run,
    text_of,
)
from cutaway.serve.json_body import json_response
from cutaway.serve.routes import Route, cancellable
from cutaway.serve.service import Service
from cutaway.serve.validation import Id


class LensRequest(InsideRequest):
    """The logit lens at a position; tuned and Jacobian lenses beside it that the server has (--lens)."""

    position: StrictInt = -1
    top: Annotated[StrictInt, Field(ge=1, le=20)] = 3
    token: Id | None = Field(None, description="Whose probability is listed too; left out: the likeliest.")


@cancellable
async def lens(service: Service, body: LensRequest, http: HTTPRequest) -> Response:
    """The next token after the embedding and after each block, by every lens that the server has."""
    prompt = await prepared(service, body, http)
    at = position_of(body.position, len(prompt.ids))
    seen = Observation(["embed", *of_layers(service, "out")], [at])
    await run(service, http, [Forward(prompt, seen)])
    return await service.run_alone(http, _response, body, at, seen)


def _response(service: Service, body: LensRequest, at: int, seen: Observation) -> Response:
    """The lenses of a position's residual stream."""
    residuals = {name: np.stack(rows) for name, rows in seen.rows.items()}
    found = softmax(_logits(service, np.concatenate([*residuals.values()])))
    token = int(found[-1].argmax()) if body.token is None else body.token
    if token >= found.shape[1]:
        text = f"token {token} is not in this model's vocabulary of {found.shape[1]:,}"
        raise APIError(400, text, param="token")
    others: dict[str, Any] = dict.fromkeys(("tuned_lens", "jacobian_lens", "random_lens"))
    for kind, by in service.lenses.items():
        read = by.translated(residuals)
        chances = softmax(_logits(service, np.concatenate([*read.values()])))
        others[f"{kind}_lens"] = _stages(service, read, chances, token, body.top)
    return json_response({
        "model": service.name,
        "position": at,
        "token": {"id": token, "text": text_of(service, token)},
        "logit_lens": _stages(service, residuals, found, token, body.top),
        **others,
    })  # fmt: skip


def _logits(service: Service, rows: np.ndarray) -> np.ndarray:
    """The logits of rows of the residual stream, over the tokenizer's ids."""
    engine: Any = service.lm.subject.engine
    return engine.unembed(rows)[:, : len(service.lm.tokenizer)].astype(np.float64)


def _stages(
    service: Service, residuals: Mapping[str, np.ndarray], found: np.ndarray, token: int, top: int
) -> list[dict[str, Any]]:
    """Each stage's likeliest tokens, and the probability of ``token`` there."""
    return [
        {
            "after": name,
            "top": [
                {"id": id, "text": text_of(service, id), "probability": float(row[id])}
                for id in largest(row[None], top)[0].tolist()
            ],
            "probability": float(row[token]),
        }
        for name, row in zip(residuals, found, strict=True)
    ]


ROUTES = [Route("POST", "/v1/lens", ("internals",), lens, LensRequest, computes=True)]
