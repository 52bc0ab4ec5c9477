"""What holds an answer to a form: a request's format, schema or grammar, as far as a grammar can.

What a schema asks beyond that is left out of the grammar, named in the answer's ``warnings``, and validated
afterwards: an answer that does not fit is drawn again, up to SAMPLES times in all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.generate import constrain
from cutaway.generate.batch.request import Constraint, Generation, Request
from cutaway.serve import json_schema
from cutaway.serve.openai_format import APIError, errors_in
from cutaway.serve.protocol import (
    JsonObject,
    JsonSchema,
    LarkGrammar,
    Regex,
    ResponseFormat,
    SamplingRequest,
    TextFormat,
)
from cutaway.serve.tool_calls.parser import Call, ToolSchemas
from cutaway.serve.tool_calls.tool_format import ToolFormat
from cutaway.serve.tool_calls.tool_grammar import json_rule, required_grammar
from cutaway.tokenizer import Tokenizer

STRIDE = 7919  # between the seeds of an answer's samples
SAMPLES = 3  # of an answer, where a grammar cannot hold all of its schema
Check = Callable[[str, Sequence[Call]], str | None]  # why an answer's content and calls do not fit


@dataclass(frozen=True)
class Held:
    """A grammar, what is checked after it, and warnings."""

    grammar: constrain.Grammar
    check: Check | None = None
    warnings: list[str] = field(default_factory=list)


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
            held, left_out = _held(schema)
            check = _fits(schema) if left_out else None
            return Held(constrain.json_schema(held), check, _warnings(left_out))
        if isinstance(form, Regex):
            return Held(constrain.regex(form.regex))
        if isinstance(form, Gbnf):
            return Held(constrain.gbnf(form.grammar))
        assert isinstance(form, LarkGrammar)
        return Held(constrain.lark(form.grammar))


def _held(schema: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The closest schema that a grammar can hold, and the keywords that are left out. UserError for what is
    no schema, or is too large.
    """
    constrain.check_size(schema)
    closed = json_schema.closed(schema)
    try:
        constrain.json_schema(closed)
        return closed, []
    except UserError:
        constrain.schema_error(schema, "null")  # raises for what is no schema
    held, left_out = json_schema.holdable(closed)
    for one in (held, json_schema.holdable(schema)[0]):
        try:
            constrain.json_schema(one)
            return one, left_out
        except UserError:
            continue
    return ({"type": "object"} if schema.get("type") == "object" else {}), ["the whole schema"]


def _warnings(left_out: Sequence[str], where: str = "the schema") -> list[str]:
    if not left_out:
        return []
    return [f"{', '.join(left_out)} of {where} are checked after the answer, not held to while it is written"]


def _fits(schema: dict[str, Any]) -> Check:
    def check(content: str, calls: Sequence[Call]) -> str | None:
        return None if calls else _error(schema, content)

    return check


def _error(schema: Mapping[str, Any], text: str) -> str | None:
    """Why JSON does not fit a schema; JSON that is cut off is no matter of the schema."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    try:
        return constrain.schema_error(schema, text)
    except (UserError, OperationalError) as error:
        return str(error)


def of_calls(
    make: Any, format: ToolFormat, tools: ToolSchemas, tokenizer: Tokenizer, several: bool, **more: Any
) -> Held:
    """What holds an answer to calls of tools: ``make`` is one of tool_grammar's."""
    held: dict[str, dict[str, Any]] = {}
    loose: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    for name, schema in tools.items():
        held[name], left_out = _held({"type": "object", "properties": {}, **(schema or {})})
        if not held[name].get("properties"):
            held[name].setdefault("additionalProperties", schema is not None and "properties" not in schema)
        if left_out:
            loose[name] = dict(schema or {})
            warnings += _warnings(left_out, f"{name}'s schema")
    try:
        grammar = make(format, held, tokenizer, several, **more)
    except UserError:
        bare = {name: json_schema.bare(schema) for name, schema in held.items()}
        grammar = make(format, bare, tokenizer, several, **more)
        loose = {name: dict(schema or {}) for name, schema in tools.items()}
        warnings = [
            "of the tools' schemas names and types are held to, and the rest is checked after the answer"
        ]

    def check(content: str, calls: Sequence[Call]) -> str | None:
        found = (_error(loose[call.name], call.arguments) for call in calls if call.name in loose)
        return next((wrong for wrong in found if wrong), None)

    return Held(grammar, check if loose else None, warnings)


def of_either(
    body: SamplingRequest, format: ToolFormat, tools: ToolSchemas, tokenizer: Tokenizer, several: bool
) -> Held:
    """What holds an answer to calls of tools or else to the form that its request asks for."""
    form, response = asked(body), of_response(body)
    schema = schema_of(form)
    if schema is not None:
        answer = json_rule(_held(schema)[0])
    elif isinstance(form, Regex):
        answer = "/" + form.regex.replace("/", r"\/") + "/"
    else:
        text = "a grammar and tools exclude each other: use a JSON schema or a regex, or tool_choice 'none'"
        raise APIError(400, text, param="response_format")
    calls = of_calls(required_grammar, format, tools, tokenizer, several, answer=answer)
    checks = [one.check for one in (response, calls) if one is not None and one.check is not None]

    def check(content: str, made: Sequence[Call]) -> str | None:
        return next((wrong for one in checks if (wrong := one(content, made))), None)

    warnings = [*(response.warnings if response else ()), *calls.warnings]
    return Held(calls.grammar, check if checks else None, warnings)


def drawn_again(
    requests: Sequence[Request],
    fresh: Callable[[], Any],
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
        return replace(requests[i], settings=replace(settings, seed=seed), constraint=fresh())

    return again


# ---- what begins later -------------------------------------------------------------------------------------


class AfterThought:
    """A constraint that begins once a thought has ended, which a template opened."""

    def __init__(self, inner: Any, end: str, tokenizer: Tokenizer) -> None:
        self.inner, self.end, self.tokenizer = inner, end.encode(), tokenizer
        self.text, self.begun = b"", False

    def fresh(self) -> AfterThought:
        """The same for another text."""
        return AfterThought(self.inner.fresh(), self.end.decode(), self.tokenizer)

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self.begun and self.inner.done

    def mask(self, logits: np.ndarray) -> None:
        """Nothing is forbidden within the thought but its text's end."""
        if self.begun:
            self.inner.mask(logits)
        else:
            logits[list(self.tokenizer.eos_ids)] = -np.inf

    def accept(self, id: int) -> None:
        """Advance by the chosen id."""
        if self.begun:
            self.inner.accept(id)
            return
        self.text = (self.text + self.tokenizer.token_bytes(id))[-256:]
        self.begun = self.end in self.text


class MinTokens:
    """A constraint, or none, under which no end token comes before so many tokens."""

    def __init__(self, inner: Constraint | None, least: int, ends: Sequence[int]) -> None:
        self.inner, self.left, self.ends = inner, least, list(ends)

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self.inner is not None and self.inner.done

    def mask(self, logits: np.ndarray) -> None:
        """Set end tokens to -inf too, unless nothing else is allowed."""
        if self.inner is not None:
            self.inner.mask(logits)
        if self.left > 0:
            kept = logits[self.ends].copy()
            logits[self.ends] = -np.inf
            if not np.isfinite(logits).any():
                logits[self.ends] = kept

    def accept(self, id: int) -> None:
        """Advance by the chosen id."""
        self.left -= 1
        if self.inner is not None:
            self.inner.accept(id)
