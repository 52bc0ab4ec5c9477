"""/v1/responses: OpenAI's Responses, translated into a chat and back, and kept for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Generation
from cutaway.serve.api_error import APIError, to_api_error
from cutaway.serve.conversation import Conversation, begin
from cutaway.serve.json_body import json_response
from cutaway.serve.openai import summaries
from cutaway.serve.openai.format import scored, token_logprobs
from cutaway.serve.openai.items import bounded, items_of, kept, messages_of, named
from cutaway.serve.openai.response_items import Items
from cutaway.serve.openai.responses_schema import ResponseSchema, ResponsesRequest, ResponseTool, ToolChoice
from cutaway.serve.openai.schema import ChatCompletionRequest
from cutaway.serve.operations.request_record import client_of, key_of, record_of
from cutaway.serve.prompts import chat_ids
from cutaway.serve.response_store import Entry
from cutaway.serve.routes import Route, beside
from cutaway.serve.service import Service, new_id, usage, warned
from cutaway.serve.streaming import EncodedEvent, encoded_event, respond
from cutaway.serve.validation import Leniency, checked

Result = TypeVar("Result")
PARAMS = {
    "messages": "input",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
}  # a chat's fields under this API's names
LOGPROBS = "message.output_text.logprobs"
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")  # of what OpenAI includes; there is nothing to encrypt


async def response(service: Service, body: ResponsesRequest, http: HTTPRequest) -> Response:
    """OpenAI's Responses."""
    key, client = key_of(http), client_of(http)
    items, asked = await service.run(client, as_chat, body, key)
    of = await begin_response(service, asked, http)
    answer = ResponseAnswer(body, of, key, client, items)
    if body.background and not body.stream:
        begun = await service.run(client, answer.begun)
        record_of(http).background = asyncio.create_task(answer.finished())
        return begun
    return await respond(http, answer.of.streams, answer, body.stream, wire="named")


async def begin_response(service: Service, asked: ChatCompletionRequest, http: HTTPRequest) -> Conversation:
    """Begin the chat that a request means. APIError, under the names of this API's fields."""
    try:
        return await begin(service, asked, http)
    except APIError as error:
        error.param = PARAMS.get(error.param or "", error.param)
        raise


def as_chat(
    service: Service, body: ResponsesRequest, key: bytes
) -> tuple[list[dict[str, Any]], ChatCompletionRequest]:
    """All items that the response answers, and the same as a chat."""
    if body.background and body.store is False:
        raise APIError(400, "background needs store: its response is fetched later", param="background")
    items = items_of(service, key, body.input, body.previous_response_id, body.conversation_id)
    given = messages_of(summaries.read(service.store.secret, key, items))
    if any(item["type"] == "compaction" for item in items):
        given = summaries.joined(given)
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": messages + given,
        "max_completion_tokens": body.max_output_tokens,
        **body.model_dump(include={"temperature", "top_p"}),
        "stream": body.stream,
        "cache_salt": body.cache_salt,
        "reasoning_effort": body.reasoning and body.reasoning.effort,
        "tools": [_tool(tool) for tool in body.tools or ()],
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _format(body),
    }
    for name in body.include or ():
        if name not in INCLUDED:
            body.ignored[f"include.{name}"] = None
    if LOGPROBS in (body.include or ()):
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    elif body.top_logprobs is not None:
        body.ignored["top_logprobs"] = None
    return items, checked(ChatCompletionRequest, fields, Leniency(ignored=body.ignored))


def input_tokens(service: Service, body: ResponsesRequest, http: HTTPRequest) -> Response:
    """How many tokens a response's input has as the model reads it."""
    service.engine_of(body.model)
    asked = as_chat(service, body, key_of(http))[1]
    ids = chat_ids(service, asked.messages, asked.tools)
    return json_response({"object": "response.input_tokens", "input_tokens": len(ids)})


def _tool(tool: ResponseTool) -> dict[str, Any]:
    if tool.type != "function":
        text = f"The tool {tool.type[:64]!r} is one that OpenAI hosts: give tools of type function"
        raise APIError(400, text, param="tools", code="hosted_tool")
    fields = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: getattr(tool, name) for name in fields}}


def _choice(choice: str | ToolChoice | None) -> Any:
    if choice is None or isinstance(choice, str):
        return choice
    if choice.type == "allowed_tools":
        tools = [_choice(one) for one in choice.tools or ()]
        return {"type": choice.type, "allowed_tools": {"mode": choice.mode or "auto", "tools": tools}}
    if choice.type != "function":
        text = f"tool_choice asks for {choice.type[:64]!r}, which OpenAI hosts: name a function"
        raise APIError(400, text, param="tool_choice", code="hosted_tool")
    return {"type": "function", "function": {"name": choice.name or ""}}


def _format(body: ResponsesRequest) -> Any:
    asked = body.text and body.text.format
    if not asked:
        return None
    plain = asked.model_dump(exclude_none=True, by_alias=True)
    return {"type": plain.pop("type"), "json_schema": plain} if isinstance(asked, ResponseSchema) else plain


@dataclass
class ResponseAnswer:
    """The answer to one request for a response."""

    body: ResponsesRequest
    of: Conversation
    key: bytes
    client: str
    items: list[dict[str, Any]]  # that it answers
    id: str = field(default_factory=lambda: new_id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    output: Items = field(default_factory=Items)
    done: Generation | None = None
    thought_tokens: int = 0
    cancelled: bool = False
    failed: APIError | None = None  # in the background

    async def whole(self) -> Response:
        """The response when it is finished."""
        await self.finished()
        return await self._run(lambda _: json_response(self.shown()))

    def begun(self, service: Service) -> Response:
        """The response of a background answer that begins; kept, so that it can be fetched. For threads."""
        shown = self.shown()
        service.store.put(self.key, {self.id: Entry("response", shown, self.items, len(self.items))})
        return json_response(shown)

    async def finished(self) -> None:
        """Finish the response; kept, unless that is not wanted."""
        try:
            async for _ in self.chunks():
                pass
        finally:
            self.of.streams.close()

    async def chunks(self) -> AsyncIterator[dict[str, Any] | EncodedEvent]:
        """The numbered events of a streamed response."""
        service, number = self.of.service, 2
        service.running[self.key, self.id] = self
        try:
            for n, kind in enumerate(("created", "in_progress")):
                yield await self._run(self._whole_event, kind, n)
            async for event in self._events():
                yield {**event, "sequence_number": number}
                number += 1
            yield await self._run(self._last_event, number)
        except Exception as error:
            if not (self.cancelled or self.body.background):
                raise
            self.failed = None if self.cancelled else to_api_error(error)
            await self._run(self._keep)
        finally:
            service.running.pop((self.key, self.id), None)

    async def _run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Work on the whole response, which may be as large as its request, beside the event loop."""
        return await self.of.service.run(self.client, work, *arguments)

    def _whole_event(self, _: Service, kind: str, number: int) -> EncodedEvent:
        type = f"response.{kind}"
        return encoded_event({"type": type, "response": self.shown(), "sequence_number": number})

    def _last_event(self, service: Service, number: int) -> EncodedEvent:
        return self._whole_event(service, self._keep(service)["status"], number)

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        reader, tokenizer = self.of.reader(), self.of.service.lm.tokenizer
        async for _, piece in self.of.streams:
            wanted = self.of.body.logprobs and piece.id is not None
            scores = [token_logprobs(tokenizer, scored(piece))] if wanted else []
            for event in reader.push(piece):
                for one in self.output.push(event, scores):
                    yield one
                scores = []
            self.done, self.thought_tokens = piece.generation, reader.thought_tokens
        assert self.done is not None, "the last piece brings the generation"
        rest = () if self.output.made else self.output.push("")
        for one in (*rest, *self.output.close(self._ended(self.done))):
            yield one

    @staticmethod
    def _ended(done: Generation) -> str:
        return "completed" if done.finish_reason == "stop" else "incomplete"

    def _keep(self, service: Service) -> dict[str, Any]:
        """Store the response, unless that is not wanted, and return its JSON. For threads."""
        shown = self.shown()
        service.log_answer(self.body, shown["output"])
        if self.body.store is False:
            return shown
        items = [*self.items, *self.output.made]
        entries = {self.id: Entry("response", shown, items, len(self.items))}
        entries |= {item["id"]: Entry("item", item) for item in self.output.made}
        if (id := self.body.conversation_id) is not None:
            found = kept(service, self.key, id, "conversation", "conversation")
            entries[id] = replace(found, items=bounded(service, named(items)))
        service.store.put(self.key, entries)
        return shown

    def shown(self) -> dict[str, Any]:
        """The response's JSON, as far as it is."""
        status, body = "in_progress", self.body
        if self.done is not None:
            status = self._ended(self.done)
        status = "cancelled" if self.cancelled else "failed" if self.failed else status
        settings, plain = self.of.requests[0].settings, body.model_dump(exclude_none=True, by_alias=True)
        made = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": bool(body.background),
            "error": self.failed
            and {"code": self.failed.code or "server_error", "message": str(self.failed)},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model or self.of.service.name,
            "output": [] if self.done is None else self.output.made,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "store": body.store is not False,
            "temperature": settings.temperature,
            "text": {"format": plain.get("text", {}).get("format") or {"type": "text"}},
            "tool_choice": plain.get("tool_choice") or "auto",
            "tools": [
                dict.fromkeys(("description", "parameters", "strict")) | tool
                for tool in plain.get("tools", ())
            ],
            "top_p": settings.top_p,
            "truncation": "disabled",
            "usage": self.done and usage_of(self.done, self.thought_tokens),
        }
        if body.conversation_id is not None:
            made["conversation"] = {"id": body.conversation_id}
        return made | warned(self.of.form.warnings)


def usage_of(done: Generation, thought: int) -> dict[str, Any]:
    """How many tokens were read and generated, as this API counts them."""
    counts = usage([done], [done])
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {**counts["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": counts["total_tokens"],
    }


ROUTES = [
    Route("POST", "/v1/responses", ("chat",), response, ResponsesRequest, computes=True),
    Route("POST", "/v1/responses/input_tokens", ("chat",), beside(input_tokens), ResponsesRequest),
]
