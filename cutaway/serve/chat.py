"""/v1/chat/completions: a conversation in, the assistant's answer out, whole or as it is written."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate import constrain
from cutaway.generate.batch.scheduler import Request
from cutaway.generate.decode import Generation, Piece
from cutaway.serve import json_body, openai_format
from cutaway.serve.api_error import APIError, about
from cutaway.serve.protocol import Chat, Message, NamedTool, Tool
from cutaway.serve.service import Service
from cutaway.serve.streaming import Asked, client_of, events, while_there
from cutaway.serve.tool_calls import parser as calling
from cutaway.serve.tool_calls import tool_grammar
from cutaway.serve.tool_calls.tool_format import ToolFormat, dialect


async def chat(service: Service, body: Chat, http: HTTPRequest) -> Response:
    """Answers a chat request."""
    requests, format = await service.prepare(
        client_of(http),
        _requests,
        body,
        client_of(http),
        grammar=body.response_format is not None or body.tools is not None,
    )
    asked = Asked(service, requests)
    talk = Talk(service, body, format, asked)
    if body.stream:
        return events(asked, talk.chunks(), service.limits.request_seconds)
    try:
        return await while_there(http, talk.whole())
    finally:
        asked.close()


def messages(given: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates read them: text joined, arguments as objects, developers as the system."""
    return [_message(message, i) for i, message in enumerate(given)]


def chat_ids(service: Service, given: Sequence[Message], tools: Sequence[Tool] | None) -> list[int]:
    """The ids of a conversation. UserError for a model without a template, and for words that steer it."""
    plain = None if tools is None else [tool.model_dump(exclude_none=True) for tool in tools]
    with about("messages"):
        return service.lm.chat_ids(messages(given), tools=plain)


def _message(message: Message, i: int) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    if content is None:
        if not message.tool_calls:
            raise APIError(
                400, f"messages[{i}] says nothing: give it content", param=f"messages[{i}].content"
            )
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
            _called(call, f"messages[{i}].tool_calls[{j}]") for j, call in enumerate(message.tool_calls)
        ]
    return plain


def _called(call: Any, place: str) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise APIError(
            400, f"{place}.function.arguments is no JSON object", param=f"{place}.function.arguments"
        )
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id or "call00000", "type": "function", "function": function}


def _requests(service: Service, body: Chat, client: str) -> tuple[list[Request], ToolFormat | None]:
    """What is asked of the engine for each choice, and how the answer writes calls, if it may make any."""
    service.check_model(body.model)
    _agree(body)
    count = body.n or 1
    service.limits.of_choices(count, "n")
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
        with about("tools"):
            format, rules = _calls(service, body, tools)
            constraint = service.held_to(rules)
    watch = service.internals(body.internals)
    edit = service.edit(body.edits, ids)
    alternatives = (body.top_logprobs or 0) if body.logprobs else 0
    requests = [
        Request(
            ids=ids,
            settings=service.settings(body, most, alternatives, choice),
            constraint=constraint.fresh() if constraint is not None and choice else constraint,
            internals=watch,
            edit=edit,
            client=client,
        )
        for choice in range(count)
    ]
    return requests, format


def _agree(body: Chat) -> None:
    """Refuses fields that contradict each other."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise APIError(
            400,
            "max_tokens and max_completion_tokens are two names of one thing: give one",
            param="max_tokens",
        )
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
        raise APIError(
            400,
            "response_format and tools cannot both say what the answer is: use tool_choice 'none'",
            param="response_format",
        )


def _calls(
    service: Service, body: Chat, tools: Sequence[Tool]
) -> tuple[ToolFormat, constrain.Grammar | None]:
    """How the template writes calls, and what an answer is held to where a call is demanded."""
    lm, choice = service.lm, body.tool_choice
    format = dialect(lm.checkpoint.chat_template or "", lm.tokenizer)
    schemas = _schemas(tools)
    if len(schemas) < len(tools):
        raise APIError(400, "two of the tools have the same name", param="tools")
    several = body.parallel_tool_calls is not False
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in schemas:
            raise APIError(
                400, f"tool_choice names {name[:64]!r}, which is not among the tools", param="tool_choice"
            )
        return format, tool_grammar.required_grammar(
            format, {name: schemas[name]}, lm.tokenizer, several=False
        )
    if choice == "required":
        return format, tool_grammar.required_grammar(format, schemas, lm.tokenizer, several)
    if any(tool.function.strict for tool in tools) or not several:
        free = tool_grammar.optional_grammar(format, schemas, lm.tokenizer, several)
        return format, free
    return format, None


def _schemas(tools: Sequence[Tool] | None) -> calling.Schemas:
    """The schemas of the tools' arguments by the tools' names."""
    return {tool.function.name: tool.function.parameters for tool in tools or ()}


@dataclass(frozen=True)
class Talk:
    """One chat request under way."""

    service: Service
    body: Chat
    format: ToolFormat | None
    asked: Asked

    async def whole(self) -> Response:
        """The answers when all are finished."""
        pieces: list[list[Piece]] = [[] for _ in self.asked.streams]
        async for i, piece in self.asked:
            pieces[i].append(piece)
        return await asyncio.to_thread(self._answer, pieces)

    def _answer(self, pieces: Sequence[Sequence[Piece]]) -> Response:
        done = [_done(own) for own in pieces]
        choices = [self._choice(i, own, made) for i, (own, made) in enumerate(zip(pieces, done, strict=True))]
        head = self._head("chat.completion")
        self.service.note_answer(self.body, [choice["message"] for choice in choices])
        return json_body.answer(head | {"choices": choices, "usage": openai_format.usage(done, done[:1])})

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Chunks of the answers as they are written."""
        head = self._head("chat.completion.chunk")
        counting = bool(self.body.stream_options and self.body.stream_options.include_usage)
        tail = {"usage": None} if counting else {}
        speakers = [_Speaker(self, i) for i in range(len(self.asked.streams))]
        done: dict[int, Generation] = {}
        for speaker in speakers:
            yield head | {"choices": [speaker.choice({"role": "assistant", "content": ""})]} | tail
        async for i, piece in self.asked:
            for choice in speakers[i].said(piece):
                yield head | {"choices": [choice]} | tail
            if piece.generation is not None:
                done[i] = piece.generation
        if counting:
            made = [done[i] for i in sorted(done)]
            yield head | {"choices": [], "usage": openai_format.usage(made, made[:1])}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": openai_format.named("chatcmpl"),
            "object": kind,
            "created": int(time.time()),
            "model": self.service.name,
            "system_fingerprint": self.service.fingerprint,
        }

    def _choice(self, i: int, pieces: Sequence[Piece], done: Generation) -> dict[str, Any]:
        said, calls, whole = done.text, [], False
        if self.format is not None:
            listening = calling.StreamingParser(self.format, _schemas(self.body.tools))
            said, calls = calling.gathered([*listening.push(said), *listening.finish()])
            whole = listening.whole
        message: dict[str, Any] = {
            "role": "assistant",
            "content": said or (None if calls else ""),
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        choice: dict[str, Any] = {
            "index": i,
            "message": message,
            "finish_reason": _ending(done, whole),
            "logprobs": None,
        }
        chosen = [piece for piece in pieces if piece.id is not None]
        if self.body.logprobs:
            choice["logprobs"] = {
                "content": [openai_format.chosen(self.service.lm.tokenizer, one) for one in chosen]
            }
        if self.body.internals is not None:
            choice["internals"] = [openai_format.looked(self.service.lm.tokenizer, one) for one in chosen]
        return choice


class _Speaker:
    """One choice of a streamed chat: what of each piece is said when."""

    def __init__(self, talk: Talk, i: int) -> None:
        self.talk, self.i = talk, i
        self.calls = 0
        self.listening = None
        if talk.format is not None:
            self.listening = calling.StreamingParser(talk.format, _schemas(talk.body.tools))

    def choice(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"index": self.i, "delta": delta, "logprobs": None, "finish_reason": finish}

    def said(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks' choices that a piece brings; the first has what is told of its token."""
        heard: list[calling.ParserEvent] = [piece.text] if piece.text else []
        if self.listening is not None:
            heard = self.listening.push(piece.text)
            heard += self.listening.finish() if piece.generation is not None else []
        chunks = [self.choice(self._delta(one)) for one in heard]
        if about := self._about(piece):
            chunks = chunks or [self.choice({})]
            chunks[0] |= about
        if piece.generation is not None:
            whole = self.listening is not None and self.listening.whole
            chunks.append(self.choice({}, _ending(piece.generation, whole)))
        return chunks

    def _about(self, piece: Piece) -> dict[str, Any]:
        """What was asked for about the token that was chosen."""
        if piece.id is None:
            return {}
        tokenizer, body, about = self.talk.service.lm.tokenizer, self.talk.body, {}
        if body.logprobs:
            about["logprobs"] = {"content": [openai_format.chosen(tokenizer, piece)]}
        if body.internals is not None:
            about["internals"] = [openai_format.looked(tokenizer, piece)]
        return about

    def _delta(self, heard: calling.ParserEvent) -> dict[str, Any]:
        """Words, a call that begins, or more of its arguments."""
        if isinstance(heard, str):
            return {"content": heard}
        if isinstance(heard, calling.CallStarted):
            self.calls += 1
            more = _call(calling.Call(heard.name, ""))
        else:
            more = {"function": {"arguments": heard.arguments}}
        return {"tool_calls": [{"index": self.calls - 1, **more}]}


def _call(call: calling.Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": openai_format.named("call"), "type": "function", "function": function}


def _ending(done: Generation, called: bool) -> str:
    """OpenAI's word for what ended an answer: calls, unless it was cut off before they were whole."""
    ending = openai_format.ending(done)
    return "tool_calls" if called and ending == "stop" else ending


def _done(pieces: Sequence[Piece]) -> Generation:
    done = pieces[-1].generation
    assert done is not None, "the last piece brings the generation"
    return done
