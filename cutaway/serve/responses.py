"""/v1/responses: OpenAI's Responses, translated into a chat and back, and kept for a time.

What is kept is the response and the items that led to it, so that ``previous_response_id``, an item's
reference or a conversation goes on from there; no other key finds it (response_store.py).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Discriminator, Field, StrictBool, StrictInt, StrictStr, Tag
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Generation
from cutaway.generate.tool_calls import parser
from cutaway.generate.tool_calls.answer import Event
from cutaway.generate.tool_calls.thoughts import Thought
from cutaway.serve import summaries
from cutaway.serve.chat import Conversation, begin, chat_ids
from cutaway.serve.openai_format import (
    APIError,
    finish_reason,
    json_response,
    new_id,
    to_api_error,
    token_logprobs,
    usage,
    warned,
)
from cutaway.serve.operations.request_record import record_of
from cutaway.serve.protocol import (
    IGNORED,
    CacheSalt,
    ChatCompletionRequest,
    Content,
    FailFast,
    JsonObject,
    LarkGrammar,
    Leniency,
    Object,
    Regex,
    StrictModel,
    Temperature,
    TextFormat,
    branch,
    checked,
)
from cutaway.serve.response_store import Entry, Kind
from cutaway.serve.service import Service
from cutaway.serve.streaming import EncodedEvent, client_of, encoded_event, key_of, respond

Result = TypeVar("Result")
PARAMS = {
    "messages": "input",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
}  # a chat's fields under this API's names
LOGPROBS = "message.output_text.logprobs"
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")  # of what OpenAI includes; there is nothing to encrypt


class InputItem(StrictModel):
    """An item of a response's input: a message, a call and its result, a thought, or a reference to one."""

    IGNORED = frozenset({"status", "encrypted_content", "phase", "annotations", "created_by", "namespace"})
    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"] = (
        "message"
    )
    id: StrictStr | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content | None = None
    call_id: StrictStr | None = None
    name: StrictStr | None = None
    arguments: StrictStr | None = None
    output: Content | None = None
    summary: Content | None = None


class CompactionItem(StrictModel):
    """What a conversation was compacted to, as /v1/responses/compact gave it."""

    IGNORED = frozenset({"status", "created_by"})
    type: Literal["compaction"]
    id: StrictStr | None = None
    encrypted_content: StrictStr


def _item_kind(value: Any) -> str:
    """Which model an item of the input is of, by its type."""
    type = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "Compaction" if type == "compaction" else "Item"


Item = Annotated[
    Annotated[InputItem, Tag("Item")] | Annotated[CompactionItem, Tag("Compaction")],
    Discriminator(_item_kind),
]
Input = Annotated[
    Annotated[StrictStr, Tag("str")]
    | Annotated[list[Item], FailFast, Field(min_length=1), Tag("list[items]")],
    Discriminator(
        branch, custom_error_type="wrong_type", custom_error_message="give a text or a list of items"
    ),
]


class ResponseSchema(StrictModel):
    type: Literal["json_schema"]
    name: StrictStr
    description: StrictStr | None = None
    schema_: Object = Field(alias="schema")
    strict: StrictBool | None = None


class ResponseText(StrictModel):
    IGNORED = frozenset({"verbosity"})
    format: (
        Annotated[TextFormat | JsonObject | ResponseSchema | Regex | LarkGrammar, Field(discriminator="type")]
        | None
    ) = None


class Reasoning(StrictModel):
    IGNORED = frozenset({"summary", "generate_summary"})
    effort: StrictStr | None = None


class ResponseTool(StrictModel):
    IGNORED = frozenset({"defer_loading", "allowed_callers", "output_schema"})
    DEFAULTS: ClassVar = {"strict": [None]}
    type: StrictStr
    name: StrictStr | None = None
    description: StrictStr | None = None
    parameters: Object | None = None
    strict: StrictBool | None = None


class ToolChoice(StrictModel):
    type: StrictStr
    name: StrictStr | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[ToolChoice], FailFast] | None = None


class ById(StrictModel):
    id: StrictStr


class ResponsesRequest(Temperature):
    """OpenAI's Responses."""

    IGNORED: ClassVar[frozenset[str]] = (IGNORED - {"metadata", "store"}) | {
        "max_tool_calls",
        "stream_options",
    }
    model: StrictStr | None = None
    input: Input
    instructions: StrictStr | None = None
    max_output_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    stream: StrictBool | None = None
    text: ResponseText | None = None
    tools: Annotated[list[ResponseTool], FailFast, Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    include: Annotated[list[StrictStr], FailFast, Field(max_length=64)] | None = None
    reasoning: Reasoning | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    previous_response_id: StrictStr | None = None
    conversation: StrictStr | ById | None = None
    store: StrictBool | None = None
    background: StrictBool | None = None
    metadata: Annotated[dict[StrictStr, StrictStr], Field(max_length=16)] | None = None
    truncation: Literal["disabled"] | None = Field(None, description="A prompt is never cut.")
    cache_salt: CacheSalt | None = None

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation, however it is given."""
        return self.conversation.id if isinstance(self.conversation, ById) else self.conversation or None


class ConversationRequest(StrictModel):
    """A conversation that responses go on with."""

    items: Annotated[list[Item], FailFast, Field(max_length=20)] | None = None
    metadata: Annotated[dict[StrictStr, StrictStr], Field(max_length=16)] | None = None


class ConversationUpdate(StrictModel):
    """What is noted of a conversation."""

    metadata: Annotated[dict[StrictStr, StrictStr], Field(max_length=16)] | None = None


class ConversationItems(StrictModel):
    """Items that a conversation has more."""

    items: Annotated[list[Item], FailFast, Field(min_length=1, max_length=20)]


async def response(service: Service, body: ResponsesRequest, http: HTTPRequest) -> Response:
    """OpenAI's Responses."""
    key, client = key_of(http), client_of(http)
    items, asked = await service.run(client, _chat, body, key)
    try:
        of = await begin(service, asked, http)
    except APIError as error:
        error.param = PARAMS.get(error.param or "", error.param)
        raise
    answer = ResponseAnswer(body, of, key, client, items)
    if body.background and not body.stream:
        begun = await service.run(client, answer.begun)
        record_of(http).background = asyncio.create_task(answer.finished())
        return begun
    return await respond(http, answer.of.streams, answer, body.stream, wire="named")


# ---- from items to messages --------------------------------------------------------------------------------


def _chat(
    service: Service, body: ResponsesRequest, key: bytes
) -> tuple[list[dict[str, Any]], ChatCompletionRequest]:
    """All items that the response answers, and the same as a chat."""
    if body.background and body.store is False:
        raise APIError(400, "background needs store: its response is fetched later", param="background")
    items = items_of(service, key, body.input, body.previous_response_id, body.conversation_id)
    given = messages_of(summaries.read(service.store.secret, key, items))
    if any(item["type"] == "compaction" for item in items):
        given = summaries.joined(given)
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": messages + given,
        "max_completion_tokens": body.max_output_tokens,
        **body.model_dump(include={"temperature", "top_p"}),
        "stream": body.stream,
        "cache_salt": body.cache_salt,
        "reasoning_effort": body.reasoning and body.reasoning.effort,
        "tools": [_tool(tool) for tool in body.tools or ()],
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _format(body),
    }
    for name in body.include or ():
        if name not in INCLUDED:
            body.ignored[f"include.{name}"] = None
    if LOGPROBS in (body.include or ()):
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    elif body.top_logprobs is not None:
        body.ignored["top_logprobs"] = None
    return items, checked(ChatCompletionRequest, fields, Leniency(ignored=body.ignored))


def input_tokens(service: Service, body: ResponsesRequest, key: bytes, _: None) -> Response:
    """How many tokens a response's input has as the model reads it."""
    service.engine_of(body.model)
    asked = _chat(service, body, key)[1]
    ids = chat_ids(service, asked.messages, asked.tools)
    return json_response({"object": "response.input_tokens", "input_tokens": len(ids)})


def items_of(
    service: Service,
    key: bytes,
    given: str | Sequence[InputItem | CompactionItem] | None,
    response: str | None = None,
    conversation: str | None = None,
) -> list[dict[str, Any]]:
    """All items that a request is about: those of the response or the conversation that it goes on with, and
    its own.
    """
    if isinstance(given, str):
        own: list[dict[str, Any]] = [{"type": "message", "role": "user", "content": given}]
    else:
        own = [item.model_dump(exclude_none=True) for item in given or ()]
    if response and conversation:
        text = "previous_response_id and conversation both say what came before: give one"
        raise APIError(400, text, param="conversation")
    earlier: list[dict[str, Any]] = []
    if conversation is not None:
        earlier = kept(service, key, conversation, "conversation", "conversation").items
    elif response is not None:
        earlier = kept(service, key, response, "response", "previous_response_id").items
    return [*earlier, *_resolved(service, own, key)]


def _resolved(service: Service, items: Sequence[dict[str, Any]], key: bytes) -> list[dict[str, Any]]:
    """The items, with what references name in their place: together no more than a body may bring."""
    made, size, most = list[dict[str, Any]](), 0, service.limits.body_bytes
    for item in items:
        if item["type"] == "item_reference":
            item = kept(service, key, item.get("id") or "", "item", "input").shown
            size += len(json.dumps(item))
            if size > most:
                text = f"The items that are referred to have more than the {most:,} bytes of a body"
                raise APIError(413, text, param="input", code="body_too_large")
        made.append(item)
    return made


def kept(service: Service, key: bytes, id: str, kind: Kind, param: str | None = None) -> Entry:
    """What is kept under an id. APIError where nothing is, or another kind of thing, or another key's."""
    found = service.store.get(key, id, kind)
    if found is None:
        raise _missing(id, kind, param)
    return found


def _missing(id: str, kind: Kind, param: str | None = None) -> APIError:
    text = f"There is no {kind} {id[:100]!r} here: it was not stored, was deleted, or its time is over"
    return APIError(404 if param is None else 400, text, param=param, code="not_found")


def messages_of(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as a chat's messages: a thought, a text and calls in a row are one message of the assistant."""
    made: list[dict[str, Any]] = []

    def assistant(fits: bool) -> dict[str, Any]:
        if not (made and made[-1]["role"] == "assistant" and fits):
            made.append({"role": "assistant", "content": None, "tool_calls": []})
        return made[-1]

    for n, item in enumerate(items):
        after = n > 0 and items[n - 1]["type"] in ("reasoning", "function_call", "message")
        if item["type"] == "reasoning":
            parts = item.get("content") or item.get("summary") or []
            assistant(False)["reasoning_content"] = _text(parts)
        elif item["type"] == "function_call":
            call = {"name": item.get("name") or "", "arguments": item.get("arguments")}
            assistant(after)["tool_calls"].append({"id": item.get("call_id"), "function": call})
        elif item["type"] == "function_call_output":
            output, id = _text(item.get("output") or ""), item.get("call_id")
            made.append({"role": "tool", "content": output, "tool_call_id": id})
        elif item.get("role") == "assistant":
            thought = bool(made) and items[n - 1]["type"] == "reasoning"
            assistant(thought)["content"] = _text(item.get("content") or "")
        else:
            content = item.get("content")
            role = item.get("role") or "user"
            made.append({"role": role, "content": None if content is None else _text(content)})
    return [one for one in made if one["role"] != "assistant" or any(one.values())]


def _text(content: str | Sequence[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part.get("text") or "" for part in content)


def _tool(tool: ResponseTool) -> dict[str, Any]:
    if tool.type != "function":
        text = f"The tool {tool.type[:64]!r} is one that OpenAI hosts: give tools of type function"
        raise APIError(400, text, param="tools", code="hosted_tool")
    fields = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: getattr(tool, name) for name in fields}}


def _choice(choice: str | ToolChoice | None) -> Any:
    if choice is None or isinstance(choice, str):
        return choice
    if choice.type == "allowed_tools":
        tools = [_choice(one) for one in choice.tools or ()]
        return {"type": choice.type, "allowed_tools": {"mode": choice.mode or "auto", "tools": tools}}
    if choice.type != "function":
        text = f"tool_choice asks for {choice.type[:64]!r}, which OpenAI hosts: name a function"
        raise APIError(400, text, param="tool_choice", code="hosted_tool")
    return {"type": "function", "function": {"name": choice.name or ""}}


def _format(body: ResponsesRequest) -> Any:
    asked = body.text and body.text.format
    if not asked:
        return None
    plain = asked.model_dump(exclude_none=True, by_alias=True)
    return {"type": plain.pop("type"), "json_schema": plain} if isinstance(asked, ResponseSchema) else plain


# ---- the answer --------------------------------------------------------------------------------------------


@dataclass
class Items:
    """The output's items and the events that tell them, as the answer's events come."""

    made: list[dict[str, Any]] = field(default_factory=list)
    part: dict[str, Any] | None = None  # of the last item, which is under way; a call has none

    def push(self, event: Event, logprobs: Sequence[Any] = ()) -> Iterator[dict[str, Any]]:
        """An event of the answer as the response's."""
        kind = "reasoning" if isinstance(event, Thought) else "message" if isinstance(event, str) else "call"
        if isinstance(event, parser.CallStarted) or not self._open(kind):
            yield from self.close("completed")
            yield from self._begin(kind, event)
        place = self._place()
        if isinstance(event, parser.ArgumentsDelta):
            self.made[-1]["arguments"] += event.arguments
            yield {"type": "response.function_call_arguments.delta", "delta": event.arguments, **place}
        elif self.part is not None:
            text = event.text if isinstance(event, Thought) else str(event)
            self.part["text"] += text
            delta: dict[str, Any] = {"delta": text, "content_index": 0, **place}
            if kind == "message":
                self.part["logprobs"] += logprobs
                delta["logprobs"] = list(logprobs)
            yield {"type": f"response.{self.part['type']}.delta", **delta}

    def _open(self, kind: str) -> bool:
        last = self.made[-1] if self.made else {"status": "completed"}
        return last["status"] == "in_progress" and last["type"] == {"call": "function_call"}.get(kind, kind)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.made[-1]["id"], "output_index": len(self.made) - 1}

    def _begin(self, kind: str, event: Event) -> Iterator[dict[str, Any]]:
        head: dict[str, Any] = {"status": "in_progress"}
        if isinstance(event, parser.CallStarted):
            head |= {"id": new_id("fc"), "type": "function_call", "name": event.name}
            head |= {"call_id": new_id("call"), "arguments": ""}
        elif kind == "reasoning":
            head |= {"id": new_id("rs"), "type": kind, "summary": [], "content": []}
        else:
            head |= {"id": new_id("msg"), "type": kind, "role": "assistant", "content": []}
        self.made.append(head)
        index = len(self.made) - 1
        yield {"type": "response.output_item.added", "output_index": index, "item": dict(head)}
        self.part = None
        if kind != "call":
            self.part = {"type": "reasoning_text", "text": ""}
            if kind == "message":
                self.part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield {
                "type": "response.content_part.added",
                "content_index": 0,
                "part": {**self.part, **({"logprobs": []} if kind == "message" else {})},
                **self._place(),
            }

    def close(self, status: str) -> Iterator[dict[str, Any]]:
        """The end of the item under way, if there is one."""
        if not self.made or self.made[-1]["status"] != "in_progress":
            return
        item, part, place = self.made[-1], self.part, self._place()
        item["status"] = status
        if part is None:
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **done, **place}
        else:
            item["content"] = [part]
            place |= {"content_index": 0}
            fields = {name: part[name] for name in ("text", "logprobs") if name in part}
            yield {"type": f"response.{part['type']}.done", **fields, **place}
            yield {"type": "response.content_part.done", "part": part, **place}
        index = len(self.made) - 1
        yield {"type": "response.output_item.done", "output_index": index, "item": item}


@dataclass
class ResponseAnswer:
    """The answer to one request for a response."""

    body: ResponsesRequest
    of: Conversation
    key: bytes
    client: str
    items: list[dict[str, Any]]  # that it answers
    id: str = field(default_factory=lambda: new_id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    output: Items = field(default_factory=Items)
    done: Generation | None = None
    thought_tokens: int = 0
    cancelled: bool = False
    failed: APIError | None = None  # in the background

    async def whole(self) -> Response:
        """The response when it is finished."""
        await self.finished()
        return await self._run(lambda _: json_response(self.shown()))

    def begun(self, service: Service) -> Response:
        """The response of a background answer that begins; kept, so that it can be fetched. For threads."""
        shown = self.shown()
        service.store.put(self.key, {self.id: Entry("response", shown, self.items, len(self.items))})
        return json_response(shown)

    async def finished(self) -> None:
        """Finish the response; kept, unless that is not wanted."""
        try:
            async for _ in self.chunks():
                pass
        finally:
            self.of.streams.close()

    async def chunks(self) -> AsyncIterator[dict[str, Any] | EncodedEvent]:
        """The numbered events of a streamed response."""
        service, number = self.of.service, 2
        service.running[self.key, self.id] = self
        try:
            for n, kind in enumerate(("created", "in_progress")):
                yield await self._run(self._whole_event, kind, n)
            async for event in self._events():
                yield {**event, "sequence_number": number}
                number += 1
            yield await self._run(self._last_event, number)
        except Exception as error:
            if not (self.cancelled or self.body.background):
                raise
            self.failed = None if self.cancelled else to_api_error(error)
            await self._run(self._keep)
        finally:
            service.running.pop((self.key, self.id), None)

    async def _run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Work on the whole response, which may be as large as its request, beside the event loop."""
        return await self.of.service.run(self.client, work, *arguments)

    def _whole_event(self, _: Service, kind: str, number: int) -> EncodedEvent:
        type = f"response.{kind}"
        return encoded_event({"type": type, "response": self.shown(), "sequence_number": number})

    def _last_event(self, service: Service, number: int) -> EncodedEvent:
        return self._whole_event(service, self._keep(service)["status"], number)

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        reader, tokenizer = self.of.reader(), self.of.service.lm.tokenizer
        async for _, piece in self.of.streams:
            wanted = self.of.body.logprobs and piece.id is not None
            scores = [token_logprobs(tokenizer, piece)] if wanted else []
            for event in reader.push(piece):
                for one in self.output.push(event, scores):
                    yield one
                scores = []
            self.done, self.thought_tokens = piece.generation, reader.thought_tokens
        assert self.done is not None, "the last piece brings the generation"
        rest = () if self.output.made else self.output.push("")
        for one in (*rest, *self.output.close(self._ended(self.done))):
            yield one

    @staticmethod
    def _ended(done: Generation) -> str:
        return "completed" if finish_reason(done) == "stop" else "incomplete"

    def _keep(self, service: Service) -> dict[str, Any]:
        """Store the response, unless that is not wanted, and return its JSON. For threads."""
        shown = self.shown()
        service.log_answer(self.body, shown["output"])
        if self.body.store is False:
            return shown
        items = [*self.items, *self.output.made]
        entries = {self.id: Entry("response", shown, items, len(self.items))}
        entries |= {item["id"]: Entry("item", item) for item in self.output.made}
        if (id := self.body.conversation_id) is not None:
            found = kept(service, self.key, id, "conversation", "conversation")
            entries[id] = replace(found, items=_bounded(service, named(items)))
        service.store.put(self.key, entries)
        return shown

    def shown(self) -> dict[str, Any]:
        """The response's JSON, as far as it is."""
        status, body = "in_progress", self.body
        if self.done is not None:
            status = self._ended(self.done)
        status = "cancelled" if self.cancelled else "failed" if self.failed else status
        settings, plain = self.of.requests[0].settings, body.model_dump(exclude_none=True, by_alias=True)
        made = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": bool(body.background),
            "error": self.failed
            and {"code": self.failed.code or "server_error", "message": str(self.failed)},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model or self.of.service.name,
            "output": [] if self.done is None else self.output.made,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "store": body.store is not False,
            "temperature": settings.temperature,
            "text": {"format": plain.get("text", {}).get("format") or {"type": "text"}},
            "tool_choice": plain.get("tool_choice") or "auto",
            "tools": [
                dict.fromkeys(("description", "parameters", "strict")) | tool
                for tool in plain.get("tools", ())
            ],
            "top_p": settings.top_p,
            "truncation": "disabled",
            "usage": self.done and usage_of(self.done, self.thought_tokens),
        }
        if body.conversation_id is not None:
            made["conversation"] = {"id": body.conversation_id}
        return made | warned(self.of.warnings)


def usage_of(done: Generation, thought: int) -> dict[str, Any]:
    """How many tokens were read and generated, as this API counts them."""
    counts = usage([done], [done])
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {**counts["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": counts["total_tokens"],
    }


# ---- what is kept ------------------------------------------------------------------------------------------


def fetched(service: Service, key: bytes, id: str) -> dict[str, Any]:
    """A stored response."""
    running = service.running.get((key, id))
    return running.shown() if running else _shown_entry(service, key, id, "response")


def _shown_entry(service: Service, key: bytes, id: str, kind: Kind) -> dict[str, Any]:
    found = service.store.shown(key, id, kind)
    if found is None:
        raise _missing(id, kind)
    return found


def input_items(service: Service, key: bytes, id: str) -> dict[str, Any]:
    """The items that a stored response answers, newest first."""
    found = kept(service, key, id, "response")
    items = found.items[: found.given]
    items = [{"id": f"item_{n}", "status": "completed", **item} for n, item in enumerate(items)][::-1]
    return _listed(items)


def _listed(items: list[dict[str, Any]], more: bool = False) -> dict[str, Any]:
    first, last = (items[0]["id"], items[-1]["id"]) if items else ("", "")
    return {"object": "list", "data": items, "has_more": more, "first_id": first, "last_id": last}


def deleted(service: Service, key: bytes, id: str, kind: Kind) -> dict[str, Any]:
    """Forget a stored response or conversation."""
    if not service.store.delete(key, id, kind):
        raise _missing(id, kind)
    return {"id": id, "object": f"{kind}.deleted" if kind == "conversation" else kind, "deleted": True}


def stop(service: Service, key: bytes, id: str) -> bool:
    """Stop a response; whether it was under way. For the event loop."""
    running = service.running.get((key, id))
    if running is not None:
        running.cancelled = True
        running.of.streams.close()
    return running is not None


def cancelled(service: Service, key: bytes, id: str, was_running: bool) -> dict[str, Any]:
    """A response that was stopped. APIError for one that was not under way."""
    shown = fetched(service, key, id)
    if not was_running:
        status = shown.get("status", "completed")  # a compaction has none
        text = f"The response {id[:64]!r} is {status}: only one that is under way can be cancelled"
        raise APIError(400, text, param="response_id")
    return shown


def conversation(service: Service, body: ConversationRequest, key: bytes, _: None) -> Response:
    """A conversation that responses go on with."""
    id = new_id("conv")
    shown = {
        "id": id,
        "object": "conversation",
        "created_at": int(time.time()),
        "metadata": body.metadata or {},
    }
    items = _bounded(service, _added(service, body.items or (), key))
    service.store.put(key, {id: Entry("conversation", shown, items)})
    return json_response(shown)


def updated(service: Service, body: ConversationUpdate, key: bytes, id: str) -> Response:
    """Note something of a stored conversation."""
    found = kept(service, key, id, "conversation")
    shown = found.shown | {"metadata": body.metadata or {}}
    service.store.put(key, {id: replace(found, shown=shown)})
    return json_response(shown)


def add_items(service: Service, body: ConversationItems, key: bytes, id: str) -> Response:
    """Add items to a stored conversation."""
    found = kept(service, key, id, "conversation")
    added = _added(service, body.items, key)
    service.store.put(key, {id: replace(found, items=_bounded(service, [*found.items, *added]))})
    return json_response(_listed([shown_item(item) for item in added]))


def _added(service: Service, items: Sequence[InputItem | CompactionItem], key: bytes) -> list[dict[str, Any]]:
    """A request's items as a conversation keeps them."""
    return named(_resolved(service, [item.model_dump(exclude_none=True) for item in items], key))


def _bounded(service: Service, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items, if a request may bring so much at once: what reads a conversation reads all of it."""
    most = service.limits.body_bytes
    if len(json.dumps(items)) > most:
        text = f"The conversation would have more than the {most:,} bytes of a body: begin another"
        raise APIError(413, text, param="items", code="body_too_large")
    return items


def conversation_of(service: Service, key: bytes, id: str) -> dict[str, Any]:
    """A stored conversation."""
    return _shown_entry(service, key, id, "conversation")


def conversation_items(
    service: Service, key: bytes, id: str, order: str, limit: int, after: str
) -> dict[str, Any]:
    """The items of a stored conversation: at most ``limit``, those behind the item ``after``."""
    items = kept(service, key, id, "conversation").items
    items = items if order == "asc" else items[::-1]
    if after:
        items = items[_place(items, after) + 1 :]
    count = min(max(limit, 1), 100)
    return _listed([shown_item(item) for item in items[:count]], len(items) > count)


def conversation_item(service: Service, key: bytes, id: str, item: str) -> dict[str, Any]:
    """An item of a stored conversation."""
    items = kept(service, key, id, "conversation").items
    return shown_item(items[_place(items, item)])


def without_item(service: Service, key: bytes, id: str, item: str) -> dict[str, Any]:
    """Take an item out of a stored conversation, which is the answer."""
    found = kept(service, key, id, "conversation")
    at = _place(found.items, item)
    items = [*found.items[:at], *found.items[at + 1 :]]
    service.store.put(key, {id: replace(found, items=items)})
    return found.shown


def named(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items with an id each, by which a conversation finds them."""
    return [{"id": new_id("msg"), **item} for item in items]


def shown_item(item: dict[str, Any]) -> dict[str, Any]:
    """A stored item as the API shows it: a message's text is a list of parts."""
    shown = {"status": "completed", **item}
    if item["type"] == "message" and isinstance(item.get("content"), str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        shown["content"] = [{"type": kind, "text": item["content"]}]
    return shown


def _place(items: Sequence[dict[str, Any]], id: str) -> int:
    """Where the item with this id is. APIError where none has it."""
    at = next((n for n, item in enumerate(items) if item["id"] == id), None)
    if at is None:
        raise APIError(404, f"There is no item {id[:100]!r} in this conversation", code="not_found")
    return at
