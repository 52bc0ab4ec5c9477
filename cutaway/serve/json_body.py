"""A response's JSON, written and sent in parts, without long holds of Python's lock."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cutaway.errors import OperationalError

NUMBERS = 2048  # encoded in one call: some milliseconds in which no other thread runs Python
PLAIN = (int, float, str, bool, type(None))
BYTES = 1 << 18  # sent at once
LENGTHS = 64  # bytes between the lengths that events have


def obfuscated(event: dict[str, Any]) -> dict[str, Any]:
    """An event of a stream with random characters, so that its length is one of few and tells less of its
    text to who sees encrypted packets.
    """
    count = -len(_dumps(event).encode()) % LENGTHS
    return event | {"obfuscation": secrets.token_urlsafe(count)[:count]}


class BodyResponse(Response):
    """A response sent in parts, as fast as the client reads."""

    def __init__(self, content: bytes, media_type: str) -> None:
        self.content = content
        self.background: BackgroundTask | None = None
        super().__init__(None, 200, {"content-length": str(len(content))}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        view = memoryview(self.content)
        for at in range(0, len(view), BYTES):
            part = bytes(view[at : at + BYTES])
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def json_response(value: Any) -> BodyResponse:
    """A response with this JSON, whose arrays may be numpy's. For threads: it may take seconds."""
    return BodyResponse("".join(_encoded(value)).encode("utf-8", "replace"), "application/json")


def _encoded(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for n, (key, inside) in enumerate(value.items()):
            yield f"{',' if n else '{'}{_dumps(str(key))}:"
            yield from _encoded(inside)
        yield "}" if value else "{}"
    elif isinstance(value, np.ndarray) and value.ndim == 1:
        for at in range(0, len(value), NUMBERS):
            yield ("," if at else "[") + _dumps(value[at : at + NUMBERS].tolist())[1:-1]
        yield "]" if len(value) else "[]"
    elif isinstance(value, list | tuple | np.ndarray):
        for at in range(0, len(value), NUMBERS):
            part = value[at : at + NUMBERS]
            yield "," if at else "["
            if all(map(_is_plain, part)):
                yield _dumps(part)[1:-1]
                continue
            for n, inside in enumerate(part):
                yield "," if n else ""
                yield from _encoded(inside)
        yield "]" if len(value) else "[]"
    else:
        yield _dumps(value)


def _is_plain(value: Any) -> bool:
    """Whether this is one value, or few by name: many of them are written in one call."""
    if type(value) is dict:
        return all(type(key) is str and type(one) in PLAIN for key, one in value.items())
    return type(value) in PLAIN


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise OperationalError("The answer holds a number that is not finite, which JSON lacks") from None
