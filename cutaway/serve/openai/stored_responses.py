"""/v1/responses/{id}: a response that is stored or under way, read, cancelled and deleted."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.serve.api_error import APIError
from cutaway.serve.json_body import json_response
from cutaway.serve.openai.items import kept, listed, missing, shown_entry
from cutaway.serve.operations.request_record import client_of, key_of
from cutaway.serve.response_store import Kind
from cutaway.serve.routes import Route, beside
from cutaway.serve.service import Service


def fetched(service: Service, _: None, http: HTTPRequest) -> Response:
    """A stored response."""
    return json_response(_shown(service, http))


def _shown(service: Service, http: HTTPRequest) -> dict[str, Any]:
    """The response that a path names, as far as it is."""
    key, id = key_of(http), http.path_params["id"]
    running = service.running.get((key, id))
    return running.shown() if running else shown_entry(service, key, id, "response")


def input_items(service: Service, _: None, http: HTTPRequest) -> Response:
    """What a stored response answers."""
    found = kept(service, key_of(http), http.path_params["id"], "response")
    items = found.items[: found.given]
    items = [{"id": f"item_{n}", "status": "completed", **item} for n, item in enumerate(items)]
    return json_response(listed(items[::-1]))


async def cancel(service: Service, _: None, http: HTTPRequest) -> Response:
    """Stop a response that is under way."""
    id = http.path_params["id"]
    running = service.running.get((key_of(http), id))
    if running is not None:
        running.cancelled = True
        running.of.streams.close()

    def stopped(service: Service) -> Response:
        shown = _shown(service, http)
        if running is None:
            status = shown.get("status", "completed")  # a compaction has none
            text = f"The response {id[:64]!r} is {status}: only one that is under way can be cancelled"
            raise APIError(400, text, param="response_id")
        return json_response(shown)

    return await service.run(client_of(http), stopped)


def forgotten(service: Service, http: HTTPRequest, kind: Kind) -> Response:
    """Forget the stored response or conversation that a path names."""
    id = http.path_params["id"]
    if not service.store.delete(key_of(http), id, kind):
        raise missing(id, kind)
    shown = f"{kind}.deleted" if kind == "conversation" else kind
    return json_response({"id": id, "object": shown, "deleted": True})


def delete(service: Service, _: None, http: HTTPRequest) -> Response:
    """Forget a stored response."""
    return forgotten(service, http, "response")


ROUTES = [
    Route("GET", "/v1/responses/{id}", ("chat",), beside(fetched)),
    Route("GET", "/v1/responses/{id}/input_items", ("chat",), beside(input_items)),
    Route("POST", "/v1/responses/{id}/cancel", ("chat",), cancel),
    Route("DELETE", "/v1/responses/{id}", ("chat",), beside(delete)),
]
