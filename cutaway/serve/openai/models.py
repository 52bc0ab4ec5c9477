"""/v1/models: the models that are served, under each of their names, and their adapters."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.serve.anthropic import models as anthropic
from cutaway.serve.api_error import ANTHROPIC_PATHS
from cutaway.serve.json_body import json_response
from cutaway.serve.operations.api_keys import ANY
from cutaway.serve.operations.models import Model
from cutaway.serve.operations.request_record import record_of
from cutaway.serve.routes import Route, beside, models_of, query_of
from cutaway.serve.service import Service


def listed(_: Service, body: None, http: HTTPRequest) -> Response:
    """The models that are served, under each of their names, and their adapters. A client that names
    Anthropic's version in a header has them in that form, and by its pages.
    """
    found = [card(model, name) for model in models_of(http).models for name in model.names]
    if _is_anthropic(http):
        page = query_of(http)
        return json_response(anthropic.listed(found, page["limit"], page["after_id"], page["before_id"]))
    return json_response({"object": "list", "data": found})


def model(_: Service, body: None, http: HTTPRequest) -> Response:
    """The model, by its name."""
    name = http.path_params["model"]
    found = card(models_of(http).find(name), name)
    return json_response(anthropic.card(found) if _is_anthropic(http) else found)


def _is_anthropic(http: HTTPRequest) -> bool:
    return record_of(http).form.startswith(ANTHROPIC_PATHS)


def card(model: Model, name: str) -> dict[str, Any]:
    """A model, or an adapter of it, in OpenAI's list."""
    card = {"id": name, "object": "model", "created": 0, "owned_by": "cutaway"}
    service = model.service
    if service is None:
        return card
    if name in service.adapters:
        card["parent"] = service.name
    context = service.lm.context if service.scheduler is None else service.context
    return card | {"created": service.created, "max_model_len": context}


PAGE = {"limit": (int, 20), "after_id": (str, ""), "before_id": (str, "")}  # Anthropic's
ROUTES = [
    Route("GET", "/v1/models", ANY, beside(listed), query=PAGE),
    Route("GET", "/v1/models/{model:path}", ANY, beside(model)),
]
