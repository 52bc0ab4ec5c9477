"""The HTTP API of one model: its paths, and the endpoint that answers each.

/openapi.json is generated from the schemas that requests are checked by (protocol.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

import cutaway
from cutaway.errors import OperationalError, UserError
from cutaway.serve import (
    bounded_log,
    chat,
    completions,
    embeddings,
    protocol,
    responses,
    tokens,
    traces,
)
from cutaway.serve.access import AccessPolicy, AuthMiddleware
from cutaway.serve.openai_format import APIError, error_response, to_api_error
from cutaway.serve.service import Service
from cutaway.serve.streaming import client_of, while_connected

log = logging.getLogger("cutaway.serve")
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


def build(service: Service, policy: AccessPolicy) -> Any:
    """The ASGI application. On shutdown, running answers are finished first."""
    app = FastAPI(
        title="Cutaway",
        version=cutaway.__version__,
        summary="A large language model with its side open: OpenAI's API, and what is inside.",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan(service),
        responses=REFUSALS,
        separate_input_output_schemas=False,
    )
    _paths(app, service)
    _document(app)
    _handle_errors(app)
    guarded: Any = AuthMiddleware(_counted(app, service), policy)
    if policy.origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=policy.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return _answer_head(guarded)


def _paths(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server takes requests."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """What Prometheus reads."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served, and its adapters."""
        return {"object": "list", "data": [_model(service, name) for name in service.names]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """The model, by its name."""
        service.engine_of(model)
        return _model(service, model)

    async def read(model: type[protocol.Body], http: HTTPRequest) -> protocol.Body:
        raw, client = await http.body(), client_of(http)
        seconds = service.limits.body_seconds
        return await service.prepare_pool.run(client, seconds, protocol.parse_body, model, raw)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(http: HTTPRequest) -> Response:
        """A conversation's next answer."""
        return await chat.chat(service, await read(protocol.ChatCompletionRequest, http), http)

    @app.post("/v1/completions", response_model=None)
    async def text_completions(http: HTTPRequest) -> Response:
        """Texts, continued."""
        return await completions.completion(service, await read(protocol.CompletionRequest, http), http)

    @app.post("/v1/responses", response_model=None)
    async def text_responses(http: HTTPRequest) -> Response:
        """OpenAI's Responses, text alone."""
        return await responses.response(service, await read(protocol.ResponsesRequest, http), http)

    @app.post("/v1/embeddings", response_model=None)
    async def embedding(http: HTTPRequest) -> Response:
        """Texts as vectors."""
        body = await read(protocol.EmbeddingRequest, http)
        return await while_connected(http, service.run_definition(client_of(http), embeddings.embed, body))

    @app.post("/v1/trace", response_model=None)
    async def tracing(http: HTTPRequest) -> Response:
        """Activations of one forward pass, with edits or without."""
        body = await read(protocol.TraceRequest, http)
        return await while_connected(http, service.run_definition(client_of(http), traces.trace, body))

    @app.post("/v1/chat/count", response_model=None)
    async def chat_count(http: HTTPRequest) -> Response:
        """How many tokens a conversation has."""
        return await service.prepare(
            client_of(http), tokens.count, await read(protocol.ChatCountRequest, http)
        )

    @app.post("/tokenize", response_model=None)
    async def tokenize(http: HTTPRequest) -> Response:
        """A text as ids."""
        return await service.prepare(
            client_of(http), tokens.tokenize, await read(protocol.TokenizeRequest, http)
        )

    @app.post("/detokenize", response_model=None)
    async def detokenize(http: HTTPRequest) -> Response:
        """Ids as text."""
        return await service.prepare(
            client_of(http), tokens.detokenize, await read(protocol.DetokenizeRequest, http)
        )


BODIES: dict[str, type[protocol.StrictModel]] = {
    "/v1/chat/completions": protocol.ChatCompletionRequest,
    "/v1/completions": protocol.CompletionRequest,
    "/v1/responses": protocol.ResponsesRequest,
    "/v1/embeddings": protocol.EmbeddingRequest,
    "/v1/trace": protocol.TraceRequest,
    "/v1/chat/count": protocol.ChatCountRequest,
    "/tokenize": protocol.TokenizeRequest,
    "/detokenize": protocol.DetokenizeRequest,
}


def _document(app: FastAPI) -> None:
    """Add the bodies to the OpenAPI document: FastAPI does not know them, because it would check them on the
    event loop.
    """
    usual = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = usual()
            template = "#/components/schemas/{model}"
            modes: Any = [(model, "validation") for model in BODIES.values()]
            schemas, shared = models_json_schema(modes, ref_template=template)
            made.setdefault("components", {}).setdefault("schemas", {}).update(shared["$defs"])
            for path, model in BODIES.items():
                content = {"application/json": {"schema": schemas[model, "validation"]}}
                made["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        return app.openapi_schema or usual()

    app.openapi = document


def _model(service: Service, name: str) -> dict[str, Any]:
    context = service.lm.context if service.scheduler is None else service.context
    card = {"id": name, "object": "model", "created": service.created, "owned_by": "cutaway"}
    if name in service.adapters:
        card["parent"] = service.name
    return card | {"max_model_len": context}


def _handle_errors(app: FastAPI) -> None:
    """All errors have one form."""

    @app.exception_handler(HTTPException)
    async def _(request: HTTPRequest, problem: HTTPException) -> Response:
        if problem.status_code == 404:
            error = APIError(404, f"There is no {request.url.path[:100]!r} here", code="not_found")
        elif problem.status_code == 405:
            error = APIError(
                405, f"{request.url.path} does not take {request.method}", code="method_not_allowed"
            )
        else:
            error = APIError(problem.status_code, str(problem.detail))
        response = error_response(error)
        response.headers.update(problem.headers or {})
        return response

    async def handle(_request: HTTPRequest, error: Exception) -> Response:
        return error_response(to_api_error(error))

    for kind in (APIError, UserError, OperationalError, Exception):  # the last is also written to the log
        app.add_exception_handler(kind, handle)


def _counted(app: Any, service: Service) -> Any:
    """The application with each request counted and timed."""

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        began, status = time.perf_counter(), "500"

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await app(scope, receive, watched)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # the pattern: requests cannot make new ones
            service.metrics.requests.labels(path, status).inc()
            service.metrics.seconds.labels(path).observe(time.perf_counter() - began)

    return counted


def _answer_head(app: Any) -> Any:
    """The application with HEAD answered as GET without the body, as load balancers need."""

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await app(scope, receive, send)
            return

        async def bodiless(message: Any) -> None:
            await send(message | {"body": b""} if message["type"] == "http.response.body" else message)

        await app(scope | {"method": "GET"}, receive, bodiless)

    return answering


def _lifespan(service: Service) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(bounded_log.quiet_loop)
        yield
        await asyncio.to_thread(service.close)

    return lifespan
