"""/v1/chat/completions: a conversation's answer in OpenAI's form, whole and streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Generation, Piece
from cutaway.generate.tool_calls import parser
from cutaway.generate.tool_calls.answer import AnswerReader, Event
from cutaway.generate.tool_calls.thoughts import Thought
from cutaway.serve.conversation import Conversation, begin, prepare, read_answer, reason
from cutaway.serve.json_body import json_response, obfuscated
from cutaway.serve.openai.format import end_token, internals_of, scored, token_logprobs
from cutaway.serve.openai.schema import ChatCompletionRequest
from cutaway.serve.routes import Route
from cutaway.serve.service import Service, new_id, usage, warned
from cutaway.serve.streaming import respond

SHORT = 64  # pieces of an answer that is written at once: a thread's turn would take longer


async def chat(service: Service, body: ChatCompletionRequest, http: HTTPRequest) -> Response:
    """Answer a chat request."""
    begun = await begin(service, body, http)
    return await respond(http, begun.streams, ChatCompletion(begun), body.stream)


@dataclass(frozen=True)
class ChatCompletion:
    """The answer to one chat request, in OpenAI's form."""

    of: Conversation

    async def whole(self) -> Response:
        """The response when all choices are finished."""
        pieces, generations = await self.of.streams.collect()
        if sum(map(len, pieces)) <= SHORT:
            return self._response(self.of.service, pieces, generations)
        return await self.of.service.run(self.of.client, self._response, pieces, generations)

    def _response(
        self, service: Service, pieces: Sequence[Sequence[Piece]], generations: Sequence[Generation]
    ) -> Response:
        readers = [self.of.reader() for _ in pieces]
        choices = [self._choice(i, *one) for i, one in enumerate(zip(readers, pieces, strict=True))]
        thought = sum(reader.thought_tokens for reader in readers)
        counts = usage(generations, generations[:1])
        counts.setdefault("completion_tokens_details", {})["reasoning_tokens"] = thought
        service.log_answer(self.of.body, [choice["message"] for choice in choices])
        head = service.head("chatcmpl", "chat.completion", self.of.body.model)
        answered = head | {"choices": choices, "usage": counts} | self._prompt_ids()
        return json_response(answered | warned(self.of.form.warnings))

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a streamed response."""
        of, streams = self.of, self.of.streams
        head = of.service.head("chatcmpl", "chat.completion.chunk", of.body.model)
        counting = bool(of.body.stream_options and of.body.stream_options.include_usage)
        tail = {"usage": None} if counting else {}
        hiding = bool(of.body.stream_options and of.body.stream_options.include_obfuscation)
        readers, calls = [of.reader() for _ in streams.streams], [0] * len(streams.streams)
        generations: dict[int, Generation] = {}

        def chunk(i: int, delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
            choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": reason, **more}
            return head | {"choices": [choice]} | tail

        def shown(event: dict[str, Any]) -> dict[str, Any]:
            return obfuscated(event) if hiding else event

        for i in range(len(readers)):
            yield shown(chunk(i, {"role": "assistant", "content": ""}) | ({} if i else self._prompt_ids()))
        async for i, piece in streams:
            fields = self._token_fields([piece])
            fields = fields if piece.id is not None or fields.get("token_ids") else {}
            events = readers[i].push(piece)
            deltas = [_delta(event, calls, i, bool(of.body.functions)) for event in events]
            for delta in deltas or ([{}] if fields else []):
                yield shown(chunk(i, delta, **fields))
                fields = {}
            if piece.generation is not None:
                ended = _legacy(reason(readers[i], piece.generation), of.body)
                yield shown(chunk(i, {}, ended) | warned(of.form.warnings))
                generations[i] = piece.generation
        if counting:
            done = [generations[i] for i in sorted(generations)]
            counts = usage(done, done[:1])
            thought = sum(reader.thought_tokens for reader in readers)
            counts.setdefault("completion_tokens_details", {})["reasoning_tokens"] = thought
            yield head | {"choices": [], "usage": counts}

    def _prompt_ids(self) -> dict[str, Any]:
        """The prompt's ids, where the request asks for them."""
        of = self.of
        return {"prompt_token_ids": of.requests[0].ids} if of.body.return_token_ids else {}

    def _token_fields(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Ids, log-probabilities and internals of the pieces' tokens, where the request asks for them; with
        ids the end token is one of them.
        """
        body, tokenizer = self.of.body, self.of.service.tokenizer
        by_id, found = bool(body.return_token_ids), dict[str, Any]()
        if not (by_id or body.logprobs or body.internals):
            return found
        tokens = [scored(piece) for piece in pieces if piece.id is not None]
        ends = [end for piece in pieces if by_id and (end := end_token(piece.generation))]
        tokens += [(*end, ()) for end in ends]
        if by_id:
            found["token_ids"] = [id for id, *_ in tokens]
        if body.logprobs:
            found["logprobs"] = {"content": [token_logprobs(tokenizer, one, by_id) for one in tokens]}
        if body.internals is not None:
            found["internals"] = [internals_of(tokenizer, piece) for piece in pieces if piece.id is not None]
        return found

    def _choice(self, i: int, reader: AnswerReader, pieces: Sequence[Piece]) -> dict[str, Any]:
        answer = read_answer(reader, pieces)
        content = answer.content or (None if answer.calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if answer.thought:
            message["reasoning_content"] = answer.thought
        if answer.calls and self.of.body.functions:
            (first, *_) = answer.calls
            message["function_call"] = {"name": first.name, "arguments": first.arguments}
        elif answer.calls:
            message["tool_calls"] = [_call(call) for call in answer.calls]
        reason = _legacy(answer.reason, self.of.body)
        choice = {"index": i, "message": message, "finish_reason": reason, "logprobs": None}
        return choice | self._token_fields(pieces)


def _delta(event: Event, calls: list[int], i: int, legacy: bool) -> dict[str, Any]:
    """A thought, content, a call that begins, or more of its arguments."""
    if isinstance(event, Thought):
        return {"reasoning_content": event.text}
    if isinstance(event, str):
        return {"content": event}
    if isinstance(event, parser.CallStarted):
        calls[i] += 1
        more = _call(parser.Call(event.name, ""))
    else:
        more = {"function": {"arguments": event.arguments}}
    return (
        {"function_call": more["function"]} if legacy else {"tool_calls": [{"index": calls[i] - 1, **more}]}
    )


def _call(call: parser.Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": new_id("call"), "type": "function", "function": function}


def _legacy(reason: str, body: ChatCompletionRequest) -> str:
    return "function_call" if reason == "tool_calls" and body.functions else reason


ROUTES = [
    Route("POST", "/v1/chat/completions", ("chat",), chat, ChatCompletionRequest, prepare, computes=True)
]
