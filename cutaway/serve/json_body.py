"""JSON in both directions without long holds of Python's lock: a body is checked in a thread and by size, an
answer is encoded and sent in pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cutaway.errors import OperationalError
from cutaway.serve.api_error import APIError, unfit
from cutaway.serve.protocol import StrictModel

Model = TypeVar("Model", bound=StrictModel)
NUMBERS = 2048  # encoded in one call, some milliseconds in which no other thread runs Python
BYTES = 1 << 18  # sent at once


def parsed(model: type[Model], raw: bytes) -> Model:
    """A request's body. APIError for what is not JSON and for what does not fit the model."""
    try:
        value = json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise APIError(400, "The body is not JSON", code="invalid_json") from None
    try:
        return model.model_validate(value)
    except ValidationError as problem:
        raise unfit(problem.errors(include_url=False, include_input=False)) from None
    except RecursionError:
        raise APIError(400, "The body is nested too deep: make it flatter", code="invalid_value") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


class Body(Response):
    """An answer whose body is sent piece by piece, as fast as the client reads."""

    def __init__(self, content: bytes, media_type: str) -> None:
        self.content = content
        self.background: BackgroundTask | None = None
        super().__init__(None, 200, {"content-length": str(len(content))}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        view = memoryview(self.content)
        for at in range(0, len(view), BYTES):
            await send(
                {"type": "http.response.body", "body": bytes(view[at : at + BYTES]), "more_body": True}
            )
        await send({"type": "http.response.body", "body": b""})


def answer(value: Any) -> Body:
    """The answer with this JSON, whose arrays may be numpy's. For threads: it may take seconds."""
    return Body("".join(_pieces(value)).encode("utf-8", "replace"), "application/json")


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, np.ndarray):
        yield from _array(value)
    elif isinstance(value, dict):
        before = "{"
        for key, inside in value.items():
            yield f"{before}{_text(str(key))}:"
            yield from _pieces(inside)
            before = ","
        yield "}" if value else "{}"
    elif isinstance(value, list | tuple):
        before = "["
        for inside in value:
            yield before
            yield from _pieces(inside)
            before = ","
        yield "]" if value else "[]"
    else:
        yield _text(value)


def _array(value: np.ndarray) -> Iterator[str]:
    if value.ndim > 1:
        before = "["
        for row in value:
            yield before
            yield from _array(row)
            before = ","
        yield "]" if len(value) else "[]"
        return
    before = "["
    for at in range(0, len(value), NUMBERS):
        yield before + _text(value[at : at + NUMBERS].tolist())[1:-1]
        before = ","
    yield "]" if len(value) else "[]"


def _text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise OperationalError("The answer holds a number that is not finite, which JSON lacks") from None
