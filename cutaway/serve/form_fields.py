"""Which form of the answer a request asks for, in OpenAI's, vLLM's or llama.cpp's fields."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cutaway.serve.api_error import APIError
from cutaway.serve.openai.sampling_schema import (
    JsonObject,
    JsonSchema,
    LarkGrammar,
    Regex,
    ResponseFormat,
    SamplingRequest,
    TextFormat,
)


@dataclass(frozen=True)
class Gbnf:
    """llama.cpp's grammar."""

    grammar: str


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
