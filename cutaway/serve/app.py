"""The HTTP API of a server's models, joined: routes, access, errors, and what a response's head tells."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

import cutaway
from cutaway.errors import OperationalError, UserError
from cutaway.serve import openapi, routes
from cutaway.serve.api_error import APIError, error_response, form_of, to_api_error
from cutaway.serve.openai.schema import ChatCompletionRequest
from cutaway.serve.operations import bounded_log
from cutaway.serve.operations.access import AccessPolicy, AuthMiddleware
from cutaway.serve.operations.models import Models
from cutaway.serve.operations.record_middleware import RecordMiddleware
from cutaway.serve.operations.request_record import record_of
from cutaway.serve.operations.tracing import Tracing
from cutaway.serve.service import Service
from cutaway.serve.validation import StrictModel

log = logging.getLogger("cutaway.serve")
ROUTES = routes.found()
EXPOSED = ["x-cutaway-ignored", "x-cutaway-ids", "x-request-id", "request-id", "retry-after"]  # to web pages
FIGURES, QUOTAS = ("limit", "remaining", "reset"), ("requests", "tokens")
EXPOSED += [f"x-ratelimit-{figure}-{quota}" for figure in FIGURES for quota in QUOTAS]
EXPOSED += [f"anthropic-ratelimit-{quota}-{figure}" for figure in FIGURES for quota in QUOTAS]
MOST_NAMED = 32  # ignored fields, of one request
IGNORABLE = frozenset(ChatCompletionRequest.model_fields).union(
    *(model.IGNORED for model in StrictModel.__subclasses__())
)


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
        responses=openapi.REFUSALS,
        separate_input_output_schemas=False,
    )
    routes.mount(app, models, ROUTES)
    document = openapi.Document(app, policy, ROUTES)
    app.state.models, app.state.keys, app.state.document = models, policy.keys, document
    app.openapi = document
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
