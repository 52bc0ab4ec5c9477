"""/v1/messages: Anthropic's Messages, translated into a chat and back, whole and streamed.

A thinking block's signature is empty: nothing here checks one. A thread is a conversation that the server
keeps, as it keeps responses (response_store.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Generation, Piece
from cutaway.generate.tool_calls import parser
from cutaway.generate.tool_calls.answer import Event, collect
from cutaway.generate.tool_calls.thoughts import Thought
from cutaway.serve.anthropic.schema import (
    Block,
    CountRequest,
    MessageParam,
    MessagesRequest,
    OldThread,
    Source,
    ToolParam,
)
from cutaway.serve.api_error import APIError
from cutaway.serve.conversation import Conversation, begin, read_answer, reason
from cutaway.serve.json_body import json_response
from cutaway.serve.openai.sampling_schema import schema_format
from cutaway.serve.openai.schema import ChatCompletionRequest
from cutaway.serve.operations.api_keys import TEXT
from cutaway.serve.operations.request_record import client_of, key_of
from cutaway.serve.prompts import chat_ids, ending
from cutaway.serve.response_store import Entry
from cutaway.serve.routes import Route, beside
from cutaway.serve.service import Service, new_id, usage, warned
from cutaway.serve.streaming import respond
from cutaway.serve.validation import Leniency, checked

STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


async def messages(service: Service, body: MessagesRequest, http: HTTPRequest) -> Response:
    """Anthropic's Messages."""
    body = await service.run(client_of(http), _whole, body, key_of(http))
    of = await begin(service, await service.run(client_of(http), as_chat, body), http)
    answer = Message(of, new_id("msg"), body.model or service.name, body, key_of(http))
    return await respond(http, of.streams, answer, body.stream, wire="named")


def _whole(service: Service, body: MessagesRequest, key: bytes) -> MessagesRequest:
    """The request with what its thread holds: the earlier messages, the system prompt, the tools."""
    if not isinstance(body.thread, OldThread):
        if not body.messages:
            raise APIError(400, "messages is empty: give at least one", param="messages")
        return body
    id = body.thread.previous_message_id
    found = service.store.shown(key, id, "thread")
    if found is None:
        text = f"There is no thread {id[:100]!r} here: it was not stored, or its time is over"
        raise APIError(404, text, param="thread", code="thread_not_found")
    given = body.model_dump(exclude_none=True, by_alias=True)
    before = checked(MessagesRequest, {**given, **found}, Leniency(ignored=body.ignored))
    return body.model_copy(
        update={
            "messages": [*before.messages, *body.messages],
            "system": body.system or before.system,
            "tools": body.tools or before.tools,
        }
    )


def count_tokens(service: Service, body: CountRequest, http: HTTPRequest) -> Response:
    """How many tokens Anthropic's messages have."""
    service.engine_of(body.model)
    asked = as_chat(service, body)
    ids = chat_ids(service, asked.messages, asked.tools, ending(asked))
    return json_response({"input_tokens": len(ids)})


def as_chat(service: Service, body: CountRequest) -> ChatCompletionRequest:
    """The same request as a chat."""
    given = body.model_dump(exclude_none=True, by_alias=True)
    made: list[dict[str, Any]] = []
    if body.system:
        made.append({"role": "system", "content": _text(body.system)})
    for message in body.messages:
        made += _messages(message)
    fields: dict[str, Any] = {
        name: given.get(name) for name in ("model", "max_tokens", "stream", "temperature", "top_k", "top_p")
    }
    last = made[-1] if made else {}
    if last.get("role") == "assistant" and not last.get("tool_calls"):  # what the answer goes on with
        made = made if last["content"].strip() else made[:-1]
        fields["continue_final_message"] = bool(last["content"].strip())
    fields |= {"messages": made, "stop": given.get("stop_sequences")}
    fields["tools"] = [_tool(tool) for tool in body.tools or ()]
    choice = body.tool_choice
    if choice is not None:
        named = {"type": "function", "function": {"name": choice.name or ""}}
        fields["tool_choice"] = {"any": "required", "tool": named}.get(choice.type, choice.type)
        fields["parallel_tool_calls"] = False if choice.disable_parallel_tool_use else None
    form = body.output_format or (body.output_config and body.output_config.format)
    if form:
        fields["response_format"] = schema_format(form.schema_)
    if body.thinking is not None:
        fields["chat_template_kwargs"] = {"enable_thinking": body.thinking.type != "disabled"}
        fields["thinking_token_budget"] = body.thinking.budget_tokens
    fields["reasoning_effort"] = body.output_config and body.output_config.effort
    return checked(ChatCompletionRequest, fields, Leniency(ignored=body.ignored))


def _tool(tool: ToolParam) -> dict[str, Any]:
    if tool.type is not None:
        text = f"The tool {tool.type[:64]!r} is one that Anthropic hosts: give your own, with its schema"
        raise APIError(400, text, param="tools")
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function | {"strict": tool.strict}}


def _text(content: str | list[Block] | None) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(_text_of(block) for block in content if block.type in TEXTS)


TEXTS = ("text", "document", "search_result")


def _text_of(block: Block) -> str:
    """A block as text: documents and results of a search between tags, as Anthropic advises for prompts."""
    if block.type == "text":
        return block.text or ""
    named = [("source", block.source)] if isinstance(block.source, str) else []
    named += [("title", block.title), ("context", block.context)]
    lines = [f"<{name}>{value}</{name}>" for name, value in named if value]
    if isinstance(block.source, Source):
        text = _text(block.source.content) if block.source.type == "content" else block.source.data or ""
    elif block.type == "document":
        raise APIError(400, "a document's source is missing: give its text", param="messages")
    else:
        text = _text(block.content)
    return "\n".join([f"<{block.type}>", *lines, text, f"</{block.type}>"])


def _messages(message: MessageParam) -> list[dict[str, Any]]:
    """One message as a chat's: results of tools are messages of their own, and come first."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    blocks, made = message.content, list[dict[str, Any]]()
    for block in blocks:
        if block.type == "tool_result":
            made.append({"role": "tool", "content": _text(block.content), "tool_call_id": block.tool_use_id})
    calls = [
        {"id": block.id, "function": {"name": block.name or "", "arguments": block.input or {}}}
        for block in blocks
        if block.type == "tool_use"
    ]
    thought = "".join(block.thinking or "" for block in blocks if block.type == "thinking")
    if calls or thought or not made or any(block.type in TEXTS for block in blocks):
        turn = {"role": message.role, "content": _text(blocks), "tool_calls": calls}
        made.append(turn | {"reasoning_content": thought or None})
    return made


@dataclass(frozen=True)
class Message:
    """The answer to one request for a message."""

    of: Conversation
    id: str
    model: str
    body: MessagesRequest
    key: bytes

    async def whole(self) -> Response:
        """The message when it is finished."""
        (pieces,), _ = await self.of.streams.collect()
        return await self.of.service.run(self.of.client, self._response, pieces)

    def _response(self, service: Service, pieces: Sequence[Piece]) -> Response:
        answer = read_answer(self.of.reader(), pieces)
        content = _content(answer.thought, answer.content, answer.calls)
        service.log_answer(self.of.body, content)
        self._keep(service, content)
        ended = _ended(answer.reason, answer.generation)
        whole = self._message(content, _usage(answer.generation)) | ended
        return json_response(whole | warned(self.of.form.warnings))

    def _keep(self, service: Service, content: list[dict[str, Any]]) -> None:
        """Store the thread that the message is of, if it is of one, with the message at its end."""
        if self.body.thread is None:
            return
        fields = {"messages", "system", "tools"}
        given = self.body.model_dump(include=fields, exclude_none=True, by_alias=True)
        given["messages"].append({"role": "assistant", "content": content})
        service.store.put(self.key, {self.id: Entry("thread", given)})

    def _message(self, content: list[dict[str, Any]], counts: dict[str, Any]) -> dict[str, Any]:
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self.model}
        return head | {"content": content, "stop_reason": None, "stop_sequence": None, "usage": counts}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The events of a streamed message."""
        read = len(self.of.requests[0].ids)
        begun = self._message([], {"input_tokens": read, "output_tokens": 0})
        yield {"type": "message_start", "message": begun}
        reader, index, kind = self.of.reader(), -1, None
        events: list[Event] = []
        async for _, piece in self.of.streams:
            for event in reader.push(piece):
                events.append(event)
                if isinstance(event, parser.CallStarted) or _kind(event) != kind:
                    if kind is not None:
                        yield {"type": "content_block_stop", "index": index}
                    index, kind = index + 1, _kind(event)
                    block = _block(event if isinstance(event, parser.CallStarted) else type(event)(""))
                    yield {"type": "content_block_start", "index": index, "content_block": block}
                if delta := _delta(event):
                    yield {"type": "content_block_delta", "index": index, "delta": delta}
            if piece.generation is not None:
                if kind is None:
                    yield {"type": "content_block_start", "index": 0, "content_block": _block("")}
                yield {"type": "content_block_stop", "index": max(index, 0)}
                content = _content(*collect(events))
                await self.of.service.run(self.of.client, self._keep, content)
                ended = _ended(reason(reader, piece.generation), piece.generation)
                end = {"type": "message_delta", "delta": ended, "usage": _usage(piece.generation)}
                yield end | warned(self.of.form.warnings)
        yield {"type": "message_stop"}


def _kind(event: Event) -> str:
    return "thinking" if isinstance(event, Thought) else "text" if isinstance(event, str) else "tool_use"


def _content(thought: str, text: str, calls: Sequence[parser.Call]) -> list[dict[str, Any]]:
    """An answer as blocks."""
    content = [] if not thought else [_block(Thought(thought))]
    content += [_block(text)] if text or not calls else []
    for call in calls:
        content.append(_block(parser.CallStarted(call.name)) | {"input": call.object})
    return content


def _block(event: Event) -> dict[str, Any]:
    """A thought, a text, or a call that begins, as a block."""
    if isinstance(event, Thought):
        return {"type": "thinking", "thinking": event.text, "signature": ""}
    if isinstance(event, str):
        return {"type": "text", "text": event}
    assert isinstance(event, parser.CallStarted)
    return {"type": "tool_use", "id": new_id("toolu"), "name": event.name, "input": {}}


def _delta(event: Event) -> dict[str, Any] | None:
    if isinstance(event, Thought):
        return {"type": "thinking_delta", "thinking": event.text}
    if isinstance(event, str):
        return {"type": "text_delta", "text": event}
    if isinstance(event, parser.CallStarted):
        return None
    return {"type": "input_json_delta", "partial_json": event.arguments}


def _ended(reason: str, generation: Generation) -> dict[str, Any]:
    stopped = reason == "stop" and isinstance(generation.stop, str)
    stop = generation.stop if stopped else None
    return {"stop_reason": "stop_sequence" if stopped else STOPS[reason], "stop_sequence": stop}


def _usage(generation: Generation) -> dict[str, Any]:
    counts = usage([generation], [generation])
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": counts["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": counts["completion_tokens"],
    }


ROUTES = [
    Route("POST", "/v1/messages", ("chat",), messages, MessagesRequest, computes=True),
    Route("POST", "/v1/messages/count_tokens", TEXT, beside(count_tokens), CountRequest),
]
