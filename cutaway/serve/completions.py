"""/v1/completions: texts continued, several at once, with the log-probabilities of the prompt where asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Scored
from cutaway.generate.batch.scheduler import Request
from cutaway.generate.decode import Generation, Piece
from cutaway.serve import json_body, openai_format
from cutaway.serve.api_error import APIError
from cutaway.serve.protocol import Completion
from cutaway.serve.service import Service
from cutaway.serve.streaming import Asked, client_of, events, while_there

USUAL = 16  # OpenAI's max_tokens where a completion names none


async def completion(service: Service, body: Completion, http: HTTPRequest) -> Response:
    """Answers a completion request."""
    requests = await service.prepare(
        client_of(http), _requests, body, client_of(http), grammar=body.response_format is not None
    )
    asked = Asked(service, requests)
    writing = Writing(service, body, asked)
    if body.stream:
        return events(asked, writing.chunks(), service.limits.request_seconds)
    try:
        return await while_there(http, writing.whole())
    finally:
        asked.close()


def prompts(service: Service, given: str | Sequence[Any], param: str) -> list[list[int]]:
    """The ids of each text that a field holds: one text or list of ids, or several of either. Ids are taken
    as they are.
    """
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given:
        raise APIError(400, f"{param} is empty: give at least one text", param=param)
    return [service.lm.ids(one) for one in given]


def _requests(service: Service, body: Completion, client: str) -> list[Request]:
    service.check_model(body.model)
    if body.stream_options is not None and not body.stream:
        raise APIError(400, "stream_options needs stream to be true", param="stream_options")
    context = service.context
    texts, count = prompts(service, body.prompt, "prompt"), body.n or 1
    service.limits.of_texts(len(texts), "prompt")
    service.limits.of_choices(count, "n")
    asked = USUAL if body.max_tokens is None else body.max_tokens
    if asked == 0 and not body.echo:
        raise APIError(
            400,
            "max_tokens is 0: an answer has at least one token, unless the prompt is echoed",
            param="max_tokens",
        )
    for ids in texts:
        service.limits.tokens(asked, len(ids), context, "max_tokens")
        service.check_ids(ids, "prompt")
    watch = service.internals(body.internals)
    constraint = service.constraint(body.response_format, "response_format")
    scored = body.logprobs if body.echo else None
    return [
        Request(
            ids=tuple(ids),
            settings=service.settings(body, max(asked, 1), body.logprobs or 0, choice),
            constraint=None if constraint is None else constraint.fresh(),
            prompt_logprobs=scored,
            internals=watch,
            edit=service.edit(body.edits, ids),
            client=client,
        )
        for ids in texts
        for choice in range(count)
    ]


@dataclass(frozen=True)
class Writing:
    """One completion request under way."""

    service: Service
    body: Completion
    asked: Asked

    async def whole(self) -> Response:
        """The texts when all are finished."""
        pieces: list[list[Piece]] = [[] for _ in self.asked.streams]
        async for i, piece in self.asked:
            pieces[i].append(piece)
        return await asyncio.to_thread(self._answer, pieces)

    def _answer(self, pieces: Sequence[Sequence[Piece]]) -> Response:
        done = [own[-1].generation for own in pieces]
        made = [one for one in done if one is not None]
        choices = [self._choice(i, own, one) for i, (own, one) in enumerate(zip(pieces, made, strict=True))]
        self.service.note_answer(self.body, [choice["text"] for choice in choices])
        return json_body.answer(self._head() | {"choices": choices, "usage": self._usage(made)})

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Chunks of the texts as they are written; with echo the prompt comes first."""
        head, done = self._head(), {}
        counting = bool(self.body.stream_options and self.body.stream_options.include_usage)
        tail = {"usage": None} if counting else {}
        begun: set[int] = set()
        offsets = [0] * len(self.asked.streams)
        async for i, piece in self.asked:
            told = [] if self.body.max_tokens == 0 else [piece]
            first = i not in begun
            begun.add(i)
            choice = self._part(i, told, first and bool(self.body.echo), offsets)
            if piece.generation is not None:
                done[i] = piece.generation
                choice["finish_reason"] = openai_format.ending(piece.generation)
            if choice["text"] or choice["logprobs"] or choice["finish_reason"] or "internals" in choice:
                yield head | {"choices": [choice]} | tail
        if counting:
            yield head | {"choices": [], "usage": self._usage([done[i] for i in sorted(done)])}

    def _head(self) -> dict[str, Any]:
        return {
            "id": openai_format.named("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.service.name,
            "system_fingerprint": self.service.fingerprint,
        }

    def _choice(self, i: int, pieces: Sequence[Piece], done: Generation) -> dict[str, Any]:
        told = [] if self.body.max_tokens == 0 else pieces
        choice = self._part(i, told, bool(self.body.echo), [0] * (i + 1))
        return choice | {"finish_reason": openai_format.ending(done)}

    def _part(self, i: int, pieces: Sequence[Piece], echo: bool, offsets: list[int]) -> dict[str, Any]:
        """A choice, or what some pieces add to it: with ``echo`` after the prompt. ``offsets`` tells each
        choice how many characters its tokens had so far.
        """
        tokenizer, stream = self.service.lm.tokenizer, self.asked.streams[i]
        text = "".join(piece.text for piece in pieces)
        chosen = [piece for piece in pieces if piece.id is not None]
        scored: list[tuple[int, Scored | None]] = []
        if echo:
            text = tokenizer.decode(stream.request.ids) + text
            if self.body.logprobs is not None:
                scored += zip(stream.request.ids, stream.prompt_logprobs, strict=True)
        scored += [
            (piece.id, (piece.logprob or 0.0, piece.top_logprobs)) for piece in chosen if piece.id is not None
        ]
        choice: dict[str, Any] = {"index": i, "text": text, "logprobs": None, "finish_reason": None}
        if self.body.logprobs is not None and scored:
            choice["logprobs"], offsets[i] = _logprobs(tokenizer, scored, offsets[i])
        if self.body.internals is not None and chosen:
            choice["internals"] = [openai_format.looked(tokenizer, piece) for piece in chosen]
        return choice

    def _usage(self, done: Sequence[Generation]) -> dict[str, Any]:
        usage = openai_format.usage(done, done[:: self.body.n or 1])
        if self.body.max_tokens == 0:
            usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
        return usage


def _logprobs(
    tokenizer: Any, scored: Sequence[tuple[int, Scored | None]], offset: int
) -> tuple[dict[str, Any], int]:
    """OpenAI's four lists, and where the next token's text begins."""
    tokens = [openai_format.spelt(tokenizer, id) for id, _ in scored]
    offsets = []
    for id, _ in scored:
        offsets.append(offset)
        offset += len(tokenizer.token_bytes(id).decode("utf-8", "ignore"))
    values = [None if score is None else openai_format.logprob(score[0]) for _, score in scored]
    best = [
        None
        if score is None
        else {
            openai_format.spelt(tokenizer, id): openai_format.logprob(value)
            for id, value in _with(score, own)
        }
        for own, score in scored
    ]
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": best, "text_offset": offsets}, offset


def _with(score: Scored, own: int) -> list[tuple[int, float]]:
    """The likeliest tokens and the one that is there, as OpenAI lists them."""
    value, best = score
    return [*best, *([] if any(id == own for id, _ in best) else [(own, value)])]
