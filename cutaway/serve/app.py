"""The HTTP API of a server's models: its paths, and the endpoint that answers each.

/openapi.json is generated from the schemas that requests are checked by (protocol.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
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
    anthropic_models,
    chat,
    compaction,
    completions,
    embeddings,
    llamacpp,
    ollama,
    protocol,
    responses,
    tokens,
    traces,
)
from cutaway.serve.openai_format import (
    APIError,
    BodyResponse,
    error_response,
    form_of,
    is_anthropic,
    json_response,
    to_api_error,
)
from cutaway.serve.operations import bounded_log
from cutaway.serve.operations.access import PUBLIC, AccessPolicy, AuthMiddleware, unpacked
from cutaway.serve.operations.api_keys import ANY, TEXT, Role, Tenant
from cutaway.serve.operations.models import Model, Models
from cutaway.serve.operations.request_record import RecordMiddleware, record_of
from cutaway.serve.operations.tracing import Tracing
from cutaway.serve.service import Service
from cutaway.serve.streaming import client_of, key_of, while_connected

log = logging.getLogger("cutaway.serve")
EXPOSED = ["x-cutaway-ignored", "x-cutaway-ids", "x-request-id", "request-id", "retry-after"]  # to web pages
FIGURES, QUOTAS = ("limit", "remaining", "reset"), ("requests", "tokens")
EXPOSED += [f"x-ratelimit-{figure}-{quota}" for figure in FIGURES for quota in QUOTAS]
EXPOSED += [f"anthropic-ratelimit-{quota}-{figure}" for figure in FIGURES for quota in QUOTAS]
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
        openapi_url=None,  # a route like the others
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
            expose_headers=EXPOSED,
        )
    return RecordMiddleware(_answer_head(guarded), models, tracing)


Answerer = Callable[[Service, Any, HTTPRequest], Awaitable[Response]]


@dataclass(frozen=True)
class Gate:
    """What a route depends on that needs a key: one of these roles, and a place within the key's quotas."""

    roles: tuple[Role, ...]
    answers: bool  # by computing with the model, which is what a key's `concurrent` and tokens bound

    async def __call__(self, http: HTTPRequest) -> None:
        """APIError for a key that may not ask this, or not now."""
        tenant = _tenant(http)
        tenant.check(*self.roles)
        record_of(http).ends.append(tenant.admit(self.answers))


@dataclass(frozen=True)
class Routes:
    """Adds routes to an application, each with its roles; what GET and DELETE do runs in the fair pool."""

    app: FastAPI
    service: Service

    def add(
        self, method: str, path: str, roles: tuple[Role, ...], endpoint: Any, answers: bool = False
    ) -> None:
        """Add a route under its path, and without /v1."""
        more: Any = {"methods": [method], "response_model": None, "summary": endpoint.__doc__}
        more |= {"dependencies": [Depends(Gate(roles, answers))]}
        self.app.add_api_route(path, endpoint, **more)
        if path.startswith("/v1/"):
            self.app.add_api_route(path.removeprefix("/v1"), endpoint, include_in_schema=False, **more)

    def get(self, path: str, *roles: Role) -> Callable[[Any], None]:
        """Decorate an endpoint of GET."""
        return partial(self.add, "GET", path, roles)

    def delete(self, path: str, *roles: Role) -> Callable[[Any], None]:
        """Decorate an endpoint of DELETE."""
        return partial(self.add, "DELETE", path, roles)

    async def json(self, http: HTTPRequest, work: Callable[..., Any], *arguments: Any) -> Response:
        """What the work makes of its arguments, as JSON."""

        def made(_: Service) -> Response:
            return json_response(work(*arguments))

        return await self.service.run(client_of(http), made)


def _paths(app: FastAPI, models: Models, policy: AccessPolicy) -> None:
    routes = Routes(app, models.default)
    _health(app, models)
    _state(routes, policy)
    _listed(routes, models)
    _stored(routes)
    _others(routes, models)
    for path, post in POSTS.items():
        endpoint = _endpoint(models, post)
        routes.add("POST", path, post.roles, _of_id(endpoint) if "{id}" in path else endpoint, post.answers)


def _health(app: FastAPI, models: Models) -> None:
    """What a load balancer asks without a key; it waits for nothing."""

    @app.get("/health", response_model=None)
    @app.get("/health/ready", response_model=None)
    async def ready() -> Response:
        """Whether new requests should be sent here: 503 as soon as the server is asked to stop."""
        stopping = models.stopping.is_set()
        return JSONResponse({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)

    @app.get("/health/live")
    @app.get("/ping")
    async def live() -> dict[str, str]:
        """Whether the server answers at all."""
        return {"status": "ok"}


def _state(routes: Routes, policy: AccessPolicy) -> None:
    """What the server does, what a key has used, and which requests it takes."""

    @routes.get("/metrics", "metrics")
    async def metrics(http: HTTPRequest) -> Response:
        """What Prometheus reads."""
        text = await routes.service.run(client_of(http), lambda service: service.metrics.text())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/v1/usage", *ANY)
    async def usage(http: HTTPRequest) -> Response:
        """What the request's API key has used since the server started, and its quotas; all keys' for an
        admin.
        """
        own = _tenant(http)
        shown = policy.keys.tenants if "admin" in own.roles else [own]
        data = [tenant.usage() for tenant in shown]
        return await routes.json(http, dict, {"object": "list", "data": data})

    @lru_cache(1)
    def encoded() -> bytes:
        return json.dumps(routes.app.openapi()).encode()

    @routes.get("/openapi.json", *ANY)
    async def document(http: HTTPRequest) -> Response:
        """The requests that the server takes, as an OpenAPI document."""
        text = await routes.service.run(client_of(http), lambda _: encoded())
        return BodyResponse(text, "application/json")


def _listed(routes: Routes, models: Models) -> None:
    """The models, for clients and for an admin."""

    @routes.get("/v1/models", *ANY)
    async def listed(http: HTTPRequest, limit: int = 20, after_id: str = "", before_id: str = "") -> Response:
        """The models that are served, under each of their names, and their adapters. A client that names
        Anthropic's version in a header has them in that form, and by its pages.
        """

        def cards() -> dict[str, Any]:
            found = [_model(model, name) for model in models.models for name in model.names]
            if is_anthropic(http.scope):
                return anthropic_models.listed(found, limit, after_id, before_id)
            return {"object": "list", "data": found}

        return await routes.json(http, cards)

    @routes.get("/v1/models/{model:path}", *ANY)
    async def model(model: str, http: HTTPRequest) -> Response:
        """The model, by its name."""

        def card() -> dict[str, Any]:
            found = _model(models.find(model), model)
            return anthropic_models.card(found) if is_anthropic(http.scope) else found

        return await routes.json(http, card)

    @routes.get("/v1/admin/models", "admin")
    async def status(http: HTTPRequest) -> Response:
        """Which models are loaded, for an admin."""
        data = [models.status(model) for model in models.models]
        return await routes.json(http, dict, {"object": "list", "data": data})


def _stored(routes: Routes) -> None:
    """What `/v1/responses` keeps: responses and conversations, read, cancelled and deleted."""

    async def stored(http: HTTPRequest, work: Callable[..., Any], *arguments: Any) -> Response:
        return await routes.json(http, work, routes.service, key_of(http), *arguments)

    @routes.get("/v1/responses/{id}", "chat")
    async def kept_response(id: str, http: HTTPRequest) -> Response:
        """A stored response."""
        return await stored(http, responses.fetched, id)

    @routes.get("/v1/responses/{id}/input_items", "chat")
    async def input_items(id: str, http: HTTPRequest) -> Response:
        """What a stored response answers."""
        return await stored(http, responses.input_items, id)

    async def cancel(id: str, http: HTTPRequest) -> Response:
        """Stop a response that is under way."""
        was_running = responses.stop(routes.service, key_of(http), id)
        return await stored(http, responses.cancelled, id, was_running)

    routes.add("POST", "/v1/responses/{id}/cancel", ("chat",), cancel)

    @routes.get("/v1/conversations/{id}", "chat")
    async def kept_conversation(id: str, http: HTTPRequest) -> Response:
        """A stored conversation."""
        return await stored(http, responses.conversation_of, id)

    @routes.get("/v1/conversations/{id}/items", "chat")
    async def conversation_items(
        id: str, http: HTTPRequest, order: Literal["asc", "desc"] = "desc", limit: int = 20, after: str = ""
    ) -> Response:
        """The items of a stored conversation."""
        return await stored(http, responses.conversation_items, id, order, limit, after)

    @routes.get("/v1/conversations/{id}/items/{item}", "chat")
    async def conversation_item(id: str, item: str, http: HTTPRequest) -> Response:
        """An item of a stored conversation."""
        return await stored(http, responses.conversation_item, id, item)

    @routes.delete("/v1/conversations/{id}/items/{item}", "chat")
    async def forget_item(id: str, item: str, http: HTTPRequest) -> Response:
        """Take an item out of a stored conversation."""
        return await stored(http, responses.without_item, id, item)

    @routes.delete("/v1/responses/{id}", "chat")
    async def delete_response(id: str, http: HTTPRequest) -> Response:
        """Forget a stored response."""
        return await stored(http, responses.deleted, id, "response")

    @routes.delete("/v1/conversations/{id}", "chat")
    async def delete_conversation(id: str, http: HTTPRequest) -> Response:
        """Forget a stored conversation."""
        return await stored(http, responses.deleted, id, "conversation")


def _others(routes: Routes, models: Models) -> None:
    """What clients of Ollama, llama.cpp and vLLM ask first."""

    @routes.get("/version", *ANY)
    async def version(http: HTTPRequest) -> Response:
        """Cutaway's version."""
        return await routes.json(http, dict, {"version": cutaway.__version__})

    @routes.get("/api/version", *ANY)
    async def api_version(http: HTTPRequest) -> Response:
        """The version of Ollama whose API this is."""
        return await routes.json(http, dict, {"version": ollama.VERSION})

    @routes.get("/", *ANY)
    async def root(http: HTTPRequest) -> Response:
        """What Ollama's clients look for to see whether it runs."""
        return await routes.service.run(client_of(http), lambda _: Response("Ollama is running"))

    @routes.get("/load", *ANY)
    async def load(http: HTTPRequest) -> Response:
        """How many answers are under way and wait, as vLLM tells it."""

        def loaded() -> dict[str, int]:
            return {"server_load": sum(one.running + one.queued for one in models.stats().values())}

        return await routes.json(http, loaded)

    @routes.get("/slots", *ANY)
    async def slots(http: HTTPRequest) -> Response:
        """The places for answers, as llama-server tells them."""
        return await routes.json(http, llamacpp.slots, routes.service)

    @routes.get("/props", *ANY)
    async def props(http: HTTPRequest) -> Response:
        """What llama.cpp's clients ask: the context, the template, the slots."""
        return await routes.json(http, tokens.props, routes.service)

    @routes.get("/api/tags", *ANY)
    async def tags(http: HTTPRequest) -> Response:
        """The models that there are, in Ollama's form."""

        def cards() -> dict[str, Any]:
            unloaded = [model for model in models.models if model.service is None]
            bare = [ollama.unloaded(name, model.nbytes) for model in unloaded for name in model.names]
            return {"models": _running(models) + bare}

        return await routes.json(http, cards)

    @routes.get("/api/ps", *ANY)
    async def running(http: HTTPRequest) -> Response:
        """The models that are loaded, in Ollama's form."""
        return await routes.json(http, lambda: {"models": _running(models)})


def _running(models: Models) -> list[dict[str, Any]]:
    loaded = [model.service for model in models.models if model.service is not None]
    return [ollama.card(service, name) for service in loaded for name in service.names]


def _of_id(post: Any) -> Any:
    """An endpoint whose path names what it is about; it finds that in ``http.path_params``."""

    async def of_id(id: str, http: HTTPRequest) -> Response:
        return await post(http)

    return of_id


def _tenant(http: HTTPRequest) -> Tenant:
    tenant = record_of(http).tenant
    assert tenant is not None  # access.py lets no request without one past it to these paths
    return tenant


def _endpoint(models: Models, of: Post) -> Any:
    """The endpoint whose bodies are checked in the fair pool before they are answered."""

    async def post(http: HTTPRequest) -> Response:
        record, tenant = record_of(http), _tenant(http)
        raw, client, service = await http.body(), client_of(http), models.default
        work = partial(_parsed, service, of.body, raw, http.scope["gzip"])
        body = await service.pool.run(client, service.limits.body_seconds, work)
        http.scope["ignored"] = body.ignored
        if "admin" not in of.roles:
            asked = getattr(body, "model", None) or getattr(body, "name", None)
            used, service = await models.use(asked)
            record.ends.append(partial(models.leave, used))
            record.model = asked if asked and asked in service.adapters else used.name
        if getattr(body, "edits", None) or getattr(body, "internals", None):
            tenant.check("internals")
        return await of.answer(service, body, http)

    post.__doc__ = of.answer.__doc__
    return post


def _parsed(service: Service, model: type[protocol.StrictModel], raw: bytes, is_gzip: bool) -> Any:
    raw = unpacked(raw, service.limits.body_bytes) if is_gzip else raw
    return protocol.parse_body(model, raw, service.lenient)


def _beside(work: Any) -> Answerer:
    """An answer that is made in the fair pool, without computing with the model."""

    async def answer(service: Service, body: Any, http: HTTPRequest) -> Response:
        return await service.run(client_of(http), work, body)

    answer.__doc__ = work.__doc__
    return answer


def _kept(work: Any) -> Answerer:
    """The same about what is kept for the request's key, under the id that its path may have."""

    async def answer(service: Service, body: Any, http: HTTPRequest) -> Response:
        return await service.run(client_of(http), work, body, key_of(http), http.path_params.get("id"))

    answer.__doc__ = work.__doc__
    return answer


def _defined(work: Any) -> Answerer:
    """An answer of the definition, one at a time."""

    async def answer(service: Service, body: Any, http: HTTPRequest) -> Response:
        return await while_connected(http, service.run_definition(http, work, body))

    answer.__doc__ = work.__doc__
    return answer


async def _load(_: Service, body: protocol.ModelRequest, http: HTTPRequest) -> Response:
    """Load a model, for an admin."""
    models: Models = http.app.state.models
    model, service = await models.use(body.model)
    models.leave(model)
    return await service.run(client_of(http), lambda _: json_response(models.status(model)))


async def _unload(service: Service, body: protocol.ModelRequest, http: HTTPRequest) -> Response:
    """Unload a model, for an admin."""
    models: Models = http.app.state.models
    model = await models.unload(body.model)
    return await service.run(client_of(http), lambda _: json_response(models.status(model)))


def _load_adapter(service: Service, body: protocol.LoadAdapterRequest, models: Models) -> Response:
    """Load an adapter of the first model, for an admin: vLLM's route, where --adapter-folder allows it."""
    models.load_adapter(body.lora_name, body.lora_path)
    return json_response(_model(models.find(body.lora_name), body.lora_name))


def _unload_adapter(service: Service, body: protocol.UnloadAdapterRequest, models: Models) -> Response:
    """Unload an adapter of the first model, for an admin."""
    service.unload_adapter(body.lora_name)
    return json_response({"id": body.lora_name, "object": "model", "deleted": True})


def _managed(work: Any) -> Answerer:
    """An answer about the models, made in the fair pool."""

    async def answer(service: Service, body: Any, http: HTTPRequest) -> Response:
        return await service.run(client_of(http), work, body, http.app.state.models)

    answer.__doc__ = work.__doc__
    return answer


@dataclass(frozen=True)
class Post:
    """What a path takes by POST, what answers it, which roles may ask, and whether the model ``answers``."""

    body: type[protocol.StrictModel]
    answer: Answerer
    roles: tuple[Role, ...]
    answers: bool = False


def _text(body: type[protocol.StrictModel], answer: Answerer) -> Post:
    return Post(body, answer, ("chat",), answers=True)


def _vectors(body: type[protocol.StrictModel], work: Any) -> Post:
    return Post(body, _defined(work), ("embed",), answers=True)


def _conversation(body: type[protocol.StrictModel], work: Any) -> Post:
    return Post(body, _kept(work), ("chat",))


def _tokens(body: type[protocol.StrictModel], work: Any, roles: tuple[Role, ...] = TEXT) -> Post:
    return Post(body, _beside(work), roles)


POSTS: dict[str, Post] = {
    "/v1/chat/completions": _text(protocol.ChatCompletionRequest, chat.chat),
    "/v1/completions": _text(protocol.CompletionRequest, completions.completion),
    "/v1/responses": _text(responses.ResponsesRequest, responses.response),
    "/v1/responses/input_tokens": _conversation(responses.ResponsesRequest, responses.input_tokens),
    "/v1/responses/compact": _text(compaction.CompactRequest, compaction.compact),
    "/v1/conversations": _conversation(responses.ConversationRequest, responses.conversation),
    "/v1/conversations/{id}": _conversation(responses.ConversationUpdate, responses.updated),
    "/v1/conversations/{id}/items": _conversation(responses.ConversationItems, responses.add_items),
    "/v1/messages": _text(anthropic.MessagesRequest, anthropic.messages),
    "/v1/messages/count_tokens": _tokens(anthropic.CountRequest, anthropic.count_tokens),
    "/v1/embeddings": _vectors(protocol.EmbeddingRequest, embeddings.embeddings),
    "/v1/rerank": _vectors(protocol.RerankRequest, embeddings.rerank),
    "/v1/trace": Post(protocol.TraceRequest, _defined(traces.trace), ("internals",), answers=True),
    "/v1/chat/count": _tokens(protocol.ChatCountRequest, tokens.count),
    "/v1/admin/models/load": Post(protocol.ModelRequest, _load, ("admin",)),
    "/v1/admin/models/unload": Post(protocol.ModelRequest, _unload, ("admin",)),
    "/v1/load_lora_adapter": Post(protocol.LoadAdapterRequest, _managed(_load_adapter), ("admin",)),
    "/v1/unload_lora_adapter": Post(protocol.UnloadAdapterRequest, _managed(_unload_adapter), ("admin",)),
    "/v1/score": _vectors(protocol.ScoreRequest, embeddings.score),
    "/completion": _text(llamacpp.LlamaCompletion, llamacpp.completion),
    "/infill": _text(llamacpp.Infill, llamacpp.infill),
    "/apply-template": _tokens(llamacpp.Conversation, llamacpp.apply_template),
    "/tokenize": _tokens(protocol.TokenizeRequest, tokens.tokenize),
    "/detokenize": _tokens(protocol.DetokenizeRequest, tokens.detokenize),
    "/api/chat": _text(ollama.ChatRequest, ollama.chat),
    "/api/generate": _text(ollama.GenerateRequest, ollama.generate),
    "/api/embed": _vectors(ollama.EmbedRequest, ollama.embed),
    "/api/embeddings": _vectors(ollama.EmbeddingsRequest, ollama.embeddings_of),
    "/api/show": _tokens(ollama.ShowRequest, ollama.show, ANY),
}


def _document(app: FastAPI, policy: AccessPolicy) -> None:
    """Add the bodies and the keys to the OpenAPI document: FastAPI knows neither, because bodies are checked
    beside the event loop, and keys before.
    """
    usual, lock = app.openapi, threading.Lock()

    def document() -> dict[str, Any]:
        with lock:
            return app.openapi_schema or made()

    def made() -> dict[str, Any]:
        made = usual()
        template = "#/components/schemas/{model}"
        modes: Any = [(post.body, "validation") for post in POSTS.values()]
        schemas, shared = models_json_schema(modes, ref_template=template)
        made.setdefault("components", {}).setdefault("schemas", {}).update(shared["$defs"])
        if policy.root_path:
            made["servers"] = [{"url": policy.root_path}]
        if policy.keys:
            made["components"]["securitySchemes"] = KEY_SCHEMES
            made["security"] = [{name: []} for name in KEY_SCHEMES]
            for path in PUBLIC:
                made["paths"][path]["get"]["security"] = []
        for path, post in POSTS.items():
            content = {"application/json": {"schema": schemas[post.body, "validation"]}}
            made["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        return made

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
        response = error_response(error, form_of(request.scope))
        response.headers.update(problem.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def _(request: HTTPRequest, problem: RequestValidationError) -> Response:
        first = problem.errors()[0]
        name = str(first["loc"][-1])
        error = APIError(400, f"{name}: {first['msg']}", param=name, code="invalid_value")
        return error_response(error, form_of(request.scope))

    async def handle(request: HTTPRequest, error: Exception) -> Response:
        refusal = to_api_error(error)
        record_of(request).error = refusal.code
        return error_response(refusal, form_of(request.scope), service.retry_after())

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
