"""The constraints on a request's answers: grammar, budget of thought, least length, schema.

A grammar holds an answer to a format, schema or calls, as far as a grammar can; a budget ends its thought; a
least length forbids its end. What a schema asks beyond a grammar is named in the answer's ``warnings``, and
validated afterwards: an answer that does not fit is drawn again, up to SAMPLES times in all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cutaway.errors import UserError
from cutaway.generate import constrain
from cutaway.generate.batch.request import Generation, Request
from cutaway.generate.bounded import BoundedConstraint
from cutaway.generate.min_tokens import MinTokens
from cutaway.generate.patterns import lark_regex
from cutaway.generate.thinking import budget
from cutaway.generate.tool_calls import tool_grammar
from cutaway.generate.tool_calls.constraint import (
    Check,
    Held,
    call_constraint,
    held_schema,
    left_out_warnings,
    refuse_misspelt,
    schema_error,
)
from cutaway.generate.tool_calls.parser import Call, ToolSchemas
from cutaway.generate.tool_calls.thoughts import Marks
from cutaway.generate.tool_calls.tool_format import ToolFormat
from cutaway.lm import LanguageModel
from cutaway.serve.api_error import APIError, about, errors_in
from cutaway.serve.openai.message_schema import AllowedTools, NamedTool, Tool
from cutaway.serve.openai.sampling_schema import (
    JsonObject,
    JsonSchema,
    LarkGrammar,
    Regex,
    ResponseFormat,
    SamplingRequest,
    TextFormat,
    schema_format,
)
from cutaway.serve.openai.schema import ChatCompletionRequest
from cutaway.tokenizer import Tokenizer

STRIDE = 7919  # between the seeds of an answer's samples
FORMS = ("response_format", "structured_outputs", "grammar", "json_schema")  # fields that ask for a form
FORMS += ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
SAMPLES = 3  # of an answer, where a grammar cannot hold all of its schema


@dataclass(frozen=True)
class Gbnf:
    """llama.cpp's grammar."""

    grammar: str


@dataclass
class AnswerForm:
    """What holds the answers to one request; made by `of_text` and `of_chat`; `limit` then says how
    long each prompt's answers may be.
    """

    lm: LanguageModel
    param: str  # the field of the request that errors are about
    least: int = 0  # tokens before an end token may come
    held: Held | None = None
    asked: bool = False  # whether the request asks for a form: an answer that is cut off may not have it
    format: ToolFormat | None = None  # of calls; None: none may be made
    calls_alone: bool = False
    begun: str = ""  # the text that the answers go on with
    warnings: list[str] = field(default_factory=list)
    _limited: list[Any] = field(default_factory=list)  # each prompt's constraint, at its first token

    def __post_init__(self) -> None:
        if self.held is not None:
            self.warnings = list(self.held.warnings)

    @property
    def ends(self) -> tuple[int, ...]:
        """The end tokens that the model's files name."""
        named = self.lm.engines.checkpoint.defaults.get("eos_ids", ())
        return named if isinstance(named, tuple) else ()

    def limit(self, rooms: Sequence[int], thought: Marks | None = None, most: int | None = None) -> None:
        """Have the answers to each prompt end in form within its room, with ``most`` tokens of thought.
        APIError for a grammar that cannot be followed.
        """
        constraint = None
        if self.held is not None:
            try:
                constraint = self.held.grammar.begin(self.lm.tokenizer, self.ends)
                constraint = constraint.begun(self.begun) if self.begun else constraint
            except UserError as error:
                raise about(error, self.param) from None
        self._limited = [self._within(room, constraint, thought, most) for room in rooms]

    def _within(
        self, room: int, constraint: constrain.Constraint | None, thought: Marks | None, most: int | None
    ) -> Any:
        tokenizer = self.lm.tokenizer
        if thought is not None and (thought.opened if constraint is not None else most is not None):
            return budget.of_marks(tokenizer, thought, most, constraint, room)
        return constraint and BoundedConstraint(constraint, tokenizer, room)

    def fresh(self, prompt: int = 0) -> Any:
        """The constraint of one answer to a prompt, None where it is free."""
        limited = self._limited[prompt]
        made = limited and limited.fresh()
        if self.least:
            made = MinTokens(made, self.least, sorted({*self.lm.tokenizer.eos_ids, *self.ends}))
        return made

    def again(
        self,
        requests: Sequence[Request],
        choices: int,
        read: Callable[[Generation], tuple[str, Sequence[Call]]],
    ) -> Callable[[int, Generation, int], Request | None] | None:
        """What an answer that does not fit is asked again with (streaming.MergedStreams), with other random
        numbers; it gives None for one that fits, and after SAMPLES, which is then one of the warnings.
        ``read`` tells an answer's content and calls; each prompt has so many ``choices`` in a row.
        """
        check = self.held and self.held.check
        if check is None:
            return None

        def again(i: int, generation: Generation, sample: int) -> Request | None:
            content, calls = read(generation)
            wrong = check(self.begun + content, calls)
            if wrong is None:
                return None
            if sample + 1 >= SAMPLES:
                self.warnings.append(f"none of {SAMPLES} samples fits the schema: {wrong}")
                return None
            settings = requests[i].settings
            seed = None if settings.seed is None else (settings.seed + STRIDE * (sample + 1)) % 2**63
            constraint = self.fresh(i // choices)
            return replace(requests[i], settings=replace(settings, seed=seed), constraint=constraint)

        return again


# ---- from a request's fields -------------------------------------------------------------------------------


def of_text(lm: LanguageModel, body: SamplingRequest) -> AnswerForm:
    """The form of a request's answers that are text. APIError for one that is none."""
    held = _of_response(body) if _has_form(body) else None
    return AnswerForm(lm, "response_format", body.min_tokens or 0, held, held is not None)


def of_chat(
    lm: LanguageModel,
    body: ChatCompletionRequest,
    tools: Sequence[Tool] | None,
    choice: Any,
    begun: str,
    opened: bool,
) -> AnswerForm:
    """The form of a chat's answers, which may be calls of tools, and go on with the text ``begun``; with
    ``opened`` they begin inside a thought.
    """
    if not tools:
        form = of_text(lm, body)
        form.begun = begun
        return form
    format = lm.tool_format
    format = replace(format, reasoning=None, can_require=True) if opened else format
    with errors_in("tools"):
        held, alone = _of_tools(lm, body, format, tools, choice)
    if begun and alone:
        text = "an answer that goes on with the last message is no call: use tool_choice 'auto'"
        raise APIError(400, text, param="continue_final_message")
    form_asked = alone or _has_form(body)
    return AnswerForm(lm, "tools", body.min_tokens or 0, held, form_asked, format, alone, begun)


def _has_form(body: SamplingRequest) -> bool:
    return any(getattr(body, name) is not None for name in FORMS)


def _of_response(body: SamplingRequest) -> Held | None:
    """What holds an answer to the form that its request asks for."""
    form = asked(body)
    if form is None:
        return None
    try:
        return _held_form(form)
    except UserError as error:
        raise about(error, "response_format" if body.response_format is form else "grammar") from None


def _held_form(form: ResponseFormat | Gbnf) -> Held:
    """What holds an answer to a form."""
    schema = schema_of(form)
    if schema is not None:
        held, left_out = held_schema(schema)
        if isinstance(form, JsonSchema) and form.json_schema.strict:
            refuse_misspelt(schema, "the schema")
        check = _fits(schema) if left_out else None
        return Held(constrain.json_schema(held), check, left_out_warnings(left_out, schema))
    if isinstance(form, Regex):
        return Held(constrain.regex(form.regex))
    if isinstance(form, Gbnf):
        return Held(constrain.gbnf(form.grammar))
    assert isinstance(form, LarkGrammar)
    return Held(constrain.lark(form.grammar))


def _fits(schema: dict[str, Any]) -> Check:
    def check(content: str, calls: Sequence[Call]) -> str | None:
        return None if calls else schema_error(schema, content)

    return check


def _of_either(
    body: SamplingRequest, format: ToolFormat, tools: ToolSchemas, tokenizer: Tokenizer, several: bool
) -> Held:
    """What holds an answer to calls of tools or else to the form that its request asks for."""
    form, response = asked(body), _of_response(body)
    schema = schema_of(form)
    if schema is not None:
        answer = tool_grammar.json_rule(held_schema(schema)[0])
    elif isinstance(form, Regex):
        answer = lark_regex(form.regex)
    else:
        text = "a grammar and tools exclude each other: use a JSON schema or a regex, or tool_choice 'none'"
        raise APIError(400, text, param="response_format")
    calls = call_constraint(tool_grammar.required_grammar, format, tools, tokenizer, several, answer=answer)
    checks = [one.check for one in (response, calls) if one is not None and one.check is not None]

    def check(content: str, made: Sequence[Call]) -> str | None:
        return next((wrong for one in checks if (wrong := one(content, made))), None)

    warnings = [*(response.warnings if response else ()), *calls.warnings]
    return Held(calls.grammar, check if checks else None, warnings)


def _of_tools(
    lm: LanguageModel, body: ChatCompletionRequest, format: ToolFormat, tools: Sequence[Tool], choice: Any
) -> tuple[Held | None, bool]:
    """What holds an answer that may make calls, and whether it is calls alone."""
    tokenizer = lm.tokenizer
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
    if asked(body) is not None:
        return _of_either(body, format, held, tokenizer, several), False
    if wanted or any(tool.function.strict for tool in tools) or not several:
        return call_constraint(tool_grammar.optional_grammar, format, held, tokenizer, several), False
    return None, False


def tool_schemas(tools: Sequence[Tool] | None) -> ToolSchemas:
    """The schemas of the tools' arguments by the tools' names."""
    return {tool.function.name: tool.function.parameters for tool in tools or ()}


# ---- which form the fields ask for, in OpenAI's, vLLM's or llama.cpp's words -------------------------------


def asked(body: SamplingRequest) -> ResponseFormat | Gbnf | None:
    """The form of the answer that a request asks for, None for text. APIError where two fields ask."""
    outputs = body.structured_outputs
    given: dict[str, Any] = {
        "response_format": None if isinstance(body.response_format, TextFormat) else body.response_format,
        "guided_json": _schema(body.guided_json, "guided_json"),
        "guided_regex": body.guided_regex and Regex(type="regex", regex=body.guided_regex),
        "guided_choice": _choice(body.guided_choice),
        "guided_grammar": body.guided_grammar and Gbnf(body.guided_grammar),
        "grammar": body.grammar and Gbnf(body.grammar),
        "json_schema": _schema(body.json_schema, "json_schema"),
    }
    if outputs is not None:
        given |= {
            "structured_outputs.json": _schema(outputs.json_, "structured_outputs.json"),
            "structured_outputs.regex": outputs.regex and Regex(type="regex", regex=outputs.regex),
            "structured_outputs.choice": _choice(outputs.choice),
            "structured_outputs.grammar": outputs.grammar and Gbnf(outputs.grammar),
            "structured_outputs.json_object": JsonObject.model_validate({"type": "json_object"})
            if outputs.json_object
            else None,
        }
    found = {name: value for name, value in given.items() if value}
    if len(found) > 1:
        first, second, *_ = found
        raise APIError(400, f"{first} and {second} both say what the answer is: give one", param=second)
    return next(iter(found.values()), None)


def _schema(given: dict[str, Any] | str | None, param: str) -> ResponseFormat | None:
    if given is None:
        return None
    try:
        schema = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise APIError(400, f"{param} is no JSON schema, which is an object", param=param)
    return JsonSchema.model_validate(schema_format(schema))


def _choice(given: Sequence[str] | None) -> ResponseFormat | None:
    if not given:
        return None
    texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in given)
    return LarkGrammar(type="grammar", grammar=f"start: {texts}")


def schema_of(form: ResponseFormat | Gbnf | None) -> dict[str, Any] | None:
    """The schema of a form that is JSON, None for another."""
    if isinstance(form, JsonSchema):
        return form.json_schema.schema_ or {"type": "object"}
    return (form.schema_ or {"type": "object"}) if isinstance(form, JsonObject) else None
