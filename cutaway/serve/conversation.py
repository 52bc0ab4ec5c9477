"""A conversation in, the assistant's answer out: what every chat API shares.

The APIs (openai/chat.py, openai/responses.py, anthropic/, ollama/) translate their request into a
ChatCompletionRequest, and the events of its answer into their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HTTPRequest

from cutaway.generate.batch.request import Generation, Piece, Request
from cutaway.generate.tool_calls import parser
from cutaway.generate.tool_calls.answer import AnswerReader, collect
from cutaway.generate.tool_calls.thoughts import Marks, find_marks
from cutaway.serve import answer_form, edits
from cutaway.serve.answer_form import AnswerForm, tool_schemas
from cutaway.serve.api_error import APIError
from cutaway.serve.openai.format import ENDED
from cutaway.serve.openai.message_schema import NamedTool, Tool
from cutaway.serve.openai.schema import ChatCompletionRequest
from cutaway.serve.operations.request_record import Caller, RequestRecord, caller_of
from cutaway.serve.prompts import chat_ids, ending, going_on, messages
from cutaway.serve.service import Service
from cutaway.serve.streaming import MergedStreams
from cutaway.tokenizer import chat

EFFORTS = {"none": 0, "minimal": 256, "low": 1024, "medium": 4096}  # tokens of thought; above: no limit


def _variables(service: Service, body: ChatCompletionRequest) -> dict[str, Any]:
    """The template's variables that a request sets; those that the template does not know are ignored."""
    given = dict(body.chat_template_kwargs or {})
    for name in given:
        if not chat.may_be_set(name):
            text = f"chat_template_kwargs sets {name[:64]!r}, which is not the request's to set"
            raise APIError(400, text, param="chat_template_kwargs")
    if body.reasoning_effort is not None:
        given = {"reasoning_effort": body.reasoning_effort, **given}
        given.setdefault("enable_thinking", body.reasoning_effort != "none")
    template = service.template or ""
    used = {name: value for name, value in given.items() if name in template}
    for name in (body.chat_template_kwargs or {}).keys() - used.keys():
        body.ignored[f"chat_template_kwargs.{name}"] = None
    return used | ending(body)


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


@dataclass
class Conversation:
    """A chat request under way: the streams of its choices, and what reads them."""

    service: Service
    body: ChatCompletionRequest
    requests: list[Request]
    form: AnswerForm
    thought: Marks | None
    begun: str  # what the answers go on with, given as ids
    tools: parser.ToolSchemas
    streams: MergedStreams = field(init=False)

    @property
    def client(self) -> str:
        """Whose request it is."""
        return self.requests[0].client

    def reader(self) -> AnswerReader:
        """What reads one choice."""
        return AnswerReader(self.thought, self.form.format, self.tools, self.form.calls_alone, self.begun)


def prepare(service: Service, body: ChatCompletionRequest, http: HTTPRequest) -> Conversation | None:
    """A chat request, rendered by the thread that checks its body; None where edits have to come first."""
    return None if body.edits else _prepared(service, body, caller_of(http, body.cache_salt), None, None)


async def begin(
    service: Service, body: ChatCompletionRequest, http: HTTPRequest, ids: Sequence[int] | None = None
) -> Conversation:
    """Have a chat request answered; ``ids`` are what the model reads, where the messages do not say it.
    APIError for what cannot be answered.
    """
    made: Conversation | None = (http.scope.get("prepared") or (None, None))[1]
    if made is None:
        caller = caller_of(http, body.cache_salt)
        if body.edits:
            made = await edits.prepared(service, body, http, caller, _prepared, ids)
        else:
            made = await service.run(caller.client, _prepared, body, caller, None, ids)
    return _begun(made, http.scope["record"])


def _begun(made: Conversation, record: RequestRecord) -> Conversation:
    """Submit a conversation's requests."""

    def read_one(generation: Generation) -> tuple[str, Sequence[parser.Call]]:
        answer = read_answer(made.reader(), [Piece(generation.text, generation=generation)])
        return answer.content, answer.calls

    form, count = made.form, len(made.requests)
    again = form.again(made.requests, count, read_one)
    warnings = form.warnings if form.asked else None
    made.streams = MergedStreams(made.service, made.requests, record, again, warnings, count)
    return made


def _prepared(
    service: Service,
    body: ChatCompletionRequest,
    caller: Caller,
    own: edits.RequestEdits | None,
    given: Sequence[int] | None,
) -> Conversation:
    """A request that is checked, and rendered; its streams are not begun."""
    engine = service.engine_of(body.model, body.edits)
    count = body.n or 1
    service.limits.check_choices(count, "n")
    given_tools, choice = _tools(body)
    _check_consistent(body, given_tools)
    tools = None if choice == "none" else given_tools
    variables = _variables(service, body)
    begun = going_on(service, body)
    prompt = chat_ids(service, body.messages, tools, variables) if given is None else given
    ids = (*prompt, *begun)
    param, most = "max_completion_tokens", body.max_completion_tokens
    param, most = ("max_tokens", body.max_tokens) if most is None else (param, most)
    if most == 0:
        raise APIError(400, f"{param} is 0: an answer has at least one token", param=param)
    service.check_ids(ids, "messages")
    most = service.limits.tokens(most, len(ids), service.context, param)
    thought = find_marks(service.template or "")
    tokenizer, text = service.tokenizer, service.tokenizer.decode(begun) if begun else ""
    thought = thought and thought.of_prompt(tokenizer.decode(prompt[-16:]))
    left, content = thought.within(text) if thought and text else (thought, text)
    opened = left is not None and left.opened
    form = answer_form.of_chat(service.lm, body, tools, choice, content or _continued(body), opened)
    room = service.context - len(ids)
    form.limit([room if most is None else min(most, room)], left, _thought_limit(body, left, variables))
    internals = body.internals and service.internals(body.internals)
    edit = own and own.hooks(ids)
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else 0
    requests = [
        Request(
            ids=ids,
            settings=service.sampling_params(body, most, top_logprobs, i),
            constraint=form.fresh(),
            internals=internals,
            edit=edit,
            **vars(caller),
            engine=engine,
        )
        for i in range(count)
    ]
    return Conversation(service, body, requests, form, thought, text, tool_schemas(given_tools))


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
    ended = ENDED[generation.finish_reason]
    return "tool_calls" if reader.called and ended == "stop" else ended


def read_answer(reader: AnswerReader, pieces: Sequence[Piece]) -> Answer:
    """The answer that all of a choice's pieces make."""
    events = [event for piece in pieces for event in reader.push(piece)]
    generation = pieces[-1].generation
    assert generation is not None, "the last piece brings the generation"
    return Answer(*collect(events), reason(reader, generation), generation)
