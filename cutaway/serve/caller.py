"""Whose request it is: the client that waits its turn, the API key whose entries it may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HTTPRequest

from cutaway.generate.batch.prefix_cache import cache_scope
from cutaway.serve.operations.request_record import record_of


def client_of(http: HTTPRequest) -> str:
    """The client whose requests wait behind each other."""
    return record_of(http).sender


def key_of(http: HTTPRequest) -> bytes:
    """Whose entries of the store a request may see: its API key's."""
    tenant = record_of(http).tenant
    return b"" if tenant is None else tenant.scope


@dataclass(frozen=True)
class Caller:
    """What the scheduler knows of a request's sender: ``fields`` of its Request."""

    client: str
    priority: int
    cache_scope: bytes  # of the requests that this one may share the prefix cache with

    @property
    def fields(self) -> dict[str, Any]:
        """Its values, by name."""
        return vars(self)


def caller_of(http: HTTPRequest, salt: str | None) -> Caller:
    """The sender of a request; the prefix cache is that of its API key and salt."""
    tenant = record_of(http).tenant
    scope, priority = (b"", 0) if tenant is None else (tenant.scope, tenant.priority)
    return Caller(client_of(http), priority, cache_scope(scope, salt))
