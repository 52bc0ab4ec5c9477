"""A route of the HTTP API: its method and path, who may ask, what its body is, and what answers it.

A module of this package that answers requests lists its routes as ``ROUTES``; `found` joins those of all.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from fastapi import Depends, FastAPI
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway import serve
from cutaway.serve.operations.access import unpacked
from cutaway.serve.operations.api_keys import Role, Tenant
from cutaway.serve.operations.models import Models
from cutaway.serve.operations.request_record import RequestRecord, client_of, record_of
from cutaway.serve.service import Service
from cutaway.serve.streaming import while_connected
from cutaway.serve.validation import StrictModel, parse_body

LARGE = 1 << 16  # bytes of a body, of which a client's are checked one at a time
Answerer = Callable[[Service, Any, HTTPRequest], Awaitable[Response]]
Result = TypeVar("Result")
Work = Callable[[Service, Any, HTTPRequest], Result]


@dataclass(frozen=True)
class Route:
    """One path under one method. Its first line of documentation is that of what answers it."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    roles: tuple[Role, ...]  # a key needs one of them; none: the route needs no key
    answer: Answerer
    body: type[StrictModel] | None = None
    prepare: Work[Any] | None = None  # work of the answer that the thread does which checks the body
    computes: bool = False  # with the model, which is what a key's `concurrent` and tokens bound
    query: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # each parameter's type and default
    documented: bool = True  # in /openapi.json: a path of the API, and no file of the page


def beside(work: Work[Response]) -> Answerer:
    """An answer that is made in the fair pool, without computing with the model."""

    async def answer(service: Service, body: Any, http: HTTPRequest) -> Response:
        return await service.run(client_of(http), work, body, http)

    return _named(answer, work)


def computed(work: Work[Response]) -> Answerer:
    """An answer that is computed with the model outside of the scheduler's steps, one at a time."""

    async def answer(service: Service, body: Any, http: HTTPRequest) -> Response:
        return await while_connected(http, service.run_alone(http, work, body, http))

    return _named(answer, work)


def cancellable(answer: Answerer) -> Answerer:
    """The same answer, which is cancelled if its client disconnects first."""

    async def answered(service: Service, body: Any, http: HTTPRequest) -> Response:
        return await while_connected(http, answer(service, body, http))

    return _named(answered, answer)


def _named(answer: Any, work: Any) -> Any:
    answer.__name__, answer.__doc__ = work.__name__, work.__doc__
    return answer


def models_of(http: HTTPRequest) -> Models:
    """The models of the server that a request came to."""
    return http.app.state.models


def query_of(http: HTTPRequest) -> dict[str, Any]:
    """The parameters of a request's address that its route names."""
    return http.scope["query"]


def tenant_of(http: HTTPRequest) -> Tenant:
    """The holder of a request's key, where a route has roles."""
    tenant = record_of(http).tenant
    assert tenant is not None, "the route has roles"
    return tenant


# ---- joined ------------------------------------------------------------------------------------------------


def found() -> list[Route]:
    """The routes of all modules of this package, which are imported for it."""
    names = sorted(one.name for one in pkgutil.walk_packages(serve.__path__, f"{serve.__name__}."))
    modules = [importlib.import_module(name) for name in names if name != f"{serve.__name__}.app"]
    return [route for module in modules for route in getattr(module, "ROUTES", ())]


def mount(app: FastAPI, models: Models, routes: Iterable[Route]) -> None:
    """Add routes to an application, each under its path, and without /v1."""
    for route in routes:
        endpoint = _endpoint(models, route)
        summary = " ".join((route.answer.__doc__ or "").split())
        more: Any = {
            "methods": [route.method],
            "response_model": None,
            "summary": summary,
            "include_in_schema": route.documented,
        }
        more |= {"dependencies": [Depends(Gate(route.roles, route.computes))] if route.roles else []}
        app.add_api_route(route.path, endpoint, **more)
        if route.path.startswith("/v1/"):
            app.add_api_route(route.path.removeprefix("/v1"), endpoint, **more | {"include_in_schema": False})


@dataclass(frozen=True)
class Gate:
    """What a route depends on that needs a key: one of these roles, and a place within the key's quotas."""

    roles: tuple[Role, ...]
    computes: bool

    async def __call__(self, http: HTTPRequest) -> None:
        """APIError for a key that may not ask this, or not now."""
        record: RequestRecord = http.scope["record"]
        assert record.tenant is not None  # access.py lets no request without one past it to these paths
        record.tenant.check(*self.roles)
        record.ends.append(record.tenant.admit(self.computes))


def _endpoint(models: Models, route: Route) -> Any:
    """What FastAPI calls: it checks the address; the body is checked in the fair pool."""

    async def endpoint(http: HTTPRequest, **given: Any) -> Response:
        http.scope["query"] = given
        if route.body is None:
            return await route.answer(models.default, None, http)
        service, body = await _read(models, route, route.body, http)
        return await route.answer(service, body, http)

    parts = [inspect.Parameter("http", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=HTTPRequest)]
    for name in re.findall(r"\{(\w+)(?::path)?\}", route.path):
        parts.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=str))
    for name, (kind, default) in route.query.items():
        keyword = inspect.Parameter.KEYWORD_ONLY
        parts.append(inspect.Parameter(name, keyword, annotation=kind, default=default))
    made: Any = _named(endpoint, route.answer)
    made.__signature__ = inspect.Signature(parts)
    return made


async def _read(
    models: Models, route: Route, kind: type[StrictModel], http: HTTPRequest
) -> tuple[Service, Any]:
    """A request's body, checked, and the model that it names, which is kept until the request ends."""
    record: RequestRecord = http.scope["record"]
    raw, first = await http.body(), models.default
    seconds = first.limits.body_seconds if route.prepare is None else first.limits.request_seconds
    body, made = await first.pool.run(
        record.sender, seconds, _checked, models, route, kind, raw, http, large=len(raw) > LARGE
    )
    service = first
    if "admin" not in route.roles:
        asked = getattr(body, "model", None) or getattr(body, "name", None)
        used, service = await models.use(asked)
        record.ends.append(partial(models.leave, used))
        record.model = asked if asked and asked in service.adapters else used.name
    http.scope["prepared"] = made if made is not None and made[0] is service else None
    return service, body


def _checked(
    models: Models, route: Route, kind: type[StrictModel], raw: bytes, http: HTTPRequest
) -> tuple[Any, tuple[Service, Any] | None]:
    """The body, and what its route prepares where the model that it names is loaded, with that model."""
    first = models.default
    raw = unpacked(raw, first.limits.body_bytes) if http.scope["gzip"] else raw
    body: Any = parse_body(kind, raw, first.lenient)
    http.scope["ignored"] = body.ignored
    if getattr(body, "edits", None) or getattr(body, "internals", None):
        tenant_of(http).check("internals")
    service = None if route.prepare is None else models.find(body.model).service
    if route.prepare is None or service is None:
        return body, None
    return body, (service, route.prepare(service, body, http))
