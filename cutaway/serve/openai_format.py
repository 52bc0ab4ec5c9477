"""What is answered, in OpenAI's JSON: errors, tokens with their log-probabilities, usage, internals.

{"error": {"message": "...", "type": "invalid_request_error", "param": "top_k", "code": "unknown_parameter"}}
"""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cutaway.errors import OperationalError, UserError
from cutaway.generate.batch.request import (
    ContextFullError,
    Generation,
    Piece,
    QueueFullError,
    RequestCancelledError,
    ShuttingDownError,
)
from cutaway.tokenizer import Tokenizer

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
MIN_LOGPROB = -9999.0  # OpenAI's logarithm of zero, which JSON has no number for
NUMBERS = 2048  # encoded in one call: some milliseconds in which no other thread runs Python
PLAIN = (int, float, str, bool, type(None))
BYTES = 1 << 18  # sent at once
LENGTHS = 64  # bytes between the lengths that events have


# ---- errors ------------------------------------------------------------------------------------------------


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
        """Its JSON in the form of the API that a path is of: Anthropic's, Ollama's or OpenAI's."""
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
        """Its JSON in the form and the words of the API that a path is of."""
        body = super().body_on(path)
        if path.startswith(ANTHROPIC_PATHS):
            body["error"]["message"] = f"prompt is too long: {self.prompt} tokens > {self.most} maximum"
        return body


def form_of(scope: Scope) -> str:
    """The path whose API's form a response has. Anthropic's clients ask for models on the path of OpenAI's,
    and name their version.
    """
    path: str = scope["path"]
    names_version = any(name == b"anthropic-version" for name, _ in scope["headers"])
    return "/v1/messages" if names_version and path.startswith(("/v1/models", "/models")) else path


def is_anthropic(scope: Scope) -> bool:
    """Whether a response has Anthropic's form."""
    return form_of(scope).startswith(ANTHROPIC_PATHS)


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
        return APIError(400, _capital(text))
    if isinstance(error, OperationalError):
        return APIError(500, _capital(text), type="server_error")
    text = "Internal error: the server's log has the details"
    return APIError(500, text, type="server_error", code="internal_error")


def timeout_error(seconds: float) -> APIError:
    """The answer took too long."""
    text = f"The answer took more than {seconds:g} seconds"
    return APIError(504, text, type="server_error", code="too_slow")


@contextmanager
def errors_in(param: str) -> Iterator[None]:
    """Errors in this block are about this field of the request."""
    try:
        yield
    except ContextFullError as error:
        raise ContextError(error.length, 1, error.max_context, param) from None
    except UserError as error:
        text = str(error)
        raise APIError(400, text if text.startswith(param) else _capital(text), param=param) from None


def error_response(error: APIError, path: str, retry_after: int = RETRY_AFTER) -> Response:
    """The HTTP response on a path. Its JSON is ASCII: whatever a request spelt can be quoted."""
    headers = {}
    if error.status in (429, 503):
        headers["Retry-After"] = str(error.retry_after or retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="cutaway"'
    body = json.dumps(error.body_on(path)).encode()
    return Response(body, error.status, headers, media_type="application/json")


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


# ---- tokens and counts -------------------------------------------------------------------------------------


def new_id(kind: str) -> str:
    """A unique id of an answer."""
    return f"{kind}-{uuid.uuid4().hex}"


def token_logprobs(tokenizer: Tokenizer, piece: Piece) -> dict[str, Any]:
    """A token of a chat's answer with its top alternatives."""
    assert piece.id is not None
    assert piece.logprob is not None
    others = [_token(tokenizer, id, value) for id, value in piece.top_logprobs]
    return _token(tokenizer, piece.id, piece.logprob) | {"top_logprobs": others}


def _token(tokenizer: Tokenizer, id: int, value: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(id)
    text = data.decode("utf-8", "replace")
    return {"token": text, "logprob": max(value, MIN_LOGPROB), "bytes": list(data)}


def token_string(tokenizer: Tokenizer, id: int) -> str:
    """A token as a completion names it: its text, or its bytes where they are not UTF-8."""
    data = tokenizer.token_bytes(id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def internals_of(tokenizer: Tokenizer, piece: Piece) -> dict[str, Any]:
    """The internals at the position from which a token was chosen."""
    layers = [
        {
            "layer": one.layer,
            "attention": [
                {
                    "entropy": head.entropy,
                    "positions": [{"position": at, "weight": weight} for at, weight in head.positions],
                }
                for head in one.heads
            ],
            "lens": [
                {"id": id, "token": token_string(tokenizer, id), "probability": probability}
                for id, probability in one.lens
            ],
            "lens_entropy": one.entropy,
        }
        for one in piece.inside
    ]
    return {"id": piece.id, "layers": layers}


def finish_reason(generation: Generation) -> str:
    """OpenAI's word for what ended an answer: a full context is a length too."""
    return "stop" if generation.finish_reason == "stop" else "length"


def usage(generations: Sequence[Generation], prompts: Sequence[Generation]) -> dict[str, Any]:
    """How many tokens were read and generated; ``prompts`` has one generation for each prompt."""
    read = sum(len(one.prompt_ids) for one in prompts)
    generated = sum(len(one.ids) for one in generations)
    cached = read - sum(one.timings.prefill_tokens for one in prompts)
    return {
        "prompt_tokens": read,
        "completion_tokens": generated,
        "total_tokens": read + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def warned(warnings: Sequence[str]) -> dict[str, Any]:
    """The field ``warnings`` of an answer, where there are any."""
    return {"warnings": warnings} if warnings else {}


def obfuscated(event: dict[str, Any]) -> dict[str, Any]:
    """An event of a stream with random characters, so that its length is one of few and tells less of its
    text to who sees encrypted packets.
    """
    count = -len(_dumps(event).encode()) % LENGTHS
    return event | {"obfuscation": secrets.token_urlsafe(count)[:count]}


# ---- JSON without long holds of Python's lock --------------------------------------------------------------


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
