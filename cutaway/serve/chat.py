"""/v1/chat/completions: a conversation in, the assistant's answer out, whole or streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate import constrain
from cutaway.generate.batch.request import Generation, Piece, Request
from cutaway.serve.openai_format import (
    APIError,
    errors_in,
    finish_reason,
    internals_of,
    json_response,
    new_id,
    token_logprobs,
    usage,
)
from cutaway.serve.protocol import ChatCompletionRequest, Message, NamedTool, Tool
from cutaway.serve.service import Service
from cutaway.serve.streaming import MergedStreams, cache_scope_of, client_of, respond
from cutaway.serve.tool_calls import parser, tool_grammar
from cutaway.serve.tool_calls.tool_format import ToolFormat, detect_format


async def chat(service: Service, body: ChatCompletionRequest, http: HTTPRequest) -> Response:
    """Answer a chat request."""
    client, scope = client_of(http), cache_scope_of(http, body.cache_salt)
    grammar = body.response_format is not None or body.tools is not None
    requests, format = await service.prepare(client, _requests, body, client, scope, grammar=grammar)
    streams = MergedStreams(service, requests)
    return await respond(http, streams, ChatAnswer(service, body, format, streams), body.stream)


def messages(given: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates read them: text joined, arguments as objects, developers as the system."""
    return [_message(message, i) for i, message in enumerate(given)]


def chat_ids(service: Service, given: Sequence[Message], tools: Sequence[Tool] | None) -> list[int]:
    """The ids of a conversation. APIError for a model without a template, and for content that steers it."""
    plain = None if tools is None else [tool.model_dump(exclude_none=True) for tool in tools]
    with errors_in("messages"):
        return service.lm.chat_ids(messages(given), tools=plain)


def _message(message: Message, i: int) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    if content is None:
        if not message.tool_calls:
            raise APIError(400, f"messages[{i}] has no content: give it some", param=f"messages[{i}].content")
        content = ""
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content,
    }
    plain |= {
        name: value
        for name in ("name", "reasoning_content", "tool_call_id")
        if (value := getattr(message, name)) is not None
    }
    if message.tool_calls:
        plain["tool_calls"] = [
            _tool_call(call, f"messages[{i}].tool_calls[{j}]") for j, call in enumerate(message.tool_calls)
        ]
    return plain


def _tool_call(call: Any, param: str) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        param += ".function.arguments"
        raise APIError(400, f"{param} is no JSON object", param=param)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id or "call00000", "type": "function", "function": function}


def _requests(
    service: Service, body: ChatCompletionRequest, client: str, cache_scope: bytes
) -> tuple[list[Request], ToolFormat | None]:
    """The scheduler's request for each choice, and the format of tool calls, if the answer may make any."""
    engine = service.engine_of(body.model, body.edits)
    _check_consistent(body)
    count = body.n or 1
    service.limits.check_choices(count, "n")
    tools = None if body.tool_choice == "none" else body.tools
    ids = tuple(chat_ids(service, body.messages, tools))
    given = ("max_completion_tokens", body.max_completion_tokens)
    param, most = ("max_tokens", body.max_tokens) if given[1] is None else given
    if most == 0:
        raise APIError(400, f"{param} is 0: an answer has at least one token", param=param)
    most = service.limits.tokens(most, len(ids), service.context, param)
    service.check_ids(ids, "messages")
    if tools is None:
        format, constraint = None, service.constraint(body.response_format, "response_format")
    else:
        with errors_in("tools"):
            format, rules = _tool_rules(service, body, tools)
            constraint = service.start_grammar(rules)
    internals = service.internals(body.internals)
    edit = service.edit(body.edits, ids)
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else 0
    requests = [
        Request(
            ids=ids,
            settings=service.sampling_params(body, most, top_logprobs, choice),
            constraint=constraint.fresh() if constraint is not None and choice else constraint,
            internals=internals,
            edit=edit,
            client=client,
            cache_scope=cache_scope,
            engine=engine,
        )
        for choice in range(count)
    ]
    return requests, format


def _check_consistent(body: ChatCompletionRequest) -> None:
    """Refuse fields that contradict each other."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        text = "max_tokens and max_completion_tokens mean the same: give one"
        raise APIError(400, text, param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise APIError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise APIError(400, "stream_options needs stream to be true", param="stream_options")
    if body.tools is None:
        for name in ("tool_choice", "parallel_tool_calls"):
            if getattr(body, name) not in (None, "none", "auto"):
                raise APIError(400, f"{name} needs tools", param=name)
    elif (
        body.response_format is not None
        and body.response_format.type != "text"
        and body.tool_choice != "none"
    ):
        text = "response_format and tools exclude each other: use tool_choice 'none'"
        raise APIError(400, text, param="response_format")


def _tool_rules(
    service: Service, body: ChatCompletionRequest, tools: Sequence[Tool]
) -> tuple[ToolFormat, constrain.Grammar | None]:
    """The template's format of tool calls, and the grammar where calls are required or strict."""
    lm, choice = service.lm, body.tool_choice
    format = detect_format(lm.checkpoint.chat_template or "", lm.tokenizer)
    schemas = _schemas(tools)
    if len(schemas) < len(tools):
        raise APIError(400, "two of the tools have the same name", param="tools")
    several = body.parallel_tool_calls is not False
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in schemas:
            text = f"tool_choice names {name[:64]!r}, which is not among the tools"
            raise APIError(400, text, param="tool_choice")
        return format, tool_grammar.required_grammar(
            format, {name: schemas[name]}, lm.tokenizer, several=False
        )
    if choice == "required":
        return format, tool_grammar.required_grammar(format, schemas, lm.tokenizer, several)
    if any(tool.function.strict for tool in tools) or not several:
        free = tool_grammar.optional_grammar(format, schemas, lm.tokenizer, several)
        return format, free
    return format, None


def _schemas(tools: Sequence[Tool] | None) -> parser.ToolSchemas:
    """The schemas of the tools' arguments by the tools' names."""
    return {tool.function.name: tool.function.parameters for tool in tools or ()}


@dataclass(frozen=True)
class ChatAnswer:
    """The answer to one chat request."""

    service: Service
    body: ChatCompletionRequest
    format: ToolFormat | None
    streams: MergedStreams

    async def whole(self) -> Response:
        """The response when all choices are finished."""
        return await asyncio.to_thread(self._response, *await self.streams.collect())

    def _response(self, pieces: Sequence[Sequence[Piece]], generations: Sequence[Generation]) -> Response:
        head = self.service.head(new_id("chatcmpl"), "chat.completion", self.body.model)
        choices = [self._choice(i, *each) for i, each in enumerate(zip(pieces, generations, strict=True))]
        self.service.log_answer(self.body, [choice["message"] for choice in choices])
        return json_response(head | {"choices": choices, "usage": usage(generations, generations[:1])})

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a streamed response."""
        head = self.service.head(new_id("chatcmpl"), "chat.completion.chunk", self.body.model)
        counting = bool(self.body.stream_options and self.body.stream_options.include_usage)
        tail = {"usage": None} if counting else {}
        choices = [_StreamedChoice(self, i) for i in range(len(self.streams.streams))]
        generations: dict[int, Generation] = {}
        for choice in choices:
            yield head | {"choices": [choice.delta({"role": "assistant", "content": ""})]} | tail
        async for i, piece in self.streams:
            for delta in choices[i].push(piece):
                yield head | {"choices": [delta]} | tail
            if piece.generation is not None:
                generations[i] = piece.generation
        if counting:
            done = [generations[i] for i in sorted(generations)]
            yield head | {"choices": [], "usage": usage(done, done[:1])}

    def parser(self) -> parser.StreamingParser | None:
        """A parser of one choice's tool calls, None where it may make none."""
        return self.format and parser.StreamingParser(self.format, _schemas(self.body.tools))

    def token_fields(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Log-probabilities and internals of the pieces' tokens, where the request asks for them."""
        tokenizer, chosen = self.service.lm.tokenizer, [piece for piece in pieces if piece.id is not None]
        found: dict[str, Any] = {}
        if self.body.logprobs:
            found["logprobs"] = {"content": [token_logprobs(tokenizer, piece) for piece in chosen]}
        if self.body.internals is not None:
            found["internals"] = [internals_of(tokenizer, piece) for piece in chosen]
        return found

    def _choice(self, i: int, pieces: Sequence[Piece], generation: Generation) -> dict[str, Any]:
        content, calls, complete = generation.text, [], False
        if reader := self.parser():
            content, calls = parser.collect([*reader.push(content), *reader.finish()])
            complete = reader.complete
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if calls else ""),
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        reason = _finish_reason(generation, complete)
        choice = {"index": i, "message": message, "finish_reason": reason, "logprobs": None}
        return choice | self.token_fields(pieces)


class _StreamedChoice:
    """One choice of a streamed chat: pieces in, deltas out."""

    def __init__(self, answer: ChatAnswer, i: int) -> None:
        self.answer, self.i = answer, i
        self.calls = 0
        self.parser = answer.parser()

    def delta(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": self.i, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        """The deltas that a piece brings; the first has the fields of its token."""
        events: list[parser.ParserEvent] = [piece.text] if piece.text else []
        if self.parser is not None:
            events = self.parser.push(piece.text)
            events += self.parser.finish() if piece.generation is not None else []
        deltas = [self.delta(self._event(event)) for event in events]
        fields = {} if piece.id is None else self.answer.token_fields([piece])
        if fields:
            deltas = deltas or [self.delta({})]
            deltas[0] |= fields
        if piece.generation is not None:
            complete = self.parser is not None and self.parser.complete
            deltas.append(self.delta({}, _finish_reason(piece.generation, complete)))
        return deltas

    def _event(self, event: parser.ParserEvent) -> dict[str, Any]:
        """Content, a call that begins, or more of its arguments."""
        if isinstance(event, str):
            return {"content": event}
        if isinstance(event, parser.CallStarted):
            self.calls += 1
            more = _call(parser.Call(event.name, ""))
        else:
            more = {"function": {"arguments": event.arguments}}
        return {"tool_calls": [{"index": self.calls - 1, **more}]}


def _call(call: parser.Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": new_id("call"), "type": "function", "function": function}


def _finish_reason(generation: Generation, called: bool) -> str:
    """OpenAI's word for what ended an answer: calls, unless it was cut off before they were complete."""
    reason = finish_reason(generation)
    return "tool_calls" if called and reason == "stop" else reason
