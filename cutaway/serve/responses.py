"""/v1/responses: OpenAI's Responses, as far as they are text in and text out. Nothing is stored."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Generation, Request
from cutaway.serve.openai_format import errors_in, finish_reason, json_response, new_id, usage
from cutaway.serve.protocol import ResponsesRequest, SamplingRequest
from cutaway.serve.service import Service
from cutaway.serve.streaming import MergedStreams, cache_scope_of, client_of, respond


async def response(service: Service, body: ResponsesRequest, http: HTTPRequest) -> Response:
    """Answer a request for a response."""
    client, scope = client_of(http), cache_scope_of(http, body.cache_salt)
    request = await service.prepare(client, _request, body, client, scope, grammar=body.text is not None)
    streams = MergedStreams(service, [request])
    answer = ResponseAnswer(service, body, streams, new_id("resp"), new_id("msg"), int(time.time()))
    return await respond(http, streams, answer, body.stream, named=True)


def _request(service: Service, body: ResponsesRequest, client: str, cache_scope: bytes) -> Request:
    engine = service.engine_of(body.model)
    messages = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        messages += [_message(one) for one in body.input]
    with errors_in("input"):
        ids = tuple(service.lm.chat_ids(messages))
    most = service.limits.tokens(body.max_output_tokens, len(ids), service.context, "max_output_tokens")
    service.check_ids(ids, "input")
    sampling = SamplingRequest.model_validate(body.model_dump(include={"temperature", "top_p"}))
    constraint = service.constraint(body.text.format if body.text else None, "text.format")
    params = service.sampling_params(sampling, most, 0, 0)
    return Request(ids, params, constraint, client=client, cache_scope=cache_scope, engine=engine)


def _message(given: Any) -> dict[str, str]:
    content = given.content
    if not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    return {"role": "system" if given.role == "developer" else given.role, "content": content}


@dataclass(frozen=True)
class ResponseAnswer:
    """The answer to one request for a response."""

    service: Service
    body: ResponsesRequest
    streams: MergedStreams
    id: str
    message_id: str
    created: int

    async def whole(self) -> Response:
        """The response when it is finished."""
        _, (done,) = await self.streams.collect()
        self.service.log_answer(self.body, [done.text])
        return json_response(self._response(done))

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The numbered events of a streamed response."""
        number = 0

        def event(kind: str, **more: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            return {"type": kind, "sequence_number": number - 1, **more}

        place = {"item_id": self.message_id, "output_index": 0, "content_index": 0}
        begun = self._response(None)
        yield event("response.created", response=begun)
        yield event("response.in_progress", response=begun)
        yield event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
        yield event("response.content_part.added", part=_part(""), **place)
        done = None
        async for _, piece in self.streams:
            done = piece.generation
            if piece.text:
                yield event("response.output_text.delta", delta=piece.text, logprobs=[], **place)
        assert done is not None, "the last piece brings the generation"
        yield event("response.output_text.done", text=done.text, logprobs=[], **place)
        yield event("response.content_part.done", part=_part(done.text), **place)
        whole = self._response(done)
        yield event("response.output_item.done", output_index=0, item=whole["output"][0])
        yield event(f"response.{whole['status']}", response=whole)

    def _response(self, done: Generation | None) -> dict[str, Any]:
        status, output, counts = "in_progress", [], None
        if done is not None:
            status = "completed" if finish_reason(done) == "stop" else "incomplete"
            output = [self._item(status, [_part(done.text)])]
            counts = _usage(done)
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
            "model": self.body.model or self.service.name,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self.streams.streams[0].request.settings.temperature,
            "text": {"format": self._format()},
            "tool_choice": "none",
            "tools": [],
            "top_p": self.streams.streams[0].request.settings.top_p,
            "truncation": "disabled",
            "usage": counts,
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
    counts = usage([done], [done])
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": counts["prompt_tokens_details"],
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts["total_tokens"],
    }
