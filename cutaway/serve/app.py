"""The HTTP app of a server's models: joins all routes, access, errors and response headers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

import cutaway
from cutaway.errors import OperationalError, UserError
from cutaway.serve import openapi, routes
from cutaway.serve.api_error import APIError, error_response, to_api_error
from cutaway.serve.openai.schema import ChatCompletionRequest
from cutaway.serve.operations import bounded_log
from cutaway.serve.operations.access import AccessPolicy, AuthMiddleware
from cutaway.serve.operations.models import Models
from cutaway.serve.operations.request_record import RecordMiddleware, record_of
from cutaway.serve.operations.tracing import Tracing
from cutaway.serve.service import Service
from cutaway.serve.validation import StrictModel

ROUTES = routes.found()
EXPOSED = ["x-cutaway-ignored", "x-cutaway-ids", "x-request-id", "request-id", "retry-after"]  # for web pages
FIGURES, QUOTAS = ("limit", "remaining", "reset"), ("requests", "tokens")
EXPOSED += [f"x-ratelimit-{figure}-{quota}" for figure in FIGURES for quota in QUOTAS]
EXPOSED += [f"anthropic-ratelimit-{quota}-{figure}" for figure in FIGURES for quota in QUOTAS]
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
    guarded: Any = AuthMiddleware(app, policy)
    if policy.origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=policy.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    trace = None if tracing is None else tracing.report
    return RecordMiddleware(guarded, service.metrics, models.stopping, models.background, trace, IGNORABLE)


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
        response = error_response(error, record_of(request).form)
        response.headers.update(problem.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def _(request: HTTPRequest, problem: RequestValidationError) -> Response:
        first = problem.errors()[0]
        name = str(first["loc"][-1])
        error = APIError(400, f"{name}: {first['msg']}", param=name, code="invalid_value")
        return error_response(error, record_of(request).form)

    async def handle(request: HTTPRequest, error: Exception) -> Response:
        refusal = to_api_error(error)
        record_of(request).error = refusal.code
        return error_response(refusal, record_of(request).form, service.retry_after())

    for kind in (APIError, UserError, OperationalError, Exception):  # the last is also written to the log
        app.add_exception_handler(kind, handle)


def _lifespan() -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(bounded_log.quiet_loop)
        yield

    return lifespan
