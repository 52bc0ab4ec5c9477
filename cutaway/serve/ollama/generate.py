"""/api/chat and /api/generate of Ollama, translated into a chat and back. It streams by default, in lines of
JSON.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Generation, Piece
from cutaway.generate.tool_calls import parser
from cutaway.generate.tool_calls.answer import Event
from cutaway.generate.tool_calls.thoughts import Thought
from cutaway.serve import infill
from cutaway.serve.api_error import APIError
from cutaway.serve.conversation import Conversation, begin, read_answer, reason
from cutaway.serve.json_body import json_response
from cutaway.serve.ollama.models import name_of
from cutaway.serve.ollama.schema import ChatRequest, GenerateRequest, OllamaMessage, OllamaRequest, Options
from cutaway.serve.openai.format import scored, token_logprobs
from cutaway.serve.openai.sampling_schema import schema_format
from cutaway.serve.openai.schema import ChatCompletionRequest
from cutaway.serve.operations.request_record import client_of
from cutaway.serve.prompts import chat_ids
from cutaway.serve.routes import Route
from cutaway.serve.service import Service, warned
from cutaway.serve.streaming import respond
from cutaway.serve.validation import Leniency, checked

SAMPLERS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty")
DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}  # Ollama's (docs/modelfile.mdx)


async def chat(service: Service, body: ChatRequest, http: HTTPRequest) -> Response:
    """Ollama's chat."""
    return await _answer(service, body, http)


async def generate(service: Service, body: GenerateRequest, http: HTTPRequest) -> Response:
    """Ollama's answer to one prompt."""
    return await _answer(service, body, http)


async def _answer(service: Service, body: ChatRequest | GenerateRequest, http: HTTPRequest) -> Response:
    chats = isinstance(body, ChatRequest)
    if not (body.messages if chats else body.prompt):  # to load the model, which is loaded
        service.engine_of(name_of(service, body.model))
        empty = {"message": {"role": "assistant", "content": ""}} if chats else {"response": ""}
        return json_response(_head(body, service) | empty | {"done": True, "done_reason": "load"})
    asked = await service.run(client_of(http), as_chat, body)
    ids = None
    if isinstance(body, GenerateRequest) and (body.raw or body.context or body.suffix):
        ids = await service.run(client_of(http), _prompt_ids, body, asked)
    of = await begin(service, asked, http, ids)
    stream = body.stream is not False
    return await respond(http, of.streams, OllamaAnswer(of, body), stream, wire="lines")


def _prompt_ids(service: Service, body: GenerateRequest, asked: ChatCompletionRequest) -> list[int]:
    """The ids of a prompt that is raw, has a gap, or goes on after the ``context`` of an earlier answer."""
    bare = body.raw or body.suffix
    if bare and (body.system or body.context):
        text = "raw and suffix take the prompt as it is, without system and context: leave these out"
        raise APIError(400, text, param="raw" if body.raw else "suffix")
    if not bare:
        return [*(body.context or ()), *chat_ids(service, asked.messages, None)]
    ids = service.lm.ids(body.prompt)
    return infill.ids(service, ids, body.suffix, "suffix") if body.suffix else ids


def as_chat(service: Service, body: ChatRequest | GenerateRequest) -> ChatCompletionRequest:
    """The same request as a chat."""
    options = body.options or Options()
    fields = service.sampled_as(DEFAULTS, {name: getattr(options, name) for name in SAMPLERS})
    fields |= {"seed": options.seed, "stop": options.stop}
    fields |= {"model": name_of(service, body.model), "max_tokens": options.num_predict}
    fields |= {"repetition_penalty": options.repeat_penalty, "stream": body.stream is not False}
    fields |= {"logprobs": body.logprobs, "top_logprobs": body.top_logprobs}
    if isinstance(body, GenerateRequest):
        system = [{"role": "system", "content": body.system}] if body.system else []
        fields["messages"] = [*system, {"role": "user", "content": body.prompt}]
    else:
        fields["messages"] = made = [_message(one) for one in body.messages or ()]
        last = made[-1] if made else {"role": ""}
        goes_on = last["role"] == "assistant" and last["content"].strip() and not last["tool_calls"]
        fields["continue_final_message"] = bool(goes_on)  # as Ollama's own templates do
        fields["tools"] = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    if body.format == "json":
        fields["response_format"] = {"type": "json_object"}
    elif isinstance(body.format, dict):
        fields["response_format"] = schema_format(body.format)
    if isinstance(body.think, str):
        fields["reasoning_effort"] = body.think
    elif body.think is not None:
        fields["chat_template_kwargs"] = {"enable_thinking": body.think}
    return checked(ChatCompletionRequest, fields, Leniency(ignored=body.ignored))


def _message(one: OllamaMessage) -> dict[str, Any]:
    calls = [{"function": call.function.model_dump()} for call in one.tool_calls or ()]
    message = {"role": one.role, "content": one.content or "", "reasoning_content": one.thinking}
    return message | {"tool_calls": calls, "name": one.tool_name, "tool_call_id": one.tool_call_id}


def _head(body: OllamaRequest, service: Service) -> dict[str, Any]:
    return {"model": body.model or service.name, "created_at": datetime.now(UTC).isoformat()}


@dataclass(frozen=True)
class OllamaAnswer:
    """The answer to one of Ollama's requests for text."""

    of: Conversation
    body: ChatRequest | GenerateRequest

    async def whole(self) -> Response:
        """The answer when it is finished."""
        (pieces,), _ = await self.of.streams.collect()
        return await self.of.service.run(self.of.client, self._response, pieces)

    def _response(self, service: Service, pieces: list[Piece]) -> Response:
        answer = read_answer(self.of.reader(), pieces)
        events: list[Event] = [Thought(answer.thought)] if answer.thought else []
        answered = self._part([*events, answer.content], answer.calls) | self._logprobs(pieces)
        service.log_answer(self.of.body, [answered])
        return json_response(answered | self._last(answer.reason, answer.generation))

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The lines of a streamed answer; a call comes whole."""
        reader, calls = self.of.reader(), list[Event]()
        async for _, piece in self.of.streams:
            events = reader.push(piece)
            calls += [one for one in events if not isinstance(one, str | Thought)]
            texts = [one for one in events if isinstance(one, str | Thought)]
            if texts or (piece.id is not None and self.body.logprobs):
                yield self._part(texts, []) | self._logprobs([piece]) | {"done": False}
            if piece.generation is not None:
                made: Any = calls
                if calls:
                    yield self._part([], parser.collect(made)[1]) | {"done": False}
                yield self._part([], []) | self._last(reason(reader, piece.generation), piece.generation)

    def _part(self, events: Sequence[Event], calls: list[parser.Call]) -> dict[str, Any]:
        content = "".join(one for one in events if isinstance(one, str))
        thought = "".join(one.text for one in events if isinstance(one, Thought))
        head = _head(self.body, self.of.service)
        more: dict[str, Any] = {"thinking": thought} if thought else {}
        if isinstance(self.body, GenerateRequest):
            return head | {"response": content} | more
        if calls:
            more["tool_calls"] = [{"function": {"name": one.name, "arguments": one.object}} for one in calls]
        return head | {"message": {"role": "assistant", "content": content, **more}}

    def _logprobs(self, pieces: list[Piece]) -> dict[str, Any]:
        tokenizer = self.of.service.lm.tokenizer
        chosen = [piece for piece in pieces if piece.id is not None] if self.body.logprobs else []
        return {"logprobs": [token_logprobs(tokenizer, scored(piece)) for piece in chosen]} if chosen else {}

    def _last(self, reason: str, generation: Generation) -> dict[str, Any]:
        timings = generation.timings
        read, wrote = (int(1e9 * s) for s in (timings.prefill_seconds, timings.decode_seconds))
        return {
            "done": True,
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": read + wrote,
            "load_duration": 0,
            "prompt_eval_count": len(generation.prompt_ids),
            "prompt_eval_duration": read,
            "eval_count": len(generation.ids),
            "eval_duration": wrote,
            **self._context(generation),
        } | warned(self.of.form.warnings)

    def _context(self, generation: Generation) -> dict[str, Any]:
        """The ids with which a later prompt may go on."""
        if not isinstance(self.body, GenerateRequest) or self.body.raw or self.body.suffix:
            return {}
        return {"context": [*generation.prompt_ids, *generation.ids]}


ROUTES = [
    Route("POST", "/api/chat", ("chat",), chat, ChatRequest, computes=True),
    Route("POST", "/api/generate", ("chat",), generate, GenerateRequest, computes=True),
]
