"""llama-server's own paths: /completion, /infill, /apply-template and /slots, translated and back.

The names are llama.cpp's (github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, StrictBool, StrictInt, StrictStr
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Generation, Piece
from cutaway.serve import completions
from cutaway.serve.chat import ending, messages
from cutaway.serve.openai_format import APIError, errors_in, json_response, token_logprobs, warned
from cutaway.serve.protocol import (
    CompletionRequest,
    Ending,
    FailFast,
    Id,
    Leniency,
    Messages,
    Number,
    Object,
    Prompts,
    StrictModel,
    Texts,
    Tools,
    checked,
)
from cutaway.serve.service import Service
from cutaway.serve.streaming import respond

SAME = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "grammar", "json_schema")
SAME += ("ignore_eos", "stop", "stream", "model")
DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}  # llama-server's (its README)


class LlamaSampling(StrictModel):
    """llama.cpp's names of how tokens are chosen, which are Ollama's too."""

    temperature: Number | None = None
    top_k: StrictInt | None = None
    top_p: Number | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    repeat_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    seed: StrictInt | None = None
    stop: Texts | None = None


class LlamaRequest(LlamaSampling):
    """What /completion and /infill share."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({
        "cache_prompt", "id_slot", "n_keep", "t_max_predict_ms", "response_fields", "timings_per_token",
        "return_progress", "post_sampling_probs", "n_cache_reuse", "samplers", "min_keep", "n_indent",
    })  # fmt: skip
    DEFAULTS: ClassVar = {
        "n_predict": [-1],
        "n_probs": [0],
        "seed": [-1, 4294967295],
        "repeat_last_n": [64, -1],
        "mirostat": [0],
        "mirostat_tau": [5.0],
        "mirostat_eta": [0.1],
        "dynatemp_range": [0.0],
        "dynatemp_exponent": [1.0],
        "xtc_probability": [0.0],
        "xtc_threshold": [0.1],
        "dry_multiplier": [0.0],
        "n_discard": [0],
        "return_tokens": [False],
    }
    model: StrictStr | None = None
    n_predict: Annotated[StrictInt, Field(ge=1)] | None = None
    stream: StrictBool | None = None
    n_probs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    grammar: StrictStr | None = None
    json_schema: Object | None = None
    ignore_eos: StrictBool | None = None
    return_tokens: StrictBool | None = None
    logit_bias: Annotated[list[tuple[Id, Number | bool]], FailFast, Field(max_length=1024)] | None = None


class LlamaCompletion(LlamaRequest):
    prompt: Prompts


class Extra(StrictModel):
    filename: StrictStr = ""
    text: StrictStr


class Infill(LlamaRequest):
    input_prefix: StrictStr
    input_suffix: StrictStr
    input_extra: Annotated[list[Extra], FailFast, Field(max_length=256)] | None = None
    prompt: StrictStr = ""


class Conversation(Ending):
    DEFAULTS: ClassVar = {"add_generation_prompt": [True], "continue_final_message": [False]}
    model: StrictStr | None = None
    messages: Messages
    tools: Tools | None = None


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
            part |= {"stop": False, "id_slot": 0, "tokens_predicted": count, "tokens_evaluated": read}
            if piece.text or piece.id is not None:
                yield part | self._probabilities([piece])
            if piece.generation is not None:
                yield self._last(piece.generation)

    def _probabilities(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        chosen = [piece for piece in pieces if piece.id is not None] if self.body.n_probs else []
        tokenizer = self.of.service.lm.tokenizer
        found = [{"id": piece.id, **token_logprobs(tokenizer, piece)} for piece in chosen]
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
            "id_slot": 0,
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
            | _timed("predicted", len(generation.ids), timings.decode_seconds),
        } | warned(self.of.warnings)


def _timed(what: str, count: int, seconds: float) -> dict[str, Any]:
    spent = max(seconds, 1e-9)
    return {
        f"{what}_n": count,
        f"{what}_ms": 1e3 * seconds,
        f"{what}_per_token_ms": 1e3 * seconds / max(count, 1),
        f"{what}_per_second": count / spent,
    }


def apply_template(service: Service, body: Conversation) -> Response:
    """A conversation as the model's template writes it."""
    service.engine_of(body.model)
    plain = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    with errors_in("messages"):
        more: dict[str, Any] = ending(body)
        ids = service.lm.chat_ids(messages(body.messages), tools=plain or None, **more)
    return json_response({"prompt": service.lm.tokenizer.decode(ids)})


def slots(service: Service) -> list[dict[str, Any]]:
    """The places for answers, and which are taken; whose answers they are is not shown."""
    stats = service.scheduler.stats() if service.scheduler is not None else None
    running = 0 if stats is None else stats.running
    places = service.limits.max_sequences
    return [
        {"id": i, "n_ctx": service.lm.context, "speculative": False, "is_processing": i < running}
        for i in range(places)
    ]
