"""/v1/chat/sources: who wrote each character of a conversation as the model reads it."""

from __future__ import annotations

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.tool_calls import sources
from cutaway.generate.tool_calls.sources import Source
from cutaway.serve.api_error import APIError, errors_in
from cutaway.serve.json_body import json_response
from cutaway.serve.openai.message_schema import Ending, Messages, Tools
from cutaway.serve.operations.api_keys import TEXT
from cutaway.serve.prompts import ending, messages
from cutaway.serve.routes import Route, beside
from cutaway.serve.service import Service
from cutaway.serve.validation import Text

LONGEST = 200_000  # characters of the conversation


class SourcesRequest(Ending):
    """A conversation, and the tools that it may use."""

    model: Text | None = None
    messages: Messages
    tools: Tools | None = None


def sourced(service: Service, body: SourcesRequest, http: HTTPRequest) -> Response:
    """Who wrote each character and token of a conversation: template, system, user, assistant or tool."""
    service.engine_of(body.model)
    if service.template is None:
        raise APIError(400, f"{service.name} has no chat template", param="messages", code="no_chat_template")
    given = messages(body.messages)
    if sum(len(str(one["content"])) for one in given) > LONGEST:
        raise APIError(400, f"The conversation has more than {LONGEST:,} characters", param="messages")
    plain = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    with errors_in("messages"):
        found = sources.of(
            given,
            service.template,
            lambda: service.lm.tool_format,
            plain or None,
            tokenizer=service.tokenizer,
            **ending(body),
        )
    read = service.tokenizer
    return json_response(
        {
            "runs": [{"text": one, **_entry(source)} for one, source in found.runs],
            "tokens": [
                {"id": id, "text": read.decode([id]), "bytes": len(read.token_bytes(id)), **_entry(source)}
                for id, source in found.tokens
            ],
        }
    )


def _entry(source: Source) -> dict[str, object]:
    return {"source": source.source, "message": source.message}


ROUTES = [Route("POST", "/v1/chat/sources", TEXT, beside(sourced), SourcesRequest)]
