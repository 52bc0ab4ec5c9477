"""vLLM's own paths: an adapter loaded and unloaded, how many answers are under way, the version."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

import cutaway
from cutaway.serve.json_body import json_response
from cutaway.serve.openai.models import card
from cutaway.serve.operations.api_keys import ANY
from cutaway.serve.routes import Route, beside, models_of
from cutaway.serve.service import Service
from cutaway.serve.validation import StrictModel, Text


class LoadAdapterRequest(StrictModel):
    """vLLM's: the adapter in a folder of the server's is asked for as the model ``lora_name``."""

    lora_name: Annotated[Text, Field(min_length=1, max_length=200)]
    lora_path: Annotated[Text, Field(min_length=1, max_length=4096)]


class UnloadAdapterRequest(StrictModel):
    lora_name: Text


def load_adapter(_: Service, body: LoadAdapterRequest, http: HTTPRequest) -> Response:
    """Load an adapter of the first model, for an admin: vLLM's route, where --adapter-folder allows it."""
    models = models_of(http)
    models.load_adapter(body.lora_name, body.lora_path)
    return json_response(card(models.find(body.lora_name), body.lora_name))


def unload_adapter(service: Service, body: UnloadAdapterRequest, http: HTTPRequest) -> Response:
    """Unload an adapter of the first model, for an admin."""
    service.unload_adapter(body.lora_name)
    return json_response({"id": body.lora_name, "object": "model", "deleted": True})


def load(_: Service, body: None, http: HTTPRequest) -> Response:
    """How many answers are under way and wait, as vLLM tells it."""
    stats = models_of(http).stats().values()
    return json_response({"server_load": sum(one.running + one.queued for one in stats)})


def version(_: Service, body: None, http: HTTPRequest) -> Response:
    """Cutaway's version."""
    return json_response({"version": cutaway.__version__})


ROUTES = [
    Route("POST", "/v1/load_lora_adapter", ("admin",), beside(load_adapter), LoadAdapterRequest),
    Route("POST", "/v1/unload_lora_adapter", ("admin",), beside(unload_adapter), UnloadAdapterRequest),
    Route("GET", "/load", ANY, beside(load)),
    Route("GET", "/version", ANY, beside(version)),
]
