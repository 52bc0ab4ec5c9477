"""/completion, /infill and /apply-template of llama-server, translated and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Generation, Piece
from cutaway.serve.api_error import APIError, errors_in
from cutaway.serve.json_body import json_response
from cutaway.serve.llamacpp.schema import Conversation, Infill, LlamaCompletion, LlamaRequest
from cutaway.serve.openai import completions
from cutaway.serve.openai.format import scored, token_logprobs
from cutaway.serve.openai.schema import CompletionRequest
from cutaway.serve.operations.api_keys import TEXT
from cutaway.serve.operations.request_record import record_of
from cutaway.serve.prompts import ending, messages
from cutaway.serve.routes import Route, beside
from cutaway.serve.service import Service, warned
from cutaway.serve.streaming import respond
from cutaway.serve.validation import Leniency, checked

SAME = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "grammar", "json_schema")
SAME += ("ignore_eos", "stop", "stream", "model")
DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}  # llama-server's (its README)


async def completion(service: Service, body: LlamaCompletion, http: HTTPRequest) -> Response:
    """llama-server's completion of one prompt."""
    if not isinstance(body.prompt, str) and body.prompt and not isinstance(body.prompt[0], int):
        raise APIError(400, "prompt has several texts: give one, or ask /v1/completions", param="prompt")
    return await _answered(service, body, {"prompt": body.prompt}, http)


async def infill(service: Service, body: Infill, http: HTTPRequest) -> Response:
    """What is between two texts, by a model whose vocabulary marks a gap."""
    extra = [f"{one.filename}\n{one.text}\n" for one in body.input_extra or ()]
    before = "".join(extra) + body.input_prefix
    fields = {"prompt": before, "suffix": body.input_suffix, "begun": body.prompt}
    return await _answered(service, body, fields, http)


async def _answered(
    service: Service, body: LlamaRequest, fields: dict[str, Any], http: HTTPRequest
) -> Response:
    if body.id_slot >= (places := service.limits.max_sequences):
        text = f"There is no slot {body.id_slot}: this server has 0 to {places - 1}"
        raise APIError(400, text, param="id_slot")
    record_of(http).slot = body.id_slot
    most = body.n_predict or service.limits.max_tokens or service.context
    fields |= {name: getattr(body, name) for name in SAME} | {"max_tokens": most, "seed": body.seed}
    fields |= service.sampled_as(DEFAULTS, {name: getattr(body, name) for name in DEFAULTS})
    fields |= {"repetition_penalty": body.repeat_penalty, "typical_p": body.typical_p}
    fields["logprobs"] = body.n_probs
    biases = {str(id): -100 if bias is False else bias for id, bias in body.logit_bias or ()}
    asked = checked(CompletionRequest, fields | {"logit_bias": biases}, Leniency(ignored=body.ignored))
    answer = LlamaAnswer(await completions.begin(service, asked, http), body)
    return await respond(http, answer.of.streams, answer, body.stream)


@dataclass(frozen=True)
class LlamaAnswer:
    """The answer to one of llama-server's requests for text."""

    of: completions.CompletionAnswer
    body: LlamaRequest

    async def whole(self) -> Response:
        """The response when it is finished."""
        (pieces,), _ = await self.of.streams.collect()
        client = self.of.streams.streams[0].request.client
        return await self.of.service.run(client, self._response, pieces)

    def _response(self, service: Service, pieces: Sequence[Piece]) -> Response:
        generation = pieces[-1].generation
        assert generation is not None, "the last piece brings the generation"
        service.log_answer(self.of.body, [generation.text])
        answer = self._last(generation) | {"content": generation.text}
        if self.body.return_tokens:
            answer["tokens"] = list(generation.ids)
        return json_response(answer | self._probabilities(pieces))

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The events of a streamed answer."""
        count, read = 0, len(self.of.streams.streams[0].request.ids)
        async for _, piece in self.of.streams:
            count += piece.id is not None
            part = {"index": 0, "content": piece.text, "tokens": [] if piece.id is None else [piece.id]}
            part |= {
                "stop": False,
                "id_slot": self.body.id_slot,
                "tokens_predicted": count,
                "tokens_evaluated": read,
            }
            if piece.text or piece.id is not None:
                yield part | self._probabilities([piece])
            if piece.generation is not None:
                yield self._last(piece.generation)

    def _probabilities(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        chosen = [piece for piece in pieces if piece.id is not None] if self.body.n_probs else []
        tokenizer = self.of.service.lm.tokenizer
        found = [{"id": piece.id, **token_logprobs(tokenizer, scored(piece))} for piece in chosen]
        return {"completion_probabilities": found} if found else {}

    def _last(self, generation: Generation) -> dict[str, Any]:
        """What the last event, or the whole answer, tells."""
        word = generation.stop if isinstance(generation.stop, str) else ""
        kind = "word" if word else "eos" if generation.finish_reason == "stop" else "limit"
        timings, prompt = generation.timings, len(generation.prompt_ids)
        tokenizer = self.of.service.lm.tokenizer
        known = [id for id in generation.prompt_ids if id < len(tokenizer)]
        return {
            "index": 0,
            "content": "",
            "tokens": [],
            "id_slot": self.body.id_slot,
            "stop": True,
            "model": self.of.body.model or self.of.service.name,
            "tokens_predicted": len(generation.ids),
            "tokens_evaluated": prompt,
            "tokens_cached": prompt - timings.prefill_tokens,
            "generation_settings": self.body.model_dump(exclude_none=True, exclude={"prompt"}),
            "prompt": tokenizer.decode(known),
            "has_new_line": "\n" in generation.text,
            "truncated": False,
            "stop_type": kind,
            "stopping_word": word,
            "timings": _timed("prompt", timings.prefill_tokens, timings.prefill_seconds)
            | _timed("predicted", len(generation.ids), timings.decode_seconds)
            | {"draft_n": timings.drafted_tokens, "draft_n_accepted": timings.accepted_tokens},
        } | warned(self.of.warnings)


def _timed(what: str, count: int, seconds: float) -> dict[str, Any]:
    spent = max(seconds, 1e-9)
    return {
        f"{what}_n": count,
        f"{what}_ms": 1e3 * seconds,
        f"{what}_per_token_ms": 1e3 * seconds / max(count, 1),
        f"{what}_per_second": count / spent,
    }


def apply_template(service: Service, body: Conversation, http: HTTPRequest) -> Response:
    """A conversation as the model's template writes it."""
    service.engine_of(body.model)
    plain = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    with errors_in("messages"):
        more: dict[str, Any] = ending(body)
        ids = service.lm.chat_ids(messages(body.messages), tools=plain or None, **more)
    return json_response({"prompt": service.lm.tokenizer.decode(ids)})


ROUTES = [
    Route("POST", "/completion", ("chat",), completion, LlamaCompletion, computes=True),
    Route("POST", "/infill", ("chat",), infill, Infill, computes=True),
    Route("POST", "/apply-template", TEXT, beside(apply_template), Conversation),
]
