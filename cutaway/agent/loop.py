"""The loop of an agent: the model writes, its calls run, their results are read, until it answers."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cutaway.agent import built_in_tools
from cutaway.agent.tool import Tool, ToolError, distinct
from cutaway.bounds import Bounded, Count, Positive
from cutaway.errors import OperationalError, UserError
from cutaway.extras import need
from cutaway.generate import constrain
from cutaway.generate.batch.request import Generation
from cutaway.generate.bounded import BoundedConstraint
from cutaway.generate.sampling_params import SamplingOptions
from cutaway.generate.thinking import budget
from cutaway.generate.tool_calls import tool_grammar
from cutaway.generate.tool_calls.answer import AnswerReader, collect
from cutaway.generate.tool_calls.constraint import call_constraint
from cutaway.generate.tool_calls.parser import Call
from cutaway.generate.tool_calls.thoughts import Thought, find_marks

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Unpack

    from cutaway.generate.batch.request import Piece
    from cutaway.generate.session import Session
    from cutaway.generate.tool_calls.tool_format import ToolFormat
    from cutaway.tokenizer import Tokenizer
    from cutaway.weights.checkpoint import Checkpoint

Message = dict[str, Any]


@runtime_checkable
class Speaker(Protocol):
    """The model's side of an agent, which ``LanguageModel`` implements."""

    context: int

    @property
    def checkpoint(self) -> Checkpoint: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def tool_format(self) -> ToolFormat: ...

    def session(self) -> Session: ...

    def chat_ids(self, messages: Sequence[Mapping[str, Any]], /, **options: Any) -> list[int]: ...

    def stream(self, prompt: Sequence[int], /, **options: Any) -> Iterator[Piece]: ...


@dataclass(frozen=True)
class Limits(Bounded):
    """The limits of an answer (``calls``) and of a call (``seconds``; characters of ``output``)."""

    calls: Count = 8
    seconds: Positive = 60.0
    output: Count = 4000


@dataclass(frozen=True)
class ToolResult:
    """What a call gave: the text that the model reads, and whether that is an error."""

    call: Call
    text: str
    failed: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer, whole. ``messages`` are what the conversation has more now, calls and results included.

    ``ids`` is the conversation as the model read and wrote it; ``appended``: whether each turn began with the
    ids of the one before.
    """

    text: str
    calls: tuple[ToolResult, ...]
    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    generation: Generation
    appended: bool


Event = str | Thought | Call | ToolResult | Answer
Confirm = Callable[[Call], bool]


@dataclass
class Agent:
    """A model with tools. ``confirm`` is asked before each call; ``options`` are those of ``lm.stream``.

    ``warnings`` says what the grammar cannot hold of the tools' schemas.
    """

    lm: Speaker
    tools: Sequence[Tool]
    system: str | None = None
    limits: Limits = field(default_factory=Limits)
    confirm: Confirm | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tools = distinct(self.tools)
        self.messages: list[Message] = []
        self.warnings: list[str] = []
        self._known = {tool.name: tool for tool in self.tools}
        self._declared = [tool.declaration for tool in self.tools]
        self._schemas = {tool.name: tool.parameters for tool in self.tools}
        self.session = self.lm.session()
        self._read: list[Message] = []  # the messages that ``_ids`` are of
        self._ids: list[int] = []
        self._ends = 0  # end tokens in the last prompt as it is rendered
        ends = self.lm.checkpoint.defaults.get("eos_ids", ())
        self._eos = {*self.lm.tokenizer.eos_ids, *(ends if isinstance(ends, tuple) else ())}
        self._constraint, self._check = self._held() if self.tools else (None, None)

    def _held(self) -> tuple[Any, Any]:
        """The grammar of calls by their schemas, and the checks after it. UserError without llguidance."""
        tokenizer = self.lm.tokenizer
        need("a model that calls tools", "jsonschema", "llguidance")
        for name, schema in self._schemas.items():
            try:
                constrain.schema_error(dict(schema), "{}")
            except UserError as error:
                self._schemas[name] = {"type": "object"}
                self.warnings.append(f"{name}: any arguments are allowed, for {error}")
        make = tool_grammar.optional_grammar
        try:
            held = call_constraint(make, self.lm.tool_format, self._schemas, tokenizer, False)
            self.warnings += held.warnings
            return held.grammar.begin(tokenizer, sorted(self._eos)), held.check
        except UserError as error:
            self.warnings.append(f"calls are not held to their tools' schemas, because {error}")
            return None, None

    def ask(self, question: str) -> Answer:
        """The answer to a question, which ``messages`` then has."""
        (answer,) = (
            event
            for event in self.stream([*self.messages, {"role": "user", "content": question}])
            if isinstance(event, Answer)
        )
        self.messages += [{"role": "user", "content": question}, *answer.messages]
        return answer

    def stream(self, messages: Sequence[Message]) -> Iterator[Event]:
        """The answer to a conversation: text and thoughts as they come, calls before and results after they
        run; the whole Answer last. Raises ContextFullError where results leave no room.
        """
        conversation, given = list(messages), len(messages)
        if self.system is not None and conversation[0]["role"] != "system":
            conversation.insert(0, {"role": "system", "content": self.system})
            given += 1
        results: list[ToolResult] = []
        appended, over = True, False
        while True:
            ids, joined = self._prompt(conversation)
            appended = appended and (joined or not self._read)
            over = over or len(results) >= self.limits.calls
            thought, content, calls, generation = yield from self._turn(ids, over)
            message: Message = {"role": "assistant", "content": content}
            if thought:
                message["reasoning_content"] = thought
            if calls:
                message["tool_calls"] = [_tool_call(len(results) + n, call) for n, call in enumerate(calls)]
            conversation.append(message)
            self._read, self._ids = list(conversation), [*ids, *generation.ids]
            if not calls:
                new, whole = tuple(conversation[given:]), tuple(self._ids)
                yield Answer(content, tuple(results), new, whole, generation, appended)
                return
            for call, made in zip(calls, message["tool_calls"], strict=True):
                yield call
                repeated = any(call == old.call for old in results)
                over = over or repeated
                result = ToolResult(call, *self._outcome(call, repeated))
                results.append(result)
                yield result
                reply = {"role": "tool", "name": call.name, "content": result.text}
                conversation.append(reply | {"tool_call_id": made["id"]})

    def _turn(self, ids: Sequence[int], over: bool) -> Iterator[Any]:
        """What the model writes next. ``over``: no further call may be made."""
        format = self.lm.tool_format if self.tools and not over else None
        marks = find_marks(self.lm.checkpoint.chat_template or "")
        marks = marks and marks.of_prompt(self.lm.tokenizer.decode(list(ids[-16:])))
        constraint = None if self._constraint is None or over else self._constraint.fresh()
        room = self.lm.context - len(ids)
        size = min(self.options.get("max_tokens") or room, room)
        if constraint is not None and marks is not None and marks.opened:
            constraint = budget.of_marks(self.lm.tokenizer, marks, None, constraint, size)
        elif constraint is not None:
            constraint = BoundedConstraint(constraint, self.lm.tokenizer, size)
        options = {**self.options, "constraint": constraint, "session": self.session}
        if over and not self.lm.tool_format.untagged:
            options["stop"] = [*_stops(self.options), self.lm.tool_format.trigger]
        reader = AnswerReader(marks, format, self._schemas)
        events: list[Any] = []
        for piece in self.lm.stream(ids, **options):
            for event in reader.push(piece):
                events.append(event)
                if isinstance(event, str | Thought):
                    yield event
            if piece.generation is not None:
                return *collect(events), piece.generation
        raise AssertionError("the last piece brings the generation")

    def _prompt(self, messages: list[Message]) -> tuple[list[int], bool]:
        """The conversation's ids, and whether they begin with those of the last turn."""
        whole = self._rendered(messages)
        known, before = len(self._read), self._ends
        self._ends = sum(id in self._eos for id in whole)
        if not known or messages[:known] != self._read:
            return whole, False
        closed = self._rendered(self._read, add_generation_prompt=False)
        ends = [at for at, id in enumerate(closed) if id in self._eos]
        if len(ends) != before + 1 or whole[: ends[-1] + 1] != closed[: ends[-1] + 1]:
            return whole, False
        return [*self._ids, *whole[ends[-1] :]], True

    def _rendered(self, messages: list[Message], **variables: Any) -> list[int]:
        """The ids of a conversation. A result that would steer the template is replaced by words for it."""
        try:
            return self.lm.chat_ids(messages, tools=self._declared, **variables)
        except UserError:
            last = messages[-1]
            if last["role"] != "tool":
                raise
            last["content"] = "error: the result is withheld, for it imitates the conversation's own marks"
            return self.lm.chat_ids(messages, tools=self._declared, **variables)

    def _outcome(self, call: Call, repeated: bool) -> tuple[str, bool]:
        """The text of a call's result, and whether it is an error."""
        try:
            text, failed = self._run(call, repeated), False
        except ToolError as error:
            text, failed = f"error: {error}", True
        if len(text) > self.limits.output:
            text = f"{text[: self.limits.output]}\n[cut: {self.limits.output:,} of {len(text):,} characters]"
        return text, failed

    def _run(self, call: Call, repeated: bool) -> str:
        """A call's result. ToolError where it fails."""
        tool = self._known.get(call.name)
        if tool is None:
            raise ToolError(f"there is no tool {call.name!r}: use {', '.join(self._known)}")
        if repeated:
            raise ToolError("this call was made already: answer with what it gave")
        arguments = _arguments(call)
        wrong = self._check and self._check("", [call])
        if wrong:
            raise ToolError(f"the arguments do not fit: {wrong}")
        if self.confirm is not None and not self.confirm(call):
            raise ToolError("the user does not allow this call")
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put(tool.call(arguments))
            except ToolError as error:
                done.put(error)
            except (UserError, OperationalError) as error:
                done.put(ToolError(str(error)))
            except Exception as error:  # a stranger's function may raise anything; the model reads it
                done.put(ToolError(f"{type(error).__name__}: {error}"))

        threading.Thread(target=run, daemon=True).start()
        try:
            made = done.get(timeout=self.limits.seconds)
        except queue.Empty:
            raise ToolError(f"it did not answer within {self.limits.seconds:g} seconds") from None
        if isinstance(made, ToolError):
            raise made
        return made


class AgentOptions(SamplingOptions, total=False):
    """What `lm.agent` takes beside the tools and the sampling settings; each may be left out.

    ``root``: the folder that search and read may see. ``confirm(call)`` is asked before each call; without
    it all may run.
    """

    root: str | Path
    system: str | None
    limits: Limits | None
    confirm: Confirm | None


def make_agent(
    lm: Speaker,
    tools: Sequence[str | Tool | Callable[..., Any]],
    reader: built_in_tools.Reader,
    *,
    root: str | Path = ".",
    system: str | None = None,
    limits: Limits | None = None,
    confirm: Confirm | None = None,
    **options: Unpack[SamplingOptions],
) -> Agent:
    """A model with tools, given as functions, by name or as they are; ``reader`` makes a search's encoder."""
    from functools import cache
    from pathlib import Path

    own = built_in_tools.make_tools(tools, Path(root), cache(reader))
    return Agent(lm, own, system, limits or Limits(), confirm, options)


def _arguments(call: Call) -> dict[str, Any]:
    """A call's arguments. ToolError for anything but a JSON object."""
    try:
        made = json.loads(call.arguments)
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict):
        raise ToolError("the arguments are not a JSON object")
    return made


def _tool_call(n: int, call: Call) -> Message:
    """A call as templates read it; its id has the 9 characters that Mistral's ask for."""
    function = {"name": call.name, "arguments": call.object}
    return {"id": f"call{n:05}", "type": "function", "function": function}


def _stops(options: Mapping[str, Any]) -> list[str]:
    stop = options.get("stop", ())
    return [stop] if isinstance(stop, str) else list(stop)
