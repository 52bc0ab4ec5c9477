"""What holds an answer to a form: a request's format, schema or grammar, as far as a grammar can.

What a schema asks beyond that is left out of the grammar, named in the answer's ``warnings``, and validated
afterwards: an answer that does not fit is drawn again, up to SAMPLES times in all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cutaway.generate import constrain
from cutaway.generate.batch.request import Generation, Request
from cutaway.generate.patterns import lark_regex
from cutaway.generate.tool_calls import parser, tool_grammar
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
from cutaway.generate.tool_calls.tool_format import ToolFormat
from cutaway.generate.tool_calls.tool_grammar import json_rule, required_grammar
from cutaway.serve.api_error import APIError, errors_in
from cutaway.serve.openai.message_schema import AllowedTools, NamedTool, Tool
from cutaway.serve.openai.sampling_schema import (
    JsonObject,
    JsonSchema,
    LarkGrammar,
    Regex,
    ResponseFormat,
    SamplingRequest,
    TextFormat,
)
from cutaway.serve.openai.schema import ChatCompletionRequest
from cutaway.serve.service import Service
from cutaway.tokenizer import Tokenizer

STRIDE = 7919  # between the seeds of an answer's samples
SAMPLES = 3  # of an answer, where a grammar cannot hold all of its schema


@dataclass(frozen=True)
class Gbnf:
    """llama.cpp's grammar."""

    grammar: str


def asked(body: SamplingRequest) -> ResponseFormat | Gbnf | None:
    """The form of the answer that a request asks for, in OpenAI's, vLLM's or llama.cpp's fields; None for
    text. APIError where two ask.
    """
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
    return _json_schema(schema)


def _json_schema(schema: dict[str, Any]) -> JsonSchema:
    spec = {"name": "answer", "schema": schema}
    return JsonSchema.model_validate({"type": "json_schema", "json_schema": spec})


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


def of_response(body: SamplingRequest) -> Held | None:
    """What holds an answer to the form that its request asks for."""
    form = asked(body)
    if form is None:
        return None
    with errors_in("response_format" if body.response_format is form else "grammar"):
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


def of_either(
    body: SamplingRequest, format: ToolFormat, tools: ToolSchemas, tokenizer: Tokenizer, several: bool
) -> Held:
    """What holds an answer to calls of tools or else to the form that its request asks for."""
    form, response = asked(body), of_response(body)
    schema = schema_of(form)
    if schema is not None:
        answer = json_rule(held_schema(schema)[0])
    elif isinstance(form, Regex):
        answer = lark_regex(form.regex)
    else:
        text = "a grammar and tools exclude each other: use a JSON schema or a regex, or tool_choice 'none'"
        raise APIError(400, text, param="response_format")
    calls = call_constraint(required_grammar, format, tools, tokenizer, several, answer=answer)
    checks = [one.check for one in (response, calls) if one is not None and one.check is not None]

    def check(content: str, made: Sequence[Call]) -> str | None:
        return next((wrong for one in checks if (wrong := one(content, made))), None)

    warnings = [*(response.warnings if response else ()), *calls.warnings]
    return Held(calls.grammar, check if checks else None, warnings)


def drawn_again(
    requests: Sequence[Request],
    fresh: Callable[[int], Any],
    judge: Callable[[int, Generation], str | None],
    warnings: list[str],
) -> Callable[[int, Generation, int], Request | None]:
    """What an answer that does not fit is asked again with (streaming.MergedStreams), with other random
    numbers; None where it fits, or SAMPLES were drawn, which is then one of the warnings.
    """

    def again(i: int, generation: Generation, sample: int) -> Request | None:
        wrong = judge(i, generation)
        if wrong is None:
            return None
        if sample + 1 >= SAMPLES:
            warnings.append(f"none of {SAMPLES} samples fits the schema: {wrong}")
            return None
        settings = requests[i].settings
        seed = None if settings.seed is None else (settings.seed + STRIDE * (sample + 1)) % 2**63
        return replace(requests[i], settings=replace(settings, seed=seed), constraint=fresh(i))

    return again


def tool_rules(
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
    if asked(body) is not None:
        return of_either(body, format, held, tokenizer, several), False
    if wanted or any(tool.function.strict for tool in tools) or not several:
        return call_constraint(tool_grammar.optional_grammar, format, held, tokenizer, several), False
    return None, False


def tool_schemas(tools: Sequence[Tool] | None) -> parser.ToolSchemas:
    """The schemas of the tools' arguments by the tools' names."""
    return {tool.function.name: tool.function.parameters for tool in tools or ()}
