"""The fields that chat and completions share: how to choose tokens, when to stop, which form the answer has.

The names are OpenAI's (platform.openai.com/docs/api-reference); descriptions mark vLLM's, llama.cpp's and
Cutaway's. The ranges of sampling are defined in generate/sampling_params.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, create_model
from pydantic_core import PydanticCustomError

from cutaway.generate.sampling_params import NUMBERS, SamplingParams
from cutaway.serve.validation import (
    MAX_TEXTS,
    CacheSalt,
    FailFast,
    Id,
    Indices,
    Number,
    Object,
    StrictModel,
    Text,
    Texts,
)


def _biases(value: Any) -> Any:
    """Refuses a logit_bias for its first wrong value: each of 100,000 would be listed."""
    if isinstance(value, Mapping):
        for id, bias in value.items():
            if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
                message = "{id} must have a number from -100 to 100"
                raise PydanticCustomError("wrong_bias", message, {"id": str(id)[:40]})
    return value


class StreamOptions(StrictModel):
    include_usage: StrictBool | None = Field(
        None, description="A last chunk tells how many tokens there were."
    )
    include_obfuscation: StrictBool | None = Field(
        None, description="Random characters make the lengths of a stream's events tell less of their texts."
    )


class Internals(StrictModel):
    """Cutaway's: what is to be seen of the inside at each token (docs/serving.md)."""

    layers: Indices = Field(min_length=1, max_length=1024)
    attention: StrictBool = True
    lens: Annotated[StrictInt, Field(ge=0, le=100)] = 5
    lens_kind: Literal["logit", "tuned", "jacobian", "random"] = Field(
        "logit", description="A tuned and a Jacobian lens are there where the server has one (--lens)."
    )


def _derived(*names: str) -> dict[str, Any]:
    """Optional fields with the types and bounds of generate/sampling_params.py."""
    made: dict[str, Any] = {}
    for name in names:
        kind, bound, _ = NUMBERS[name]
        high = None if bound.high == math.inf else bound.high
        number: Any = StrictInt if kind is int else Number
        about = None if name == "temperature" else f"{getattr(SamplingParams, name):g} is off."
        made[name] = (number | None, Field(None, ge=bound.low, le=high, description=about))
    return made


IGNORED = frozenset({  # of all requests for text
    "metadata", "store", "user", "service_tier", "prompt_cache_key", "prompt_cache_retention", "verbosity",
    "safety_identifier", "cache_prompt", "prediction", "request_id", "priority", "id_slot", "client_metadata",
})  # fmt: skip
TEMPERATURE = ("temperature", "top_p")
PENALTIES = ("frequency_penalty", "presence_penalty", "repetition_penalty")
TRUNCATION = ("top_k", "min_p", "typical_p")
SAMPLERS = (*TEMPERATURE, *PENALTIES, *TRUNCATION, "ignore_eos")
Temperature = create_model("Temperature", __base__=StrictModel, **_derived(*TEMPERATURE))
Samplers = create_model("Samplers", __base__=Temperature, **_derived(*PENALTIES, *TRUNCATION))


class JsonSchemaSpec(StrictModel):
    name: Text
    description: Text | None = None
    schema_: Object | None = Field(None, alias="schema")
    strict: StrictBool | None = None


class TextFormat(StrictModel):
    type: Literal["text"]


class JsonObject(StrictModel):
    """A JSON object; ``schema`` is llama.cpp's."""

    type: Literal["json_object"]
    schema_: Object | None = Field(None, alias="schema")


class JsonSchema(StrictModel):
    type: Literal["json_schema"]
    json_schema: JsonSchemaSpec


class Regex(StrictModel):
    """Cutaway's: an answer that matches a regular expression from end to end."""

    type: Literal["regex"]
    regex: Text


class LarkGrammar(StrictModel):
    """Cutaway's: an answer of a context-free grammar in Lark's notation."""

    type: Literal["grammar"]
    grammar: Text


def schema_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The ``response_format`` of an answer that has this schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


ResponseFormat = Annotated[
    TextFormat | JsonObject | JsonSchema | Regex | LarkGrammar, Field(discriminator="type")
]


class StructuredOutputs(StrictModel):
    """vLLM's: one of these."""

    json_: Object | Text | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], FailFast, Field(max_length=MAX_TEXTS)] | None = None
    grammar: Text | None = None
    json_object: StrictBool | None = None


class SamplingRequest(Samplers):
    """How to choose tokens and when to stop: what chat and completions share."""

    IGNORED = IGNORED
    DEFAULTS: ClassVar = {
        "best_of": [1],
        "modalities": [["text"]],
        "top_k": [-1],
        "min_tokens": [0],
        "thinking_token_budget": [-1],
        "length_penalty": [1],
        "use_beam_search": [False],
        "skip_special_tokens": [True],
        "add_generation_prompt": [True],
        "continue_final_message": [False],
    }
    model: Text | None = Field(None, description="The name under which the model is served.")
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[Number, Field(ge=-100, le=100)]], BeforeValidator(_biases)] | None
    ) = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Texts | None = Field(None, description="At most 16 texts before which the answer ends.")
    stop_token_ids: Annotated[list[Id], FailFast, Field(max_length=1024)] | None = Field(
        None, description="vLLM's: ids that end the answer, beside the model's own end tokens."
    )
    n: Annotated[StrictInt, Field(ge=1)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    min_tokens: Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="vLLM's: no end token before so many tokens."
    )
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's.")
    guided_json: Object | Text | None = Field(None, description="vLLM's; so are the next three.")
    guided_regex: Text | None = None
    guided_choice: Annotated[list[Text], FailFast, Field(max_length=MAX_TEXTS)] | None = None
    guided_grammar: Text | None = None
    grammar: Text | None = Field(None, description="llama.cpp's: a grammar in GBNF.")
    json_schema: Object | None = Field(None, description="llama.cpp's.")
    ignore_eos: StrictBool | None = Field(None, description="Cutaway's: go on past the end token.")
    cache_salt: CacheSalt | None = Field(
        None, description="vLLM's: shares the prefix cache with this salt alone."
    )
    internals: Internals | None = None
