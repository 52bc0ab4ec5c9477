"""A request that is refused, and the JSON that says why, in the form of each API.

{"error": {"message": "...", "type": "invalid_request_error", "param": "top_k", "code": "unknown_parameter"}}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.responses import Response

from cutaway.errors import OperationalError, UserError
from cutaway.generate.batch.request import (
    ContextFullError,
    QueueFullError,
    RequestCancelledError,
    ShuttingDownError,
)

RETRY_AFTER = 5  # seconds after which a server may be asked again that cannot tell
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
ANTHROPIC_PATHS = ("/v1/messages", "/messages")


class APIError(Exception):
    """A request that is not honoured: why, and the field of the request that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.param, self.code = status, type, param, code
        self.retry_after = retry_after  # seconds, where it is known

    @property
    def body(self) -> dict[str, Any]:
        """Its JSON in OpenAI's form."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    def body_on(self, path: str) -> dict[str, Any]:
        """The error as JSON in the form of the path's API: Anthropic's, Ollama's or OpenAI's."""
        if path.startswith(ANTHROPIC_PATHS):
            type = ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else self.type)
            details = {"details": {"error_code": self.code}} if self.code else {}
            return {"type": "error", "error": {"type": type, "message": str(self), **details}}
        return {"error": str(self)} if path.startswith("/api/") else self.body


class ContextError(APIError):
    """A prompt that leaves no room for an answer, in the words by which clients know one: OpenAI's, of which
    langchain and litellm look for "maximum context length is", and Anthropic's "prompt is too long".
    """

    def __init__(self, prompt: int, answer: int, context: int, param: str | None = None) -> None:
        of = param if param in ("prompt", "input") else "messages"
        super().__init__(
            400,
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{prompt + answer} tokens ({prompt} in the {of}, {answer} in the completion). "
            f"Please reduce the length of the {of}.",
            param=param,
            code="context_length_exceeded",
        )
        self.prompt, self.most, self.context = prompt, context - answer, context

    def body_on(self, path: str) -> dict[str, Any]:
        """The error as JSON in the form and the words of the path's API."""
        body = super().body_on(path)
        if path.startswith(ANTHROPIC_PATHS):
            body["error"]["message"] = f"prompt is too long: {self.prompt} tokens > {self.most} maximum"
        return body


def to_api_error(error: Exception) -> APIError:
    """The answer to a request that ended in this error; an internal error's text is withheld."""
    if isinstance(error, APIError):
        return error
    text = str(error)
    if isinstance(error, ContextFullError):
        return ContextError(error.length, 1, error.max_context, "messages")
    if isinstance(error, QueueFullError):
        return APIError(429, text, type="rate_limit_error", code="queue_full")
    if isinstance(error, ShuttingDownError):
        return APIError(503, text, type="server_error", code="stopping")
    if isinstance(error, RequestCancelledError):
        return APIError(503, text, type="server_error", code="cancelled")
    if isinstance(error, UserError):
        return APIError(400, capital(text))
    if isinstance(error, OperationalError):
        return APIError(500, capital(text), type="server_error")
    text = "Internal error: the server's log has the details"
    return APIError(500, text, type="server_error", code="internal_error")


def timeout_error(seconds: float) -> APIError:
    """The answer took too long."""
    text = f"The answer took more than {seconds:g} seconds"
    return APIError(504, text, type="server_error", code="too_slow")


def about(error: UserError, param: str) -> APIError:
    """The refusal of a request for an error about this field."""
    if isinstance(error, ContextFullError):
        return ContextError(error.length, 1, error.max_context, param)
    text = str(error)
    return APIError(400, text if text.startswith(param) else capital(text), param=param)


@contextmanager
def errors_in(param: str) -> Iterator[None]:
    """Errors in this block are about this field of the request."""
    try:
        yield
    except UserError as error:
        raise about(error, param) from None


def error_response(error: APIError, path: str, retry_after: int = RETRY_AFTER) -> Response:
    """The HTTP response on a path. Its JSON is ASCII: whatever a request spelt can be quoted."""
    headers = {}
    if error.status in (429, 503):
        headers["Retry-After"] = str(error.retry_after or retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="cutaway"'
    body = json.dumps(error.body_on(path)).encode()
    return Response(body, error.status, headers, media_type="application/json")


def capital(sentence: str) -> str:
    """The sentence with a capital letter."""
    return sentence[:1].upper() + sentence[1:]
