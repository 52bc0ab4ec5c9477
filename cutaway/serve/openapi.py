"""/openapi.json: the requests that the server takes, generated from the schemas that they are checked by."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.serve.json_body import BodyResponse
from cutaway.serve.operations.access import PUBLIC, AccessPolicy
from cutaway.serve.operations.api_keys import ANY
from cutaway.serve.routes import Route, beside
from cutaway.serve.service import Service

KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
ERROR = {"description": "Refused; the body says why", "content": {"application/json": {"schema": {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"},
            "type": {"type": "string"},
            "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]},
        },
    }},
}}}}  # fmt: skip
REFUSALS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503, 504), ERROR
)


class Document:
    """FastAPI's document, with the bodies and the keys: it knows neither, because bodies are checked beside
    the event loop, and keys before. Made when it is first asked for; for any thread.
    """

    def __init__(self, app: FastAPI, policy: AccessPolicy, routes: Sequence[Route]) -> None:
        self._usual, self._policy = app.openapi, policy
        self._routes = [(route.path, route.body) for route in routes if route.body is not None]
        self._lock = threading.Lock()

    def __call__(self) -> dict[str, Any]:
        """The document."""
        with self._lock:
            return self._made

    @cached_property
    def encoded(self) -> bytes:
        """The document's JSON."""
        return json.dumps(self()).encode()

    @cached_property
    def _made(self) -> dict[str, Any]:
        made = self._usual()
        template = "#/components/schemas/{model}"
        modes: Any = [(body, "validation") for _, body in self._routes]
        schemas, shared = models_json_schema(modes, ref_template=template)
        made.setdefault("components", {}).setdefault("schemas", {}).update(shared["$defs"])
        if self._policy.root_path:
            made["servers"] = [{"url": self._policy.root_path}]
        if self._policy.keys:
            made["components"]["securitySchemes"] = KEY_SCHEMES
            made["security"] = [{name: []} for name in KEY_SCHEMES]
            for path in made["paths"].keys() & set(PUBLIC):
                made["paths"][path]["get"]["security"] = []
        for path, body in self._routes:
            content = {"application/json": {"schema": schemas[body, "validation"]}}
            made["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        return made


def document(_: Service, body: None, http: HTTPRequest) -> Response:
    """The requests that the server takes, as an OpenAPI document."""
    return BodyResponse(http.app.state.document.encoded, "application/json")


ROUTES = [Route("GET", "/openapi.json", ANY, beside(document))]
