"""/v1/responses: OpenAI's newer way to ask, as far as it is text in and text out. Nothing is stored."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.scheduler import Request
from cutaway.generate.decode import Generation
from cutaway.serve import json_body, openai_format
from cutaway.serve.api_error import about
from cutaway.serve.protocol import Responses, Sampling
from cutaway.serve.service import Service
from cutaway.serve.streaming import Asked, client_of, events, while_there


async def respond(service: Service, body: Responses, http: HTTPRequest) -> Response:
    """Answers a request for a response."""
    request = await service.prepare(
        client_of(http), _request, body, client_of(http), grammar=body.text is not None
    )
    asked = Asked(service, [request])
    responding = Responding(
        service, body, asked, openai_format.named("resp"), openai_format.named("msg"), int(time.time())
    )
    if body.stream:
        return events(asked, responding.events(), service.limits.request_seconds, named=True)
    try:
        return await while_there(http, responding.whole())
    finally:
        asked.close()


def _request(service: Service, body: Responses, client: str) -> Request:
    service.check_model(body.model)
    messages = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        messages += [_message(one) for one in body.input]
    with about("input"):
        ids = tuple(service.lm.chat_ids(messages))
    most = service.limits.tokens(body.max_output_tokens, len(ids), service.context, "max_output_tokens")
    service.check_ids(ids, "input")
    sampling = Sampling.model_validate({"temperature": body.temperature, "top_p": body.top_p})
    constraint = service.constraint(body.text.format if body.text else None, "text.format")
    return Request(ids, service.settings(sampling, most, 0, 0), constraint, client=client)


def _message(given: Any) -> dict[str, str]:
    content = given.content
    if not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    return {"role": "system" if given.role == "developer" else given.role, "content": content}


@dataclass(frozen=True)
class Responding:
    """One response under way, with its ids."""

    service: Service
    body: Responses
    asked: Asked
    id: str
    message_id: str
    created: int

    async def whole(self) -> Response:
        """The response when it is finished."""
        done = None
        async for _, piece in self.asked:
            done = piece.generation
        assert done is not None, "the last piece brings the generation"
        self.service.note_answer(self.body, [done.text])
        return json_body.answer(self._response(done))

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The response's events, numbered, as it is written."""
        number = 0

        def told(kind: str, **more: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            return {"type": kind, "sequence_number": number - 1, **more}

        place = {"item_id": self.message_id, "output_index": 0, "content_index": 0}
        begun = self._response(None)
        yield told("response.created", response=begun)
        yield told("response.in_progress", response=begun)
        yield told("response.output_item.added", output_index=0, item=self._item("in_progress", []))
        yield told("response.content_part.added", part=_part(""), **place)
        done = None
        async for _, piece in self.asked:
            done = piece.generation
            if piece.text:
                yield told("response.output_text.delta", delta=piece.text, logprobs=[], **place)
        assert done is not None, "the last piece brings the generation"
        yield told("response.output_text.done", text=done.text, logprobs=[], **place)
        yield told("response.content_part.done", part=_part(done.text), **place)
        whole = self._response(done)
        yield told("response.output_item.done", output_index=0, item=whole["output"][0])
        yield told(f"response.{whole['status']}", response=whole)

    def _response(self, done: Generation | None) -> dict[str, Any]:
        status, output, usage = "in_progress", [], None
        if done is not None:
            status = "completed" if openai_format.ending(done) == "stop" else "incomplete"
            output = [self._item(status, [_part(done.text)])]
            usage = _usage(done)
        short = status == "incomplete"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if short else None,
            "instructions": self.body.instructions,
            "max_output_tokens": self.body.max_output_tokens,
            "metadata": {},
            "model": self.service.name,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self.asked.streams[0].request.settings.temperature,
            "text": {"format": self._format()},
            "tool_choice": "none",
            "tools": [],
            "top_p": self.asked.streams[0].request.settings.top_p,
            "truncation": "disabled",
            "usage": usage,
        }

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _format(self) -> dict[str, Any]:
        asked = self.body.text.format if self.body.text else None
        return {"type": "text"} if asked is None else asked.model_dump(exclude_none=True, by_alias=True)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(done: Generation) -> dict[str, Any]:
    counts = openai_format.usage([done], [done])
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": counts["prompt_tokens_details"],
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts["total_tokens"],
    }
