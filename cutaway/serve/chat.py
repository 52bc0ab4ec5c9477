"""A conversation in, the assistant's answer out: what every chat API shares, and /v1/chat/completions.

The other APIs (responses.py, anthropic.py, ollama.py) translate their request into a ChatCompletionRequest,
and the events of its answer into their own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.request import Generation, Piece, Request
from cutaway.generate.thinking import budget
from cutaway.generate.tool_calls import parser, tool_grammar
from cutaway.generate.tool_calls.answer import AnswerReader, Event, collect
from cutaway.generate.tool_calls.constraint import Check, Held, call_constraint, refuse_misspelt
from cutaway.generate.tool_calls.thoughts import Marks, Thought, find_marks
from cutaway.generate.tool_calls.tool_format import ToolFormat
from cutaway.serve import constraints
from cutaway.serve.openai_format import (
    APIError,
    errors_in,
    finish_reason,
    internals_of,
    json_response,
    new_id,
    obfuscated,
    token_logprobs,
    usage,
    warned,
)
from cutaway.serve.operations.request_record import record_of
from cutaway.serve.protocol import AllowedTools, ChatCompletionRequest, Ending, Message, NamedTool, Tool
from cutaway.serve.service import Service
from cutaway.serve.streaming import Caller, MergedStreams, caller_of, respond

EFFORTS = {"none": 0, "minimal": 256, "low": 1024, "medium": 4096}  # tokens of thought; above: no limit
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "template")
RESERVED += ("tokenizer", "steering")


async def chat(service: Service, body: ChatCompletionRequest, http: HTTPRequest) -> Response:
    """Answer a chat request."""
    begun = await begin(service, body, http)
    return await respond(http, begun.streams, ChatCompletion(begun), body.stream)


# ---- the conversation's ids --------------------------------------------------------------------------------


def messages(given: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates read them: text joined, arguments as objects, developers as the system."""
    return [_message(message, i) for i, message in enumerate(given)]


def _message(message: Message, i: int) -> dict[str, Any]:
    content = message.content if message.content is not None else message.refusal
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    calls = [(call.id, call.function) for call in message.tool_calls or ()]
    calls += [(None, message.function_call)] if message.function_call else []
    if content is None and message.role != "assistant":
        raise APIError(400, f"messages[{i}] has no content: give it some", param=f"messages[{i}].content")
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    plain = {"role": role, "content": content or "", "name": message.name}
    plain |= {
        "tool_call_id": message.tool_call_id,
        "tool_calls": [_tool_call(*call) for call in calls] or None,
    }
    plain["reasoning_content"] = message.reasoning_content or message.reasoning
    return {name: value for name, value in plain.items() if value is not None}


def _tool_call(id: str | None, function: Any) -> dict[str, Any]:
    """A call as templates read it; arguments that are no JSON object, as cut off ones, are one text."""
    given = function.arguments or {}
    try:
        arguments = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        arguments = None
    arguments = arguments if isinstance(arguments, dict) else {"arguments": given}
    function = {"name": function.name, "arguments": arguments}
    return {"id": id or "call00000", "type": "function", "function": function}


def chat_ids(
    service: Service,
    given: Sequence[Message],
    tools: Sequence[Tool] | None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The ids of a conversation. APIError for a model without a template, and for content that steers it."""
    plain = [tool.model_dump(exclude_none=True) for tool in tools or ()]
    if service.scheduler is not None and service.lm.checkpoint.chat_template is None:
        text = f"{service.name} has no chat template: ask /v1/completions, or have the server started with "
        raise APIError(400, text + "--chat-template FILE", param="messages", code="no_chat_template")
    with errors_in("messages"):
        return service.lm.chat_ids(messages(given), tools=plain or None, **(variables or {}))


def _variables(service: Service, body: ChatCompletionRequest) -> dict[str, Any]:
    """The template's variables that a request sets; those that the template does not know are ignored."""
    given = dict(body.chat_template_kwargs or {})
    for name in given:
        if name in RESERVED or name.endswith("_token") or not name.isidentifier():
            text = f"chat_template_kwargs sets {name[:64]!r}, which is not the request's to set"
            raise APIError(400, text, param="chat_template_kwargs")
    if body.reasoning_effort is not None:
        given = {"reasoning_effort": body.reasoning_effort, **given}
        given.setdefault("enable_thinking", body.reasoning_effort != "none")
    template = service.lm.checkpoint.chat_template or ""
    used = {name: value for name, value in given.items() if name in template}
    for name in (body.chat_template_kwargs or {}).keys() - used.keys():
        body.ignored[f"chat_template_kwargs.{name}"] = None
    return used | ending(body)


def ending(body: Ending) -> dict[str, bool]:
    """What a request says about the end of the conversation as the model reads it."""
    if body.continue_final_message:
        return {"continue_final_message": True}
    return {"add_generation_prompt": False} if body.add_generation_prompt is False else {}


def _continued(body: ChatCompletionRequest) -> str:
    """The text that the answer goes on with, empty for a new answer."""
    return messages(body.messages[-1:])[0]["content"] if body.continue_final_message else ""


def _thought_limit(
    body: ChatCompletionRequest, thought: Marks | None, variables: Mapping[str, Any]
) -> int | None:
    """The most tokens of thought that a request allows. What it asks where nothing can follow is ignored."""
    effort, asked = body.reasoning_effort, body.thinking_token_budget
    if thought is None:
        if effort is not None and not variables.keys() & {"reasoning_effort", "enable_thinking"}:
            body.ignored["reasoning_effort"] = None
        if asked is not None:
            body.ignored["thinking_token_budget"] = None
        return None
    if asked is None and "reasoning_effort" not in variables:
        return EFFORTS.get(effort or "")
    return asked


# ---- from a request to the scheduler's ---------------------------------------------------------------------


@dataclass
class Conversation:
    """A chat request under way: the streams of its choices, and what reads them."""

    service: Service
    body: ChatCompletionRequest
    requests: list[Request]
    format: ToolFormat | None  # None: no call may be made
    forced: bool  # the answer is calls alone
    thought: Marks | None
    check: Check | None  # what the answer's schema asks beyond the grammar
    fresh: Callable[[int], Any]  # makes an answer's constraint
    warnings: list[str]
    streams: MergedStreams = field(init=False)

    @property
    def client(self) -> str:
        """Whose request it is."""
        return self.requests[0].client

    def reader(self) -> AnswerReader:
        """What reads one choice."""
        schemas = tool_schemas(_tools(self.body)[0])
        return AnswerReader(self.thought, self.format, schemas, self.forced)


async def begin(
    service: Service, body: ChatCompletionRequest, http: HTTPRequest, ids: Sequence[int] | None = None
) -> Conversation:
    """Have a chat request answered; ``ids`` are what the model reads, where the messages do not say it.
    APIError for what cannot be answered.
    """
    caller = caller_of(http, body.cache_salt)
    if body.edits:  # which compute with the model
        made = await service.run_definition(http, _prepared, body, caller, ids)
    else:
        made = await service.run(caller.client, _prepared, body, caller, ids)

    def judge(i: int, generation: Generation) -> str | None:
        answer = read(made.reader(), [Piece(generation.text, generation=generation)])
        return made.check and made.check(answer.content, answer.calls)

    again = made.check and constraints.drawn_again(made.requests, made.fresh, judge, made.warnings)
    warnings = made.warnings if made.forced or body.has_form else None
    count = len(made.requests)
    made.streams = MergedStreams(service, made.requests, record_of(http), again, warnings, count)
    return made


def _prepared(
    service: Service, body: ChatCompletionRequest, caller: Caller, given: Sequence[int] | None
) -> Conversation:
    """A request that is checked, and rendered; its streams are not begun."""
    engine = service.engine_of(body.model, body.edits)
    tools, choice = _tools(body)
    _check_consistent(body, tools)
    count = body.n or 1
    service.limits.check_choices(count, "n")
    tools = None if choice == "none" else tools
    variables = _variables(service, body)
    ids = tuple(chat_ids(service, body.messages, tools, variables) if given is None else given)
    param, most = "max_completion_tokens", body.max_completion_tokens
    param, most = ("max_tokens", body.max_tokens) if most is None else (param, most)
    if most == 0:
        raise APIError(400, f"{param} is 0: an answer has at least one token", param=param)
    service.check_ids(ids, "messages")
    most = service.limits.tokens(most, len(ids), service.context, param)
    thought = find_marks(service.lm.checkpoint.chat_template or "")
    thought = thought and thought.of_prompt(service.lm.tokenizer.decode(ids[-16:]))
    opened = thought is not None and thought.opened
    format, held, forced = service.lm.tool_format if tools else None, None, False
    if format is None or tools is None:
        held = constraints.of_response(body) if body.has_form else None
    else:
        format = replace(format, reasoning=None, can_require=True) if opened else format
        with errors_in("tools"):
            held, forced = _tool_rules(service, body, format, tools, choice)
    begun = _continued(body)
    if begun and forced:
        text = "an answer that goes on with the last message is no call: use tool_choice 'auto'"
        raise APIError(400, text, param="continue_final_message")
    with errors_in("response_format" if format is None else "tools"):
        constraint: Any = service.start_grammar(held and held.grammar)
        constraint = constraint.begun(begun) if constraint is not None and begun else constraint
    limit, room = _thought_limit(body, thought, variables), service.context - len(ids)
    room = room if most is None else min(most, room)
    if thought is not None and (opened if constraint is not None else limit is not None):
        constraint = budget.of_marks(service.lm.tokenizer, thought, limit, constraint, room)
    else:
        constraint = service.bounded(constraint, room)

    def fresh(_: int) -> Any:
        return service.with_min_tokens(constraint and constraint.fresh(), body)

    internals = service.internals(body.internals)
    edit = service.edit(body.edits, ids)
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else 0
    requests = [
        Request(
            ids=ids,
            settings=service.sampling_params(body, most, top_logprobs, i),
            constraint=fresh(i),
            internals=internals,
            edit=edit,
            **caller.fields,
            engine=engine,
        )
        for i in range(count)
    ]
    check, warnings = (held.check, list(held.warnings)) if held else (None, [])
    if check is not None and begun:
        check = partial(_check_whole, check, begun)
    return Conversation(service, body, requests, format, forced, thought, check, fresh, warnings)


def _check_whole(check: Check, begun: str, content: str, calls: Sequence[parser.Call]) -> str | None:
    """Why an answer does not fit, after the text that it goes on with."""
    return check(begun + content, calls)


def _tools(body: ChatCompletionRequest) -> tuple[list[Tool] | None, Any]:
    """The tools and the choice among them, OpenAI's former functions among them."""
    if not body.functions:
        return body.tools, body.tool_choice
    if body.tools:
        raise APIError(400, "functions and tools mean the same: give tools", param="functions")
    tools = [Tool(type="function", function=function) for function in body.functions]
    choice = body.function_call
    if choice is not None and not isinstance(choice, str):
        choice = NamedTool(type="function", function=choice)
    return tools, choice


def _check_consistent(body: ChatCompletionRequest, tools: Sequence[Tool] | None) -> None:
    """Refuse fields that contradict each other; what has no meaning without another is ignored."""
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        text = "max_tokens and max_completion_tokens mean the same: give one"
        raise APIError(400, text, param="max_tokens")
    if body.top_logprobs and not body.logprobs:
        raise APIError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        body.ignored["stream_options"] = None
    if not tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise APIError(400, "tool_choice needs tools", param="tool_choice")
        if body.parallel_tool_calls is not None:
            body.ignored["parallel_tool_calls"] = None


def _tool_rules(
    service: Service, body: ChatCompletionRequest, format: ToolFormat, tools: Sequence[Tool], choice: Any
) -> tuple[Held | None, bool]:
    """What holds an answer that may make calls, and whether it is calls alone."""
    tokenizer = service.lm.tokenizer
    several = body.parallel_tool_calls is not False and not body.functions
    schemas = tool_schemas(tools)
    if len(schemas) < len(tools):
        raise APIError(400, "two of the tools have the same name", param="tools")
    if isinstance(choice, NamedTool):
        wanted, choice, several = [choice], "required", False
    elif isinstance(choice, AllowedTools):
        wanted, choice = choice.allowed_tools.tools, choice.allowed_tools.mode
    else:
        wanted = None
    for one in wanted or ():
        if one.function.name not in schemas:
            text = f"tool_choice names {one.function.name[:64]!r}, which is not among the tools"
            raise APIError(400, text, param="tool_choice")
    for one in tools:
        if one.function.strict:
            refuse_misspelt(one.function.parameters, f"{one.function.name}'s schema")
    names = {one.function.name for one in wanted} if wanted else set(schemas)
    held = {name: schema for name, schema in schemas.items() if name in names}
    if choice == "required":
        return call_constraint(tool_grammar.required_grammar, format, held, tokenizer, several), True
    if constraints.asked(body) is not None:
        return constraints.of_either(body, format, held, tokenizer, several), False
    if wanted or any(tool.function.strict for tool in tools) or not several:
        return call_constraint(tool_grammar.optional_grammar, format, held, tokenizer, several), False
    return None, False


def tool_schemas(tools: Sequence[Tool] | None) -> parser.ToolSchemas:
    """The schemas of the tools' arguments by the tools' names."""
    return {tool.function.name: tool.function.parameters for tool in tools or ()}


# ---- from the model's text to an answer --------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One choice, whole: its thought, what it says, and its calls."""

    thought: str
    content: str
    calls: list[parser.Call]
    reason: str
    generation: Generation


def reason(reader: AnswerReader, generation: Generation) -> str:
    """OpenAI's word for what ended an answer: calls, unless it was cut off before they were complete."""
    ended = finish_reason(generation)
    return "tool_calls" if reader.called and ended == "stop" else ended


def read(reader: AnswerReader, pieces: Sequence[Piece]) -> Answer:
    """The answer that all of a choice's pieces make."""
    events = [event for piece in pieces for event in reader.push(piece)]
    generation = pieces[-1].generation
    assert generation is not None, "the last piece brings the generation"
    return Answer(*collect(events), reason(reader, generation), generation)


# ---- OpenAI's chat completions -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatCompletion:
    """The answer to one chat request, in OpenAI's form."""

    of: Conversation

    async def whole(self) -> Response:
        """The response when all choices are finished."""
        pieces, generations = await self.of.streams.collect()
        return await self.of.service.run(self.of.client, self._response, pieces, generations)

    def _response(
        self, service: Service, pieces: Sequence[Sequence[Piece]], generations: Sequence[Generation]
    ) -> Response:
        readers = [self.of.reader() for _ in pieces]
        choices = [self._choice(i, *one) for i, one in enumerate(zip(readers, pieces, strict=True))]
        thought = sum(reader.thought_tokens for reader in readers)
        service.log_answer(self.of.body, [choice["message"] for choice in choices])
        head = service.head(new_id("chatcmpl"), "chat.completion", self.of.body.model)
        counts = usage(generations, generations[:1])
        counts["completion_tokens_details"] = {"reasoning_tokens": thought}
        return json_response(head | {"choices": choices, "usage": counts} | warned(self.of.warnings))

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a streamed response."""
        of, streams = self.of, self.of.streams
        head = of.service.head(new_id("chatcmpl"), "chat.completion.chunk", of.body.model)
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
            yield shown(chunk(i, {"role": "assistant", "content": ""}))
        async for i, piece in streams:
            fields = {} if piece.id is None else self._token_fields([piece])
            events = readers[i].push(piece)
            deltas = [_delta(event, calls, i, bool(of.body.functions)) for event in events]
            for delta in deltas or ([{}] if fields else []):
                yield shown(chunk(i, delta, **fields))
                fields = {}
            if piece.generation is not None:
                ended = _legacy(reason(readers[i], piece.generation), of.body)
                yield shown(chunk(i, {}, ended) | warned(of.warnings))
                generations[i] = piece.generation
        if counting:
            done = [generations[i] for i in sorted(generations)]
            counts = usage(done, done[:1])
            thought = sum(reader.thought_tokens for reader in readers)
            counts["completion_tokens_details"] = {"reasoning_tokens": thought}
            yield head | {"choices": [], "usage": counts}

    def _token_fields(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Log-probabilities and internals of the pieces' tokens, where the request asks for them."""
        body, tokenizer = self.of.body, self.of.service.lm.tokenizer
        chosen = [piece for piece in pieces if piece.id is not None]
        found: dict[str, Any] = {}
        if body.logprobs:
            found["logprobs"] = {"content": [token_logprobs(tokenizer, piece) for piece in chosen]}
        if body.internals is not None:
            found["internals"] = [internals_of(tokenizer, piece) for piece in chosen]
        return found

    def _choice(self, i: int, reader: AnswerReader, pieces: Sequence[Piece]) -> dict[str, Any]:
        answer = read(reader, pieces)
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
