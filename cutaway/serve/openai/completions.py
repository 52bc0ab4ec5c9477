"""/v1/completions: texts continued, several at once, with the log-probabilities of the prompt where asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Generation, Piece, Request, TokenLogprobs
from cutaway.serve import answer_form, edits, infill
from cutaway.serve.answer_form import AnswerForm
from cutaway.serve.api_error import APIError
from cutaway.serve.json_body import json_response, obfuscated
from cutaway.serve.openai.format import ENDED, MIN_LOGPROB, end_token, internals_of, token_string
from cutaway.serve.openai.schema import CompletionRequest
from cutaway.serve.operations.request_record import Caller, caller_of, record_of
from cutaway.serve.prompts import prompts
from cutaway.serve.routes import Route
from cutaway.serve.service import Service, usage, warned
from cutaway.serve.streaming import MergedStreams, respond

DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def completion(service: Service, body: CompletionRequest, http: HTTPRequest) -> Response:
    """Answer a completion request."""
    answer = await begin(service, body, http)
    return await respond(http, answer.streams, answer, body.stream)


async def begin(service: Service, body: CompletionRequest, http: HTTPRequest) -> CompletionAnswer:
    """Have a completion request answered. APIError for what cannot be."""
    caller = caller_of(http, body.cache_salt)
    record_of(http).prompt_only = body.max_tokens == 0
    if body.edits:
        requests, form = await edits.prepared(service, body, http, caller, _requests)
    else:
        requests, form = await service.run(caller.client, _requests, body, caller, None)
    count = body.n or 1
    again = form.again(requests, count, lambda generation: (generation.text, ()))
    warnings = form.warnings if form.asked else None
    streams = MergedStreams(service, requests, record_of(http), again, warnings, count)
    return CompletionAnswer(service, body, streams, form.warnings)


def _requests(
    service: Service, body: CompletionRequest, caller: Caller, own: edits.RequestEdits | None
) -> tuple[list[Request], AnswerForm]:
    """The scheduler's requests, and what holds their answers."""
    engine = service.engine_of(body.model, body.edits)
    if body.stream_options is not None and not body.stream:
        body.ignored["stream_options"] = None
    context = service.context
    texts, count = prompts(service, body.prompt, "prompt"), body.n or 1
    if body.begun and not body.suffix:
        raise APIError(400, "begun needs a suffix", param="begun")
    if body.suffix:
        if body.echo:
            raise APIError(400, "echo and suffix exclude each other: leave one out", param="suffix")
        begun = service.lm.tokenizer.encode(body.begun or "")
        texts = [infill.ids(service, ids, body.suffix, "suffix") + begun for ids in texts]
    service.limits.check_texts(len(texts), "prompt")
    service.limits.check_choices(count, "n")
    asked = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if asked == 0 and not body.echo:
        text = "max_tokens is 0: an answer has at least one token, unless the prompt is echoed"
        raise APIError(400, text, param="max_tokens")
    for ids in texts:
        service.check_ids(ids, "prompt")
    room = [service.limits.tokens(asked, len(ids), context, "max_tokens") for ids in texts]
    internals = service.internals(body.internals)
    form = answer_form.of_text(service.lm, body)
    form.limit([max(most or 1, 1) for most in room])
    requests = [
        Request(
            ids=tuple(ids),
            settings=service.sampling_params(body, max(most or 1, 1), body.logprobs or 0, choice),
            constraint=form.fresh(i),
            prompt_logprobs=body.logprobs if body.echo else None,
            internals=internals,
            edit=own and own.hooks(ids),
            **vars(caller),
            engine=engine,
        )
        for i, (ids, most) in enumerate(zip(texts, room, strict=True))
        for choice in range(count)
    ]
    return requests, form


@dataclass(frozen=True)
class CompletionAnswer:
    """The answer to one completion request."""

    service: Service
    body: CompletionRequest
    streams: MergedStreams
    warnings: list[str]

    async def whole(self) -> Response:
        """The response when all choices are finished."""
        pieces, generations = await self.streams.collect()
        client = self.streams.streams[0].request.client
        return await self.service.run(client, self._response, pieces, generations)

    def _response(
        self, _: Service, pieces: Sequence[Sequence[Piece]], generations: Sequence[Generation]
    ) -> Response:
        echo, head = bool(self.body.echo), self._head()
        choices = [
            self._choice(i, own, echo)[0] | {"finish_reason": ENDED[generation.finish_reason]}
            for i, (own, generation) in enumerate(zip(pieces, generations, strict=True))
        ]
        self.service.log_answer(self.body, [choice["text"] for choice in choices])
        done = head | {"choices": choices, "usage": self._usage(generations)}
        return json_response(done | warned(self.warnings))

    def _head(self) -> dict[str, Any]:
        return self.service.head("cmpl", "text_completion", self.body.model)

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a streamed response; with echo the prompt comes first."""
        head, generations = self._head(), {}
        counting = bool(self.body.stream_options and self.body.stream_options.include_usage)
        tail = {"usage": None} if counting else {}
        hiding = bool(self.body.stream_options and self.body.stream_options.include_obfuscation)
        offsets: dict[int, int] = {}
        async for i, piece in self.streams:
            first = i not in offsets
            echo = bool(self.body.echo) and first
            choice, offsets[i] = self._choice(i, [piece], echo, offsets.get(i, 0))
            if not first:
                choice.pop("prompt_token_ids", None)
            end: dict[str, Any] = {}
            if piece.generation is not None:
                end = warned(self.warnings)
                generations[i] = piece.generation
                choice["finish_reason"] = ENDED[piece.generation.finish_reason]
            if choice["text"] or choice["logprobs"] or choice["finish_reason"] or "internals" in choice:
                event = head | {"choices": [choice]} | tail | end
                yield obfuscated(event) if hiding else event
        if counting:
            done = [generations[i] for i in sorted(generations)]
            yield head | {"choices": [], "usage": self._usage(done)}

    def _choice(
        self, i: int, pieces: Sequence[Piece], echo: bool, offset: int = 0
    ) -> tuple[dict[str, Any], int]:
        """What some pieces add to a choice, after the prompt with ``echo``, and the next text_offset."""
        tokenizer, stream = self.service.lm.tokenizer, self.streams.streams[i]
        pieces = [] if self.body.max_tokens == 0 else pieces
        text = "".join(piece.text for piece in pieces)
        chosen = [(piece.id, piece) for piece in pieces if piece.id is not None]
        by_id = self.body.return_token_ids
        scored: list[tuple[int, TokenLogprobs | None]] = []
        if echo:
            text = tokenizer.decode(stream.request.ids) + text
            if self.body.logprobs is not None:
                scored += zip(stream.request.ids, stream.prompt_logprobs, strict=True)
        scored += [(id, (piece.logprob or 0.0, piece.top_logprobs)) for id, piece in chosen]
        ends = [end for piece in pieces if by_id and (end := end_token(piece.generation))]
        scored += [(id, (score, ())) for id, score in ends]
        choice: dict[str, Any] = {"index": i, "text": text, "logprobs": None, "finish_reason": None}
        if self.body.logprobs is not None and scored:
            choice["logprobs"], offset = _logprobs(tokenizer, scored, offset)
        if self.body.internals is not None and chosen:
            choice["internals"] = [internals_of(tokenizer, piece) for _, piece in chosen]
        if by_id:
            choice["prompt_token_ids"] = stream.request.ids
            choice["token_ids"] = [id for id, _ in (*chosen, *ends)]
        return choice, offset

    def _usage(self, generations: Sequence[Generation]) -> dict[str, Any]:
        counts = usage(generations, generations[:: self.body.n or 1])
        if self.body.max_tokens == 0:
            counts |= {"completion_tokens": 0, "total_tokens": counts["prompt_tokens"]}
        return counts


def _logprobs(
    tokenizer: Any, scored: Sequence[tuple[int, TokenLogprobs | None]], offset: int
) -> tuple[dict[str, Any], int]:
    """OpenAI's four lists, and where the next token's text begins."""
    tokens, values, tops, offsets = [], [], [], []
    for id, score in scored:
        tokens.append(token_string(tokenizer, id))
        offsets.append(offset)
        offset += len(tokenizer.token_bytes(id).decode("utf-8", "ignore"))
        values.append(None if score is None else max(score[0], MIN_LOGPROB))
        if score is None:
            tops.append(None)
            continue
        top = dict(score[1])
        top.setdefault(id, score[0])  # OpenAI lists the chosen token too
        tops.append({token_string(tokenizer, other): max(value, MIN_LOGPROB) for other, value in top.items()})
    lists = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
    return lists, offset


ROUTES = [Route("POST", "/v1/completions", ("chat",), completion, CompletionRequest, computes=True)]
