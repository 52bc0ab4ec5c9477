"""/api/...: Ollama's API, translated into a chat, a completion or embeddings and back.

The names are Ollama's (github.com/ollama/ollama/blob/main/docs/api.md). It streams by default,
in lines of JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Generation, Piece
from cutaway.generate.tool_calls import parser
from cutaway.generate.tool_calls.answer import Event
from cutaway.generate.tool_calls.thoughts import Thought, find_marks
from cutaway.serve import embeddings, infill
from cutaway.serve.chat import Conversation, begin, chat_ids, read, reason
from cutaway.serve.llamacpp import LlamaSampling
from cutaway.serve.openai_format import APIError, json_response, token_logprobs, warned
from cutaway.serve.protocol import (
    MAX_MESSAGES,
    ChatCompletionRequest,
    EmbeddingRequest,
    FailFast,
    FunctionCall,
    Indices,
    Leniency,
    Object,
    StrictModel,
    Texts,
    Tools,
    at_most,
    checked,
    schema_format,
)
from cutaway.serve.service import Service
from cutaway.serve.streaming import client_of, respond

VERSION = "0.12.6"  # of Ollama, whose API this is: clients ask for one that has what they need
SAMPLERS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty")
DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}  # Ollama's (docs/modelfile.mdx)


class Options(LlamaSampling):
    IGNORED = frozenset({  # how it is computed
        "num_ctx", "num_gpu", "num_thread", "num_batch", "num_keep", "main_gpu", "use_mmap", "use_mlock",
        "numa", "low_vram", "f16_kv", "vocab_only", "penalize_newline", "logits_all", "embedding_only",
    })  # fmt: skip
    DEFAULTS: ClassVar = {
        "num_predict": [-1, -2],
        "repeat_last_n": [64, -1],
        "mirostat": [0],
        "mirostat_tau": [5.0],
        "mirostat_eta": [0.1],
        "tfs_z": [1],
    }
    num_predict: Annotated[StrictInt, Field(ge=1)] | None = None


class OllamaRequest(StrictModel):
    """What Ollama's requests share."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"keep_alive"})
    model: StrictStr | None = None
    options: Options | None = None
    stream: StrictBool | None = None
    format: Literal["json", ""] | Object | None = None
    think: StrictBool | Literal["low", "medium", "high"] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None


class Call(StrictModel):
    IGNORED = frozenset({"id", "type"})
    function: CallOf


class CallOf(FunctionCall):
    IGNORED = frozenset({"index", "description", "parsed_arguments"})


class OllamaMessage(StrictModel):
    IGNORED = frozenset({"timestamp", "done"})
    role: Literal["system", "user", "assistant", "tool"]
    content: StrictStr | None = None
    thinking: StrictStr | None = None
    tool_calls: Annotated[list[Call], FailFast] | None = None
    tool_name: StrictStr | None = None
    tool_call_id: StrictStr | None = None


class ChatRequest(OllamaRequest):
    messages: Annotated[list[OllamaMessage], FailFast, at_most(MAX_MESSAGES)] | None = None
    tools: Tools | None = None


class GenerateRequest(OllamaRequest):
    prompt: StrictStr = ""
    suffix: StrictStr | None = None
    system: StrictStr | None = None
    raw: StrictBool | None = None
    context: Indices | None = None


class EmbedRequest(StrictModel):
    IGNORED = frozenset({"keep_alive", "options"})
    model: StrictStr | None = None
    input: Texts
    truncate: StrictBool | None = None
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None
    pooling: Literal["mean", "cls", "last"] | None = Field(None, description="Cutaway's.")


class EmbeddingsRequest(StrictModel):
    """Ollama's former request for one text's vector."""

    IGNORED = frozenset({"keep_alive", "options"})
    model: StrictStr | None = None
    prompt: StrictStr
    pooling: Literal["mean", "cls", "last"] | None = Field(None, description="Cutaway's.")


class ShowRequest(StrictModel):
    IGNORED = frozenset({"verbose"})
    model: StrictStr | None = None
    name: StrictStr | None = None


async def chat(service: Service, body: ChatRequest, http: HTTPRequest) -> Response:
    """Ollama's chat."""
    return await _answer(service, body, http)


async def generate(service: Service, body: GenerateRequest, http: HTTPRequest) -> Response:
    """Ollama's answer to one prompt."""
    return await _answer(service, body, http)


async def _answer(service: Service, body: ChatRequest | GenerateRequest, http: HTTPRequest) -> Response:
    chats = isinstance(body, ChatRequest)
    if not (body.messages if chats else body.prompt):  # to load the model, which is loaded
        service.engine_of(_name(service, body.model))
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
    fields |= {"model": _name(service, body.model), "max_tokens": options.num_predict}
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


def _name(service: Service, asked: str | None) -> str | None:
    """The model's name without Ollama's default tag."""
    known = asked is None or asked in service.names
    return asked if known or asked is None else asked.removesuffix(":latest")


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
        answer = read(self.of.reader(), pieces)
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
        return {"logprobs": [token_logprobs(tokenizer, piece) for piece in chosen]} if chosen else {}

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
        } | warned(self.of.warnings)

    def _context(self, generation: Generation) -> dict[str, Any]:
        """The ids with which a later prompt may go on."""
        if not isinstance(self.body, GenerateRequest) or self.body.raw or self.body.suffix:
            return {}
        return {"context": [*generation.prompt_ids, *generation.ids]}


# ---- embeddings, and what the model is ---------------------------------------------------------------------


def embed(service: Service, body: EmbedRequest) -> Response:
    """Ollama's embeddings."""
    fields = {"model": _name(service, body.model), "input": body.input, "dimensions": body.dimensions}
    asked = checked(EmbeddingRequest, fields | {"pooling": body.pooling}, Leniency(ignored=body.ignored))
    vectors, count = embeddings.embed(service, asked, bool(body.truncate))
    found = {"model": body.model or service.name, "embeddings": vectors}
    return json_response(found | {"total_duration": 0, "load_duration": 0, "prompt_eval_count": count})


def embeddings_of(service: Service, body: EmbeddingsRequest) -> Response:
    """One text's vector, as Ollama's clients asked for it formerly."""
    fields = {"model": _name(service, body.model), "input": body.prompt, "pooling": body.pooling}
    asked = checked(EmbeddingRequest, fields, Leniency(ignored=body.ignored))
    return json_response({"embedding": embeddings.embed(service, asked)[0][0]})


def card(service: Service, name: str) -> dict[str, Any]:
    """The model in Ollama's lists."""
    when = datetime.fromtimestamp(service.created, UTC).isoformat()
    stored = sum(service.lm.checkpoint.tensors.later(one).nbytes for one in service.lm.config.weights())
    card = {"name": name, "model": name, "modified_at": when, "expires_at": when, "size": stored}
    card |= {"size_vram": 0, "digest": _digest(service), "details": _details(service)}
    return card | {"context_length": service.lm.context}


def unloaded(name: str, nbytes: int) -> dict[str, Any]:
    """A model in Ollama's lists that is not loaded: what it will take is known of it."""
    when = datetime.fromtimestamp(0, UTC).isoformat()
    card = {"name": name, "model": name, "modified_at": when, "size": nbytes, "digest": ""}
    return card | {"details": dict.fromkeys(DETAILS, "") | {"families": []}}


DETAILS = ("parent_model", "format", "family", "families", "parameter_size", "quantization_level")


def _details(service: Service) -> dict[str, Any]:
    checkpoint, kinds = service.lm.checkpoint, Counter[str]()
    for name, shape in checkpoint.config.weights().items():
        kinds[checkpoint.tensors.later(name).type] += math.prod(shape)
    family = checkpoint.family or "cutaway"
    return {
        "parent_model": "",
        "format": "gguf" if checkpoint.path.suffix == ".gguf" else "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": _counted(kinds.total()),
        "quantization_level": kinds.most_common(1)[0][0],
    }


def _counted(parameters: int) -> str:
    """How many parameters, as Ollama writes it."""
    size, unit = (parameters / 1e9, "B") if parameters >= 1e9 else (parameters / 1e6, "M")
    return f"{size:.1f}{unit}" if unit == "B" else f"{size:.2f}{unit}"


def _digest(service: Service) -> str:
    """What tells a model from another: a hash of its tensors' names, types and shapes and of its files' sizes
    and times, for reading all of its bytes would take seconds.
    """
    checkpoint = service.lm.checkpoint
    entries = {name: checkpoint.tensors.later(name) for name in checkpoint.config.weights()}
    facts: list[Any] = [(name, one.type, one.shape) for name, one in entries.items()]
    source = checkpoint.path
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    facts += [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files if one.is_file()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def show(service: Service, body: ShowRequest) -> Response:
    """What Ollama's clients ask of a model."""
    service.engine_of(_name(service, body.model or body.name))
    template = service.lm.checkpoint.chat_template or ""
    able = ["embedding"] if service.scheduler is None else ["completion"]
    if template:
        able += ["tools"] + (["thinking"] if find_marks(template) else [])
    details = _details(service)
    info = {
        "general.architecture": details["family"],
        f"{details['family']}.context_length": service.lm.context,
        f"{details['family']}.embedding_length": service.lm.config.width,
        f"{details['family']}.block_count": len(service.lm.config.blocks),
    }
    info["general.parameter_count"] = sum(map(math.prod, service.lm.config.weights().values()))
    when = datetime.fromtimestamp(service.created, UTC).isoformat()
    settings = "\n".join(f"{name} {value}" for name, value in service.lm.checkpoint.defaults.items())
    found = {
        "modelfile": f"FROM {service.name}",
        "parameters": settings,
        "template": template,
        "details": details,
        "model_info": info,
    }
    return json_response(found | {"capabilities": able, "modified_at": when})
