"""How a request is told that it was not honoured: a status, and the error body that OpenAI's clients read.

{"error": {"message": "...", "type": "invalid_request_error", "param": "top_k", "code": "unknown_parameter"}}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.responses import Response

from cutaway.errors import OperationalError, UserError
from cutaway.generate.batch.request import QueueFullError, RequestCancelledError, ShuttingDownError
from cutaway.generate.decode import ContextFullError

INVALID = "invalid_request_error"
SOON = "5"  # seconds after which a full server may be asked again


class APIError(Exception):
    """A request that is not honoured: why, and the field of the request that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.param, self.code = status, type, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that says so."""
        error = {"message": str(self), "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


def wrong(problem: Exception) -> APIError:
    """What became of a request, as an answer to it. A fault of ours says nothing of its inside."""
    if isinstance(problem, APIError):
        return problem
    if isinstance(problem, ContextFullError):
        return APIError(400, str(problem), param="messages", code="context_length_exceeded")
    if isinstance(problem, QueueFullError):
        return APIError(429, str(problem), type="rate_limit_error", code="queue_full")
    if isinstance(problem, ShuttingDownError):
        return APIError(503, str(problem), type="server_error", code="stopping")
    if isinstance(problem, RequestCancelledError):
        return APIError(503, str(problem), type="server_error", code="cancelled")
    if isinstance(problem, UserError):
        return APIError(400, _capital(str(problem)))
    if isinstance(problem, OperationalError):
        return APIError(500, _capital(str(problem)), type="server_error")
    return APIError(
        500, "The server made a mistake; its log says which", type="server_error", code="internal_error"
    )


@contextmanager
def about(param: str) -> Iterator[None]:
    """What is refused in this block is about this field of the request."""
    try:
        yield
    except ContextFullError as problem:
        raise APIError(400, str(problem), param=param, code="context_length_exceeded") from None
    except UserError as problem:
        said = str(problem)
        raise APIError(400, said if said.startswith(param) else _capital(said), param=param) from None


def unfit(errors: Sequence[Any]) -> APIError:
    """A body that does not fit its schema, by the first of pydantic's findings, unknown fields first."""
    first = min(errors, key=_order)
    place = [part for part in first["loc"] if part != "body"]
    where = _place(place)
    if first["type"] == "unknown_field":
        where = _place([*place, "field"])[: -len("field")] + first["ctx"]["field"][:100]
        message = f"{where} is not supported here: leave it out"
        return APIError(400, message, param=where, code="unknown_parameter")
    if first["type"] == "missing":
        return APIError(
            400, f"{where or 'The body'} is missing", param=where or None, code="missing_parameter"
        )
    said = first["msg"].removeprefix("Value error, ")
    return APIError(400, f"{where or 'The body'}: {said}", param=where or None, code="invalid_value")


def _order(error: Any) -> int:
    """What an object is comes before which fields it then has, those before their values, and last what is
    wrong only because the value is another branch's of a union.
    """
    if error["type"] in ("literal_error", "union_tag_invalid") and error["loc"][-1] == "type":
        return 0
    if error["type"] == "unknown_field":
        return 1
    return 3 if error["type"].endswith("_type") else 2


def answer(problem: APIError) -> Response:
    """The HTTP answer. Its JSON is ASCII, so that what a request spelt can be told back whatever it was."""
    headers = {"Retry-After": SOON} if problem.status in (429, 503) else None
    content = json.dumps(problem.body).encode()
    return Response(content, problem.status, headers, media_type="application/json")


def _place(parts: Sequence[str | int]) -> str:
    """messages[0].content; the names of pydantic's branches of a union are left out."""
    place, before = "", None
    for part in parts:
        if isinstance(part, int):
            place += f"[{part}]"
        elif _is_field(part) and not _is_tag(before, part):
            place += f".{part}" if place else part
        before = part
    return place[:200]


def _is_field(part: str) -> bool:
    return not (part[:1].isupper() or "[" in part or part in ("str", "float", "int", "bool", "none"))


def _is_tag(before: str | int | None, part: str) -> bool:
    """Whether a name is no field's, but what tells the branch: a format's type, an edit's kind."""
    return before in ("response_format", "format") or (
        isinstance(before, int) and part in ("ablate", "patch", "add")
    )


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
