"""Admin routes: list the loaded models, load one, unload one."""

from __future__ import annotations

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.serve.json_body import json_response
from cutaway.serve.operations.request_record import client_of
from cutaway.serve.routes import Route, beside, models_of
from cutaway.serve.service import Service
from cutaway.serve.validation import StrictModel, Text


class ModelRequest(StrictModel):
    model: Text


def status(_: Service, body: None, http: HTTPRequest) -> Response:
    """Which models are loaded, for an admin."""
    models = models_of(http)
    return json_response({"object": "list", "data": [models.status(model) for model in models.models]})


async def load(_: Service, body: ModelRequest, http: HTTPRequest) -> Response:
    """Load a model, for an admin."""
    models = models_of(http)
    model, service = await models.use(body.model)
    models.leave(model)
    return await service.run(client_of(http), lambda _: json_response(models.status(model)))


async def unload(service: Service, body: ModelRequest, http: HTTPRequest) -> Response:
    """Unload a model, for an admin."""
    models = models_of(http)
    model = await models.unload(body.model)
    return await service.run(client_of(http), lambda _: json_response(models.status(model)))


ROUTES = [
    Route("GET", "/v1/admin/models", ("admin",), beside(status)),
    Route("POST", "/v1/admin/models/load", ("admin",), load, ModelRequest),
    Route("POST", "/v1/admin/models/unload", ("admin",), unload, ModelRequest),
]
