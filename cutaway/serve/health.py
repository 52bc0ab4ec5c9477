"""Routes for operators: health without a key, for load balancers; metrics; what each key used."""

from __future__ import annotations

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from cutaway.serve.json_body import json_response
from cutaway.serve.operations.api_keys import ANY
from cutaway.serve.routes import Route, beside, models_of, tenant_of
from cutaway.serve.service import Service


async def ready(_: Service, body: None, http: HTTPRequest) -> Response:
    """Whether new requests should be sent here: 503 as soon as the server is asked to stop."""
    stopping = models_of(http).stopping.is_set()
    return JSONResponse({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)


async def live(_: Service, body: None, http: HTTPRequest) -> Response:
    """Whether the server answers at all."""
    return JSONResponse({"status": "ok"})


def metrics(service: Service, body: None, http: HTTPRequest) -> Response:
    """What Prometheus reads."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def usage(_: Service, body: None, http: HTTPRequest) -> Response:
    """What the request's API key has used since the server started, and its quotas; all keys' for an
    admin.
    """
    own = tenant_of(http)
    shown = http.app.state.keys.tenants if "admin" in own.roles else [own]
    return json_response({"object": "list", "data": [tenant.usage() for tenant in shown]})


ROUTES = [
    Route("GET", "/health", (), ready),
    Route("GET", "/health/ready", (), ready),
    Route("GET", "/health/live", (), live),
    Route("GET", "/ping", (), live),
    Route("GET", "/metrics", ("metrics",), beside(metrics)),
    Route("GET", "/v1/usage", ANY, beside(usage)),
]
