"""The HTTP API of a server's models: its paths, and the endpoint that answers each.

/openapi.json is generated from the schemas that requests are checked by (protocol.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

import cutaway
from cutaway.errors import OperationalError, UserError
from cutaway.serve import (
    anthropic,
    chat,
    completions,
    embeddings,
    ollama,
    protocol,
    responses,
    tokens,
    traces,
)
from cutaway.serve.openai_format import APIError, error_response, to_api_error
from cutaway.serve.operations import bounded_log
from cutaway.serve.operations.access import PUBLIC, AccessPolicy, AuthMiddleware
from cutaway.serve.operations.api_keys import Role, Tenant
from cutaway.serve.operations.models import Model, Models
from cutaway.serve.operations.request_record import RecordMiddleware, record_of
from cutaway.serve.operations.tracing import Tracing
from cutaway.serve.service import Service
from cutaway.serve.streaming import client_of, while_connected

log = logging.getLogger("cutaway.serve")
MOST_NAMED = 32  # ignored fields, of one request
IGNORABLE = frozenset(protocol.ChatCompletionRequest.model_fields).union(
    *(model.IGNORED for model in protocol.StrictModel.__subclasses__())
)
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

KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def build(models: Models, policy: AccessPolicy, tracing: Tracing | None = None) -> Any:
    """The ASGI application."""
    service = models.default
    app = FastAPI(
        title="Cutaway",
        version=cutaway.__version__,
        summary="A large language model with its side open: OpenAI's API, and what is inside.",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan(),
        responses=REFUSALS,
        separate_input_output_schemas=False,
    )
    app.state.models = models
    _paths(app, models, policy)
    _document(app, policy)
    _handle_errors(app, service)
    service.metrics.add_tenants(policy.keys)
    service.metrics.add_schedulers(models.stats)
    guarded: Any = AuthMiddleware(_naming_ignored(app, service), policy)
    if policy.origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=policy.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-cutaway-ignored", "x-cutaway-ids", "x-request-id", "retry-after"],
        )
    return RecordMiddleware(_answer_head(guarded), service.metrics, tracing)


Answerer = Callable[[Service, Any, HTTPRequest], Awaitable[Response]]


def _paths(app: FastAPI, models: Models, policy: AccessPolicy) -> None:
    _state(app, models, policy)
    _listed(app, models)
    _stored(app, models.default)
    _others(app, models)
    for path, (body, answer, role) in POSTS.items():
        post = _endpoint(models, body, answer, role)
        post = _of_id(post) if "{id}" in path else post
        app.post(path, response_model=None, summary=answer.__doc__)(post)
    for route in [route for route in app.routes if isinstance(route, APIRoute)]:
        if route.path.startswith("/v1/"):
            bare, methods = route.path.removeprefix("/v1"), sorted(route.methods or ())
            app.add_api_route(
                bare, route.endpoint, methods=methods, response_model=None, include_in_schema=False
            )


def _state(app: FastAPI, models: Models, policy: AccessPolicy) -> None:
    """Whether the server answers, what it does, and what a key has used."""
    service = models.default

    @app.get("/health", response_model=None)
    @app.get("/health/ready", response_model=None)
    async def ready() -> Response:
        """Whether new requests should be sent here: 503 as soon as the server is asked to stop."""
        stopping = models.stopping.is_set()
        return JSONResponse({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Whether the server answers at all."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics(http: HTTPRequest) -> Response:
        """What Prometheus reads."""
        _tenant(http).check("metrics")
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/usage")
    async def usage(http: HTTPRequest) -> dict[str, Any]:
        """What the request's API key has used since the server started, and its quotas; all keys' for an
        admin.
        """
        own = _tenant(http)
        shown = policy.keys.tenants if "admin" in own.roles else [own]
        return {"object": "list", "data": [tenant.usage() for tenant in shown]}


def _listed(app: FastAPI, models: Models) -> None:
    """The models, for clients and for an admin."""

    @app.get("/v1/models")
    async def listed() -> dict[str, Any]:
        """The models that are served, under each of their names, and their adapters."""
        cards = [_model(model, name) for model in models.models for name in model.names]
        return {"object": "list", "data": cards}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """The model, by its name."""
        return _model(models.find(model), model)

    @app.get("/v1/admin/models")
    async def status(http: HTTPRequest) -> dict[str, Any]:
        """Which models are loaded, for an admin."""
        _tenant(http).check("admin")
        return {"object": "list", "data": [models.status(model) for model in models.models]}


def _stored(app: FastAPI, service: Service) -> None:
    """What `/v1/responses` keeps: responses and conversations, read, cancelled and deleted."""

    @app.get("/v1/responses/{id}", response_model=None)
    async def kept_response(id: str, http: HTTPRequest) -> dict[str, Any]:
        """A stored response."""
        return responses.fetched(service, id, http)

    @app.get("/v1/responses/{id}/input_items", response_model=None)
    async def input_items(id: str, http: HTTPRequest) -> dict[str, Any]:
        """What a stored response answers."""
        return responses.input_items(service, id, http)

    @app.post("/v1/responses/{id}/cancel", response_model=None)
    async def cancel(id: str, http: HTTPRequest) -> dict[str, Any]:
        """Stop a response that is under way."""
        return await responses.cancelled(service, id, http)

    @app.get("/v1/conversations/{id}", response_model=None)
    async def kept_conversation(id: str, http: HTTPRequest) -> dict[str, Any]:
        """A stored conversation."""
        return responses.conversation_of(service, id, http)

    @app.get("/v1/conversations/{id}/items", response_model=None)
    async def conversation_items(
        id: str, http: HTTPRequest, order: Literal["asc", "desc"] = "desc", limit: int = 20, after: str = ""
    ) -> dict[str, Any]:
        """The items of a stored conversation."""
        return responses.conversation_items(service, id, http, order, limit, after)

    @app.get("/v1/conversations/{id}/items/{item}", response_model=None)
    async def conversation_item(id: str, item: str, http: HTTPRequest) -> dict[str, Any]:
        """An item of a stored conversation."""
        return responses.conversation_item(service, id, item, http)

    @app.delete("/v1/conversations/{id}/items/{item}", response_model=None)
    async def forget_item(id: str, item: str, http: HTTPRequest) -> dict[str, Any]:
        """Take an item out of a stored conversation."""
        return responses.without_item(service, id, item, http)

    @app.delete("/v1/responses/{id}", response_model=None)
    @app.delete("/v1/conversations/{id}", response_model=None)
    async def delete(id: str, http: HTTPRequest) -> dict[str, Any]:
        """Forget what is stored."""
        return responses.deleted(service, id, http)


def _others(app: FastAPI, models: Models) -> None:
    """What clients of Ollama, llama.cpp and vLLM ask first."""
    service = models.default

    @app.get("/version")
    async def version() -> dict[str, str]:
        """Cutaway's version."""
        return {"version": cutaway.__version__}

    @app.get("/api/version")
    async def api_version() -> dict[str, str]:
        """The version of Ollama whose API this is."""
        return {"version": ollama.VERSION}

    @app.get("/props")
    async def props() -> dict[str, Any]:
        """What llama.cpp's clients ask: the context, the template, the slots."""
        return tokens.props(service)

    @app.get("/api/tags")
    async def tags() -> dict[str, Any]:
        """The models that there are, in Ollama's form."""
        unloaded = [name for model in models.models if model.service is None for name in model.names]
        bare = [{"name": name, "model": name, "digest": "", "details": {}} for name in unloaded]
        return {"models": (await running())["models"] + bare}

    @app.get("/api/ps")
    async def running() -> dict[str, Any]:
        """The models that are loaded, in Ollama's form."""
        loaded = [model.service for model in models.models if model.service is not None]
        return {"models": [ollama.card(service, name) for service in loaded for name in service.names]}


def _of_id(post: Any) -> Any:
    """An endpoint whose path names what it is about; it finds that in ``http.path_params``."""

    async def of_id(id: str, http: HTTPRequest) -> Response:
        return await post(http)

    return of_id


def _tenant(http: HTTPRequest) -> Tenant:
    tenant = record_of(http).tenant
    assert tenant is not None  # access.py lets no request without one past it to these paths
    return tenant


def _endpoint(models: Models, model: type[protocol.StrictModel], answer: Answerer, role: Role | None) -> Any:
    """The endpoint whose bodies are checked in a thread before they are answered. Without a role, any key may
    ask and no quota counts.
    """

    async def post(http: HTTPRequest) -> Response:
        record, tenant = record_of(http), _tenant(http)
        if role is not None:
            tenant.check(role)
            tenant.admit()
            record.ends.append(tenant.leave)
        raw, client, service = await http.body(), client_of(http), models.default
        body = await service.prepare_pool.run(
            client, service.limits.body_seconds, protocol.parse_body, model, raw, service.lenient
        )
        http.scope["ignored"] = body.ignored
        if role != "admin":
            asked = getattr(body, "model", None) or getattr(body, "name", None)
            used, service = await models.use(asked)
            record.ends.append(partial(models.leave, used))
            record.model = asked if asked and asked in service.adapters else used.name
        if getattr(body, "edits", None) or getattr(body, "internals", None):
            tenant.check("internals")
        return await answer(service, body, http)

    return post


def _prepared(work: Any) -> Answerer:
    """An answer that is made in a thread, without the model."""

    async def answer(service: Service, body: Any, http: HTTPRequest) -> Response:
        return await service.prepare(client_of(http), work, body)

    answer.__doc__ = work.__doc__
    return answer


def _defined(work: Any) -> Answerer:
    """An answer of the definition, one at a time."""

    async def answer(service: Service, body: Any, http: HTTPRequest) -> Response:
        response = await while_connected(http, service.run_definition(client_of(http), work, body))
        record_of(http).spend(getattr(response, "prompt_tokens", 0), 0, 0)
        return response

    answer.__doc__ = work.__doc__
    return answer


async def _load(_: Service, body: protocol.ModelRequest, http: HTTPRequest) -> Response:
    """Load a model, for an admin."""
    models: Models = http.app.state.models
    model, _ = await models.use(body.model)
    models.leave(model)
    return JSONResponse(models.status(model))


async def _unload(_: Service, body: protocol.ModelRequest, http: HTTPRequest) -> Response:
    """Unload a model, for an admin."""
    models: Models = http.app.state.models
    return JSONResponse(models.status(await models.unload(body.model)))


async def _load_adapter(service: Service, body: protocol.LoadAdapterRequest, http: HTTPRequest) -> Response:
    """Load an adapter of the first model, for an admin: vLLM's route, where --adapter-folder allows it."""
    await asyncio.to_thread(service.load_adapter, body.lora_name, body.lora_path)
    return JSONResponse(_model(http.app.state.models.find(body.lora_name), body.lora_name))


async def _unload_adapter(
    service: Service, body: protocol.UnloadAdapterRequest, http: HTTPRequest
) -> Response:
    """Unload an adapter of the first model, for an admin."""
    service.unload_adapter(body.lora_name)
    return JSONResponse({"id": body.lora_name, "object": "model", "deleted": True})


POSTS: dict[str, tuple[type[protocol.StrictModel], Answerer, Role | None]] = {
    "/v1/chat/completions": (protocol.ChatCompletionRequest, chat.chat, "chat"),
    "/v1/completions": (protocol.CompletionRequest, completions.completion, "chat"),
    "/v1/responses": (responses.ResponsesRequest, responses.response, "chat"),
    "/v1/conversations": (responses.ConversationRequest, responses.conversation, "chat"),
    "/v1/conversations/{id}": (responses.ConversationUpdate, responses.updated, "chat"),
    "/v1/conversations/{id}/items": (responses.ConversationItems, responses.add_items, "chat"),
    "/v1/messages": (anthropic.MessagesRequest, anthropic.messages, "chat"),
    "/v1/messages/count_tokens": (anthropic.CountRequest, _prepared(anthropic.count_tokens), None),
    "/v1/embeddings": (protocol.EmbeddingRequest, _defined(embeddings.embeddings), "embed"),
    "/v1/rerank": (protocol.RerankRequest, _defined(embeddings.rerank), "embed"),
    "/v1/trace": (protocol.TraceRequest, _defined(traces.trace), "internals"),
    "/v1/chat/count": (protocol.ChatCountRequest, _prepared(tokens.count), None),
    "/v1/admin/models/load": (protocol.ModelRequest, _load, "admin"),
    "/v1/admin/models/unload": (protocol.ModelRequest, _unload, "admin"),
    "/v1/load_lora_adapter": (protocol.LoadAdapterRequest, _load_adapter, "admin"),
    "/v1/unload_lora_adapter": (protocol.UnloadAdapterRequest, _unload_adapter, "admin"),
    "/tokenize": (protocol.TokenizeRequest, _prepared(tokens.tokenize), None),
    "/detokenize": (protocol.DetokenizeRequest, _prepared(tokens.detokenize), None),
    "/api/chat": (ollama.ChatRequest, ollama.chat, "chat"),
    "/api/generate": (ollama.GenerateRequest, ollama.generate, "chat"),
    "/api/embed": (ollama.EmbedRequest, _defined(ollama.embed), "embed"),
    "/api/show": (ollama.ShowRequest, _prepared(ollama.show), None),
}


def _document(app: FastAPI, policy: AccessPolicy) -> None:
    """Add the bodies and the keys to the OpenAPI document: FastAPI knows neither, because bodies are checked
    beside the event loop, and keys before.
    """
    usual = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = usual()
            template = "#/components/schemas/{model}"
            modes: Any = [(model, "validation") for model, *_ in POSTS.values()]
            schemas, shared = models_json_schema(modes, ref_template=template)
            made.setdefault("components", {}).setdefault("schemas", {}).update(shared["$defs"])
            if policy.root_path:
                made["servers"] = [{"url": policy.root_path}]
            if policy.keys:
                made["components"]["securitySchemes"] = KEY_SCHEMES
                made["security"] = [{name: []} for name in KEY_SCHEMES]
                for path in PUBLIC:
                    made["paths"][path]["get"]["security"] = []
            for path, (model, *_) in POSTS.items():
                content = {"application/json": {"schema": schemas[model, "validation"]}}
                made["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        return app.openapi_schema or usual()

    app.openapi = document


def _model(model: Model, name: str) -> dict[str, Any]:
    card = {"id": name, "object": "model", "created": 0, "owned_by": "cutaway"}
    service = model.service
    if service is None:
        return card
    if name in service.adapters:
        card["parent"] = service.name
    context = service.lm.context if service.scheduler is None else service.context
    return card | {"created": service.created, "max_model_len": context}


def _handle_errors(app: FastAPI, service: Service) -> None:
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
        response = error_response(error, request.url.path)
        response.headers.update(problem.headers or {})
        return response

    async def handle(request: HTTPRequest, error: Exception) -> Response:
        refusal = to_api_error(error)
        record_of(request).error = refusal.code
        return error_response(refusal, request.url.path, service.retry_after())

    for kind in (APIError, UserError, OperationalError, Exception):  # the last is also written to the log
        app.add_exception_handler(kind, handle)


def _naming_ignored(app: Any, service: Service) -> Any:
    """The application whose responses name the fields of their requests that were not used."""

    async def naming(scope: Any, receive: Any, send: Any) -> None:
        async def watched(message: Any) -> None:
            if message["type"] == "http.response.start":
                _name_ignored(message, scope.get("ignored") or (), service)
            await send(message)

        await app(scope, receive, watched)

    return naming


def _name_ignored(message: Any, ignored: Iterable[str], service: Service) -> None:
    """Say in a response's head, and in the metrics, which fields of its request were not used."""
    names = [name for name in ignored if re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII)]
    for name in names[:MOST_NAMED]:
        service.metrics.ignored.labels(name if name in IGNORABLE else "other").inc()
    if names:
        MutableHeaders(scope=message)["x-cutaway-ignored"] = ", ".join(names[:MOST_NAMED])


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


def _lifespan() -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(bounded_log.quiet_loop)
        yield

    return lifespan
